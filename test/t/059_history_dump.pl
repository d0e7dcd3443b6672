# History survives dump and restore: a table is known by its own number, so what happened before is read, shown as it was,
# and undone, in the copy as in the original.
use strict;
use warnings FATAL => 'all';

use Accord;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', "accord.dispatch = off\n");

sub run_sql { my ($database, $sql) = @_; return $node->safe_psql($database, $sql); }

run_sql('postgres', <<'SQL');
CREATE SCHEMA app;
CREATE TABLE app.spare (id integer PRIMARY KEY);
CREATE TABLE app.room (id integer PRIMARY KEY, name text, price numeric(8,2));
CREATE TABLE app.booking (room integer REFERENCES app.room, n integer, guest text, PRIMARY KEY (room, n));
SELECT accord.capture('app.spare'), accord.capture('app.booking'), accord.capture('app.room');
SQL
run_sql('postgres', q{INSERT INTO app.room VALUES (1, 'Erker', 80), (2, 'Garten', 95)});
run_sql('postgres', q{INSERT INTO app.booking VALUES (1, 1, 'ann'), (1, 2, 'bob')});
run_sql('postgres', q{SELECT accord.mark('good', 'all is well')});
run_sql('postgres', <<'SQL');
BEGIN;
SET LOCAL accord.actor = 'bert';
UPDATE app.room SET price = price * 10;
DELETE FROM app.booking;
COMMIT;
SQL
run_sql('postgres', 'ALTER TABLE app.room RENAME TO chamber');
run_sql('postgres', 'ALTER TABLE app.chamber ADD beds integer DEFAULT 2');
run_sql('postgres', 'UPDATE app.chamber SET price = 1 WHERE id = 2');
run_sql('postgres', 'DROP TABLE app.spare');

my $before = <<'SQL';
SELECT seq, op, changes, actor, event_id FROM accord.history('app.chamber', 1);
SELECT seq, op, changes, actor, event_id FROM accord.history('app.booking', ROW(1, 2));
SELECT * FROM accord.blame('app.chamber', 2);
SELECT name, seq, comment FROM accord.marks;
SELECT id, name, price FROM accord.as_of(NULL::app.chamber, 'good') ORDER BY 1;
SELECT * FROM accord.as_of(NULL::app.booking, 'good') ORDER BY 1, 2;
SELECT * FROM accord.diff('app.chamber', 1, 'good');
SQL
my $original = run_sql('postgres', $before);
like($original, qr/bert/, 'there is a history');

$node->command_ok([ 'pg_dump', '-Fc', '-f', $node->basedir . '/app.dump', 'postgres' ], 'dump');
run_sql('postgres', 'CREATE DATABASE other_first');
run_sql('other_first', 'CREATE TABLE in_the_way (id integer)');
run_sql('postgres', 'CREATE DATABASE again');
$node->command_ok([ 'pg_restore', '-d', 'again', '--exit-on-error', $node->basedir . '/app.dump' ], 'restore');
is(run_sql('again', $before), $original, 'the copy tells the same');
run_sql('again', 'SELECT accord.adopt()');

# What was done in the original is undone in the copy.
is( run_sql('again', q{SELECT table_name, row_key, action, status FROM accord.revert(actor => 'bert') ORDER BY 1, 2, 4}),
    join("\n", 'app.booking|1,1|insert|applied', 'app.booking|1,2|insert|applied', 'app.chamber|1|update|applied',
        'app.chamber|2|update|kept'),
    'what was done in the original is undone in the copy');
is(run_sql('again', 'SELECT id, price FROM app.chamber ORDER BY 1'), "1|80.00\n2|1.00", '... rooms');
is(run_sql('again', 'SELECT * FROM app.booking ORDER BY 1, 2'), "1|1|ann\n1|2|bob", '... and bookings');
is(run_sql('again', q{SELECT count(*) FROM accord.history('app.booking', '1,1')}), 3, 'history goes on');
# New changes have a place after the old ones.
is( run_sql('again', q{SELECT price FROM accord.as_of(NULL::app.chamber, 'good') WHERE id = 1}), '80.00',
    'the past is still there');
done_testing();
