-- revert: rows that updates made meet the condition of their table's capture, or cease to, are not taken for rows that were
-- inserted or deleted.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;

CREATE TABLE offer (id integer PRIMARY KEY, name text, price integer, status text, note text);
SELECT accord.capture('offer', condition => $$status = 'open' AND id < 100$$, excluded => '{note}') AS offer \gset
CREATE FUNCTION pg_temp.undo(seq bigint, mode text DEFAULT 'merge', OUT row_key text, OUT action text, OUT changes jsonb,
                             OUT status text, OUT why text) RETURNS SETOF record LANGUAGE sql AS $$
    SELECT r.row_key, r.action, r.changes, r.status, regexp_replace(r.why, 'commit \d+', 'commit N')
    FROM accord.revert(seq => undo.seq, mode => undo.mode) r ORDER BY 1
$$;
CREATE FUNCTION pg_temp.told(since bigint) RETURNS TABLE (ord integer, op text, key text, payload jsonb, before jsonb)
    LANGUAGE sql AS $$
    SELECT e.ord, CASE WHEN e.topic = 'accord.left' THEN 'left' ELSE e.op END, e.key, e.payload, e.before
    FROM accord.read(since) e WHERE e.table_id IS NOT NULL
$$;
INSERT INTO offer VALUES (1, 'attic', 80, 'draft', 'a'), (2, 'cellar', 40, 'open', 'b'), (3, 'garden', 60, 'draft', 'c');

-- It came to meet the condition: that, and what else changed with it, is put back; the row is not deleted.
SELECT accord.safe_seq() AS before \gset
UPDATE offer SET status = 'open', price = 85 WHERE id = 1;
SELECT accord.safe_seq() AS entered \gset
SELECT * FROM pg_temp.told(:before);
SELECT op, changes FROM accord.history('offer', 1);
SELECT * FROM accord.as_of(NULL::offer, :before) ORDER BY id;
SELECT * FROM pg_temp.undo(:entered);
SELECT * FROM offer ORDER BY id;
-- which is a delete in the log, after what the row became; so that can be undone as well
SELECT accord.safe_seq() AS undone \gset
SELECT * FROM pg_temp.told(:entered);
SELECT op, changes FROM accord.history('offer', 1);
SELECT row_key, action, changes, status, why FROM accord.revert(seq => :undone, dry_run => true);
SELECT * FROM pg_temp.undo(:undone);
SELECT * FROM offer ORDER BY id;

-- It ceased to meet it: what that changed is put back, if it was not changed since, though nobody saw that; or if it is
-- forced. What it did not change is left alone.
UPDATE offer SET status = 'sold', price = 90 WHERE id = 1;
SELECT accord.safe_seq() AS gone \gset
SELECT * FROM accord.as_of(NULL::offer, :gone) ORDER BY id;
UPDATE offer SET price = 91, name = 'loft' WHERE id = 1;
SELECT * FROM pg_temp.undo(:gone);
SELECT * FROM offer WHERE id = 1;
SELECT * FROM pg_temp.undo(:gone, 'force');
SELECT * FROM offer WHERE id = 1;
-- it was deleted since, which nobody saw either
UPDATE offer SET status = 'sold' WHERE id = 1;
SELECT accord.safe_seq() AS gone \gset
DELETE FROM offer WHERE id = 1;
SELECT * FROM pg_temp.undo(:gone);
SELECT * FROM pg_temp.undo(:gone, 'force');
SELECT * FROM offer WHERE id = 1;
-- it ceased to meet it by its key
UPDATE offer SET id = 101, price = 95 WHERE id = 1;
SELECT accord.safe_seq() AS gone \gset
SELECT * FROM pg_temp.told(:gone - 1);
SELECT * FROM pg_temp.undo(:gone);
SELECT * FROM offer WHERE name = 'loft';
-- several rows, one there and back, in one transaction
BEGIN;
UPDATE offer SET status = 'sold', price = price + 1 WHERE id IN (1, 2);
UPDATE offer SET status = 'open' WHERE id = 1;
UPDATE offer SET price = price + 1 WHERE id = 1;
UPDATE offer SET status = 'shut' WHERE id = 1;
COMMIT;
SELECT accord.safe_seq() AS gone \gset
SELECT * FROM pg_temp.told(:gone - 1);
SELECT * FROM pg_temp.undo(:gone);
SELECT * FROM offer WHERE id IN (1, 2) ORDER BY id;
SELECT * FROM pg_temp.undo(accord.safe_seq());
SELECT * FROM offer WHERE id IN (1, 2) ORDER BY id;
SELECT * FROM pg_temp.undo(accord.safe_seq());
SELECT * FROM offer WHERE id IN (1, 2) ORDER BY id;
-- what it became is erased with it; where the log does not say that, it says so
UPDATE offer SET status = 'sold', price = 7 WHERE id = 2;
SELECT accord.safe_seq() AS gone \gset
SELECT accord.erase(event_id, 'to see') FROM accord.read(:gone - 1) WHERE topic = 'accord.left';
SELECT * FROM pg_temp.undo(:gone);
SELECT accord.erase(h.event_id, 'asked to') FROM accord.history('offer', 2) h WHERE h.seq = :gone;
UPDATE offer SET status = 'open' WHERE id = 2;
UPDATE offer SET status = 'sold' WHERE id = 2;
SELECT accord.safe_seq() AS gone \gset
SELECT accord.erase(h.event_id, 'asked to') FROM accord.history('offer', 2) h WHERE h.seq = :gone;
SELECT topic, payload, before, erased IS NOT NULL AS erased FROM accord.event_log JOIN accord.commit_log USING (slot, tx_id)
WHERE seq = :gone ORDER BY ord;
SELECT * FROM accord.verify(:gone);
UPDATE offer SET status = 'open' WHERE id = 2;

-- What was changed since is kept, the rest put back.
UPDATE offer SET status = 'open', price = 65 WHERE id = 3;
SELECT accord.safe_seq() AS entered \gset
UPDATE offer SET price = 66 WHERE id = 3;
SELECT * FROM pg_temp.undo(:entered);
SELECT * FROM offer WHERE id = 3;

-- Beside the delete of another row it is no change of the key; a change of the key still is one.
BEGIN;
DELETE FROM offer WHERE id = 2;
UPDATE offer SET status = 'open' WHERE id = 3;
UPDATE offer SET id = 4 WHERE id = 1;
INSERT INTO offer VALUES (5, 'new', 1, 'open', NULL);
COMMIT;
SELECT accord.safe_seq() AS mixed \gset
SELECT * FROM pg_temp.told(:mixed - 1);
SELECT * FROM pg_temp.undo(:mixed);
SELECT * FROM offer ORDER BY id;

-- It came to meet it by its key, or while a column changed that is not captured.
INSERT INTO offer VALUES (200, 'far', 5, 'open', 'd');
UPDATE offer SET id = 20, price = 6 WHERE id = 200;
SELECT accord.safe_seq() AS entered \gset
SELECT * FROM pg_temp.told(:entered - 1);
SELECT * FROM pg_temp.undo(:entered);
SELECT * FROM offer WHERE name = 'far';
SELECT accord.capture('offer', condition => $$note IS NOT NULL$$, excluded => '{note}') = :offer AS same_id;
INSERT INTO offer VALUES (30, 'hidden', 7, 'open', NULL);
UPDATE offer SET note = 'shown' WHERE id = 30;
SELECT accord.safe_seq() AS entered \gset
SELECT * FROM pg_temp.told(:entered - 1);
SELECT * FROM pg_temp.undo(:entered);
SELECT * FROM offer WHERE id = 30;

-- Several transactions of a row: it came, changed and went; and one that is new.
SELECT accord.safe_seq() AS before \gset
UPDATE offer SET note = 'shown', price = 8 WHERE name = 'cellar';
UPDATE offer SET note = NULL WHERE id = 3;
UPDATE offer SET note = 'again', price = 67 WHERE id = 3;
INSERT INTO offer VALUES (31, 'new', 1, 'open', 'e');
SELECT row_key, action, changes, status FROM accord.revert(after => :'before', relation => 'offer') ORDER BY 1;
SELECT * FROM offer ORDER BY id;

SET client_min_messages = warning;
DROP TABLE offer;
