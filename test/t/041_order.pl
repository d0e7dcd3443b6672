# Order: the events of a key reach an endpoint in commit order, one at a time; what is retried or held stops its own key
# there and nothing else; what is dead, scheduled, without a key, or of a channel without order stops nothing.
#
# That something is not sent is seen without waiting for time to pass: an event of another key, committed later, has
# arrived, and the dispatcher reads and sends in order.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP;
use Session;
use Test::More;

my $node = new_node('main', "log_statement = none\n");
send_everything($node);
my $stub = start_stub();
my $dispatcher = dispatcher($node);
my @rules;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel whose requests' paths are /name/key/payload, tried often and for long.
sub ordered_channel
{
    my ($name, $route, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $stub->url("/$name"), retry_base => '10 ms',
        retry_cap => '20 ms', max_attempts => 10000, %column);
    route($node, $name, topic => $name, path => '/{key}/{payload}', %{ $route || {} });
    return;
}

# Events given as key and payload, such as a1: one transaction each.
sub event
{
    my ($topic, $word, %more) = @_;
    return { topic => $topic, key => substr($word, 0, 1), payload => substr($word, 1), %more };
}

sub insert
{
    my ($topic, @words) = @_;
    return events($node, map { event($topic, $_) } @words);
}

# What a channel received, as such words; of these keys alone. Repetitions that follow each other count once.
sub arrived
{
    my ($name, $keys) = @_;
    my @words = map { $_->{path} =~ m{^/$name/(.*)/(.*)$} ? "$1$2" : () } $stub->log;
    @words = grep { /^[$keys]/ } @words if $keys;
    my $last = '';
    return join ' ', grep { my $new = $_ ne $last; $last = $_; $new } @words;
}

sub wait_for_arrival
{
    my ($name, $word) = @_;
    poll_until(sub { (' ' . arrived($name) . ' ') =~ / $word / }, "$word to arrive at $name");
    return;
}

# Adds a rule for a path; the first one that matches is used.
sub answer
{
    my ($path, %do) = @_;
    unshift @rules, { match => { path_regex => "^/$path\$" }, do => \%do };
    $stub->script(\@rules);
    return;
}

# ---- a key that is retried

answer('retry/a/1', status => 503);
ordered_channel('retry');
insert('retry', qw(a1 a2 b1 a3 b2 c1));
wait_for_arrival('retry', $_) for 'b2', 'c1';
wait_for_rows($node, q{SELECT key, state FROM accord.backlog WHERE channel = 'retry'}, 'a|retrying');
wait_for_rows($node, q{SELECT state, count(*) FROM accord.owed() WHERE channel = 'retry' GROUP BY 1 ORDER BY 1},
    'queued|2', 'retrying|1');
is(join(' ', map { arrived('retry', $_) } 'a' .. 'c'), 'a1 b1 b2 c1',
    'retrying: later events of its key wait, without a row for each; other keys do not');
insert('retry', qw(a4 d1));
wait_for_arrival('retry', 'd1');
answer('retry/a/1');
wait_for_delivery($node);
is(arrived('retry', 'a'), 'a1 a2 a3 a4', '... and follow in order');
is(sql(q{SELECT count(*) FROM accord.attempt_log WHERE channel = 'retry' AND outcome = 'delivered'}), '8',
    '... each delivered once');

# ---- a key whose first is given up

answer('dead/a/1', status => 400);
ordered_channel('dead');
insert('dead', qw(a1 a2));
wait_for_delivery($node);
is(arrived('dead'), 'a1 a2', 'dead: its key goes on');
is(sql(q{SELECT key, payload FROM accord.dead_letter WHERE channel = 'dead'}), 'a|1', '... without it');

# ---- a key that is held

answer('hold/[ab]/1', close_before_response => 1);
ordered_channel('hold', { mode => 'command' }, idempotency_header => undef);
insert('hold', qw(a1 a2 b1 b2 c1));
wait_for_arrival('hold', 'c1');
wait_for_rows($node, q{SELECT key, state FROM accord.backlog WHERE channel = 'hold' ORDER BY key}, 'a|held', 'b|held');
insert('hold', 'c2');
wait_for_arrival('hold', 'c2');
is(join(' ', sort split / /, arrived('hold')), 'a1 b1 c1 c2', 'held: later events of its key wait, other keys do not');
answer('hold/[ab]/1');
is(sql(q{SELECT accord.discard('hold', state => 'held', key => 'a')}), '1', 'a held one is discarded');
wait_for_arrival('hold', 'a2');
is(arrived('hold', 'a'), 'a1 a2', '... and its key goes on');
is(arrived('hold', 'b'), 'b1', '... not the other');
is(sql(q{SELECT accord.redeliver('hold', state => 'held', key => 'b')}), '1', 'a held one is redelivered');
wait_for_delivery($node);
is(join(' ', map { $_->{path} =~ m{^/hold/b/(.)} ? $1 : () } $stub->log), '1 1 2', '... and goes before its key');

# ---- one at a time

answer('one/.*', gate => 'one');
ordered_channel('one');
insert('one', qw(a1 a2 a3 b1 b2 c1));
wait_for_arrival('one', 'c1');
is(arrived('one'), 'a1 b1 c1', 'under way: the next of its key waits');
is($stub->counters->{in_flight}, 3, '... and others are under way meanwhile');
$stub->open_gate('one');
wait_for_delivery($node);
is(join(' ', map { arrived('one', $_) } 'a' .. 'c'), 'a1 a2 a3 b1 b2 c1', '... until it is answered');

# ---- at its own endpoint

answer('first/a/1', status => 503);
ordered_channel('first', { topic => 'both' });
ordered_channel('second', { topic => 'both' });
insert('both', qw(a1 a2));
wait_for_arrival('second', 'a2');
is(arrived('first'), 'a1', 'a key that waits at one channel');
is(arrived('second'), 'a1 a2', '... does not wait at another');
answer('first/a/1');
wait_for_delivery($node);

ordered_channel('hotel', { path => '/{key}/{account}{payload}' });
insert_row($node, 'account', channel => 'hotel', name => $_) for 'x', 'y';
answer('hotel/a/x1', status => 503);
events($node, map { event('hotel', $_, account => 'x'), event('hotel', $_, account => 'y') } 'a1', 'a2');
wait_for_arrival('hotel', 'ay2');
is(join(' ', sort split / /, arrived('hotel') =~ s/ax1 (?=.*ax1)//gr), 'ax1 ay1 ay2',
    'a key that waits at one account does not wait at another');
answer('hotel/a/x1');
wait_for_delivery($node);

# ---- without order

answer('loose/a/1', status => 503);
answer('loose/b/.', gate => 'loose');
ordered_channel('loose', undef, ordering => 'none');
insert('loose', qw(a1 a2 b1 b2));
wait_for_arrival('loose', $_) for 'a2', 'b2';
pass('ordering = none: nothing waits for one that is retried or under way');
answer('loose/a/1');
$stub->open_gate('loose');
wait_for_delivery($node);

answer('null/1', status => 503);
answer('null/2', gate => 'null');
ordered_channel('null', { path => '/{payload}' });
events($node, map { { topic => 'null', payload => $_ } } 1 .. 3);
poll_until(sub { grep { $_->{path} eq '/null/3' } $stub->log }, 'the third event without a key');
pass('a null key has no order');
answer('null/1');
$stub->open_gate('null');
wait_for_delivery($node);

# ---- deliver_at

ordered_channel('time');
events($node, event('time', 'a1', deliver_at => \q{now() + interval '1 hour'}), event('time', 'a2'),
    event('time', 'a3', deliver_at => \q{now() - interval '1 hour'}));
wait_for_arrival('time', 'a3');
is(arrived('time'), 'a2 a3', 'scheduled: later events of its key pass it; one in the past is due');
wait_for_rows($node, q{SELECT b.state, b.due_at = e.deliver_at, b.attempts, b.channel FROM accord.backlog b
    JOIN accord.event_log e USING (tx_id, ord) WHERE b.channel = 'time'}, 'scheduled|t|0|time');

# Due while its key is retried: it waits for its turn. That it became due shows by one that became so later.
answer('time/b/1', status => 503);
insert('time', 'b1');
wait_for_arrival('time', 'b1');
my @due = events($node, event('time', 'b2', deliver_at => \q{now() + interval '0.5 s'}),
    event('time', 'c1', deliver_at => \q{now() + interval '0.6 s'}));
wait_for_arrival('time', 'c1');
is(arrived('time', 'b'), 'b1', 'due, it waits for its turn');
answer('time/b/1');
wait_for_arrival('time', 'b2');
is(arrived('time', 'b'), 'b1 b2', '... which comes');
my ($request) = grep { $_->{path} eq '/time/c/1' } $stub->log;
my $deliver_at = sql("SELECT extract(epoch FROM deliver_at) FROM accord.event_log WHERE event_id = '$due[1]'");
cmp_ok($request->{time}, '>=', $deliver_at, 'nothing is sent before deliver_at');
is(sql(q{SELECT accord.discard('time', state => 'scheduled')}), '1', 'a scheduled one is discarded');
wait_for_delivery($node);
is(arrived('time', 'a'), 'a2 a3', '... and never sent');

# ---- commit order, and the order within a transaction

ordered_channel('commit');
my ($early, $late) = map { open_session($node, 'postgres') } 1, 2;
$early->run('BEGIN; ' . insert_sql('outbox', %{ event('commit', 'a1') }));
$late->run('BEGIN; ' . insert_sql('outbox', %{ event('commit', 'a2') }));
$early->run(insert_sql('outbox', %{ event('commit', 'a3') }));
$late->run('COMMIT');
wait_for_arrival('commit', 'a2');
$early->run('COMMIT');
wait_for_delivery($node);
is(arrived('commit'), 'a2 a1 a3', 'the order is that of commits, not of inserts');

ordered_channel('save');
sub saved { my ($n) = @_; return insert_sql('outbox', %{ event('save', "a$n") }) . ';'; }
sql(join ' ', 'BEGIN;', saved(1), 'SAVEPOINT s;', saved(2), 'ROLLBACK TO s;', saved(3),
    'SAVEPOINT t;', saved(4), 'SAVEPOINT u;', saved(5), 'RELEASE u;', saved(6), 'RELEASE t;', saved(7),
    'SAVEPOINT v;', saved(8), 'ROLLBACK TO v;', saved(9), 'COMMIT;');
wait_for_delivery($node);
is(arrived('save'), 'a1 a3 a4 a5 a6 a7 a9', 'across savepoints: in order, without what was rolled back');

ordered_channel('rows', undef, max_in_flight => 4);
sql(q{INSERT INTO accord.outbox (topic, key, payload)
    SELECT 'rows', chr(97 + n % 3), to_jsonb(n) FROM generate_series(100, 399) n});
wait_for_delivery($node);
for my $rest (0 .. 2)
{
    my $key = chr(97 + $rest);
    is(arrived('rows', $key), join(' ', map { "$key$_" } grep { $_ % 3 == $rest } 100 .. 399),
        "key $key of a single INSERT of 300 rows arrives in their order");
}
my @numbers = map { [ split /\./, $_->{headers}{'accord-sequence'} ] } grep { $_->{path} =~ m{^/rows/a/} } $stub->log;
is(scalar(grep { $numbers[ $_ - 1 ][0] != $numbers[$_][0] || $numbers[ $_ - 1 ][1] >= $numbers[$_][1] } 1 .. $#numbers),
    0, 'Accord-Sequence grows along a key');

# ---- load, failures, few places

answer('load/.*[37]', status => 503);
$rules[0]{match}{times} = 60;
answer('load/.*5', delay_ms => 3);
ordered_channel('load', undef, max_in_flight => 5);
my @sessions = map { open_session($node, 'postgres') } 1 .. 3;
sql('CREATE SEQUENCE n START 100');
for my $round (1 .. 20)
{
    $_->send('BEGIN; SELECT pg_advisory_xact_lock(1); INSERT INTO accord.outbox (topic, key, payload)
        SELECT \'load\', chr(97 + n), to_jsonb(nextval(\'n\')) FROM generate_series(0, 4) n; COMMIT')
      for @sessions;
}
$_->wait_for_end for @sessions;
wait_for_delivery($node);
for my $key ('a' .. 'e')
{
    is(arrived('load', $key), sql("SELECT string_agg(key || payload, ' ' ORDER BY seq, e.ord) FROM accord.event_log e
          JOIN accord.commit_log USING (slot, tx_id) WHERE topic = 'load' AND key = '$key'"),
        "key $key of three sessions arrives in commit order, failures or not");
}

# ---- after a pause

sql(q{UPDATE accord.channel SET enabled = false WHERE name = 'rows'});
insert('rows', map { ("a$_", "b$_") } 400 .. 420);
sql(q{UPDATE accord.channel SET enabled = true WHERE name = 'rows'});
wait_for_delivery($node);
for my $key ('a', 'b')
{
    like(arrived('rows', $key), qr/ ${\join(' ', map { "$key$_" } 400 .. 420)}$/, "key $key is in order after a pause");
}

is(dispatcher($node), $dispatcher, 'the dispatcher is the same process');

# ---- a crowd behind one that must wait

ordered_channel('crowd', undef, retry_base => '1 day', retry_cap => '2 days');
answer('crowd/a/.*', status => 503);
sql(q{INSERT INTO accord.outbox (topic, key, payload) SELECT 'crowd', 'a', to_jsonb(n) FROM generate_series(1, 15000) n});
events($node, event('crowd', 'b1'));
wait_for_arrival('crowd', 'b1');
is(scalar(grep { $_->{path} =~ m{^/crowd/a/} } $stub->log), 1, 'thousands behind a retrying one let another key pass');

$node->stop;
done_testing();
