# A thousand requests that hang stop nobody: not the shutdown of the server, nor what is done to their database and to
# the extension. Afterwards everything is delivered. A dispatcher that is ended is started again, not too soon.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;
use Time::HiRes qw(time);

my $hung = 1000;
my $interval = 2;    # seconds
my $node = new_node('main', <<CONF, extension => 0);
accord.restart_interval = '${interval}s'
accord.max_in_flight = 2000
CONF
my $stub = start_stub();

sub value { my ($database, $sql) = @_; return $node->safe_psql($database, $sql); }

# File descriptors bound what can be in flight: the test has what the machine allows.
my $allowed = `sh -c 'ulimit -n'`;
$allowed = 1e6 if $allowed =~ /unlimited/;
if ($allowed * 3 / 4 - 32 - 64 < $hung)
{
    $hung = int($allowed * 3 / 4 - 32 - 64);
    note("only $hung requests, because of ulimit -n $allowed");
}

# A database whose channel hangs, with so many requests in flight.
sub make_hung
{
    my ($database, $n) = @_;
    my $count = $stub->count;
    value('postgres', "CREATE DATABASE $database");
    value($database, 'CREATE EXTENSION pg_accord');
    send_everything($node, $database);
    value($database, <<SQL);
INSERT INTO accord.channel (name, base_url, max_in_flight, timeout, stall_timeout)
    VALUES ('ota', '@{[ $stub->url("/$database") ]}', 1000, '1 h', '1 h');
INSERT INTO accord.route (channel, topic, path) VALUES ('ota', '*', '/{key}');
INSERT INTO accord.outbox (topic, key) SELECT 't', 'k' || g FROM generate_series(1, $n) g;
SQL
    $stub->wait_for_count($count + $n);
    return;
}

sub hang { $stub->script([ { do => { hang => 1 } } ]); return; }
sub answer { $stub->script([]); return; }

# How many different events of a database have arrived.
sub arrived
{
    my ($database) = @_;
    my %path = map { $_->{path} => 1 } grep { $_->{answered} } $stub->log;
    return scalar grep { m{^/$database/} } keys %path;
}

sub started { my ($pid) = @_; return value('postgres', "SELECT backend_start FROM pg_stat_activity WHERE pid = $pid"); }

# ---- the server

hang();
make_hung('app', $hung);
is($stub->counters->{in_flight}, $hung, "$hung requests hang");
# Another process may have kept all of them from the CPU: the best of some tries counts.
my $best;
for my $try (1 .. 5)
{
    my $begin = time;
    $node->command_ok([ 'pg_ctl', '-D', $node->data_dir, '-m', 'fast', '-t', '5', 'stop' ],
        'pg_ctl stop -m fast -t 5 ends them');
    my $took = time - $begin;
    $node->{_pid} = undef;
    $best = $took if !defined $best || $took < $best;
    last if $best <= 1;
    my $count = $stub->count;
    $node->start;
    $stub->wait_for_count($count + $hung);
}
note(sprintf 'it took %.2f s', $best);
cmp_ok($best, '<=', 1, '... within a second');
answer();
$node->start;
wait_for_delivery($node, 'app');
is(arrived('app'), $hung, 'after the restart all of it is delivered');
is(value('app', q{SELECT count(*) FROM accord.attempt_log WHERE outcome <> 'delivered'}), 0,
    '... and what was abandoned is nobody\'s failure');
$stub->reset;

# ---- the extension and the database

hang();
make_hung('gone', 50);
value('gone', 'DROP EXTENSION pg_accord CASCADE');
is(value('gone', q{SELECT to_regclass('accord.event_log') IS NULL}), 't', 'DROP EXTENSION does not wait for them');
poll_until(sub { !workers($node, 'dispatcher', 'gone') }, 'the dispatcher to go');

make_hung('dropped', 50);
value('postgres', 'DROP DATABASE dropped');
is(value('postgres', q{SELECT count(*) FROM pg_database WHERE datname = 'dropped'}), 0, '... nor does DROP DATABASE');

make_hung('original', 50);
value('postgres', 'CREATE DATABASE copy TEMPLATE original');
is(value('copy', 'SELECT count(*) FROM accord.event_log'), 50, '... nor does CREATE DATABASE ... TEMPLATE');
$stub->wait_for_count(50 + 50 + 50 + 50);
pass('... after which they are sent again');
value('postgres', 'ALTER DATABASE original RENAME TO renamed');
$stub->wait_for_count(50 + 50 + 50 + 50 + 50);
pass('... nor does ALTER DATABASE ... RENAME');
answer();
my $old = dispatcher($node, 'renamed');
value('postgres', "SELECT pg_terminate_backend($old)");
wait_for_delivery($node, 'renamed');
is(arrived('original'), 50, 'all of it is delivered');
is(value('copy', 'SELECT count(*) FROM accord.attempt_log'), 0, '... and nothing by the copy');

# ---- a dispatcher that is ended

# Each is ended as soon as it has sent something. A dispatcher that made room for a statement comes back at once, and
# starts here; those after it wait. So the last of them starts no sooner than as many intervals later.
hang();
my $count = $stub->count;
value('renamed', q{INSERT INTO accord.outbox (topic, key) VALUES ('t', 'last')});
$stub->wait_for_count($count + 1);
my $begin = value('postgres', 'SELECT clock_timestamp()');
value('postgres', 'ALTER DATABASE renamed RENAME TO ended');
my $rounds = 3;
for my $round (1 .. $rounds)
{
    $stub->wait_for_count($count + 1 + $round);
    $old = dispatcher($node, 'ended');
    is(value('postgres', "SELECT pg_terminate_backend($old, 60000)"), 't', 'SIGTERM ends a dispatcher');
}
$stub->wait_for_count($count + 2 + $rounds);
$old = dispatcher($node, 'ended');
pass('... and another one starts');
cmp_ok(
    value('postgres', "SELECT extract(epoch FROM '@{[ started($old) ]}'::timestamptz - '$begin'::timestamptz)"),
    '>=', $rounds * $interval, '... not sooner than accord.restart_interval after the one before it');
answer();
value('postgres', "SELECT pg_terminate_backend($old)");
wait_for_delivery($node, 'ended');
is(scalar(grep { $_->{path} =~ m{/last$} && $_->{answered} } $stub->log),
    1, '... and delivers what the others did not');

# What has been answered when the signal comes is settled, not sent again: the answers arrive while the dispatcher is
# stopped, and the signal with them.
$stub->reset;
$stub->script([ { do => { gate => 'shut' } } ]);
$stub->close_gate('shut');
value('ended', q{INSERT INTO accord.outbox (topic, key) SELECT 't', 'k' || g FROM generate_series(1, 20) g});
$stub->wait_for_count(20);
$old = dispatcher($node, 'ended');
kill 'STOP', $old;
$stub->open_gate('shut');
$stub->wait_for_answered(20);
kill 'TERM', $old;
kill 'CONT', $old;
wait_for_delivery($node, 'ended');
is($stub->count, 20, 'what was answered before the signal is settled, and not sent again');

$node->stop;
done_testing();
