-- capture_ddl: captured tables are followed through what becomes of them.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;
\set SHOW_CONTEXT never
CREATE SCHEMA cd;
CREATE TABLE cd.room (gone text, id integer PRIMARY KEY, name text, price numeric(10, 2), hotel text);
ALTER TABLE cd.room DROP gone;
SELECT accord.capture('cd.room', condition => $$name <> ''$$, account_column => 'hotel', columns => '{name,price}') AS room \gset
CREATE VIEW captured AS
    SELECT schema_name, table_name, key_columns, columns, account_column, released_at IS NOT NULL AS released
    FROM accord.captured WHERE id = :room;
CREATE VIEW shape AS
    SELECT version, string_agg(format('%s %s %s', c.id, c.name, c.type), ', ' ORDER BY c.id) AS columns
    FROM accord.captured_shape s, jsonb_to_recordset(s.columns) c (id integer, name text, type text)
    WHERE table_id = :room GROUP BY version;
SELECT accord.safe_seq() AS mark \gset

-- Columns renamed, added, retyped, dropped: rows written before keep their meaning.
INSERT INTO cd.room VALUES (1, 'a', 1.5, 'h1');
ALTER TABLE cd.room RENAME name TO title;
ALTER TABLE cd.room ADD extra integer DEFAULT 7, ALTER price TYPE integer;
ALTER TABLE cd.room RENAME COLUMN id TO nr;
ALTER TABLE cd.room RENAME hotel TO name;
UPDATE cd.room SET title = 'b', price = 9;
INSERT INTO cd.room VALUES (2, '', 5, 'h2');
BEGIN;
UPDATE cd.room SET title = 'c';
ALTER TABLE cd.room DROP price;
UPDATE cd.room SET title = 'd';
COMMIT;
TABLE captured;
TABLE shape ORDER BY 1;
SELECT seq - :mark AS seq, ord, topic, key, account, op, payload, before,
       accord.reshape(payload, :room, seq, ord) AS payload_now, accord.reshape(before, :room, seq, ord) AS before_now
FROM accord.read(:mark) WHERE op <> 'event';
-- Within the transaction that changed it, too.
BEGIN;
ALTER TABLE cd.room RENAME title TO heading;
SELECT accord.reshape(payload, :room, seq, ord) FROM accord.read(:mark, 1) WHERE op <> 'event';
ROLLBACK;
SELECT accord.reshape(payload, :room, seq, ord) FROM accord.read(:mark, 1) WHERE op <> 'event';
-- Its key and its account are needed.
ALTER TABLE cd.room DROP nr;
ALTER TABLE cd.room DROP COLUMN name;
-- So is what the condition uses: the trigger depends on it.
ALTER TABLE cd.room DROP title;
-- What is excluded may go.
SELECT accord.capture('cd.room', excluded => '{extra}') = :room AS same_id;
ALTER TABLE cd.room DROP extra;
SELECT excluded FROM accord.captured WHERE id = :room;
INSERT INTO cd.room VALUES (3, 'x', 'h1');
SELECT key, payload FROM accord.event_log WHERE table_id = :room AND key = '3';

-- Names: of table and schema, quoted, not ASCII.
ALTER TABLE cd.room RENAME TO "Zimmer, ""groß""";
ALTER SCHEMA cd RENAME TO "Schéma";
CREATE SCHEMA cd;
ALTER TABLE "Schéma"."Zimmer, ""groß""" SET SCHEMA cd;
ALTER TABLE cd."Zimmer, ""groß""" RENAME nr TO "Nr.";
TABLE captured;
SELECT accord.captured_relation(:room);
UPDATE cd."Zimmer, ""groß""" SET title = 'y' WHERE "Nr." = 3;
SELECT key, payload, before FROM accord.event_log WHERE table_id = :room AND key = '3' AND op = 'update';
SELECT accord.capture('cd."Zimmer, ""groß"""', topic => 'zimmer', key_columns => '{Nr.}', condition => '"Nr." > 0') = :room AS same_id;

-- DDL that fails, or is rolled back, changes nothing; a function's is followed.
ALTER TABLE cd."Zimmer, ""groß""" ADD "Nr." integer;
BEGIN;
ALTER TABLE cd."Zimmer, ""groß""" RENAME TO other;
SAVEPOINT s;
DROP TABLE cd.other;
SELECT released FROM captured;
ROLLBACK TO s;
SELECT released, table_name FROM captured;
ROLLBACK;
TABLE captured;
DO $$ BEGIN ALTER TABLE cd."Zimmer, ""groß""" RENAME TO room; END $$;
TABLE captured;

-- Triggers taken off by hand, and the table dropped: the record stays, and says when.
DROP TRIGGER "0_accord_capture_insert" ON cd.room;
TABLE captured;
DROP TABLE cd.room;
TABLE captured;
SELECT accord.captured_relation(:room), count(*) > 0 AS history FROM accord.event_log WHERE table_id = :room;
-- Another table of that name is another one, unless it was released before.
CREATE TABLE cd.other (id integer PRIMARY KEY);
SELECT accord.capture('cd.other') <> :room AS other_id;
-- A trigger that was copied from a database in which the table had a number that is not known here.
CREATE TABLE cd.copied (id integer PRIMARY KEY);
CREATE TRIGGER "0_accord_capture" AFTER INSERT ON cd.copied FOR EACH ROW EXECUTE FUNCTION accord.capture_row('99999');
INSERT INTO cd.copied VALUES (1);
SELECT accord.capture('cd.copied');
INSERT INTO cd.copied VALUES (1);
-- A cached plan, and a session that has the table in its cache, follow as well.
PREPARE change AS UPDATE cd.other SET id = id + 1;
INSERT INTO cd.other VALUES (1);
EXECUTE change;
ALTER TABLE cd.other ADD v text DEFAULT 'v';
EXECUTE change;
ALTER TABLE cd.other DROP CONSTRAINT other_pkey, ALTER id TYPE bigint;
EXECUTE change;
SELECT key, op, payload FROM accord.event_log WHERE table_id = accord.captured_id('cd.other') AND op = 'insert' ORDER BY tx_id, ord;
SET client_min_messages = warning;
DROP VIEW captured, shape;
DROP SCHEMA cd, "Schéma" CASCADE;
