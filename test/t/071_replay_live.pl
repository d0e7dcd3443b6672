# Replay beside live events: live ones go first and are never kept waiting by a replay that is slow, hangs or fails; of one
# key there is one request at a time; a state is never followed by an older one; rates hold; pauses, cancelling.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', "log_statement = none\n");
my $stub = start_stub('--pulse');
send_everything($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub start { my ($arguments) = @_; return sql("SELECT accord.replay($arguments)"); }
sub is_replay { my ($request) = @_; return defined $request->{headers}{'accord-replay'}; }

sub wait_for_state
{
    my ($job, $state) = @_;
    wait_for_rows($node, "SELECT state FROM accord.progress WHERE job = $job", $state);
    return;
}

# A channel and its topic, with so many events already delivered, of as many keys.
my $seen = 0;
sub prepare
{
    my ($name, $n, %column) = @_;
    channel($node, $stub, $name, retry_base => '10 ms', retry_cap => '20 ms', %column,
        route => { topic => $name, path => '/{topic}/{key}' });
    sql("INSERT INTO accord.outbox (topic, key, payload) SELECT '$name', 'k' || g, to_jsonb(g)
        FROM generate_series(1, $n) g") if $n;
    $stub->wait_for_count($seen + $n);
    wait_for_delivery($node);
    return news();
}

sub news
{
    my @new = $stub->log($seen);
    $seen += @new;
    return @new;
}

# ---- a replay that hangs ---------------------------------------------------------------------------------------------

prepare('hang', 12, max_in_flight => 4);
$stub->script([ { match => { path_regex => '^/hang', header => { 'Accord-Replay' => '.' } }, do => { gate => 'hang' } } ]);
my $job = start(q{'hang'});
$stub->wait_for_count($seen + 2);
events($node, { topic => 'hang', key => 'k1', payload => '"behind"' }, { topic => 'hang', key => 'new', payload => 1 },
    { topic => 'hang', key => 'new', payload => 2 });
poll_until(sub { grep { $_->{path} eq '/hang/new' && $_->{body} eq '2' && defined $_->{ended} } $stub->log($seen) },
    'live events of other keys');
my @so_far = $stub->log($seen);
is(scalar(grep { is_replay($_) } @so_far), 2, 'a replay that hangs uses half of the requests at a time');
is(scalar(grep { $_->{body} eq '"behind"' } @so_far), 0, '... a live event of its key waits: one request at a time');
wait_for_rows($node, q{SELECT replaying FROM accord.status WHERE channel = 'hang'}, '1');
$stub->open_gate('hang');
wait_for_state($job, 'done');
wait_for_delivery($node);
my @all = news();
is(scalar(grep { is_replay($_) } @all), 12, '... and then all of it goes');
my ($replayed) = grep { $_->{path} eq '/hang/k1' && is_replay($_) } @all;
my ($live) = grep { $_->{body} eq '"behind"' } @all;
cmp_ok($replayed->{ended}, '<=', $live->{time}, '... the live one of its key after its answer');
wait_for_rows($node, q{SELECT replaying FROM accord.status WHERE channel = 'hang'}, '0');

# ---- one that fails --------------------------------------------------------------------------------------------------

prepare('fail', 3);
$stub->script([ { match => { path_regex => '^/fail', header => { 'Accord-Replay' => '.' } }, do => { status => 503 } } ]);
sql(q{UPDATE accord.channel SET max_attempts = 1000 WHERE name = 'fail'});
$job = start(q{'fail'});
wait_for_rows($node, "SELECT count(*) FROM accord.backlog WHERE replay = $job AND state = 'retrying'", '3');
events($node, map { { topic => 'fail', key => "k$_", payload => '"live"' } } 1 .. 3);
poll_until(sub { 3 == grep { $_->{body} eq '"live"' && defined $_->{ended} } $stub->log($seen) },
    'live events of keys that are retried');
pass('live events do not wait for a replayed one of their key that is retried');

# ---- cancelling ------------------------------------------------------------------------------------------------------

is(sql("SELECT accord.cancel_replay($job, 'enough')"), 't', 'a replay that is running can be cancelled');
wait_for_state($job, 'cancelled');
wait_for_rows($node, "SELECT count(*) FROM accord.backlog WHERE replay = $job", '0');
wait_for_rows($node, "SELECT ended_by LIKE '%: enough' AND finished_at IS NOT NULL, delivered, passed = total FROM accord.progress
    WHERE job = $job", 't|0|t');
is(sql("SELECT count(*) FROM accord.backlog_log WHERE replay = $job AND state = 'discarded'"), 3,
    'what it retried is discarded');
news();
is(sql("SELECT accord.cancel_replay($job)"), 'f', '... once');

prepare('stop', 500);
$stub->script([ { match => { header => { 'Accord-Replay' => '.' } }, do => { gate => 'stop' } } ]);
$job = start(q{'stop'});
$stub->wait_for_count($seen + 8);
sql("SELECT accord.cancel_replay($job)");
$stub->open_gate('stop');
wait_for_rows($node, "SELECT finished_at IS NOT NULL FROM accord.progress WHERE job = $job", 't');
is(scalar(news()), 8, 'what is in flight when a replay is cancelled ends, nothing more goes');
is(sql("SELECT delivered, done < total FROM accord.progress WHERE job = $job"), '8|t', '... and is counted');
events($node, { topic => 'stop', key => 'k400', payload => 0 });
$stub->wait_for_count($seen + 1);
is((news())[0]{path}, '/stop/k400', '... and keys are free');

prepare('gone', 20);
$stub->script([ { match => { header => { 'Accord-Replay' => '.' } }, do => { delay_ms => 20 } } ]);
$job = start(q{'gone', rate => 20});
$stub->wait_for_count($seen + 1);
sql(q{DELETE FROM accord.channel WHERE name = 'gone'});
wait_for_rows($node, "SELECT state, ended_by FROM accord.progress WHERE job = $job", 'failed|its channel was removed');
$stub->script([]);

# ---- rates and pauses ------------------------------------------------------------------------------------------------

prepare('rate', 60);
$job = start(q{'rate', rate => 40});
$stub->wait_for_count($seen + 5);
events($node, { topic => 'rate', key => 'k60', payload => '"live"' });
wait_for_state($job, 'done');
my @arrived = news();
my ($position) = grep { $arrived[$_]{body} eq '"live"' } 0 .. $#arrived;
cmp_ok($position, '<', $#arrived, 'a live event arrives while a slow replay is going');
cmp_ok(fullest(40, map { $_->{time} } grep { is_replay($_) } @arrived), '<=', 1 + 40 * $stub->slack,
    '... which never goes faster than its rate');

prepare('pause', 30);
$job = start(q{'pause', rate => 50});
$stub->wait_for_count($seen + 3);
sql(q{SELECT accord.pause('pause')});
wait_for_state($job, 'paused');
wait_for_rows($node, q{SELECT in_flight FROM accord.status WHERE channel = 'pause'}, '0');
my $before = $stub->count;
events($node, { topic => 'rate', key => 'tick', payload => 1 });
$stub->wait_for_count($before + 1);
is($stub->count, $before + 1, 'a paused channel gets nothing of a replay');
sql(q{SELECT accord.resume('pause')});
wait_for_state($job, 'done');
is(scalar(grep { is_replay($_) } news()), 30, '... and all of it afterwards');

# ---- limits and breakers ---------------------------------------------------------------------------------------------

prepare('limit', 20);
insert_row($node, 'rate_limit', channel => 'limit', amount => 50, period => '1 s', burst => 1);
$job = start(q{'limit'});
wait_for_state($job, 'done');
cmp_ok(fullest(50, map { $_->{time} } news()), '<=', 1 + 50 * $stub->slack, q{the channel's own limits hold});

prepare('broken', 12, breaker_failures => 3, breaker_cooldown => '50 ms', breaker_cap => '50 ms', max_attempts => 1000);
$stub->script([ { match => { path_regex => '^/broken' }, do => { status => 500 } } ]);
$job = start(q{'broken'});
wait_for_rows($node, q{SELECT count(*) > 2 FROM accord.endpoint_log WHERE channel = 'broken' AND state = 'half_open'}, 't');
$stub->script([]);
wait_for_state($job, 'done');
is(sql("SELECT delivered FROM accord.progress WHERE job = $job"), 12, 'a replay waits for a circuit breaker, and probes');
news();

# ---- states, while they change ---------------------------------------------------------------------------------------

prepare('state', 0);
sql(q{INSERT INTO accord.outbox (topic, key, payload) SELECT 'state', 'k' || g % 40, to_jsonb(g)
    FROM generate_series(1, 400) g});
wait_for_delivery($node);
news();
$stub->script([ { match => { header => { 'Accord-Replay' => '.' }, path_regex => '/state/k\d*[13579]$' }, do => { status => 503 } },
        { match => { header => { 'Accord-Replay' => '.' }, times => 20 }, do => { delay_ms => 30 } } ]);
sql(q{UPDATE accord.channel SET max_attempts = 1000 WHERE name = 'state'});
my @jobs = (start(q{'state', mode => 'state', rate => 80}), start(q{'state', mode => 'state'}));
# every key but two is changed while the replays go
for my $round (1 .. 12)
{
    sql("INSERT INTO accord.outbox (topic, key, payload) SELECT 'state', 'k' || g, to_jsonb(1000 * $round + g)
        FROM generate_series(0, 37) g WHERE g % 12 = $round - 1 OR g % 5 = $round % 5");
}
wait_for_rows($node, q{SELECT count(*) FROM accord.owed() WHERE state = 'queued'}, '0');
$stub->script([]);
wait_for_state($_, 'done') for @jobs;
my (%highest, %last, $inverted);
for my $request (news())
{
    my ($seq, $ord) = split /\./, $request->{headers}{'accord-sequence'};
    my $place = sprintf '%012d.%06d', $seq, $ord;
    $inverted .= "$request->{path}: $place after $highest{$request->{path}}\n"
      if defined $highest{$request->{path}} && $place lt $highest{$request->{path}};
    $highest{$request->{path}} = $place if !defined $highest{$request->{path}} || $place gt $highest{$request->{path}};
    $last{$request->{path}} = $request->{body};
}
is($inverted, undef, 'state: no state comes after a newer one of its key, whatever fails and changes meanwhile');
is(scalar keys %last, 40, '... and all keys are told');
is($last{'/state/k39'} . ' ' . $last{'/state/k38'}, '399 398', '... those that did not change, too');
is(sql("SELECT count(*) FROM accord.progress WHERE done = total AND delivered + passed = done
    AND job IN ($jobs[0], $jobs[1])"), 2, '... and all events are accounted for')
  or diag sql('SELECT * FROM accord.progress');

$node->stop;
done_testing();
