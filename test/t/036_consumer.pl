# Consumers in SQL: several sessions that make a projection of the log, while it is written and the server is killed,
# count every event once; the log is kept for a consumer that lags, until its max_lag; then it is told. A position that
# moves leaves no dead rows under a snapshot that somebody holds.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main', "accord.dispatch = off\nmax_connections = 40\n");
sub value { return $node->safe_psql('postgres', @_); }

value(<<'SQL');
INSERT INTO accord.consumer (name, topic) VALUES ('projection', 't.*');
CREATE TABLE projection (key text PRIMARY KEY, n integer NOT NULL, seq bigint NOT NULL);
CREATE FUNCTION project() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    last bigint;
BEGIN
    WITH events AS (SELECT * FROM accord.poll('projection', 20)),
         done AS (INSERT INTO projection SELECT key, 1, seq FROM events
                  ON CONFLICT (key) DO UPDATE SET n = projection.n + 1)
    SELECT max(seq) INTO last FROM events;
    IF last IS NOT NULL THEN
        PERFORM accord.advance('projection', last);
    END IF;
    RETURN last IS NOT NULL;
END
$$;
SQL

# ---- every event once

sub bench_script
{
    my ($name, $sql) = @_;
    my $file = $node->basedir . "/$name.sql";
    PostgreSQL::Test::Utils::append_to_file($file, $sql);
    return $file;
}

my $write = bench_script('write', <<'SQL');
BEGIN;
INSERT INTO accord.outbox (topic, key) VALUES ('t.' || random(), gen_random_uuid());
INSERT INTO accord.outbox (topic, key) VALUES ('other', 'x');
END;
SQL
my $read = bench_script('read', "SELECT project();\n");

sub bench
{
    my ($script, $clients, $transactions) = @_;
    local %ENV = $node->_get_env();
    my ($pid) = run_in_background('pgbench', '-n', '-f', $script, '-c', $clients, '-t', $transactions, 'postgres');
    return $pid;
}

my @running = (bench($write, 4, 300), bench($read, 4, 1000));
$node->poll_query_until('postgres', 'SELECT count(*) > 200 FROM projection') or die "nothing is projected\n";
crash_server($node);
waitpid $_, 0 for @running;
@running = (bench($write, 4, 150), bench($read, 4, 500));
waitpid $_, 0 for @running;
1 while value('SELECT project()') eq 't';
is(value('SELECT count(*) FROM projection WHERE n <> 1'), 0, 'no event was projected twice');
is(value(q{SELECT count(*) FROM accord.event_log WHERE topic <> 'other'}), value('SELECT count(*) FROM projection'),
    '... and none was left out');
is(value(q{SELECT behind FROM accord.consumer_status}), 0, 'it has read all there is');

# From the beginning, into an empty projection: the same.
my $before = value('SELECT md5(string_agg(p::text, $$,$$ ORDER BY key)) FROM projection p');
value(q{BEGIN; TRUNCATE projection; SELECT accord.rewind('projection'); COMMIT});
1 while value('SELECT project()') eq 't';
is(value('SELECT md5(string_agg(p::text, $$,$$ ORDER BY key)) FROM projection p'), $before,
    'a projection that is rebuilt from the beginning is the same');

# ---- no dead rows while somebody holds a snapshot

my $holder = open_session($node);
$holder->run('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM projection');
value(<<'SQL');
DO $$ BEGIN
    FOR i IN 1 .. 5000 LOOP
        PERFORM accord.rewind('projection', i % 100 + 1);
        COMMIT;
        IF i % 1500 = 0 THEN PERFORM accord.turn_consumer_ring(true); END IF;
    END LOOP;
END $$
SQL
$node->poll_query_until('postgres', "SELECT sum(n_tup_ins) >= 5000 FROM pg_stat_user_tables
    WHERE schemaname = 'accord' AND relname ~ '^consumer_log_[0-9]'") or die "the statistics are not complete\n";
is(value(q{SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE schemaname = 'accord' AND relname ~ '^consumer'}), 0,
    'a position that moved 5,000 times under a held snapshot left no dead row');
cmp_ok(value('SELECT count(*) FROM accord.consumer_log'), '>', 1000, '... though its old positions are still there');
$holder->run('COMMIT');
$holder->close;

# ---- the log is kept for it, within bounds

value('ALTER SYSTEM SET accord.log_retention = 0');
$node->reload;
$node->poll_query_until('postgres', 'SELECT setting::integer = 0 FROM pg_settings WHERE name = $$accord.log_retention$$');
value(q{SELECT accord.rewind('projection', 10)});
# No dispatcher runs: what keeps the log is the consumer alone.
value(q{SELECT setval('accord.position_0', (SELECT last_value FROM accord.commit_seq))});
value('SELECT accord.turn_rings(true)') for 1 .. 3;
value(q{INSERT INTO accord.outbox (topic, key) VALUES ('t.later', 'later')});
value('SELECT accord.turn_rings()');
is(value(q{SELECT key FROM accord.poll('projection', 1) LIMIT 1}) ne '', 1, 'the log is kept for a consumer that lags');
is(value('SELECT lost FROM accord.consumer_status'), 'f', '... which has not lost its place');

value(q{UPDATE accord.consumer SET max_lag = '1 us'});
value('SELECT accord.turn_rings()');
is(value('SELECT lost FROM accord.consumer_status'), 't', 'beyond its max_lag it has');
my (undef, undef, $error) = $node->psql('postgres', q{SELECT * FROM accord.poll('projection')});
like($error, qr/consumer "projection" has lost its place in the log/, '... and is told so');
(undef, undef, $error) = $node->psql('postgres', q{SELECT accord.advance('projection', 20)});
like($error, qr/has lost its place/, '... also when it advances');
(undef, undef, $error) = $node->psql('postgres', q{SELECT accord.rewind('projection', 20)});
like($error, qr/cannot go back/, '... and cannot go where nothing is any more');
value(q{SELECT accord.rewind('projection')});
is(value(q{SELECT key FROM accord.poll('projection')}), 'later', 'it begins anew with the oldest event there is');
$node->stop;
done_testing();
