# Cancelling: whatever an event waits for before it is sent (a limit, a quiet period, a batch to fill, its turn, or a
# channel that is disabled and has not even read it), discard() keeps it from being sent, for good, also through a
# crash, and touches nothing else. What is under way is not called back.
use strict;
use warnings FATAL => 'all';

use Accord;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('cancel');
my $stub = start_stub();
send_everything($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel whose requests' paths are /name/key/number, with a route for the topic of its name.
sub named_channel
{
    my ($name, $route, %column) = @_;
    channel($node, $stub, $name, %column);
    route($node, $name, topic => $name, path => '/{topic}/{key}/{payload.n}', %{ $route || {} });
    return;
}

# Inserts events, given as words of key and number, each in a transaction of its own; returns their ids.
sub insert
{
    my ($name, $column, @words) = @_;
    return events($node, map { { topic => $name, key => substr($_, 0, 1),
        payload => sprintf('{"n": %d}', substr $_, 1), %$column } } @words);
}

sub arrived
{
    my ($name) = @_;
    return join ' ', map { $_->{path} =~ m{^/$name/(.)/(\d+)$} ? "$1$2" : () } $stub->log;
}

sub wait_for_arrival
{
    my ($name, $words) = @_;
    poll_until(sub { arrived($name) eq $words }, "$words to arrive at $name");
    return;
}

# Asks for events to be given up, one after the other; returns how many deliveries that were.
sub discard { return join ' ', map { sql("SELECT accord.discard('$_'::uuid, reason => 'cancelled')") } @_; }

# How the events of a topic ended, in commit order.
sub fates
{
    my ($name) = @_;
    return sql(<<"SQL") =~ s/\n/ /gr;
SELECT e.key || (e.payload ->> 'n') || ':' || coalesce(string_agg(a.outcome, '/' ORDER BY a.recorded_at), 'nothing')
FROM accord.event_log e JOIN accord.commit_log c USING (slot, tx_id)
LEFT JOIN accord.attempt_log a ON a.seq = c.seq AND a.ord = e.ord AND a.channel = '$name'
WHERE e.topic = '$name' GROUP BY c.seq, e.ord, e.key, e.payload ORDER BY c.seq, e.ord
SQL
}

sub wait_until_owed
{
    my ($name, $n) = @_;
    wait_for_rows($node, "SELECT count(*) FROM accord.owed() WHERE channel = '$name'", $n);
    return;
}

# ---- at a limit

my ($name, @ids);
for (['whole', ''], ['part', '{topic}'])
{
    my $bucket;
    ($name, $bucket) = @$_;
    insert_row($node, 'channel', name => $name, base_url => $stub->url);
    insert_row($node, 'rate_limit', channel => $name, bucket => $bucket, amount => 1, period => '1 day');
    route($node, $name, topic => $name, path => '/{topic}/{key}/{payload.n}');
    @ids = insert($name, {}, qw(a1 b1 c1 c2 d1));
    wait_for_arrival($name, 'a1');
    is(discard(@ids[1, 2]), '1 1', "what waits at a limit ($bucket) is given up");
    wait_until_owed($name, 2);
    sql("DELETE FROM accord.rate_limit WHERE channel = '$name'");
    wait_until_owed($name, 0);
    is(join(' ', sort split / /, arrived($name)), 'a1 c2 d1', '... and never sent; the next of its key is');
    is(fates($name), 'a1:delivered b1:discarded c1:discarded c2:delivered d1:delivered', '... which is recorded');
}
is(discard($ids[0]), '0', 'what was delivered cannot be given up');
is(discard($ids[1]), '0', '... nor what is already');

# ---- in its quiet period, and in a batch that is not full

named_channel('quiet', { coalesce => '{key}', quiet => '1 h' });
@ids = insert('quiet', {}, qw(a1 b1));
wait_until_owed('quiet', 2);
is(discard($ids[0]), '1', 'what is still is given up');
wait_until_owed('quiet', 1);
sql(q{UPDATE accord.route SET quiet = '1 ms' WHERE channel = 'quiet'});
insert('quiet', {}, qw(a2));
wait_for_arrival('quiet', 'a2');
wait_until_owed('quiet', 1);
is(discard($ids[1]), '1', '... and another one, though its route is quick by now');
wait_until_owed('quiet', 0);
is(fates('quiet'), 'a1:discarded b1:discarded a2:delivered', '... a newer one waits for neither');

named_channel('batch', { batch_size => 3, batch_wait => '1 h', path => '/{topic}' });
@ids = insert('batch', {}, qw(a1 b1));
wait_until_owed('batch', 2);
is(discard($ids[0]), '1', 'a member of a batch that forms is given up');
wait_until_owed('batch', 1);
insert('batch', {}, qw(c1 d1));
wait_until_owed('batch', 0);
is(join(' ', map { $_->{body} =~ s/\s//gr } grep { $_->{path} eq '/batch' } $stub->log), '[{"n":1},{"n":1},{"n":1}]',
    '... and the batch goes without it');
is(fates('batch'), 'a1:discarded b1:delivered c1:delivered d1:delivered', '... as is recorded');

# ---- behind another of its key

$stub->script([ { match => { path_regex => '^/turn/a/1' }, do => { gate => 'turn' } } ]);
named_channel('turn');
@ids = insert('turn', {}, qw(a1 a2 a3));
wait_for_arrival('turn', 'a1');
is(discard(@ids[0, 1]), '1 1', 'what is under way, and what waits behind it');
wait_until_owed('turn', 2);
$stub->open_gate('turn');
wait_until_owed('turn', 0);
is(arrived('turn'), 'a1 a3', '... is not called back, and is not sent');
is(fates('turn'), 'a1:delivered a2:discarded a3:delivered', '... which is recorded');

# ---- what nobody has read yet

named_channel('off', undef, enabled => 'false');
insert_row($node, 'account', channel => 'off', name => $_) for 'x', 'y';
@ids = insert('off', {}, qw(a1 a2 b1 c1));
push @ids, insert('off', { deliver_at => \q{now() + interval '1 h'} }, 'd1');
push @ids, insert('off', { account => 'x' }, 'e1'), insert('off', { account => 'y' }, 'f1');
wait_until_owed('off', 7);
is(discard(@ids[0, 2, 4]), '1 1 1', 'of a disabled channel, which has not read them');
is(sql("SELECT accord.discard('$ids[5]'::uuid, 'off', 'y')"), 0, '... not at another account');
is(sql("SELECT accord.discard('$ids[5]'::uuid, 'off', 'x')"), 1, '... at its own');
is(sql("BEGIN; SELECT accord.discard('$ids[3]'::uuid); ROLLBACK"), 1, '... or not, after all');
wait_until_owed('off', 3);
is(sql(q{SELECT sum(accord.discard(event_id, 'off')) FROM accord.outbox WHERE topic = 'off' AND key = 'a'}), 1,
    '... selected in the outbox');
wait_until_owed('off', 2);
wait_for_rows($node, q{SELECT account, owed FROM accord.status WHERE channel = 'off' ORDER BY 1}, 'x|0', 'y|1', '|1');
pass('the status does not count them');
crash_server($node);
wait_until_owed('off', 2);
insert('off', {}, 'a3');
sql(q{UPDATE accord.channel SET enabled = true WHERE name = 'off'});
wait_until_owed('off', 0);
is(join(' ', sort split / /, arrived('off')), 'a3 c1 f1', 'enabled, after a crash: none of them is sent, the rest is');
is(fates('off'), join(' ', qw(a1:discarded a2:discarded b1:discarded c1:delivered d1:discarded e1:discarded
      f1:delivered a3:delivered)),
    '... and each is accounted for, once');

# Many of very many: the endpoint reads its pages past them.
named_channel('many', undef, enabled => 'false');
sql(q{INSERT INTO accord.outbox (topic, key, payload)
    SELECT 'many', (g % 7)::text, jsonb_build_object('n', g) FROM generate_series(1, 5000) g});
is(sql(q{SELECT sum(accord.discard(event_id, 'many')) FROM accord.event_log
    WHERE topic = 'many' AND (payload ->> 'n')::int % 2 = 0 AND (payload ->> 'n')::int <= 1000}), 500, 'five hundred of five thousand');
wait_until_owed('many', 4500);
sql(q{UPDATE accord.channel SET enabled = true WHERE name = 'many'});
wait_until_owed('many', 0);
is(sql(q{SELECT outcome, count(*), count(DISTINCT (seq, ord)) FROM accord.attempt_log WHERE channel = 'many'
    GROUP BY 1 ORDER BY 1}),
    "delivered|4500|4500\ndiscarded|500|500", '... and the rest is delivered, once');
my %last;
is(scalar(grep { m{^/many/(.)/(\d+)$} ? ($last{$1} || 0) > ($last{$1} = $2) : 0 } map { $_->{path} } $stub->log), 0,
    '... in order');
is(sql('SELECT count(*) FROM accord.outbox'), 0, 'nothing is owed');
is(sql('SELECT count(*) FROM accord.backlog'), 0, '... and the backlog is empty');

done_testing();
