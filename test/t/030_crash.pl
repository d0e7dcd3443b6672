# Crashes under load: twenty times, at a random moment, the postmaster, the whole server (as a power failure does it), a
# dispatcher, or a backend in the middle of its transaction is killed with SIGKILL. Afterwards
#   - every committed event has arrived at its channels, and no other has,
#   - each key's events arrived in commit order: no repetition of one that was followed by a later one already,
#   - what arrived more than once was in flight at a crash, or answered and not committed yet: at most twice
#     max_in_flight per endpoint and crash, because of so many at most the outcome is not durable.
# Half of the transactions commit asynchronously, so that crashes undo some of what was already reported committed.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;
use Writers;

my $rounds = 20;
my $in_flight = 8;
my $refusals = 200;
my $seed = $ENV{SEED} || int rand 1_000_000;
srand $seed;
note("SEED=$seed");

my $node = new_node('main', <<'CONF');
restart_after_crash = on
accord.restart_interval = '100ms'
wal_writer_delay = '5s'
deadlock_timeout = '100ms'
log_statement = none
CONF
send_everything($node);
my $log = $node->basedir . '/requests';
my $stub = start_stub('--log', $log);
channel($node, $stub, 'even', max_in_flight => $in_flight, retry_base => '20 ms', retry_cap => '200 ms');
channel($node, $stub, 'moody', max_in_flight => $in_flight, retry_base => '20 ms', retry_cap => '200 ms');
route($node, $_, path => "/$_/{key}", topic => 'w') for 'even', 'moody';
$stub->script([ { match => { path_regex => '^/moody', body_regex => '"n": \d*[37]}', times => $refusals },
        do => { status => 503 } } ]);
prepare_writers($node, 60);

# Processes whose parent is this one.
sub children
{
    my ($parent) = @_;
    my @pids;
    for my $file (glob '/proc/[0-9]*/stat')
    {
        open my $stat, '<', $file or next;
        my $line = <$stat>;
        push @pids, $1 if defined $line && $line =~ /^(\d+) \(.*\) \S (\d+)/s && $2 == $parent;
    }
    return @pids;
}

sub postmaster
{
    my ($pid) = split /\n/, PostgreSQL::Test::Utils::slurp_file($node->data_dir . '/postmaster.pid');
    return $pid;
}

# Zombies count as gone: where nobody reaps them they stay.
sub wait_until_gone
{
    my (@pids) = @_;
    poll_until(sub { !grep { -e "/proc/$_" && !is_zombie($_) } @pids }, 'killed processes to be gone');
    return;
}

sub is_zombie
{
    my ($pid) = @_;
    open my $stat, '<', "/proc/$pid/stat" or return 1;
    my $line = <$stat>;
    return !defined $line || $line =~ /^\d+ \(.*\) Z/s;
}

# The lock files are removed because a zombie's process id still looks like one in use.
sub start_again
{
    my (@pids) = @_;
    wait_until_gone(@pids);
    unlink $node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock';
    $node->{_pid} = undef;
    $node->start;
    return;
}

# The postmaster alone; its children notice.
sub kill_postmaster
{
    my $postmaster = postmaster();
    my @children = children($postmaster);
    kill 'KILL', $postmaster;
    start_again($postmaster, @children);
    return;
}

# All of them at once: the postmaster is stopped first, so that there are no others.
sub kill_all
{
    my $postmaster = postmaster();
    kill 'STOP', $postmaster;
    my @pids = ($postmaster, children($postmaster));
    kill 'KILL', @pids;
    start_again(@pids);
    return;
}

sub victim
{
    my ($condition) = @_;
    my (undef, $pid) = $node->psql('postgres', "SELECT pid FROM pg_stat_activity WHERE $condition LIMIT 1");
    return $pid;
}

# One process, which the postmaster takes as a reason to end all others.
sub kill_one
{
    my ($condition) = @_;
    my $pid;
    poll_until(sub { $pid = victim($condition) }, "a victim: $condition");
    kill 'KILL', $pid;
    wait_until_gone($pid);
    return;
}

my %kill = (
    'the postmaster' => \&kill_postmaster,
    'everything' => \&kill_all,
    'a dispatcher' => sub { kill_one(q{backend_type LIKE 'pg_accord%dispatcher%'}) },
    'a backend in its transaction' =>
      sub { kill_one(q{application_name = 'writer' AND backend_xid IS NOT NULL}) });
my @kinds = sort keys %kill;

my $writers = start_writers($node, seed => $seed, clients => 8, keys => 60, async => 50);
for my $round (1 .. $rounds)
{
    my $kind = $kinds[ $round <= @kinds ? $round - 1 : int rand @kinds ];
    my $more = int rand 200;
    $stub->wait_for_count($stub->count + 20 + $more);
    note("round $round: $kind after $more requests");
    $kill{$kind}->();
}
$stub->wait_for_count($stub->count + 200);
my $counters = $writers->finish;
note(join ', ', map { "$_: $counters->{$_}" } sort keys %$counters);
wait_for_delivery($node);

# ---- what arrived against what was committed

$node->safe_psql('postgres', <<"SQL");
CREATE TABLE raw (n bigserial, line text);
COPY raw (line) FROM '$log' (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02');
CREATE TABLE arrival AS
    SELECT n, split_part(line::jsonb ->> 'path', '/', 2) AS channel,
        (line::jsonb -> 'headers' ->> 'idempotency-key')::uuid AS event_id,
        (line::jsonb ->> 'body')::jsonb ->> 'key' AS key,
        ((line::jsonb ->> 'body')::jsonb ->> 'n')::integer AS number
    FROM raw;
SQL
sub value { return $node->safe_psql('postgres', @_); }
my $written = value('SELECT count(*) FROM truth');
cmp_ok($written, '>', 500, "there was load: $written events");
is(value("SELECT count(*) FROM truth t FULL JOIN (SELECT * FROM accord.event_log WHERE topic = 'w') e USING (event_id)
            WHERE t.key IS DISTINCT FROM e.key"), 0, 'the log holds what was committed');
is(value("SELECT count(*) FROM accord.event_log e WHERE NOT EXISTS (SELECT FROM accord.commit_log c
            WHERE c.slot = e.slot AND c.tx_id = e.tx_id)"), 0, '... and the commits of all of it');
is(value("SELECT count(*) FROM accord.dead_letter"), 0, 'nothing was given up');
for my $channel ('even', 'moody')
{
    my $own = "(SELECT * FROM arrival WHERE channel = '$channel') a";
    is(value("SELECT count(*) FROM truth t WHERE NOT EXISTS (SELECT FROM $own WHERE a.event_id = t.event_id
                AND a.key = t.key AND a.number = t.n)"),
        0, "$channel: every committed event arrived");
    is(value("SELECT count(*) FROM $own WHERE NOT EXISTS (SELECT FROM truth t WHERE t.event_id = a.event_id)"),
        0, '... and none that is not');
    is(value("SELECT count(*) FROM (SELECT number < max(number) OVER (PARTITION BY key ORDER BY n) AS late FROM $own) o
                WHERE late"),
        0, '... nothing was repeated after a later event of its key, and each key came in commit order');
    my $repeated = value("SELECT count(*) - count(DISTINCT event_id) FROM $own");
    my $unrecorded = value("SELECT (SELECT count(*) FROM $own) - (SELECT count(*) FROM accord.attempt_log
                              WHERE channel = '$channel' AND sent <> 'no')");
    note("$channel: $repeated repetitions");
    # In flight, or answered and not yet committed: at most twice max_in_flight at each crash.
    cmp_ok($unrecorded, '<=', $rounds * 2 * $in_flight,
        "... $unrecorded arrivals left no attempt, which is no more than were under way at the crashes");
    my $settled = value("SELECT count(*) FROM (SELECT seq, ord FROM accord.attempt_log WHERE channel = '$channel'
                           AND outcome = 'delivered' GROUP BY seq, ord HAVING count(*) > 1) twice");
    is($settled, 0, '... what was settled as delivered was not sent again');
}
is(value('SELECT accord.safe_seq() = last_value FROM accord.commit_seq'), 't', 'no floor is left standing');

$node->stop;
done_testing();
