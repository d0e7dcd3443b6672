-- capture_types: what is captured of a value is what to_jsonb() has of it, does not depend on the session, and reads back.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;
\set SHOW_CONTEXT never
CREATE SCHEMA ct;
CREATE TYPE ct.mood AS ENUM ('sad', 'ok', 'très bien');
CREATE TYPE ct.point3 AS (x integer, y numeric, z timestamptz, w interval);
CREATE DOMAIN ct.even AS integer CHECK (VALUE % 2 = 0);
CREATE DOMAIN ct.evens AS ct.even[];
CREATE DOMAIN ct.place AS ct.point3;
CREATE TYPE ct.span AS RANGE (subtype = interval);

-- A table with one column of each type, and many values of each.
CREATE TABLE ct.sample (type text, value text);
INSERT INTO ct.sample
SELECT type, unnest(values) FROM (VALUES
    ('boolean', ARRAY['t', 'f']),
    ('smallint', ARRAY['0', '-32768', '32767']),
    ('integer', ARRAY['0', '10000', '-2147483648', '2147483647']),
    ('bigint', ARRAY['0', '-9223372036854775808', '9223372036854775807']),
    ('real', ARRAY['0', '-0', '0.1', '1e10', '3.4028235e38', '1e-45', 'NaN', 'Infinity', '-Infinity']),
    ('double precision', ARRAY['0', '-0', '0.1', '0.30000000000000004', '1e22', '1e100', '1.7976931348623157e308', '5e-324',
                               'NaN', 'Infinity', '-Infinity']),
    ('numeric', ARRAY['0', '0.00', '1.10', '-12345678901234567890.123456789000', '1e100', '1e-100', '10000', '10000.0000',
                      'NaN', 'Infinity', '-Infinity']),
    ('numeric(10,2)', ARRAY['1.5', '99999999.99', 'NaN']),
    ('text', ARRAY['', 'a', 'ünïcödé ☃ 𝄞', E'tab\t "quote" back\\slash\nline', repeat('long', 2000)]),
    ('varchar(20)', ARRAY['', 'x  ']),
    ('character(5)', ARRAY['', 'ab']),
    ('name', ARRAY['a name']), ('"char"', ARRAY['c']),
    ('bytea', ARRAY['', '\x00ff5c27']),
    ('date', ARRAY['2026-02-28', '0044-03-15 BC', 'infinity', '-infinity', '5874897-12-31']),
    ('time', ARRAY['00:00', '24:00', '12:34:56.789012']), ('time with time zone', ARRAY['12:34:56.789-08:30']),
    ('timestamp', ARRAY['2026-03-29 02:30:00.123456', 'infinity', '-infinity', '0001-01-01 BC', '294276-12-31 23:59:59']),
    ('timestamp with time zone', ARRAY['2026-03-29 02:30:00.123456+05:30', 'infinity', '-infinity', '0099-01-01 BC']),
    ('interval', ARRAY['1 year 2 mons -3 days 04:05:06.7', '-1 day', '0']),
    ('uuid', ARRAY['01234567-89ab-7def-8123-456789abcdef']),
    ('json', ARRAY['{"b": 1, "a": [1, 2.50, {"c": null}], "b": 2}', '"s"', 'null', '[]', ' 1.0 ']),
    ('jsonb', ARRAY['{"b": 1, "a": [1, 2.50, {"c": null}]}', '"s"', 'null', '[]', '{}', '1.0', 'true', 'false']),
    ('inet', ARRAY['10.0.0.1/8', '::1']), ('cidr', ARRAY['10.0.0.0/8']), ('macaddr', ARRAY['08:00:2b:01:02:03']),
    ('macaddr8', ARRAY['08:00:2b:01:02:03:04:05']),
    ('bit(4)', ARRAY['1010']), ('bit varying', ARRAY['', '10101']), ('money', ARRAY['-12.34', '1000000']),
    ('point', ARRAY['(0.1,1e300)']), ('box', ARRAY['((1,2),(0.3,4))']), ('path', ARRAY['[(0,0),(0.1,1)]']),
    ('tsvector', ARRAY['''a'':1A ''b'':2']), ('tsquery', ARRAY['a & !b']), ('xml', ARRAY['<a b="c">d</a>']),
    ('int4range', ARRAY['[1,5)', 'empty', '(,)']), ('numrange', ARRAY['[1.10,2.20]']), ('daterange', ARRAY['[2026-01-01,2026-02-01)']),
    ('tstzrange', ARRAY['["2026-01-01 00:00+01","2026-02-01 00:00+01")']), ('tsrange', ARRAY['[2026-01-01,infinity]']),
    ('int4multirange', ARRAY['{[1,2),[5,9)}']), ('datemultirange', ARRAY['{[2026-01-01,2026-02-01)}']),
    ('ct.span', ARRAY['["1 day","1 mon 2 days")']),
    ('oid', ARRAY['4294967295']), ('regclass', ARRAY['ct.sample', 'pg_class']), ('regtype', ARRAY['integer', 'ct.mood']),
    ('pg_lsn', ARRAY['16/B374D848']), ('xid', ARRAY['42']), ('tid', ARRAY['(0,1)']),
    ('integer[]', ARRAY['{}', '{1,NULL,3}', '{{1,2},{3,4}}', '[0:1]={7,8}', '{{{1},{2}}}']),
    ('text[]', ARRAY['{a,"b,c",NULL,"\"q\""}']), ('numeric[]', ARRAY['{1.10,NaN,Infinity}']),
    ('timestamptz[]', ARRAY['{2026-01-01 00:00+01,infinity}']), ('jsonb[]', ARRAY['{"{\"a\": 1}","[2]"}']),
    ('interval[]', ARRAY['{1 mon,2 days}']), ('bytea[]', ARRAY['{"\\x00ff"}']), ('double precision[]', ARRAY['{0.1,NaN}']),
    ('ct.mood[]', ARRAY['{sad,"très bien"}']), ('int2vector', ARRAY['1 2 3']), ('uuid[]', ARRAY['{01234567-89ab-7def-8123-456789abcdef}']),
    ('ct.mood', ARRAY['sad', 'très bien']), ('ct.even', ARRAY['42']), ('ct.evens', ARRAY['{2,4}']),
    ('ct.point3', ARRAY['(1,2.50,"2026-01-01 00:00+01","1 mon")', '(,NaN,,)']), ('ct.place', ARRAY['(3,,,)']),
    ('ct.point3[]', ARRAY['{"(1,2.50,\"2026-01-01 00:00+01\",\"1 mon\")",NULL}'])
) AS v (type, values);
SELECT count(DISTINCT type) AS types, count(*) AS values FROM ct.sample;

\set ECHO none
SELECT format('CREATE TABLE ct.typed (id integer PRIMARY KEY, %s)',
              string_agg(format('%I %s', 'column ' || type, type), ', ' ORDER BY type))
FROM (SELECT DISTINCT type FROM ct.sample) s \gexec
\set ECHO all
SELECT accord.capture('ct.typed') AS typed \gset
SET lc_monetary = 'C';
DO $$
DECLARE
    s record;
BEGIN
    FOR s IN SELECT *, row_number() OVER (ORDER BY type, value) AS id FROM ct.sample LOOP
        EXECUTE format('INSERT INTO ct.typed (id, %I) VALUES (%s, %L)', 'column ' || s.type, s.id, s.value);
    END LOOP;
END
$$;

-- As to_jsonb() has it in a session with these settings; of the same size, so that it is stored alike.
SET timezone = 'UTC';
SET datestyle = 'ISO';
SET intervalstyle = 'postgres';
SET search_path = pg_catalog;
SELECT count(*), count(*) FILTER (WHERE e.payload = to_jsonb(t)) AS same,
       count(*) FILTER (WHERE jsonb_send(e.payload) = jsonb_send(to_jsonb(t))) AS same_text,
       count(*) FILTER (WHERE pg_column_size(e.payload || '{}') = pg_column_size(to_jsonb(t))) AS same_size
FROM accord.event_log e JOIN ct.typed t ON t.id::text = e.key WHERE e.table_id = :typed AND op = 'insert';
SELECT jsonb_strip_nulls(to_jsonb(t)), jsonb_strip_nulls(e.payload) FROM accord.event_log e JOIN ct.typed t ON t.id::text = e.key
WHERE e.table_id = :typed AND op = 'insert' AND e.payload <> to_jsonb(t);

-- Whatever the session's settings: what is written is the same, and reads back to the same value.
SET timezone = 'America/St_Johns';
SET datestyle = 'German, DMY';
SET intervalstyle = 'sql_standard';
SET bytea_output = 'escape';
SET extra_float_digits = -10;
SET search_path = ct, pg_catalog;
SELECT accord.safe_seq() AS mark \gset
UPDATE ct.typed SET id = id + 100000;
RESET timezone;
RESET datestyle;
RESET intervalstyle;
RESET bytea_output;
RESET extra_float_digits;
RESET search_path;
SELECT count(*), count(*) FILTER (WHERE first.payload - 'id' = e.payload - 'id') AS same
FROM accord.read(:mark, 1) e
JOIN accord.event_log first ON first.table_id = :typed AND first.key = (e.key::integer - 100000)::text AND first.op = 'insert'
WHERE e.op = 'insert';
SET timezone = 'Asia/Kolkata';
SELECT count(*), count(*) FILTER (WHERE record_image_eq(t, jsonb_populate_record(NULL::ct.typed, e.payload))) AS same
FROM accord.read(:mark, 1) e JOIN ct.typed t ON t.id::text = e.key WHERE e.op = 'insert';
-- which of them do not, and why: what JSON cannot tell apart
SELECT s.type, s.value FROM accord.read(:mark, 1) e JOIN ct.typed t ON t.id::text = e.key
JOIN (SELECT *, row_number() OVER (ORDER BY type, value) + 100000 AS id FROM ct.sample) s ON s.id = t.id
WHERE e.op = 'insert' AND NOT record_image_eq(t, jsonb_populate_record(NULL::ct.typed, e.payload)) ORDER BY 1, 2;
-- What jsonb cannot hold is refused, as by a jsonb column.
CREATE TABLE ct.js (id integer PRIMARY KEY, doc json);
SELECT accord.capture('ct.js') > 0 AS captured;
INSERT INTO ct.js VALUES (1, '"\u0000"');
CREATE TABLE ct.js_interval (id integer PRIMARY KEY, i interval, doc json);
SELECT accord.capture('ct.js_interval') > 0 AS captured;
INSERT INTO ct.js_interval VALUES (1, '1 day', '"\u0000"');
SHOW timezone;
RESET timezone;

-- Values that are stored out of line: what no update touches is not read to be compared, and is in the payload.
CREATE TABLE ct.big (id integer PRIMARY KEY, n integer, doc text, packed text);
ALTER TABLE ct.big ALTER doc SET STORAGE EXTERNAL;
SELECT accord.capture('ct.big') AS big \gset
INSERT INTO ct.big VALUES (1, 1, repeat('0123456789', 1000), repeat('a', 3000));
UPDATE ct.big SET n = 2;
UPDATE ct.big SET doc = doc || '', packed = packed || '';
UPDATE ct.big SET doc = overlay(doc PLACING 'x' FROM 5000);
UPDATE ct.big SET packed = repeat('b', 3000);
SELECT op, length(payload ->> 'doc') AS doc, length(payload ->> 'packed') AS packed,
       (SELECT string_agg(k, ' ' ORDER BY k) FROM jsonb_object_keys(before) k) AS changed
FROM accord.event_log WHERE table_id = :big AND op <> 'event' ORDER BY tx_id, ord;

-- A row of many columns: offsets within the object.
\set ECHO none
SELECT format('CREATE TABLE ct.wide (%s, PRIMARY KEY (c1))', string_agg(format('c%s integer', g), ', ' ORDER BY g))
FROM generate_series(1, 300) g \gexec
SELECT accord.capture('ct.wide') AS wide \gset
SELECT format('INSERT INTO ct.wide SELECT %s', string_agg((g * g)::text, ', ' ORDER BY g)) FROM generate_series(1, 300) g \gexec
\set ECHO all
UPDATE ct.wide SET c77 = NULL, c200 = 5;
SELECT e.op, e.payload = to_jsonb(w) AS same, e.before, (e.payload -> 'c299')::integer AS c299
FROM accord.event_log e, ct.wide w WHERE table_id = :wide AND op = 'update';

-- Whole numbers and points in time around all their limits: the very bytes of to_jsonb().
CREATE TABLE ct.dense (id integer PRIMARY KEY, small smallint, n integer, big bigint, at timestamptz, local timestamp);
SELECT accord.capture('ct.dense') AS dense \gset
WITH powers AS (SELECT 10::numeric ^ g AS p FROM generate_series(0, 18) g UNION SELECT 2::numeric ^ g FROM generate_series(0, 63) g),
    numbers AS (SELECT DISTINCT round(s * p * f) + d AS v FROM powers, unnest(ARRAY[1, -1]) s, unnest(ARRAY[1, 7, 9999]) f,
                generate_series(-1, 1) d)
INSERT INTO ct.dense (id, small, n, big, at, local)
SELECT row_number() OVER (ORDER BY v), CASE WHEN abs(v) < 32768 THEN v END, CASE WHEN abs(v) < 2147483648 THEN v END, v,
       CASE WHEN v > -210000000000000000 THEN timestamptz '2000-01-01 00:00:00Z' + v::float8 * interval '1 microsecond' END,
       CASE WHEN v > -210000000000000000 THEN timestamp '2000-01-01' + v::float8 * interval '1 microsecond' END
FROM numbers WHERE v BETWEEN -9223372036854775808 AND 9223372036854775807 AND v < 9000000000000000000;
INSERT INTO ct.dense (id, big, at, local)
SELECT 10000 + row_number() OVER (), big, at AT TIME ZONE 'UTC', at FROM
    (VALUES (9223372036854775807, timestamp '0001-01-01'), (-9223372036854775808, timestamp '0001-01-01' - interval '1 microsecond'),
            (0, timestamp '9999-12-31 23:59:59.999999'), (9999, timestamp '10000-01-01'), (-10000, timestamp '1999-12-31 23:59:59.99'),
            (100000000, timestamp '2024-02-29 12:00:00.1'), (1, timestamp 'infinity'), (2, timestamp '-infinity')) v (big, at);
SET timezone = 'UTC';
SELECT count(*) > 500 AS many, count(*) FILTER (WHERE NOT record_image_eq(ROW(e.payload), ROW(to_jsonb(d)))) AS others,
       count(*) FILTER (WHERE e.payload::text <> to_jsonb(d)::text) AS other_texts
FROM accord.event_log e JOIN ct.dense d ON d.id::text = e.key WHERE table_id = :dense AND op = 'insert';
RESET timezone;
SET client_min_messages = warning;
DROP SCHEMA ct CASCADE;
