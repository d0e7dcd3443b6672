# With nothing to do, nobody wakes up: the dispatcher and the launcher sleep through whatever else the server does, also
# while deliveries wait for hours, for a person, or for a channel to be enabled. One event wakes the dispatcher, and so
# does a change of the configuration alone.
#
# A process that sleeps does not give up its processor of its own accord: voluntary_ctxt_switches of /proc/PID/status
# stays as it is. The stretches are made of other work, and long enough for anything that would look now and then.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

plan skip_all => 'there is no /proc' unless -r "/proc/$$/status";

my $node = new_node('main', "autovacuum = off\n");
send_everything($node);
my $stub = start_stub();

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# Times the processes went to sleep so far.
sub sleeps
{
    return join ' ',
      map { PostgreSQL::Test::Utils::slurp_file("/proc/$_/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m } @_;
}

# Other work: sessions that come and go here and elsewhere, and commits. No DDL, because of which PostgreSQL itself
# wakes all its processes now and then, to take in what it invalidated.
sub work_elsewhere
{
    my ($rounds) = @_;
    for my $round (1 .. $rounds)
    {
        $node->safe_psql('other', <<'SQL');
INSERT INTO bystander SELECT g FROM generate_series(1, 100) g;
UPDATE bystander SET id = id + 1;
DELETE FROM bystander;
SQL
        value('INSERT INTO bystander VALUES (1); DELETE FROM bystander; SELECT count(*) FROM accord.event_log');
    }
    return;
}

# Waits until the processes do not wake up during so many rounds; what still had to be put away has been then.
sub wait_for_sleep
{
    my ($rounds, @pids) = @_;
    my $last = '';
    poll_until(
        sub {
            my $now = sleeps(@pids);
            my $same = $now eq $last;
            $last = $now;
            work_elsewhere($rounds) unless $same;
            return $same;
        },
        'the processes to be asleep');
    return $last;
}

# ---- everything that can wait does: nothing of it may wake anybody

value('CREATE DATABASE other');
$node->safe_psql($_, 'CREATE TABLE bystander (id integer)') for 'postgres', 'other';
channel($node, $stub, 'ota', retry_base => '2 h', retry_cap => '3 h');
channel($node, $stub, 'sms', idempotency_header => undef);
channel($node, $stub, 'off', enabled => 'false');
channel($node, $stub, 'hotel');
insert_row($node, 'account', channel => 'hotel', name => 'ann', enabled => 'false');
route($node, 'ota', topic => 'ota', path => '/ota/{key}');
route($node, 'sms', topic => 'sms', path => '/sms/{key}', mode => 'command');
route($node, 'off', topic => 'off', path => '/off/{key}');
route($node, 'hotel', topic => 'hotel', path => '/hotel/{key}');
$stub->script([
    { match => { path_regex => '/retrying' }, do => { status => 503 } },
    { match => { path_regex => '/dead' }, do => { status => 400 } },
    { match => { path_regex => '/held' }, do => { close_before_response => 1 } } ]);
events($node,
    { topic => 'ota', key => 'delivered' },
    { topic => 'ota', key => 'retrying' },
    { topic => 'ota', key => 'retrying' },
    { topic => 'ota', key => 'dead' },
    { topic => 'ota', key => 'later', deliver_at => \q{now() + interval '1 day'} },
    { topic => 'sms', key => 'held' },
    { topic => 'nobody', key => 'nobody' },
    { topic => 'hotel', key => 'account', account => 'ann' },
    map { { topic => 'off', key => "k$_" } } 1 .. 3);
wait_for_rows(
    $node, q{SELECT key, state FROM accord.backlog WHERE state <> 'waiting' ORDER BY 1},
    'dead|dead', 'held|held', 'later|scheduled', 'retrying|retrying');
my @pids = ((workers($node, 'launcher'))[0], dispatcher($node));
my $asleep = wait_for_sleep(60, @pids);
work_elsewhere(60);
is(sleeps(@pids), $asleep, 'launcher and dispatcher are not woken once, whatever else the server does');
is(join(' ', sort { $a <=> $b } workers($node, '')), join(' ', sort { $a <=> $b } @pids),
    '... and are the same processes still');
is($stub->count, 4, '... nothing was sent meanwhile');

my $session = open_session($node);
$session->run('BEGIN');
$session->run(q{INSERT INTO accord.outbox (topic, key) VALUES ('ota', 'undone')});
$session->run('ROLLBACK');
value('BEGIN; UPDATE accord.channel SET enabled = true; ROLLBACK');
work_elsewhere(5);
is(sleeps($pids[0]), (split / /, $asleep)[0], 'what is rolled back does not wake the launcher');
is($stub->count, 4, '... and has no effect');

# ---- one event wakes the dispatcher

$asleep = wait_for_sleep(10, @pids);
events($node, { topic => 'ota', key => 'news' });
$stub->wait_for_count(5);
is(($stub->log(4))[0]{path}, '/ota/news', 'one event wakes the dispatcher');
isnt(sleeps($pids[1]), (split / /, $asleep)[1], '... which the count of its sleeps shows');
is(sleeps($pids[0]), (split / /, $asleep)[0], '... and not the launcher');

# ---- so does the configuration alone

# Changes the configuration while all are asleep, and waits for what that lets go.
sub change_brings
{
    my ($sql, $what, @paths) = @_;
    my $count = $stub->count;
    wait_for_sleep(10, @pids);
    is($stub->count, $count, "before $what, nothing goes");
    value($sql);
    $stub->wait_for_count($count + @paths);
    return is(join(' ', sort map { $_->{path} } $stub->log($count)), join(' ', sort @paths),
        "$what, by itself, starts delivery");
}

change_brings(q{UPDATE accord.channel SET enabled = true WHERE name = 'off'}, 'enabling a channel', '/off/k1',
    '/off/k2', '/off/k3');
change_brings(q{UPDATE accord.account SET enabled = true WHERE name = 'ann'}, 'enabling an account', '/hotel/account');

# What waits in memory when its channel is disabled.
$stub->script([ { match => { path_regex => '^/off' }, do => { gate => 'shut' } } ]);
$stub->close_gate('shut');
events($node, map { { topic => 'off', key => 'same', payload => qq({"n": $_}) } } 1 .. 3);
$stub->wait_for_count(10);
value(q{UPDATE accord.channel SET enabled = false WHERE name = 'off'});
$stub->open_gate('shut');
wait_for_rows($node, q{SELECT count(*) FROM accord.owed() WHERE channel = 'off'}, 2);
$asleep = wait_for_sleep(60, @pids);
work_elsewhere(60);
is(sleeps(@pids), $asleep, 'what waits in memory for a channel that was disabled wakes nobody');
change_brings(q{UPDATE accord.channel SET enabled = true WHERE name = 'off'}, 'enabling it again', '/off/same',
    '/off/same');

# What a restart finds.
value(q{UPDATE accord.channel SET enabled = false WHERE name = 'off'});
events($node, map { { topic => 'off', key => "r$_" } } 1 .. 2);
$node->restart;
@pids = ((workers($node, 'launcher'))[0], dispatcher($node));
change_brings(q{UPDATE accord.channel SET enabled = true WHERE name = 'off'}, 'enabling it after a restart', '/off/r1',
    '/off/r2');

# More requests at a time, while one hangs.
value(q{UPDATE accord.channel SET max_in_flight = 1, stall_timeout = '1 h', timeout = '1 h' WHERE name = 'off'});
$stub->script([ { match => { path_regex => '^/off' }, do => { gate => 'again' } } ]);
$stub->close_gate('again');
events($node, map { { topic => 'off', key => "m$_" } } 1 .. 3);
$stub->wait_for_count(15);
change_brings(q{UPDATE accord.channel SET max_in_flight = 3 WHERE name = 'off'}, 'raising max_in_flight', '/off/m2',
    '/off/m3');
$stub->open_gate('again');
wait_for_rows($node, q{SELECT count(*) FROM accord.owed() WHERE channel = 'off'}, 0);

# A person decides.
change_brings(q{SELECT accord.redeliver('ota')}, 'redelivering', '/ota/dead');

$session->close;
$node->stop;
done_testing();
