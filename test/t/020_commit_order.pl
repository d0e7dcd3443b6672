# accord.read() follows the commit order: whatever the writers do, a reader that remembers the last seq it was given
# misses nothing, sees whole transactions, and sees each key's events in the order in which they were committed.
#
# First one writer is stopped at its most delicate point, between its commit record and its leaving the proc array (it
# waits for a synchronous standby that does not exist); then 40 writers do everything at once.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;
use Writers;

my $seed = $ENV{SEED} || int rand 1_000_000;
note("SEED=$seed");

my $node = new_node('main', <<'CONF');
wal_level = replica
max_wal_senders = 2
synchronous_standby_names = 'nobody'
synchronous_commit = local
max_connections = 60
autovacuum_naptime = 1s
deadlock_timeout = 100ms
log_statement = none
CONF
send_everything($node);

sub value { my ($sql, $database) = @_; return $node->safe_psql($database || 'postgres', $sql); }

sub write_event
{
    my ($key, $database) = @_;
    return value("INSERT INTO accord.outbox (topic, key) VALUES ('stuck', '$key')", $database);
}

sub keys_after
{
    my ($seq) = @_;
    return value("SELECT string_agg(key, ' ' ORDER BY seq, ord) FROM accord.read($seq, 1000)");
}

# Writes an event in a session of its own, and waits until that is stuck in its commit.
sub commit_and_stick
{
    my ($database, $key) = @_;
    my $stuck = open_session($node, $database);
    $stuck->run('SET synchronous_commit = on');
    $stuck->send("INSERT INTO accord.outbox (topic, key) VALUES ('stuck', '$key')");
    $node->poll_query_until('postgres',
        "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = @{[ $stuck->pid ]}")
      or die "the session is not stuck\n";
    return ($stuck, $stuck->pid);
}

# ---- one writer, stopped between its number and its visibility

my $start = value('SELECT accord.safe_seq()');
write_event('before');
my ($stuck, $pid) = commit_and_stick('postgres', 'stuck');
write_event('after');
is(value('SELECT last_value FROM accord.commit_seq') - $start, 3, 'three numbers are drawn');
is(value('SELECT accord.safe_seq()') - $start, 1, '... but only the first is safe: the second is still to be seen');
is(keys_after($start), 'before', 'a reader is not given what overtook a commit that is under way');
value("SELECT pg_cancel_backend($pid)");
poll_until(sub { value('SELECT accord.safe_seq()') - $start == 3 }, 'the commit to be over');
is(keys_after($start), 'before stuck after', '... and is given all of it in order once that is done');
$stuck->close;

$start = value('SELECT accord.safe_seq()');
($stuck, $pid) = commit_and_stick('postgres', 'ended');
write_event('after');
is(keys_after($start), '', 'again');
value("SELECT pg_terminate_backend($pid)");
poll_until(sub { value('SELECT accord.safe_seq()') - $start == 2 }, 'the commit to be over');
is(keys_after($start), 'ended after', 'a session that is terminated there takes its floor along');
$stuck->close;

$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION pg_accord');
$start = value('SELECT accord.safe_seq()');
($stuck, $pid) = commit_and_stick('other', 'stuck');
write_event('here');
is(keys_after($start), 'here', 'a commit under way in another database holds nobody back');
value("SELECT pg_cancel_backend($pid)");
$stuck->close;

# ---- 40 writers, and transactions that stay open all the time

prepare_writers($node, 150);
my @idle = (
    [ 'postgres', q{BEGIN; INSERT INTO accord.outbox (topic, key, payload) VALUES ('w', 'idle', '{"n": 1}')} ],
    [ 'postgres', 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM accord.event_log' ],
    [ 'other', q{BEGIN; INSERT INTO accord.outbox (topic, key) VALUES ('w', 'elsewhere')} ],
    [ 'other', 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT txid_current()' ]);
for my $idle (@idle)
{
    my $session = open_session($node, $idle->[0]);
    $session->run($idle->[1]);
    push @$idle, $session;
}
$start = value('SELECT accord.safe_seq()');

my $seen = $node->basedir . '/seen';
my $writers = start_writers(
    $node,
    seed => $seed,
    clients => 40,
    keys => 150,
    kill => 25,
    read => $seen,
    readers => 2,
    after => $start);
$writers->wait_for('read by 0', 10000);
$writers->wait_for('read by 1', 10000);
$writers->wait_for('cut off', 60);
pass('readers are given events while transactions stay open here and in another database');
is(value("SELECT count(*) FROM accord.event_log e, accord.commit_log c WHERE c.tx_id = e.tx_id AND e.key = 'idle'"),
    0, '... which are open still');
$idle[0][2]->run('COMMIT');
my $counters = $writers->finish;
note(join ', ', map { "$_: $counters->{$_}" } sort keys %$counters);
cmp_ok($counters->{$_} || 0, '>', 0, "there were transactions that ended with $_")
  for 'done', 'cut off', '22012', '40001';
$_->[2]->close for @idle;

value(<<"SQL");
CREATE TABLE seen (n bigserial, reader integer, call integer, seq bigint, tx_id bigint, ord integer, event_id uuid,
    key text, number integer);
ALTER TABLE seen ALTER reader SET DEFAULT 0;
COPY seen (call, seq, tx_id, ord, event_id, key, number) FROM '$seen.0';
ALTER TABLE seen ALTER reader SET DEFAULT 1;
COPY seen (call, seq, tx_id, ord, event_id, key, number) FROM '$seen.1';
INSERT INTO truth SELECT tx_id, ord, event_id, key, 1 FROM accord.event_log WHERE key = 'idle';
SQL
note(value('SELECT count(*) FROM truth') . ' events committed by ' . value('SELECT count(DISTINCT tx_id) FROM truth')
      . ' transactions');
for my $reader (0, 1)
{
    my $own = "(SELECT * FROM seen WHERE reader = $reader) s";
    is(value("SELECT count(*) FROM truth t WHERE NOT EXISTS (SELECT FROM $own WHERE s.event_id = t.event_id)"),
        0, "reader $reader missed nothing that was committed");
    is(value("SELECT count(*) FROM $own WHERE NOT EXISTS (SELECT FROM truth t WHERE t.event_id = s.event_id
                AND (t.tx_id, t.ord, t.key, t.n) = (s.tx_id, s.ord, s.key, s.number))"),
        0, '... and was given nothing else');
    is(value("SELECT count(*) - count(DISTINCT event_id) FROM $own"), 0, '... nor anything twice');
    is(value("SELECT count(*) FROM (SELECT seq FROM $own GROUP BY seq HAVING count(DISTINCT call) > 1
                OR count(DISTINCT tx_id) > 1) split"),
        0, '... no transaction was split');
    is(value("SELECT count(*) FROM (SELECT tx_id FROM $own GROUP BY tx_id HAVING count(DISTINCT seq) > 1) split"),
        0, '... nor had two places');
    is(value("SELECT count(*) FROM (SELECT (seq, ord) > lag((seq, ord)) OVER (ORDER BY n) AS good FROM $own) o
                WHERE NOT good"),
        0, '... they came in the order of seq and ord');
    is(value("SELECT count(*) FROM (SELECT number - lag(number, 1, 0) OVER (PARTITION BY key ORDER BY n) AS step
                FROM $own) o WHERE step <> 1"),
        0, '... and each key in its own, without a gap');
}
is(value("SELECT count(*) FROM seen a JOIN seen b USING (seq, ord) WHERE a.event_id <> b.event_id"),
    0, 'both readers were given the same');

# ---- the log itself

is(value("SELECT count(*) FROM accord.commit_log c WHERE events <> (SELECT count(*) FROM accord.event_log e
            WHERE e.slot = c.slot AND e.tx_id = c.tx_id)"),
    0, 'commit_log counts the events that stand');
is(value('SELECT count(*) FROM accord.event_log e WHERE NOT EXISTS (SELECT FROM accord.commit_log c
            WHERE c.slot = e.slot AND c.tx_id = e.tx_id)'),
    0, 'every event has its commit');
is(value("SELECT count(*) FROM accord.event_log WHERE topic = 'w' AND key <> 'idle'"),
    value("SELECT count(*) FROM truth WHERE key <> 'idle'"), 'what was rolled back left nothing');
is(value("SELECT sum(n) FROM counter"), value("SELECT count(*) FROM truth WHERE key <> 'idle'"), 'the writers agree');
is(value('SELECT accord.safe_seq() = last_value FROM accord.commit_seq'), 't', 'no floor is left standing');

$node->stop;
done_testing();
