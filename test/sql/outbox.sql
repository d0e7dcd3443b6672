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
SELECT c.events, c.actor, c.reason, c.correlation_id, c.role = (SELECT oid FROM pg_roles WHERE rolname = current_user) AS me
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
INSERT INTO accord.outbox (topic, payload, idempotency_key) VALUES ('ob.idem', '{"other": true}', 'free') RETURNING payload;

-- What is wrong is refused, with what to do.
\set VERBOSITY default
INSERT INTO accord.outbox (key) VALUES ('x');
INSERT INTO accord.outbox (topic) VALUES ('');
INSERT INTO accord.outbox (topic) VALUES ('accord.redeliver');
INSERT INTO accord.outbox (topic) VALUES ('a b');
INSERT INTO accord.outbox (topic) VALUES ('rate.*');
INSERT INTO accord.outbox (topic, op) VALUES ('ob.x', 'upsert');
INSERT INTO accord.outbox (topic, event_id) VALUES ('ob.x', '00000000-0000-0000-0000-000000000000');
INSERT INTO accord.outbox (topic, tx_id) VALUES ('ob.x', 1);
INSERT INTO accord.outbox (topic, channels) VALUES ('ob.x', '{nowhere}');
INSERT INTO accord.outbox (topic, channels) VALUES ('ob.x', '{}');
INSERT INTO accord.outbox (topic, headers) VALUES ('ob.x', '{"Host": "elsewhere"}');
INSERT INTO accord.outbox (topic, headers) VALUES ('ob.x', '{"X-Ok": "a\r\nb"}');
INSERT INTO accord.outbox (topic, headers) VALUES ('ob.x', '["a"]');
UPDATE accord.outbox SET topic = 'y';
DELETE FROM accord.outbox;
SELECT count(*) FROM accord.event_log WHERE topic = 'ob.x';
