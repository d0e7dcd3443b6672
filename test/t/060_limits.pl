# Rate limits and limits on requests in flight: over any window of w seconds no bucket lets more than burst + rate * w
# requests go, counted where they arrive; buckets are told apart by their templates, and a full one stops nobody else; a
# server that refuses (429) or says that it will soon refuse (its hints) is left alone for as long as it asks; and none
# of this costs an attempt, an event or the order.
#
# A limit of one a day is exact: what its burst lets go goes, and no more, however long the test takes. That something
# is not sent shows by an event of another channel, committed later, that has arrived.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', "log_statement = none\n");
my $stub = start_stub('--pulse');
my $dispatcher = dispatcher($node);
my @rules;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel whose requests' paths are /name/account/key/number, and whose route takes the topics of its name. Failures
# neither stop it nor make it slow. accounts: names, or hashes of columns.
sub named_channel
{
    my ($name, %column) = @_;
    my $accounts = delete $column{accounts} || [];
    insert_row($node, 'channel', name => $name, base_url => $stub->url, patient(), retry_base => '1 ms',
        retry_cap => '1 ms', max_attempts => 10000, breaker_failures => undef, breaker_ratio => undef, %column);
    insert_row($node, 'account', channel => $name, ref $_ ? %$_ : (name => $_)) for @$accounts;
    route($node, $name, topic => $name, path => '/{topic}{/account,key,payload.n}', coalesce => undef);
    return;
}

# A limit; by default of one a day.
sub limit
{
    my ($channel, %column) = @_;
    insert_row($node, 'rate_limit', channel => $channel, amount => 1, period => '1 day', %column);
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

# Events with the numbers 1 to n, in one statement; the other columns are SQL over the number g.
sub insert
{
    my ($topic, $n, %column) = @_;
    my %value = (key => q{'k' || g}, payload => q{jsonb_build_object('n', g)}, %column);
    my @names = sort keys %value;
    sql("INSERT INTO accord.outbox (topic, @{[ join ', ', @names ]})
        SELECT '$topic', @{[ join ', ', map { $value{$_} } @names ]} FROM generate_series(1, $n) g");
    return;
}

sub requests { my ($path) = @_; return grep { $_->{path} =~ m{^/$path} } $stub->log; }

# How many requests there were, by what the group in the path matched.
sub tally
{
    my ($path) = @_;
    my %n;
    for my $request ($stub->log)
    {
        $n{$1}++ if $request->{path} =~ m{^/$path};
    }
    return join ' ', map { "$_:$n{$_}" } sort keys %n;
}

# Waits until the dispatcher has read everything up to now.
my $marks = 0;

sub mark
{
    $marks++;
    events($node, { topic => 'mark', key => 'm', payload => qq({"n": $marks}) });
    poll_until(sub { requests("mark/m/$marks\$") }, 'the mark');
    return;
}

# That the requests come to this many, and no more.
sub comes_to
{
    my ($path, $expected, $what) = @_;
    eval { poll_until(sub { tally($path) eq $expected }, $expected, 30) };
    mark();
    is(tally($path), $expected, $what);
    return;
}

sub wait_for_delivered
{
    my ($name, $n) = @_;
    wait_for_rows($node,
        "SELECT count(*) FROM accord.attempt_log WHERE channel = '$name' AND outcome = 'delivered'", $n);
    return;
}

# The bound, over all windows.
sub holds
{
    my ($what, $rate, $burst, @requests) = @_;
    my $fullest = fullest($rate, map { $_->{time} } @requests);
    cmp_ok($fullest, '<=', $burst + $rate * $stub->slack,
        sprintf '%s: of %d requests at most %.1f more than %g/s', $what, scalar @requests, $fullest, $rate);
    return;
}

# The most requests that were open at a time.
sub most_open
{
    my (@requests) = @_;
    my ($open, $most) = (0, 0);
    # At the same time the one that ends comes first.
    for my $change (sort { $a->[0] <=> $b->[0] || $a->[1] <=> $b->[1] }
        map { ([ $_->{time}, 1 ], defined $_->{ended} ? [ $_->{ended}, -1 ] : ()) } @requests)
    {
        $open += $change->[1];
        $most = $open if $open > $most;
    }
    return $most;
}

named_channel('mark');
my $account = q{substr('abc', 1 + g % 3, 1)};

# ---- rates: all of these at a time

named_channel('one', accounts => [ 'a', 'b', 'c' ]);
limit('one', amount => 60, period => '1 s', burst => 5);
named_channel('two', accounts => [ 'a', 'b', 'c' ]);
limit('two', amount => 120, period => '2 s', burst => 10);
limit('two', amount => 2400, period => '1 min', burst => 2, bucket => '{account}');
answer('again/', { status => 503 });
named_channel('again', max_attempts => 20);
limit('again', amount => 50, period => '1 s', burst => 3);
insert('one', 120, account => $account);
insert('two', 120, account => $account);
insert('again', 4);
wait_for_delivered($_, 120) for 'one', 'two';
wait_for_rows($node, q{SELECT count(*) FROM accord.dead_letter WHERE channel = 'again'}, 4);
# As many a second by event as for the channel: counted when the first of both has all.
named_channel($_) for 'whole', 'part';
limit('whole', amount => 50, period => '1 s');
limit('part', amount => 50, period => '1 s', bucket => '{payload.device}');
insert($_, 80, payload => q{jsonb_build_object('n', g, 'device', 'd')}) for 'part', 'whole';
poll_until(sub { requests('whole/') == 80 || requests('part/') == 80 }, 'one of both');
cmp_ok(scalar(requests('part/')), '>=', 60, 'a bucket by event lets go as many as one for the channel');
cmp_ok(scalar(requests('whole/')), '>=', 60, '... and no more');
holds('... the bound', 50, 1, requests('part/'));
holds('one bucket for a channel with three accounts', 60, 5, requests('one/'));
is(tally('one/(.)/'), 'a:40 b:40 c:40', '... all of whose events arrive');
holds('two limits: that of the channel', 60, 10, requests('two/'));
holds("... and that of account $_", 40, 2, requests("two/$_/")) for 'a', 'b', 'c';
is(scalar(requests('again/')), 80, 'as many attempts as max_attempts');
holds('... and every one is a request', 50, 3, requests('again/'));

# ---- buckets: exactly their bursts

named_channel('burst');
limit('burst', burst => 5);
insert('burst', 12);
comes_to('(burst)', 'burst:5', 'the burst, and no more');

named_channel('both', accounts => [ 'a', 'b', 'c' ]);
limit('both', burst => 7);
limit('both', burst => 3, bucket => '{account}');
insert('both', 30, account => q{substr('aaabc', 1 + g % 5, 1)});
comes_to('(both)', 'both:7', 'two limits: the tighter one for all together');
unlike(tally('both/(.)'), qr/:[4-9]/, '... and for each account');

named_channel('property', accounts => [ map { { name => $_->[0], vars => qq({"property": "$_->[1]"}) } }
      ([ 'a', 'P1' ], [ 'b', 'P1' ], [ 'c', 'P2' ]) ]);
limit('property', burst => 4, bucket => '{vars.property}');
insert('property', 30, account => $account);
comes_to('property/([ab]|c)', 'a:2 b:2 c:4', 'a bucket that two accounts share, another for the third');

# The events of device 1 come first, and are most of them.
named_channel('device', accounts => ['a'], account_max_in_flight => 2);
limit('device', burst => 3, bucket => '{payload.device}');
insert('device', 60, account => q{'a'}, key => q{'d' || greatest(1, g - 54) || 'k' || g % 2},
    payload => q{jsonb_build_object('n', g, 'device', 'd' || greatest(1, g - 54))});
comes_to('device/a/(d\d)', 'd1:3 d2:1 d3:1 d4:1 d5:1 d6:1', 'a full device does not hold back another of its account');
insert('device', 6, account => q{'a'}, key => q{'d2'}, payload => q{jsonb_build_object('n', g, 'device', 'd2')});
comes_to('device/a/(d\d)', 'd1:3 d2:3 d3:1 d4:1 d5:1 d6:1', '... each has its own');

# More of them than are held in memory.
named_channel('crowd', accounts => ['a']);
limit('crowd', burst => 2, bucket => '{payload.device}');
insert('crowd', 3000, account => q{'a'}, payload => q{jsonb_build_object('n', g, 'device', g / 3000)});
eval { poll_until(sub { requests('crowd/') == 3 }, 'the other device', 30) };
is(join(' ', map { $_->{path} =~ m{/(\d+)$} } requests('crowd/')), '1 2 3000', '... however many wait for it');

named_channel('key');
limit('key', burst => 2, bucket => '{key}');
insert('key', 20, key => q{'k' || g % 3});
comes_to('key/(k.)/', 'k0:2 k1:2 k2:2', 'a bucket for each key');
is(join(' ', map { $_->{path} } requests('key/k1')), '/key/k1/1 /key/k1/4', '... whose order is kept');

answer('stubborn/', { status => 503 });
named_channel('stubborn');
limit('stubborn', burst => 4);
insert('stubborn', 1);
comes_to('(stubborn)', 'stubborn:4', 'retries are requests');
wait_for_rows($node, q{SELECT state, attempts FROM accord.backlog WHERE channel = 'stubborn'}, 'retrying|4');

# ---- changes

answer('stubborn/', {});
sql(q{UPDATE accord.rate_limit SET amount = 1000, period = '1 s' WHERE channel = 'stubborn'});
wait_for_delivered('stubborn', 1);
pass('a limit that is raised lets go at once');
sql(q{DELETE FROM accord.rate_limit WHERE channel = 'burst'});
wait_for_delivered('burst', 12);
pass('... so does one that is deleted');
sql(q{UPDATE accord.rate_limit SET enabled = false WHERE channel = 'property'});
wait_for_delivered('property', 30);
pass('... or disabled');
sql(q{UPDATE accord.rate_limit SET bucket = '{payload.n}' WHERE channel = 'key'});
wait_for_delivered('key', 20);
pass('... or divided');

# Lowered while it lets go 500 a second.
named_channel('lower', accounts => [ 'a', 'b', 'c' ]);
limit('lower', amount => 500, period => '1 s');
insert('lower', 10000, account => $account);
poll_until(sub { requests('lower/') > 20 }, 'some requests');
sql(q{UPDATE accord.rate_limit SET amount = 1, period = '1 day', burst = 3 WHERE channel = 'lower'});
mark();
my $before = requests('lower/');
insert('mark', 100, payload => q{jsonb_build_object('n', 1000 + g)});
wait_for_delivered('mark', 100 + $marks);
mark();
cmp_ok(requests('lower/') - $before, '<=', 3, 'a limit that is lowered holds at once');
limit('lower', burst => 1);
mark();
$before = requests('lower/');
sql(q{UPDATE accord.rate_limit SET amount = 10000, period = '1 s' WHERE channel = 'lower' AND burst = 3});
mark();
cmp_ok(requests('lower/') - $before, '<=', 1, '... as does a new one, when the other is raised');

# ---- in flight

answer('flight/', { gate => 'flight' });
named_channel('flight', max_in_flight => 5, account_max_in_flight => 3,
    accounts => [ 'a', 'b', { name => 'c', max_in_flight => 1 }, { name => 'd', max_in_flight => 4 } ]);
insert('flight', 20, account => q{'c'});
comes_to('flight/(.)', 'c:1', 'in flight: an account with its own limit');
insert('flight', 20, account => q{'a'});
comes_to('flight/(.)', 'a:3 c:1', '... with that of its channel for each');
insert('flight', 20, account => q{'b'});
comes_to('flight/(.)', 'a:3 b:1 c:1', '... all together');
sql(q{UPDATE accord.channel SET max_in_flight = 8 WHERE name = 'flight'});
insert('flight', 20, account => q{'d'});
comes_to('(flight)', 'flight:8', '... raised');
sql(q{UPDATE accord.channel SET max_in_flight = 100 WHERE name = 'flight'});
comes_to('flight/(.)', 'a:3 b:3 c:1 d:4', '... so that each has its own');
sql(q{UPDATE accord.channel SET account_max_in_flight = NULL WHERE name = 'flight'});
comes_to('flight/(.)', 'a:20 b:20 c:1 d:4', '... or that of the channel when there is none');
sql(q{UPDATE accord.channel SET max_in_flight = 6, account_max_in_flight = 2 WHERE name = 'flight'});
$before = requests('flight/');
answer('flight/', { delay_ms => 5 });
$stub->open_gate('flight');
insert('flight', 40, account => q{substr('abcd', 1 + g % 4, 1)});
wait_for_delivered('flight', 120);
is(tally('flight/(.)'), 'a:30 b:30 c:30 d:30', '... opened: all of them arrive');
my @later = (requests('flight/'))[ $before .. 119 ];
cmp_ok(most_open(@later), '<=', 6, '... no more at a time than was set meanwhile: all together');
cmp_ok(most_open(grep { $_->{path} =~ m{^/flight/a/} } @later), '<=', 2, '... an account');
cmp_ok(most_open(grep { $_->{path} =~ m{^/flight/c/} } @later), '<=', 1, '... with its own limit');

# ---- 429

for my $scope ('account', 'channel')
{
    answer("$scope/a/", { status => 429, headers => { 'Retry-After' => 3600 } });
    named_channel($scope, accounts => [ 'a', 'b' ], throttle_scope => $scope, account_max_in_flight => 1);
    insert($scope, 6, account => q{'a'});
    wait_for_rows($node, "SELECT outcome FROM accord.attempt_log WHERE channel = '$scope'", 'retry_after');
    insert($scope, 6, account => q{'b'});
    comes_to("$scope/(.)", $scope eq 'account' ? 'a:1 b:6' : 'a:1', "429 with Retry-After pauses the $scope");
    is(sql("SELECT account, until > recorded_at + interval '3500 s' FROM accord.endpoint_log
        WHERE channel = '$scope' AND state = 'throttled' ORDER BY account"), $scope eq 'account' ? 'a|t' : '|t',
        '... and is recorded');
    wait_for_rows($node, "SELECT DISTINCT state FROM accord.status WHERE channel = '$scope' AND account = 'a'",
        'throttled');
    answer("$scope/a/", {});
    sql("SELECT accord.resume('$scope'" . ($scope eq 'account' ? q{, 'a')} : ')'));
    comes_to("$scope/(.)", 'a:7 b:6', '... until somebody resumes it');
}

# ---- hints

my @hints = ([ 'x', 'x' ], [ 'epoch', 'epoch' ], [ 'plain', 'plain' ], [ 'draft', 'draft' ], [ 'each', 'x' ],
    [ 'shared', 'draft', throttle_scope => 'channel' ], [ 'deaf', 'x', heed_hints => 'false' ]);
for my $hints (@hints)
{
    my ($name, $style, @column) = @$hints;
    my $path = $name eq 'each' ? 'each/(.)/' : "$name/";
    answer($path, { limit => { amount => 20, period => 1, hints => $style, retry_after => 'seconds' } });
    named_channel($name, max_in_flight => 4, accounts => $name =~ /each|shared/ ? [ 'a', 'b' ] : [ 'a' ], @column);
    insert($name, 50, account => $name =~ /each|shared/ ? q{substr('ab', 1 + g % 2, 1)} : q{'a'});
}
answer('early/a', { headers => { 'X-RateLimit-Remaining' => 0, 'X-RateLimit-Reset' => 3600 } });
answer('early/b', { headers => { 'X-RateLimit-Remaining' => 0 } });
answer('early/c', { headers => { 'RateLimit' => '"hour";r=900;t=3600, "second";r=0;t=1800' } });
named_channel('early', account_max_in_flight => 1, accounts => [ 'a', 'b', 'c' ]);
insert('early', 15, account => $account);
comes_to('early/(.)', 'a:1 b:5 c:1', 'hints: nothing remains until a reset; without a reset it says nothing');

# A rule is as good as new whenever another is added, so these come last, and together.
answer('date/', { limit => { amount => 3, period => 1.5, retry_after => 'date' } });
answer('after/', { status => 429, headers => { 'Retry-After' => 1 } }, times => 3);
answer('backoff/', { status => 429 }, times => 5);
named_channel('date', max_attempts => 1, max_in_flight => 1, heed_hints => 'false');
named_channel('after', max_attempts => 1, max_in_flight => 1, ordering => 'none');
named_channel('backoff', max_attempts => 1, max_in_flight => 1, retry_base => '100 ms', retry_cap => '400 ms');
insert('date', 8, key => q{'k' || g % 2});
insert('after', 5);
insert('backoff', 5, key => q{'k'});
wait_for_delivered('after', 5);
wait_for_delivered('backoff', 5);
wait_for_delivered('date', 8);
my @after = requests('after/');
is(join(' ', map { $_->{answered} } @after), '429 429 429 200 200 200 200 200', '429: one at a time, until it is over');
my @gaps = map { $after[ $_ + 1 ]{time} - $after[$_]{ended} } 0 .. 2;
is(scalar(grep { $_ < 1 } @gaps), 0, '... not before Retry-After') or diag("@gaps");
is(sql(q{SELECT DISTINCT attempt FROM accord.attempt_log WHERE channel = 'after' AND outcome = 'delivered'}), '1',
    '... and no attempt is counted');
my @backoff = requests('backoff/');
is(join(' ', map { $_->{path} =~ /(\d+)$/ } @backoff), '1 1 1 1 1 1 2 3 4 5', '429 without Retry-After: order is kept');
@gaps = map { $backoff[ $_ + 1 ]{time} - $backoff[$_]{ended} } 0 .. 4;
my @least = (0.05, 0.1, 0.2, 0.2, 0.2);
is(scalar(grep { $gaps[$_] < $least[$_] } 0 .. 4), 0, '... and the pauses grow') or diag("@gaps");
cmp_ok(scalar(grep { $_->{answered} == 429 } requests('date/')), '<=', 2, 'Retry-After may be a date');
is(join(' ', map { $_->{answered} == 200 && $_->{path} =~ m{/k0/(\d+)$} ? $1 : () } requests('date/')), '2 4 6 8',
    '... order is kept');
for my $hints (@hints)
{
    my ($name, $style) = @$hints;
    wait_for_delivered($name, 50);
    my $refused = grep { $_->{answered} == 429 } requests("$name/");
    if ($name eq 'deaf')
    {
        cmp_ok($refused, '>', 0, "hints not heeded: $refused of 50 are refused");
    }
    else
    {
        is($refused, 0, "hints ($name) heeded: of 50, 20 in a second, none is refused");
    }
}
is(sql(q{SELECT count(*) FROM accord.dead_letter WHERE channel <> 'again'}), '0', 'no dead letters');
is(dispatcher($node), $dispatcher, 'the dispatcher is the same process');

# ---- what cannot be

for my $case (
    [ rate_limit => { amount => 0 }, qr/23514|22023/ ],
    [ rate_limit => { amount => -5 }, qr/23514|22023/ ],
    [ rate_limit => { period => '-1 s' }, qr/23514|22023/ ],
    [ rate_limit => { period => '0' }, qr/23514|22023/ ],
    [ rate_limit => { burst => 0 }, qr/23514|22023/ ],
    [ rate_limit => { bucket => '{account' }, qr/22023: .*HINT: /s ],
    [ rate_limit => { bucket => '{!x}' }, qr/22023: .*HINT: /s ],
    [ rate_limit => { bucket => '{nonsense}' }, qr/22023: .*HINT: /s ],
    [ rate_limit => { bucket => '{varz.property}' }, qr/22023: .*HINT: /s ],
    [ rate_limit => { channel => 'nobody' }, qr/23503/ ],
    [ channel => { max_in_flight => 0 }, qr/23514|22023/ ],
    [ channel => { account_max_in_flight => 0 }, qr/23514|22023/ ],
    [ channel => { throttle_scope => 'world' }, qr/23514|22023/ ],
    [ account => { max_in_flight => 0 }, qr/23514|22023/ ],
    [ account => { weight => 0 }, qr/23514|22023/ ],
    [ account => { weight => 101 }, qr/23514|22023/ ])
{
    my ($table, $wrong, $error) = @$case;
    my %column = $table eq 'channel' ? (name => 'bad', base_url => $stub->url)
      : $table eq 'account' ? (channel => 'mark', name => 'bad') : (channel => 'mark', amount => 1, period => '1 s');
    my (undef, undef, $stderr) =
      $node->psql('postgres', "\\set VERBOSITY verbose\n" . insert_sql($table, %column, %$wrong));
    like($stderr, $error, "refused: $table with " . join ' ', %$wrong);
}

# ---- a crash in the middle

named_channel('crash', accounts => [ 'a', 'b', 'c' ]);
limit('crash', amount => 60, period => '1 s', burst => 5);
insert('crash', 150, account => $account, key => q{'k' || g % 9});
poll_until(sub { requests('crash/') >= 60 }, 'some requests');
crash_server($node);
my $started = sql('SELECT extract(epoch FROM pg_postmaster_start_time())');
wait_for_delivered('crash', 150);
my @crash = requests('crash/');
my ($first) = grep { $crash[$_]{time} > $started } 0 .. $#crash;
holds('until a crash', 60, 5, @crash[ 0 .. $first - 1 ]);
holds('... and after it', 60, 5, @crash[ $first .. $#crash ]);
cmp_ok(scalar @crash - 150, '<=', 2 * 16, '... what was under way may be repeated');
my ($lost, $wrong) = (0, 0);
for my $rest (0 .. 8)
{
    my ($last, %seen) = (0);
    for my $n (map { m{/k$rest/(\d+)$} ? $1 : () } map { $_->{path} } @crash)
    {
        $wrong++ if $n < $last;
        $last = $n;
        $seen{$n} = 1;
    }
    $lost += grep { $_ % 9 == $rest && !$seen{$_} } 1 .. 150;
}
is("$lost $wrong", '0 0', '... nothing is lost, and each key is in order');

# ---- several dispatchers

sql(q{ALTER SYSTEM SET accord.dispatchers = 4});
sql(q{SELECT pg_reload_conf()});
poll_until(sub { workers($node, 'dispatcher') == 4 }, 'four dispatchers');
named_channel('spread', max_in_flight => 3, accounts => [ 'a' .. 'h' ]);
limit('spread', amount => 80, period => '1 s', burst => 3);
answer('spread/', { delay_ms => 2 });
insert('spread', 120, account => q{chr(97 + g % 8)});
wait_for_delivered('spread', 120);
holds('with four dispatchers: a channel and its accounts have one', 80, 3, requests('spread/'));
cmp_ok(most_open(requests('spread/')), '<=', 3, '... in flight, too');

$node->stop;
done_testing();
