-- conflict_parts: partitioned tables are managed as a whole, with the partitions of today and those to come.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;
CREATE SCHEMA cp;
SET search_path = cp, public;
INSERT INTO accord.source (name) VALUES ('cp_ota'), ('cp_pms');

CREATE TABLE stay (id integer, region text, gone text, price integer, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
ALTER TABLE stay DROP COLUMN gone;
CREATE TABLE stay_a PARTITION OF stay FOR VALUES IN ('a');
CREATE TABLE stay_b (note text, dropped integer, region text NOT NULL, price integer, id integer NOT NULL, other integer);
ALTER TABLE stay_b DROP COLUMN dropped, DROP COLUMN other;
ALTER TABLE stay ATTACH PARTITION stay_b FOR VALUES IN ('b');
SELECT accord.manage('stay_a');
SELECT accord.manage('stay') > 0 AS managed, accord.set_policy('stay', 'price', 'priority', '{"order": ["cp_pms", "application", "cp_ota"]}') AS version;
CREATE TABLE stay_c PARTITION OF stay FOR VALUES IN ('c', 'd') PARTITION BY LIST (region);
CREATE TABLE stay_cc PARTITION OF stay_c FOR VALUES IN ('c');
SELECT tgrelid::regclass AS relation, string_agg(tgname, ' ' ORDER BY tgname) AS triggers FROM pg_trigger
WHERE tgname ~ 'accord' AND tgrelid::regclass::text ~ '^stay' GROUP BY 1 ORDER BY 1;

CREATE VIEW kept AS SELECT s.key, s.kept IS NULL AS there, s.state ? 'price' OR s.state ? '*' AS stamped,
    coalesce(s.state -> 'price' ->> 1, s.state -> '*' ->> 1) AS price_by
FROM accord.row_state s WHERE s.managed = (SELECT m.id FROM accord.managed m WHERE m.relation = 'stay'::regclass) ORDER BY s.key;

-- the application's own writes, by the table and by its partitions
INSERT INTO stay VALUES (1, 'a', 10, 'n'), (1, 'b', 10, 'n'), (1, 'c', 10, 'n');
INSERT INTO stay_b (id, region, price) VALUES (2, 'b', 20);
UPDATE stay SET note = note || '!' WHERE id = 1;
UPDATE stay_b SET price = 21 WHERE id = 2;
DELETE FROM stay WHERE id = 1 AND region = 'c';
SELECT * FROM kept;
SELECT key, op, changes, before FROM accord.change_log WHERE managed = (SELECT id FROM accord.managed WHERE relation = 'stay'::regclass)
ORDER BY clock, key;

-- what is received: merged by the same policies wherever the row is
SELECT accord.receive('cp_pms', 'p1', target => 'stay', key => '[2, "b"]', changes => '{"price": 25}') - 'event_id' AS result;
SELECT accord.receive('cp_ota', 'o1', target => 'stay', key => '[2, "b"]', changes => '{"price": 5, "note": "ota"}') - 'event_id' - 'row' AS result;
SELECT accord.receive('cp_ota', 'o2', target => 'stay', key => '[3, "b"]', changes => '{"price": 30}') - 'event_id' AS result;
SELECT accord.receive('cp_ota', 'o3', target => 'stay', key => '{"id": 1, "region": "a"}', op => 'delete') - 'event_id' AS result;
SELECT accord.receive('cp_ota', 'o4', target => 'stay', key => '[1, "c"]', op => 'update', changes => '{"price": 1}', occurred_at => '2026-01-01') - 'event_id' AS result;
SELECT accord.receive('cp_ota', 'o5', target => 'stay_b', key => '[2, "b"]', changes => '{"price": 5}');
SELECT accord.receive('cp_ota', 'o6', target => 'stay', key => '[4, "z"]', changes => '{"price": 5}');
SELECT tableoid::regclass, * FROM stay ORDER BY id, region;
SELECT * FROM kept;
SELECT relation, key, column_name, rule, winner_source, winner, loser_source, loser FROM accord.conflict WHERE relation = 'stay'::regclass ORDER BY conflict_id;

-- policies of the application's own writes, where the columns are laid out otherwise
UPDATE stay SET price = 1 WHERE id = 2;
SELECT accord.set_policy('stay', 'price', 'priority', '{"order": ["cp_pms", "application", "cp_ota"], "on_local": "keep"}');
UPDATE stay SET price = 1, note = 'mine' WHERE id = 2 RETURNING *;
UPDATE stay_b SET price = 31 WHERE id = 3 RETURNING *;
SELECT accord.override((SELECT max(conflict_id) FROM accord.conflict WHERE relation = 'stay'::regclass AND loser_source IS NULL), 'as agreed');

-- a row that moves is deleted there and inserted here, as when the key of any row changes
UPDATE stay SET region = 'a' WHERE id = 3;
UPDATE stay SET region = 'c' WHERE id = 3;
SELECT tableoid::regclass, * FROM stay WHERE id = 3;
SELECT * FROM kept WHERE key ~ '^3,';
SELECT accord.receive('cp_pms', 'p2', target => 'stay', key => '[3, "b"]', op => 'update', changes => '{"price": 7}', occurred_at => '2026-01-01') - 'event_id' AS result;

-- captured as well: events tell the time of the stamp
SELECT accord.capture('stay') > 0 AS captured;
CREATE FUNCTION told() RETURNS TABLE (op text, key text, stamped boolean) LANGUAGE sql AS $$
    SELECT e.op, e.key, extract(epoch FROM e.occurred_at) * 1000000 = (SELECT max(v) FROM (
        SELECT (s.state -> 'note' ->> 0)::numeric AS v UNION ALL SELECT (s.state -> '' ->> 0)::numeric UNION ALL SELECT (s.state -> '*' ->> 0)::numeric) x) + 946684800000000
    FROM accord.event_log e JOIN accord.row_state s ON s.key = e.key
        AND s.managed = (SELECT m.id FROM accord.managed m WHERE m.relation = 'cp.stay'::regclass)
    WHERE e.topic = 'stay' AND e.table_id IS NOT NULL ORDER BY e.tx_id, e.ord $$;
UPDATE stay SET note = 'told' WHERE id = 2;
SELECT accord.receive('cp_ota', 'o7', target => 'stay', key => '[9, "b"]', changes => '{"note": "told"}') ->> 'status' AS status;
SELECT * FROM told();
SELECT accord.release('stay');
-- so do those of a table without partitions
CREATE TABLE whole (id integer PRIMARY KEY, note text);
SELECT accord.manage('whole') > 0 AS managed, accord.capture('whole') > 0 AS captured;
SELECT accord.receive('cp_ota', 'w' || n, target => 'whole', key => '1', changes => '{"note": "told"}', occurred_at => '2026-01-01 00:00+00') ->> 'status' AS status
FROM generate_series(1, 2) n;
SELECT op, occurred_at = '2026-01-01 00:00+00' AS stamped FROM accord.event_log WHERE topic = 'whole';
DROP TABLE whole;

-- columns that come and go
ALTER TABLE stay ADD COLUMN extra text DEFAULT 'x';
UPDATE stay SET extra = 'y' WHERE id = 2;
SELECT changes, before FROM accord.change_log WHERE managed = (SELECT id FROM accord.managed WHERE relation = 'stay'::regclass) ORDER BY clock DESC LIMIT 1;
ALTER TABLE stay DROP COLUMN extra;
UPDATE stay SET note = 'z' WHERE id = 2;
SELECT changes, before FROM accord.change_log WHERE managed = (SELECT id FROM accord.managed WHERE relation = 'stay'::regclass) ORDER BY clock DESC LIMIT 1;
-- detached: no part of it any more, nor stamped; attached again: its rows are as if they had been there before
ALTER TABLE stay DETACH PARTITION stay_b;
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'stay_b'::regclass AND tgname ~ 'accord_agree';
UPDATE stay_b SET price = 99 WHERE id = 2;
INSERT INTO stay_b (id, region, price) VALUES (5, 'b', 50);
TRUNCATE stay_a;
ALTER TABLE stay ATTACH PARTITION stay_b FOR VALUES IN ('b');
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'stay_b'::regclass AND tgname ~ 'accord_agree';
SELECT accord.receive('cp_ota', 'o8', target => 'stay', key => '[5, "b"]', changes => '{"price": 51}') - 'event_id' AS result;
-- a table that is managed by itself must be unmanaged first
CREATE TABLE stay_e (id integer, region text, price integer, note text, PRIMARY KEY (id, region));
SELECT accord.manage('stay_e') > 0 AS managed;
ALTER TABLE stay ATTACH PARTITION stay_e FOR VALUES IN ('e');
SELECT accord.unmanage('stay_e');
ALTER TABLE stay ATTACH PARTITION stay_e FOR VALUES IN ('e');

-- truncated: alone, or with all the others
TRUNCATE stay_cc;
SELECT * FROM kept WHERE key ~ ',c$';
TRUNCATE stay;
SELECT count(*) AS kept, count(*) FILTER (WHERE there) AS there FROM kept;
SELECT accord.receive('cp_ota', 'o9', target => 'stay', key => '[2, "b"]', op => 'update', changes => '{"note": "late"}', occurred_at => '2026-01-01') - 'event_id' AS result;
SELECT count(*) FROM stay;
-- dropped with its rows, without a word: a new one may be given its bounds
INSERT INTO stay VALUES (8, 'a', 1, 'n');
DROP TABLE stay_a;
CREATE TABLE stay_aa PARTITION OF stay FOR VALUES IN ('a');
SELECT accord.receive('cp_ota', 'o10', target => 'stay', key => '[8, "a"]', changes => '{"note": "again"}') ->> 'status' AS status;
SELECT * FROM stay;

-- unmanaged: nothing is left
SELECT accord.unmanage('stay');
SELECT count(*) FROM pg_trigger WHERE tgname ~ 'accord_agree' AND tgrelid::regclass::text ~ '^stay';
SELECT count(*) FROM kept;

-- TRUNCATE of a table with a dropped column
CREATE TABLE narrow (a text, id integer PRIMARY KEY, b integer);
ALTER TABLE narrow DROP COLUMN a;
SELECT accord.manage('narrow') > 0 AS managed;
INSERT INTO narrow VALUES (1, 2);
TRUNCATE narrow;
SELECT key, kept FROM accord.row_state WHERE managed = (SELECT id FROM accord.managed WHERE relation = 'narrow'::regclass);
-- INCLUDE is no part of the key
CREATE TABLE wide (id integer, n integer, PRIMARY KEY (id) INCLUDE (n));
SELECT accord.manage('wide') > 0 AS managed;
SELECT key_columns FROM accord.managed WHERE relation = 'wide'::regclass;

SET client_min_messages = warning;
DROP SCHEMA cp CASCADE;
DELETE FROM accord.source WHERE name ~ '^cp_';
