# The circuit breaker, and pausing by hand: an endpoint whose requests keep failing is left alone but for one probe at a
# time, at growing intervals; what waits meanwhile loses no attempt; the first success lets everything go, in order. No
# other endpoint notices, and a server that refuses what it is sent is no server that is broken.
#
# That nothing is sent shows by an event of another channel, committed later, that has arrived.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', "log_statement = none\n");
my $stub = start_stub();
my $dispatcher = dispatcher($node);
my @rules;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel whose requests' paths are /name/account/key/number, and whose route takes the topics of its name; tried
# often and for long. Unless it says otherwise it has one request at a time, so that it is exact when its breaker opens,
# and that stays open for a day.
sub named_channel
{
    my ($name, %column) = @_;
    my $accounts = delete $column{accounts} || [];
    insert_row($node, 'channel', name => $name, base_url => $stub->url, patient(),
        retry_base => '1 ms', retry_cap => '1 ms', max_attempts => 10000, max_in_flight => 1, breaker_failures => 3, breaker_ratio => undef,
        breaker_cooldown => '1 day', breaker_cap => '7 days', %column);
    insert_row($node, 'account', channel => $name, name => $_) for @$accounts;
    route($node, $name, topic => $name, path => '/{topic}{/account,key}/{payload}', coalesce => undef);
    return;
}

# Adds a rule for paths that begin like this; the first one that matches is used.
sub answer
{
    my ($path, $do, %match) = @_;
    unshift @rules, { match => { path_regex => "^/$path", %match }, do => $do };
    $stub->script(\@rules);
    return;
}

# Events given as key and payload, such as a1, in one transaction.
sub insert
{
    my ($topic, $account, @words) = @_;
    sql(join '', 'BEGIN;', map({
        insert_sql('outbox', topic => $topic, account => $account, key => substr($_, 0, 1), payload => substr($_, 1))
          . ';'
    } @words), 'COMMIT;');
    return;
}

sub requests { my ($path) = @_; return grep { $_->{path} =~ m{^/$path} } $stub->log; }

# What arrived, as such words; repetitions that follow each other count once.
sub arrived
{
    my ($path) = @_;
    my $last = '';
    return join ' ', grep { my $new = $_ ne $last; $last = $_; $new }
      map { $_->{path} =~ m{/(.)/(\d+)$} ? "$1$2" : () } requests($path);
}

my $marks = 0;

# Waits until the dispatcher has read everything up to now.
sub mark
{
    $marks++;
    insert('mark', undef, "m$marks");
    poll_until(sub { requests("mark/m/$marks\$") }, 'the mark');
    return;
}

# That the requests come to this many, and no more.
sub comes_to
{
    my ($path, $expected, $what) = @_;
    eval { poll_until(sub { requests($path) == $expected }, "$expected requests", 30) };
    mark();
    is(scalar(requests($path)), $expected, $what);
    return;
}

sub wait_for_delivered
{
    my ($name, $n) = @_;
    wait_for_rows($node,
        "SELECT count(*) FROM accord.attempt_log WHERE channel = '$name' AND outcome = 'delivered'", $n);
    return;
}

# The transitions of an endpoint so far.
sub history
{
    my ($name, $account) = @_;
    return sql("SELECT coalesce(string_agg(state, ' ' ORDER BY recorded_at, ctid), '') FROM accord.endpoint_log
        WHERE channel = '$name' AND coalesce(account, '') = '" . ($account || '') . q{'});
}

sub attempts { my ($name) = @_; return sql("SELECT count(*) FROM accord.attempt_log WHERE channel = '$name'"); }

named_channel('mark', max_in_flight => 16);

# ---- what opens it

answer('row/a/', { status => 503 });
named_channel('row', accounts => [ 'a', 'b' ], account_max_in_flight => 1);
insert('row', 'a', map { ("k$_", "l$_") } 1 .. 4);
insert('row', 'b', map { "k$_" } 1 .. 8);
comes_to('row/a/', 3, 'so many failures in a row open it');
is(arrived('row/b/'), join(' ', map { "k$_" } 1 .. 8), '... at that account, not at another');
wait_for_rows($node, q{SELECT account, state, until > recorded_at + interval '11 h'
    FROM accord.endpoint_log WHERE channel = 'row'}, 'a|open|t');
is(attempts('row'), 3 + 8, '... what waits is not attempted');
wait_for_rows($node, q{SELECT sum(attempts) FROM accord.backlog WHERE channel = 'row'}, 3);
pass('... and loses no attempt');
is(sql(q{SELECT count(*) FROM accord.owed() WHERE channel = 'row' AND account = 'a'}), 8, '... all of it is owed');
# Two in three: never three in a row.
for (1 .. 8)
{
    answer('between/', {}, times => 1);
    answer('between/', { status => 503 }, times => 2);
}
named_channel('between');
insert('between', undef, map { "k$_" } 1 .. 20);
wait_for_delivered('between', 20);
is(history('between'), '', 'a success in between: it does not open');

# Every second fails: half of them, with the tenth.
for (1 .. 20)
{
    answer('ratio/', { status => 503 }, times => 1);
    answer('ratio/', {}, times => 1);
}
named_channel('ratio', breaker_ratio => 0.5, breaker_minimum => 10, breaker_window => '1 day');
insert('ratio', undef, map { "k$_" } 1 .. 20);
comes_to('ratio/', 10, 'so large a part of failures opens it, from the minimum on');
is(history('ratio'), 'open', '... once');

my %failure = (
    408 => { status => 408 },
    500 => { status => 500 },
    401 => { status => 401 },
    timeout => { hang => 1 },
    cut_off => { cut_after_bytes => 5 });
for my $name (sort keys %failure)
{
    answer("fail_$name/", $failure{$name});
    named_channel("fail_$name", timeout => '20 ms');
    insert("fail_$name", undef, map { "k$_" } 1 .. 9);
}
comes_to("fail_$_/", 3, "$_ is a failure") for sort keys %failure;
my $gone = start_stub();
$gone->stop;
named_channel('nobody', base_url => $gone->url);
insert('nobody', undef, map { "k$_" } 1 .. 9);
wait_for_rows($node, q{SELECT outcome, count(*) FROM accord.attempt_log WHERE channel = 'nobody' GROUP BY 1},
    'unreachable|3');
mark();
is(history('nobody') . ' ' . attempts('nobody'), 'open 3', 'a server that is not there is a failure');

# ---- what does not

my %harmless = (
    400 => { status => 400 },
    404 => { status => 404 },
    409 => { status => 409 },
    425 => { status => 425 },
    429 => { status => 429, headers => { 'Retry-After' => 0 } },
    501 => { status => 501 });
for my $name (sort keys %harmless)
{
    answer("mild_$name/", $harmless{$name}, times => 12);
    named_channel("mild_$name", ordering => 'none', breaker_ratio => 0.1, breaker_minimum => 2);
    insert("mild_$name", undef, map { "k$_" } 1 .. 20);
}
for my $name (sort keys %harmless)
{
    wait_for_rows($node, "SELECT count(*) FROM accord.owed() WHERE channel = 'mild_$name'", 0);
    is(history("mild_$name") =~ s/throttled ?//gr, '', "$name is no failure of the endpoint");
}
answer('never/', { status => 503 }, times => 40);
named_channel('never', breaker_failures => undef);
insert('never', undef, map { "k$_" } 1 .. 5);
wait_for_delivered('never', 5);
is(history('never') . attempts('never'), 45, 'without breaker_failures and breaker_ratio it never opens');

# ---- probes

my ($cooldown, $cap) = (0.2, 0.8);
answer('probe/', { status => 503 });
named_channel('probe', breaker_cooldown => '200 ms', breaker_cap => '800 ms', max_in_flight => 8, max_attempts => 20);
insert('probe', undef, map { my $n = $_; map { "$_$n" } 'a' .. 'j' } 1 .. 5);
poll_until(sub { my $all = () = history('probe') =~ /open/g; $all >= 2 * 5 }, 'probes');
answer('probe/', {});
wait_for_delivered('probe', 50);
my $history = history('probe');
like($history, qr/^open( half_open open){4,} half_open closed$/, 'it opens, tries now and then, and closes');
my @probe = requests('probe/');
my @failed = grep { $_->{answered} == 503 } @probe;
my ($probes) = scalar(() = $history =~ /half_open/g);
# What was under way when it opened is answered, too.
my $first = @failed - ($probes - 1);
cmp_ok($first, '<=', 3 + 7, '... after failures in a row, and what was under way with them');
cmp_ok($first, '>=', 3, '... not before');
my @open = map { [ split /\|/ ] } split /\n/, sql(q{SELECT extract(epoch FROM recorded_at), extract(epoch FROM until)
    FROM accord.endpoint_log WHERE channel = 'probe' AND state = 'open' ORDER BY recorded_at});
my @sent = @probe[ $first .. $first + $probes - 1 ];
# It is open since the third failure, then since that of the last probe; between one half and all of its time.
my @since = ((sort { $a <=> $b } map { $_->{ended} } @failed[ 0 .. $first - 1 ])[2], map { $_->{ended} } @sent);
my @longest = map { $cooldown * 2**$_ < $cap ? $cooldown * 2**$_ : $cap } 0 .. $#open;
is(scalar(grep { $open[$_][1] - $since[$_] < $longest[$_] / 2 } 0 .. $#open), 0, '... for twice as long each time');
is(scalar(grep { $open[$_][1] - $open[$_][0] > $longest[$_] + 0.001 } 0 .. $#open), 0, '... up to the cap');
is(scalar(grep { $sent[$_]{time} < $open[$_][1] - 0.001 } 0 .. $#open), 0, '... and nothing arrives before');
is(scalar(grep { $sent[$_]{time} < $sent[ $_ - 1 ]{ended} } 1 .. $#sent), 0, '... one at a time');
cmp_ok($probe[ $first + $probes ]{time}, '>=', $sent[-1]{ended}, '... the rest after the one that succeeded');
for my $key ('a' .. 'j')
{
    is(arrived("probe/$key"), join(' ', map { "$key$_" } 1 .. 5), "... key $key in order");
}
is(attempts('probe'), scalar @probe, 'there is a row for each request, and no other');
is(sql(q{SELECT count(*) FROM accord.attempt_log WHERE channel = 'probe' AND outcome = 'retry'}), scalar @failed,
    '... nothing else is an attempt');

# A probe that hangs: it is the only one.
answer('hang/', { status => 503 });
named_channel('hang', breaker_cooldown => '10 ms', breaker_cap => '10 ms', max_in_flight => 8);
insert('hang', undef, map { "${_}1" } 'a' .. 'h');
poll_until(sub { history('hang') =~ /half_open/ }, 'a probe');
answer('hang/', { gate => 'hang' });
poll_until(sub { grep { !defined $_->{ended} } requests('hang/') }, 'the probe that hangs');
insert('hang', undef, map { "${_}2" } 'a' .. 'h');
mark();
is(scalar(grep { !defined $_->{ended} } requests('hang/')), 1, 'while a probe is under way nothing else is');
wait_for_rows($node, q{SELECT state, breaker, in_flight FROM accord.status WHERE channel = 'hang'},
    'broken|half_open|1');
pass('... which the status says');
$stub->open_gate('hang');
wait_for_delivered('hang', 16);

# The key that opened it is given up while it is open: another is the probe.
answer('other/a/', { status => 503 });
named_channel('other', breaker_cooldown => '300 ms', breaker_cap => '300 ms');
insert('other', undef, 'a1');
poll_until(sub { history('other') =~ /open/ }, 'it to open');
# the decision about one that is just being tried is passed over
poll_until(sub {
        sql(q{SELECT accord.discard('other', state => 'retrying')});
        return sql(q{SELECT count(*) FROM accord.owed() WHERE channel = 'other'}) == 0;
    }, 'it to be given up');
insert('other', undef, 'b1', 'c1');
wait_for_delivered('other', 2);
like(history('other'), qr/half_open closed$/, 'what opened it may be discarded: another one is the probe');

# A probe that the server refuses for good shows that it is there.
named_channel('refuse', breaker_cooldown => '10 ms', breaker_cap => '10 ms');
answer('refuse/a', { status => 400 });
answer('refuse/a', { status => 503 }, times => 3);
insert('refuse', undef, 'a1');
poll_until(sub { history('refuse') =~ /open/ }, 'it to open');
insert('refuse', undef, 'b1');
wait_for_delivered('refuse', 1);
is(history('refuse'), 'open half_open closed', 'a probe that is rejected closes it');

# ---- changes

sql(q{UPDATE accord.channel SET breaker_failures = NULL WHERE name = 'ratio'});
mark();
is(history('ratio'), 'open', 'a breaker that is configured away for one half stays open');
sql(q{UPDATE accord.channel SET breaker_ratio = NULL WHERE name = 'ratio'});
wait_for_delivered('ratio', 20);
is(history('ratio'), 'open closed', '... for both, it closes');
answer('row/a/', {});
sql(q{SELECT accord.resume('row', 'b')});
comes_to('row/a/', 3, 'another account resumed by hand: it stays open');
is(sql(q{SELECT accord.resume('row', 'a')}), 'f', '... itself, though it was not paused:');
wait_for_delivered('row', 16);
is(arrived('row/a/k') . ', ' . arrived('row/a/l'), 'k1 k2 k3 k4, l1 l2 l3 l4', '... everything goes, in order');
like(history('row', 'a'), qr/^open (resumed )?closed/, '... it is closed');

# ---- a crash while it is open

answer('crash/', { status => 503 });
named_channel('crash', breaker_cooldown => '100 ms', breaker_cap => '100 ms', max_in_flight => 4);
insert('crash', undef, map { my $n = $_; map { "$_$n" } 'a' .. 'f' } 1 .. 5);
poll_until(sub { history('crash') =~ /open.*open/ }, 'it to open');
crash_server($node);
my $started = sql('SELECT extract(epoch FROM pg_postmaster_start_time())');
poll_until(sub { 0 < grep { $_->{time} > $started } requests('crash/') }, 'requests after the crash');
mark();
poll_until(sub { history('crash') =~ /open$/ }, 'it to be open');
answer('crash/', {});
wait_for_delivered('crash', 30);
is(join(' ', map { arrived("crash/$_") } 'a' .. 'f'),
    join(' ', map { my $key = $_; map { "$key$_" } 1 .. 5 } 'a' .. 'f'),
    'a crash while it is open: nothing is lost, and each key is in order');
like(history('crash'), qr/closed$/, '... and it closes');

# ---- by hand

named_channel('hand', accounts => [ 'a', 'b' ], max_in_flight => 8);
sql(q{BEGIN; SET LOCAL accord.actor = 'alice'; SELECT accord.pause('hand', 'a', 'their migration'); COMMIT});
is(sql(q{SELECT channel, account, reason, actor, until FROM accord.paused}), 'hand|a|their migration|alice|',
    'paused: by whom, and why');
insert('hand', 'a', 'k1', 'k2', 'l1');
insert('hand', 'b', 'k1');
wait_for_delivered('hand', 1);
comes_to('hand/a/', 0, '... nothing is sent');
is(history('hand', 'a') . ',' . history('hand', 'b'), 'paused,', '... which is recorded');
wait_for_rows($node, q{SELECT account, state, paused_reason FROM accord.status WHERE channel = 'hand'
    AND account <> '' ORDER BY 1}, 'a|paused|their migration', 'b|idle|');
pass('... and shown');
is(sql(q{BEGIN; SELECT accord.pause('hand'); ROLLBACK; SELECT count(*) FROM accord.paused}) =~ /(\d)$/ ? $1 : '', '1',
    'a pause that is rolled back is none');
crash_server($node);
insert('hand', 'b', 'k2');
wait_for_delivered('hand', 2);
comes_to('hand/a/', 0, 'a crash does not end it');
sql(q{SELECT accord.resume('hand', 'a')});
wait_for_delivered('hand', 5);
is(arrived('hand/a/k') . ', ' . arrived('hand/a/l'), 'k1 k2, l1', 'resumed: everything in order');
is(sql('SELECT count(*) FROM accord.paused'), 0, '... and nothing is paused');
poll_until(sub { history('hand', 'a') =~ /resumed$/ }, 'it to be recorded');

# What is under way ends.
answer('hand/', { gate => 'hand' });
insert('hand', 'a', 'm1', 'm2');
poll_until(sub { requests('hand/a/m/1') }, 'a request');
sql(q{SELECT accord.pause('hand')});
mark();
$stub->open_gate('hand');
wait_for_delivered('hand', 6);
insert('hand', $_, 'n1') for 'a', 'b';
comes_to('hand/./[mn]', 1, 'a paused channel: what is under way ends, and nothing follows, whatever the account');
sql(q{SELECT accord.resume('hand')});
wait_for_delivered('hand', 9);

sql(q{SELECT accord.pause('hand', until => clock_timestamp() + interval '1 s')});
my $until = sql('SELECT extract(epoch FROM until) FROM accord.paused');
insert('hand', $_, 'o1') for 'a', 'b';
wait_for_delivered('hand', 11);
is(scalar(grep { $_->{time} < $until } requests('hand/./o')), 0, 'until: not before, and by itself');
is(sql(q{SELECT count(*) FROM accord.status WHERE channel = 'hand' AND state = 'paused'}), 0,
    '... which is not shown any more');
for my $case ([ q{'nobody_at_all'} => 'a channel' ], [ q{'hand', 'z'} => 'an account' ])
{
    my (undef, undef, $stderr) =
      $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT accord.pause($case->[0])");
    like($stderr, qr/ERROR:  (42704|23503|22023)/, "$case->[1] that does not exist cannot be paused");
}

for my $wrong (
    { breaker_failures => 0 },
    { breaker_ratio => 0 },
    { breaker_ratio => 1.5 },
    { breaker_minimum => 0 },
    { breaker_window => '-1 s' },
    { breaker_cooldown => '10 s', breaker_cap => '1 s' })
{
    my (undef, undef, $stderr) = $node->psql('postgres',
        "\\set VERBOSITY verbose\n" . insert_sql('channel', name => 'bad', base_url => $stub->url, %$wrong));
    like($stderr, qr/23514|22023/, 'refused: ' . join ' ', %$wrong);
}

$node->stop;
done_testing();
