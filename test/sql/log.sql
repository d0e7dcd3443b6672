-- log: append-only whatever the session's role, numbered in commit order, read in whole transactions.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;

SELECT accord.safe_seq() AS start \gset
BEGIN;
INSERT INTO accord.outbox (topic, key) VALUES ('lg.a', '1'), ('lg.a', '2'), ('lg.a', '3');
COMMIT;
INSERT INTO accord.outbox (topic, key) VALUES ('lg.b', '1');

-- Whole transactions, in order; max is a minimum rounded up to a transaction.
SELECT seq - :start AS seq, ord, topic, key FROM accord.read(:start, 1);
SELECT seq - :start AS seq, ord, topic, key FROM accord.read(:start, 4);
SELECT seq - :start AS seq, ord, topic, key FROM accord.read(:start + 1, 100);
SELECT count(*) FROM accord.read(accord.safe_seq(), 100);
SELECT * FROM accord.read(0, 0);
SELECT count(*) FROM accord.read(NULL);

-- With each event: its author's words, and who wrote it and why.
BEGIN;
SET LOCAL accord.actor = 'ann';
SET LOCAL accord.reason = 'to see it';
SET LOCAL accord.correlation_id = 'c-7';
INSERT INTO accord.outbox (topic, key, op, payload, before, source, account, channels, deliver_at, occurred_at,
                           idempotency_key, headers)
    VALUES ('lg.full', 'k', 'update', '{"a": 2}', '{"a": 1}', 'elsewhere', 'hotel-1', NULL, '2026-01-02 03:04:05+00',
            '2025-12-31 23:59:59+00', 'lg-full', '{"traceparent": "00-1-2-01"}') RETURNING event_id \gset
COMMIT;
\x
SELECT event_id = :'event_id' AS same_id, committed_at >= recorded_at AS in_time, topic, key, op, payload, before,
       source, account, channels, deliver_at AT TIME ZONE 'UTC' AS deliver_at, occurred_at AT TIME ZONE 'UTC' AS occurred_at,
       idempotency_key, headers, actor, reason, correlation_id
FROM accord.read(:start + 2, 100);
\x
SELECT accord.safe_seq() - :start AS commits;

-- What a statement wrote is visible to its own transaction in the table, but not in commit order before it commits.
BEGIN;
INSERT INTO accord.outbox (topic, key) VALUES ('lg.c', '1');
SELECT count(*) FROM accord.event_log WHERE topic = 'lg.c';
SELECT count(*) FROM accord.read(:start + 3, 100);
COMMIT;
SELECT seq - :start AS seq, topic FROM accord.read(:start + 3, 100);

-- A reader in a REPEATABLE READ transaction is not shown less.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM accord.read(:start, 100);
COMMIT;

-- The log is for good, also as a replica.
UPDATE accord.event_log SET topic = 'x' WHERE topic = 'lg.a';
DELETE FROM accord.event_log WHERE topic = 'lg.a';
TRUNCATE accord.event_log;
TRUNCATE accord.event_log_0;
DELETE FROM accord.event_log_0;
UPDATE accord.commit_log SET actor = 'x';
TRUNCATE accord.commit_log;
DELETE FROM accord.attempt_log_0 WHERE false;
TRUNCATE accord.attempt_log;
TRUNCATE accord.backlog_log;
TRUNCATE accord.cursor_log;
SET session_replication_role = replica;
UPDATE accord.event_log SET topic = 'x' WHERE topic = 'lg.a';
DELETE FROM accord.event_log_0 WHERE topic = 'lg.a';
TRUNCATE accord.event_log_0;
TRUNCATE accord.commit_log_0;
RESET session_replication_role;
SELECT count(*) FROM accord.event_log WHERE topic = 'lg.a';
INSERT INTO accord.event_log_0 (topic) VALUES ('x');
COPY accord.commit_log_0 (seq) FROM stdin;
1
\.

-- What is prepared has no place before it is committed.
BEGIN;
INSERT INTO accord.outbox (topic) VALUES ('lg.prepared');
PREPARE TRANSACTION 'accord_test';
SELECT count(*) FROM accord.event_log WHERE topic = 'lg.prepared';
SELECT accord.safe_seq() AS mark \gset
COMMIT PREPARED 'accord_test';
SELECT seq - :mark AS seq, ord, topic FROM accord.read(:mark, 10);
SELECT count(*) FROM accord.prepared;
BEGIN;
SAVEPOINT s;
INSERT INTO accord.outbox (topic) VALUES ('lg.prepared');
ROLLBACK TO s;
PREPARE TRANSACTION 'accord_test';
ROLLBACK PREPARED 'accord_test';
SELECT count(*) FROM accord.event_log WHERE topic = 'lg.prepared';

-- The rings turn: events go to the next slot, and are read across it in order.
SELECT accord.safe_seq() AS mark \gset
INSERT INTO accord.outbox (topic, key) VALUES ('lg.ring', 'before');
SELECT accord.turn_log_ring(true);
INSERT INTO accord.outbox (topic, key) VALUES ('lg.ring', 'after');
SELECT count(DISTINCT slot) FROM accord.event_log WHERE topic = 'lg.ring';
SELECT seq - :mark AS seq, key FROM accord.read(:mark, 100);
SELECT seq - :mark AS seq, key FROM accord.read(:mark + 1, 100);
SELECT accord.turn_log_ring(true);
INSERT INTO accord.outbox (topic, key) VALUES ('lg.ring', 'later'), ('lg.ring', 'last');
SELECT seq - :mark AS seq, ord, key FROM accord.read(:mark, 100);
SELECT seq - :mark AS seq, ord, key FROM accord.read(:mark, 3);
-- A transaction's events stay in the slot it began in.
BEGIN;
INSERT INTO accord.outbox (topic, key) VALUES ('lg.pin', '1');
SELECT accord.turn_log_ring(true);
INSERT INTO accord.outbox (topic, key) VALUES ('lg.pin', '2');
COMMIT;
SELECT count(DISTINCT slot) FROM accord.event_log WHERE topic = 'lg.pin';
