# Two databases, each a channel of the other over HTTP, with clocks ten minutes apart, a network that loses, repeats and
# reorders, and a partition in which both are written: equal when it has healed, and so is what they say of conflicts.
use strict;
use warnings FATAL => 'all';

use Accord;
use IPC::Open2;
use PostgreSQL::Test::Utils;
use Test::More;

my %node = map { $_ => new_node($_, "accord.node_name = '$_'\n") } qw(a b);
my %other = (a => 'b', b => 'a');
my %behaviour = map { $_ => PostgreSQL::Test::Utils::tempdir() . "/behaviour_$_" } qw(a b);

sub value { my ($name, $sql) = @_; return $node{$name}->safe_psql('postgres', $sql); }
sub both { my ($sql) = @_; value($_, $sql) for qw(a b); return; }

# How the network behaves, on both ways.
sub behave
{
    my ($json) = @_;
    for my $file (values %behaviour)
    {
        append_to_file("$file.new", $json);
        rename "$file.new", $file or die "could not rename $file.new: $!";
    }
    return;
}
behave('{}');

my %bridge;
for my $to (qw(a b))
{
    my $pid = open2(my $out, my $in, 'python3', $ENV{TESTDIR} . '/test/lib/bridge.py', $other{$to},
        $node{$to}->connstr('postgres'), $behaviour{$to});
    chomp(my $port = <$out>);
    $bridge{$to} = { pid => $pid, in => $in, out => $out, port => $port };
}

both(q{
CREATE TABLE booking (id integer PRIMARY KEY, price integer, note text, tags text[], stock integer DEFAULT 0);
SELECT accord.capture('booking');
SELECT accord.set_policy('booking', 'price', 'priority', '{"order": ["b", "a"], "on_local": "keep"}');
SELECT accord.set_policy('booking', 'tags', 'set'), accord.set_policy('booking', 'stock', 'counter');
-- the message that the other side receives: what changed, with what its author saw. Corrections are for those who do not
-- merge themselves.
CREATE FUNCTION message(e accord.event_log) RETURNS accord.http_request LANGUAGE sql STABLE
SET search_path = pg_catalog AS $$
    SELECT CASE WHEN e.channels IS NULL THEN ROW(NULL, NULL, NULL, jsonb_build_object(
        'event_id', e.event_id, 'target', 'public.booking', 'op', e.op, 'key', e.key, 'occurred_at', e.occurred_at,
        'changes', CASE e.op WHEN 'update' THEN (SELECT jsonb_object_agg(k, e.payload -> k) FROM jsonb_object_keys(e.before) k)
                             WHEN 'insert' THEN e.payload - 'id' ELSE '{}' END,
        'base', CASE e.op WHEN 'update' THEN e.before END)::text)::accord.http_request END
$$;
});
for my $name (qw(a b))
{
    my $to = $other{$name};
    value($name, qq{
        INSERT INTO accord.channel (name, base_url, ordering, retry_base, retry_cap, max_attempts, breaker_failures,
                                    breaker_ratio)
            VALUES ('$to', 'http://127.0.0.1:$bridge{$to}{port}', 'none', '10 ms', '200 ms', 10000, NULL, NULL);
        INSERT INTO accord.source (name, skew) VALUES ('$to', '1 hour');
        INSERT INTO accord.route (channel, topic, path, coalesce, body_function) VALUES ('$to', 'booking', '/', NULL, 'public.message')});
}

# The clock of b is ten minutes ahead: it has heard of such a time.
value('b', q{INSERT INTO accord.source (name, skew) VALUES ('ahead', '1 hour');
             INSERT INTO booking (id) VALUES (0);
             SELECT accord.receive('ahead', 'x', target => 'booking', key => '0', changes => '{"note": "x"}',
                                   occurred_at => now() + interval '10 min');
             DELETE FROM booking WHERE id = 0});

sub settled
{
    wait_for_rows($node{$_}, 'SELECT count(*) FROM accord.outbox', '0') for qw(a b);
    # what came last may have made events of its own
    wait_for_rows($node{$_}, 'SELECT count(*) FROM accord.outbox', '0') for qw(a b);
    return;
}

# What both must agree on. A source of null is the database itself.
sub rows { my ($name) = @_; return value($name, 'SELECT * FROM booking ORDER BY id'); }

sub stamps
{
    my ($name) = @_;
    return value($name, qq{
        SELECT key, c, coalesce(state -> c, state -> '*') ->> 0, coalesce(coalesce(state -> c, state -> '*') ->> 1, '$name')
        FROM accord.row_state CROSS JOIN unnest(ARRAY['price', 'note']) c
        WHERE key <> '0' AND coalesce(state -> c, state -> '*') IS NOT NULL ORDER BY 1, 2});
}

sub conflicts
{
    my ($name) = @_;
    return value($name, qq{
        SELECT key, column_name, rule, coalesce(winner_source, '$name'), winner, coalesce(loser_source, '$name'), loser
        FROM accord.conflict WHERE column_name IN ('price', 'note') AND key <> '0' ORDER BY 1, 2, 4, 7});
}

value('a', q{INSERT INTO booking SELECT n, 100, 'new', '{pool}', 10 FROM generate_series(1, 30) n});
settled();
is(rows('a'), rows('b'), 'what one inserts is in the other');
is(value('b', 'SELECT count(*) FROM booking'), 30, '... all of it');
is(conflicts('a') . conflicts('b'), '', '... without a conflict');

# Apart: each writes what the other does.
behave('{"partition": true}');
value('a', q{UPDATE booking SET price = 200 + id WHERE id <= 20; UPDATE booking SET note = 'a' WHERE id % 3 = 0;
             UPDATE booking SET tags = tags || '{sauna}'::text[], stock = stock - 1 WHERE id % 2 = 0;
             DELETE FROM booking WHERE id = 29});
value('b', q{UPDATE booking SET price = 300 + id WHERE id > 10; UPDATE booking SET note = 'b' WHERE id % 2 = 0;
             UPDATE booking SET tags = array_append(array_remove(tags, 'pool'), 'sea'), stock = stock - 2 WHERE id % 3 = 0;
             INSERT INTO booking VALUES (31, 1, 'b', '{}', 5)});
isnt(rows('a'), rows('b'), 'apart they differ');

behave('{"fail": 0.3, "twice": 0.2, "delay": 0.05}');
settled();
is(rows('a'), rows('b'), 'together again they are equal');
is(stamps('a'), stamps('b'), '... and so is who gave each value, and when');
is(conflicts('a'), conflicts('b'), '... and what they say of conflicts');
isnt(conflicts('a'), '', '... of which there were some');
is(value('a', 'SELECT price, note FROM booking WHERE id = 12'), '312|b', 'rank decides, or time');
is(value('b', 'SELECT tags, stock FROM booking WHERE id = 6'), '{sauna,sea}|7', 'sets and counters have both');
is(value('b', 'SELECT count(*) FROM booking WHERE id = 31'), 1, 'what was inserted apart is in both');

# And on.
value('a', q{UPDATE booking SET note = 'after' WHERE id = 12});
settled();
is(value('b', 'SELECT note FROM booking WHERE id = 12'), 'after', 'who is behind by the wall clock writes after all the same');
is(rows('a'), rows('b'), 'they stay equal');

close $_->{in} for values %bridge;
waitpid $_->{pid}, 0 for values %bridge;
$node{$_}->stop for qw(a b);
done_testing();
