# What is durable when: the persisted position, what is sent again after a crash and what is not, and that nothing is
# sent that a crash can still undo.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main', <<'CONF');
wal_writer_delay = '10s'
accord.restart_interval = '100ms'
CONF
send_everything($node);
my $stub = start_stub();
channel($node, $stub, 'quick', max_in_flight => 4);
channel($node, $stub, 'slow', max_in_flight => 4, timeout => '10 min', stall_timeout => '10 min');
route($node, 'quick', topic => 'quick', path => '/quick/{key}');
route($node, 'slow', topic => 'slow', path => '/slow/{key}');

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

sub write_events
{
    my ($topic, @keys) = @_;
    value("INSERT INTO accord.outbox (topic, key) VALUES ('$topic', '$_')") for @keys;
    return;
}

# The paths of the requests of a topic so far, in order of arrival.
sub arrived { my ($topic) = @_; return join ' ', map { m{^/$topic/(.*)} } map { $_->{path} } $stub->log; }

sub processes
{
    my @pids = split /\n/, value('SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()');
    return ($node->{_pid}, @pids);
}

# SIGKILL for all of the server, as a power failure does it.
sub crash
{
    my @pids = processes();
    kill 'STOP', $node->{_pid};
    kill 'KILL', @pids;
    poll_until(
        sub {
            !grep { -e "/proc/$_" && PostgreSQL::Test::Utils::slurp_file("/proc/$_/stat") !~ /^\d+ \(.*\) Z/s } @pids;
        },
        'the server to be gone');
    unlink $node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock';
    $node->{_pid} = undef;
    $node->start;
    return;
}

# ---- the position follows, and after a crash nothing that was settled is repeated

write_events('quick', 1 .. 50);
$node->poll_query_until('postgres', 'SELECT p.last_value = accord.safe_seq() FROM accord.position_0 p')
  or die "the position does not follow\n";
pass('with nothing to do the position is at the end of the log');
is(value('SELECT count(*) FROM accord.backlog_log'), 0, '... and nothing went through the backlog');
crash();
write_events('quick', 51);
wait_for_delivery($node);
is(arrived('quick'), join(' ', 1 .. 51), 'after a crash nothing is sent again');

# ---- a request that lasts does not hold the position

$stub->script([ { match => { path_regex => '^/slow' }, do => { gate => 'shut' } } ]);
$stub->close_gate('shut');
$stub->reset;
$stub->script([ { match => { path_regex => '^/slow' }, do => { gate => 'shut' } } ]);
$stub->close_gate('shut');
write_events('slow', 'a', 'b', 'c', 'd', 'e', 'f');
$stub->wait_for_count(4);
write_events('quick', 1 .. 20);
my $end = value('SELECT accord.safe_seq()');
$node->poll_query_until('postgres', "SELECT last_value >= $end FROM accord.position_0")
  or die "the position is held back\n";
pass('the position passes requests that hang');
is(value("SELECT string_agg(key, ' ' ORDER BY seq) FROM accord.backlog WHERE state = 'sending'"), 'a b c d',
    '... which are in the backlog');
is(value(q{SELECT string_agg(key || ' ' || state, ', ' ORDER BY o.seq) FROM accord.owed() o JOIN accord.event_log e
            ON e.slot = o.event_slot AND e.tx_id = o.tx_id AND e.ord = o.ord}),
    'a sending, b sending, c sending, d sending, e queued, f queued', '... and those behind them are owed');
crash();
write_events('quick', 21);
$stub->wait_for_count(4 + 20 + 1 + 4);
$node->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM accord.outbox WHERE topic = 'quick')});
is(arrived('quick'), join(' ', 1 .. 21), 'after a crash the others are not sent again');
is(join(' ', sort split / /, arrived('slow')), 'a a b b c c d d', '... and what was in flight is');
$stub->open_gate('shut');
wait_for_delivery($node);
is(join(' ', sort split / /, arrived('slow')), 'a a b b c c d d e f', '... and those behind it once');

# ---- a cursor that was given back, and one after it: the later one counts, also after a restart

sub owed { return value(q{SELECT count(*) FROM accord.owed() WHERE channel = 'later'}); }

sub restart_dispatcher
{
    my $old = dispatcher($node);
    value("SELECT pg_terminate_backend($old, 60000)");
    poll_until(sub { my ($new) = workers($node, 'dispatcher', 'postgres'); $new && $new != $old },
        'another dispatcher');
    return;
}

# Events for a channel that is disabled, and so many for another one that the position passes them.
sub pass_over
{
    my (@keys) = @_;
    write_events('later', @keys);
    write_events('quick', 'traffic');
    $node->poll_query_until('postgres', q{SELECT p.last_value = accord.safe_seq() FROM accord.position_0 p})
      or die "the position does not follow\n";
    return;
}

$stub->reset;
channel($node, $stub, 'later', enabled => 'false');
route($node, 'later', topic => 'later', path => '/later/{key}');
pass_over('a', 'b');
value(q{UPDATE accord.channel SET enabled = true WHERE name = 'later'});
wait_for_delivery($node);
write_events('quick', 'traffic');
$node->poll_query_until('postgres', q{SELECT seq IS NULL FROM accord.cursor_log WHERE channel = 'later'
    ORDER BY recorded_at DESC, version DESC LIMIT 1}) or die "the cursor is not given back\n";
restart_dispatcher();
value(q{UPDATE accord.channel SET enabled = false WHERE name = 'later'});
pass_over('c', 'd', 'e');
is(owed(), 3, 'a channel that lags again after a restart is owed what the position has passed');
restart_dispatcher();
pass_over('f');
is(owed(), 4, '... also after another one');
value(q{UPDATE accord.channel SET enabled = true WHERE name = 'later'});
wait_for_delivery($node);
is(arrived('later'), 'a b c d e f', '... and is sent all of it, once');

# ---- only what is durable is sent

$stub->reset;
$stub->script([ { do => { gate => 'held' } } ]);
$stub->close_gate('held');
my $writer = open_session($node);
my ($wal_writer) = value(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});
kill 'STOP', $wal_writer;
$writer->run('SET synchronous_commit = off');
$writer->run(q{INSERT INTO accord.outbox (topic, key) VALUES ('quick', 'asynchronous')});
$stub->wait_for_count(1);
crash();
is(value(q{SELECT count(*) FROM accord.read(0, 100000) WHERE key = 'asynchronous'}), 1,
    'an event committed asynchronously is durable before it is sent');
$stub->open_gate('held');
wait_for_delivery($node);

# The same for a reader: what it was given, a crash cannot take back.
value(q{ALTER SYSTEM SET accord.dispatch = off});
$node->reload;
poll_until(sub { !workers($node, 'dispatcher') }, 'the dispatcher to end');
($wal_writer) = value(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});
kill 'STOP', $wal_writer;
my $start = value('SELECT accord.safe_seq()');
$writer = open_session($node);
$writer->run('SET synchronous_commit = off');
$writer->run(q{INSERT INTO accord.outbox (topic, key) VALUES ('quick', 'read')});
my $read = value("SELECT seq, event_id FROM accord.read($start, 100)");
like($read, qr/^\d+\|/, 'a reader is given an event committed asynchronously');
crash();
is(value("SELECT seq, event_id FROM accord.read($start, 100)"), $read, '... which a crash cannot take back');

# What nobody was given may go; the numbers go on behind all that was seen.
($wal_writer) = value(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});
kill 'STOP', $wal_writer;
$writer = open_session($node);
$writer->run('SET synchronous_commit = off');
$writer->run(q{INSERT INTO accord.outbox (topic, key) VALUES ('quick', 'lost')});
crash();
my ($seq) = $read =~ /^(\d+)/;
write_events('quick', 'next');
is(value("SELECT key FROM accord.read($seq, 100) ORDER BY seq DESC LIMIT 1"), 'next', 'a later event is behind them');
is(value('SELECT count(*) - count(DISTINCT seq) FROM accord.commit_log'), 0, '... and no number is given twice');

$node->stop;
done_testing();
