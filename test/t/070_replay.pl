# Replay: events of the log are owed again to one channel, in three modes, of a range or a selection; in order, marked as
# replayed in the logs, with progress; and what makes no sense is refused.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', "log_statement = none\n");
my $stub = start_stub();
send_everything($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# Runs a replay to its end; returns its number.
sub replay
{
    my ($arguments) = @_;
    my $job = sql("SELECT accord.replay($arguments)");
    wait_for_rows($node, "SELECT state FROM accord.progress WHERE job = $job", 'done');
    return $job;
}

# What the stub has got since the last call, as "path body" without and with idempotency key.
my $seen = 0;
sub news
{
    my @new = $stub->log($seen);
    $seen += @new;
    return @new;
}
sub bodies { return map { "$_->{path} $_->{body}" } @_; }
sub keys_of { return map { $_->{headers}{'idempotency-key'} } @_; }

channel($node, $stub, 'ota', retry_base => '10 ms', retry_cap => '50 ms', route => { path => '/{topic}{/key}' });
channel($node, $stub, 'other', route => { topic => 'none' });

# ---- resend and rekey: every event, in order -------------------------------------------------------------------------

my @ids = events($node, map { { topic => 'rate', key => 'k' . $_ % 3, payload => $_ } } 1 .. 9);
push @ids, events($node, { topic => 'note', key => 'k0', payload => '"n"', op => 'insert' });
$stub->wait_for_count(10);
wait_for_delivery($node);
my @first = news();

my $job = replay(q{'ota', reason => 'their backup was from last week'});
my @again = news();
is(join("\n", sort(bodies(@again))), join("\n", sort(bodies(@first))), 'resend: every event again');
is(join("\n", sort(keys_of(@again))), join("\n", sort(keys_of(@first))), '... under its idempotency key');
for my $key (0 .. 2)
{
    my @of_key = grep { $_->{path} eq "/rate/k$key" } @again;
    is(join(',', map { $_->{body} } @of_key), join(',', grep { $_ % 3 == $key } 1 .. 9), "... in order, of key k$key");
}
is(join(',', map { $_->{headers}{'accord-replay'} // '' } @again), join(',', ($job) x 10), '... marked as a replay');
is(sql("SELECT count(*), count(DISTINCT event_id) FROM accord.attempt WHERE replay = $job AND outcome = 'delivered'"),
    '10|10', '... and so in the attempts');
is(sql("SELECT count(*) FROM accord.timeline WHERE event_id = '$ids[0]' AND detail LIKE 'replay $job%'"),
    1, '... and in the timeline');
is(sql("SELECT state, done, total, delivered, failed, passed, reason, actor IS NOT NULL, finished_at >= started_at
        FROM accord.progress WHERE job = $job"),
    'done|10|10|10|0|0|their backup was from last week|t|t', '... with its progress');

my $rekeyed = replay(q{'ota', mode => 'rekey'});
@again = news();
my %key = map { $_ => 1 } keys_of(@first), keys_of(@again);
is(scalar keys %key, 20, 'rekey: every event again under a new key');
like((keys_of(@again))[0], qr/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/, '... a UUID');
replay(q{'ota', mode => 'rekey'});
$key{$_} = 1 for keys_of(news());
is(scalar keys %key, 30, '... which is another one in each replay');

# ---- selections -------------------------------------------------------------------------------------------------------

my $seq3 = sql("SELECT seq FROM accord.timeline WHERE event_id = '$ids[2]' LIMIT 1");
my $seq6 = sql("SELECT seq FROM accord.timeline WHERE event_id = '$ids[5]' LIMIT 1");
replay("'ota', since => '$seq3', until => '$seq6'");
is(join(',', sort map { $_->{body} } news()), '4,5,6', 'a range of commits');
my $at3 = sql("SELECT committed_at FROM accord.commit_log WHERE seq = $seq3");
my $at6 = sql("SELECT committed_at FROM accord.commit_log WHERE seq = $seq6");
replay("'ota', since => '$at3', until => '$at6'");
is(join(',', sort map { $_->{body} } news()), '4,5,6', 'a range of time');
replay(q{'ota', topic => 'no*'});
is(join(',', bodies(news())), '/note/k0 "n"', 'a topic');
replay(q{'ota', key => 'k1'});
is(join(',', map { $_->{body} } news()), '1,4,7', 'a key');
replay(q{'ota', ops => '{insert,delete}'});
is(join(',', bodies(news())), '/note/k0 "n"', 'ops');
replay("'ota', events => '{$ids[7],$ids[1]}'");
is(join(',', sort map { $_->{body} } news()), '2,8', 'named events');
$job = replay(q{'other'});
is(sql("SELECT done = total, passed = total, total >= 10 FROM accord.progress WHERE job = $job"), 't|t|t',
    'what no route takes is passed over');
is(scalar(news()), 0, '... and not sent');

# ---- state: the latest of each key -----------------------------------------------------------------------------------

events($node,
    { topic => 'rate', key => 'k1', payload => 10 },
    { topic => 'rate', key => 'gone', payload => 1 },
    { topic => 'rate', key => 'gone', op => 'delete' },
    { topic => 'nokey', payload => 1 });
route($node, 'ota', topic => 'rate', ops => '{delete}', method => 'DELETE', path => '/{topic}/{key}', position => 1);
$stub->wait_for_count($seen + 4);
wait_for_delivery($node);
news();
$job = replay(q{'ota', mode => 'state'});
is(join("\n", sort(map { "$_->{method} $_->{path} $_->{body}" } news())),
    "DELETE /rate/gone \nPOST /note/k0 \"n\"\nPOST /rate/k0 9\nPOST /rate/k1 10\nPOST /rate/k2 8",
    'state: the latest of each topic and key, a delete too');
my $until = sql("SELECT seq FROM accord.timeline WHERE event_id = '$ids[8]' LIMIT 1");
replay("'ota', mode => 'state', until => '$until', topic => 'rate'");
is(join(',', sort(map { "$_->{path} $_->{body}" } news())), '/rate/k0 9,/rate/k2 8',
    '... but never one that a newer one has followed, whatever is selected');

# A new channel.
channel($node, $stub, 'new', route => { path => '/new/{topic}{/key}', coalesce => '{key}' });
$job = sql(q{SELECT accord.backfill('new', topic => 'rate')});
wait_for_rows($node, "SELECT state, mode, reason FROM accord.progress WHERE job = $job", 'done|state|backfill');
is(join(',', sort(map { "$_->{path} $_->{body}" } news())), '/new/rate/gone ,/new/rate/k0 9,/new/rate/k1 10,/new/rate/k2 8',
    'backfill: a new channel gets the latest of each key')
  or diag sql('SELECT * FROM accord.progress');

# ---- accounts ---------------------------------------------------------------------------------------------------------

channel($node, $stub, 'pms', route => { topic => 'pms', path => '/pms/{account}/{key}' });
insert_row($node, 'account', channel => 'pms', name => $_) for 'a', 'b';
events($node, map { { topic => 'pms', key => 'k', account => $_, payload => 1 } } 'a', 'b', 'a');
$stub->wait_for_count($seen + 3);
wait_for_delivery($node);
news();
replay(q{'pms'});
is(join(',', sort map { $_->{path} } news()), '/pms/a/k,/pms/a/k,/pms/b/k', 'a channel with all its accounts');
replay(q{'pms', 'a'});
is(join(',', sort map { $_->{path} } news()), '/pms/a/k,/pms/a/k', 'one account');

# ---- captured tables ------------------------------------------------------------------------------------------------

sql(q{CREATE TABLE room (id int PRIMARY KEY, price int); CREATE TABLE guest (id int PRIMARY KEY);
    SELECT accord.capture('room', topic => 'table'), accord.capture('guest', topic => 'table')});
channel($node, $stub, 'site', route => { topic => 'table', path => '/site/{key}', coalesce => '{key}' });
sql('INSERT INTO room VALUES (1, 10), (2, 20); INSERT INTO guest VALUES (7)');
sql(q{SELECT accord.mark('a good night')});
sql('UPDATE room SET price = 11 WHERE id = 1; DELETE FROM room WHERE id = 2');
wait_for_delivery($node);
news();
replay(q{'site', relation => 'room', ops => '{insert}'});
is(join(',', sort map { $_->{path} } news()), '/site/1,/site/2', 'a captured table');
replay(q{'site', mode => 'state', relation => 'room', since => 'a good night'});
is(join(',', sort map { "$_->{path} $_->{body}" } news()), '/site/1 {"id": 1, "price": 11},/site/2 ', '... since a mark');

# Rows that are older than the log.
sql(q{CREATE TABLE old (id int PRIMARY KEY, price int); INSERT INTO old VALUES (1, 10), (2, 20), (3, 30), (4, 40);
    SELECT accord.capture('old', topic => 'old'); UPDATE old SET price = 21 WHERE id = 2; DELETE FROM old WHERE id = 4});
is(sql(q{SELECT accord.baseline('old')}), 2, 'rows that were there before');
channel($node, $stub, 'shop', route => { topic => 'old', path => '/shop/{key}', coalesce => '{key}' });
wait_for_rows($node, 'SELECT last_value >= (SELECT max(seq) FROM accord.commit_log) FROM accord.position_0', 't');
news();
replay(q{'shop', topic => 'old'});
is(join(',', sort map { $_->{path} } news()), '/shop/2,/shop/4', 'resend: only what was an event');
$job = sql(q{SELECT accord.backfill('shop', topic => 'old')});
wait_for_rows($node, "SELECT state FROM accord.progress WHERE job = $job", 'done');
is(join(',', sort map { "$_->{path} $_->{body}" } news()),
    '/shop/1 {"id": 1, "price": 10},/shop/2 {"id": 2, "price": 21},/shop/3 {"id": 3, "price": 30},/shop/4 ',
    "backfill: the table's present rows as well");

# ---- failures ---------------------------------------------------------------------------------------------------------

$stub->script([ { match => { path_regex => '^/rate/k0$', times => 2 }, do => { status => 503 } },
        { match => { path_regex => '^/rate/k2$' }, do => { status => 400 } } ]);
$job = replay(q{'ota', mode => 'rekey', topic => 'rate', key => 'k0'});
my @tries = news();
is(join(',', map { $_->{body} } @tries), '3,3,3,6,9', 'what fails is retried, in order of its key');
my %distinct = map { $_ => 1 } keys_of(@tries);
is(scalar keys %distinct, 3, '... under the same new key');
is(sql("SELECT attempt FROM accord.attempt WHERE replay = $job AND outcome = 'delivered' ORDER BY seq LIMIT 1"),
    3, '... with its attempts counted');
$job = replay(q{'ota', topic => 'rate', key => 'k2'});
is(sql("SELECT failed FROM accord.progress WHERE job = $job"), 3, 'what is refused becomes a dead letter');
is(sql("SELECT count(*) FROM accord.backlog WHERE state = 'dead' AND replay = $job"), 3, '... in the backlog');
$stub->script([]);
news();
sql(q{SELECT accord.redeliver('ota')});
wait_for_delivery($node);
is(join(',', sort map { "$_->{body} $_->{headers}{'accord-replay'}" } news()), "2 $job,5 $job,8 $job",
    '... that can be redelivered');
wait_for_rows($node, 'SELECT count(*) FROM accord.dead_letter', '0');

# A dead letter is closed by a replay that delivers it.
$stub->script([ { match => { path_regex => '^/rate/k2$' }, do => { status => 400 } } ]);
events($node, { topic => 'rate', key => 'k2', payload => 99 });
wait_for_rows($node, 'SELECT count(*) FROM accord.dead_letter', '1');
$stub->script([]);
replay(q{'ota', key => 'k2'});
is(sql('SELECT count(*) FROM accord.dead_letter'), 0, 'a dead letter that is replayed is one no more');
wait_for_rows($node, q{SELECT dead FROM accord.status WHERE channel = 'ota'}, '0');
is((news())[-1]{body}, 99, '... as it was delivered');

# ---- what makes no sense ----------------------------------------------------------------------------------------------

for (
    [ q{'none'}, qr/channel "none" does not exist/ ],
    [ q{'ota', 'x'}, qr/has no account "x"/ ],
    [ q{'ota', mode => 'again'}, qr/no mode "again"/ ],
    [ q{'ota', rate => 0}, qr/cannot go at 0 events a second/ ],
    [ q{'ota', rate => 'NaN'}, qr/cannot go at NaN events/ ],
    [ q{'ota', ops => '{upsert}'}, qr/no event has one of the ops/ ],
    [ q{'ota', since => 'yesterday-ish'}, qr/is no point in time/ ],
    [ q{'ota', since => '5', until => '5'}, qr/nothing was committed after "5", up to "5"/ ],
    [ q{'ota', relation => 'pg_class'}, qr/pg_class was never captured/ ],
    [ q{'ota', events => '{}'}, qr/can name 1 to 10000 events, not 0/ ],
    [ q{'ota', since => '1', events => '{00000000-0000-0000-0000-000000000000}'}, qr/named events has no other range/ ],
    [ q{'ota', events => '{00000000-0000-0000-0000-000000000000}'}, qr/is not in the log/ ])
{
    my ($arguments, $error) = @$_;
    my ($status, $out, $err) = $node->psql('postgres', "SELECT accord.replay($arguments)");
    like($err, qr/$error.*HINT/s, "refused: $arguments");
}
insert_row($node, 'channel', name => 'bare', base_url => $stub->url);
my ($status, $out, $err) = $node->psql('postgres', q{SELECT accord.backfill('bare')});
like($err, qr/has no route/, 'refused: a channel without a route');
($status, $out, $err) = $node->psql('postgres', 'SELECT accord.cancel_replay(12345)');
like($err, qr/there is no replay 12345/, 'refused: to cancel what there is not');
is(sql("SELECT accord.cancel_replay($job)"), 'f', 'what has ended cannot be cancelled');

$node->stop;
done_testing();
