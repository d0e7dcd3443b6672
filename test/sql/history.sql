-- history: what became of captured rows, and how a table was at a point: numbers, marks and times; keys of every kind;
-- columns that came, went and changed; and where the past cannot be told, that this is said.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;
SET timezone = 'UTC';
\set SHOW_CONTEXT never

-- What a statement is refused with; numbers and times are not the same every time.
CREATE FUNCTION pg_temp.refusal(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    detail text;
    hint text;
BEGIN
    EXECUTE statement;
    RETURN 'not refused';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN regexp_replace(regexp_replace(concat_ws(E'\n', SQLSTATE || ' ' || SQLERRM, nullif(detail, ''), hint),
                                         ' at [A-Z][^;]*;', ' at ...;', 'g'), '(commit|so far is|keeps is) \d+', '\1 N', 'g');
END
$$;

CREATE TABLE rate (room text, night date, price numeric(10,2), stock integer, note jsonb, tags text[], PRIMARY KEY (room, night));
INSERT INTO rate SELECT 'r' || i % 3, '2026-12-01'::date + i, 100 + i, 5, '{"a": 1}', '{x,y}' FROM generate_series(0, 5) i;
SELECT accord.capture('rate') IS NOT NULL AS captured;
SELECT accord.safe_seq() AS s \gset
BEGIN;
SET LOCAL accord.actor = 'bob';
SET LOCAL accord.reason = 'winter prices';
SET LOCAL accord.correlation_id = 'c-1';
UPDATE rate SET price = price * 1.1, tags = '{q}' WHERE room = 'r1';
COMMIT;
SELECT accord.mark('after bob', 'before the clearance');
SELECT clock_timestamp() AS after_mark \gset
BEGIN;
SET LOCAL accord.actor = 'ann';
DELETE FROM rate WHERE room = 'r2';
INSERT INTO rate VALUES ('new', '2027-01-01', 9.99, 1);
UPDATE rate SET stock = stock - 1 WHERE room IN ('r0', 'new');
COMMIT;
UPDATE rate SET price = 1 WHERE room = 'new';

-- The table as it was: by number, by mark, by time; and as it is.
SELECT * FROM accord.as_of(NULL::rate, :s) ORDER BY 1, 2;
SELECT * FROM accord.as_of(NULL::rate, :s + 1) ORDER BY 1, 2;
SELECT * FROM accord.as_of(NULL::rate, :s + 3) ORDER BY 1, 2;
SELECT count(*) FROM (SELECT * FROM accord.as_of(NULL::rate, 'after bob')
                      EXCEPT SELECT * FROM accord.as_of(NULL::rate, :s + 1)) d;
SELECT count(*) FROM (SELECT * FROM accord.as_of(NULL::rate, :'after_mark')
                      EXCEPT SELECT * FROM accord.as_of(NULL::rate, :s + 2)) d;
SELECT count(*) FROM (SELECT * FROM accord.as_of(NULL::rate, clock_timestamp()) EXCEPT SELECT * FROM rate) d;
SELECT name, seq - :s AS seq, actor = session_user AS mine, comment FROM accord.marks;
SELECT accord.point_seq('after bob') - :s AS mark, accord.point_seq((:s + 1)::text) - :s AS number,
       accord.point_seq(:'after_mark') - :s AS time;

-- One row.
SELECT accord.row_as_of(NULL::rate, ROW('r1', date '2026-12-02'), :s),
       accord.row_as_of(NULL::rate, 'r0,2026-12-01', 'after bob'),
       accord.row_as_of(NULL::rate, accord.row_key('r2', '2026-12-03'), :s + 2),
       accord.row_as_of(NULL::rate, ROW('r2', date '2026-12-03'), :s + 3) IS NULL AS gone,
       accord.row_as_of(NULL::rate, ROW('new', date '2027-01-01'), :s + 2) IS NULL AS not_yet,
       accord.row_as_of(NULL::rate, 'nonsense', :s) IS NULL AS no_key,
       accord.row_as_of(NULL::rate, NULL, :s) IS NULL AS no_row;
SELECT * FROM accord.row_as_of(NULL::rate, 'r1,2026-12-05', :'after_mark'::timestamptz);

-- What became of rows.
SELECT seq - :s AS seq, op, changes, actor, reason, correlation_id, role = session_user AS mine, source, application_name, ord
FROM accord.history('rate', ROW('r1', date '2026-12-02'));
SELECT seq - :s AS seq, op, changes, actor, ord FROM accord.history('rate', 'new,2027-01-01');
SELECT seq - :s AS seq, op, changes, actor, ord FROM accord.history('rate', 'r2,2026-12-03');
SELECT column_name, value, seq - :s AS seq, op, actor, reason FROM accord.blame('rate', 'r1,2026-12-02');
SELECT column_name, value, seq - :s AS seq, op, actor FROM accord.blame('rate', 'new,2027-01-01');
SELECT column_name, value, seq - :s AS seq, op, actor FROM accord.blame('rate', 'r2,2026-12-03');
SELECT count(*) FROM accord.blame('rate', 'r0,2031-01-01');
SELECT * FROM accord.diff('rate', 'r1,2026-12-02', :s, :s + 1);
SELECT * FROM accord.diff('rate', 'r1,2026-12-02', :s + 1, :s);
SELECT * FROM accord.diff('rate', 'r1,2026-12-02', :s + 1);
SELECT * FROM accord.diff('rate', 'r2,2026-12-03', 'after bob');
SELECT * FROM accord.diff('rate', ROW('new', date '2027-01-01'), :'after_mark'::timestamptz);
SELECT * FROM accord.diff('rate', ROW('new', date '2027-01-01'), :s + 3, :s + 4);

-- In a transaction: what it has not committed is undone in the past, and comes last in the history.
BEGIN;
UPDATE rate SET price = 0;
DELETE FROM rate WHERE room = 'r0';
SELECT count(*), sum(price) FROM accord.as_of(NULL::rate, clock_timestamp());
SELECT accord.row_as_of(NULL::rate, 'r0,2026-12-01', clock_timestamp());
SELECT seq - :s AS seq, op, changes -> 'price' AS price FROM accord.history('rate', 'r1,2026-12-02');
SELECT accord.mark('own');
SAVEPOINT a;
SELECT * FROM accord.as_of(NULL::rate, 'own');
ROLLBACK TO a;
SELECT accord.mark('after bob');
ROLLBACK;
-- ... and a transaction that began before sees the state of now, as accord.read() does.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT sum(price) FROM accord.as_of(NULL::rate, :s);
COMMIT;

-- Keys of one column, of types that are written in their own way.
CREATE TABLE thing (at timestamptz PRIMARY KEY, f float8, n numeric, i interval, b bytea, t text);
SELECT accord.capture('thing') IS NOT NULL AS captured;
SELECT accord.safe_seq() AS s1 \gset
INSERT INTO thing VALUES ('2026-12-01 10:00+01', 'NaN', 'Infinity', '1 mon -2 days 03:00', '\xdead', E'a,b\\ "c" \u00e9'),
                         ('infinity', 0.1, 1.230, '-1 day', '', '');
SELECT accord.safe_seq() AS s2 \gset
TRUNCATE thing;
SET timezone = 'Asia/Tokyo';
SET datestyle = 'SQL, DMY';
SET intervalstyle = 'sql_standard';
SELECT op, changes -> 't' AS t FROM accord.history('thing', timestamptz '2026-12-01 09:00+00');
SELECT count(*) FROM accord.history('thing', 'infinity'::timestamptz);
RESET timezone;
RESET datestyle;
RESET intervalstyle;
SET timezone = 'UTC';
SELECT * FROM accord.as_of(NULL::thing, :s2) ORDER BY at;
SELECT (accord.row_as_of(NULL::thing, timestamptz '2026-12-01 09:00+00', :s2)).i;
SET intervalstyle = 'sql_standard';
SELECT i = interval '1 mon -2 days +3 hours' FROM accord.as_of(NULL::thing, :s2) ORDER BY at LIMIT 1;
RESET intervalstyle;
SELECT count(*) FROM accord.as_of(NULL::thing, :s1);

-- A change of the key is a delete and an insert.
CREATE TABLE chamber (id integer PRIMARY KEY, name text, beds integer, secret text);
SELECT accord.capture('chamber', excluded => '{secret}', condition => 'beds > 0') IS NOT NULL AS captured;
SELECT accord.safe_seq() AS s \gset
INSERT INTO chamber VALUES (1, 'Erker', 2, 'x'), (2, 'Garten', 1, 'y'), (3, 'Keller', 0, 'z');
UPDATE chamber SET id = 7 WHERE id = 1;
UPDATE chamber SET beds = 0 WHERE id = 2;
SELECT seq - :s AS seq, op, changes FROM accord.history('chamber', 1);
SELECT seq - :s AS seq, op, changes FROM accord.history('chamber', 7);
-- what is not captured is null, and rows that did not meet the condition were not there
SELECT * FROM accord.as_of(NULL::chamber, :s + 1) ORDER BY 1;
SELECT * FROM accord.as_of(NULL::chamber, :s + 2) ORDER BY 1;
SELECT * FROM accord.as_of(NULL::chamber, :s + 3) ORDER BY 1;
SELECT accord.row_as_of(NULL::chamber, 3, :s + 1) IS NULL AS never_there, accord.row_as_of(NULL::chamber, 7, :s + 3);

-- Columns that came, went, were renamed and changed their type.
CREATE TABLE shape (id integer PRIMARY KEY, a text, b integer, c text);
INSERT INTO shape VALUES (1, '1', 1, 'one'), (2, '2', 2, 'two'), (3, 'three', 3, 'three');
SELECT accord.capture('shape') IS NOT NULL AS captured;
SELECT accord.safe_seq() AS s \gset
UPDATE shape SET b = b + 10 WHERE id < 3;
DELETE FROM shape WHERE id = 2;
ALTER TABLE shape ADD d integer DEFAULT 4;
UPDATE shape SET b = 0, d = 5 WHERE id = 1;
ALTER TABLE shape DROP b;
ALTER TABLE shape RENAME c TO cc;
ALTER TABLE shape ADD c text DEFAULT 'another c';
UPDATE shape SET cc = 'ONE', c = 'mine' WHERE id = 1;
SELECT * FROM accord.as_of(NULL::shape, :s) ORDER BY 1;
SELECT * FROM accord.as_of(NULL::shape, :s + 2) ORDER BY 1;
-- by their names now, whatever they were called then
SELECT column_name, value, seq - :s AS seq FROM accord.blame('shape', 1);
SELECT * FROM accord.diff('shape', 1, :s);
SELECT row_key, action, changes, status FROM accord.revert(seq => :s + 2, dry_run => true);
SELECT row_key, changes, status FROM accord.undelete('shape', 2, dry_run => true);
SELECT max(seq) - :s AS seq FROM accord.history('shape', 1);
DELETE FROM shape WHERE id = 3;
ALTER TABLE shape ALTER a TYPE integer USING a::integer;
SELECT id, a FROM accord.as_of(NULL::shape, :s) WHERE id < 3 ORDER BY 1;
SELECT accord.row_as_of(NULL::shape, 1, :s), accord.row_as_of(NULL::shape, 2, :s);
SELECT accord.row_as_of(NULL::shape, 3, :s);
SELECT accord.row_of(NULL::shape, '{"id": 5, "a": null, "x": 1}'), accord.row_of(NULL::shape, NULL) IS NULL AS none;
SELECT accord.row_of(1, '{}');

-- Partitions are their root's rows; composites, domains and arrays read back.
CREATE TYPE pair AS (x integer, y text);
CREATE DOMAIN level AS integer CHECK (value >= 0) NOT NULL;
CREATE TABLE part (id integer, l level DEFAULT 1, p pair, ps pair[], m integer[], r int4range, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20);
SELECT accord.capture('part') IS NOT NULL AS captured;
SELECT accord.safe_seq() AS s \gset
INSERT INTO part VALUES (1, 1, '(1,a)', '{"(2,b)","(3,)"}', '{{1,2},{3,4}}', '[1,5)'), (11, 2, NULL, '{}', NULL, 'empty');
UPDATE part SET id = id + 9 WHERE id = 1;
TRUNCATE part_2;
SELECT * FROM accord.as_of(NULL::part, :s + 1) ORDER BY 1;
SELECT tableoid IS NULL, * FROM (SELECT NULL::oid AS tableoid, x.* FROM accord.as_of(NULL::part, :s + 2) x) y ORDER BY 2;
SELECT count(*) FROM accord.as_of(NULL::part, :s + 3);

-- Baselines are rows that were there before the log: nothing that somebody did.
CREATE TABLE old (id integer PRIMARY KEY, a integer, b text);
INSERT INTO old VALUES (1, 1, 'x'), (2, 2, 'y'), (3, 3, 'z');
SELECT accord.capture('old') IS NOT NULL AS captured;
SELECT accord.safe_seq() AS o \gset
UPDATE old SET a = 10 WHERE id = 1;
SELECT accord.baseline('old');
DELETE FROM old WHERE id = 2;
SELECT * FROM accord.as_of(NULL::old, :o) ORDER BY 1;
SELECT accord.row_as_of(NULL::old, 2, :o), accord.row_as_of(NULL::old, 3, :o);
SELECT seq - :o AS seq, op, changes FROM accord.history('old', 2);
SELECT column_name, seq - :o AS seq, op FROM accord.blame('old', 1);
SELECT column_name, seq - :o AS seq, op FROM accord.blame('old', 3);
SELECT * FROM accord.diff('old', 2, :o);
SELECT * FROM accord.diff('old', 3, :o);
SELECT row_key, action, changes, status FROM accord.revert(after => :'o');
TABLE old ORDER BY id;

-- What cannot be told is said.
SELECT pg_temp.refusal(statement) FROM (VALUES
    (format('SELECT * FROM accord.as_of(NULL::part, %s)', :s - 1)),
    ('SELECT * FROM accord.as_of(NULL::part, -1)'),
    ('SELECT * FROM accord.as_of(NULL::part, ''2001-01-01'')'),
    ('SELECT * FROM accord.as_of(NULL::part, ''the day after'')'),
    ('SELECT * FROM accord.as_of(NULL::part, NULL::text)'),
    ('SELECT * FROM accord.as_of(NULL::part, 9000000000000000000)'),
    ('SELECT * FROM accord.as_of(NULL::part, ''9000000000000000000000'')'),
    ('SELECT * FROM accord.as_of(NULL::integer, 1)'),
    ('SELECT * FROM accord.as_of(NULL::accord.channel, 1)'),
    ('SELECT * FROM accord.history(''pg_class'', 1)'),
    ('SELECT accord.mark(''7'')'),
    ('SELECT accord.mark('''')')) AS v (statement);
CREATE TABLE late (id integer PRIMARY KEY);
BEGIN;
SELECT accord.capture('late') IS NOT NULL AS captured;
SELECT pg_temp.refusal('SELECT * FROM accord.as_of(NULL::late, clock_timestamp())');
ROLLBACK;
SELECT accord.capture('late') IS NOT NULL AS captured;
SELECT accord.safe_seq() AS s \gset
INSERT INTO late VALUES (1);
-- captured again the same way: nothing changes; another way: from now on
SELECT accord.capture('late') IS NOT NULL AS captured;
SELECT count(*) FROM accord.as_of(NULL::late, :s);
ALTER TABLE late ADD x integer;
SELECT accord.capture('late', excluded => '{x}') IS NOT NULL AS captured;
SELECT pg_temp.refusal(format('SELECT * FROM accord.as_of(NULL::late, %s)', :s));
SELECT accord.release('late');
SELECT pg_temp.refusal(format('SELECT * FROM accord.as_of(NULL::late, %s)', :s));
SELECT op FROM accord.history('late', 1);

-- Who may: readers of the log, where they may read the table, all of it.
CREATE ROLE regress_history_auditor;
CREATE ROLE regress_history_nobody;
SELECT accord.grant_auditor('regress_history_auditor');
SET ROLE regress_history_nobody;
SELECT * FROM accord.history('rate', 'x');
SELECT * FROM accord.as_of(NULL::rate, 1);
SET ROLE regress_history_auditor;
SELECT count(*) FROM accord.history('rate', 'r1,2026-12-02');
SELECT count(*) FROM accord.blame('rate', 'r1,2026-12-02');
SELECT count(*) FROM accord.diff('rate', 'r1,2026-12-02', 'after bob');
SELECT * FROM accord.as_of(NULL::rate, 'after bob');
SELECT * FROM accord.row_as_of(NULL::rate, 'r1,2026-12-02', 'after bob');
RESET ROLE;
GRANT SELECT ON rate TO regress_history_auditor;
SET ROLE regress_history_auditor;
SELECT count(*) FROM accord.as_of(NULL::rate, 'after bob');
SELECT count(*) FROM accord.row_as_of(NULL::rate, 'r1,2026-12-02', 'after bob');
SELECT accord.mark('by an auditor');
RESET ROLE;
ALTER TABLE rate ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_rows ON rate USING (true);
SET ROLE regress_history_auditor;
SELECT * FROM accord.as_of(NULL::rate, 'after bob');
SELECT * FROM accord.row_as_of(NULL::rate, 'r1,2026-12-02', 'after bob');
RESET ROLE;

-- Places in the log are found whatever lies between them: numbers that were drawn and not used, other rows' commits, several
-- changes in one.
CREATE TABLE gap (id integer PRIMARY KEY, n integer);
SELECT accord.capture('gap') AS gap \gset
INSERT INTO gap SELECT g, 0 FROM generate_series(1, 3) g;
DO $$
BEGIN
    FOR i IN 1 .. 400 LOOP
        UPDATE gap SET n = i WHERE id = 1 + i % 2 OR i % 50 = 0;
        IF i % 7 = 0 THEN
            UPDATE gap SET n = -i WHERE id = 1;
        END IF;
        IF i % 37 = 0 THEN
            PERFORM nextval('accord.commit_seq') FROM generate_series(1, i / 37 * 9);
        END IF;
        COMMIT;
    END LOOP;
END
$$;
SELECT count(*) AS changes, count(DISTINCT h.seq) AS commits, count(*) FILTER (WHERE h.seq IS DISTINCT FROM c.seq) AS wrong,
       count(*) FILTER (WHERE h.committed_at IS DISTINCT FROM c.committed_at) AS wrong_times
FROM generate_series(1, 3) id, accord.history('gap', id) h JOIN accord.commit_log c USING (tx_id);
SELECT count(*) > 400 AS commits, count(*) FILTER (WHERE accord.seq_of(slot, tx_id) IS DISTINCT FROM seq) AS wrong FROM accord.commit_log;
SELECT count(*) FILTER (WHERE accord.seq_at(committed_at) IS DISTINCT FROM last) AS wrong
FROM (SELECT committed_at, max(seq) AS last FROM accord.commit_log GROUP BY committed_at) t;
-- each state of a row, as it was and by what the log says
SELECT count(*) AS points, count(*) FILTER (WHERE (accord.row_as_of(NULL::gap, 1, p.seq)).n IS DISTINCT FROM p.n) AS wrong
FROM (SELECT h.seq, (array_agg((h.changes -> 'n' ->> 'new')::integer ORDER BY h.ord DESC))[1] AS n
      FROM accord.history('gap', 1) h GROUP BY h.seq) p;

SET client_min_messages = warning;
DROP OWNED BY regress_history_auditor;
DROP ROLE regress_history_auditor, regress_history_nobody;
DROP TABLE rate, thing, chamber, shape, part, late, old, gap;
DROP TYPE pair;
DROP DOMAIN level;
