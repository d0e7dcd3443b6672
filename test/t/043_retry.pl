# Trying again, giving up, and what people decide: how long a failed delivery waits, when it is given up and with which
# reason, and redeliver() and discard() over all that they can select: how many, by whom, why, and what comes of it.
# Events of which no request can be made are scattered among others and disturb none.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', "log_statement = none\n");
send_everything($node);
my $stub = start_stub();
my $dispatcher = dispatcher($node);
my @rules;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel whose requests' paths are /name/key, and whose route takes the topics of its name.
sub named_channel
{
    my ($name, $route, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $stub->url("/$name"), retry_base => '10 ms',
        retry_cap => '20 ms', max_attempts => 10000, %column);
    route($node, $name, topic => "$name*", path => '/{key}', %{ $route || {} });
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

sub requests { my ($path) = @_; return grep { $_->{path} =~ m{^/$path$} } $stub->log; }
sub keys_of { my ($name) = @_; return join ' ', map { $_->{path} =~ m{^/$name/(.*)$} ? $1 : () } $stub->log; }

# Events for max_age, which grow old while the rest is tested.
answer('old/bad', status => 503);
named_channel('old', undef, enabled => 'false', max_age => '1 s');
events($node, map { { topic => 'old', key => $_ } } 'good', 'bad');

# ---- how long a delivery waits

my ($base, $cap, $attempts, $keys) = (0.1, 0.4, 6, 30);
answer('backoff/.*', status => 500);
named_channel('backoff', undef, retry_base => '100 ms', retry_cap => '400 ms', max_attempts => $attempts,
    max_in_flight => 100);
events($node, map { { topic => 'backoff', key => $_ } } 1 .. $keys);
wait_for_rows($node, q{SELECT count(*) FROM accord.dead_letter WHERE channel = 'backoff'}, $keys);

my %arrival;
push @{ $arrival{ $_->{path} } }, $_->{time} for requests('backoff/.*');
is_deeply([ map { scalar @$_ } values %arrival ], [ ($attempts) x $keys ], 'max_attempts, and no more');
is(sql(q{SELECT DISTINCT attempts, error, due_at FROM accord.backlog WHERE channel = 'backoff'}),
    "$attempts|HTTP status 500|", 'the dead letters say how many and why');

my ($early, $late, @wait) = (0, 0);
for my $row (split /\n/, sql(q{SELECT key, attempts, extract(epoch FROM recorded_at), extract(epoch FROM due_at)
    FROM accord.backlog_log WHERE channel = 'backoff' AND state = 'retrying'}))
{
    my ($key, $n, $recorded, $due) = split /\|/, $row;
    my $times = $arrival{"/backoff/$key"};
    my $bound = $base * 2**($n - 1) < $cap ? $base * 2**($n - 1) : $cap;
    # the next attempt is not before it, and it is not after the failure by more than the bound
    $early++ if $times->[$n] + 1e-4 < $due;
    $late++ if $due > $recorded + $bound + 0.002;
    push @{ $wait[$n] }, $due - $recorded;
}
is($early, 0, 'no attempt before it was due');
is($late, 0, 'no delay beyond its bound, which doubles up to retry_cap');
my @capped = map { @$_ } @wait[ 3 .. $attempts - 1 ];
is(scalar @capped, $keys * ($attempts - 3), 'each failure has its delay');
cmp_ok(scalar(grep { $_ < $cap / 2 } @capped), '>', 0, '... some in the lower half');
cmp_ok(scalar(grep { $_ > $cap / 2 } @capped), '>', 0, '... some in the upper half');

answer('after/seconds', status => 503, headers => { 'Retry-After' => 1 }, times => 1);
answer('after/many', status => 429, headers => { 'Retry-After' => 0 }, times => 7);
named_channel('after', undef, max_attempts => 2);
events($node, map { { topic => 'after', key => $_ } } 'seconds', 'many');
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt_log WHERE channel = 'after' AND outcome = 'delivered'}, 2);
my ($first, $second) = map { $_->{time} } requests('after/seconds');
cmp_ok($second - $first, '>=', 1, 'Retry-After is longer than retry_cap, and is kept');
is(scalar(requests('after/many')), 8, 'a 429 is not counted among max_attempts');
is(sql(q{SELECT max(attempt) FROM accord.attempt WHERE channel = 'after' AND key = 'many'}), '1', '... nor in the log');

# ---- how old it may become

wait_for_rows($node, q{SELECT count(*) FROM accord.commit_log c JOIN accord.event_log e USING (slot, tx_id)
    WHERE topic = 'old' AND clock_timestamp() - committed_at > interval '1.1 s'}, 2);
sql(q{UPDATE accord.channel SET enabled = true WHERE name = 'old'});
wait_for_delivery($node);
is(keys_of('old'), 'good bad', 'what is older than max_age is tried, once');
is(sql(q{SELECT key, attempts, error FROM accord.dead_letter WHERE channel = 'old'}), 'bad|1|HTTP status 503',
    '... and given up if it fails');
is(sql(q{SELECT key, outcome FROM accord.attempt WHERE channel = 'old' ORDER BY seq}), "good|delivered\nbad|retry",
    '... delivered if it does not');
sql(q{SELECT accord.discard('old')});

# ---- what can be selected

answer('pick/.*', status => 400);
answer('pick/.*2', status => 422);
named_channel('pick');
named_channel('pick_other', { topic => 'pick.c', path => '/other' });
insert_row($node, 'account', channel => 'pick', name => $_) for 'x', 'y';
my @ids = events($node, map { my ($topic, $key, $account) = @$_; { topic => $topic, key => $key, account => $account } }
    ([ 'pick.a', 'k1', 'x' ], [ 'pick.a', 'k2', 'y' ], [ 'pick.b', 'k1', undef ], [ 'pick_b', 'k2', 'x' ],
        [ 'pick.b.c', 'k3', 'x' ], [ 'pick.c', 'k4', 'x' ]));
wait_for_delivery($node);
my @selection = (
    [ q{'pick'} => 6, 'a channel\'s dead letters' ],
    [ q{'pick_other'} => 0, 'a channel without any' ],
    [ q{'pick', account => 'x'} => 4, 'account' ],
    [ q{'pick', account => ''} => 1, 'the channel itself' ],
    [ q{'pick', account => 'z'} => 0, 'no account' ],
    [ q{'pick', topic => 'pick.a'} => 2, 'topic' ],
    [ q{'pick', topic => 'pick.*'} => 5, 'topic with *' ],
    [ q{'pick', topic => '*b*'} => 3, 'topic with two *' ],
    [ q{'pick', topic => 'pick_b'} => 1, 'topic with _, which is itself' ],
    [ q{'pick', topic => 'pick.%'} => 0, 'topic with %, which is itself' ],
    [ q{'pick', key => 'k1'} => 2, 'key' ],
    [ q{'pick', key => 'k%'} => 0, 'key is no pattern' ],
    [ q{'pick', error => 'HTTP status 422'} => 2, 'error' ],
    [ q{'pick', error => 'HTTP status 4%'} => 6, 'error with %' ],
    [ q{'pick', state => 'dead'} => 6, 'state' ],
    [ q{'pick', state => 'held'} => 0, 'another state' ],
    [ q{'pick', since => now() - interval '1 day'} => 6, 'since' ],
    [ q{'pick', since => now()} => 0, 'since now' ],
    [ q{'pick', until => now()} => 6, 'until' ],
    [ q{'pick', until => now() - interval '1 day'} => 0, 'until yesterday' ],
    [ q{'pick', account => 'x', topic => 'pick.*', key => 'k3', error => '%400'} => 1, 'all at once' ],
    [ "'$ids[0]'::uuid" => 1, 'an event' ],
    [ "'$ids[5]'::uuid" => 2, 'an event of two channels, one of which has it', 1 ],
    [ "'$ids[5]'::uuid, 'pick'" => 1, 'an event of a channel' ],
    [ "'$ids[5]'::uuid, 'pick', 'x'" => 1, 'an event of an account' ],
    [ "'$ids[5]'::uuid, 'pick', 'y'" => 0, 'an event of another account' ],
    [ 'gen_random_uuid()' => 0, 'no event' ]);
# All of it is rolled back.
my @statements = map { ("SELECT accord.redeliver($_->[0])", "SELECT accord.discard($_->[0])") } @selection;
my @counts = split /\n/, sql(join "\n", map { "BEGIN; $_; ROLLBACK;" } @statements);
for my $i (0 .. $#selection)
{
    my ($arguments, $count, $what, $owed) = @{ $selection[$i] };
    $owed = $count unless defined $owed;
    is("$counts[2 * $i] $counts[2 * $i + 1]", "$count $owed", "$what: ($arguments)");
}
is(sql(q{SELECT count(*) FROM accord.dead_letter WHERE channel = 'pick'}), '6', 'what is rolled back is not decided');
for my $state (q{'queued'}, q{'delivered'}, 'NULL')
{
    my (undef, undef, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose
        SELECT accord.redeliver('pick', state => $state)");
    like($stderr, qr/22023: no delivery in the backlog is in state/, "state $state is refused");
}

for my $channel ('nobody', $ids[0])
{
    my (undef, undef, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT accord.redeliver('$channel')");
    like($stderr, qr/42704: channel "$channel" does not exist.*HINT/s, "a channel that there is not is refused: $channel");
}

# ---- what becomes of it

answer('pick/.*');
my $before = $stub->count;
sql(<<'SQL');
BEGIN;
SET LOCAL accord.actor = 'alice';
SET LOCAL accord.correlation_id = 'ticket-7';
SELECT accord.redeliver('pick', topic => 'pick.a', reason => 'their mistake');
COMMIT;
SQL
wait_for_delivery($node);
is($stub->count - $before, 2, 'redelivered dead letters are sent');
is(sql(q{SELECT count(*) FROM accord.dead_letter WHERE channel = 'pick'}), '4', '... the others are not');
is(join(' ', map { $_->{headers}{'idempotency-key'} } (requests('pick/k[12]'))[ -2, -1 ]), join(' ', @ids[ 0, 1 ]),
    '... under the keys they had');
is(sql(q{SELECT key, array_agg(outcome || attempt ORDER BY recorded_at) FROM accord.attempt WHERE channel = 'pick'
           AND topic = 'pick.a' GROUP BY key ORDER BY key}),
    "k1|{rejected1,delivered1}\nk2|{rejected1,delivered1}", '... their attempts start anew');
is(sql(q{SELECT DISTINCT c.actor, c.correlation_id, e.topic, e.payload ->> 'reason',
        jsonb_array_length(e.payload -> 'deliveries')
    FROM accord.backlog_log b JOIN accord.commit_log c ON c.seq = b.decided_by
    JOIN accord.event_log e ON e.tx_id = c.tx_id
    WHERE b.channel = 'pick' AND b.state IN ('replayed', 'delivered')}),
    'alice|ticket-7|accord.redeliver|their mistake|2', '... and it is known who decided it, and why');
is(sql(qq{SELECT string_agg(step, ' ' ORDER BY at) FROM accord.timeline WHERE event_id = '$ids[0]'
    AND step IN ('dead', 'replayed', 'delivered') AND attempt = 0}), 'replayed', '... in its timeline, too');

is(sql(q{SELECT accord.discard('pick', reason => 'too late')}), '4', 'discard');
wait_for_rows($node, q{SELECT count(*) FROM accord.dead_letter WHERE channel = 'pick'}, 0);
is($stub->count - $before, 2, '... sends nothing');
is(sql(q{SELECT DISTINCT b.state, e.payload ->> 'reason', a.outcome FROM accord.backlog_log b
    JOIN accord.commit_log c ON c.seq = b.decided_by
    JOIN accord.event_log e ON e.tx_id = c.tx_id
    JOIN accord.attempt_log a ON a.seq = b.seq AND a.ord = b.ord AND a.channel = b.channel
    WHERE b.state = 'discarded' AND b.channel = 'pick' AND a.outcome <> 'rejected'}), 'discarded|too late|discarded',
    '... and is recorded');
is(sql(qq{SELECT accord.redeliver('$ids[2]'::uuid, 'pick')}), '1', 'what was discarded can be redelivered');
wait_for_delivery($node);
is($stub->count - $before, 3, '... and is sent');

# More than fit into one decision, of one key, in the order they had.
answer('many/k', status => 400);
named_channel('many');
sql(q{INSERT INTO accord.outbox (topic, key, payload) SELECT 'many', 'k', to_jsonb(n) FROM generate_series(1, 450) n});
wait_for_delivery($node);
answer('many/k');
is(sql(q{SELECT accord.redeliver('many')}), '450', 'many at once');
wait_for_delivery($node);
my @bodies = map { $_->{body} } requests('many/k');
is(join(' ', @bodies[ -450 .. -1 ]), join(' ', 1 .. 450), '... in the order of the log');

# ---- delivered ones

named_channel($_, { topic => 'twice', path => '/{payload}' }) for 'twice', 'other';
my ($one, $two) = events($node, map { { topic => 'twice', key => 'k', payload => $_ } } 1, 2);
wait_for_delivery($node);
is(sql(qq{SELECT accord.redeliver('$one'::uuid, 'twice', reason => 'lost')}), '1', 'a delivered one is redelivered');
wait_for_delivery($node);
is(keys_of('twice') . ', ' . keys_of('other'), '1 2 1, 1 2', '... to the channel asked for, after newer ones');
is((requests('twice/1'))[1]{headers}{'idempotency-key'}, $one, '... under its key');
is(sql(qq{SELECT accord.redeliver('$two'::uuid)}), '2', '... or to all that had it');
wait_for_delivery($node);
is(keys_of('twice') . ', ' . keys_of('other'), '1 2 1 2, 1 2 2', '... which get it');
is(sql(q{SELECT count(*) FROM accord.backlog WHERE channel IN ('twice', 'other')}), '0', '... without remains');
sql(qq{SELECT accord.discard('$one'::uuid)});
my $marker = events($node, { topic => 'twice', key => 'k', payload => 3 });
wait_for_delivery($node);
is(sql(q{SELECT count(*) FROM accord.attempt WHERE channel IN ('twice', 'other') AND outcome <> 'delivered'}), '0',
    'what was delivered cannot be discarded');

# ---- those that are retried

answer('wait/a', status => 503, times => 1);
named_channel('wait', undef, retry_base => '1 day', retry_cap => '1 day');
events($node, { topic => 'wait', key => 'a' });
wait_for_rows($node, q{SELECT state, attempts FROM accord.backlog WHERE channel = 'wait'}, 'retrying|1');
is(sql(q{SELECT accord.redeliver('wait', state => 'retrying')}), '1', 'a retrying one is redelivered');
wait_for_delivery($node);
is(keys_of('wait'), 'a a', '... and sent at once');

answer('drop/a', status => 503, times => 1);
named_channel('drop', undef, retry_base => '1 day', retry_cap => '1 day');
events($node, map { { topic => 'drop', key => 'a', payload => $_ } } 1, 2);
wait_for_rows($node, q{SELECT state, attempts FROM accord.backlog WHERE channel = 'drop' AND state <> 'waiting'}, 'retrying|1');
is(sql(q{SELECT accord.discard('drop', state => 'retrying', reason => 'never mind')}), '1', 'one is discarded');
wait_for_delivery($node);
is(join(' ', map { $_->{body} } requests('drop/a')), '1 2', '... and its key goes on');

# Under way: the second attempt waits for a gate.
my %fate = (fail => 503, pass => 200);
named_channel('fly');
for my $key (sort keys %fate)
{
    answer("fly/$key", gate => $key, status => $fate{$key});
    answer("fly/$key", status => 503, times => 1);
}
@ids = events($node, map { { topic => 'fly', key => $_ } } sort keys %fate);
poll_until(sub { requests("fly/.*") == 4 }, 'second attempts');
is(sql("SELECT accord.discard('$_'::uuid)"), '1', 'one under way is discarded') for @ids;
events($node, { topic => 'fly', key => 'marker' });
poll_until(sub { requests('fly/marker') }, 'the decisions to be read');
$stub->open_gate($_) for sort keys %fate;
wait_for_delivery($node);
is(sql(q{SELECT key, string_agg(outcome, ' ' ORDER BY recorded_at) FROM accord.attempt
           WHERE channel = 'fly' AND key <> 'marker' GROUP BY key ORDER BY key}),
    "fail|retry retry\npass|retry delivered",
    '... and given up only if it fails');
is(sql(q{SELECT key, state FROM accord.backlog_log WHERE channel = 'fly' AND state IN ('delivered', 'discarded')
           ORDER BY key}),
    "fail|discarded\npass|delivered", '... which is recorded');

# ---- one decision after another

# The dispatcher finds all of them at once.
answer('again/.*', status => 400);
named_channel('again');
events($node, map { { topic => 'again', key => $_ } } 'a' .. 'd');
wait_for_delivery($node);
answer('again/.*');
kill 'STOP', $dispatcher;
sql(<<'SQL');
SELECT accord.redeliver('again', key => 'a'); SELECT accord.discard('again', key => 'a');
SELECT accord.discard('again', key => 'b'); SELECT accord.redeliver('again', key => 'b');
SELECT accord.redeliver('again', key => 'c'); SELECT accord.redeliver('again', key => 'c');
SELECT accord.discard('again', key => 'd'); SELECT accord.discard('again', key => 'd');
SQL
kill 'CONT', $dispatcher;
wait_for_rows($node, q{SELECT key, state FROM (SELECT DISTINCT ON (key) * FROM accord.backlog_log
    WHERE channel = 'again' ORDER BY key, version DESC) b ORDER BY key},
    'a|delivered', 'b|discarded', 'c|delivered', 'd|discarded');
pass('of several decisions about the same state of a delivery the first one counts');
is(sql(q{SELECT count(*) FROM (SELECT FROM accord.backlog_log GROUP BY channel, account, seq, ord, version
    HAVING count(*) > 1) b}), '0', 'no two rows of the backlog have the same version');

# ---- poison

sql(<<'SQL');
CREATE SCHEMA app;
CREATE FUNCTION app.poison(e accord.event_log) RETURNS accord.http_request LANGUAGE plpgsql AS $$
BEGIN
    CASE e.payload ->> 'kind'
        WHEN 'raise' THEN RAISE EXCEPTION E'% \x01 %', repeat('long ', 1000), e.key;
        WHEN 'path' THEN RETURN ROW(NULL, 'no slash', NULL, NULL)::accord.http_request;
        WHEN 'method' THEN RETURN ROW(E'GET / HTTP/1.1\r\nX: y\r\n', NULL, NULL, NULL)::accord.http_request;
        WHEN 'header' THEN RETURN ROW(NULL, NULL, '{"Host": "elsewhere"}', NULL)::accord.http_request;
        WHEN 'recursion' THEN PERFORM app.poison(e);
        WHEN 'memory' THEN PERFORM repeat('x', 1 << 30) || repeat('x', 1 << 30);
        ELSE RETURN ROW(NULL, NULL, NULL, e.payload ->> 'n')::accord.http_request;
    END CASE;
    RETURN NULL;
END $$;
SQL
named_channel('poison', { path => '/{payload.place}', body_function => 'app.poison' });
my @kinds = qw(raise path method header template recursion memory);
my @poison;
for my $n (1 .. 28)
{
    my $kind = $kinds[ $n % @kinds ];
    push @poison, { topic => 'poison', key => "key $kind",
        payload => $kind eq 'template' ? '{}' : qq({"kind": "$kind", "place": "bad"}) },
      { topic => 'poison', key => "key $kind", payload => qq({"n": $n, "place": "good", "kind": "none"}) };
}
events($node, @poison);
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt_log WHERE channel = 'poison' AND outcome = 'delivered'}, 28);
is(join(' ', sort { $a <=> $b } map { $_->{body} } requests('poison/good')), join(' ', 1 .. 28),
    'events after poisonous ones of their key are sent');
is(sql(q{SELECT payload ->> 'kind', count(*) FROM accord.dead_letter WHERE channel = 'poison' GROUP BY 1 ORDER BY 1}),
    "header|4\nmemory|4\nmethod|4\npath|4\nraise|4\nrecursion|4\n|4", 'poisonous ones are dead letters')
  or diag(sql(q{SELECT payload ->> 'kind', outcome, left(error, 200) FROM accord.attempt_log a JOIN accord.event_log e
      USING (ord) JOIN accord.commit_log c USING (tx_id) WHERE a.seq = c.seq AND channel = 'poison'
      AND outcome <> 'delivered'}));

# Mended, they can be sent.
sql(q{UPDATE accord.route SET path = '/mended', body_function = NULL WHERE channel = 'poison'});
is(sql(q{SELECT accord.redeliver('poison', error => '%the event defines no%')}), '4', 'those that a template failed');
wait_for_delivery($node);
is(scalar(requests('poison/mended')), 4, '... go by the route as it is today');

is(dispatcher($node), $dispatcher, 'the dispatcher is the same process');
$node->stop;
done_testing();
