# Commands, each of which counts once: what was not sent is sent again; what was sent without an answer is repeated
# under its key where the channel honours one, else held for a person; and what is repeated is so to the letter. The
# dispatcher and the postmaster are killed with commands of every kind in flight: none is lost, and the stub, which
# honours keys as a channel does and counts what comes without, sees no command take effect twice.
use strict;
use warnings FATAL => 'all';

use Accord;
use IO::Socket::INET;
use Test::More;

my $node = new_node('main', <<'CONF');
log_statement = none
restart_after_crash = on
accord.restart_interval = '100ms'
CONF
send_everything($node);
my $stub = start_stub('--idempotent');
my @rules;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel whose requests' paths are /name/key, and whose commands are its topic.
sub command_channel
{
    my ($name, $route, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $stub->url("/$name"), retry_base => '10 ms',
        retry_cap => '20 ms', max_attempts => 10000, %column);
    route($node, $name, topic => $name, path => '/{key}', mode => 'command', %{ $route || {} });
    return;
}

# Adds a rule for a path; the first one that matches is used. All rules are as good as new then: "times" begins anew.
sub answer
{
    my ($path, %do) = @_;
    my $times = delete $do{times};
    unshift @rules, { match => { path_regex => "^/$path\$", defined $times ? (times => $times) : () }, do => \%do };
    $stub->script(\@rules);
    return;
}

sub command
{
    my ($topic, @keys) = @_;
    return events($node, map { { topic => $topic, key => $_, payload => '{}' } } @keys);
}

sub requests { my ($path) = @_; return grep { $_->{path} =~ m{^/$path$} } $stub->log; }

# All values of a header or the body that the requests to a path had, each once.
sub distinct
{
    my ($path, $header) = @_;
    my %value = map { ($header ? $_->{headers}{$header} : $_->{body}) => 1 } requests($path);
    my @values = sort keys %value;
    return @values;
}

sql(<<'SQL');
CREATE SCHEMA app;
CREATE TABLE app.word (word text);
INSERT INTO app.word VALUES ('first');
CREATE FUNCTION app.body(e accord.event_log) RETURNS accord.http_request LANGUAGE sql AS $$
    SELECT ROW('PUT', '/frozen/' || e.key || '?' || word, jsonb_build_object('X-Word', word), word || ' ä "' || e.key)
           ::accord.http_request FROM app.word $$;
INSERT INTO accord.secret VALUES ('token', 'very-secret');
SQL
command_channel('bare', undef, idempotency_header => undef, timeout => '3 s');
command_channel('risky', { ambiguous => 'retry' }, idempotency_header => undef);
command_channel('keyed');
command_channel('window', undef, idempotency_window => '1 hour');
command_channel('frozen', { body_function => 'app.body' }, base_url => $stub->url, idempotency_header => 'X-Key',
    auth => '{"type": "bearer", "secret": "token"}');
command_channel('state', { mode => 'state' });
command_channel('remade', { mode => 'state', body_function => 'app.body' }, base_url => $stub->url);

# ---- the window of a key ends (what follows goes on meanwhile)

command_channel('brief', undef, idempotency_window => '1 s', timeout => '2 s');
answer('brief/later', status => 503, headers => { 'Retry-After' => 2 }, times => 1);
answer('brief/silent', hang => 1);
# first the one that hangs: the other one's answer pauses the endpoint
command('brief', 'silent');
poll_until(sub { requests('brief/silent') }, 'the one that hangs');
command('brief', 'later');

# ---- not sent, or not carried out: sent again

my $silent = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'tcp') or die "no port: $!";
my @kind = ('bare', 'keyed', 'risky', 'window');
sql("UPDATE accord.channel SET base_url = 'http://127.0.0.1:" . $silent->sockport . "/' || name WHERE name IN ('"
      . join(q{','}, @kind) . "')");
command($_, 'unsent') for @kind;
wait_for_rows($node, q{SELECT DISTINCT a.channel, outcome, sent FROM accord.attempt_log a JOIN accord.backlog b
    USING (seq, ord, channel) WHERE state = 'retrying' AND channel <> 'brief' ORDER BY 1},
    map { "$_|unreachable|no" } @kind);
sql("UPDATE accord.channel SET base_url = '" . $stub->url . "/' || name WHERE name IN ('" . join(q{','}, @kind) . "')");
my %refusal = (unavailable => 503, conflict => 409, limited => 429, locked => 423, unauthorized => 401);
answer("\\w+/$_", status => $refusal{$_}, times => @kind + 0) for sort keys %refusal;
command($_, sort keys %refusal) for @kind;
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt_log WHERE outcome = 'delivered'},
    @kind * (1 + keys %refusal));
is(scalar(requests("$_/unsent")), 1, "$_: what was not sent is sent when it can be") for @kind;
for my $key (sort keys %refusal)
{
    is(scalar(requests("\\w+/$key")), 2 * @kind, "$refusal{$key} says that it was not carried out: sent again");
}

# ---- sent, and no answer

my %doubt = (closed => { close_before_response => 1 }, reset => { reset => 1 }, cut => { cut_after_bytes => 1 },
    garbage => { garbage => 1 }, 500 => { status => 500 }, 502 => { status => 502 }, 504 => { status => 504 },
    408 => { status => 408 }, 799 => { status => 799 }, silent => { hang => 1 });
for my $key (sort keys %doubt)
{
    answer("bare/$key", %{ $doubt{$key} });
    answer("(risky|keyed|window)/$key", %{ $doubt{$key} }, times => 3) unless $key eq 'silent';
}
sql(q{UPDATE accord.channel SET max_age = '1 s' WHERE name = 'bare'});
command('bare', sort keys %doubt);
command($_, sort grep { $_ ne 'silent' } keys %doubt) for 'risky', 'keyed', 'window';
wait_for_rows($node, q{SELECT key, state, attempts FROM accord.backlog WHERE channel = 'bare' ORDER BY key COLLATE "C"},
    map { "$_|held|1" } sort keys %doubt);
wait_for_rows($node, q{SELECT count(*) FROM accord.owed() WHERE channel IN ('risky', 'keyed', 'window')}, 0);
for my $key (sort keys %doubt)
{
    is(scalar(requests("bare/$key")), 1, "without a key: sent once, and held, after $key");
}
is(sql(q{SELECT count(*) FROM accord.attempt_log WHERE channel IN ('risky', 'keyed', 'window')
           AND outcome NOT IN ('delivered', 'unreachable', 'unauthorized', 'retry', 'retry_after', 'cut_off')}), '0',
    'the others are not lost');
for my $key (sort grep { $_ ne 'silent' } keys %doubt)
{
    is(join(' ', map { scalar(distinct("$_/$key", 'idempotency-key')) } 'keyed', 'window'), '1 1',
        "with a key: repeated under it, after $key");
    cmp_ok(scalar(requests("risky/$key")), '>=', 2, '... and without one where the route says so');
}
is(sql(q{SELECT count(DISTINCT key) FROM accord.backlog_log WHERE channel IN ('risky', 'keyed', 'window')
           AND state IN ('held', 'dead')}), '0', '... never held');
my %connection;
$connection{ $_->{connection} }++ for $stub->log;
is(scalar(grep { $connection{ $_->{connection} } > 1 } requests('(bare|risky)/.*')), 0,
    'what must not be repeated goes over a connection of its own');

# ---- held ones, decided

answer('bare/50.');
is(sql(q{SELECT accord.redeliver('bare', state => 'held', key => '500')}), '1', 'a held one is redelivered');
is(sql(q{SELECT accord.discard('bare', state => 'held', key => '502')}), '1', 'another is discarded');
poll_until(sub { requests('bare/500') == 2 }, 'the redelivered one');
wait_for_rows($node, q{SELECT key, state FROM accord.backlog_log WHERE channel = 'bare' AND key IN ('500', '502')
    AND state IN ('delivered', 'discarded') ORDER BY key}, '500|delivered', '502|discarded');
is(scalar(requests('bare/502')), 1, 'what is discarded is not sent');
is(sql(q{SELECT accord.discard('bare', state => 'held')}), keys(%doubt) - 2, 'the rest is discarded');

# ---- to the letter

answer('frozen/.*', status => 503);
command('frozen', 'f');
command('remade', 's');
wait_for_rows($node, q{SELECT key, state FROM accord.backlog WHERE channel IN ('frozen', 'remade') ORDER BY key},
    'f|retrying', 's|retrying');
sql(<<'SQL');
UPDATE app.word SET word = 'second';
UPDATE accord.route SET path = '/changed', headers = '{"X-Route": "changed"}' WHERE channel = 'frozen';
UPDATE accord.secret SET value = 'other-secret';
SQL
my $dispatcher = dispatcher($node);
kill 'TERM', $dispatcher;
poll_until(sub { dispatcher($node) != $dispatcher }, 'another dispatcher');
my $n = requests('frozen/.*');
poll_until(sub { requests('frozen/.*') >= $n + 2 && (distinct('frozen/s\?second', 'x-word')) }, 'repetitions');
answer('frozen/.*');
wait_for_rows($node, q{SELECT count(*) FROM accord.owed() WHERE channel IN ('frozen', 'remade')}, 0);
is_deeply([ map { $_->{path} } requests('frozen/f.*') ], [ ('/frozen/f?first') x requests('frozen/f.*') ],
    'a command is repeated to the letter: its path');
is_deeply([ distinct('frozen/f.*') ], ["first \x{e4} \"f"], '... its body');
is_deeply([ map { scalar distinct('frozen/f.*', $_) } 'x-key', 'x-word', 'accord-sequence' ], [ 1, 1, 1 ],
    '... its key and headers');
is(scalar(grep { exists $_->{headers}{'x-route'} } requests('frozen/f.*')), 0, '... and no header of today');
is((requests('frozen/f.*'))[-1]{headers}{authorization}, 'Bearer other-secret', '... but with today\'s credential');
is((requests('frozen/s.*'))[-1]{path}, '/frozen/s?second', 'what is state is made anew');
is(sql(q{SELECT count(*) FROM accord.backlog_log b WHERE b::text LIKE '%-secret%'}), '0', 'no credential is frozen');
command('frozen', 'g');
poll_until(sub { requests('frozen/g\?second') }, 'the next command');
pass('the next one is made by today\'s words');

# ---- the window has ended

wait_for_rows($node, q{SELECT key, state, error FROM accord.backlog WHERE channel = 'brief' ORDER BY key},
    'later|held|the channel\'s idempotency_window ended before the repetition', 'silent|held|'
      . sql(q{SELECT error FROM accord.attempt_log WHERE channel = 'brief' AND outcome = 'timeout'}));
is(scalar(requests("brief/$_")), 1, "$_: not repeated when its key may be forgotten") for 'later', 'silent';
is(sql(q{SELECT outcome, sent FROM accord.attempt WHERE channel = 'brief' AND key = 'later' ORDER BY recorded_at}),
    "retry_after|yes\nlost|unknown", '... and the log says so');
answer('brief/.*');
is(sql(q{SELECT accord.redeliver('brief', state => 'held')}), '2', '... but by a person\'s decision');
poll_until(sub { requests('brief/.*') == 4 }, 'both repetitions');
is(scalar(distinct("brief/$_", 'idempotency-key')), 1, '... under its key') for 'later', 'silent';

# ---- crashes

# Every kind in flight, held by a gate; those that need it with their intent in the backlog before they arrived.
my @kinds = ('bare', 'risky', 'keyed', 'window', 'frozen', 'state');
my %crash = (
    dispatcher => sub { kill 'KILL', $dispatcher },
    postmaster => sub { crash_server($node) });
for my $victim (sort keys %crash)
{
    answer("\\w+/$victim.*", gate => $victim);
    wait_for_delivery($node);
    $dispatcher = dispatcher($node);
    my $anonymous = $stub->applied->{anonymous};
    my $before = $stub->count;
    command($_, "$victim$_") for @kinds, 'bare';
    $stub->wait_for_count($before + @kinds);
    my %time = map { $_->{path} => $_->{time} } $stub->log($before);
    for my $kind ('bare', 'window', 'frozen')
    {
        my ($path) = grep { m{^/$kind/} } keys %time;
        is(sql("SELECT min(recorded_at) <= to_timestamp($time{$path}) FROM accord.backlog_log
            WHERE channel = '$kind' AND state = 'sending' AND key LIKE '$victim%'"),
            't', "$kind: the intent is committed before the request leaves");
    }
    $crash{$victim}->();
    $stub->open_gate($victim);
    $node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity
        WHERE backend_type LIKE 'pg_accord%dispatcher%' AND pid <> } . $dispatcher) or die 'no dispatcher came back';
    wait_for_rows($node, q{SELECT channel, key, state FROM accord.owed() JOIN accord.event_log USING (tx_id, ord)},
        "bare|${victim}bare|held", "bare|${victim}bare|queued");
    is(sql("SELECT outcome, sent FROM accord.attempt WHERE channel = 'bare' AND key LIKE '$victim%'"), 'lost|unknown',
        "$victim killed: a command in flight without a key is held");
    is(scalar(requests("bare/$victim.*")), 1, '... and was sent once');
    is_deeply([ map { scalar(distinct("$_/$victim.*", 'idempotency-key')) } 'keyed', 'window', 'state' ], [ 1, 1, 1 ],
        '... those with a key are repeated under it');
    is_deeply([ map { scalar(requests("$_/$victim.*")) } 'keyed', 'window', 'state' ], [ 2, 2, 2 ], '... once');
    is(scalar(distinct("frozen/$victim.*")), 1, '... to the letter');
    is(sql("SELECT accord.discard('bare', state => 'held', key => '${victim}bare', reason => 'looked: it is there')"),
        '1', '... the held one is decided');
    wait_for_delivery($node);
    is(scalar(requests("bare/$victim.*")), 2, '... and the next of its key goes');
    my $applied = $stub->applied;
    is(scalar(grep { !$applied->{keys}{$_} } map { $_->{headers}{'idempotency-key'} } requests("keyed/$victim.*")), 0,
        '... what has a key took effect');
}

$node->stop;
done_testing();
