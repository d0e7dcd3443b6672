-- revert: undoing transactions of captured tables: what is put back, what is kept, and what is in the way; and bringing
-- deleted rows back. (Over random histories: test/t/057_revert.pl.)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;
SET timezone = 'UTC';
\set SHOW_CONTEXT never

-- The plan, without what is not the same every time.
CREATE FUNCTION pg_temp.plan(OUT table_name text, OUT row_key text, OUT action text, OUT changes jsonb, OUT status text, OUT why text,
                             variadic arguments text[]) RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY EXECUTE format('SELECT r.table_name, r.row_key, r.action, r.changes, r.status, regexp_replace(r.why, ''commit \d+'', ''commit N'') '
                                'FROM accord.revert(%s) r ORDER BY 1, 2, 5', array_to_string(arguments, ', '));
END
$$;
-- The number of the last commit, and how many there were since a number.
CREATE FUNCTION pg_temp.last() RETURNS bigint LANGUAGE sql AS 'SELECT accord.safe_seq()';

CREATE TABLE room (id integer PRIMARY KEY, name text, price numeric(8,2), stock integer, note text);
CREATE TABLE booking (room integer REFERENCES room, n integer, guest text, PRIMARY KEY (room, n));
SELECT accord.capture('room') IS NOT NULL AS room, accord.capture('booking') IS NOT NULL AS booking;
INSERT INTO room VALUES (1, 'Erker', 80, 1, 'x'), (2, 'Garten', 95, 2, 'y'), (3, 'Keller', 40, 3, NULL), (4, 'Turm', 60, 0, NULL);
INSERT INTO booking VALUES (1, 1, 'ann'), (1, 2, 'bob'), (2, 1, 'cem');

-- Three-way, column by column: a transaction that changed much, and what others did since.
BEGIN;
SET LOCAL accord.actor = 'rob';
SET LOCAL accord.correlation_id = 'import-7';
SET LOCAL accord.reason = 'prices of the winter';
UPDATE room SET price = price * 10, note = 'rob was here';
DELETE FROM booking WHERE room = 1;
DELETE FROM room WHERE id IN (1, 4);
INSERT INTO room VALUES (5, 'Neu', 1, 1, NULL), (6, 'Neuer', 1, 1, NULL);
INSERT INTO booking VALUES (5, 1, 'dee');
COMMIT;
SELECT pg_temp.last() AS bad \gset
BEGIN;
SET LOCAL accord.actor = 'ann';
SET LOCAL accord.reason = 'a guest called';
UPDATE room SET price = 96 WHERE id = 2;
UPDATE room SET stock = 7 WHERE id = 3;
UPDATE room SET stock = 2 WHERE id = 6;
INSERT INTO room VALUES (4, 'Turm', 61, 0, NULL);
COMMIT;
CREATE TEMPORARY TABLE before AS SELECT * FROM room;
SELECT * FROM pg_temp.plan('seq => ' || :bad, 'dry_run => true');
SELECT count(*) FROM (TABLE room EXCEPT TABLE before) d;
-- refused, with the list
DO $$
DECLARE detail text; BEGIN
    PERFORM * FROM accord.revert(actor => 'rob', mode => 'strict');
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RAISE NOTICE '% %', SQLERRM, regexp_replace(detail, 'commit \d+', 'commit N', 'g');
END $$;
SELECT count(*) FROM (TABLE room EXCEPT TABLE before) d;
-- overwritten
BEGIN;
SELECT * FROM pg_temp.plan('correlation_id => ''import-7''', 'mode => ''force''');
TABLE room ORDER BY id;
TABLE booking ORDER BY 1, 2;
ROLLBACK;
-- kept
SELECT * FROM pg_temp.plan('matching_reason => ''prices of the winter''', 'reason => ''rob took the wrong list''');
TABLE room ORDER BY id;
TABLE booking ORDER BY 1, 2;
SELECT op, changes, actor, reason FROM accord.history('room', 2) ORDER BY seq DESC LIMIT 1;
SELECT payload - 'seqs' AS payload, payload -> 'seqs' = to_jsonb(ARRAY[:bad]) AS seqs FROM accord.read(pg_temp.last() - 1) WHERE topic = 'accord.revert';
-- again: there is nothing left to do; and the revert can be reverted
SELECT status, count(*) FROM accord.revert(seq => :bad) GROUP BY 1 ORDER BY 1;
SELECT max(seq) AS back FROM accord.commit_log WHERE reason = 'rob took the wrong list' \gset
SELECT * FROM pg_temp.plan('seq => ' || :back);
SELECT count(*) FROM (TABLE room EXCEPT TABLE before) d;
SELECT count(*) FROM (TABLE before EXCEPT TABLE room) d;

-- Several transactions on one row: the way back ends at what others left.
CREATE TABLE item (id integer PRIMARY KEY, a integer, b integer, c integer);
SELECT accord.capture('item') IS NOT NULL AS captured;
SELECT accord.mark('items');
CREATE FUNCTION pg_temp.as_actor(who text, statement text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('accord.actor', who, true);
    EXECUTE statement;
END $$;
SELECT pg_temp.as_actor('ann', 'INSERT INTO item VALUES (1, 0, 0, 0), (2, 0, 0, 0)');
SELECT pg_temp.as_actor('rob', 'UPDATE item SET a = 1, b = 1 WHERE id = 1');
SELECT pg_temp.as_actor('rob', 'UPDATE item SET a = 2 WHERE id = 1');
SELECT pg_temp.as_actor('ann', 'UPDATE item SET b = 5 WHERE id = 1');
SELECT pg_temp.as_actor('rob', 'UPDATE item SET b = 6, c = 6 WHERE id = 1');
SELECT pg_temp.as_actor('rob', 'INSERT INTO item VALUES (3, 1, 1, 1)');
SELECT pg_temp.as_actor('rob', 'UPDATE item SET a = 2 WHERE id = 3');
SELECT pg_temp.as_actor('rob', 'DELETE FROM item WHERE id = 2');
SELECT pg_temp.as_actor('rob', 'INSERT INTO item VALUES (2, 9, 0, 0)');
SELECT pg_temp.as_actor('rob', 'INSERT INTO item VALUES (4, 0, 0, 0)');
SELECT pg_temp.as_actor('rob', 'DELETE FROM item WHERE id = 4');
BEGIN;
SELECT * FROM pg_temp.plan('actor => ''rob''', 'relation => ''item''');
TABLE item ORDER BY id;
ROLLBACK;
SELECT * FROM pg_temp.plan('after => ''items''', 'relation => ''item''', 'actor => ''rob''', 'up_to => accord.safe_seq()::text', 'dry_run => true');
SELECT status, count(*) FROM accord.revert(after => 'items', relation => 'item') GROUP BY 1;
TABLE item;
SELECT count(*) FROM accord.revert(actor => 'rob', relation => 'item', since => clock_timestamp() + interval '1 h');
SELECT count(*) FROM accord.revert(actor => 'rob', relation => 'item', until => '2001-01-01');

-- By source.
BEGIN;
SET LOCAL accord.source = 'ota';
INSERT INTO item VALUES (7, 1, 1, 1);
RESET accord.source;
INSERT INTO item VALUES (8, 1, 1, 1);
COMMIT;
SELECT * FROM pg_temp.plan('source => ''ota''');
TABLE item;

-- What is in the way is listed, and the rest done: unique, check, not null, exclusion, foreign keys, triggers.
CREATE TABLE code (id integer PRIMARY KEY, code text UNIQUE, during int4range, amount integer NOT NULL, EXCLUDE USING gist (during WITH &&));
CREATE TABLE use (id integer PRIMARY KEY, code text NOT NULL REFERENCES code (code) ON UPDATE CASCADE ON DELETE CASCADE);
SELECT accord.capture('code') IS NOT NULL AS code, accord.capture('use') IS NOT NULL AS use;
INSERT INTO code VALUES (1, 'A', '[1,2)', 1), (2, 'B', '[2,3)', 2), (3, 'C', '[3,4)', 3), (4, 'D', '[4,5)', 4), (5, 'E', '[5,6)', 5);
INSERT INTO use VALUES (1, 'A');
BEGIN;
DELETE FROM code WHERE id IN (1, 2);
UPDATE code SET during = '[7,8)' WHERE id = 3;
UPDATE code SET amount = 40 WHERE id = 4;
UPDATE code SET amount = 50 WHERE id = 5;
INSERT INTO code VALUES (9, 'N', '[10,11)', 9);
COMMIT;
SELECT pg_temp.last() AS bad \gset
INSERT INTO code VALUES (12, 'B', '[12,13)', 0), (13, 'X', '[3,4)', 0);
INSERT INTO use VALUES (9, 'N');
ALTER TABLE code ADD CHECK (amount <> 4);
CREATE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'code 5 is not to be changed'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON code FOR EACH ROW WHEN (old.id = 5) EXECUTE FUNCTION pg_temp.refuse();
SELECT row_key, action, status, why FROM pg_temp.plan('seq => ' || :bad);
SELECT * FROM code ORDER BY id;
-- in strict mode that refuses too
DO $$ BEGIN PERFORM * FROM accord.revert(seq => (SELECT max(seq) FROM accord.commit_log) - 3, mode => 'strict');
EXCEPTION WHEN object_not_in_prerequisite_state THEN RAISE NOTICE '%', SQLERRM; END $$;

-- What triggers make of it: set once more; what they insist on is said. They run under the session's search_path.
CREATE SCHEMA app;
CREATE TABLE app.stock (id integer PRIMARY KEY, left_over integer);
CREATE TABLE app.sale (id integer PRIMARY KEY, stock integer, n integer, changed text);
CREATE FUNCTION app.sold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE stock SET left_over = left_over - CASE WHEN tg_op = 'INSERT' THEN new.n ELSE -old.n END
    WHERE id = CASE WHEN tg_op = 'INSERT' THEN new.stock ELSE old.stock END;
    RETURN NULL;
END $$;
CREATE FUNCTION app.stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.changed := 'by ' || tg_op; RETURN new; END $$;
SET search_path = app, public;
CREATE TRIGGER sold AFTER INSERT OR DELETE ON sale FOR EACH ROW EXECUTE FUNCTION app.sold();
CREATE TRIGGER stamp BEFORE UPDATE ON sale FOR EACH ROW EXECUTE FUNCTION app.stamp();
SELECT accord.capture('stock') IS NOT NULL AS stock, accord.capture('sale') IS NOT NULL AS sale;
INSERT INTO stock VALUES (1, 10);
INSERT INTO sale VALUES (1, 1, 2, 'never');
INSERT INTO sale VALUES (2, 1, 3, 'never');
SELECT * FROM pg_temp.plan('seq => ' || pg_temp.last());
TABLE stock;
UPDATE sale SET n = 5;
SELECT * FROM pg_temp.plan('seq => ' || pg_temp.last());
TABLE sale;
RESET search_path;

-- Circles: of references, of values; references to itself; constraints that can wait; changes of keys.
CREATE TABLE a (id integer PRIMARY KEY, b integer, u integer UNIQUE, u2 integer UNIQUE DEFERRABLE);
CREATE TABLE b (id integer PRIMARY KEY, a integer NOT NULL REFERENCES a ON UPDATE CASCADE);
ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b;
CREATE TABLE tree (id integer PRIMARY KEY, parent integer REFERENCES tree ON DELETE CASCADE);
CREATE TABLE chick (id integer PRIMARY KEY, egg integer NOT NULL);
CREATE TABLE egg (id integer PRIMARY KEY, chick integer NOT NULL REFERENCES chick DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE chick ADD FOREIGN KEY (egg) REFERENCES egg DEFERRABLE INITIALLY DEFERRED;
SELECT count(accord.capture(t)) FROM unnest('{a,b,tree,chick,egg}'::regclass[]) t;
BEGIN;
INSERT INTO a VALUES (1, NULL, 1, 1), (2, NULL, 2, 2);
INSERT INTO b VALUES (1, 1), (2, 2);
UPDATE a SET b = id;
INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2);
INSERT INTO chick VALUES (1, 1);
INSERT INTO egg VALUES (1, 1);
COMMIT;
SELECT pg_temp.last() AS made \gset
-- swaps
BEGIN;
UPDATE a SET u = NULL WHERE id = 1;
UPDATE a SET u = 1 WHERE id = 2;
UPDATE a SET u = 2 WHERE id = 1;
SET CONSTRAINTS ALL DEFERRED;
UPDATE a SET u2 = 3 - u2;
COMMIT;
SELECT status, count(*) FROM accord.revert(seq => pg_temp.last()) GROUP BY 1;
TABLE a ORDER BY id;
-- changes of keys
UPDATE a SET id = id + 10;
SELECT row_key, action, changes, status FROM pg_temp.plan('seq => ' || pg_temp.last());
SELECT a.id, b.* FROM a JOIN b ON b.a = a.id ORDER BY 1;
-- all of it away, and back
SELECT table_name, status, count(*) FROM accord.revert(seq => :made) GROUP BY 1, 2 ORDER BY 1, 2;
SELECT (SELECT count(*) FROM a) AS a, (SELECT count(*) FROM b) AS b, (SELECT count(*) FROM tree) AS tree,
       (SELECT count(*) FROM chick) AS chick, (SELECT count(*) FROM egg) AS egg;
SELECT table_name, status, count(*) FROM accord.revert(seq => pg_temp.last()) GROUP BY 1, 2 ORDER BY 1, 2;
SELECT a.*, b.* FROM a JOIN b ON b.a = a.id ORDER BY 1;
TABLE tree ORDER BY 1;
SELECT * FROM chick, egg;

-- Columns that are generated, identities, not captured, added since, of another type since.
CREATE TABLE shape (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text, twice text GENERATED ALWAYS AS (a || a) STORED,
                    secret text DEFAULT 'none', t timestamptz, j jsonb, l integer[]);
SELECT accord.capture('shape', excluded => '{secret}') IS NOT NULL AS captured;
INSERT INTO shape (a, secret, t, j, l) VALUES ('1', 's', '2026-01-02 03:04:05.678+01', '{"x": [1, null]}', '{{1},{2}}'), ('2', 's', NULL, 'null', NULL);
BEGIN;
SET LOCAL timezone = 'Asia/Tokyo';
SET LOCAL datestyle = 'SQL, DMY';
UPDATE shape SET a = a || '0', secret = 'new', t = t + interval '1 h', l = NULL;
COMMIT;
SELECT pg_temp.last() AS changed \gset
DELETE FROM shape WHERE id = 2;
SELECT pg_temp.last() AS deleted \gset
ALTER TABLE shape ADD added integer NOT NULL DEFAULT 3;
ALTER TABLE shape DROP twice, ALTER a TYPE integer USING a::integer;
SET timezone = 'America/Lima';
SELECT * FROM pg_temp.plan('seq => ' || :deleted);
SELECT * FROM pg_temp.plan('seq => ' || :changed);
SET timezone = 'UTC';
SELECT id, a, secret, t AT TIME ZONE 'UTC' AS t, j, l, added FROM shape ORDER BY id;
INSERT INTO shape (a) VALUES (5);
UPDATE shape SET a = 6 WHERE id = 3;
SELECT pg_temp.last() AS six \gset
ALTER TABLE shape ALTER a TYPE date USING '2026-01-01';
SELECT row_key, status, why FROM pg_temp.plan('seq => ' || :six, 'mode => ''force''');

-- Deleted rows come back.
DELETE FROM booking WHERE room = 2;
DELETE FROM room WHERE id = 2;
SELECT row_key, status, why FROM accord.undelete('booking', ROW(2, 1));
SELECT row_key, changes, status, why FROM accord.undelete('room', 2, dry_run => true);
SELECT row_key, status FROM accord.undelete('room', 2, reason => 'not that one');
SELECT row_key, status FROM accord.undelete('booking', '2,1');
SELECT row_key, status FROM accord.undelete('booking', '2,1');
SELECT room.id, guest, reason FROM room JOIN booking ON room = id CROSS JOIN LATERAL accord.history('room', id) h WHERE id = 2 ORDER BY h.seq DESC LIMIT 1;
DELETE FROM booking;
SELECT row_key, status FROM accord.undelete('booking', '{"room": 1, "guest": "bob"}'::jsonb);
SELECT row_key, status FROM accord.undelete('booking', matching => '{}', since => now()) ORDER BY 1;
TRUNCATE booking;
SELECT row_key, status FROM accord.undelete('booking', '{"room": 2}'::jsonb);
SELECT accord.undelete('booking', '77,1');
TABLE booking;

-- A table that is released, or gone.
SELECT pg_temp.last() AS booked \gset
SELECT accord.release('booking');
SELECT row_key, action, status, why FROM pg_temp.plan('seq => ' || :booked);
SELECT pg_temp.last() AS s \gset
CREATE TABLE short_lived (id integer PRIMARY KEY);
SELECT accord.capture('short_lived') IS NOT NULL AS captured;
INSERT INTO short_lived VALUES (1);
SELECT pg_temp.last() AS lived \gset
DROP TABLE short_lived;
SELECT table_name, row_key, action, status, why FROM pg_temp.plan('seq => ' || :lived);

-- Values that ALTER TABLE made.
CREATE TABLE retyped (id int PRIMARY KEY, v text);
SELECT accord.capture('retyped') IS NOT NULL AS captured;
INSERT INTO retyped VALUES (1, 'a');
SELECT accord.mark('before retyping');
UPDATE retyped SET v = 'b';
ALTER TABLE retyped ALTER v TYPE int USING 7;
SELECT row_key, changes, status, why FROM accord.revert(after => 'before retyping', relation => 'retyped', dry_run => true);
DROP TABLE retyped;

-- Bad arguments.
SELECT accord.revert();
SELECT accord.revert(relation => 'room');
SELECT accord.revert(seq => 1, mode => 'gently');
SELECT accord.revert(seq => 9000000000000000000);
SELECT accord.revert(actor => 'rob', relation => 'pg_class');
SELECT accord.undelete('pg_class', 1);
SELECT accord.undelete('room', NULL::text);
SELECT accord.undelete('room', '[1]'::jsonb);
SELECT accord.undelete('room', NULL::jsonb);

-- Who may: who may revert, within what they may do to the tables.
CREATE ROLE regress_revert_admin;
SELECT accord.grant_admin('regress_revert_admin');
UPDATE room SET note = 'changed' WHERE id = 2;
SELECT pg_temp.last() AS s \gset
SET ROLE regress_revert_admin;
SELECT accord.revert(seq => :s);
RESET ROLE;
GRANT SELECT, UPDATE ON room TO regress_revert_admin;
SET ROLE regress_revert_admin;
SELECT row_key, action, status FROM accord.revert(seq => :s);
RESET ROLE;
SELECT note FROM room WHERE id = 2;

SET client_min_messages = warning;
DROP OWNED BY regress_revert_admin;
DROP ROLE regress_revert_admin;
DROP TABLE room, booking, item, code, use, a, b, tree, chick, egg, shape CASCADE;
DROP SCHEMA app CASCADE;
