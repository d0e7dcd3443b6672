-- capture: what becomes of INSERT, UPDATE, DELETE and TRUNCATE of a captured table.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;
\set SHOW_CONTEXT never
CREATE SCHEMA cp;

-- The events of a table, as its author would tell them; and whether they fit together: what an event says that the row was
-- is what the one before left, and the last one of each row says what it is now.
CREATE FUNCTION cp.told(id integer, mark bigint) RETURNS TABLE (seq bigint, ord integer, key text, op text, payload jsonb, before jsonb)
    LANGUAGE sql AS $$
    SELECT seq - mark, ord, key, op, payload, before FROM accord.read(mark, 1000000)
    WHERE table_id = id AND topic NOT LIKE 'accord.%'
$$;
CREATE FUNCTION cp.misfits(relation regclass) RETURNS TABLE (key text, what text, expected jsonb, told jsonb) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY EXECUTE format($q$
        WITH e AS (
            SELECT c.seq, e.ord, e.key, e.op, e.payload,
                   CASE WHEN e.op IN ('delete', 'truncate') THEN e.before WHEN e.op = 'update' THEN e.payload || e.before END AS was
            FROM accord.event_log e JOIN accord.commit_log c USING (slot, tx_id)
            WHERE table_id = %1$s AND topic NOT LIKE 'accord.%%'),
        s AS (SELECT *, lag(payload) OVER w AS left_as, lead(seq) OVER w IS NULL AS is_last FROM e
              WINDOW w AS (PARTITION BY e.key ORDER BY seq, ord))
        SELECT s.key, 'before', left_as, was FROM s WHERE was IS DISTINCT FROM left_as
        UNION ALL
        SELECT coalesce(s.key, r.key), 'now', r.image, s.payload
        FROM (SELECT s.key, s.payload FROM s WHERE is_last AND s.payload IS NOT NULL) s
        FULL JOIN (SELECT accord.row_key(VARIADIC ARRAY(SELECT to_jsonb(t) ->> k FROM unnest(%3$L::text[]) WITH ORDINALITY u (k, n) ORDER BY n)) AS key,
                          to_jsonb(t) AS image FROM %2$s t) r USING (key)
        WHERE s.payload IS DISTINCT FROM r.image $q$, accord.captured_id(relation), relation,
        (SELECT key_columns FROM accord.captured WHERE id = accord.captured_id(relation)));
END
$$;

CREATE TABLE cp.room (id integer PRIMARY KEY, name text, price numeric(10, 2), note text,
                      total numeric GENERATED ALWAYS AS (price * 2) STORED);
SELECT accord.capture('cp.room') AS room \gset
SELECT accord.safe_seq() AS mark \gset
INSERT INTO cp.room VALUES (1, 'Erker', 80), (2, 'Garten', 'NaN');
UPDATE cp.room SET price = 90.50 WHERE id = 1;
-- what changes nothing is no event
UPDATE cp.room SET price = 90.50, name = name WHERE id = 1;
-- a change of the key: the delete of the old one, and the insert of the new one
UPDATE cp.room SET id = 3 WHERE id = 1;
DELETE FROM cp.room WHERE id = 3;
TRUNCATE cp.room;
SELECT * FROM cp.told(:room, :mark);
SELECT table_id = :room AS room, topic, source, account, channels, priority FROM accord.read(:mark, 1);

-- Other ways to write: all of them, and only what was done.
SELECT accord.safe_seq() AS mark \gset
COPY cp.room (id, name, price) FROM stdin WITH (FORMAT csv);
1,a,1
2,b,2
\.
INSERT INTO cp.room (id, name) VALUES (1, 'x'), (3, 'c') ON CONFLICT (id) DO NOTHING;
INSERT INTO cp.room (id, name) VALUES (1, 'x'), (4, 'd') ON CONFLICT (id) DO UPDATE SET name = excluded.name || '!';
WITH gone AS (DELETE FROM cp.room WHERE id = 2 RETURNING *), changed AS (UPDATE cp.room SET price = 7 WHERE id = 3)
INSERT INTO cp.room (id, name) SELECT id + 3, name FROM gone;
MERGE INTO cp.room r USING (VALUES (1), (4), (9)) v (id) ON v.id = r.id
    WHEN MATCHED AND r.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET name = 'm' WHEN NOT MATCHED THEN INSERT (id) VALUES (v.id);
BEGIN;
UPDATE cp.room SET name = 'one' WHERE id = 3;
SAVEPOINT s;
UPDATE cp.room SET name = 'two' WHERE id = 3;
ROLLBACK TO s;
SAVEPOINT s;
UPDATE cp.room SET name = 'three' WHERE id = 3;
RELEASE s;
-- visible to the same transaction at once
SELECT count(*) FROM accord.event_log WHERE table_id = :room AND payload ->> 'name' IN ('one', 'three');
COMMIT;
SELECT * FROM cp.told(:room, :mark);
SELECT * FROM cp.misfits('cp.room');

-- Who caused it: the channel that the session says; it is not sent back there.
BEGIN;
SET LOCAL accord.source = 'cp ota';
UPDATE cp.room SET note = 'came in' WHERE id = 3;
COMMIT;
UPDATE cp.room SET note = 'ours' WHERE id = 3;
SELECT source FROM accord.event_log WHERE table_id = :room AND payload ->> 'note' IS NOT NULL ORDER BY tx_id, ord;
SET accord.source = 'a name longer than the sixty-three bytes that a channel may have at most';

-- Rows written as a replica are not captured: they were where they were made.
SELECT accord.safe_seq() AS mark \gset
BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE cp.room SET note = 'replicated';
DELETE FROM cp.room;
RESET session_replication_role;
SELECT count(*) FROM accord.event_log WHERE payload ->> 'note' = 'replicated';
ROLLBACK;
SELECT count(*) FROM cp.told(:room, :mark);

-- Columns, condition, account: a row that comes to meet the condition is inserted, one that ceases to, deleted.
CREATE TABLE cp.booking (hotel text, nr integer, guest text, status text, secret text, PRIMARY KEY (hotel, nr));
SELECT accord.capture('cp.booking', topic => 'booking.row', excluded => '{secret}',
                      condition => $$status <> 'draft' AND nr > 0$$, account_column => 'hotel') AS booking \gset
SELECT accord.safe_seq() AS mark \gset
INSERT INTO cp.booking VALUES ('a,b', 1, 'ann', 'draft', 'x'), ('c', 1, 'bob', 'firm', 'y'), ('c', 2, 'cid', NULL, 'z');
UPDATE cp.booking SET status = 'firm' WHERE hotel = 'a,b';
UPDATE cp.booking SET secret = 'other';
UPDATE cp.booking SET guest = upper(guest);
UPDATE cp.booking SET status = 'draft' WHERE nr = 1 AND hotel = 'c';
-- another account: told to the old one as a delete
UPDATE cp.booking SET hotel = 'd' WHERE hotel = 'a,b';
DELETE FROM cp.booking;
SELECT e.*, l.account, l.topic FROM cp.told(:booking, :mark) e JOIN accord.read(:mark) l ON l.seq - :mark = e.seq AND l.ord = e.ord;
SELECT condition, excluded, account_column, on_truncate FROM accord.captured WHERE id = :booking;
-- columns given: those, and the key
SELECT accord.capture('cp.booking', columns => '{guest}', on_truncate => 'refuse') = :booking AS same_id;
INSERT INTO cp.booking VALUES ('e', 1, 'eve', 'draft', 'x');
SELECT topic, payload, account FROM accord.event_log WHERE table_id = :booking AND key = 'e,1';
TRUNCATE cp.booking;
TRUNCATE cp.room, cp.booking;
SELECT count(*) FROM cp.booking;

-- TRUNCATE ... CASCADE
CREATE TABLE cp.night (id integer PRIMARY KEY, room integer REFERENCES cp.room);
SELECT accord.capture('cp.night') AS night \gset
INSERT INTO cp.night VALUES (1, 3);
TRUNCATE cp.room CASCADE;
SELECT key, op, before FROM accord.event_log WHERE table_id = :night AND op = 'truncate';
SELECT * FROM cp.misfits('cp.room');
SELECT * FROM cp.misfits('cp.night');

-- Partitions, of different layouts, now and later; a row that moves is updated.
CREATE TABLE cp.stay (id integer, day date, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE cp.stay_1 PARTITION OF cp.stay FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
SELECT accord.capture('cp.stay', key_columns => '{id}') AS stay \gset
SELECT accord.safe_seq() AS mark \gset
CREATE TABLE cp.stay_2 (gone integer, v text, day date NOT NULL, id integer NOT NULL);
ALTER TABLE cp.stay_2 DROP gone;
ALTER TABLE cp.stay ATTACH PARTITION cp.stay_2 FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
CREATE TABLE cp.stay_3 PARTITION OF cp.stay FOR VALUES FROM ('2028-01-01') TO ('2030-01-01') PARTITION BY RANGE (day);
CREATE TABLE cp.stay_31 PARTITION OF cp.stay_3 FOR VALUES FROM ('2028-01-01') TO ('2030-01-01');
SELECT DISTINCT accord.captured_id(t) = :stay AS id FROM unnest('{cp.stay,cp.stay_1,cp.stay_2,cp.stay_31}'::regclass[]) t;
INSERT INTO cp.stay VALUES (1, '2026-02-02', 'x'), (2, '2027-02-02', 'y');
INSERT INTO cp.stay_31 VALUES (3, '2028-03-03', 'z');
UPDATE cp.stay SET day = '2027-03-03' WHERE id = 1;
UPDATE cp.stay SET day = '2026-03-03', id = 4 WHERE id = 1;
UPDATE cp.stay SET day = day + CASE id WHEN 4 THEN 365 WHEN 2 THEN 1 ELSE -365 END;
SELECT * FROM cp.told(:stay, :mark);
SELECT * FROM cp.misfits('cp.stay');
-- its insert may be prevented, or undone
CREATE FUNCTION cp.no_four() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN CASE WHEN new.id = 4 THEN NULL ELSE new END; END $$;
CREATE TRIGGER no_four BEFORE INSERT ON cp.stay_1 FOR EACH ROW EXECUTE FUNCTION cp.no_four();
SELECT accord.safe_seq() AS mark \gset
BEGIN;
SAVEPOINT s;
UPDATE cp.stay SET day = '2026-05-05';
ROLLBACK TO s;
UPDATE cp.stay SET day = '2026-06-06' WHERE id = 4;
SELECT key, op FROM accord.event_log WHERE table_id = :stay ORDER BY tx_id DESC, ord DESC LIMIT 1;
UPDATE cp.stay SET day = '2026-07-07';
COMMIT;
SELECT * FROM cp.told(:stay, :mark);
SELECT * FROM cp.misfits('cp.stay');
-- TRUNCATE of a partition, and of all; one that was detached is none of it any more
SELECT accord.safe_seq() AS mark \gset
INSERT INTO cp.stay VALUES (5, '2027-02-02', 'y'), (6, '2028-02-02', 'y');
TRUNCATE cp.stay_2;
ALTER TABLE cp.stay_3 DETACH PARTITION cp.stay_31;
TRUNCATE cp.stay_31;
TRUNCATE cp.stay;
SELECT * FROM cp.told(:stay, :mark);

-- Triggers that change other rows of the same statement: each row's changes are told in their order.
CREATE TABLE cp.chain (id integer PRIMARY KEY, v integer, w integer DEFAULT 0);
SELECT accord.capture('cp.chain') AS chain \gset
SELECT accord.safe_seq() AS mark \gset
CREATE FUNCTION cp.spread() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() = 1 THEN
        UPDATE cp.chain SET w = w + 1 WHERE id = new.id + 1;
        UPDATE cp.chain SET w = w + 10 WHERE id = new.id - 1;
        IF new.v = 7 THEN
            DELETE FROM cp.chain WHERE id = new.id + 2;
        END IF;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER a_spread AFTER INSERT OR UPDATE ON cp.chain FOR EACH ROW EXECUTE FUNCTION cp.spread();
INSERT INTO cp.chain SELECT g, 0 FROM generate_series(1, 4) g;
UPDATE cp.chain SET v = 5;
UPDATE cp.chain SET v = 7;
BEGIN;
UPDATE cp.chain SET v = 8 WHERE id = 1;
UPDATE cp.chain SET v = v + 1;
DELETE FROM cp.chain WHERE id = 1;
COMMIT;
SELECT * FROM cp.told(:chain, :mark);
SELECT * FROM cp.misfits('cp.chain');

-- Rows that are older than the capture.
CREATE TABLE cp.old (id integer PRIMARY KEY, v integer);
INSERT INTO cp.old SELECT g, g FROM generate_series(1, 6000) g;
SELECT accord.baseline('cp.old');
SELECT accord.capture('cp.old', condition => 'v > 5') AS old \gset
UPDATE cp.old SET v = 10 * v WHERE id < 10;
SELECT accord.baseline('cp.old', 0);
SELECT accord.baseline('cp.old', 1000) >= 1000 AS goes_on;
SELECT finished_at IS NULL AS goes_on FROM accord.captured_baseline WHERE table_id = :old;
DO $$ BEGIN WHILE accord.baseline('cp.old', 1000) >= 1000 LOOP COMMIT; END LOOP; END $$;
SELECT finished_at IS NULL AS goes_on, events FROM accord.captured_baseline WHERE table_id = :old;
SELECT accord.baseline('cp.old');
SELECT op, CASE WHEN before = '{}' THEN 'baseline' WHEN before ? 'id' THEN 'came to meet it' ELSE 'changed' END AS kind, channels, count(*)
    FROM accord.event_log WHERE table_id = :old AND topic = 'old' GROUP BY 1, 2, 3 ORDER BY 1, 2;
SELECT count(*) FROM cp.old o WHERE v > 5 AND NOT EXISTS
    (SELECT FROM accord.event_log e WHERE table_id = :old AND key COLLATE "C" = o.id::text AND payload = to_jsonb(o));

-- Release: the record stays, and capture goes on under the same number, whatever the table is called.
SELECT accord.release('cp.room'), accord.release('cp.room');
SELECT released_at IS NOT NULL AS released FROM accord.captured WHERE id = :room;
SELECT accord.safe_seq() AS mark \gset
INSERT INTO cp.room (id) VALUES (1);
TRUNCATE cp.room CASCADE;
SELECT count(*) FROM cp.told(:room, :mark);
SELECT accord.captured_id('cp.room') = :room AS known, accord.capture('cp.room') = :room AS same_id;
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'cp.room'::regclass AND NOT tgisinternal ORDER BY 1;

-- What cannot be captured, and why.
CREATE VIEW cp.view AS SELECT 1 AS id;
CREATE TABLE cp.keyless (a integer, b text);
CREATE UNLOGGED TABLE cp.unlogged (id integer PRIMARY KEY);
CREATE TEMPORARY TABLE temporary (id integer PRIMARY KEY);
SELECT accord.capture(NULL);
SELECT accord.capture('cp.view');
SELECT accord.capture('cp.stay_1');
SELECT accord.capture('cp.unlogged');
SELECT accord.capture('temporary');
SELECT accord.capture('pg_class');
SELECT accord.capture('accord.channel');
SELECT accord.capture('cp.keyless');
SELECT accord.capture('cp.keyless', key_columns => '{c}');
SELECT accord.capture('cp.keyless', key_columns => '{a}', excluded => '{a}');
SELECT accord.capture('cp.keyless', key_columns => '{a}', columns => '{a}', excluded => '{b}');
SELECT accord.capture('cp.keyless', key_columns => '{a}', topic => 'with blank');
SELECT accord.capture('cp.keyless', key_columns => '{a}', topic => 'accord.mine');
SELECT accord.capture('cp.keyless', key_columns => '{a}', on_truncate => 'maybe');
SELECT accord.capture('cp.keyless', key_columns => '{a}', condition => 'a >');
SELECT accord.capture('cp.keyless', key_columns => '{a}', condition => 'a');
SELECT accord.capture('cp.keyless', key_columns => '{a}', condition => 'c = 1');
SELECT accord.capture('cp.keyless', key_columns => '{a}', condition => 'true FROM pg_class');
SELECT accord.capture('cp.keyless', key_columns => '{a}', condition => 'a IN (SELECT 1)');
SELECT count(*) FROM accord.captured WHERE table_name IN ('keyless', 'view', 'unlogged', 'temporary');
SELECT accord.capture('cp.keyless', key_columns => '{a}') AS keyless \gset
INSERT INTO cp.keyless VALUES (1, 'x'), (NULL, 'y');
SELECT key, payload FROM accord.event_log WHERE table_id = :keyless AND op = 'insert' ORDER BY tx_id, ord;
CREATE TRIGGER mine AFTER INSERT ON cp.keyless FOR EACH STATEMENT EXECUTE FUNCTION accord.capture_row();
INSERT INTO cp.keyless VALUES (2, 'x');
DROP TRIGGER mine ON cp.keyless;

-- Who may: whoever owns the table, if granted the function.
CREATE ROLE regress_accord_owner;
CREATE ROLE regress_accord_other;
SELECT accord.grant_writer('regress_accord_owner'), accord.grant_writer('regress_accord_other') \g /dev/null
CREATE TABLE cp.owned (id integer PRIMARY KEY, v integer);
ALTER TABLE cp.owned OWNER TO regress_accord_owner;
GRANT USAGE ON SCHEMA cp TO PUBLIC;
GRANT INSERT ON cp.owned TO regress_accord_other;
SET ROLE regress_accord_other;
SELECT accord.capture('cp.owned');
SELECT accord.release('cp.owned');
SELECT accord.baseline('cp.owned');
SELECT accord.capture_table('cp.owned', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'events');
SET ROLE regress_accord_owner;
SELECT accord.capture('cp.owned', condition => 'v IS NOT NULL') > 0 AS captured;
SELECT accord.baseline('cp.owned');
SET ROLE regress_accord_other;
INSERT INTO cp.owned VALUES (1, 1);
RESET ROLE;
SELECT role::regrole, events FROM accord.commit_log ORDER BY seq DESC LIMIT 1;
DROP OWNED BY regress_accord_owner, regress_accord_other;
DROP ROLE regress_accord_owner, regress_accord_other;

-- Keys of several columns.
SELECT accord.row_key('a'), accord.row_key('a,b\'), accord.row_key('a', 'b'), accord.row_key('a,b', 'c\', NULL, '\N'),
       accord.row_key(NULL), accord.row_key(repeat('x', 2048)) = repeat('x', 2048) AS longest,
       accord.row_key(repeat('x', 2049)), accord.row_key(repeat('x', 1024), repeat('x', 1024));
SET client_min_messages = warning;
DROP SCHEMA cp CASCADE;
SELECT count(*) FROM accord.captured WHERE schema_name = 'cp' AND released_at IS NULL;
