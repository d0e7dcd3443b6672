# Logical replication of the application's tables, with pg_accord in both databases: what arrives by replication is no new
# change there, is neither an event nor sent twice, while each side's own changes are; also two-way, where rows would go
# in circles. A publication of all tables brings the log itself: that makes the subscriber a copy, and silent.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $stub = start_stub();
my %node = map { $_ => new_node($_, undef, init => [ allows_streaming => 'logical' ]) } 'left', 'right';

sub value { my ($side, $sql, $database) = @_; return $node{$side}->safe_psql($database || 'postgres', $sql); }
sub arrived { return join ' ', sort map { $_->{path} =~ m{/(.*)$} } $stub->log; }

# Events of captured rows, in commit order.
sub logged { return value($_[0], q{SELECT string_agg(op || ' ' || key, ', ' ORDER BY seq, ord) FROM accord.read(0, 1000) WHERE topic = 'room'}); }

sub subscribe
{
    my ($to, $from, $publication, $database, $options) = @_;
    my $connection = $node{$from}->connstr('postgres') =~ s/'/''/gr;
    return value($to, "CREATE SUBSCRIPTION from_$from CONNECTION '$connection' PUBLICATION $publication $options", $database);
}

sub wait_for_room
{
    my ($side, @rows) = @_;
    return wait_for_rows($node{$side}, 'SELECT id, price FROM room ORDER BY id', @rows);
}

for my $side (sort keys %node)
{
    value($side, "CREATE TABLE room (id integer PRIMARY KEY, price integer);
        SELECT accord.capture('room', topic => 'room');
        INSERT INTO accord.channel (name, base_url) VALUES ('ota', '@{[ $stub->url ]}/$side');
        INSERT INTO accord.route (channel, topic, path, coalesce) VALUES ('ota', 'room', '/{op}/{key}', NULL);
        CREATE PUBLICATION rooms FOR TABLE room");
}
value('left', 'INSERT INTO room VALUES (1, 80), (2, 95)');
# what was there is copied
subscribe('right', 'left', 'rooms', 'postgres', '');
wait_for_room('right', '1|80', '2|95');
value('left', 'UPDATE room SET price = 90 WHERE id = 1');
value('left', 'DELETE FROM room WHERE id = 2');
value('left', 'INSERT INTO room VALUES (3, 70)');
wait_for_room('right', '1|90', '3|70');
is(logged('left'), 'insert 1, insert 2, update 1, delete 2, insert 3', 'changes are events where they are made');
is(logged('right'), '', '... and none where they arrive');
value('right', 'INSERT INTO room VALUES (10, 10)');
is(logged('right'), 'insert 10', '... where other changes are events');
wait_for_delivery($node{$_}) for 'left', 'right';
is(arrived(), 'left/delete/2 left/insert/1 left/insert/2 left/insert/3 left/update/1 right/insert/10', 'each is sent once');

# ---- both ways; from 16 on, when a subscription can leave out what came by replication itself

if ($node{left}->pg_version >= 16)
{
    value('right', 'DELETE FROM room WHERE id = 10');
    value('right', 'ALTER SUBSCRIPTION from_left SET (origin = none)');
    subscribe('left', 'right', 'rooms', 'postgres', 'WITH (copy_data = off, origin = none)');
    value('right', 'INSERT INTO room VALUES (11, 11)');
    wait_for_room('left', '1|90', '3|70', '11|11');
    value('left', 'INSERT INTO room VALUES (4, 40)');
    wait_for_room('right', '1|90', '3|70', '4|40', '11|11');
    like(logged('left'), qr/insert 3, insert 4$/, 'both ways: the one logs its own changes');
    is(logged('right'), 'insert 10, delete 10, insert 11', '... the other its own');
    value('left', 'DROP SUBSCRIPTION from_right');
}
is(value('right', 'SELECT DISTINCT state FROM accord.status'), 'idle', 'replication of tables makes no copy');

# ---- all tables

value('left', 'CREATE PUBLICATION everything FOR ALL TABLES');
value('right', 'CREATE DATABASE whole');
value('right', 'CREATE EXTENSION pg_accord; CREATE TABLE room (id integer PRIMARY KEY, price integer)', 'whole');
is(value('right', 'SELECT count(state) FROM accord.silence()', 'whole'), 0, 'before, it may send');
subscribe('right', 'left', 'everything', 'whole', 'WITH (slot_name = whole)');
$node{right}->poll_query_until('whole', q{SELECT count(*) > 4 FROM accord.event_log}) or die;
is(value('right', 'SELECT state FROM accord.silence()', 'whole'), 'copy', 'who gets the log itself is a copy');
value('right', 'DROP SUBSCRIPTION from_left', 'whole');
value('right', 'DROP SUBSCRIPTION from_left');
done_testing();
