-- managed tables: what changes make of rows, what loses, and what the application's own writes do.
SET timezone = 'UTC';
CREATE TABLE rate (
    room text,
    night date,
    price numeric(10,2),
    note text,
    minimum_stay integer DEFAULT 1,
    double_stay integer GENERATED ALWAYS AS (minimum_stay * 2) STORED,
    PRIMARY KEY (room, night)
);
-- applies a change that occurred so many minutes after noon
CREATE FUNCTION change(room text, op text, changes jsonb, source text, event text, minute numeric,
                       revision numeric DEFAULT NULL, base jsonb DEFAULT NULL, OUT applied jsonb, OUT lost jsonb)
LANGUAGE sql AS $$
    SELECT a.applied, a.lost
    FROM accord.apply_change('rate', jsonb_build_object('room', room, 'night', '2026-12-01'), op, changes, source, event,
                             timestamptz '2026-01-01 12:00+00' + minute * interval '1 minute', revision, base) a
$$;
CREATE VIEW lost AS
    SELECT key, column_name, rule, state, winner_source, winner, loser_source, loser, loser_event FROM accord.conflict
    WHERE relation::text = 'rate' ORDER BY conflict_id;

-- latest is what there is without a policy
SELECT accord.manage('rate') > 0 AS managed;
SELECT * FROM change('a', 'insert', '{"price": "100.005", "note": "new"}', 'ota', 'o1', 0);
SELECT * FROM change('a', 'update', '{"price": 120}', 'engine', 'e1', 10);
SELECT * FROM change('a', 'update', '{"price": 110, "note": "late"}', 'guest', 'g1', 5);
SELECT * FROM change('a', 'update', '{"price": 110, "note": "late"}', 'guest', 'g1', 5);
SELECT * FROM rate;
SELECT * FROM lost;
-- at the same instant the source decides, then the event
SELECT * FROM change('a', 'update', '{"price": 130}', 'zeta', 'z1', 10);
SELECT * FROM change('a', 'update', '{"price": 131}', 'engine', 'e9', 10);
SELECT * FROM change('a', 'update', '{"price": 132}', 'zeta', 'z0', 10);
SELECT price FROM rate WHERE room = 'a';
-- an author who saw what he replaced had no conflict
SELECT count(*) FROM lost \gset before_
SELECT * FROM change('a', 'update', '{"price": 140}', 'guest', 'g2', 20, base => '{"price": 130}');
SELECT count(*) - :before_count AS conflicts FROM lost;

-- what is late for a row that is gone, and before it is there
SELECT * FROM change('b', 'update', '{"price": 50}', 'engine', 'e2', 0);
SELECT * FROM rate WHERE room = 'b';
SELECT * FROM change('b', 'insert', '{"note": "b"}', 'ota', 'o2', -1);
SELECT * FROM rate WHERE room = 'b';
SELECT * FROM change('b', 'delete', NULL, 'ota', 'o3', 5);
SELECT * FROM change('b', 'update', '{"price": 51}', 'engine', 'e3', 4);
SELECT * FROM rate WHERE room = 'b';
SELECT * FROM change('b', 'update', '{"price": 52}', 'engine', 'e4', 6);
SELECT * FROM rate WHERE room = 'b';
SELECT * FROM lost WHERE key LIKE 'b,%';

-- a source's revisions count within the source, the clock across
SELECT * FROM change('c', 'insert', '{"price": 1}', 'ota', 'o1', 10, 2);
SELECT * FROM change('c', 'update', '{"price": 2}', 'ota', 'o2', 30, 1);
SELECT * FROM change('c', 'update', '{"price": 3}', 'engine', 'e1', 20);
SELECT price FROM rate WHERE room = 'c';
SELECT * FROM change('c', 'update', '{"price": 4}', 'engine', 'e2', 40);
SELECT * FROM change('c', 'update', '{"price": 5}', 'ota', 'o3', 15, 3);
SELECT * FROM change('c', 'update', '{"price": 6}', 'ota', 'o0', 50, 0);
SELECT price FROM rate WHERE room = 'c';

-- rank before time
SELECT accord.set_policy('rate', 'price', 'priority', '{"order": ["guest", "application", "ota"], "on_local": "raise"}');
SELECT * FROM change('d', 'insert', '{"price": 1, "note": "d"}', 'engine', 'e1', 30);
SELECT * FROM change('d', 'update', '{"price": 2}', 'ota', 'o1', 10);
SELECT * FROM change('d', 'update', '{"price": 3}', 'engine', 'e2', 60);
SELECT * FROM change('d', 'update', '{"price": 4}', 'guest', 'g1', 1);
SELECT price FROM rate WHERE room = 'd';
-- and the application's own
UPDATE rate SET price = 9 WHERE room = 'd';
UPDATE rate SET note = 'mine', minimum_stay = 3 WHERE room = 'd';
SET accord.override = on;
UPDATE rate SET price = 9 WHERE room = 'd';
BEGIN;
SET LOCAL accord.reason = 'the guest called';
UPDATE rate SET price = 9 WHERE room = 'd';
COMMIT;
RESET accord.override;
SELECT price, note, minimum_stay, double_stay FROM rate WHERE room = 'd';
-- what was said before counts no more, what is said later does
SELECT * FROM change('d', 'update', '{"price": 5}', 'guest', 'g0', 2);
SELECT accord.set_policy('rate', 'price', 'priority', '{"order": ["guest", "application", "ota"], "on_local": "keep"}');
SELECT applied FROM accord.apply_change('rate', '{"room": "d", "night": "2026-12-01"}', 'update', '{"price": 6}', 'guest', 'g2');
UPDATE rate SET price = 10, note = 'kept' WHERE room = 'd';
SELECT price, note FROM rate WHERE room = 'd';
SELECT * FROM lost WHERE key LIKE 'd,%';

-- a person decides otherwise
SELECT max(conflict_id) AS id FROM accord.conflict WHERE loser_source = 'engine' AND column_name = 'price' AND key LIKE 'd,%' \gset
SELECT accord.override(:id, '');
SELECT "row" ->> 'price' AS price FROM accord.override(:id, 'the engine was right');
SELECT state FROM accord.conflict WHERE conflict_id = :id;
SELECT column_name, verdict, value, source, rule FROM accord.explain('rate', 'd,2026-12-01', 'price');
SELECT payload - 'conflict' - 'relation' AS payload FROM accord.event_log WHERE topic = 'accord.override';

-- who may not
CREATE ROLE regress_conflict_other;
GRANT ALL ON rate TO regress_conflict_other;
SELECT accord.grant_admin('regress_conflict_other');
SET SESSION AUTHORIZATION regress_conflict_other;
SELECT accord.set_policy('rate', 'price', 'latest');
UPDATE rate SET note = 'other''s' WHERE room = 'a';
RESET SESSION AUTHORIZATION;
SELECT count(*) FROM accord.change_log WHERE changes @> '{"note": "other''s"}';

-- mistakes are refused when they are made
SELECT accord.set_policy('rate', 'price', 'newest');
SELECT accord.set_policy('rate', 'prize', 'latest');
SELECT accord.set_policy('rate', 'room', 'latest');
SELECT accord.set_policy('rate', 'double_stay', 'latest');
SELECT accord.set_policy('rate', 'price', 'priority');
SELECT accord.set_policy('rate', 'price', 'priority', '{"order": ["a", "a"]}');
SELECT accord.set_policy('rate', 'price', 'latest', '{"order": ["a"]}');
SELECT accord.set_policy('rate', 'price', 'latest', '{"on_local": "ignore"}');
SELECT accord.set_policy('rate', 'price', 'latest', '[]');
SELECT accord.set_policy('rate', 'price', 'latest', '{"delete": "delete-wins"}');
SELECT accord.set_policy('rate', 'price', 'owner');
SELECT accord.set_policy('rate', 'note', 'counter');
SELECT accord.set_policy('rate', 'note', 'json');
SELECT accord.set_policy('rate', 'note', 'set');
SELECT accord.set_policy('rate', 'price', 'state', '{"transitions": {"a": ["b"]}}');
SELECT accord.set_policy('rate', 'note', 'state', '{"transitions": {"a": ["b"], "b": ["a"]}}');
SELECT accord.set_policy('rate', 'note', 'state', '{"transitions": {"a": ["b"]}, "rank": ["b", "a"]}');
SELECT accord.set_policy('rate', 'note', 'custom', '{"function": "nowhere.f"}');
SELECT accord.set_policy('rate', '*', 'max');
SELECT * FROM change('a', 'rename', '{}', 'ota', 'x', 0);
SELECT * FROM change('a', 'update', '{"prize": 1}', 'ota', 'x', 0);
SELECT * FROM change('a', 'update', '[]', 'ota', 'x', 0);
SELECT * FROM change('a', 'update', '{"price": "dear"}', 'ota', 'x', 0);
SELECT accord.apply_change('rate', '{"room": "a"}', 'delete');
SELECT accord.apply_change('pg_class', '{"oid": 1}', 'delete');
CREATE TABLE no_key (a integer);
SELECT accord.manage('no_key');
SELECT accord.manage('no_key', '{a}');
SELECT accord.drop_policy('rate', 'note');

-- what is ahead of our clock counts as made now, and a bit; the log says so
SELECT clock - now() BETWEEN interval '4 min' AND interval '6 min' AS clamped
FROM accord.apply_change('rate', '{"room": "e", "night": "2026-12-01"}', 'upsert', '{"price": 1}', 'ahead', 'x1', now() + interval '1 day');
SELECT rule, loser_source, loser_at > winner_at AS later FROM accord.conflict WHERE rule = 'clock';
-- and the application writes after it all the same
UPDATE rate SET note = 'after' WHERE room = 'e';
SELECT (state -> 'note' ->> 0)::bigint > (state -> '' ->> 0)::bigint AS later FROM accord.row_state WHERE key LIKE 'e,%';

-- rows that move, and all that go
UPDATE rate SET room = 'f' WHERE room = 'e';
SELECT key, kept IS NULL AS there FROM accord.row_state WHERE key ~ '^[ef],' ORDER BY 1;
TRUNCATE rate;
SELECT count(*) AS kept, count(kept) AS gone FROM accord.row_state;
SELECT * FROM change('a', 'update', '{"price": 1}', 'late', 'l1', 0);
SELECT count(*) FROM rate;
SELECT accord.unmanage('rate');
SELECT count(*) FROM accord.row_state;
INSERT INTO rate VALUES ('a', '2026-12-01', 1);

-- a trigger merges into the row that is being merged for the first time
CREATE TABLE nested (id integer PRIMARY KEY, a integer, b integer);
SELECT accord.manage('nested') > 0 AS managed;
CREATE FUNCTION nest() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.b IS NULL THEN
        PERFORM accord.apply_change('nested', jsonb_build_object('id', new.id), 'update', '{"b": 2}', 'inner', 'i1');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER nest AFTER INSERT ON nested FOR EACH ROW EXECUTE FUNCTION nest();
SELECT applied, lost FROM accord.apply_change('nested', '{"id": 1}', 'upsert', '{"a": 1}', 'outer', 'o1');
SELECT n.*, s.state ? 'a' AS kept FROM nested n JOIN accord.row_state s ON s.key = n.id::text
WHERE s.managed = (SELECT id FROM accord.managed WHERE relation = 'nested'::regclass);
DROP TABLE nested;
DROP FUNCTION nest;

-- what is kept of a table goes with it, however it goes, and stays when it stays
CREATE SCHEMA leaving;
CREATE TABLE leaving.gone (id integer PRIMARY KEY, n integer);
SELECT accord.manage('leaving.gone') > 0 AS managed, accord.set_policy('leaving.gone', 'n', 'max') AS version;
INSERT INTO leaving.gone VALUES (1, 1);
CREATE VIEW left_of AS SELECT (SELECT count(*) FROM accord.managed) AS managed, (SELECT count(*) FROM accord.policy) AS policies,
    (SELECT count(*) FROM accord.row_state) AS rows;
BEGIN;
DROP TABLE leaving.gone;
SELECT * FROM left_of;
ROLLBACK;
SELECT * FROM left_of;
DROP SCHEMA leaving CASCADE;
SELECT * FROM left_of;
DROP VIEW left_of;
DROP TABLE rate, no_key CASCADE;
DROP FUNCTION change;
REVOKE ALL ON ALL TABLES IN SCHEMA accord FROM regress_conflict_other;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA accord FROM regress_conflict_other;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA accord FROM regress_conflict_other;
DROP OWNED BY regress_conflict_other;
DROP ROLE regress_conflict_other;
