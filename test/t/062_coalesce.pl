# Coalescing: of what is not sent yet only the newest of a key goes out, and what it replaces is recorded as superseded
# by it. What is in flight is never absorbed, a creation and a deletion that nobody has seen cancel out, commands are
# always sent and keep their place between states; a key that does not come to rest is waited for, and what changes
# nothing is skipped. However it is interrupted, the last state arrives and no older one after it.
#
# That nothing is sent shows by an event of another channel, committed later, that has arrived.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main', "log_statement = none\n");
my $stub = start_stub();
my $dispatcher = dispatcher($node);
my @rules;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel whose requests' paths are /topic/op/key/number, tried often and for long, with a route for the topics of its
# name.
sub named_channel
{
    my ($name, $route, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $stub->url, patient(),
        retry_base => '10 ms', retry_cap => '20 ms', max_attempts => 10000, breaker_failures => undef, breaker_ratio => undef, %column);
    named_route($name, %{ $route || {} });
    return;
}

sub named_route
{
    my ($name, %column) = @_;
    route($node, $name, topic => $name, path => '/{topic}/{op}/{key}{/payload.n}', %column);
    return;
}

# An event given as a word: k3 is key k, number 3; with + it is an insert, with - a delete, otherwise an update.
sub event
{
    my ($topic, $word, %more) = @_;
    my ($key, $op, $n) = $word =~ /^([a-z])([-+]?)(\d+)$/ or die "no event: $word\n";
    return insert_sql('outbox', topic => $topic, key => $key, payload => qq({"n": $n}),
        op => $op eq '+' ? 'insert' : $op eq '-' ? 'delete' : 'update', %more) . ";\n";
}

# Each a transaction of its own.
sub insert { my ($topic, @words) = @_; sql(join '', map { event($topic, $_) } @words); return; }

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
    my %sign = (insert => '+', update => '', delete => '-');
    my @words = map { $_->{path} =~ m{^/$name[.a-z]*/(\w+)/(.)/(\d+)$} ? "$2$sign{$1}$3" : () } $stub->log;
    @words = grep { /^[$keys]/ } @words if $keys;
    return join ' ', grep { my $new = $_ ne $last; $last = $_; $new } @words;
}

sub wait_for_arrival
{
    my ($name, $word) = @_;
    poll_until(sub { (' ' . arrived($name) . ' ') =~ / \Q$word\E / }, "$word to arrive at $name");
    return;
}

sub enable { my ($name) = @_; sql("UPDATE accord.channel SET enabled = true WHERE name = '$name'"); return; }

sub wait_until_settled
{
    my (@names) = @_;
    wait_for_rows($node, "SELECT count(*) FROM accord.owed() WHERE channel = '$_'", 0) for @names;
    return;
}

# What became of a channel's events: their words in commit order, each with how it ended; one that ended twice has both.
sub fates
{
    my ($name) = @_;
    wait_until_settled($name);
    my @rows = map { [ split /\|/, $_, -1 ] } split /\n/, sql(<<"SQL");
SELECT e.key || CASE e.op WHEN 'insert' THEN '+' WHEN 'delete' THEN '-' ELSE '' END || (e.payload ->> 'n'),
    coalesce(string_agg(a.outcome, '/') FILTER (WHERE a.outcome NOT IN ('retry', 'retry_after', 'timeout', 'cut_off')),
        'nothing')
FROM accord.event_log e
JOIN accord.commit_log c USING (slot, tx_id)
LEFT JOIN accord.attempt_log a ON a.seq = c.seq AND a.ord = e.ord AND a.channel = '$name'
WHERE e.topic = '$name' OR e.topic LIKE '$name.%'
GROUP BY c.seq, e.ord, e.key, e.op, e.payload ORDER BY c.seq, e.ord
SQL
    return join ' ', map { "$_->[0]:$_->[1]" } @rows;
}

# Superseded events of a channel that do not say by which, or by one that is older, or not of the same group, an SQL
# expression over the event.
sub wrongly_superseded
{
    my ($name, $group) = @_;
    my ($old, $new) = map { my $alias = $_; ($group || 'key') =~ s/\b(key|payload)\b/$alias.$1/gr } 'e', 'n';
    return sql(<<"SQL");
SET enable_nestloop = off;
SELECT count(*) FROM accord.attempt_log a
JOIN accord.commit_log c ON c.seq = a.seq
JOIN accord.event_log e ON e.slot = c.slot AND e.tx_id = c.tx_id AND e.ord = a.ord
LEFT JOIN accord.commit_log nc ON nc.seq = substring(a.error FROM '^superseded by (\\d+)\\.\\d+\$')::bigint
LEFT JOIN accord.event_log n ON n.slot = nc.slot AND n.tx_id = nc.tx_id
    AND n.ord = substring(a.error FROM '^superseded by \\d+\\.(\\d+)\$')::integer
WHERE a.channel = '$name' AND a.outcome = 'superseded'
    AND (n.ord IS NULL OR (nc.seq, n.ord) <= (a.seq, a.ord) OR $old IS DISTINCT FROM $new)
SQL
}

my $marks = 0;

# Waits until the dispatcher has read everything up to now.
sub mark
{
    $marks++;
    insert('mark', "m$marks");
    wait_for_arrival('mark', "m$marks");
    return;
}

named_channel('mark', { coalesce => undef });

# ---- what is under way, or was tried

answer('flight/', { gate => 'flight' });
named_channel('flight');
insert('flight', 'k1', 'l+1');
wait_for_arrival('flight', $_) for 'k1', 'l+1';
insert('flight', 'k2', 'k3', 'k4', 'l-2');
mark();
is(join(' ', sort split / /, arrived('flight')), 'k1 l+1', 'in flight: newer ones of its key wait');
$stub->open_gate('flight');
is(join(' ', sort split / /, fates('flight')),
    'k1:delivered k2:superseded k3:superseded k4:delivered l+1:delivered l-2:delivered',
    '... and it is not absorbed; the newest of them follows, a deletion too');
is(arrived('flight', 'k'), 'k1 k4', '... alone');

answer('retry/update/k/1', { status => 503 });
answer('retry/insert/[lm]', { status => 503 });
answer('retry/insert/n', { close_before_response => 1 });
named_channel('retry');
insert('retry', 'k1', 'l+1', 'm+1', 'n+1');
wait_for_arrival('retry', $_) for 'k1', 'l+1', 'm+1', 'n+1';
sql('BEGIN;' . event('retry', 'k2') . event('retry', 'k3') . event('retry', 'm2') . event('retry', 'm-3') . 'COMMIT');
insert('retry', 'l-2', 'n-2');
is(join(' ', sort split / /, fates('retry')), join(' ', qw(k1:superseded k2:superseded k3:delivered l+1:superseded
      l-2:delivered m+1:superseded m-3:delivered m2:superseded n+1:superseded n-2:delivered)),
    'retrying: superseded; but a creation that was tried may have happened, so that its deletion is sent');
is(arrived('retry', 'k'), 'k1 k3', '... and the newest is sent');
is(sql(q{SELECT count(*) FROM accord.backlog WHERE channel IN ('flight', 'retry')}), '0', '... without remains');

# ---- pairs

named_channel('pairs', undef, enabled => 'false');
insert('pairs', qw(a+1 a-2 b1 b-2 c+1 c2 c-3 d1 d2 e-1 e+2 f+1 f-2 f+3 g+1 g-2 g+3 g-4 h-1 i1 i-2 i+3 j-1
      j+2 j-3 l1 l-2 l+3 l-4 m+1 m-2 m+3 m4 m-5));
mark();
enable('pairs');
is(fates('pairs'), join(' ', qw(a+1:superseded a-2:skipped b1:superseded b-2:delivered c+1:superseded c2:superseded
      c-3:skipped d1:superseded d2:delivered e-1:superseded e+2:delivered f+1:superseded f-2:skipped f+3:delivered
      g+1:superseded g-2:skipped g+3:superseded g-4:skipped h-1:delivered i1:superseded i-2:superseded
      i+3:delivered j-1:superseded j+2:superseded j-3:delivered l1:superseded l-2:superseded l+3:superseded
      l-4:delivered m+1:superseded m-2:skipped m+3:superseded m4:superseded m-5:skipped)),
    'created and deleted: nothing; updated and deleted: deleted; created again: created')
  or diag(arrived('pairs'));
is(join(' ', sort split / /, arrived('pairs')), 'b-2 d2 e+2 f+3 h-1 i+3 j-3 l-4', '... and that is what arrives');
insert('pairs', qw(d3 d-4));
is((split / /, fates('pairs'))[-1], 'd-4:delivered', 'what was delivered once is deleted');

# ---- more than memory holds

named_channel('many', undef, enabled => 'false', max_in_flight => 16);
answer('slow/', { gate => 'slow' });
named_channel('slow', undef, max_in_flight => 16);
sql(q{INSERT INTO accord.outbox (topic, key, op, payload)
    SELECT 'slow', 'k' || g % 100, 'update', jsonb_build_object('n', -g) FROM generate_series(1, 16) g});
poll_until(sub { requests('slow/') == 16 }, 'requests that hang');
for my $name ('many', 'slow')
{
    sql("INSERT INTO accord.outbox (topic, key, op, payload)
        SELECT '$name', 'k' || g % 100, 'update', jsonb_build_object('n', g) FROM generate_series(1, 5000) g");
}
mark();
enable('many');
$stub->open_gate('slow');
wait_until_settled('many', 'slow');
is(join(' ', sort { $a <=> $b } map { m{/(\d+)$} } map { $_->{path} } requests('many/')), join(' ', 4901 .. 5000),
    'fifty updates each of a hundred keys, disabled: one request for each, with the newest');
is(sql(q{SELECT outcome, count(*), count(DISTINCT (seq, ord)) FROM accord.attempt_log WHERE channel = 'many'
           GROUP BY 1 ORDER BY 1}), "delivered|100|100\nsuperseded|4900|4900", '... and every event is accounted for');
is(join(' ', sort { $a <=> $b } map { m{/(-?\d+)$} } map { $_->{path} } requests('slow/')),
    join(' ', reverse(map { -$_ } 1 .. 16), 4901 .. 5000),
    'the same, with sixteen under way: nothing but those and the newest');
is(sql(q{SELECT outcome, count(*), count(DISTINCT (seq, ord)) FROM accord.attempt_log WHERE channel = 'slow'
           GROUP BY 1 ORDER BY 1}), "delivered|116|116\nsuperseded|4900|4900", '... accounted for');

# More keys than are held in memory.
named_channel('keys', undef, enabled => 'false');
sql(q{INSERT INTO accord.outbox (topic, key, op, payload)
    SELECT 'keys', 'k' || g % 3000, 'update', jsonb_build_object('n', g) FROM generate_series(1, 12000) g});
mark();
enable('keys');
wait_until_settled('keys');
is(scalar(requests('keys/')), 3000, 'of three thousand keys the newest');

# ---- by what

named_channel('room', { coalesce => '{payload.room}', path => '/{topic}/{payload.n}' }, enabled => 'false');
named_channel('date', { coalesce => '{key}/{payload.date}', path => '/{topic}/{payload.n}' }, enabled => 'false');
for my $n (1 .. 6)
{
    insert_row($node, 'outbox', topic => 'room', key => "k$n", payload => sprintf '{"n": %d, "room": %d}', $n, $n % 2);
    insert_row($node, 'outbox', topic => 'date', key => 'k', payload => sprintf '{"n": %d, "date": %d}', $n, $n % 3);
}
mark();
enable($_) for 'room', 'date';
wait_until_settled('room', 'date');
is(join(' ', sort map { $_->{path} } requests('room/')), '/room/5 /room/6', 'a template of its own: across keys');
is(join(' ', map { $_->{path} } requests('date/')), '/date/4 /date/5 /date/6', '... and within one, in order');

named_channel('null', { coalesce => undef }, enabled => 'false');
named_channel('cmd', { mode => 'command' }, enabled => 'false');
named_channel('keyless', { path => '/{topic}/{payload.n}' }, enabled => 'false');
insert($_, 'k1', 'k2', 'k+3', 'k-4') for 'null', 'cmd';
insert_row($node, 'outbox', topic => 'keyless', payload => qq({"n": $_})) for 1 .. 3;
mark();
enable($_) for 'null', 'cmd', 'keyless';
is(fates($_->[0]), 'k1:delivered k2:delivered k+3:delivered k-4:delivered', "$_->[1]: all are sent")
  for [ null => 'coalesce null' ], [ cmd => 'commands' ];
is(arrived('null') . ', ' . arrived('cmd'), 'k1 k2 k+3 k-4, k1 k2 k+3 k-4', '... in order');
wait_until_settled('keyless');
is(scalar(requests('keyless/')), 3, '... and what has no key');

insert_row($node, 'channel', name => 'mixed', base_url => $stub->url, enabled => 'false');
named_route('mixed', topic => 'mixed.s');
named_route('mixed', topic => 'mixed.c', mode => 'command');
insert("mixed.$_->[0]", $_->[1])
  for [ s => 'k1' ], [ s => 'k2' ], [ c => 'k3' ], [ s => 'k4' ], [ s => 'k5' ], [ c => 'k6' ], [ c => 'k7' ],
  [ s => 'k8' ], [ s => 'k9' ];
mark();
enable('mixed');
is(fates('mixed'), join(' ', qw(k1:superseded k2:delivered k3:delivered k4:superseded k5:delivered k6:delivered
      k7:delivered k8:superseded k9:delivered)), 'a command between states: none is superseded across it');
is(arrived('mixed'), 'k2 k3 k5 k6 k7 k9', '... and order is kept');

# What expires sooner does not supersede: it may never be sent.
named_channel('lasting', undef, enabled => 'false');
my %expires = map { $_->[0] => \"clock_timestamp() + interval '$_->[1]'" } [ a => '200 ms' ], [ b => '1 h' ],
  [ c => '2 h' ];
sql(join '', map { my ($word, $when) = @$_; event('lasting', $word, $when ? (expires_at => $expires{$when}) : ()) }
      [ 'k1' ], [ 'k2', 'a' ], [ 'l1', 'a' ], [ 'l2' ], [ 'm1', 'b' ], [ 'm2', 'c' ], [ 'n1', 'c' ], [ 'n2', 'b' ]);
poll_until(sub { sql(q{SELECT clock_timestamp() > max(expires_at) FROM accord.event_log WHERE topic = 'lasting'
    AND key IN ('k', 'l')}) eq 't' }, 'the first to expire');
enable('lasting');
is(fates('lasting'), 'k1:delivered k2:expired l1:superseded l2:delivered m1:superseded m2:delivered n1:delivered '
      . 'n2:delivered', 'what expires sooner supersedes nothing');

answer('apart/update/a', { status => 503 });
named_channel('apart');
insert('apart', 'a1', 'b1', 'a2');
wait_for_arrival('apart', $_) for 'a2', 'b1';
insert('apart', 'b2');
wait_for_arrival('apart', 'b2');
is(arrived('apart', 'b'), 'b1 b2', 'a key is not held back by another');
answer('apart/update/a', {});
wait_until_settled('apart');
is(wrongly_superseded($_), '0', "$_: each says by which it was superseded")
  for qw(flight retry pairs many slow date mixed apart);
is(wrongly_superseded('room', q{payload ->> 'room'}), '0', 'room: each says by which it was superseded');

# ---- until it is still

# When each of a topic's events was committed; and when it arrived, if it did.
sub committed
{
    my ($topic) = @_;
    return map { [ split /\|/ ] } split /\n/, sql("SELECT payload ->> 'n', extract(epoch FROM committed_at)
        FROM accord.event_log JOIN accord.commit_log USING (slot, tx_id) WHERE topic = '$topic' ORDER BY seq");
}

my $quiet = 0.3;
named_channel('quiet', { quiet => '300 ms', quiet_max => '1 day' });
insert('quiet', map { "k$_" } 1 .. 5);
wait_until_settled('quiet');
my @committed = committed('quiet');
my %committed = map { @$_ } @committed;
my @arrived = map { $_->{path} =~ m{/(\d+)$} ? [ $1, $_->{time} ] : () } requests('quiet/');
is(scalar(grep { $_->[1] - $committed{ $_->[0] } < $quiet } @arrived), 0, 'quiet: nothing arrives before it is still');
is($arrived[-1][0], 5, '... and the newest does');
my $pauses = grep { $committed[$_][1] - $committed[ $_ - 1 ][1] >= $quiet } 1 .. $#committed;
cmp_ok(scalar @arrived, '<=', 1 + $pauses, '... once');

named_channel('busy', { quiet => '500 ms', quiet_max => '1 s' });
my $session = open_session($node);
my $n = 0;
poll_until(sub { $n++; $session->run(event('busy', "k$n")); requests('busy/') }, 'a key that never rests to be sent');
$session->close;
@committed = committed('busy');
my ($sent) = map { $_->{path} =~ m{/(\d+)$} ? [ $1, $_->{time} ] : () } requests('busy/');
# Still it was if the writer was held up; then it may have been sent for that.
my $still = grep { $committed[$_][1] - $committed[ $_ - 1 ][1] >= 0.5 } 1 .. $sent->[0] - 1;
ok($still || $sent->[1] - $committed[0][1] >= 1, 'quiet_max: it is sent all the same, but not before that')
  or diag($sent->[1] - $committed[0][1]);
cmp_ok($sent->[0], '>', 1, '... not the first of it');
wait_until_settled('busy');
is((arrived('busy') =~ /k(\d+)$/)[0], $n, '... and the last state arrives in the end');
is(wrongly_superseded($_), '0', "$_: each says by which it was superseded") for 'quiet', 'busy';

# ---- what changes nothing

named_channel('same', { skip_unchanged => 'true' });
for my $word (qw(k1 k1 k2 k2 k1 l1 k1))
{
    insert('same', $word);
    wait_until_settled('same');
}
is(fates('same'), 'k1:delivered k1:skipped k2:delivered k2:skipped k1:delivered l1:delivered k1:skipped',
    'skip_unchanged: what was sent last is not sent again');
is(sql(q{SELECT accord.redeliver(event_id, 'same') FROM accord.event_log WHERE topic = 'same' AND key = 'l'}), 1,
    'redelivered');
wait_until_settled('same');
is(scalar(requests('same/update/l')), 2, '... it is sent all the same: somebody wants it');
named_channel('doubt', { skip_unchanged => 'true' });
answer('doubt/update/k/2', { close_before_response => 1 });
answer('doubt/update/l/1', { status => 400 }, times => 1);
insert('doubt', 'k1', 'l1');
wait_until_settled('doubt');
insert('doubt', 'k2');
wait_for_arrival('doubt', 'k2');
insert('doubt', 'k1', 'l1');
is(join(' ', sort split / /, fates('doubt')), 'k1:delivered k1:delivered k2:superseded l1:delivered l1:rejected',
    '... unless something was tried since that may have happened, or it was refused');

# ---- interrupted

answer('born/', { gate => 'born' });
named_channel('born');
insert('born', 'k+1');
wait_for_arrival('born', 'k+1');
insert('born', 'k-2');
mark();
crash_server($node);
$stub->open_gate('born');
wait_until_settled('born');
like(arrived('born'), qr/k-2$/, 'a creation under way when the server died: its deletion is sent');

answer('crash/', { delay_ms => 10 });
named_channel('crash', undef, max_in_flight => 8);
sql('CREATE SEQUENCE n');
for my $round (1 .. 3)
{
    my $before = requests('crash/');
    my $writer = open_session($node);
    $writer->send(<<'SQL');
DO $$ BEGIN
    FOR i IN 1 .. 1000000 LOOP
        INSERT INTO accord.outbox (topic, key, op, payload)
            SELECT 'crash', 'k' || v % 20, 'update', jsonb_build_object('n', v) FROM nextval('n') v;
        COMMIT;
        PERFORM pg_sleep(0.0001);    -- where it notices that the server has died
    END LOOP;
END $$
SQL
    poll_until(sub { requests('crash/') > $before + 60 }, 'some requests');
    crash_server($node);
    $writer->close;
}
wait_until_settled('crash');
my (%last, $inverted);
for my $path (map { $_->{path} } requests('crash/'))
{
    my ($key, $number) = $path =~ m{/(k\d+)/(\d+)$};
    $inverted++ if defined $last{$key} && $number < $last{$key};
    $last{$key} = $number;
}
ok(!$inverted, 'three crashes: no older state arrives after a newer one of its key');
is(join(' ', map { "$_|$last{$_}" } sort keys %last),
    sql(q{SELECT string_agg(key || '|' || n, ' ' ORDER BY key COLLATE "C")
        FROM (SELECT key, max((payload ->> 'n')::integer) AS n FROM accord.event_log WHERE topic = 'crash'
            GROUP BY key) l}),
    '... the last state of each key arrives last');
is(sql(q{SELECT count(*) FROM accord.event_log e JOIN accord.commit_log c USING (slot, tx_id)
    WHERE topic = 'crash' AND (SELECT count(*) FROM accord.attempt_log a WHERE a.channel = 'crash' AND a.seq = c.seq
        AND a.ord = e.ord AND outcome IN ('delivered', 'superseded')) <> 1}), '0',
    '... and each event is accounted for, once');
is(wrongly_superseded('crash'), '0', '... those that were superseded say by which');
is(sql(q{SELECT count(*) FROM accord.backlog WHERE state <> 'dead'}), '0', '... without remains');

# ---- what cannot be

for my $wrong ({ coalesce => '{key' }, { coalesce => '{nonsense}' }, { quiet => '-1 s' },
    { quiet => '2 s', quiet_max => '1 s' })
{
    my (undef, undef, $stderr) =
      $node->psql('postgres', "\\set VERBOSITY verbose\n" . insert_sql('route', channel => 'mark', %$wrong));
    like($stderr, qr/22023|23514/, 'refused: a route with ' . join ' ', %$wrong);
}

$node->stop;
done_testing();
