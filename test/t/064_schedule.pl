# When, and whether still: what is to be sent later, not after a certain time, or not any more; what waits behind a
# failure when its route says so; and how all that meets a pause, a retry and a crash.
#
# That nothing is sent shows by an event of another channel, committed or due later, that has arrived.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', "log_statement = none\n");
my $stub = start_stub('--pulse');
my $dispatcher = dispatcher($node);
my @rules;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel whose requests' paths are /topic/key/number, tried often and for long, with a route for the topic of its
# name.
sub named_channel
{
    my ($name, $route, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $stub->url, patient(),
        retry_base => '10 ms', retry_cap => '20 ms', max_attempts => 10000, breaker_failures => undef, breaker_ratio => undef, %column);
    route($node, $name, topic => $name, path => '/{topic}/{key}/{payload}', coalesce => undef, %{ $route || {} });
    return;
}

# Events given as key and number, such as a1, each in a transaction of its own, with further columns; their event_ids.
sub insert
{
    my ($topic, $more, @words) = @_;
    return events($node, map { { topic => $topic, key => substr($_, 0, 1), payload => substr($_, 1), %$more } } @words);
}

sub after { my ($interval) = @_; return \"clock_timestamp() + interval '$interval'"; }

sub answer
{
    my ($path, $do, %match) = @_;
    unshift @rules, { match => { path_regex => "^/$path", %match }, do => $do };
    $stub->script(\@rules);
    return;
}

sub requests { my ($path) = @_; return grep { $_->{path} =~ m{^/$path} } $stub->log; }

# What arrived, as such words; of these keys alone. Repetitions that follow each other count once.
sub arrived
{
    my ($name, $keys) = @_;
    my $last = '';
    my @words = map { $_->{path} =~ m{^/$name/(.)/(\d+)$} ? "$1$2" : () } $stub->log;
    @words = grep { /^[$keys]/ } @words if $keys;
    return join ' ', grep { my $new = $_ ne $last; $last = $_; $new } @words;
}

sub wait_for_arrival
{
    my ($name, $word) = @_;
    poll_until(sub { (' ' . arrived($name) . ' ') =~ / $word / }, "$word to arrive at $name");
    return;
}

# How each event of a topic ended at the channel of its name, in commit order.
sub fates
{
    my ($name) = @_;
    return sql(<<"SQL") =~ s/\n/ /gr;
SELECT e.key || (e.payload #>> '{}') || ':'
    || coalesce(string_agg(a.outcome, '/' ORDER BY a.recorded_at) FILTER (WHERE a.outcome <> 'retry'), 'nothing')
FROM accord.event_log e
JOIN accord.commit_log c USING (slot, tx_id)
LEFT JOIN accord.attempt_log a ON a.seq = c.seq AND a.ord = e.ord AND a.channel = '$name'
WHERE e.topic = '$name' GROUP BY c.seq, e.ord, e.key, e.payload ORDER BY c.seq, e.ord
SQL
}

sub wait_until_settled
{
    my ($name) = @_;
    wait_for_rows($node, "SELECT count(*) FROM accord.owed() WHERE channel = '$name'", 0);
    return;
}

my $marks = 0;

# Waits until the dispatcher has read everything up to now; or until what was due so long from now was.
sub mark
{
    my ($interval) = @_;
    $marks++;
    insert('mark', $interval ? { deliver_at => after($interval) } : {}, "m$marks");
    wait_for_arrival('mark', "m$marks");
    return;
}

named_channel('mark');

# ---- not after

named_channel('stale', undef, enabled => 'false');
insert('stale', { expires_at => \q{now() - interval '1 s'} }, 'a1');
insert('stale', { expires_at => after('200 ms') }, 'a2', 'b1');
insert('stale', { expires_at => after('1 hour') }, 'a3');
insert('stale', {}, 'b2');
mark('300 ms');
sql(q{UPDATE accord.channel SET enabled = true WHERE name = 'stale'});
wait_until_settled('stale');
is(fates('stale'), 'a1:expired a2:expired b1:expired a3:delivered b2:delivered', 'what is stale is not sent');
is(join(' ', sort split / /, arrived('stale')), 'a3 b2', '... the rest is');
is(sql(q{SELECT count(*) FROM accord.backlog WHERE channel = 'stale'}), 0, '... without remains');

# While it is retried; and behind another of its key.
answer('fail/a', { status => 503 });
named_channel('fail');
insert('fail', { expires_at => after('500 ms') }, 'a1');
insert('fail', { expires_at => after('300 ms') }, 'a2');
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt_log WHERE channel = 'fail' AND outcome = 'expired'}, 2);
answer('fail/a', {});
insert('fail', {}, 'a3');
wait_until_settled('fail');
is(fates('fail'), 'a1:expired a2:expired a3:delivered', 'what becomes stale while it is retried is given up');
cmp_ok(scalar(requests('fail/a/1')), '>', 1, '... having been tried');
is(scalar(requests('fail/a/2')), 0, '... or not, behind another of its key');
my $expires = sql(q{SELECT extract(epoch FROM max(expires_at)) FROM accord.event_log WHERE topic = 'fail'});
is(scalar(grep { $_->{time} > $expires + $stub->slack } requests('fail/a/1')), 0, '... not after its time');
is(sql(q{SELECT count(*) FROM accord.backlog WHERE channel = 'fail'}), 0, '... without remains');

named_channel('both', undef, enabled => 'false');
insert('both', { deliver_at => after('100 ms'), expires_at => after('200 ms') }, 'a1');
insert('both', { deliver_at => after('100 ms'), expires_at => after('1 hour') }, 'b1');
mark('300 ms');
sql(q{UPDATE accord.channel SET enabled = true WHERE name = 'both'});
wait_until_settled('both');
is(fates('both'), 'a1:expired b1:delivered', 'scheduled, and stale before it could be sent');
my (undef, undef, $refusal) = $node->psql('postgres', "\\set VERBOSITY verbose\n" . insert_sql('outbox',
    topic => 'both', deliver_at => \q{now() + interval '2 s'}, expires_at => \q{now() + interval '1 s'}));
like($refusal, qr/22023: .*HINT: /s, 'scheduled for later than it is of use: refused');

# What is stale takes no turn from what is not.
for my $bucket ('', '{topic}')
{
    my $name = $bucket ? 'event' : 'turn';
    named_channel($name);
    insert_row($node, 'rate_limit', channel => $name, amount => 1, period => '1 s', bucket => $bucket);
    sql("INSERT INTO accord.outbox (topic, key, payload, expires_at)
        SELECT '$name', 'k' || g, '1', clock_timestamp() + interval '300 ms' FROM generate_series(1, 300) g");
    mark('400 ms');
    insert($name, {}, 'f1');
    wait_for_arrival($name, 'f1');
    cmp_ok(scalar(requests("$name/k")), '<=', 4, 'what is stale does not use up a limit');
}

# ---- not any more

named_channel('cancel');
my @ids = insert('cancel', { deliver_at => after('1 hour') }, 'a1', 'b1', 'f1');
insert('cancel', { deliver_at => after('600 ms') }, 'c1', 'd1');
wait_for_rows($node, q{SELECT count(*) FROM accord.backlog WHERE channel = 'cancel' AND key ~ '[abf]'
    AND state = 'scheduled'}, 3);
is(sql(q{SELECT accord.discard('cancel', state => 'scheduled', key => 'a', reason => 'booking cancelled')}), 1,
    'a scheduled one is cancelled');
is(sql("SELECT accord.discard('$ids[1]'::uuid)"), 1, '... or by its event_id');
is(sql(q{BEGIN; SELECT accord.discard('cancel', state => 'scheduled', key => 'f'); ROLLBACK}), 1,
    '... or not, after all');
insert('cancel', { deliver_at => after('700 ms') }, 'e1');
wait_for_rows($node, q{SELECT e.key, o.state FROM accord.owed() o JOIN accord.event_log e USING (tx_id, ord)
    WHERE o.channel = 'cancel'}, 'f|scheduled');
sql(q{SELECT accord.discard('cancel', state => 'scheduled')});
wait_until_settled('cancel');
is(fates('cancel'), 'a1:discarded b1:discarded f1:discarded c1:delivered d1:delivered e1:delivered',
    '... and is not sent');
is(join(' ', sort split / /, arrived('cancel')), 'c1 d1 e1', '... while the others are');
is(scalar(grep { my $request = $_; $request->{time} < sql(
    "SELECT extract(epoch FROM deliver_at) FROM accord.event_log WHERE topic = 'cancel'
        AND key = '@{[ $request->{path} =~ m{/(.)/1$} ]}'") } requests('cancel/')), 0, '... each when it is due');
is(sql(q{SELECT payload ->> 'reason' FROM accord.event_log WHERE topic = 'accord.discard' AND tx_id =
    (SELECT min(tx_id) FROM accord.event_log WHERE topic = 'accord.discard')}), 'booking cancelled',
    '... for a reason');

# ---- what waits behind a failure

answer('hold/[a-d]/1', { status => 400 });
answer('hold/e/1', { status => 503 });
named_channel('hold', { when_dead => 'hold', path => '/{topic}/{key}/{payload.n}' }, max_attempts => 3);
my @words = map { { topic => 'hold', key => substr($_, 0, 1), payload => sprintf '{"n": %d}', substr $_, 1 } }
  qw(a1 a2 b1 b2 c1 c2 e1 e2 z1);
events($node, @words, { topic => 'hold', key => 'f', payload => '{}' },
    { topic => 'hold', key => 'f', payload => '{"n": 2}' });
wait_for_arrival('hold', 'z1');
wait_for_rows($node, q{SELECT key, state, attempts FROM accord.backlog WHERE channel = 'hold' AND state <> 'waiting'
    ORDER BY key}, 'a|held|1', 'b|held|1', 'c|held|1', 'e|held|3', 'f|held|1');
mark();
is(join(' ', sort map { $_->{path} =~ m{/(.)/(\d)$} ? "$1$2" : () } requests('hold/')), 'a1 b1 c1 e1 e1 e1 z1',
    'when_dead = hold: refused, failed too often, no request can be made: its key waits, others do not');
wait_for_rows($node, q{SELECT held, dead FROM accord.status WHERE channel = 'hold'}, '5|0');
pass('... which the status says');
crash_server($node);
mark();
wait_for_rows($node, q{SELECT count(*) FROM accord.backlog WHERE channel = 'hold' AND state = 'held'}, 5);
is(scalar(requests('hold/./2')), 0, '... also after a crash');
answer('hold/[ae]/1', {});
is(sql(q{SELECT accord.redeliver('hold', state => 'held', key => 'a')}), 1, 'redelivered');
wait_for_arrival('hold', 'a2');
is(arrived('hold', 'a'), 'a1 a2', '... it goes first, and its key goes on');
is(sql(q{SELECT accord.discard('hold', state => 'held', key => 'b')}), 1, 'discarded');
wait_for_arrival('hold', 'b2');
is(arrived('hold', 'b'), 'b1 b2', '... its key goes on');
is(sql(q{SELECT accord.redeliver('hold', state => 'held', key => 'c')}), 1, 'redelivered in vain');
poll_until(sub { requests('hold/c/1') >= 2 }, 'it to be tried again');
wait_for_rows($node, q{SELECT state FROM accord.backlog WHERE channel = 'hold' AND key = 'c' AND state <> 'waiting'},
    'held');
mark();
is(arrived('hold', 'c'), 'c1', '... it is held again');
is(sql(q{SELECT accord.discard('hold', state => 'held')}), 3, 'all that is held is discarded');
wait_until_settled('hold');
is(join(' ', map { arrived('hold', $_) } 'c', 'e', 'f'), 'c1 c2 e1 e2 f2', '... and the rest is sent');

answer('go/a/1', { status => 400 });
named_channel('go');
insert('go', {}, 'a1', 'a2');
wait_until_settled('go');
is(arrived('go') . sql(q{SELECT ' ' || state FROM accord.backlog WHERE channel = 'go'}), 'a1 a2 dead',
    'when_dead = continue, the default: its key goes on');

# ---- with a pause, and a crash

named_channel('pause');
insert('pause', { deliver_at => after('1 hour') }, 'c1', 'd1');
wait_for_rows($node, q{SELECT count(*) FROM accord.backlog WHERE channel = 'pause' AND state = 'scheduled'}, 2);
sql(q{SELECT accord.pause('pause', reason => 'season is over')});
insert('pause', { expires_at => after('300 ms') }, 'a1');
insert('pause', { deliver_at => after('300 ms') }, 'b1');
insert('pause', {}, 'a2', 'b2');
mark('400 ms');
is(scalar(requests('pause/')), 0, 'paused: what is due is not sent');
is(sql(q{SELECT accord.discard('pause', state => 'scheduled', key => 'c')}), 1,
    '... what is scheduled can be cancelled');
crash_server($node);
mark();
is(scalar(requests('pause/')), 0, '... nor after a crash');
sql(q{SELECT accord.resume('pause')});
wait_for_rows($node, q{SELECT key, state FROM accord.owed() JOIN accord.event_log USING (tx_id, ord)
    WHERE channel = 'pause'}, 'd|scheduled');
is(fates('pause'), 'c1:discarded d1:nothing a1:expired b1:delivered a2:delivered b2:delivered',
    '... resumed: what is stale is not sent, what is due is, what was cancelled is not');
sql(q{SELECT accord.discard('pause', state => 'scheduled')});
wait_until_settled('pause');
sql(q{SELECT accord.pause('pause'); SELECT accord.pause('pause', reason => 'again')});
is(sql(q{SELECT count(*), max(reason) FROM accord.paused WHERE channel = 'pause'}), '1|again',
    'paused twice is paused');
sql(q{SELECT accord.resume('pause'); SELECT accord.resume('pause')});
insert('pause', {}, 'e1');
wait_for_arrival('pause', 'e1');
pass('... and resumed once is resumed');

sql(q{CREATE ROLE app; SELECT accord.grant_writer('app')});
for my $call (q{pause('pause')}, q{resume('pause')})
{
    my (undef, undef, $stderr) = $node->psql('postgres', "SET ROLE app; SELECT accord.$call");
    like($stderr, qr/permission denied/, "a writer cannot $call");
}
sql(q{CREATE ROLE ops; SELECT accord.grant_admin('ops')});
sql(q{SET ROLE ops; SELECT accord.pause('pause'); SELECT accord.resume('pause')});
pass('an admin can');

for my $wrong ({ when_dead => 'forget' }, { batch_size => 0 })
{
    my (undef, undef, $stderr) =
      $node->psql('postgres', "\\set VERBOSITY verbose\n" . insert_sql('route', channel => 'mark', %$wrong));
    like($stderr, qr/22023|23514/, 'refused: a route with ' . join ' ', %$wrong);
}

$node->stop;
done_testing();
