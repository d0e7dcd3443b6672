# An idempotency key is used once, however many sessions come with it at the same moment.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main', "max_connections = 60\n");
send_everything($node);
my @sessions = map { open_session($node) } 1 .. 32;

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# Has all sessions run a statement at once: each takes a shared lock first, which is withheld until all of them wait for
# it. Returns what came of each.
sub race
{
    my (@statements) = @_;
    my $gate = open_session($node);
    $gate->run('BEGIN; SELECT pg_advisory_xact_lock(7)');
    for my $i (0 .. $#sessions)
    {
        $sessions[$i]->send('SELECT pg_advisory_lock_shared(7); SELECT pg_advisory_unlock_shared(7)');
        $sessions[$i]->send($statements[ $i % @statements ]);
    }
    $node->poll_query_until('postgres',
        q{SELECT count(*) = 32 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted})
      or die "the sessions are not at the gate\n";
    $gate->run('COMMIT');
    $gate->close;
    my @outputs = map { $_->wait_for_end } @sessions;
    s/^[\nt]*// for @outputs;
    return @outputs;
}

sub insert
{
    my ($key, $payload) = @_;
    return "INSERT INTO accord.outbox (topic, key, payload, idempotency_key)
        VALUES ('race', '$key', '$payload', '$key') RETURNING 'inserted'";
}

for my $round (1 .. 5)
{
    my @outputs = race(insert("same$round", '{"a": 1}'));
    is(scalar(grep { $_ eq 'inserted' } @outputs), 1, 'of 32 sessions with one key and content, one inserts');
    is(scalar(grep { $_ eq '' } @outputs), 31, '... and the others do nothing, without an error');
    is(value("SELECT count(*) FROM accord.event_log WHERE idempotency_key = 'same$round'"), 1, '... one event');
}

my @outputs = race(map { insert('different', qq({"a": $_})) } 1 .. 32);
is(scalar(grep { $_ eq 'inserted' } @outputs), 1, 'of 32 sessions with one key and as many contents, one inserts');
is(scalar(grep { /ERROR:  23505: idempotency key "different" was used for an event with other content/ } @outputs),
    31, '... and the others are told that the key was used, by 23505');
is(value("SELECT count(*) FROM accord.event_log WHERE idempotency_key = 'different'"), 1, '... one event');

@outputs = race(map { insert('two', qq({"a": $_})) } 1, 2);
is(scalar(grep { $_ eq 'inserted' } @outputs), 1, 'with two contents, one inserts');
is(scalar(grep { $_ eq '' } @outputs), 15, '... those with the same content do nothing');
is(scalar(grep { /23505/ } @outputs), 16, '... and those with the other are refused');

# Half of the sessions roll back, in a savepoint or altogether.
my $undone = "BEGIN; SAVEPOINT s; @{[ insert('undone', '{}') ]}; ROLLBACK TO s; COMMIT";
my $rolled_back = "BEGIN; @{[ insert('undone', '{}') ]}; ROLLBACK";
race($undone, $rolled_back);
is(value("SELECT count(*) FROM accord.event_log WHERE idempotency_key = 'undone'"), 0, 'all roll back: no event');
is(value("SELECT count(*) FROM accord.idempotency_key WHERE key = 'undone'"), 0, '... and the key is free');
race($undone, insert('undone', '{}'), $rolled_back, insert('undone', '{}'));
is(value("SELECT count(*) FROM accord.event_log WHERE idempotency_key = 'undone'"), 1,
    'half of them roll back: one event of the others');

# The first one fails at its very end: a session waiting for it takes the key.
value(<<'SQL');
CREATE TABLE parent (id integer PRIMARY KEY);
CREATE TABLE child (id integer REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
SQL
my ($first, $second) = @sessions;
$first->run('BEGIN; INSERT INTO child VALUES (1);' . insert('late', '{"first": true}'));
$second->send(insert('late', '{"first": false}'));
$node->poll_query_until('postgres', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = " . $second->pid)
  or die "the second session does not wait\n";
$first->send('COMMIT');
like($first->wait_for_end, qr/ERROR:  23503/, 'the first session fails at its commit');
is($second->wait_for_end, 'inserted', '... and the second, with other content, takes the key');

# A snapshot from before the key was used makes no difference.
for my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
    $first->run("BEGIN ISOLATION LEVEL $level; SELECT 1");
    value(insert($level, '{}'));
    is($first->run(insert($level, '{}')), '', "under $level a key used meanwhile is known");
    $first->send(insert($level, '{"a": 1}'));
    like($first->wait_for_end, qr/ERROR:  23505/, '... with its content');
    $first->run('ROLLBACK');
}
$_->close for @sessions;
$node->stop;
done_testing();
