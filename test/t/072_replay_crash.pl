# Replays survive: a dispatcher or the server killed in the middle, another number of dispatchers, housekeeping of the rings,
# a dump and restore. Nothing of the selection is lost, each key keeps its order, and what is sent twice was under way.
use strict;
use warnings FATAL => 'all';

use Accord;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', <<'CONF');
restart_after_crash = on
accord.restart_interval = '100ms'
accord.dispatch_memory = '1MB'
accord.log_retention = 0
log_statement = none
CONF
my $stub = start_stub();
send_everything($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub start { my ($arguments) = @_; return sql("SELECT accord.replay($arguments)"); }

my $seen = 0;
sub news
{
    my @new = $stub->log($seen);
    $seen += @new;
    return @new;
}

sub wait_for_state
{
    my ($job, $state) = @_;
    wait_for_rows($node, "SELECT state FROM accord.progress WHERE job = $job", $state);
    return;
}

# So many events of so many keys, delivered; their payloads are numbers from 1.
my $in_flight = 4;
sub prepare
{
    my ($name, $n, $keys) = @_;
    channel($node, $stub, $name, max_in_flight => $in_flight, retry_base => '10 ms', retry_cap => '20 ms',
        route => { topic => $name, path => '/{topic}/{key}' });
    sql("INSERT INTO accord.outbox (topic, key, payload) SELECT '$name', 'k' || g % $keys, to_jsonb(g)
        FROM generate_series(1, $n) g");
    $stub->wait_for_count($seen + $n);
    wait_for_delivery($node);
    news();
    return;
}

# The bodies of each path, in order of arrival, without what came again (which counts), and whether each is in order.
sub told
{
    my (%told, %had, $again, $inverted);
    for my $request (news())
    {
        next if !defined $request->{ended};
        if ($had{ $request->{path} }{ $request->{body} }++) { $again++; next; }
        $inverted++ if @{ $told{ $request->{path} } || [] } && $told{ $request->{path} }[-1] > $request->{body};
        push @{ $told{ $request->{path} } }, $request->{body};
    }
    return (\%told, $again || 0, $inverted || 0);
}

# ---- killed ----------------------------------------------------------------------------------------------------------

prepare('kill', 300, 30);
my $job = start(q{'kill', mode => 'rekey', rate => 150});
for my $round (1 .. 4)
{
    $stub->wait_for_count($seen + 50 * $round);
    if ($round % 2) { kill 'KILL', dispatcher($node); }
    else { crash_server($node); }
    # the postmaster starts all over when one of its processes was killed
    $node->poll_query_until('postgres', 'SELECT true') or die 'the server did not come back';
}
wait_for_state($job, 'done');
my @requests = $stub->log($seen);
my %key = map { ("$_->{path} $_->{body}" => $_->{headers}{'idempotency-key'}) } @requests;
is(scalar(grep { $key{"$_->{path} $_->{body}"} ne $_->{headers}{'idempotency-key'} } @requests), 0,
    'after a crash a request is repeated under the same new key');
my ($told, $again, $inverted) = told();
is(join(',', map { scalar @{ $told->{"/kill/k$_"} || [] } } 0 .. 29), join(',', (10) x 30), 'killed four times: everything is sent');
is($inverted, 0, '... in the order of each key');
cmp_ok($again, '<=', 4 * 2 * $in_flight, "... and what was under way at most again ($again)");
wait_for_rows($node, "SELECT delivered, done = total FROM accord.progress WHERE job = $job", '300|t');

# What is retried at a crash goes on, and holds its key.
prepare('retry', 20, 10);
sql(q{UPDATE accord.channel SET max_attempts = 10000 WHERE name = 'retry'});
$stub->script([ { match => { path_regex => '^/retry/k[0-4]$' }, do => { status => 503 } } ]);
$job = start(q{'retry', mode => 'rekey'});
wait_for_rows($node, "SELECT count(*) >= 5 FROM accord.backlog WHERE replay = $job AND state = 'retrying'", 't');
crash_server($node);
$stub->script([]);
wait_for_state($job, 'done');
my @good = grep { 1 } $stub->log($seen);
%key = ();
$key{ $_->{headers}{'idempotency-key'} }++ for @good;
is(scalar keys %key, 20, 'what was retried at a crash is retried under its new key');
my %order;
$order{ $_->{path} } .= "$_->{body} " for @good;
is(scalar(grep { $order{"/retry/k$_"} =~ /^(\d+ )(?:\1)*(\d+ )(?:\2)*$/ } 0 .. 9), 10, '... and holds the next of its key')
  or diag explain \%order;
news();
wait_for_rows($node, "SELECT delivered, failed FROM accord.progress WHERE job = $job", '20|0');

# ---- more dispatchers ------------------------------------------------------------------------------------------------

prepare('many' . $_, 40, 40) for 1 .. 3;
my @jobs = map { start("'many$_', rate => 60") } 1 .. 3;
$stub->wait_for_count($seen + 30);
$node->append_conf('postgresql.conf', 'accord.dispatchers = 3');
$node->reload;
poll_until(sub { workers($node, 'dispatcher', 'postgres') == 3 }, 'three dispatchers');
$stub->wait_for_count($seen + 70);
$node->append_conf('postgresql.conf', 'accord.dispatchers = 1');
$node->reload;
wait_for_state($_, 'done') for @jobs;
($told) = told();
is(scalar keys %$told, 120, 'with another number of dispatchers replays go on');

# ---- states in passes ------------------------------------------------------------------------------------------------

# More kinds than fit into memory at once, of which few are selected; killed in several places.
channel($node, $stub, 'silent', route => { topic => 'nothing' });
sql(q{INSERT INTO accord.outbox (topic, key, payload) SELECT CASE WHEN g % 1000 = 0 THEN 'told' ELSE 'filler' END,
    'k' || g % 50000, to_jsonb(g) FROM generate_series(1, 100000) g});
# a new route would take what has not been read yet
wait_for_rows($node, 'SELECT last_value >= (SELECT max(seq) FROM accord.commit_log) FROM accord.position_0', 't');
channel($node, $stub, 'kinds', max_in_flight => $in_flight, route => { path => '/kinds/{key}', coalesce => '{key}' });
$job = start(q{'kinds', mode => 'state', topic => 'told', rate => 50});
for my $round (1 .. 3)
{
    $stub->wait_for_count($seen + 12 * $round);
    kill_dispatcher($node);
}
wait_for_state($job, 'done');
cmp_ok(sql("SELECT count(DISTINCT pass_low) FROM accord.replay_log WHERE job = $job"), '>', 1, 'several passes over the log');
my @kinds = news();
my %kinds = map { $_->{path} => $_->{body} } @kinds;
is(scalar keys %kinds, 50, '... find the latest of each key');
is(scalar(grep { $kinds{$_} <= 50000 } keys %kinds), 0, '... and no other');
cmp_ok(scalar @kinds, '<=', 50 + 3 * 2 * $in_flight, '... once, but for what was under way');

# ---- housekeeping ----------------------------------------------------------------------------------------------------

prepare('ring', 30, 30);
$stub->script([ { match => { path_regex => '^/ring', header => { 'Accord-Replay' => '.' } }, do => { gate => 'ring' } } ]);
$job = start(q{'ring', topic => 'ring'});
$stub->wait_for_count($seen + 2);
my $slot = sql(q{SELECT DISTINCT slot FROM accord.event_log WHERE topic = 'ring'});
for my $i (1 .. 10)
{
    events($node, { topic => 'tick', key => $i });
    sql('SELECT accord.turn_rings(true)');
}
is(sql(q{SELECT count(*) FROM accord.event_log WHERE topic = 'ring'}), 30, 'what a replay still needs stays in the log');
$stub->open_gate('ring');
$stub->script([]);
wait_for_state($job, 'done');
is(scalar(grep { $_->{path} =~ m{^/ring} } news()), 30, '... and is sent');
poll_until(
    sub {
        events($node, { topic => 'tick', key => 'again' });
        sql('SELECT accord.turn_rings(true)');
        sql(q{SELECT count(*) FROM accord.event_log WHERE topic = 'ring'}) == 0;
    },
    'the slot to be emptied');
pass('... and goes when it is done');
my (undef, undef, $error) = $node->psql('postgres', q{SELECT accord.replay('ring', since => '1')});
like($error, qr/the log does not go back to "1" any more.*HINT/s, 'a replay of what is gone says so at once');
is(sql("SELECT state, delivered FROM accord.progress WHERE job = $job"), 'done|30', 'how replays ended is kept');

# ---- dump and restore ------------------------------------------------------------------------------------------------

$node->append_conf('postgresql.conf', 'accord.log_retention = 43200');
$node->reload;
prepare('dump', 40, 40);
$stub->script([ { match => { path_regex => '^/dump', header => { 'Accord-Replay' => '.' } }, do => { gate => 'dump' } } ]);
$job = start(q{'dump', topic => 'dump'});
$stub->wait_for_count($seen + 2);
wait_for_state($job, 'running');
my $file = $node->basedir . '/dump.sql';
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok([ 'pg_dump', '-f', $file, $node->connstr('postgres') ], 'pg_dump with a replay under way');
sql("SELECT accord.cancel_replay($job)");
$stub->open_gate('dump');
wait_for_rows($node, "SELECT finished_at IS NOT NULL FROM accord.progress WHERE job = $job", 't');
news();
$stub->script([]);
$node->command_ok([ 'psql', '-qXf', $file, '-v', 'ON_ERROR_STOP=1', $node->connstr('copy') ], '... can be restored');
poll_until(sub { workers($node, 'dispatcher', 'copy') }, 'a dispatcher of the copy');
is($stub->count, $seen, '... where it is silent');
is($node->safe_psql('copy', "SELECT state FROM accord.progress WHERE job = $job"), 'running', '... and not forgotten');
$node->safe_psql('copy', 'SELECT accord.adopt()');
$node->poll_query_until('copy', "SELECT state = 'done' FROM accord.progress WHERE job = $job")
  or die "the replay of the copy did not end\n";
is(scalar(grep { $_->{path} =~ m{^/dump} } news()), 40, '... until the copy is adopted');

$node->stop;
done_testing();
