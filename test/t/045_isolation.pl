# What fails, fails alone: an endpoint that hangs, refuses, answers nonsense or breaks off keeps nobody else waiting.
# Each time the healthy endpoint has everything while the other is still owed all of it, and gets it in the end.
# Requests in flight are bounded per endpoint, and while the network is waited for, no transaction is open.
use strict;
use warnings FATAL => 'all';

use Accord;
use IO::Socket::INET;
use Test::More;

my $events = 200;
my $in_flight = 4;

# The autovacuum daemon has transactions of its own, which are not looked at.
my $node = new_node('main', "autovacuum = off\n");
send_everything($node);
my $good = start_stub();
my $bad = start_stub();

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# One transaction of as many events as keys, to both channels.
sub write_events
{
    my ($topic, $n) = @_;
    return value("INSERT INTO accord.outbox (topic, key) SELECT '$topic', 'k' || g FROM generate_series(1, $n) g");
}

sub owed { my ($condition) = @_; return "SELECT count(*) FROM accord.owed() WHERE $condition"; }

# Seen from outside: no dispatcher holds a snapshot or has a transaction open. Asked until it is so, because between two
# waits they have one now and then; what holds while nothing can happen holds from then on.
sub wait_until_free
{
    wait_for_rows($node, q{SELECT count(*), count(backend_xmin), count(backend_xid), count(xact_start)
        FROM pg_stat_activity WHERE backend_type = 'pg_accord dispatcher'}, '1|0|0|0');
    return;
}

channel($node, $good, 'good', max_in_flight => 16);
channel($node, $bad, 'bad', max_in_flight => $in_flight, timeout => '1 h', stall_timeout => '1 h', retry_base => '1 day',
    retry_cap => '2 days', max_attempts => 1000);
route($node, 'good', topic => 't', path => '/good/{key}');
route($node, 'bad', topic => 't', path => '/bad/{key}');

# ---- every way to fail

# What the bad channel does, and what state that leaves a delivery in.
my @ways = (
    [ 'hangs', { gate => 'shut' }, 'sending' ],
    [ 'answers 500', { status => 500 }, 'retrying' ],
    [ 'answers 429', { status => 429, headers => { 'Retry-After' => '7200' } }, 'retrying' ],
    [ 'answers garbage', { garbage => 1 }, 'retrying' ],
    [ 'closes the connection', { close_before_response => 1 }, 'retrying' ],
    [ 'resets the connection', { reset => 1 }, 'retrying' ],
    [ 'breaks off in the body', { cut_after_bytes => 10, body => 'x' x 1000 }, 'retrying' ],
    [ 'stalls in the body', { stall_after_bytes => 10, body => 'x' x 1000 }, 'sending' ]);

for my $way (@ways)
{
    my ($what, $do, $state) = @$way;
    $good->reset;
    $bad->reset;
    $bad->close_gate('shut');
    $bad->script([ { do => $do } ]);
    write_events('t', $events);
    wait_for_rows($node, owed(q{channel = 'good'}), 0);
    is($good->count, $events, "$what: the other endpoint has everything");
    is(value(owed(q{channel = 'bad'})), $events, '... while all is owed still to the one that does');
    my $n = $state eq 'sending' ? $in_flight : $events;
    my $throttled = $what eq 'answers 429';
    if ($throttled)
    {
        # it pauses the endpoint: only what was in flight is refused
        wait_for_rows($node, q{SELECT count(*) FROM accord.endpoint_log WHERE state = 'throttled'}, 1);
        poll_until(sub { $bad->counters->{in_flight} == 0 }, 'the refusals');
        $n = $bad->count;
        cmp_ok($n, '<=', $in_flight, '... which is paused');
    }
    wait_for_rows($node, "SELECT count(*) FROM accord.backlog WHERE channel = 'bad' AND state = '$state'", $n);
    # libcurl repeats of itself what a kept connection did not answer; as many of these as are in flight there may be.
    cmp_ok($bad->count, '>=', $n, "... $n are $state");
    cmp_ok($bad->count, '<=', $n + $in_flight, '... after one attempt each');
    is(value(q{SELECT max(attempts) FROM accord.backlog}), $throttled ? 0 : 1,
        '... which is recorded');
    cmp_ok($bad->counters->{max_in_flight}, '<=', $in_flight, '... never more than max_in_flight at a time');
    wait_until_free();
    pass('... and no transaction is open meanwhile');

    # Those that hang are cut off by the channel's own end.
    $bad->script([]);
    $bad->open_gate('shut');
    if ($what eq 'stalls in the body')
    {
        my $port = $bad->port;
        $bad->stop;
        wait_for_rows($node,
            q{SELECT count(*) > 0 FROM accord.backlog WHERE channel = 'bad' AND state = 'retrying'}, 't');
        $bad = start_stub('--port', $port);
    }
    value(q{SELECT accord.resume('bad')}) if $throttled;
    value(q{SELECT accord.redeliver('bad', state => 'retrying')});
    poll_until(
        sub {
            value(q{SELECT accord.redeliver('bad', state => 'retrying')});
            return value(owed(q{channel = 'bad'})) == 0;
        },
        'the bad channel to have all');
    is(value(q{SELECT count(*) FROM accord.backlog WHERE channel = 'bad'}), 0, '... once it works it gets all of it');
}

# Refused connections: nobody listens.
my $port = $bad->port;
$bad->stop;
$good->reset;
write_events('t', $events);
wait_for_rows($node, owed(q{channel = 'good'}), 0);
is($good->count, $events, 'refuses connections: the other endpoint has everything');
is(value(owed(q{channel = 'bad'})), $events, '... while all is owed still to the one that does');
wait_for_rows($node, q{SELECT count(*) FROM accord.backlog WHERE channel = 'bad' AND state = 'retrying'}, $events);
$bad = start_stub('--port', $port);
value(q{SELECT accord.redeliver('bad', state => 'retrying')});
wait_for_rows($node, owed('true'), 0);
is($bad->count, $events, '... once somebody listens he gets all of it');

# A host that does not answer at all: packets to it are dropped, as those to a listener whose backlog is full.
SKIP:
{
    my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1, Proto => 'tcp') or skip 'no socket', 2;
    my @fill = map {
        IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $socket->sockport, Proto => 'tcp', Blocking => 0)
    } 1 .. 8;
    $good->reset;
    value("UPDATE accord.channel SET base_url = 'http://127.0.0.1:" . $socket->sockport
          . "', connect_timeout = '5 min' WHERE name = 'bad'");
    write_events('t', $events);
    wait_for_rows($node, owed(q{channel = 'good'}), 0);
    is($good->count, $events, 'does not answer the connection: the other endpoint has everything');
    is(value(owed(q{channel = 'bad'})), $events, '... while all is owed still to the one that does not');
    wait_until_free();
    value(q{UPDATE accord.channel SET enabled = false WHERE name = 'bad'});
}

# ---- the keys and the accounts of one channel

$bad->reset;
$good->reset;
$bad->script([ { match => { path_regex => '/ann/' }, do => { gate => 'ann' } } ]);
$bad->close_gate('ann');
channel($node, $bad, 'hotel', max_in_flight => 2 * $in_flight, account_max_in_flight => $in_flight, timeout => '1 h', stall_timeout => '1 h');
insert_row($node, 'account', channel => 'hotel', name => $_, vars => qq({"name": "$_"})) for 'ann', 'bob';
route($node, 'hotel', topic => 'hotel', path => '/{vars.name}/{key}');
value("INSERT INTO accord.outbox (topic, key, account) SELECT 'hotel', 'k' || g, a
    FROM generate_series(1, $events) g, unnest(ARRAY['ann', 'bob']) a");
wait_for_rows($node, owed(q{account = 'bob'}), 0);
is(scalar(grep { $_->{path} =~ m{^/bob/} } $bad->log), $events, 'an account that hangs does not stop another one');
is(value(owed(q{account = 'ann'})), $events, '... while all is owed still to it');
is($bad->counters->{in_flight}, $in_flight, '... with account_max_in_flight requests');
$bad->open_gate('ann');
wait_for_rows($node, owed(q{channel = 'hotel'}), 0);
is(scalar(grep { $_->{path} =~ m{^/ann/} } $bad->log), $events, '... it gets all of it in the end');

# One key that is retried for long, and the others of its endpoint.
$bad->reset;
$bad->script([ { match => { path_regex => '/stuck', times => 1 }, do => { status => 503 } } ]);
channel($node, $bad, 'keys', max_in_flight => $in_flight, retry_base => '1 h', retry_cap => '2 h');
route($node, 'keys', topic => 'keys', path => '/{key}');
value("INSERT INTO accord.outbox (topic, key) SELECT 'keys', CASE WHEN g % 10 = 1 THEN 'stuck' ELSE 'k' || g END
    FROM generate_series(1, $events) g");
wait_for_rows($node, owed(q{channel = 'keys'}), $events / 10);
is(scalar(grep { $_->{path} eq '/stuck' } $bad->log), 1, 'a key that must wait holds back its own events alone');
value(q{SELECT accord.redeliver('keys', state => 'retrying')});
wait_for_rows($node, owed(q{channel = 'keys'}), 0);
is($bad->count, $events + 1, '... which follow it');

# ---- all the room there is

# accord.max_in_flight is for all endpoints together, and full of requests that hang.
value('ALTER SYSTEM SET accord.max_in_flight = 40');
$node->reload;
wait_for_rows($node, 'SHOW accord.max_in_flight', 40);
$bad->reset;
$bad->script([ { do => { gate => 'full' } } ]);
$bad->close_gate('full');
channel($node, $bad, "slow$_", max_in_flight => 30, timeout => '1 h', stall_timeout => '1 h') for 1 .. 2;
route($node, "slow$_", topic => 'slow', path => "/slow$_/{key}") for 1 .. 2;
write_events('slow', 100);
$bad->wait_for_count(40);
wait_until_free();
is($bad->counters->{in_flight}, 40, 'no more than accord.max_in_flight requests are in flight in all');
my %by = (slow1 => 0, slow2 => 0);
$by{$_}++ for map { $_->{path} =~ m{^/(\w+)/} } $bad->log;
cmp_ok($by{slow1}, '<=', 30, '... nor more than max_in_flight of the first endpoint');
cmp_ok($by{slow2}, '<=', 30, '... nor of the second');
$bad->open_gate('full');
wait_for_rows($node, owed(q{channel LIKE 'slow%'}), 0);
is($bad->count, 200, 'all of it is delivered in the end');
cmp_ok($bad->counters->{max_in_flight}, '<=', 40, '... within that limit');

$node->stop;
done_testing();
