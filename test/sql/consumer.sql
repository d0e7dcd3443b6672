-- consumer: a named position in the log; it moves with the reader's transaction, forth by advance(), anywhere by rewind().
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;

SELECT accord.safe_seq() AS start \gset
INSERT INTO accord.consumer (name) VALUES ('cs all');
INSERT INTO accord.consumer (name, topic) VALUES ('cs some', 'cs.*');
SELECT accord.rewind('cs all', :start) = :start AS all_rewound, accord.rewind('cs some', :start) = :start AS some_rewound;
INSERT INTO accord.outbox (topic, key) VALUES ('cs.a', '1'), ('other', '2'), ('cs.a', '3');
INSERT INTO accord.outbox (topic, key) VALUES ('other', '4');
INSERT INTO accord.outbox (topic, key) VALUES ('cs.b', '5');

-- Whole transactions, filtered, from the position; polling alone does not move it.
SELECT seq - :start AS seq, ord, topic, key FROM accord.poll('cs all', 1);
SELECT seq - :start AS seq, ord, topic, key FROM accord.poll('cs all');
SELECT seq - :start AS seq, ord, topic, key FROM accord.poll('cs some');
SELECT accord.advance('cs some', :start + 1) - :start AS position;
SELECT seq - :start AS seq, ord, topic, key FROM accord.poll('cs some');

-- A projection: what is made of the events, and how far they were read, commit together.
CREATE TABLE cs_projection (key text PRIMARY KEY, n integer NOT NULL);
CREATE FUNCTION cs_project(consumer text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    last bigint;
BEGIN
    WITH events AS (SELECT * FROM accord.poll(consumer, 2)),
         done AS (INSERT INTO cs_projection SELECT key, 1 FROM events
                  ON CONFLICT (key) DO UPDATE SET n = cs_projection.n + 1)
    SELECT max(seq) INTO last FROM events;
    IF last IS NOT NULL THEN
        PERFORM accord.advance(consumer, last);
    END IF;
    RETURN last;
END
$$;
SELECT cs_project('cs all') - :start AS read_to;
BEGIN;
SELECT cs_project('cs all') - :start AS read_to;
ROLLBACK;
SELECT cs_project('cs all') - :start AS read_to;
SELECT cs_project('cs all') - :start AS read_to;
TABLE cs_projection ORDER BY key;
BEGIN;
SAVEPOINT s;
SELECT accord.rewind('cs all', :start) - :start AS position;
ROLLBACK TO s;
SELECT count(*) FROM accord.poll('cs all');
COMMIT;
-- rebuilt from the beginning
BEGIN;
TRUNCATE cs_projection;
SELECT accord.rewind('cs all', :start) - :start AS position;
SELECT cs_project('cs all') - :start AS read_to;
SELECT cs_project('cs all') - :start AS read_to;
COMMIT;
TABLE cs_projection ORDER BY key;
SELECT accord.rewind('cs all', now() + interval '1 hour') = accord.safe_seq() AS to_the_end,
       accord.rewind('cs all', '-infinity'::timestamptz) AS to_the_beginning;
SELECT count(*) = 0 AS begins_with_the_oldest
FROM (SELECT seq FROM accord.poll('cs all', 1) EXCEPT SELECT min(seq) FROM accord.commit_log JOIN accord.event_log
      USING (slot, tx_id) WHERE topic NOT LIKE 'accord.%') e;

-- Under REPEATABLE READ the position is not the one of its snapshot.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT accord.advance('cs some', :start + 3) - :start AS position;
SELECT count(*) FROM accord.poll('cs some');
COMMIT;

-- What does not match is passed for good, so that the log is not kept for it.
SELECT position - :start AS position, behind, lost FROM accord.consumer_status WHERE name = 'cs some';
DO $$ BEGIN FOR i IN 1 .. 1200 LOOP INSERT INTO accord.outbox (topic) VALUES ('other'); COMMIT; END LOOP; END $$;
INSERT INTO accord.outbox (topic, key) VALUES ('cs.c', '6');
SELECT topic, key FROM accord.poll('cs some');
SELECT position - :start AS position, behind FROM accord.consumer_status WHERE name = 'cs some';

-- The extension's own events are given to those who name them.
INSERT INTO accord.consumer (name, topic) VALUES ('cs own', 'accord.*');
SELECT accord.rewind('cs own', accord.safe_seq()) = accord.rewind('cs some', accord.safe_seq()) AS same;
SELECT accord.decide('accord.discard', ARRAY['["nothing"]'::jsonb], 'a test');
SELECT topic FROM accord.poll('cs own');
SELECT topic FROM accord.poll('cs some');

-- Mistakes.
SELECT * FROM accord.poll('cs none');
SELECT accord.advance('cs none', 1);
SELECT * FROM accord.poll('cs all', 0);
\set VERBOSITY terse
DO $$ BEGIN PERFORM accord.advance('cs some', accord.safe_seq() + 1);
EXCEPTION WHEN invalid_parameter_value THEN RAISE NOTICE 'refused: not yet'; END $$;
DO $$ BEGIN PERFORM accord.rewind('cs some', accord.safe_seq() + 1);
EXCEPTION WHEN invalid_parameter_value THEN RAISE NOTICE 'refused: not yet'; END $$;
DO $$ BEGIN PERFORM accord.advance('cs some', 1);
EXCEPTION WHEN object_not_in_prerequisite_state THEN RAISE NOTICE 'refused: not back'; END $$;
SELECT accord.rewind('cs some', -1);
INSERT INTO accord.consumer (name) VALUES ('');
INSERT INTO accord.consumer (name, topic) VALUES ('cs empty', '');
INSERT INTO accord.consumer (name, max_lag) VALUES ('cs lag', '-1 day');
\set VERBOSITY default

-- A consumer is its owner's, who needs nothing else.
CREATE ROLE regress_accord_reader;
CREATE ROLE regress_accord_other;
SELECT accord.grant_writer('regress_accord_reader'), accord.grant_writer('regress_accord_other');
UPDATE accord.consumer SET owner = 'regress_accord_reader' WHERE name = 'cs some';
SET ROLE regress_accord_reader;
SELECT count(*) FROM accord.poll('cs some');
SELECT accord.rewind('cs some', now()) > 0 AS rewound;
SELECT * FROM accord.commit_log;
SET ROLE regress_accord_other;
SELECT count(*) FROM accord.poll('cs some');
SELECT accord.advance('cs some', 1);
SELECT accord.rewind('cs some', now());
RESET ROLE;
DROP OWNED BY regress_accord_reader, regress_accord_other;
DROP ROLE regress_accord_reader, regress_accord_other;

-- Positions are for good, and carried over when their ring moves on.
UPDATE accord.consumer_log SET position = 0;
SELECT position AS before FROM accord.consumer_status WHERE name = 'cs some' \gset
SELECT count(accord.turn_consumer_ring(true)::text) FROM generate_series(1, 9);
SELECT position = :before AS same FROM accord.consumer_status WHERE name = 'cs some';
SELECT count(DISTINCT slot) AS slots, count(*) < 9 AS compact FROM accord.consumer_log;

-- One that was dropped leaves nothing to its namesake.
DELETE FROM accord.consumer WHERE name = 'cs some';
INSERT INTO accord.consumer (name) VALUES ('cs some');
SELECT position FROM accord.consumer_status WHERE name = 'cs some';
DELETE FROM accord.consumer WHERE name LIKE 'cs %';
DROP TABLE cs_projection;
DROP FUNCTION cs_project;
