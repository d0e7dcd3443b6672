-- idempotent: a repeated INSERT is discarded, or raises; accord.once() runs work once.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;
CREATE SCHEMA ip;
CREATE TABLE ip.payment (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, charge text, amount numeric, at timestamptz DEFAULT now());
SELECT regexp_replace(accord.idempotent('ip.payment', '{charge}'), '\d+$', 'OID') AS scope;

-- Discarded: within a statement, within a transaction, later, and when the row is gone.
\set QUIET off
INSERT INTO ip.payment (charge, amount) VALUES ('c1', 10), ('c1', 20), ('c2', 5) RETURNING charge, amount;
INSERT INTO ip.payment (charge, amount) VALUES ('c1', 10) RETURNING charge;
DELETE FROM ip.payment;
INSERT INTO ip.payment (charge, amount) VALUES ('c1', 10) RETURNING charge;
-- A null is no key.
INSERT INTO ip.payment (charge, amount) VALUES (NULL, 1), (NULL, 1);
-- A repetition draws no transaction number.
BEGIN;
INSERT INTO ip.payment (charge) OVERRIDING USER VALUE SELECT 'c1';
SELECT pg_current_xact_id_if_assigned() AS transaction;
COMMIT;
-- What is rolled back was not used.
BEGIN;
INSERT INTO ip.payment (charge) VALUES ('c3');
SAVEPOINT s;
INSERT INTO ip.payment (charge) VALUES ('c4');
ROLLBACK TO s;
INSERT INTO ip.payment (charge) VALUES ('c3'), ('c4');
ROLLBACK;
INSERT INTO ip.payment (charge) VALUES ('c3'), ('c4');
-- COPY, and a trigger that fills in the key before.
COPY ip.payment (charge, amount) FROM stdin;
c5	1
c5	2
c1	3
\.
CREATE FUNCTION ip.fill() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.charge := upper(NEW.charge); RETURN NEW; END';
CREATE TRIGGER fill BEFORE INSERT ON ip.payment FOR EACH ROW EXECUTE FUNCTION ip.fill();
INSERT INTO ip.payment (charge) VALUES ('x'), ('X');
DROP TRIGGER fill ON ip.payment;
\set QUIET on

-- Raising, and content that a repetition must have in common; called again it sets all of it anew, but keys stay.
SELECT accord.idempotent('ip.payment', '{charge}', on_repeat => 'raise') IS NOT NULL;
INSERT INTO ip.payment (charge) VALUES ('c1');
SELECT accord.idempotent('ip.payment', '{charge}', interval '1 day', content => '{amount}') IS NOT NULL;
INSERT INTO ip.payment (charge, amount) VALUES ('c6', 1.0), ('c6', 1.00);
\set VERBOSITY sqlstate
INSERT INTO ip.payment (charge, amount) VALUES ('c6', 2);
INSERT INTO ip.payment (charge, amount) VALUES ('c6', NULL);
\set VERBOSITY terse
SELECT retention FROM accord.idempotency_scope WHERE scope LIKE 'table ip.payment/%';
-- Renamed, the table keeps its keys; another one by its name has its own.
ALTER TABLE ip.payment RENAME TO old_payment;
CREATE TABLE ip.payment (charge text);
SELECT accord.idempotent('ip.payment', '{charge}') <> accord.idempotent('ip.old_payment', '{charge}') AS own;
\set QUIET off
INSERT INTO ip.old_payment (charge) VALUES ('c1');
INSERT INTO ip.payment VALUES ('c1');
\set QUIET on
SELECT accord.not_idempotent('ip.old_payment'), accord.not_idempotent('ip.old_payment');
\set QUIET off
INSERT INTO ip.old_payment (charge) VALUES ('c1');
\set QUIET on

-- Keys are what is equal, whatever the session's settings: several columns, and every type.
CREATE TABLE ip.kinds (n numeric, f float8, t timestamptz, d date, i interval, b bytea, c character(5), a timestamptz[],
                       r daterange, j jsonb, u uuid, e boolean);
SELECT accord.idempotent('ip.kinds', '{n, f, t, d, i, b, c, a, r, j, u, e}') IS NOT NULL;
\set QUIET off
INSERT INTO ip.kinds VALUES (1.0, -0.0, '2026-01-02 03:04:05+00', '2026-01-02', '1 day', '\x00ff', 'a', '{2026-01-02 03:04:05+00}',
    '[2026-01-01,2026-01-31]', '{"a": 1, "b": 2}', '00000000-0000-0000-0000-00000000000a', true);
SET TimeZone = 'Asia/Tokyo';
SET DateStyle = 'SQL, DMY';
SET IntervalStyle = 'iso_8601';
SET bytea_output = 'escape';
SET extra_float_digits = 0;
INSERT INTO ip.kinds VALUES (1.000, 0, '2026-01-02 03:04:05+00', '2026-01-02', '24:00:00', '\x00ff', 'a    ', '{2026-01-02 03:04:05+00}',
    '[2026-01-01,2026-02-01)', '{"b": 2, "a": 1}', '00000000-0000-0000-0000-00000000000A', true);
RESET ALL;
INSERT INTO ip.kinds VALUES (1.0, -0.0, '2026-01-02 03:04:06+00', '2026-01-02', '1 day', '\x00ff', 'a', '{2026-01-02 03:04:05+00}',
    '[2026-01-01,2026-01-31]', '{"a": 1, "b": 2}', '00000000-0000-0000-0000-00000000000a', true);
-- Parts are told apart, however they are written; long keys are kept as their digest.
CREATE TABLE ip.pair (a text, b text) PARTITION BY LIST (a);
CREATE TABLE ip.pair_any PARTITION OF ip.pair DEFAULT;
\set QUIET on
SELECT accord.idempotent('ip.pair', '{a, b}') IS NOT NULL;
\set QUIET off
INSERT INTO ip.pair VALUES ('x,y', 'z'), ('x', 'y,z'), ('x\', ',y'), ('', ''), ('\N', '\N'), (repeat('long', 1000), 'x');
INSERT INTO ip.pair VALUES ('x,y', 'z'), ('x', 'y,z'), ('x\', ',y'), ('', ''), ('\N', '\N'), (repeat('long', 1000), 'x');
INSERT INTO ip.pair_any VALUES ('x', 'y,z');
\set QUIET on

-- What cannot be is refused.
CREATE VIEW ip.view AS SELECT 1 AS a;
CREATE TABLE ip.made (a integer, b integer GENERATED ALWAYS AS (a + 1) STORED);
SELECT accord.idempotent('ip.view', '{a}');
SELECT accord.idempotent('ip.made', '{}');
SELECT accord.idempotent('ip.made', NULL);
SELECT accord.idempotent('ip.made', '{c}');
SELECT accord.idempotent('ip.made', '{a,NULL}');
SELECT accord.idempotent('ip.made', '{b}');
SELECT accord.idempotent('ip.made', '{a}', content => '{B}');
SELECT accord.idempotent('ip.made', '{a}', on_repeat => 'ignore');
SELECT accord.idempotent('ip.made', '{a}', '1 s');
SELECT accord.idempotent(0, '{a}');
SELECT accord.idempotent('ip.made', '{a}') IS NOT NULL;
ALTER TABLE ip.made RENAME a TO z;
INSERT INTO ip.made VALUES (1);
CREATE TRIGGER mine BEFORE UPDATE ON ip.made FOR EACH ROW EXECUTE FUNCTION accord.idempotent_insert();
SELECT accord.not_idempotent('ip.made');
UPDATE ip.made SET z = 1;
-- Only the owner of a table may.
CREATE ROLE regress_accord_nobody_ip;
SELECT accord.grant_writer('regress_accord_nobody_ip');
GRANT USAGE, CREATE ON SCHEMA ip TO regress_accord_nobody_ip;
SET ROLE regress_accord_nobody_ip;
SELECT accord.idempotent('ip.payment', '{charge}');
SELECT accord.not_idempotent('ip.payment');
CREATE TABLE ip.own (a integer);
SELECT accord.idempotent('ip.own', '{a}') IS NOT NULL;
\set QUIET off
INSERT INTO ip.own VALUES (1), (1);
\set QUIET on
SELECT accord.once('ip', 'mine', NULL, 'SELECT count(*) FROM ip.payment');
RESET ROLE;

-- Partitions: one key for all of them, those to come included; a row that an update moves is not a repetition.
CREATE TABLE ip.parted (id integer, region text, amount integer, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE ip.parted_a PARTITION OF ip.parted FOR VALUES IN ('a');
CREATE TABLE ip.parted_b (region text NOT NULL, gone integer, amount integer, id integer NOT NULL);
ALTER TABLE ip.parted_b DROP COLUMN gone;
ALTER TABLE ip.parted ATTACH PARTITION ip.parted_b FOR VALUES IN ('b');
SELECT regexp_replace(accord.idempotent('ip.parted', '{id}'), '\d+$', 'OID') AS scope;
CREATE TABLE ip.parted_c PARTITION OF ip.parted FOR VALUES IN ('c');
\set QUIET off
INSERT INTO ip.parted VALUES (1, 'a', 1), (2, 'a', 1), (1, 'b', 1), (3, 'c', 1);
INSERT INTO ip.parted_b (id, region) VALUES (2, 'b');
UPDATE ip.parted SET region = CASE id WHEN 1 THEN 'b' WHEN 2 THEN 'c' ELSE 'a' END;
UPDATE ip.parted SET region = 'b', amount = amount + 1;
UPDATE ip.parted SET amount = amount + 1;
WITH u AS (UPDATE ip.parted SET amount = amount + 1 WHERE id = 1) INSERT INTO ip.parted VALUES (1, 'a', 9);
WITH u AS (UPDATE ip.parted SET region = 'a' WHERE id = 1) INSERT INTO ip.parted VALUES (1, 'c', 9), (2, 'c', 9);
MERGE INTO ip.parted p USING (VALUES (1), (3), (4)) v (id) ON p.id = v.id
    WHEN MATCHED THEN UPDATE SET region = 'c' WHEN NOT MATCHED THEN INSERT VALUES (v.id, 'a', 1);
\set QUIET on
SELECT tableoid::regclass, * FROM ip.parted ORDER BY id;
-- What happens between the halves of a move does not matter.
CREATE FUNCTION ip.between() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ip.parted VALUES (1, 'a', 1), (2, 'c', 1), (5, 'a', 1) ON CONFLICT DO NOTHING;
    IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER between_delete BEFORE DELETE ON ip.parted FOR EACH ROW EXECUTE FUNCTION ip.between();
UPDATE ip.parted SET region = 'a' WHERE id IN (1, 2, 3);
SELECT tableoid::regclass, * FROM ip.parted ORDER BY id;
DROP TRIGGER between_delete ON ip.parted;
-- One that is detached keeps no trigger; a partition has none of its own.
ALTER TABLE ip.parted DETACH PARTITION ip.parted_c;
\set QUIET off
INSERT INTO ip.parted_c VALUES (1, 'c', 1);
\set QUIET on
SELECT accord.idempotent('ip.parted_a', '{id}');
-- One that had its own before it was attached does not hear of what leaves the others: it refuses, rather than lose a row.
CREATE TABLE ip.parted_d (id integer, region text, amount integer, PRIMARY KEY (id, region));
CREATE TABLE ip.late (id integer, region text, amount integer, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
SELECT accord.idempotent('ip.parted_d', '{id}') IS NOT NULL AS attached;
ALTER TABLE ip.late ATTACH PARTITION ip.parted_d FOR VALUES IN ('d');
CREATE TABLE ip.late_e PARTITION OF ip.late FOR VALUES IN ('e');
INSERT INTO ip.late VALUES (1, 'd', 1);
UPDATE ip.late SET region = 'e';
UPDATE ip.late SET region = 'd';
SELECT * FROM ip.late;
SELECT accord.not_idempotent('ip.parted');

-- accord.once(): the first does the work, the others get its result, whatever has become of it.
CREATE TABLE ip.charge (id integer GENERATED ALWAYS AS IDENTITY, amount numeric);
PREPARE charge(text, jsonb) AS
    SELECT accord.once('ip', $1, $2, 'INSERT INTO ip.charge (amount) SELECT ($1 ->> ''amount'')::numeric RETURNING *');
EXECUTE charge('k1', '{"amount": 10}');
EXECUTE charge('k1', '{"amount": 10}');
DELETE FROM ip.charge;
EXECUTE charge('k1', '{"amount": 10}');
SELECT count(*) FROM ip.charge;
\set VERBOSITY sqlstate
EXECUTE charge('k1', '{"amount": 11}');
EXECUTE charge('k1', NULL);
\set VERBOSITY terse
EXECUTE charge('k2', '{"amount": 11}');
-- Failed work, and work that was rolled back, may run again.
EXECUTE charge('k3', '{"amount": "ten"}');
EXECUTE charge('k3', '{"amount": 12}');
BEGIN;
EXECUTE charge('k4', '{"amount": 13}');
EXECUTE charge('k4', '{"amount": 13}');
ROLLBACK;
EXECUTE charge('k4', '{"amount": 14}');
SELECT amount FROM ip.charge ORDER BY id;
-- A value of one column is the result itself; no row is null; a scope's keys are its own.
SELECT accord.once('ip', 'v1', NULL, 'SELECT 1'), accord.once('ip', 'v1', NULL, 'SELECT 2');
SELECT accord.once('ip', 'v2', NULL, 'SELECT ''{"a": null}''::jsonb'), accord.once('ip', 'v3', NULL, 'SELECT ''text''::text');
SELECT accord.once('ip', 'v4', NULL, 'SELECT 1 WHERE false'), accord.once('ip', 'v4', NULL, 'SELECT 2');
SELECT accord.once('ip2', 'v1', NULL, 'SELECT 2'), accord.once('ip', 'v5', '{"a": [1, 2]}', 'SELECT $1 -> ''a'' -> 1');
SELECT accord.once('ip', 'v6', NULL, 'CREATE TEMPORARY TABLE ip_made (a integer)'), accord.once('ip', 'v6', NULL, 'SELECT 2');
-- Nested: another key is fine, the same one is not.
SELECT accord.once('ip', 'n1', NULL, $$SELECT accord.once('ip', 'n2', NULL, 'SELECT 5')$$);
SELECT accord.once('ip', 'n3', NULL, $$SELECT accord.once('ip', 'n3', NULL, 'SELECT 5')$$);
SELECT accord.once('ip', 'n3', NULL, 'SELECT 6');
-- What cannot be is refused.
SELECT accord.once(NULL, 'k', NULL, 'SELECT 1');
SELECT accord.once('', 'k', NULL, 'SELECT 1');
SELECT accord.once('ip', repeat('k', 1001), NULL, 'SELECT 1');
SELECT accord.once('ip', 'k', NULL, '');
SELECT accord.once('ip', 'k', NULL, 'COMMIT');
SELECT accord.once('ip', 'k', NULL, 'SELEC 1');
SELECT accord.once('outbox', 'k', NULL, 'SELECT 1');
SELECT accord.once('table ip.payment/1', 'k', NULL, 'SELECT 1');

SET client_min_messages = warning;
DROP SCHEMA ip CASCADE;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA accord FROM regress_accord_nobody_ip;
REVOKE ALL ON accord.outbox FROM regress_accord_nobody_ip;
DROP ROLE regress_accord_nobody_ip;
DELETE FROM accord.idempotency_key WHERE scope LIKE 'ip%' OR scope LIKE 'table ip%';
DELETE FROM accord.idempotency_scope WHERE scope LIKE 'table ip%';
