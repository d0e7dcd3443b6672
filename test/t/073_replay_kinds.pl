# Replay of what is not sent one at a time, at once and freely: batches, also with an event in them that is refused;
# commands, under the key they had or a new one, held when nobody knows what became of them; events for later.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP qw(decode_json);
use Test::More;

my $node = new_node('main', "log_statement = none\n");
my $stub = start_stub();
send_everything($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub start { my ($arguments) = @_; return sql("SELECT accord.replay($arguments)"); }

sub wait_for_state
{
    my ($job, $state) = @_;
    wait_for_rows($node, "SELECT state FROM accord.progress WHERE job = $job", $state);
    return;
}

# Runs a replay to its end; returns its number.
sub replay
{
    my ($arguments) = @_;
    my $job = start($arguments);
    wait_for_state($job, 'done');
    return $job;
}

my $seen = 0;
sub news
{
    my @new = $stub->log($seen);
    $seen += @new;
    return @new;
}

sub progress
{
    my ($job) = @_;
    return sql("SELECT done, total, delivered, failed, passed FROM accord.progress WHERE job = $job");
}

# ---- batches ----------------------------------------------------------------------------------------------------------

channel($node, $stub, 'batch', retry_base => '10 ms', retry_cap => '20 ms', max_in_flight => 8,
    route => { topic => 'batch', path => '/batch', batch_size => 10, batch_wait => '50 ms' });
sql(q{INSERT INTO accord.outbox (topic, key, payload) SELECT 'batch', 'k' || g, to_jsonb(g) FROM generate_series(1, 45) g});
wait_for_delivery($node);
my @first = news();

sub numbers { return join ' ', sort { $a <=> $b } map { @{ decode_json($_->{body}) } } @_; }
sub tries { my ($n) = @_; return scalar grep { grep { $_ == $n } @{ decode_json($_->{body}) } } @_[ 1 .. $#_ ]; }

is(numbers(@first), join(' ', 1 .. 45), 'batches, live');
my $job = replay(q{'batch'});
my @again = news();
is(numbers(@again), join(' ', 1 .. 45), 'resend: each event once more');
cmp_ok(scalar(@again), '<', 45, '... several in a request');
is(scalar(grep { ($_->{headers}{'accord-replay'} // '') ne $job } @again), 0, '... marked as a replay');
is(scalar(grep { $_->{headers}{'accord-batch'} != @{ decode_json($_->{body}) } } @again), 0, '... which says how many');
is(progress($job), '45|45|45|0|0', '... each counted');
is(sql("SELECT count(DISTINCT event_id) FROM accord.attempt WHERE replay = $job AND outcome = 'delivered'"), 45,
    '... and recorded');

# The same events, the same key: what a batch's key is made of are the keys of its events.
my %live_key = map { $_->{body} => $_->{headers}{'idempotency-key'} } @first;
my @same = grep { exists $live_key{ $_->{body} } } @again;
is(scalar(grep { $live_key{ $_->{body} } ne $_->{headers}{'idempotency-key'} } @same), 0,
    'resend: a batch of the same events has the same key');
$job = replay(q{'batch', mode => 'rekey'});
my %old_key = map { $_->{headers}{'idempotency-key'} => 1 } @first, @again;
@again = news();
is(numbers(@again), join(' ', 1 .. 45), 'rekey: each event once more');
is(scalar(grep { $old_key{ $_->{headers}{'idempotency-key'} } } @again), 0, '... under other keys');
events($node, { topic => 'batch', key => 'k7', payload => 107 });
wait_for_delivery($node);
news();
$job = replay(q{'batch', mode => 'state'});
is(numbers(news()), join(' ', 1 .. 6, 8 .. 45, 107), 'state: the latest of each key');

# One poisoned event.
$stub->script([ { match => { body_regex => '(^|\D)13(\D|$)' }, do => { status => 400 } } ]);
$job = replay(q{'batch', until => (SELECT min(seq) FROM accord.timeline WHERE key = 'k13')::text});
is(progress($job), '45|45|44|1|0', 'an event that is refused is found, the others are delivered');
is(sql("SELECT key FROM accord.dead_letter"), 'k13', '... it is a dead letter');
$stub->script([]);
news();

# Live events and replayed ones do not share a request.
sql(q{UPDATE accord.route SET batch_wait = '300 ms' WHERE channel = 'batch'});
$job = start(q{'batch', key => 'k1'});
events($node, map { { topic => 'batch', key => "live$_", payload => 200 + $_ } } 1 .. 3);
wait_for_state($job, 'done');
wait_for_delivery($node);
for my $request (news())
{
    my $is_live = !grep { $_ < 200 } @{ decode_json($request->{body}) };
    is(defined $request->{headers}{'accord-replay'} ? 'replayed' : 'live', $is_live ? 'live' : 'replayed',
        "what is live and what is replayed go apart ($request->{body})");
}

# ---- commands ---------------------------------------------------------------------------------------------------------

sql(q{CREATE SEQUENCE body;
    CREATE FUNCTION command_body(e accord.event_log) RETURNS accord.http_request LANGUAGE sql VOLATILE AS $$
        SELECT ROW(NULL, NULL, NULL, 'body ' || nextval('public.body'))::accord.http_request $$});
# One that honours keys, and one that honours none.
channel($node, $stub, 'keyed', retry_base => '10 ms', retry_cap => '20 ms', max_attempts => 1000,
    route => { topic => 'command', path => '/keyed/{key}', mode => 'command', body_function => 'public.command_body' });
channel($node, $stub, 'bare', retry_base => '10 ms', retry_cap => '20 ms', max_attempts => 1000, idempotency_header => undef,
    route => { topic => 'command', path => '/bare/{key}', mode => 'command' });
my @ids = events($node, map { { topic => 'command', key => "c$_", payload => $_ } } 1 .. 3);
wait_for_delivery($node);
@first = news();
is(scalar(@first), 6, 'commands, live');

$job = replay(q{'keyed'});
@again = news();
is(join(' ', sort map { $_->{headers}{'idempotency-key'} } @again), join(' ', sort @ids), 'resend: commands under their keys');
is(progress($job) =~ s/^(\d+)\|\1\|//r, '3|0|' . (sql("SELECT total FROM accord.progress WHERE job = $job") - 3), '... each once');
$job = replay(q{'keyed', topic => 'command', mode => 'state'});
is(progress($job) . ' ' . scalar(news()), '3|3|0|0|3 0', 'state: commands are passed over');

# A command that is repeated is repeated to the letter, under the one new key.
$stub->script([ { match => { path_regex => '^/keyed/c2$', times => 3 }, do => { status => 503 } } ]);
$job = replay(q{'keyed', mode => 'rekey', key => 'c2'});
@again = news();
my %body = map { $_->{body} => 1 } @again;
my %key = map { $_->{headers}{'idempotency-key'} => 1 } @again;
is(scalar(@again) . ' ' . keys(%body) . ' ' . keys(%key), '4 1 1', 'rekey: a command is repeated to the letter under one key');
ok(!exists $key{ $ids[1] }, '... which is a new one');

# Nobody knows what became of it: it is held, and the replay is done with it.
$stub->script([ { match => { path_regex => '^/bare/c2$' }, do => { close_before_response => JSON::PP::true } } ]);
$job = replay(q{'bare', topic => 'command'});
is(join(' ', sort map { $_->{path} } news()), '/bare/c1 /bare/c2 /bare/c3', 'a command without a key is sent once');
is(sql("SELECT key, state, replay FROM accord.backlog WHERE channel = 'bare'"), "c2|held|$job", '... and held when unclear');
$stub->script([]);
sql(q{SELECT accord.redeliver('bare', state => 'held')});
wait_for_rows($node, q{SELECT count(*) FROM accord.backlog WHERE channel = 'bare'}, '0');
is(join(' ', map { "$_->{path} $_->{headers}{'accord-replay'}" } news()), "/bare/c2 $job", '... until a person decides');

# ---- events for later -------------------------------------------------------------------------------------------------

channel($node, $stub, 'later', route => { topic => 'later', path => '/later/{key}' });
my ($waits, $given_up) = events($node,
    map { { topic => 'later', key => $_, payload => 1, deliver_at => \q{now() + interval '1 day'} } } 'waits', 'given-up');
wait_for_rows($node, q{SELECT count(*) FROM accord.backlog WHERE state = 'scheduled'}, '2');
$job = replay(q{'later', topic => 'later'});
is(progress($job) . ' ' . scalar(news()), '2|2|0|0|2 0', 'what is owed at a later time is passed over');
is(sql(q{SELECT count(*) FROM accord.backlog WHERE state = 'scheduled'}), 2, '... and is owed still');
sql("SELECT accord.discard(uuid '$given_up', 'later')");
wait_for_rows($node, q{SELECT count(*) FROM accord.backlog WHERE state = 'scheduled'}, '1');
$job = start(q{'later', topic => 'later'});
wait_for_rows($node, "SELECT key, state, due_at > now() + interval '23 h' FROM accord.backlog WHERE replay = $job",
    'given-up|scheduled|t');
is(scalar(news()), 0, 'what was given up before its time is owed again at its time');
wait_for_rows($node, "SELECT state, done, total, passed FROM accord.progress WHERE job = $job", 'running|1|2|1');
pass('... for which the replay waits');
sql("SELECT accord.cancel_replay($job)");
wait_for_rows($node, q{SELECT key FROM accord.backlog WHERE state = 'scheduled'}, 'waits');
wait_for_state($job, 'cancelled');
pass('... unless it is cancelled');

# A channel that is new when the event is already known to the others.
my $soon = events($node, { topic => 'later', key => 'soon', payload => 1, deliver_at => \q{now() + interval '4 s'} });
wait_for_rows($node, q{SELECT count(*) FROM accord.backlog WHERE state = 'scheduled'}, '2');
channel($node, $stub, 'new', route => { topic => 'later', path => '/new/{key}' });
$job = start(q{'new', key => 'soon'});
poll_until(sub { grep { $_->{path} eq '/new/soon' } $stub->log($seen) }, 'the event for later');
is(sql("SELECT count(*) FROM accord.attempt a JOIN accord.event_log e USING (event_id)
        WHERE a.event_id = '$soon' AND a.recorded_at < e.deliver_at"), 0, 'a new channel gets it when it is due, not before');
wait_for_state($job, 'done');

# ---- what was erased --------------------------------------------------------------------------------------------------

sql("SELECT accord.erase(uuid '$ids[0]', 'a guest asked for it')");
news();
$job = replay(q{'keyed', mode => 'rekey', topic => 'command'});
is(join(' ', sort map { $_->{path} } news()), '/keyed/c2 /keyed/c3', 'what was erased is not sent');
is(sql("SELECT failed FROM accord.progress WHERE job = $job"), 1, '... but a dead letter');
is(sql(q{SELECT count(*) FROM accord.verify()}), 0, '... and the log is as it was written');

$node->stop;
done_testing();
