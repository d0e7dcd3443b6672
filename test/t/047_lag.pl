# An endpoint that is owed far more than memory holds: it lags. Nothing is written per waiting event, memory stays
# bounded, others go on meanwhile, and once it works it gets everything, in order, once; then it is as if nothing had
# been.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $many = $ENV{LAG_EVENTS} || 200_000;
my $few = 20_000;
my $keys = 500;
my $memory_limit = 256 * 1024;    # kB
my $node = new_node('main', <<'CONF');
autovacuum = off
max_wal_size = 4GB
CONF
send_everything($node);
my $log = $node->basedir . '/requests';
my $stub = start_stub('--log', $log);

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# Events of a topic, in one statement: so many numbers, over the keys.
sub write_events
{
    my ($topic, $n) = @_;
    value("INSERT INTO accord.outbox (topic, key, payload) SELECT '$topic', 'k' || g % $keys, jsonb_build_object('n', g)
        FROM generate_series(1, $n) g");
    return;
}

# Memory of a process that is its own, in kB; the highest seen.
my $highest = 0;

sub look_at_memory
{
    my ($pid) = @_;
    my ($own) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m;
    $highest = $own if defined $own && $own > $highest;
    return;
}

# Waits until the channel is owed nothing, with an eye on the memory. Time is up when nothing at all arrives for so
# long.
sub drain
{
    my ($channel, $pid) = @_;
    my $last = $stub->count;
    while (value(owed($channel)) > 0)
    {
        poll_until(sub { look_at_memory($pid); $stub->count > $last || value(owed($channel)) == 0 },
            'the next request');
        $last = $stub->count;
    }
    return;
}

sub owed { my ($channel) = @_; return "SELECT count(*) FROM accord.owed() WHERE channel = '$channel'"; }

# The rows of the two logs that know an endpoint: what its lag costs.
sub rows
{
    my ($channel) = @_;
    return value("SELECT (SELECT count(*) FROM accord.backlog_log WHERE channel = '$channel')
        + (SELECT count(*) FROM accord.cursor_log WHERE channel = '$channel')");
}

# Whether the endpoint keeps a cursor: null when it has never had one, or gave it back.
sub cursor
{
    my ($channel) = @_;
    return value("SELECT seq IS NOT NULL FROM accord.cursor_log WHERE channel = '$channel'
        ORDER BY version DESC LIMIT 1");
}

# What arrived at a channel against the numbers of a topic: missing, doubled, and out of order within their key.
sub arrivals
{
    my ($channel, $n) = @_;
    value("TRUNCATE raw; COPY raw (line) FROM '$log' (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02')");
    return value(<<"SQL");
WITH arrival AS MATERIALIZED (
    SELECT i, split_part(line::jsonb ->> 'path', '/', 3) AS key, ((line::jsonb ->> 'body')::jsonb ->> 'n')::integer AS n
    FROM raw WHERE line::jsonb ->> 'path' LIKE '/$channel/%')
SELECT $n - count(DISTINCT n) AS missing, count(*) - count(DISTINCT n) AS doubled,
    (SELECT count(*) FROM (SELECT n < lag(n) OVER (PARTITION BY key ORDER BY i) AS back FROM arrival) b WHERE back)
FROM arrival
SQL
}

value('CREATE UNLOGGED TABLE raw (i bigserial, line text)');
channel($node, $stub, $_, max_in_flight => 64) for 'off', 'healthy', 'slow';
route($node, 'off', topic => 'off', path => '/off/{key}');
route($node, 'slow', topic => 'slow', path => '/slow/{key}');
route($node, 'healthy', topic => $_, path => '/healthy/{key}') for 'slow', 'new';
value(q{UPDATE accord.channel SET enabled = false WHERE name = 'off'});
my $pid = dispatcher($node);

# ---- a channel that is disabled

write_events('off', $many);
wait_for_rows($node, q{SELECT state, owed, queued FROM accord.status WHERE channel = 'off'}, "paused|$many|$many");
pass('the status shows what a disabled endpoint is owed');
# What comes after them is read when they are.
write_events('new', 1000);
wait_for_rows($node, owed('healthy'), 0);
look_at_memory($pid);
is(arrivals('healthy', 1000), '0|0|0', 'another endpoint goes on meanwhile');
is(cursor('off'), 't', '... past the one that is disabled, which lags and has a cursor');
cmp_ok(rows('off'), '<=', 10, '... and nothing is written per event that waits: ' . rows('off') . ' rows');
value(q{UPDATE accord.channel SET enabled = true WHERE name = 'off'});
drain('off', $pid);
is(arrivals('off', $many), '0|0|0', 'once enabled it gets all of them, each once, each key in order');
is(value(q{SELECT count(*) FROM accord.attempt_log WHERE channel = 'off' AND outcome = 'delivered'}), $many,
    '... which is recorded');
# where the machine is slow, a request may take long enough for a row
is(value(q{SELECT count(*) FROM accord.backlog_log WHERE channel = 'off'
    AND state NOT IN ('sending', 'waiting', 'delivered')}), 0, '... without any exception');
write_events('off', 10);
wait_for_rows($node, owed('off'), 0);
$node->poll_query_until('postgres', q{SELECT seq IS NULL FROM accord.cursor_log WHERE channel = 'off'
    ORDER BY version DESC LIMIT 1}) or die "the cursor is not given back\n";
pass('... and is direct again');
my $rows = rows('off');
value(q{INSERT INTO accord.outbox (topic, key, payload) VALUES ('off', 'k0', '{"n": 0}')}) for 1 .. 20;
wait_for_rows($node, owed('off'), 0);
cmp_ok(rows('off') - $rows, '<', 10, '... new events flow, and need no rows');

# ---- a channel that hangs in the middle, and a restart

$stub->script([ { match => { path_regex => '^/slow/' }, do => { gate => 'shut' } } ]);
$stub->close_gate('shut');
open my $file, '>', $log or die "$log: $!\n";
close $file;
value(q{UPDATE accord.channel SET timeout = '1 h', stall_timeout = '1 h' WHERE name = 'slow'});
write_events('slow', $few);
wait_for_rows($node, owed('healthy'), 0);
is(arrivals('healthy', $few), '0|0|0', 'while an endpoint hangs another one gets all');
wait_for_rows($node, q{SELECT owed FROM accord.status WHERE channel = 'slow'}, $few);
pass('... as many as the one that hangs is owed');
$node->poll_query_until('postgres', q{SELECT count(*) = 64 FROM accord.backlog WHERE channel = 'slow'
    AND state = 'sending'}) or die "requests under way are not in the backlog\n";
cmp_ok(rows('slow'), '<=', 64 + 100, '... for which it has no rows but for those under way: ' . rows('slow'));
look_at_memory($pid);
$node->restart;
$pid = dispatcher($node);
$stub->open_gate('shut');
$stub->script([]);
drain('slow', $pid);
my ($missing, $doubled, $back) = split /\|/, arrivals('slow', $few);
is($missing, 0, 'after a restart it gets all of them');
cmp_ok($doubled, '<=', 64, "... once, but for those that were under way ($doubled)");
is($back, 0, '... in order within each key');

memory_below($highest, $memory_limit, "all the time the dispatcher needed $highest kB of memory at most");

# ---- large events: memory is bounded by bytes, not by their number

value(q{ALTER SYSTEM SET accord.dispatch_memory = '16MB'});
$node->restart;
$pid = dispatcher($node);
$stub->reset;
$stub->script([ { do => { gate => 'large' } } ]);
$stub->close_gate('large');
route($node, 'slow', topic => 'large', path => '/large/{key}');
value(q{UPDATE accord.channel SET max_in_flight = 8 WHERE name = 'slow'});
wait_for_rows($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_accord dispatcher'
    AND query = 'waiting for events'}, 1);
$highest = 0;
look_at_memory($pid);
my $base = $highest;
# 100 kB each, which no compression makes smaller.
value(q{INSERT INTO accord.outbox (topic, key, payload) SELECT 'large', g, to_jsonb(string_agg(md5(g || '.' || i), ''))
    FROM generate_series(1, 1000) g, generate_series(1, 3200) i GROUP BY g});
$stub->wait_for_count(8);
look_at_memory($pid);
is(value(owed('slow')), 1000, '100 MB of events are owed to an endpoint that hangs');
$stub->open_gate('large');
$stub->script([]);
drain('slow', $pid);
is($stub->count, 1000, '... and are delivered when it goes on');
my $more = $highest - $base;
memory_below($more, 3 * 16 * 1024, "... with accord.dispatch_memory = '16MB' the dispatcher needed $more kB for them");

$node->stop;
done_testing();
