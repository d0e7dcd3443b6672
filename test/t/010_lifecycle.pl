# The launcher: which databases have dispatchers, through everything that happens to databases, to the extension, to the
# settings and to the processes themselves.
use strict;
use warnings FATAL => 'all';

use Accord;
use File::Path qw(make_path);
use Test::More;
use Time::HiRes qw(time);

my $interval = 2;    # seconds
my $node = new_node('main', <<CONF, extension => 0);
accord.restart_interval = '${interval}s'
restart_after_crash = on
CONF
my $stub = start_stub();
my $events = 0;

# Waits until a database has exactly so many dispatchers, whatever it is called by now; returns their process ids.
sub wait_for_dispatchers
{
    my ($database, $n) = @_;
    my @pids;
    poll_until(sub { @pids = workers($node, 'dispatcher', $database); @pids == $n },
        "$n dispatchers in $database");
    return @pids;
}

# A dispatcher other than those given.
sub wait_for_other
{
    my ($database, @old) = @_;
    my %old = map { $_ => 1 } @old;
    my @pids;
    poll_until(
        sub {
            @pids = workers($node, 'dispatcher', $database);
            @pids && !grep { $old{$_} } @pids;
        },
        "another dispatcher in $database");
    return $pids[0];
}

sub make_database
{
    my ($name) = @_;
    $node->safe_psql('postgres', "CREATE DATABASE $name");
    $node->safe_psql($name, 'CREATE EXTENSION pg_accord');
    send_everything($node, $name);
    $node->safe_psql($name, <<SQL);
INSERT INTO accord.channel (name, base_url) VALUES ('ota', '@{[ $stub->url ]}');
INSERT INTO accord.route (channel, topic) VALUES ('ota', '*');
SQL
    return;
}

sub write_event
{
    my ($database) = @_;
    $node->safe_psql($database, q{INSERT INTO accord.outbox (topic, key, payload) VALUES ('t', '1', '{}')});
    $events++;
    return;
}

# Writes an event and waits until it has arrived, and nothing besides.
sub delivers
{
    my ($database, $what) = @_;
    write_event($database);
    wait_for_delivery($node, $database);
    return is($stub->count, $events, $what);
}

sub configure
{
    my (@settings) = @_;
    $node->safe_psql('postgres', join '', map { "ALTER SYSTEM SET $_;\n" } @settings);
    $node->reload;
    return;
}

# Times a process had nothing to do and went to sleep.
sub sleeps
{
    my ($pid) = @_;
    open my $status, '<', "/proc/$pid/status" or return;
    my ($n) = map { /^voluntary_ctxt_switches:\s+(\d+)/ } <$status>;
    return $n;
}

# Seconds from the start of one process to that of the other.
sub started
{
    my ($pid) = @_;
    return $node->safe_psql('postgres', "SELECT extract(epoch FROM backend_start) FROM pg_stat_activity WHERE pid = $pid");
}

# ---- the extension

my ($launcher) = workers($node, 'launcher');
ok($launcher, 'the launcher runs');
make_database('app');
my ($first) = wait_for_dispatchers('app', 1);
pass('CREATE EXTENSION brings a dispatcher');
delivers('app', '... which delivers');

$node->safe_psql('app', 'BEGIN; DROP EXTENSION pg_accord CASCADE; ROLLBACK');
delivers('app', 'a DROP EXTENSION that is rolled back changes nothing');
is((workers($node, 'dispatcher', 'app'))[0], $first, '... not even the process');

make_database('other');
$node->safe_psql('other', 'DROP EXTENSION pg_accord CASCADE');
wait_for_dispatchers('other', 0);
pass('DROP EXTENSION is not blocked, and the dispatcher goes');
$node->safe_psql('other', 'CREATE EXTENSION pg_accord');
wait_for_dispatchers('other', 1);
pass('CREATE EXTENSION brings it back');
my ($old) = workers($node, 'dispatcher', 'other');
$node->safe_psql('other', 'BEGIN; DROP EXTENSION pg_accord CASCADE; CREATE EXTENSION pg_accord; COMMIT');
isnt(wait_for_other('other', $old), $old, 'an extension that is made anew gets a new dispatcher');

# ---- the database

$node->safe_psql('postgres', 'ALTER DATABASE app RENAME TO renamed');
wait_for_dispatchers('renamed', 1);
delivers('renamed', 'a database is renamed under its dispatcher, which comes back');

$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE renamed');
wait_for_dispatchers('copy', 1);
wait_for_dispatchers('renamed', 1);
delivers('renamed', 'a database with a dispatcher can be a template; the copy is found');

my $space = $node->basedir . '/space';
make_path($space);
$node->safe_psql('postgres', "CREATE TABLESPACE space LOCATION '$space'");
$node->safe_psql('postgres', 'ALTER DATABASE renamed SET TABLESPACE space');
wait_for_dispatchers('renamed', 1);
delivers('renamed', 'a database is moved to another tablespace under its dispatcher');

$node->safe_psql('postgres', 'DROP DATABASE copy');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_database WHERE datname = 'copy'}),
    0, 'a database is dropped under its dispatcher');

($old) = wait_for_dispatchers('renamed', 1);
my ($status, undef, $error) = $node->psql('postgres', 'BEGIN; DROP DATABASE renamed; ROLLBACK');
like($error, qr/cannot run inside a transaction block/, 'a statement that fails says why');
wait_for_other('renamed', $old);
delivers('renamed', '... and the dispatcher comes back, at once');

($old) = wait_for_dispatchers('renamed', 1);
$node->safe_psql('postgres', 'CREATE ROLE stranger LOGIN');
for my $statement ('DROP DATABASE renamed', 'ALTER DATABASE renamed RENAME TO stolen',
    'CREATE DATABASE mine TEMPLATE renamed', 'ALTER DATABASE renamed SET TABLESPACE pg_default')
{
    ($status, undef, $error) = $node->psql('postgres', $statement, extra_params => [ '-U', 'stranger' ]);
    like($error, qr/must be owner|permission denied/, "$statement is not everybody's");
}
is((workers($node, 'dispatcher', 'renamed'))[0], $old, '... and the dispatcher does not go for it');

# ---- the settings

configure('accord.dispatchers = 3');
wait_for_dispatchers('renamed', 3);
delivers('renamed', 'accord.dispatchers says how many there are');
configure('accord.dispatchers = 1');
wait_for_dispatchers('renamed', 1);
delivers('renamed', '... and takes effect on reload both ways');

configure('accord.dispatch = off');
wait_for_dispatchers('renamed', 0);
write_event('renamed');
SKIP:
{
    my $before = sleeps($launcher);
    skip 'there is no /proc', 1 unless defined $before;
    write_event('renamed') for 1 .. 20;
    cmp_ok(sleeps($launcher) - $before, '<=', 2, 'with accord.dispatch off, commits do not wake the launcher');
}
is($stub->count, $events - 21, '... and nothing is sent');
configure('accord.dispatch = on');
wait_for_delivery($node, 'renamed');
is($stub->count, $events, 'with accord.dispatch on again, all of it is');

# ---- idleness

SKIP:
{
    my @pids = ($launcher, wait_for_dispatchers('renamed', 1));
    skip 'there is no /proc', 1 unless defined sleeps($launcher);
    my @last = (0) x @pids;
    # Whatever still had to be put away has been when a second passes without waking anybody.
    poll_until(
        sub {
            my @now = map { sleeps($_) } @pids;
            my $same = "@now" eq "@last";
            @last = @now;
            $node->safe_psql('postgres', 'SELECT pg_sleep(1)') unless $same;
            return $same;
        },
        'all to be asleep');
    $node->safe_psql('postgres', 'SELECT pg_sleep(5)');
    is(join(' ', map { sleeps($_) } @pids), "@last", 'launcher and dispatcher are not woken once in five seconds');
}

# ---- the processes

($old) = wait_for_dispatchers('renamed', 1);
my $before = started($old);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($old)");
my $new = wait_for_other('renamed', $old);
# by the processes' own start: forking takes longer now and then
cmp_ok(started($new) - $before, '>=', $interval - 0.5, 'a dispatcher that ended is started again, after the interval');
delivers('renamed', '... and delivers');

# An error that every new dispatcher meets: a relation it needs has gone.
my $log_start = -s $node->logfile;
$node->safe_psql('renamed', 'ALTER SEQUENCE accord.dispatcher_count RENAME TO hidden');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($new)");
my @errors;
poll_until(
    sub {
        my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile, $log_start);
        @errors = $log =~ /:(\d\d\.\d+) \S+ .*?\[\d+\] .*ERROR:  .*accord\.dispatcher_count/g;
        return @errors >= 3;
    },
    'errors of the dispatcher');
for my $i (1 .. 2)
{
    my $gap = $errors[$i] - $errors[ $i - 1 ];
    $gap += 60 if $gap < 0;
    cmp_ok($gap, '>=', $interval - 0.5, 'a dispatcher that fails again and again waits for the interval each time');
}
$node->safe_psql('renamed', 'ALTER SEQUENCE accord.hidden RENAME TO dispatcher_count');
wait_for_delivery($node, 'renamed');
delivers('renamed', '... and works as soon as it can');

($old) = wait_for_dispatchers('renamed', 1);
kill 'KILL', $old;
$node->poll_query_until('postgres', "SELECT pg_postmaster_start_time() IS NOT NULL AND NOT EXISTS
    (SELECT FROM pg_stat_activity WHERE pid = $old)");
poll_until(sub { (workers($node, 'dispatcher', 'renamed'))[0] }, 'a dispatcher after the crash');
delivers('renamed', 'after kill -9 of a dispatcher everything comes back');

($launcher) = workers($node, 'launcher');
($old) = wait_for_dispatchers('renamed', 1);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
poll_until(sub { my ($pid) = workers($node, 'launcher'); $pid && $pid != $launcher }, 'another launcher');
make_database('late');
wait_for_dispatchers('late', 1);
delivers('late', 'a launcher that ended is replaced by one that works');
is((workers($node, 'dispatcher', 'renamed'))[0], $old, '... and finds the dispatchers there are');

# ---- the server

$stub->script([ { do => { gate => 'shut' } } ]);
write_event('renamed');
$stub->wait_for_count($events);
my $begin = time;
$node->stop('fast');
cmp_ok(time - $begin, '<', 10, 'pg_ctl stop -m fast does not wait for a channel');
$stub->script([]);
$stub->open_gate('shut');
$node->start;
wait_for_delivery($node, 'renamed');
wait_for_dispatchers($_, 1) for qw(renamed late other);
pass('at server start every database with the extension is found');
is(scalar(workers($node, 'dispatcher', 'postgres')), 0, '... and no other');

$node->append_conf('postgresql.conf', 'accord.max_databases = 2');
$log_start = -s $node->logfile;
$node->restart;
$node->wait_for_log(qr/no room for the dispatchers of another database/, $log_start);
pass('a table that is too small is reported');
my ($out) = grep { !workers($node, 'dispatcher', $_) } qw(renamed late other);
my ($in) = grep { $_ ne $out } qw(late other renamed);
$node->safe_psql($out, q{INSERT INTO accord.outbox (topic, key, payload) VALUES ('t', '1', '{}')});
$node->safe_psql('postgres', "DROP DATABASE $in");
wait_for_dispatchers($out, 1);
pass('... and whoever found no room gets it when there is some');

$node->stop;
done_testing();
