-- receive: a message takes effect once, as an event or in a table, and what is wrong with it is said at once.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;
INSERT INTO accord.channel (name, base_url) VALUES ('rv.ota', 'https://ota.example/'), ('rv.pms', 'https://pms.example/');
INSERT INTO accord.route (channel, topic) VALUES ('rv.ota', 'rv.*'), ('rv.pms', 'rv.*');
CREATE SCHEMA rv;
-- A result without what is different every time.
CREATE FUNCTION rv.stable(result jsonb) RETURNS jsonb LANGUAGE sql AS $$
    SELECT result - 'event_id' - 'clamped_from'
           || CASE WHEN result ? 'event_id' THEN jsonb_build_object('event_id', result ->> 'event_id' ~ '^[0-9a-f-]{36}$')
                   ELSE '{}' END
           || CASE WHEN result ? 'clamped_from' THEN '{"clamped": true}' ELSE '{}'::jsonb END
$$;

-- Under a topic: an event, which says where it came from and is not sent back there.
SELECT rv.stable(accord.receive('rv.ota', 'm1', 'rv.rate', 'room-1', '{"price": 120}'));
SELECT topic, key, op, source, payload FROM accord.event_log WHERE topic = 'rv.rate';
SELECT o.channel FROM accord.owed() o JOIN accord.event_log e USING (tx_id, ord) WHERE e.topic = 'rv.rate';

-- A repetition gives the stored result, and nothing is written: no row, no transaction number, no WAL.
SELECT rv.stable(accord.receive('rv.ota', 'm1', 'rv.rate', 'room-1', '{"price": 120}'));
CREATE TABLE rv.before AS SELECT count(*) AS events FROM accord.event_log;
SELECT result ->> 'event_id' = (SELECT event_id::text FROM accord.event_log WHERE topic = 'rv.rate') AS same_event,
       pg_current_xact_id_if_assigned() AS transaction
FROM accord.receive('rv.ota', 'm1', 'rv.rate', 'room-1', '{"price": 120}') AS result;
BEGIN READ ONLY;
SELECT rv.stable(accord.receive('rv.ota', 'm1', 'rv.rate', 'room-1', '{"price": 120}'));
SELECT accord.receive('rv.ota', 'new', 'rv.rate', 'room-1', '{"price": 120}');
ROLLBACK;
SELECT (SELECT count(*) FROM accord.event_log) - events AS events FROM rv.before;
-- An id is its source's own.
SELECT rv.stable(accord.receive('rv.pms', 'm1', 'rv.rate', 'room-1', '{"price": 130}'));
SELECT source, event_id, result, event IS NOT NULL AS event, tx_id IS NOT NULL AS transaction, length(fingerprint)
FROM accord.inbox WHERE source LIKE 'rv.%' ORDER BY source;

-- Other content under the same id is an error of its own, whatever it is that differs.
\set VERBOSITY sqlstate
SELECT accord.receive('rv.ota', 'm1', 'rv.rate', 'room-1', '{"price": 121}');
SELECT accord.receive('rv.ota', 'm1', 'rv.rate', 'room-2', '{"price": 120}');
SELECT accord.receive('rv.ota', 'm1', 'rv.rates', 'room-1', '{"price": 120}');
SELECT accord.receive('rv.ota', 'm1', 'rv.rate', 'room-1', '{"price": 120}', '2026-01-01');
SELECT accord.receive('rv.ota', 'm1', 'rv.rate', 'room-1', '{"price": 120}', revision => 1);
SELECT accord.receive('rv.ota', 'm1', 'rv.rate', 'room-1', '{"price": 120}', op => 'update');
SELECT accord.receive('rv.ota', 'm1', 'rv.rate', 'room-1', '{"price": 120}', account => 'a');
\set VERBOSITY terse
-- The order of members and blanks are not content; nor are settings of the session.
SELECT rv.stable(accord.receive('rv.ota', 'm2', 'rv.rate', 'k', '{"a": 1, "b": [1, {"c": null}]}', '2026-01-02 03:04:05+00', 7));
SET TimeZone = 'Asia/Tokyo';
SET DateStyle = 'German';
SELECT rv.stable(accord.receive('rv.ota', 'm2', 'rv.rate', 'k', '{"b":[1,{"c":null}],"a":1}', '02.01.2026 12:04:05 JST', 7));
RESET TimeZone;
RESET DateStyle;
-- What was rolled back was not received.
BEGIN;
SELECT rv.stable(accord.receive('rv.ota', 'm3', 'rv.rate', 'k', '1'));
SELECT rv.stable(accord.receive('rv.ota', 'm3', 'rv.rate', 'k', '1'));
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT rv.stable(accord.receive('rv.ota', 'm3', 'rv.rate', 'k', '2'));
ROLLBACK TO s;
SELECT rv.stable(accord.receive('rv.ota', 'm3', 'rv.rate', 'k', '3'));
COMMIT;
SELECT payload FROM accord.event_log WHERE topic = 'rv.rate' AND source = 'rv.ota' AND payload IN ('1', '2', '3');

-- Into a table: inserted, updated, deleted by its primary key; the event has the row.
CREATE TABLE rv.booking (id integer PRIMARY KEY, guest text, nights integer NOT NULL CHECK (nights > 0), tags text[] DEFAULT '{}');
SELECT rv.stable(accord.receive('rv.ota', 'b1', key => '7', changes => '{"guest": "Ann", "nights": 3}', target => 'rv.booking'));
SELECT rv.stable(accord.receive('rv.ota', 'b2', key => '7', changes => '{"nights": 4}', target => 'rv.booking'));
SELECT rv.stable(accord.receive('rv.ota', 'b2', key => '7', changes => '{"nights": 4}', target => 'rv.booking'));
SELECT rv.stable(accord.receive('rv.ota', 'b3', changes => '{"id": 8, "nights": 1, "tags": ["vip", "late"]}', target => 'rv.booking'));
SELECT rv.stable(accord.receive('rv.ota', 'b4', key => '9', changes => '{"nights": 4}', target => 'rv.booking', op => 'update'));
SELECT rv.stable(accord.receive('rv.ota', 'b5', key => '9', target => 'rv.booking', op => 'delete'));
SELECT rv.stable(accord.receive('rv.ota', 'b6', key => '8', target => 'rv.booking', op => 'delete', topic => 'rv.gone'));
SELECT * FROM rv.booking;
SELECT topic, key, op, source, payload, before FROM accord.event_log WHERE topic IN ('booking', 'rv.gone') AND source = 'rv.ota' ORDER BY tx_id, ord;
-- The table's own triggers see where a change comes from, and what they write carries it.
CREATE FUNCTION rv.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO accord.outbox (topic, key) VALUES ('rv.noted', current_setting('accord.source'));
    RETURN NULL;
END
$$;
CREATE TRIGGER note AFTER UPDATE ON rv.booking FOR EACH ROW EXECUTE FUNCTION rv.note();
SELECT rv.stable(accord.receive('rv.ota', 'b7', key => '7', changes => '{"nights": 5}', target => 'rv.booking'));
SELECT topic, key, source, current_setting('accord.source') AS after FROM accord.event_log WHERE topic = 'rv.noted';
DROP TRIGGER note ON rv.booking;
-- The application may say by itself where its changes come from.
BEGIN;
SET LOCAL accord.source = 'rv.pms';
INSERT INTO accord.outbox (topic) VALUES ('rv.said') RETURNING source;
INSERT INTO accord.outbox (topic, source) VALUES ('rv.said', 'rv.ota') RETURNING source;
COMMIT;

-- Composite keys, names that want quotes, keys of other types, a column of the table's that is named like ours.
CREATE TABLE rv."Rate ""x" ("Room" text, night date, "Price" numeric(8, 2), accord_target integer, PRIMARY KEY ("Room", night));
SELECT rv.stable(accord.receive('rv.ota', 'c1', key => '{"Room": "r1", "night": "2026-12-01"}', changes => '{"Price": 99.5}', target => 'rv."Rate ""x"'));
SELECT rv.stable(accord.receive('rv.ota', 'c1', 'rv.price', '{"Room": "r1", "night": "2026-12-01"}', '{"Price": 99.5}', target => 'rv."Rate ""x"'));
SELECT rv.stable(accord.receive('rv.ota', 'c2', 'rv.price', '["r1", "2026-12-01"]', '{"Price": 100, "accord_target": 1}', target => 'rv."Rate ""x"'));
SELECT rv.stable(accord.receive('rv.ota', 'c3', 'rv.price', changes => '{"Room": "r1", "night": "2026-12-01", "Price": 101}', target => 'rv."Rate ""x"'));
SELECT * FROM rv."Rate ""x";
SELECT key, op, before FROM accord.event_log WHERE topic = 'rv.price' ORDER BY tx_id;
CREATE TABLE rv.numbered (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
SELECT rv.stable(accord.receive('rv.ota', 'd1', key => '5', changes => '{"v": "five"}', target => 'rv.numbered'));
SELECT rv.stable(accord.receive('rv.ota', 'd2', key => '5', changes => '{}', target => 'rv.numbered'));
TABLE rv.numbered;
-- A table that changes between two messages.
ALTER TABLE rv.numbered RENAME v TO w;
ALTER TABLE rv.numbered RENAME TO renumbered;
SELECT rv.stable(accord.receive('rv.ota', 'd3', key => '5', changes => '{"w": "FIVE"}', target => 'rv.renumbered'));
TABLE rv.renumbered;

-- A captured table makes its own events: under its topic, by its key, once; and the result names them.
CREATE TABLE rv.room (id integer PRIMARY KEY, name text UNIQUE, hotel text, beds integer);
SELECT accord.capture('rv.room', topic => 'rv.room', key_columns => '{name}', account_column => 'hotel') > 0 AS captured;
SELECT accord.receive('rv.ota', 'e1', key => '1', changes => '{"name": "one", "hotel": "h", "beds": 2}', target => 'rv.room') AS result \gset
SELECT event_id = (:'result'::jsonb ->> 'event_id')::uuid AS named, topic, key, account, op, source, payload, table_id IS NOT NULL AS captured
FROM accord.event_log WHERE payload ->> 'hotel' = 'h';
SELECT accord.receive('rv.ota', 'e2', key => '1', changes => '{"beds": 3}', target => 'rv.room', topic => 'rv.ignored') AS result \gset
SELECT rv.stable(:'result'), (SELECT before FROM accord.event_log WHERE event_id = (:'result'::jsonb ->> 'event_id')::uuid);
-- Nothing changed: no event.
SELECT rv.stable(accord.receive('rv.ota', 'e3', key => '1', changes => '{"beds": 3}', target => 'rv.room'));
SELECT rv.stable(accord.receive('rv.ota', 'e3', key => '1', changes => '{"beds": 3}', target => 'rv.room'));
SELECT accord.release('rv.room');
SELECT rv.stable(accord.receive('rv.ota', 'e4', key => '1', changes => '{"beds": 4}', target => 'rv.room'));
SELECT topic, key, op, before FROM accord.event_log WHERE topic = 'room' AND source = 'rv.ota';

-- A managed table merges: what lost is told, and its channel alone is sent the row as it stands.
CREATE TABLE rv.guest (id integer PRIMARY KEY, name text, beds integer);
SELECT accord.set_policy('rv.guest', '*', 'latest') AS version;
SELECT accord.capture('rv.guest', topic => 'rv.guest') > 0 AS captured;
SELECT rv.stable(accord.receive('rv.ota', 'g1', key => '1', changes => '{"name": "Ann", "beds": 1}', target => 'rv.guest', occurred_at => '2026-01-01'));
SELECT rv.stable(accord.receive('rv.pms', 'g1', key => '1', changes => '{"name": "Anna"}', target => 'rv.guest', occurred_at => '2026-01-03'));
SELECT rv.stable(accord.receive('rv.ota', 'g2', key => '1', changes => '{"name": "Anne", "beds": 2}', target => 'rv.guest', occurred_at => '2026-01-02'));
SELECT rv.stable(accord.receive('rv.ota', 'g2', key => '1', changes => '{"name": "Anne", "beds": 2}', target => 'rv.guest', occurred_at => '2026-01-02'));
SELECT rv.stable(accord.receive('rv.ota', 'g3', key => '1', changes => '{"name": "Annie"}', target => 'rv.guest', occurred_at => '2026-01-02'));
SELECT rv.stable(accord.receive('rv.ota', 'g4', key => '1', target => 'rv.guest', op => 'delete', occurred_at => '2026-01-02'));
SELECT rv.stable(accord.receive('rv.ota', 'g5', key => '1', changes => '{"beds": 3}', target => 'rv.guest', occurred_at => '2100-01-01'));
SELECT op, source, channels, payload, before, table_id IS NOT NULL AS captured
FROM accord.event_log WHERE topic = 'rv.guest' ORDER BY tx_id, ord;

-- A clock ahead of ours is brought nearer, or its messages are refused.
SELECT rv.stable(accord.receive('rv.ota', 'f1', 'rv.time', changes => '1', occurred_at => now() + interval '1 min'));
SELECT rv.stable(accord.receive('rv.ota', 'f2', 'rv.time', changes => '2', occurred_at => '2100-01-01 00:00+00'));
SELECT accord.receive('rv.ota', 'f2', 'rv.time', changes => '2', occurred_at => '2100-01-01 00:00+00') ->> 'clamped_from';
SELECT payload, occurred_at BETWEEN now() AND now() + interval '5 min' AS near FROM accord.event_log WHERE topic = 'rv.time' ORDER BY payload;
INSERT INTO accord.source (name, skew, when_ahead) VALUES ('rv.ota', '1 s', 'refuse');
SELECT accord.receive('rv.ota', 'f3', 'rv.time', occurred_at => '2100-01-01 00:00+00');
UPDATE accord.source SET enabled = false WHERE name = 'rv.ota';
SELECT accord.receive('rv.ota', 'f4', 'rv.time');
DELETE FROM accord.source WHERE name = 'rv.ota';
SELECT rv.stable(accord.receive('rv.ota', 'f4', 'rv.time'));

-- The batch form: in order, in one transaction.
SELECT rv.stable(r) FROM accord.receive_batch('rv.pms', '[
    {"event_id": "1", "topic": "rv.batch", "key": "k", "changes": {"n": 1}, "occurred_at": 1764547200},
    {"event_id": "2", "topic": "rv.batch", "key": "k", "changes": {"n": 2}, "occurred_at": 1764547200500, "revision": "7"},
    {"event_id": "1", "topic": "rv.batch", "key": "k", "changes": {"n": 1}, "occurred_at": "2025-12-01T00:00:00Z"},
    {"event_id": "3", "target": "rv.booking", "changes": {"id": 20, "nights": 2}},
    {"event_id": 4, "topic": "rv.batch", "key": null, "account": "a"}]') r;
SELECT payload, account, occurred_at AT TIME ZONE 'UTC' AS at FROM accord.event_log WHERE topic = 'rv.batch' AND payload IS NOT NULL ORDER BY ord;
SELECT count(*) FROM accord.receive_batch('rv.pms', '[]');

-- What is wrong is refused, with its SQLSTATE and what to do.
CREATE FUNCTION rv.try(arguments text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text;
    message text;
    hint text;
BEGIN
    EXECUTE 'SELECT accord.receive(' || arguments || ')';
    RAISE SQLSTATE 'TESTS';             -- undone in any case
EXCEPTION WHEN SQLSTATE 'TESTS' THEN
    RETURN 'accepted';
WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
    RETURN format(E'%s: %s\n  %s', state, message, hint);
END
$$;
CREATE TABLE rv.keyless (v text);
CREATE VIEW rv.view AS SELECT 1 AS id;
\pset format unaligned
\pset tuples_only on
SELECT rv.try(a) FROM unnest(ARRAY[
    $$NULL, '1', 'rv.x'$$,
    $$'rv.nobody', '1', 'rv.x'$$,
    $$repeat('n', 100), '1', 'rv.x'$$,
    $$'rv.ota', NULL, 'rv.x'$$,
    $$'rv.ota', '', 'rv.x'$$,
    $$'rv.ota', repeat('i', 1001), 'rv.x'$$,
    $$'rv.ota', repeat('i', 1000), 'rv.x'$$,
    $$'rv.ota', '1'$$,
    $$'rv.ota', '1', 'accord.x'$$,
    $$'rv.ota', '1', 'a b'$$,
    $$'rv.ota', '1', 'rv.x', op => 'upsert'$$,
    $$'rv.ota', '1', 'rv.x', repeat('k', 2049)$$,
    $$'rv.ota', '1', target => 0$$,
    $$'rv.ota', '1', target => 'rv.keyless', key => '1', changes => '{}'$$,
    $$'rv.ota', '1', target => 'rv.view', key => '1', changes => '{}'$$,
    $$'rv.ota', '1', target => 'rv.booking', changes => '{"nights": 1}'$$,
    $$'rv.ota', '1', target => 'rv.booking', key => '1'$$,
    $$'rv.ota', '1', target => 'rv.booking', key => '1', changes => '[1]'$$,
    $$'rv.ota', '1', target => 'rv.booking', key => '1', changes => '{"nights": 1, "id": 2}'$$,
    $$'rv.ota', '1', target => 'rv.booking', key => '1', changes => '{"nights": 1, "id": 1}'$$,
    $$'rv.ota', '1', target => 'rv.booking', key => '1', changes => '{"no": 1}'$$,
    $$'rv.ota', '1', target => 'rv.booking', key => 'x', changes => '{"nights": 1}'$$,
    $$'rv.ota', '1', target => 'rv.booking', key => '1', changes => '{"nights": 0}'$$,
    $$'rv.ota', '1', target => 'rv.booking', key => '7', changes => '{"nights": 1}', op => 'insert'$$,
    $$'rv.ota', '1', target => 'rv.booking', key => '7', changes => '{"nights": 1}', op => 'merge'$$,
    $$'rv.ota', '1', target => 'rv."Rate ""x"', key => 'r1', changes => '{}'$$,
    $$'rv.ota', '1', target => 'rv."Rate ""x"', key => '["r1"]', changes => '{}'$$]) a;
\pset tuples_only off
\pset format aligned
SELECT accord.receive_batch('rv.ota', '{}');
SELECT accord.receive_batch('rv.ota', '[1]');
SELECT accord.receive_batch('rv.ota', '[{"event_id": "1", "tpoic": "x"}]');
SELECT accord.receive_batch('rv.ota', '[{"event_id": "1", "topic": "rv.x", "occurred_at": "soon"}]');
SELECT accord.receive_batch('rv.ota', '[{"event_id": "1", "topic": "rv.x", "occurred_at": 1e300}]');
SELECT accord.receive_batch('rv.ota', '[{"event_id": "1", "topic": "rv.x", "occurred_at": "2026-02-30"}]');
SELECT accord.receive_batch('rv.ota', jsonb_build_array(jsonb_build_object('event_id', '1', 'topic', 'rv.x', 'revision', repeat('ä', 100))));
SELECT accord.receive_batch('rv.ota', '[{"event_id": "1", "topic": "rv.x", "revision": {"n": 1}}]');

-- What arrives at a managed table is looked at in the same way.
\pset format unaligned
\pset tuples_only on
SELECT rv.try(a) FROM unnest(ARRAY[
    $$'rv.ota', '1', target => 'rv.guest', changes => '{"name": "x"}'$$,
    $$'rv.ota', '1', target => 'rv.guest', key => '1', changes => '{"nope": "x"}'$$,
    $$'rv.ota', '1', target => 'rv.guest', key => '1', changes => '{"beds": "x"}'$$,
    $$'rv.ota', '1', target => 'rv.guest', key => '1', changes => '{}', op => 'merge'$$]) a;
\pset tuples_only off
\pset format aligned

-- Who may receive writes a table only as far as they may anyway.
CREATE ROLE regress_accord_receiver;
SELECT accord.grant_writer('regress_accord_receiver');
GRANT USAGE ON SCHEMA rv TO regress_accord_receiver;
SET ROLE regress_accord_receiver;
SELECT accord.receive('rv.ota', 'r1', 'rv.role') ->> 'status' AS status;
SELECT accord.receive('rv.ota', 'r2', target => 'rv.booking', key => '7', changes => '{"nights": 9}');
SELECT accord.receive('rv.ota', 'r3', target => 'rv.guest', key => '1', changes => '{"beds": 9}');
SELECT count(*) FROM accord.inbox;
RESET ROLE;
GRANT SELECT, UPDATE ON rv.booking TO regress_accord_receiver;
SET ROLE regress_accord_receiver;
SELECT accord.receive('rv.ota', 'r2', target => 'rv.booking', key => '7', changes => '{"nights": 9}') ->> 'status' AS status;
RESET ROLE;

-- Rows are found by the key, whatever statistics say: the table was empty when the statements were prepared, and is analysed again.
CREATE TABLE rv.growing (id integer PRIMARY KEY, n integer);
CREATE TABLE rv.merged (id integer PRIMARY KEY, n integer);
SELECT accord.manage('rv.merged') > 0 AS managed;
VACUUM ANALYZE rv.growing, rv.merged;
CREATE VIEW rv.scans AS SELECT coalesce(sum(seq_scan), 0) AS n FROM pg_stat_xact_user_tables WHERE schemaname = 'rv' AND relname IN ('growing', 'merged');
CREATE FUNCTION rv.work(first integer, OUT scans numeric) LANGUAGE plpgsql AS $$
DECLARE
    relation text;
    before numeric := (SELECT n FROM rv.scans);
BEGIN
    FOR i IN first .. first + 7 LOOP
        FOREACH relation IN ARRAY ARRAY['growing', 'merged'] LOOP
            PERFORM accord.receive('rv.pms', format('g%s %s', i, relation), target => ('rv.' || relation)::regclass, key => (i % 5)::text,
                                   op => CASE WHEN i % 4 = 3 THEN 'delete' ELSE 'upsert' END, changes => jsonb_build_object('n', i));
        END LOOP;
    END LOOP;
    scans := (SELECT n FROM rv.scans) - before;
END $$;
SELECT rv.work(1);
VACUUM ANALYZE rv.growing, rv.merged;
SELECT rv.work(11);

DELETE FROM accord.channel WHERE name LIKE 'rv.%';
DELETE FROM accord.inbox WHERE source LIKE 'rv.%';
SET client_min_messages = warning;
DROP SCHEMA rv CASCADE;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA accord FROM regress_accord_receiver;
REVOKE ALL ON accord.outbox FROM regress_accord_receiver;
DROP ROLE regress_accord_receiver;
