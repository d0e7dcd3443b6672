-- what each strategy makes of changes and of the application's own writes; and that no order, no repetition and no
-- setting of the session makes a difference, whatever the type.
SET timezone = 'UTC';
CREATE SCHEMA merge;
SET search_path = merge, pg_catalog;
CREATE FUNCTION say(value jsonb, change jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    $$ SELECT coalesce(value, '[]') || jsonb_build_array(change -> 'value') $$;
CREATE TABLE t (
    k integer PRIMARY KEY,
    first text, owner text, highest integer, lowest integer, counter integer, tags text[], bans integer[], doc jsonb,
    three text, state text, story jsonb, parked text
);
-- everything below happened long ago, but for the application's own
SELECT accord.set_policy('t', c, s, o::jsonb || '{"horizon": "50 years"}') FROM (VALUES
    ('first', 'first', '{}'), ('owner', 'owner', '{"owner": "pms"}'), ('highest', 'max', '{}'), ('lowest', 'min', '{}'),
    ('counter', 'counter', '{}'), ('tags', 'set', '{}'), ('bans', 'set', '{"wins": "remove"}'), ('doc', 'json', '{}'),
    ('three', 'three-way', '{}'),
    ('state', 'state', '{"transitions": {"asked": ["confirmed", "cancelled"], "confirmed": ["in", "cancelled"]}}'),
    ('story', 'custom', '{"function": "merge.say"}'), ('parked', 'park', '{}')) v (c, s, o);
CREATE FUNCTION change(changes jsonb, source text, event text, minute numeric, op text DEFAULT 'update',
                       base jsonb DEFAULT NULL, OUT applied jsonb, OUT lost jsonb) LANGUAGE sql AS $$
    SELECT a.applied, a.lost
    FROM accord.apply_change('merge.t', '{"k": 1}', op, changes, source, event,
                             timestamptz '2026-01-01 12:00+00' + minute * interval '1 minute', NULL, base) a
$$;
SELECT * FROM change('{}', 'pms', 'p0', -10, 'insert');

SELECT 'first' AS strategy, c.* FROM change('{"first": "b"}', 'b', '1', 5) c;
SELECT c.* FROM change('{"first": "a"}', 'a', '2', 3) c;
SELECT c.* FROM change('{"first": "c"}', 'c', '3', 4) c;
UPDATE t SET first = 'mine';

SELECT 'owner' AS strategy, c.* FROM change('{"owner": "x"}', 'ota', '4', 9) c;
SELECT c.* FROM change('{"owner": "y"}', 'pms', '5', 1) c;
SELECT c.* FROM change('{"owner": "z"}', 'ota', '6', 10) c;
UPDATE t SET owner = 'mine';

SELECT 'max, min' AS strategy, c.* FROM change('{"highest": 5, "lowest": 5}', 'a', '7', 2) c;
SELECT c.* FROM change('{"highest": 4, "lowest": 4}', 'b', '8', 3) c;
UPDATE t SET highest = 6, lowest = 3;
UPDATE t SET highest = 1;

SELECT 'counter' AS strategy, c.* FROM change('{"counter": 10}', 'a', '9', 1) c;
SELECT c.* FROM change('{"counter": {"add": -3}}', 'b', '10', 0) c;
SELECT c.* FROM change('{"counter": {"add": -3}}', 'b', '10', 0) c;
UPDATE t SET counter = counter - 1;
SELECT c.* FROM change('{"counter": 20}', 'c', '11', 5, base => '{"counter": 18}') c;
SELECT c.* FROM change('{"counter": "NaN"}', 'c', '12', 5) c;

SELECT 'set' AS strategy, c.* FROM change('{"tags": ["pool", "sea"], "bans": [1, 2]}', 'a', '13', 1) c;
-- a removal that has not seen the addition
SELECT c.* FROM change('{"tags": {"remove": ["sea"], "seen": 0}, "bans": {"remove": [2]}}', 'b', '14', 2) c;
SELECT c.* FROM change('{"tags": {"remove": ["pool"]}, "bans": {"add": [2], "seen": 0}}', 'b', '15', 3) c;
UPDATE t SET tags = tags || '{bar,ant}'::text[], bans = '{7}';
SELECT tags, bans FROM t;
SELECT c.* FROM change('{"tags": 5}', 'b', '16', 3) c;

SELECT 'json' AS strategy, c.* FROM change('{"doc": {"guest": {"name": "Ann", "age": 30}, "nights": 2}}', 'a', '17', 1) c;
SELECT c.* FROM change('{"doc": {"guest": {"age": 31}, "nights": null}}', 'b', '18', 2) c;
SELECT c.* FROM change('{"doc": {"guest": {"name": "Anne", "vip": true}, "nights": 4}}', 'c', '19', 1.5) c;
UPDATE t SET doc = jsonb_set(doc, '{guest,age}', '32');
SELECT c.* FROM change('{"doc": {"guest": {"age": 40}}}', 'c', '20', 3) c;
SELECT doc FROM t;
-- what is covered from above, or replaced from below, has lost as well
SELECT max(conflict_id) AS id FROM accord.conflict \gset
SELECT c.* FROM change('{"doc": {"pet": {"name": "Rex"}}}', 'a', '60', 60) c;
SELECT c.* FROM change('{"doc": {"pet": "dog"}}', 'b', '61', 61) c;
SELECT c.* FROM change('{"doc": {"pet": {"age": 7}}}', 'c', '62', 60.5) c;
SELECT c.* FROM change('{"doc": {"pet": {"age": 8}}}', 'c', '63', 63) c;
SELECT c.* FROM change('{"doc": {"pet": "cat"}}', 'a', '64', 62) c;
SELECT c.* FROM change('{"doc": {"pet": null}}', 'b', '65', 64) c;
SELECT c.* FROM change('{"doc": {"pet": null}}', 'a', '66', 65) c;
SELECT rule, winner_event, winner, loser_event, loser FROM accord.conflict WHERE conflict_id > :id AND column_name = 'doc' ORDER BY conflict_id;

SELECT 'three-way' AS strategy, c.* FROM change('{"three": "a"}', 'a', '21', 1) c;
-- he left it as it was: the change of another stands
SELECT c.* FROM change('{"three": "b"}', 'b', '22', 2) c;
SELECT c.* FROM change('{"three": "a"}', 'c', '23', 3, base => '{"three": "a"}') c;

SELECT 'state' AS strategy, c.* FROM change('{"state": "confirmed"}', 'a', '24', 1) c;
SELECT c.* FROM change('{"state": "asked"}', 'a', '25', 2) c;
UPDATE t SET state = 'in';
-- neither leads to the other: the later one in the order wins, and that is a conflict
SELECT c.* FROM change('{"state": "cancelled"}', 'b', '26', 3) c;
SELECT c.* FROM change('{"state": "lost"}', 'b', '27', 3) c;
UPDATE t SET state = 'asked';

SELECT 'custom' AS strategy, c.* FROM change('{"story": "one"}', 'a', '28', 1) c;
SELECT c.* FROM change('{"story": "three"}', 'b', '29', 3) c;
SELECT c.* FROM change('{"story": "two"}', 'c', '30', 2) c;
UPDATE t SET story = '"four"';
SELECT story FROM t;

SELECT 'park' AS strategy, c.* FROM change('{"parked": "a"}', 'a', '31', 1) c;
SELECT c.* FROM change('{"parked": "b"}', 'b', '32', 2) c;
SELECT c.* FROM change('{"parked": "aa"}', 'a', '33', 3) c;
SELECT conflict_id AS id FROM accord.conflict WHERE state = 'held' AND relation = 't'::regclass \gset
SELECT "row" ->> 'parked' AS parked FROM accord.override(:id, 'b is right');
SELECT state FROM accord.conflict WHERE conflict_id = :id;

-- parts that lost win after all, and the rest stays
SELECT max(conflict_id) AS id FROM accord.conflict WHERE rule = 'json' AND loser ? '/nights' \gset
SELECT "row" -> 'doc' AS doc FROM accord.override(:id, 'four nights');

SELECT column_name, rule, state, winner_source, winner, loser_source, loser FROM accord.conflict
WHERE relation = 't'::regclass ORDER BY conflict_id;

-- what would have been
SELECT * FROM accord.what_if('t', 'highest', 'latest');
SELECT * FROM accord.what_if('t', 'highest', 'counter');
SELECT * FROM accord.what_if('t', 'prize', 'latest');
SELECT count(*) AS counterexamples FROM accord.check_policy('t', tries => 50);
-- and what no order should be able to
CREATE FUNCTION forgets(value jsonb, change jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(random()) $$;
SELECT count(*) AS counterexamples FROM accord.check_policy('t', 'story', 'custom', '{"function": "merge.forgets"}');
CREATE SEQUENCE calls;
CREATE FUNCTION counts(value jsonb, change jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(nextval('merge.calls')) $$;
SELECT cardinality(one_order) AS changes FROM accord.check_policy('t', 'story', 'custom', '{"function": "merge.counts"}', seed => 1);

-- Laws, by type: all orders of these values, two of them at the same time, each order with a repetition.
CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE typed (
    k integer PRIMARY KEY, num numeric, dbl double precision, folded text COLLATE loose, stamp timestamptz, span interval,
    range int4range, multi int4multirange, addr inet, raw bytea, doc jsonb, list integer[], words text[], flag boolean,
    id uuid, day date, padded char(5), bits varbit, small real
);
SELECT accord.manage('typed') > 0 AS managed;
CREATE FUNCTION laws(col text, strategy text, options jsonb, vals jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    changes jsonb;
    found jsonb;
BEGIN
    SELECT jsonb_agg(jsonb_build_object('op', CASE n WHEN 1 THEN 'insert' ELSE 'update' END,
        'source', (ARRAY['a', 'b', 'c'])[1 + n % 3], 'event_id', 'e' || n, 'clock', 800000000000000 + (n / 2),
        'changes', jsonb_build_object(col, v))) INTO changes
    FROM jsonb_array_elements(vals) WITH ORDINALITY x (v, n);
    found := accord.fold_orders('merge.typed', col, strategy, options, 'postgres'::regrole::oid, changes, 0, 0);
    RETURN coalesce(found::text, accord.fold('merge.typed', col, strategy, options, 'postgres'::regrole::oid, changes)
                                 -> 'row' ->> col);
END
$$;
CREATE TABLE sample (col text, vals jsonb);
INSERT INTO sample VALUES
    ('num', '[1.0, "NaN", 1.00, null, "Infinity", "-Infinity"]'), ('dbl', '["NaN", "-0", 0, "Infinity", null, 1e300]'),
    ('folded', '["A", "a", null, "\u00e4", "B", ""]'),
    ('stamp', '["2026-01-01 00:00", "2026-01-01T01:00:00+01:00", "infinity", null, "-infinity"]'),
    ('span', '["1 mon", "30 days", "720:00:00", null, "-1 s"]'),
    ('range', '["empty", "[1,5)", "[1,4]", "(,)", null, "[2,2)"]'), ('multi', '["{}", "{[1,3),[5,7)}", null, "{[1,2]}"]'),
    ('addr', '["10.0.0.1/8", "10.0.0.1", "::1", null]'), ('raw', '["\\x00ff", "\\x", null, "\\x00"]'),
    ('flag', '[true, null, false]'), ('day', '["infinity", "2026-02-28", null, "0001-01-01 BC"]'),
    ('padded', '["a", "a ", "b", null, ""]'), ('bits', '["101", "", null, "1010"]'), ('small', '[0.1, "0.10000000149", null, "NaN"]'),
    ('id', '["00000000-0000-0000-0000-000000000000", "FFFFFFFF-ffff-FFFF-ffff-FFFFFFFFFFFF", null]'),
    ('doc', '[{"b": 1, "a": 2}, {"a": 2, "b": 1}, null, {"a": {"c": []}}, [], 5]'), ('list', '[[], [1, null], null, [3, 2, 1]]'),
    ('words', '[["\"", "{,}", "NULL"], [], null, ["b", "a"]]');
SELECT col, s, laws(col, s, o::jsonb, vals) FROM sample,
    (VALUES ('latest', '{}'), ('first', '{}'), ('priority', '{"order": ["b", "a"]}'), ('owner', '{"owner": "b"}'),
            ('park', '{}'), ('three-way', '{}')) v (s, o)
ORDER BY 1, 2;
SELECT col, s, laws(col, s, '{}', vals) FROM sample, (VALUES ('max'), ('min')) v (s)
WHERE col NOT IN ('doc', 'list', 'words') ORDER BY 1, 2;
SELECT laws('doc', 'json', '{}', (SELECT vals FROM sample WHERE col = 'doc')),
       laws('list', 'set', '{}', (SELECT vals FROM sample WHERE col = 'list')),
       laws('words', 'set', '{"wins": "remove"}', (SELECT vals FROM sample WHERE col = 'words')),
       laws('doc', 'set', '{}', '[[{"b": 1, "a": 2}], [{"a": 2, "b": 1}, "x"], {"add": [3]}, {"remove": [3.0]}]'),
       laws('num', 'counter', '{}', '[1, {"add": 2.5}, -3, null, {"add": 0}]');

-- The session's settings make no difference.
CREATE TABLE settings (said text, result jsonb);
CREATE FUNCTION note(said text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO settings SELECT said, jsonb_agg(laws(col, 'latest', '{}', vals) ORDER BY col) FROM sample
$$;
SELECT note('defaults');
SET timezone = 'Asia/Kathmandu'; SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'; SET extra_float_digits = -5;
SET bytea_output = 'escape';
SELECT note('others');
RESET ALL;
SELECT count(DISTINCT result) FROM merge.settings;
SET client_min_messages = warning;
SELECT accord.unmanage('merge.t'), accord.unmanage('merge.typed');
DROP SCHEMA merge CASCADE;
