-- Rules: what is accepted, and what is refused the moment it is given.
SET client_min_messages = warning;
INSERT INTO accord.channel (name, base_url) VALUES ('ar', 'http://ar.invalid'), ('ar2', 'http://ar.invalid');
INSERT INTO accord.route (id, channel) VALUES (9001, 'ar'), (9002, 'ar2');

CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    hint text;
BEGIN
    EXECUTE statement;
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN SQLSTATE || ': ' || SQLERRM || coalesce(E'\n  ' || nullif(hint, ''), '');
END
$$;
CREATE FUNCTION pg_temp.rule(columns text, VARIADIC vals text[]) RETURNS text LANGUAGE sql AS $$
    SELECT pg_temp.try(format('INSERT INTO accord.rule (channel, %s) VALUES (''ar'', %s)', columns,
                              (SELECT string_agg(quote_nullable(v), ', ') FROM unnest(vals) v)))
$$;
\pset format unaligned
\pset tuples_only on

SELECT s, pg_temp.rule('status, outcome', s, 'retry')
FROM unnest(ARRAY['409', '4xx', '200-299', '409, 412,5xx', NULL, '', 'ok', '40', '600', '5XX', '409,', '299-200']) s;
SELECT b, pg_temp.rule('body, outcome', b, 'retry')
FROM unnest(ARRAY['$.errors', '$.errcode == 30006', '$.a[*] ? (@.b like_regex "^x")', 'errors', '$.', '$.a ? (@.b']) b;
SELECT h, pg_temp.rule('headers, outcome', h, 'retry')
FROM unnest(ARRAY['{"X-Error": "QUOTA*"}', '{}', '[]', '"x"', '{"X Error": "a"}', '{"X-Error": 1}', '{"X-Error": null}']) h;
SELECT o, pg_temp.rule('outcome', o)
FROM unnest(ARRAY['delivered', 'duplicate', 'gone', 'accepted', 'conflict', 'retry', 'retry_after', 'unclear', 'rejected', 'unauthorized', 'per_item',
                  'lost', 'fine', NULL]) o;
SELECT t, pg_temp.rule('transport, outcome', t, 'retry')
FROM unnest(ARRAY['answered', 'unreachable', 'refused', 'timeout', 'stalled', 'cut_off', 'garbage', 'invalid', 'late']) t;
SELECT c, pg_temp.rule('transport, outcome, ' || c, 'timeout', 'retry', v)
FROM (VALUES ('status', '200'), ('headers', '{"A": "b"}'), ('body', '$'), ('error', '$'), ('item', 'true')) AS t (c, v);
SELECT o, p, pg_temp.rule('outcome, pause', o, p)
FROM (VALUES ('retry', '1 s'), ('retry_after', '1 min'), ('rejected', '1 s'), ('retry', '0 s'), ('retry', '1 year'))
     AS t (o, p);
SELECT pg_temp.rule('item, outcome', 'true', 'per_item');
SELECT r, pg_temp.rule('route, outcome', r, 'retry') FROM unnest(ARRAY['9001', '9002', '9003']) r;
SELECT pg_temp.try($$INSERT INTO accord.rule (channel, outcome) VALUES ('nosuch', 'retry')$$);
SELECT pg_temp.try($$UPDATE accord.rule SET status = 'ok'$$);

-- What the channel calls things, and how it is asked.
CREATE FUNCTION pg_temp.route(columns text, VARIADIC vals text[]) RETURNS text LANGUAGE sql AS $$
    SELECT pg_temp.try(format('INSERT INTO accord.route (channel, %s) VALUES (''ar'', %s)', columns,
                              (SELECT string_agg(quote_nullable(v), ', ') FROM unnest(vals) v)))
$$;
SELECT c, v, pg_temp.route('remote, ' || c, 'code', v)
FROM (VALUES ('remote_id', '$.id'), ('remote_id', 'Location'), ('remote_id', '$.'), ('remote_id', ''), ('remote_id', 'a b'),
    ('remote_version', '$.a[*] ? (@.b == 1)'), ('remote_etag', 'ETag:'), ('remote_when', 'known'), ('remote_when', 'perhaps'),
    ('remote_key', '{payload.room}/{key}'), ('remote_key', '{remote.id}'), ('remote_key', '{'), ('path', '/{remote.id}'),
    ('path', '/{remote}'), ('path', '/{answer.id}'), ('headers', '{"If-Match": "{remote.etag}"}'),
    ('coalesce', '{remote.id}')) AS t (c, v);
SELECT pg_temp.route('remote', 'a code'), pg_temp.route('remote_id', '$.id'), pg_temp.route('remote_when', 'known'),
       pg_temp.route('ambiguous, mode', 'verify', 'command'), pg_temp.route('remote, remote_key', 'code', NULL);
SELECT v, pg_temp.route('needs', v)
FROM unnest(ARRAY['{"room": "{payload.room}"}', '{}', '[]', '"room"', '{"room": 7}', '{"room": ""}', '{"room": "{nosuch}"}']) v;
SELECT v, pg_temp.route('lookup', v)
FROM unnest(ARRAY['{"path": "/x?c={payload.code}", "id": "$[*] ? (@.c == $payload.code).id", "method": "REPORT", "body": {"a": ["{key}"]}}',
    '{"path": "/{needs.room.id}/{remote.id}", "version": "$._rev", "etag": "ETag"}', '{}', '{"id": "$.id"}', '{"path": "x"}', '{"path": "/{nosuch}"}',
    '{"path": "/", "id": "$["}', '{"path": "/", "body": "{key}"}', '{"path": "/", "body": {"a": "{nosuch}"}}', '{"path": "/", "method": "TRACE"}',
    '{"path": "/", "find": "x"}']) v;
SELECT v, pg_temp.route('poll', v)
FROM unnest(ARRAY['{"path": "/{answer.job.id}/{remote.id}", "every": "1 s", "deadline": "1 h"}', '{"location": "Location"}', '{"deadline": "1 h"}', '{}',
    '{"path": "/", "location": "Location"}', '{"location": "a b"}', '{"path": "/{nosuch}"}', '{"path": "/", "every": "0 s"}',
    '{"path": "/", "every": "soon"}', '{"path": "/", "deadline": "1 year"}', '{"path": "/", "until": "1 h"}']) v;
SELECT pg_temp.try($$INSERT INTO accord.remote_id (channel, kind, key, id) VALUES ('ar', 'room', '7', 'r7')$$);
SELECT (accord.remote('ar', 'room', '7')).id, (accord.remote('ar', 'room', '8')).id IS NULL, (accord.remote('ar', 'room', '7', 'a')).id IS NULL;
SELECT accord.confirm('ar', 'r7'), accord.confirm(gen_random_uuid());
DELETE FROM accord.remote_id WHERE channel = 'ar';

-- They go with their route, and with their channel.
SELECT count(*) FROM accord.rule WHERE route = 9001;
DELETE FROM accord.route WHERE id = 9001;
SELECT count(*) FROM accord.rule WHERE route = 9001;
DELETE FROM accord.channel WHERE name IN ('ar', 'ar2');
SELECT count(*) FROM accord.rule WHERE channel = 'ar';
