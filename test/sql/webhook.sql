-- webhook: signatures are checked, by every scheme; bodies become messages, by paths or a function; and PostgREST can call.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
CREATE EXTENSION IF NOT EXISTS pgcrypto;
RESET client_min_messages;
CREATE SCHEMA wh;
SET client_min_messages = error;
INSERT INTO accord.secret (name, value) VALUES ('wh/old', 'old secret'), ('wh/new', 'new secret'),
    ('wh/standard', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw');
RESET client_min_messages;
INSERT INTO accord.source (name, verify) VALUES
    ('wh.standard', '{"type": "standard", "secrets": ["wh/standard"]}'),
    ('wh.stripe', '{"type": "stripe", "secrets": ["wh/new", "wh/old"]}'),
    ('wh.shopify', '{"type": "shopify", "secrets": ["wh/new", "wh/old"]}'),
    ('wh.woo', '{"type": "woocommerce", "secrets": ["wh/old"]}'),
    ('wh.github', '{"type": "github", "secrets": ["wh/old"]}'),
    ('wh.hmac', '{"type": "hmac", "header": "X-Sign", "prefix": "v=", "encoding": "base64", "hash": "sha512", "secrets": ["wh/old"]}'),
    ('wh.hmac1', '{"type": "hmac", "header": "X-Sign", "hash": "sha1", "secrets": ["wh/old"]}'),
    ('wh.basic', '{"type": "basic", "user": "hotel", "secrets": ["wh/new", "wh/old"]}'),
    ('wh.header', '{"type": "header", "name": "X-Token", "secrets": ["wh/new", "wh/old"]}'),
    ('wh.none', '{"type": "none"}'),
    ('wh.unset', NULL);

-- What came of a webhook: its status, or what was wrong.
CREATE FUNCTION wh.try(source text, headers jsonb, body text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT string_agg(concat_ws(' ', r ->> 'status', CASE WHEN r ? 'duplicate' THEN 'duplicate' END), ', ')
            FROM (SELECT accord.receive_webhook(source, headers, convert_to(body, 'UTF8')) AS result) w,
                 jsonb_path_query(w.result, '$[*]') r);
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ': ' || SQLERRM;
END
$$;
CREATE FUNCTION wh.hmac(secret text, content text, hash text DEFAULT 'sha256') RETURNS bytea LANGUAGE sql AS $$
    SELECT public.hmac(convert_to(content, 'UTF8'), convert_to(secret, 'UTF8'), hash)
$$;
CREATE FUNCTION wh.base64(bytes bytea) RETURNS text LANGUAGE sql AS $$ SELECT translate(encode(bytes, 'base64'), E'\n', '') $$;
CREATE FUNCTION wh.now(shift integer DEFAULT 0) RETURNS text LANGUAGE sql AS $$
    SELECT (floor(extract(epoch FROM clock_timestamp()))::bigint + shift)::text
$$;

-- Standard Webhooks: the list may hold signatures of other kinds and secrets.
CREATE FUNCTION wh.standard(id text, body text, at text, prefix text DEFAULT '') RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('Webhook-Id', id, 'webhook-timestamp', at, 'WEBHOOK-SIGNATURE', prefix || 'v1,' ||
        wh.base64(public.hmac(convert_to(format('%s.%s.%s', id, at, body), 'UTF8'),
                              decode('MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'base64'), 'sha256')))
$$;
\pset format unaligned
\pset tuples_only on
SELECT wh.try('wh.standard', wh.standard('m1', '{"type": "a.b"}', wh.now()), '{"type": "a.b"}');
SELECT wh.try('wh.standard', wh.standard('m1', '{"type": "a.b"}', wh.now(-200)), '{"type": "a.b"}');
SELECT wh.try('wh.standard', wh.standard('m2', '{"ü": 1}', wh.now(), 'v1a,x v1,AAAA v2,y '), '{"ü": 1}');
SELECT wh.try('wh.standard', wh.standard('m3', '{"a": 1}', wh.now()), '{"a": 2}');
SELECT wh.try('wh.standard', wh.standard('m3', '{"a": 1}', wh.now()), '{"a":  1}');
SELECT wh.try('wh.standard', wh.standard('m3', '{"a": 1}', wh.now()) || '{"Webhook-Id": "m4"}', '{"a": 1}');
SELECT wh.try('wh.standard', wh.standard('m3', '{"a": 1}', wh.now(-400)), '{"a": 1}');
SELECT wh.try('wh.standard', wh.standard('m3', '{"a": 1}', wh.now(400)), '{"a": 1}');
SELECT wh.try('wh.standard', wh.standard('m3', '{"a": 1}', 'now'), '{"a": 1}');
SELECT wh.try('wh.standard', wh.standard('m3', '{"a": 1}', '99999999999999999999'), '{"a": 1}');
SELECT wh.try('wh.standard', wh.standard('m3', '{"a": 1}', wh.now()) - 'webhook-timestamp', '{"a": 1}');
SELECT wh.try('wh.standard', jsonb_build_object('svix-id', h -> 'Webhook-Id', 'svix-timestamp', h -> 'webhook-timestamp',
                                                'svix-signature', h -> 'WEBHOOK-SIGNATURE'), '{"a": 1}')
FROM wh.standard('m5', '{"a": 1}', wh.now()) h;
UPDATE accord.source SET tolerance = '10 min' WHERE name = 'wh.standard';
SELECT wh.try('wh.standard', wh.standard('m6', '{"a": 1}', wh.now(-400)), '{"a": 1}');

-- Stripe: any number of signatures; its id is the body's; both secrets of a rotation are good.
CREATE FUNCTION wh.stripe(secret text, body text, at text, more text DEFAULT '') RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('stripe-signature', 't=' || at || more || ',v1=' || encode(wh.hmac(secret, at || '.' || body), 'hex'))
$$;
SELECT wh.try('wh.stripe', wh.stripe('old secret', '{"id": "evt_1", "type": "charge.paid"}', wh.now()), '{"id": "evt_1", "type": "charge.paid"}');
SELECT wh.try('wh.stripe', wh.stripe('new secret', '{"id": "evt_1", "type": "charge.paid"}', wh.now(), ',v1=00,v0=11'), '{"id": "evt_1", "type": "charge.paid"}');
SELECT wh.try('wh.stripe', wh.stripe('new secret', '{"id": "evt_1", "type": "charge.lost"}', wh.now()), '{"id": "evt_1", "type": "charge.lost"}');
SELECT wh.try('wh.stripe', wh.stripe('no secret', '{"id": "evt_2"}', wh.now()), '{"id": "evt_2"}');
SELECT wh.try('wh.stripe', wh.stripe('old secret', '{"id": "evt_2"}', wh.now(-301)), '{"id": "evt_2"}');
SELECT wh.try('wh.stripe', '{"stripe-signature": "v1=00"}', '{"id": "evt_2"}');
SELECT wh.try('wh.stripe', '{"stripe-signature": ""}', '{"id": "evt_2"}');
SELECT wh.try('wh.stripe', '{}', '{"id": "evt_2"}');

-- Those that sign the body.
SELECT wh.try('wh.shopify', jsonb_build_object('X-Shopify-Hmac-Sha256', wh.base64(wh.hmac('old secret', '{"a": 1}')),
    'X-Shopify-Webhook-Id', 's1', 'X-Shopify-Topic', 'orders/paid'), '{"a": 1}');
SELECT wh.try('wh.shopify', jsonb_build_object('X-Shopify-Hmac-Sha256', wh.base64(wh.hmac('old secret', '{"a": 1}'))), '{"a": 2}');
SELECT wh.try('wh.shopify', jsonb_build_object('X-Shopify-Hmac-Sha256', ''), '{"a": 2}');
SELECT wh.try('wh.shopify', '{}', '{"a": 2}');
SELECT wh.try('wh.woo', jsonb_build_object('X-WC-Webhook-Signature', wh.base64(wh.hmac('old secret', '{"a": 1}')),
    'X-WC-Webhook-Delivery-ID', 'w1', 'X-WC-Webhook-Topic', 'order.updated'), '{"a": 1}');
SELECT wh.try('wh.github', jsonb_build_object('X-Hub-Signature-256', 'sha256=' || encode(wh.hmac('old secret', '{"a": 1}'), 'hex'),
    'X-GitHub-Delivery', 'g1', 'X-GitHub-Event', 'push'), '{"a": 1}');
SELECT wh.try('wh.github', jsonb_build_object('X-Hub-Signature-256', encode(wh.hmac('old secret', '{"a": 1}'), 'hex')), '{"a": 1}');
SELECT wh.try('wh.github', jsonb_build_object('X-Hub-Signature-256', 'sha256=' || upper(encode(wh.hmac('old secret', '{"a": 1}'), 'hex'))), '{"a": 1}');
SELECT wh.try('wh.hmac', jsonb_build_object('x-sign', 'v=' || wh.base64(wh.hmac('old secret', '{"a": 1}', 'sha512'))), '{"a": 1}');
SELECT wh.try('wh.hmac1', jsonb_build_object('x-sign', encode(wh.hmac('old secret', '{"a": 1}', 'sha1'), 'hex')), '{"a": 1}');
SELECT wh.try('wh.hmac1', jsonb_build_object('x-sign', encode(wh.hmac('old secret', '{"a": 1}', 'sha256'), 'hex')), '{"a": 1}');

-- Secrets in headers.
SELECT wh.try('wh.basic', jsonb_build_object('Authorization', 'Basic ' || wh.base64(convert_to('hotel:old secret', 'UTF8'))), '{"b": 1}');
SELECT wh.try('wh.basic', jsonb_build_object('Authorization', 'Basic ' || wh.base64(convert_to('hotel:no secret', 'UTF8'))), '{"b": 1}');
SELECT wh.try('wh.basic', '{"Authorization": "Bearer x"}', '{"b": 1}');
SELECT wh.try('wh.header', '{"x-token": "new secret"}', '{"b": 1}');
SELECT wh.try('wh.header', '{"x-token": "new secret2"}', '{"b": 1}');
SELECT wh.try('wh.header', '{"x-token": "new secre"}', '{"b": 1}');
SELECT wh.try('wh.header', '{"x-token": ""}', '{"b": 1}');
SELECT wh.try('wh.header', '{}', '{"b": 1}');

-- A source must say how its webhooks are checked, if only that they are not; and what it names must be there.
SELECT wh.try('wh.none', '{}', '{"type": "x"}');
SELECT wh.try('wh.unset', '{}', '{"type": "x"}');
SELECT wh.try('wh.nobody', '{}', '{"type": "x"}');
SELECT wh.try('wh.none', '[]', '{"type": "x"}');
SELECT wh.try('wh.none', NULL, '{"type": "x"}');
SELECT wh.try('wh.none', '{}', NULL);
SELECT wh.try('wh.none', '{}', 'type=x');
DELETE FROM accord.secret WHERE name = 'wh/new';
SELECT wh.try('wh.header', '{"x-token": "new secret"}', '{"b": 1}');
SELECT wh.try('wh.header', '{"x-token": "old secret"}', '{"b": 1}');
DELETE FROM accord.secret WHERE name = 'wh/old';
SELECT wh.try('wh.header', '{"x-token": "old secret"}', '{"b": 1}');

-- Without a mapping the body is the event, under a topic of what the scheme or the body says.
SELECT topic, payload, source FROM accord.event_log WHERE source LIKE 'wh.%' ORDER BY tx_id, ord;
\pset tuples_only off
\pset format aligned

-- A mapping: JSON paths over the body, with $headers, and constants.
UPDATE accord.source SET mapping = '{"event_id": "$.meta.id", "topic": "wh.mapped", "key": "$.room.id", "changes": "$.room",
    "occurred_at": "$.at", "revision": "$.version", "op": "$headers.\"x-op\"", "account": "hotel"}' WHERE name = 'wh.none';
SELECT wh.try('wh.none', '{"X-Op": "update"}', '{"meta": {"id": 7}, "room": {"id": 12, "beds": 2}, "at": "2026-01-02T03:04:05Z", "version": 3}');
SELECT wh.try('wh.none', '{"X-Op": "update"}', '{"version": 3, "room": {"id": 12, "beds": 2}, "at": 1767323045, "meta": {"id": 7}}');
SELECT wh.try('wh.none', '{}', '{"room": {"id": 12}}'), wh.try('wh.none', '{}', '{"room": {"id": 12}}');
SELECT event_id, result FROM accord.inbox WHERE source = 'wh.none' ORDER BY event_id COLLATE "C";
SELECT topic, key, op, account, payload, occurred_at AT TIME ZONE 'UTC' AS at FROM accord.event_log WHERE topic = 'wh.mapped' AND op = 'update';
-- Into a table, as the source's owner, whoever calls.
CREATE TABLE wh.room (id integer PRIMARY KEY, beds integer);
UPDATE accord.source SET mapping = '{"event_id": "$.id", "target": "wh.room", "changes": "$.room"}' WHERE name = 'wh.none';
CREATE ROLE regress_accord_web;
GRANT EXECUTE ON FUNCTION accord.receive_webhook(text, jsonb, bytea) TO regress_accord_web;
SET ROLE regress_accord_web;
SELECT accord.receive_webhook('wh.none', '{}', '{"id": "r1", "room": {"id": 1, "beds": 2}}') ->> 'status' AS status;
SELECT count(*) FROM wh.room;
RESET ROLE;
TABLE wh.room;

-- A function makes any number of messages; its search_path is not the caller's.
CREATE FUNCTION wh.map(headers jsonb, body jsonb) RETURNS SETOF accord.message LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN b ? 'id' THEN b ->> 'id' END, 'wh.made', NULL::regclass, current_user::text, 'event',
           b || jsonb_build_object('path', current_setting('search_path')), NULL::timestamptz, NULL::numeric, NULL::text, NULL::jsonb
    FROM jsonb_array_elements(body) b WHERE b <> 'null'
$$;
CREATE ROLE regress_accord_hooks;
GRANT USAGE ON SCHEMA wh TO regress_accord_hooks;
UPDATE accord.source SET mapping = NULL, mapping_function = 'wh.map', owner = 'regress_accord_hooks' WHERE name = 'wh.none';
SELECT wh.try('wh.none', '{}', '[{"id": "f1"}, {"n": 2}, {"n": 3}]');
SELECT wh.try('wh.none', '{}', '[{"id": "f1"}, {"n": 2}, {"n": 3}]');
SELECT wh.try('wh.none', '{}', '[]'), wh.try('wh.none', '{}', '[null]');
SELECT key, payload - 'id' AS payload FROM accord.event_log WHERE topic = 'wh.made' ORDER BY ord;
-- A function that fails, and one that is gone.
CREATE FUNCTION wh.fail(headers jsonb, body jsonb) RETURNS accord.message LANGUAGE plpgsql AS 'BEGIN RAISE SQLSTATE ''22000''; END';
UPDATE accord.source SET mapping_function = 'wh.fail' WHERE name = 'wh.none';
SELECT wh.try('wh.none', '{}', '{}');
CREATE OR REPLACE FUNCTION wh.fail(headers jsonb, body jsonb) RETURNS accord.message LANGUAGE sql AS 'SELECT NULL::accord.message';
SELECT wh.try('wh.none', '{}', '{}');
DROP FUNCTION wh.fail;
SELECT wh.try('wh.none', '{}', '{}');
UPDATE accord.source SET mapping_function = NULL WHERE name = 'wh.none';

-- PostgREST: the headers are a setting; the body is one unnamed parameter, of the type of its Content-Type.
SELECT accord.expose_webhook('wh.standard', 'wh', 'hook');
SELECT p.oid::regprocedure, prosecdef, proargnames, has_function_privilege('regress_accord_web', p.oid, 'EXECUTE') AS granted FROM pg_proc p WHERE pronamespace = 'wh'::regnamespace AND proname = 'hook' ORDER BY p.oid::regprocedure::text;
GRANT EXECUTE ON FUNCTION wh.hook(json) TO regress_accord_web;
GRANT USAGE ON SCHEMA wh TO regress_accord_web;
SELECT set_config('request.headers', wh.standard('p1', E'{ "a" :\t1 }', wh.now())::text, false) IS NOT NULL AS set \gset
SET ROLE regress_accord_web;
SELECT wh.hook(E'{ "a" :\t1 }'::json) ->> 'status' AS status;
SELECT wh.hook(E'{ "a" : 1 }'::json);
RESET ROLE;
SELECT wh.hook(E'{ "a" :\t1 }'::text) ->> 'duplicate' AS text, wh.hook('\x7b20226122203a0931207d'::bytea) ->> 'duplicate' AS bytea;
RESET request.headers;
SELECT accord.expose_webhook('wh.nobody', 'wh');

-- What cannot be is refused when it is given.
CREATE FUNCTION wh.insert(verify jsonb, mapping jsonb DEFAULT NULL, mapping_function text DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    hint text;
BEGIN
    INSERT INTO accord.source (name, verify, mapping, mapping_function) VALUES ('wh.tried', verify, mapping, mapping_function);
    RAISE SQLSTATE 'TESTS';
EXCEPTION WHEN SQLSTATE 'TESTS' THEN
    RETURN 'accepted';
WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN format(E'%s: %s\n  %s', SQLSTATE, SQLERRM, hint);
END
$$;
CREATE FUNCTION wh.wrong(jsonb, jsonb) RETURNS text LANGUAGE sql AS 'SELECT ''x''';
\pset format unaligned
\pset tuples_only on
SELECT wh.insert(v) FROM unnest(ARRAY['{}', '1', '{"type": "md5"}', '{"type": "stripe"}', '{"type": "stripe", "secrets": []}',
    '{"type": "stripe", "secrets": "wh/old"}', '{"type": "stripe", "secrets": [1]}', '{"type": "stripe", "secret": "wh/old"}',
    '{"type": "hmac", "secrets": ["wh/standard"]}', '{"type": "hmac", "secrets": ["wh/standard"], "header": "x", "encoding": "base32"}',
    '{"type": "hmac", "secrets": ["wh/standard"], "header": "x", "prefix": "", "hash": "sha256"}',
    '{"type": "basic", "secrets": ["wh/standard"]}', '{"type": "none"}']::jsonb[]) v;
SELECT wh.insert(NULL, m) FROM unnest(ARRAY['[]', '{}', '{"topic": 1}', '{"tpoic": "x"}', '{"topic": "$.["}', '{"target": "$.table"}',
    '{"target": "room"}', '{"target": "wh.room"}', '{"topic": "$.type"}']::jsonb[]) m;
SELECT wh.insert(NULL, NULL, f) FROM unnest(ARRAY['map', 'wh.nope', 'wh.wrong', 'wh.map']) f;
SELECT wh.insert(NULL, '{"topic": "x"}', 'wh.map');
\pset tuples_only off
\pset format aligned
-- The value of no secret is in any of this; nor can one be named who may not.
INSERT INTO accord.source (name, verify) VALUES ('wh.tried', '{"type": "stripe", "secrets": ["wh/missing"]}');
SELECT accord.grant_admin('regress_accord_hooks');
SET ROLE regress_accord_hooks;
UPDATE accord.source SET mapping = '{"topic": "x"}' WHERE name = 'wh.tried';
INSERT INTO accord.source (name, owner) VALUES ('wh.mine', 'postgres');
UPDATE accord.source SET owner = 'postgres', skew = '1 s' WHERE name = 'wh.mine';
UPDATE accord.source SET enabled = false WHERE name = 'wh.none';
RESET ROLE;
SELECT name, owner FROM accord.source WHERE name IN ('wh.tried', 'wh.mine', 'wh.none', 'wh.basic') ORDER BY name COLLATE "C";

DELETE FROM accord.source WHERE name LIKE 'wh.%';
DELETE FROM accord.secret WHERE name LIKE 'wh/%';
DELETE FROM accord.inbox WHERE source LIKE 'wh.%';
SET client_min_messages = warning;
DROP SCHEMA wh CASCADE;
REVOKE ALL ON ALL TABLES IN SCHEMA accord FROM regress_accord_hooks;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA accord FROM regress_accord_hooks;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA accord FROM regress_accord_hooks, regress_accord_web;
DROP OWNED BY regress_accord_hooks;
DROP ROLE regress_accord_hooks, regress_accord_web;
