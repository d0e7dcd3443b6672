# A message takes effect once: from 32 sessions at the same moment, at every isolation level, with half of them rolling
# back, and across a crash with everything sent again. It is not echoed; what lost is corrected. What is remembered is
# forgotten in time, and not before.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP;
use List::Util qw(shuffle);
use Session;
use Test::More;

my $node = new_node('main', "max_connections = 60\naccord.restart_interval = '100ms'\n");
my $stub = start_stub();
for my $name ('ota', 'pms')
{
    channel($node, $stub, $name);
    value("UPDATE accord.channel SET base_url = base_url || '/$name' WHERE name = '$name'");
    route($node, $name, topic => 't.*', path => '/{topic}/{key}');
}

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# ---- 32 sessions ----------------------------------------------------------------------------------------------------

my @sessions = map { open_session($node) } 1 .. 32;

# Has all sessions send a message at once, in transactions whose snapshots are older than all of it: each waits at a
# gate, which is opened when all are there. Even ones end with $end. Returns what each was given.
sub race
{
    my ($level, $statement, $end) = @_;
    my $gate = open_session($node);
    $gate->run('BEGIN; SELECT pg_advisory_xact_lock(7)');
    for my $i (0 .. $#sessions)
    {
        $sessions[$i]->send("BEGIN ISOLATION LEVEL $level; SELECT pg_advisory_lock_shared(7); SELECT pg_advisory_unlock_shared(7)");
        $sessions[$i]->send($statement);
        $sessions[$i]->send($i % 2 && $end ? $end : 'COMMIT');
    }
    $node->poll_query_until('postgres',
        q{SELECT count(*) = 32 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted})
      or die "the sessions are not at the gate\n";
    $gate->run('COMMIT');
    $gate->close;
    my @outputs = map { $_->wait_for_end } @sessions;
    s/^[\nt]*//, s/\n.*//s for @outputs;
    return @outputs;
}

value('CREATE TABLE effect (id text PRIMARY KEY, n integer)');
for my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
    my @results = map { decode_json($_) } race($level, "SELECT accord.receive('ota', '$level', 't.once', 'k', '{\"a\": 1}')");
    is(scalar(grep { !$_->{duplicate} } @results), 1, "$level: of 32 sessions with one message, one receives it");
    is(scalar(grep { $_->{status} eq 'applied' } @results), 32, '... and all are given its result');
    my %ids = map { $_->{event_id} => 1 } @results;
    is(join(' ', keys %ids), value("SELECT event_id FROM accord.event_log WHERE source = 'ota' ORDER BY tx_id DESC LIMIT 1"),
        '... the one event of it');
    @results = map { decode_json($_) }
      race($level, "SELECT accord.receive('pms', '$level', key => '$level', changes => '{\"n\": 1}', target => 'effect')");
    is(scalar(grep { !$_->{duplicate} } @results), 1, "$level: so it is into a table");
    my @once = race($level, "SELECT accord.once('race', '$level', '1', 'SELECT gen_random_uuid()')");
    my %once = map { $_ => 1 } @once;
    is(scalar(keys %once), 1, "$level: accord.once() gives all of them one result");
    is(scalar(grep { /^"[0-9a-f-]{36}"$/ } keys %once), 1, '... which is the work\'s');
}
is(value("SELECT count(*), count(DISTINCT key) FROM accord.event_log WHERE topic = 't.once' OR source = 'pms'"), '6|4',
    'six events');

# With half of the sessions rolling back: whoever waits for one of them goes on.
my @results = map { decode_json($_) } race('READ COMMITTED', q{SELECT accord.receive('ota', 'half', 't.half', 'k')}, 'ROLLBACK');
is(value(q{SELECT count(*) FROM accord.event_log WHERE topic = 't.half'}), 1, 'half of the sessions roll back: one event');
cmp_ok(scalar(grep { !$_->{duplicate} } @results), '>=', 1, '... received by at least one');
is(value(q{SELECT count(*) FROM accord.inbox WHERE event_id = 'half'}), 1, '... and remembered once');

# A table with accord.idempotent(): exactly one row, at any level.
value('CREATE TABLE paid (charge text); SELECT accord.idempotent($$paid$$, $${charge}$$)');
race($_, "INSERT INTO paid VALUES ('$_')") for 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE';
is(value('SELECT count(*), count(DISTINCT charge) FROM paid'), '3|3', 'of 32 INSERTs of a key one is there, at each level');

# In flight: accord.once() that does not wait says so.
my ($first, $second) = @sessions;
$first->run(q{BEGIN; SELECT accord.once('flight', 'k', NULL, 'SELECT 1')});
$second->send(q{SELECT accord.once('flight', 'k', NULL, 'SELECT 1', wait => false)});
like($second->wait_for_end, qr/ERROR:  55P03: key "k" of "flight" is in use/, 'work under way raises where it is not waited for');
$first->run('ROLLBACK');
is($second->run(q{SELECT accord.once('flight', 'k', NULL, 'SELECT 2', wait => false)}), 2, '... and may be done when that failed');
$_->close for @sessions;

# ---- crash ----------------------------------------------------------------------------------------------------------

# Four sessions receive 600 messages; the server dies in the middle; everything is sent again, by others, in another
# order, in batches: each message took effect once.
my $n = 600;
sub message { my ($i) = @_; return { event_id => "c$i", topic => 't.crash', key => "k$i", changes => { n => $i + 0 } }; }

@sessions = map { open_session($node) } 1 .. 4;
for my $i (1 .. $n)
{
    my $m = message($i);
    $sessions[ $i % 4 ]->send("SELECT accord.receive('ota', '$m->{event_id}', '$m->{topic}', '$m->{key}', '{\"n\": $i}')");
}
$node->poll_query_until('postgres', q{SELECT count(*) > 100 FROM accord.inbox WHERE event_id LIKE 'c%'}) or die;
crash_server($node);
$_->close for @sessions;
my $survived = value(q{SELECT count(*) FROM accord.inbox WHERE event_id LIKE 'c%'});
note("$survived messages survived the crash");
is(value(q{SELECT count(*) FROM accord.event_log e FULL JOIN (SELECT * FROM accord.inbox WHERE event_id LIKE 'c%') i ON i.event = e.event_id
           WHERE (e.topic = 't.crash' OR e.topic IS NULL) AND (e.event_id IS NULL OR i.event IS NULL)}), 0,
    'after the crash the inbox and the log tell the same');
for my $round (1 .. 2)
{
    my @ids = shuffle(1 .. $n);
    while (my @batch = splice @ids, 0, 100)
    {
        my $messages = encode_json([ map { message($_) } @batch ]);
        value("SELECT count(*) FROM accord.receive_batch('ota', '$messages')");
    }
}
is(value(q{SELECT count(*), count(DISTINCT key) FROM accord.event_log WHERE topic = 't.crash'}), "$n|$n",
    'sent again and again, each message is one event');
wait_for_delivery($node);
my %arrived;
$arrived{ $_->{path} }++ for grep { $_->{path} =~ m{/t\.crash/} } $stub->log;
is(scalar(grep { m{^/pms/} } keys %arrived), $n, '... which the other channel got');
is(scalar(grep { m{^/ota/} } keys %arrived), 0, '... and its own did not');

# ---- no echo, but a correction --------------------------------------------------------------------------------------

$stub->reset;
value(<<'SQL');
CREATE TABLE room (id integer PRIMARY KEY, guest text, price integer);
SELECT accord.set_policy('room', '*', 'latest'), accord.capture('room', topic => 't.room');
SQL
sub receive
{
    my ($source, $id, $at, $changes) = @_;
    return decode_json(value("SELECT accord.receive('$source', '$id', key => '1', changes => '$changes', target => 'room', occurred_at => '$at')"));
}
sub arrived { return [ map { "$_->{path} $_->{body}" } sort { $a->{path} cmp $b->{path} || $a->{n} <=> $b->{n} } $stub->log ]; }

is(receive('ota', 'r1', '2026-01-01', '{"guest": "Ann", "price": 100}')->{status}, 'applied', 'a change from one channel');
wait_for_delivery($node);
is_deeply(arrived(), ['/pms/t.room/1 {"id": 1, "guest": "Ann", "price": 100}'], '... goes to the other alone');
is(receive('pms', 'r1', '2026-01-03', '{"price": 120}')->{status}, 'applied', 'a later one from the other');
wait_for_delivery($node);
$stub->reset;
my $result = receive('ota', 'r2', '2026-01-02', '{"price": 110}');
is_deeply([ @$result{qw(status lost)} ], [ 'lost', { price => 120 } ], 'one that comes late loses');
wait_for_delivery($node);
is_deeply(arrived(), ['/ota/t.room/1 {"id": 1, "guest": "Ann", "price": 120}'], '... and its channel alone is told what stands');
$stub->reset;
ok(receive('ota', 'r2', '2026-01-02', '{"price": 110}')->{duplicate}, 'repeated');
wait_for_delivery($node);
is_deeply(arrived(), [], '... nobody is told again');
is(receive('ota', 'r3', '2026-01-02', '{"price": 110, "guest": "Bob"}')->{status}, 'partly', 'one that loses in part');
wait_for_delivery($node);
is_deeply(arrived(), [
        '/ota/t.room/1 {"id": 1, "guest": "Bob", "price": 120}',
        '/pms/t.room/1 {"id": 1, "guest": "Bob", "price": 120}' ], '... is told to both');

# ---- forgetting -----------------------------------------------------------------------------------------------------

sub slots { return value(q{SELECT string_agg(DISTINCT slot::text, ' ' ORDER BY slot::text) FROM accord.inbox}); }
sub age { my ($by, $where) = @_; value("UPDATE accord.inbox SET received_at = received_at - interval '$by' WHERE $where"); return; }
sub turn { my ($force) = @_; value('SELECT accord.turn_rings(' . ($force || '') . ')'); return; }

value(q{TRUNCATE accord.inbox});
for my $i (1 .. 3)
{
    value("SELECT accord.receive('ota', 'old$i', 't.old', 'k')");
    turn('true');
}
value(q{SELECT accord.receive('ota', 'new', 't.old', 'k')});
is(slots(), '0 1 2 3', 'the inbox spans the ring');
turn('true');
is(value(q{SELECT string_agg((accord.receive('ota', id, 't.old', 'k') ->> 'duplicate'), ' ') FROM unnest('{old1,old2,old3,new}'::text[]) id}),
    'true true true true', 'what was received is known in every slot');
is(value(q{SELECT count(*) FROM accord.inbox}), 4, '... and the ring waits rather than forget');
age('91 days', q{event_id <> 'new'});
turn() for 1 .. 3;
is(slots(), '2 3', 'slots past retention are emptied: all but the one whose end is not known to be past it');
age('91 days', q{event_id = 'new'});
turn('true');
value(q{SELECT accord.receive('ota', 'next', 't.old', 'k')});
turn();
is(value(q{SELECT string_agg(event_id, ' ' ORDER BY slot) FROM accord.inbox WHERE event_id <> 'next'}), 'new', '... and so is that');
is(value(q{SELECT accord.receive('ota', 'old1', 't.old', 'other') ->> 'status'}), 'applied', 'an id that was forgotten is new');

# A source that is remembered for a shorter time than others is deleted in batches, each from where the last one ended.
value(q{TRUNCATE accord.inbox; INSERT INTO accord.source (name, retention) VALUES ('pms', '1 h')});
value(q{SELECT count(*) FROM unnest('{pms,ota}'::text[]) s,
        accord.receive_batch(s, (SELECT jsonb_agg(jsonb_build_object('event_id', g, 'topic', 'quiet')) FROM generate_series(1, 12000) g))});
sub left { return value(q{SELECT string_agg(format('%s %s', source, n), ', ') FROM (SELECT source, count(*) AS n FROM accord.inbox GROUP BY 1 ORDER BY 1) c}); }
turn();
is(left(), 'ota 12000, pms 12000', 'nothing is forgotten before its time');
age('2 h', 'true');
value(q{UPDATE accord.pruned SET until = '-infinity'});
my @left;
for (1 .. 4) { turn(); push @left, left(); }
is_deeply(\@left, [ 'ota 12000, pms 7000', 'ota 12000, pms 2000', 'ota 12000', 'ota 12000' ], 'then in batches, its own only');
is(value(q{SELECT accord.receive('ota', '1', 'quiet') ->> 'duplicate'}), 'true', 'the others are known still');

$node->stop;
done_testing();
