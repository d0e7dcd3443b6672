-- outbox: INSERT INTO accord.outbox behaves as an INSERT into a table, and what is wrong is said at once.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;

-- The smallest insert; RETURNING works.
INSERT INTO accord.outbox (topic, key, payload) VALUES ('ob.rate', 'L1', '{"price": 100.50}')
    RETURNING topic, key, op, payload, event_id IS NOT NULL AS has_id, tx_id > 0 AS has_tx, ord,
              occurred_at = recorded_at AS same_time;

-- Multi-row, INSERT ... SELECT, and their places within the transaction.
BEGIN;
INSERT INTO accord.outbox (topic, key) VALUES ('ob.a', '1'), ('ob.a', '2') RETURNING ord;
INSERT INTO accord.outbox (topic, key, payload)
    SELECT 'ob.b', g::text, jsonb_build_object('n', g) FROM generate_series(1, 3) g RETURNING ord, key;
COMMIT;

-- Prepared statements; an explicit occurred_at is kept; COPY works.
PREPARE put(text, text, jsonb) AS INSERT INTO accord.outbox (topic, key, payload, occurred_at)
    VALUES ($1, $2, $3, '2026-01-02 03:04:05+00') RETURNING occurred_at AT TIME ZONE 'UTC' AS at;
EXECUTE put('ob.c', 'x', '{}');
EXECUTE put('ob.c', 'y', NULL);
COPY accord.outbox (topic, key, payload) FROM stdin;
ob.copy	1	{"a": 1}
ob.copy	2	\N
\.
SELECT topic, key, op, payload FROM accord.event_log WHERE topic = 'ob.copy' ORDER BY key;

-- event_id is a UUID of version 7 (RFC 9562) and carries the time of recording.
SELECT substr(event_id::text, 15, 1) AS version, substr(event_id::text, 20, 1) IN ('8', '9', 'a', 'b') AS variant,
       abs(extract(epoch FROM recorded_at) * 1000
           - ('x' || lpad(replace(substr(event_id::text, 1, 13), '-', ''), 16, '0'))::bit(64)::bigint) < 2 AS same_ms
FROM accord.event_log WHERE topic = 'ob.rate';

-- One row of commit_log per transaction that has events left, with the settings of the session.
BEGIN;
SET LOCAL accord.actor = 'ann';
SET LOCAL accord.reason = 'test';
SET LOCAL accord.correlation_id = 'c-1';
INSERT INTO accord.outbox (topic) VALUES ('ob.who');
SAVEPOINT s;
INSERT INTO accord.outbox (topic) VALUES ('ob.who');
INSERT INTO accord.outbox (topic) VALUES ('ob.who');
ROLLBACK TO s;
SAVEPOINT t;
INSERT INTO accord.outbox (topic) VALUES ('ob.who');
SAVEPOINT u;
INSERT INTO accord.outbox (topic) VALUES ('ob.who');
RELEASE u;
RELEASE t;
COMMIT;
SELECT c.events, c.actor, c.reason, c.correlation_id,
       c.role = (SELECT oid FROM pg_roles WHERE rolname = current_user) AS me
FROM accord.commit_log c WHERE c.tx_id IN (SELECT tx_id FROM accord.event_log WHERE topic = 'ob.who');
SELECT ord FROM accord.event_log WHERE topic = 'ob.who' ORDER BY ord;

-- Events that were all rolled back to a savepoint leave no commit behind.
SELECT count(*) AS before FROM accord.commit_log \gset
BEGIN;
SAVEPOINT s;
INSERT INTO accord.outbox (topic) VALUES ('ob.none');
ROLLBACK TO s;
COMMIT;
BEGIN;
INSERT INTO accord.outbox (topic) VALUES ('ob.none');
ROLLBACK;
DO $$
BEGIN
    INSERT INTO accord.outbox (topic) VALUES ('ob.none');
    RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
    NULL;
END
$$;
SELECT count(*) - :before AS commits FROM accord.commit_log;
SELECT count(*) FROM accord.event_log WHERE topic = 'ob.none';

-- Idempotency keys: the same content is discarded, other content refused.
INSERT INTO accord.outbox (topic, key, payload, idempotency_key) VALUES ('ob.idem', 'k', '{"a": 1, "b": 2}', 'once');
\set QUIET off
INSERT INTO accord.outbox (topic, key, payload, idempotency_key) VALUES ('ob.idem', 'k', '{"b": 2, "a": 1}', 'once');
\set QUIET on
INSERT INTO accord.outbox (topic, key, payload, idempotency_key) VALUES ('ob.idem', 'k', '{"a": 2}', 'once');
SELECT count(*) FROM accord.event_log WHERE topic = 'ob.idem';
-- A key whose transaction rolled back is free.
BEGIN;
INSERT INTO accord.outbox (topic, idempotency_key) VALUES ('ob.idem', 'free');
ROLLBACK;
INSERT INTO accord.outbox (topic, payload, idempotency_key) VALUES ('ob.idem', '{"other": true}', 'free')
    RETURNING payload;

-- Keys are told apart by what they were used with, in one transaction as between two.
BEGIN;
INSERT INTO accord.outbox (topic, payload, idempotency_key) VALUES ('ob.idem', '1', 'twice'), ('ob.idem', '1', 'twice');
SELECT count(*) FROM accord.event_log WHERE idempotency_key = 'twice';
COMMIT;

-- The outbox shows what is owed: an event that a route takes, once, however many channels it goes to.
INSERT INTO accord.channel (name, base_url) VALUES ('ob1', 'https://ob1.example/'), ('ob2', 'https://ob2.example/');
INSERT INTO accord.route (channel, topic) VALUES ('ob1', 'ob.owed'), ('ob2', 'ob.owed'), ('ob2', 'ob.two');
INSERT INTO accord.outbox (topic, key) VALUES ('ob.owed', 'both'), ('ob.two', 'one'), ('ob.nobody', 'none');
INSERT INTO accord.outbox (topic, key, channels) VALUES ('ob.nobody', 'addressed', '{ob1}');
INSERT INTO accord.outbox (topic, key, source) VALUES ('ob.two', 'not back', 'ob2');
INSERT INTO accord.outbox (topic, key, account) VALUES ('ob.two', 'no accounts there', 'a');
SELECT topic, key FROM accord.outbox WHERE topic LIKE 'ob.%' ORDER BY tx_id, ord;
SELECT e.key, o.channel, o.account, o.state, o.attempts
FROM accord.owed() o JOIN accord.event_log e USING (tx_id, ord) WHERE o.channel LIKE 'ob_'
ORDER BY o.channel, o.tx_id, o.ord;
-- A channel with accounts has its own endpoint for events of none, and takes those of its accounts only.
INSERT INTO accord.account (channel, name) VALUES ('ob2', 'b');
INSERT INTO accord.outbox (topic, key, account) VALUES ('ob.two', 'for b', 'b');
SELECT e.key, o.channel, o.account
FROM accord.owed() o JOIN accord.event_log e USING (tx_id, ord) WHERE o.channel = 'ob2' ORDER BY o.tx_id, o.ord;

-- What is wrong is refused, with its SQLSTATE and what to do; nothing of it is written.
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text;
    message text;
    hint text;
BEGIN
    EXECUTE statement;
    RAISE SQLSTATE 'TESTS';             -- undone in any case
EXCEPTION WHEN SQLSTATE 'TESTS' THEN
    RETURN 'accepted';
WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
    RETURN format(E'%s: %s\n  %s', state, message, hint);
END
$$;
CREATE FUNCTION pg_temp.try(columns text, VARIADIC vals text[]) RETURNS text LANGUAGE sql AS $$
    SELECT pg_temp.try(format('INSERT INTO accord.outbox (%s) VALUES (%s)', columns,
                              string_agg(quote_nullable(v), ', ')))
    FROM unnest(vals) v
$$;
\pset format unaligned
\pset tuples_only on
SELECT pg_temp.try('key', 'x');
SELECT pg_temp.try('topic', '');
SELECT pg_temp.try('topic', repeat('t', 255));
SELECT pg_temp.try('topic', repeat('t', 256));
SELECT pg_temp.try('topic', 'accord.redeliver');
SELECT pg_temp.try('topic', 'accord');
SELECT pg_temp.try('topic', 'a b');
SELECT pg_temp.try('topic', E'a\tb');
SELECT pg_temp.try('topic', 'rate.*');
SELECT pg_temp.try('topic, key', 'ob.x', repeat('k', 2048));
SELECT pg_temp.try('topic, key', 'ob.x', repeat('k', 2049));
SELECT pg_temp.try('topic, key', 'ob.x', repeat(U&'\20AC', 683));
SELECT pg_temp.try('topic, source', 'ob.x', repeat('s', 64));
SELECT pg_temp.try('topic, account', 'ob.x', repeat('a', 1021));
SELECT pg_temp.try('topic, idempotency_key', 'ob.x', repeat('i', 1000));
SELECT pg_temp.try('topic, idempotency_key', 'ob.x', repeat('i', 1001));
SELECT pg_temp.try('topic, op', 'ob.x', 'upsert');
SELECT op, pg_temp.try('topic, op', 'ob.x', op) FROM unnest('{insert,update,delete,truncate,event,NULL}'::text[]) op;
SELECT pg_temp.try('topic, event_id', 'ob.x', '00000000-0000-0000-0000-000000000000');
SELECT pg_temp.try('topic, tx_id', 'ob.x', '1');
SELECT pg_temp.try('topic, ord', 'ob.x', '1');
SELECT pg_temp.try('topic, recorded_at', 'ob.x', 'now');
SELECT pg_temp.try('topic, channels', 'ob.x', '{ob1,nowhere}');
SELECT pg_temp.try('topic, channels', 'ob.x', '{NULL}');
SELECT pg_temp.try('topic, channels', 'ob.x', '{}');
SELECT pg_temp.try('topic, headers', 'ob.x', '{"traceparent": "00-1-2-01"}');
SELECT pg_temp.try('topic, headers', 'ob.x', '{"X Y": "a"}');
SELECT pg_temp.try('topic, headers', 'ob.x', '{"X-Ok": "a\r\nb"}');
SELECT pg_temp.try('topic, headers', 'ob.x', '{"X-Ok": 1}');
SELECT pg_temp.try('topic, headers', 'ob.x', '["a"]');
-- Reserved, as README lists them, in whatever case.
SELECT name, substr(pg_temp.try('topic, headers', 'ob.x', jsonb_build_object(name, 'a')::text), 1, 5) FROM unnest(ARRAY[
    'Authorization', 'Connection', 'Content-Length', 'Cookie', 'Expect', 'Host', 'Keep-Alive', 'Proxy-Authorization',
    'proxy-anything', 'TE', 'Trailer', 'Transfer-Encoding', 'Upgrade', 'hOST', 'X-Host', 'Hosts']) name;
SELECT pg_temp.try($$UPDATE accord.outbox SET topic = 'y' WHERE topic = 'ob.owed'$$);
SELECT pg_temp.try($$DELETE FROM accord.outbox WHERE topic = 'ob.owed'$$);
SELECT pg_temp.try($$TRUNCATE accord.outbox$$);
SELECT pg_temp.try($$INSERT INTO accord.outbox (topic) VALUES ('ob.x') ON CONFLICT (event_id) DO NOTHING$$);
-- Where triggers do not fire the event would be lost: that is refused, too.
SET session_replication_role = replica;
SELECT pg_temp.try('topic', 'ob.x');
SELECT pg_temp.try($$INSERT INTO accord.outbox (event_id, topic) VALUES (gen_random_uuid(), 'ob.x')$$);
SELECT pg_temp.try($$WITH i AS (INSERT INTO accord.outbox (topic) VALUES ('ob.x') RETURNING 1) SELECT * FROM i$$);
SELECT pg_temp.try($$DELETE FROM accord.outbox$$);
SELECT pg_temp.try($$COPY accord.outbox (event_id, topic) FROM '/dev/null'$$);
SELECT count(*) >= 0 AS may_look FROM accord.outbox;
RESET session_replication_role;
SELECT count(*) FROM accord.event_log WHERE topic = 'ob.x';
DELETE FROM accord.channel WHERE name LIKE 'ob_';
SELECT count(*) FROM accord.outbox WHERE topic LIKE 'ob.%';

-- Looking does not change how the rest of a transaction is planned.
BEGIN;
SELECT count(*) >= 0 AS looked FROM accord.owed();
SHOW enable_seqscan;
COMMIT;
