-- capture: what becomes of INSERT, UPDATE, DELETE and TRUNCATE of a captured table.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;
CREATE TABLE room (id integer PRIMARY KEY, name text, price numeric(10, 2), note text,
                   total numeric GENERATED ALWAYS AS (price * 2) STORED);
SELECT accord.capture('room') AS room \gset
SELECT accord.safe_seq() AS mark \gset

INSERT INTO room VALUES (1, 'Erker', 80), (2, 'Garten', 'NaN');
UPDATE room SET price = 90.50 WHERE id = 1;
-- what changes nothing is no event
UPDATE room SET price = 90.50, name = name WHERE id = 1;
-- a change of the key: the delete of the old one, and the insert of the new one
UPDATE room SET id = 3 WHERE id = 1;
DELETE FROM room WHERE id = 3;
TRUNCATE room;
SELECT seq - :mark AS seq, ord, table_id = :room AS room, topic, key, op, payload, before FROM accord.read(:mark);

-- The table is known by its number, whatever its name.
SELECT accord.captured_id('room') = :room AS id, accord.captured_relation(:room);
ALTER TABLE room RENAME TO "Zimmer, groß";
SELECT accord.captured_id('"Zimmer, groß"') = :room AS id, accord.captured_relation(:room);
SELECT accord.release('"Zimmer, groß"');
SELECT accord.release('"Zimmer, groß"');
DROP TABLE "Zimmer, groß";

-- Keys of several columns.
SELECT accord.row_key('a'), accord.row_key('a,b\'), accord.row_key('a', 'b'), accord.row_key('a,b', 'c\', NULL, '\N'),
       accord.row_key(NULL), accord.row_key(repeat('x', 2048)) = repeat('x', 2048) AS longest,
       accord.row_key(repeat('x', 2049)), accord.row_key(repeat('x', 1024), repeat('x', 1024));
