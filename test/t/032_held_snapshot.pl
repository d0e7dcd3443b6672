# Transactions that stay open, here and elsewhere: they delay nobody's events, and nothing of ours decays under the
# snapshots they hold, however often deliveries are retried.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main', "autovacuum_naptime = 1s\n");
send_everything($node);
my $stub = start_stub();
my $events = 200;
my $attempts = 20000;
my $limit = 1000;

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

channel($node, $stub, 'ota', retry_base => '1 ms', retry_cap => '5 ms', max_attempts => 10000, max_in_flight => 64,
    route => 1);
value('CREATE TABLE bystander AS SELECT g AS id, 0 AS n FROM generate_series(1, 500) g');
value('CREATE DATABASE other');

my @open = map { open_session($node, $_) } qw(postgres postgres postgres other);
$open[0]->run('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM bystander');
$open[1]->run(q{BEGIN; INSERT INTO accord.outbox (topic, key) VALUES ('open', '1')});
$open[2]->run('BEGIN ISOLATION LEVEL SERIALIZABLE; UPDATE bystander SET n = 1 WHERE id = 1');
$open[3]->run('BEGIN ISOLATION LEVEL REPEATABLE READ; CREATE TABLE t (id integer)');

# ---- nobody waits

value(q{INSERT INTO accord.outbox (topic, key) VALUES ('t', 'first')});
wait_for_delivery($node);
is($stub->count, 1, 'an event is delivered while transactions are open, here and elsewhere');
is(value('SELECT accord.safe_seq() = last_value FROM accord.commit_seq'), 't', '... none of which holds readers back');

# ---- nothing decays

$stub->script([ { do => { status => 503 } } ]);
value("INSERT INTO accord.outbox (topic, key) SELECT 't', g FROM generate_series(1, $events) g");
for my $part (1 .. 4)
{
    $stub->wait_for_answered(int($attempts * $part / 4));
    value('SELECT accord.turn_rings(true)');
}
value('UPDATE bystander SET n = n + 1 WHERE id > 1') for 1 .. 4;
$stub->script([]);
wait_for_delivery($node);
is(value("SELECT count(DISTINCT (seq, ord)) FROM accord.attempt_log WHERE outcome = 'delivered'"), $events + 1,
    'all is delivered in the end');
my $retried = value('SELECT count(*) FROM accord.attempt_log');
cmp_ok($retried, '>=', $attempts, "... after $retried attempts");

# Statistics arrive some time after what they count.
$node->poll_query_until('postgres', "SELECT sum(n_tup_ins) >= $retried FROM pg_stat_user_tables
    WHERE schemaname = 'accord' AND relname ~ '^attempt_log_[0-9]'") or die "the statistics are not complete\n";
$node->poll_query_until('postgres', q{SELECT n_dead_tup >= 1500 FROM pg_stat_user_tables WHERE relname = 'bystander'})
  or die "the statistics do not see dead rows\n";
pass('the snapshots do hold dead rows, as another table shows');
my $dead = value(q{SELECT relname, n_dead_tup FROM pg_stat_user_tables WHERE schemaname = 'accord' AND n_dead_tup > 0});
note("dead rows:\n$dead");
is(value("SELECT count(*) FROM pg_stat_user_tables WHERE schemaname = 'accord' AND n_dead_tup >= $limit"), 0,
    "no table of ours has $limit dead rows");
cmp_ok(value("SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE schemaname = 'accord'"), '<', $limit,
    '... nor do all of them together');
is(value('SELECT count(*) FROM accord.backlog'), 0, 'nothing is left in the backlog');

# ---- whoever was open so long is served when he commits

my $count = $stub->count;
$open[1]->run('COMMIT');
$stub->wait_for_count($count + 1);
is(value(q{SELECT key FROM accord.read((SELECT max(seq) - 1 FROM accord.commit_log))}), 1,
    'the transaction that was open all the time is the last in the log');
$_->close for @open;
$node->stop;
done_testing();
