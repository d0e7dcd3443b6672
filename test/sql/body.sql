-- body: jsonb becomes forms and XML documents as it should; nothing in a value escapes its place; what has no form is
-- refused; and what a route and a channel may say about bodies and keys.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;
\pset format unaligned
\pset tuples_only on

-- forms: Stripe's own notation, and the other two
SELECT accord.encode_form('{"amount": 2000, "currency": "eur", "metadata": {"order": "A 1&2"}, "items": [{"price": "p1"},
    {"price": "p2", "n": 2}], "expand": ["charges.data", "customer"], "off": false, "none": null, "empty": [], "o": {}}');
SELECT accord.encode_form('{"a": ["x", "y"], "b": {"c": [1, [2]]}}', arrays)
FROM unnest(ARRAY['index', 'brackets', 'repeat']) arrays;
SELECT accord.encode_form('{"name": "J\u00fcrgen & S\u00f6hne = 100 % + [x]", "a[b]&c=": "1", "": "nameless"}');
SELECT accord.encode_form('{}') = '';
SELECT accord.encode_form('[1]');
SELECT accord.encode_form('{}', 'php');

-- XML
SELECT accord.encode_xml('{"rate": {"@id": "r1", "@cur": "EUR", "room": ["101", "102"], "price": 120.50, "open": true, "note": null}}');
SELECT accord.encode_xml('{"price": 1, "room": {"@n": "1"}}', 'rate');
SELECT accord.encode_xml('"a < b & \"c\" ]]>\n"', 'text');
SELECT accord.encode_xml('{"p": {"#": ["one ", {"b": "two"}, " three", {"br": null}]}}');
SELECT accord.encode_xml('{"s:Envelope": {"@xmlns:s": "http://schemas.xmlsoap.org/soap/envelope/", "s:Body": {"#": [{"z": 1}, {"a": 2}]}}}');
SELECT accord.encode_xml('{"\u00fcber": {"@\u00e4": "\u00f6"}}');
SELECT accord.encode_xml(NULL) IS NULL;
SELECT accord.encode_xml('{}', 'empty');
-- what is none
CREATE FUNCTION pg_temp.why(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ': ' || SQLERRM;
END
$$;
SELECT value, pg_temp.why(format('SELECT accord.encode_xml(%L)', value)) FROM unnest(ARRAY[
    '{}', '[]', '1', '{"a": 1, "b": 2}', '{"a": [1, 2]}', '{"a b": 1}', '{"1a": 1}', '{"": 1}', '{"a:b:c": 1}', '{":a": 1}',
    '{"a><b": 1}', '{"a": {"@x y": 1}}', '{"a": {"@x": {"y": 1}}}', '{"a": "\u0001"}']::jsonb[]) value;
SELECT pg_temp.why($$SELECT accord.encode_xml('{"a": "\uffff"}')$$);
SELECT pg_temp.why($$SELECT accord.encode_xml((repeat('{"a":', 6000) || '1' || repeat('}', 6000))::jsonb)$$) IN ('accepted',
    '54001: stack depth limit exceeded');

-- Any value: what is written is well-formed, and what stood in it can be read back.
CREATE FUNCTION pg_temp.any_text(n integer) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(substr(U&'abz<>&"''%+=[] \000A\00E4\20AC\+01F600;#@/?\\', 1 + floor(random() * 24)::integer, 1), ''), '')
    FROM generate_series(1, floor(random() * n)::integer) $$;
CREATE FUNCTION pg_temp.any_value(depth integer) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    kind integer := floor(random() * CASE WHEN depth > 0 THEN 6 ELSE 4 END);
    made jsonb := '{}';
BEGIN
    CASE kind
        WHEN 0 THEN RETURN to_jsonb(pg_temp.any_text(8));
        WHEN 1 THEN RETURN to_jsonb((random() * 1e6)::numeric);
        WHEN 2 THEN RETURN to_jsonb(random() < 0.5);
        WHEN 3 THEN RETURN 'null';
        WHEN 4 THEN RETURN coalesce((SELECT jsonb_agg(pg_temp.any_value(depth - 1)) FROM generate_series(1, floor(random() * 4)::integer)), '[]');
        ELSE
            FOR i IN 1 .. floor(random() * 4) LOOP
                made := made || jsonb_build_object('n' || i, pg_temp.any_value(depth - 1));
            END LOOP;
            RETURN made;
    END CASE;
END
$$;
SELECT count(*), bool_and(xml_is_well_formed_document(accord.encode_xml(jsonb_build_object('r', CASE jsonb_typeof(value)
    WHEN 'array' THEN '{}' ELSE value END)))) FROM (SELECT pg_temp.any_value(4) AS value FROM generate_series(1, 2000)) v;
SELECT count(*), bool_and((xpath('/t/@a', doc))[1]::text IS NOT NULL AND length((xpath('string(/t/@a)', doc))[1]::text) > 0 OR t = '')
FROM (SELECT t, accord.encode_xml(jsonb_build_object('t', jsonb_build_object('@a', t)))::xml AS doc
      FROM (SELECT pg_temp.any_text(20) AS t FROM generate_series(1, 2000)) s) d;
-- as many fields as there are scalars, and none of them has a character that ends it
SELECT count(*), bool_and(array_length(string_to_array(form, '&'), 1) IS NOT DISTINCT FROM nullif(scalars, 0)
                          AND form !~ '[^A-Za-z0-9*._=&+%\[\]-]')
FROM (SELECT accord.encode_form(jsonb_build_object('r', value)) AS form,
             (SELECT count(*)::integer FROM jsonb_path_query(value, 'strict $.** ? (@.type() != "object" && @.type() != "array")')) AS scalars
      FROM (SELECT pg_temp.any_value(4) AS value FROM generate_series(1, 2000)) v) f;

-- what a route and a channel may say
CREATE FUNCTION pg_temp.route(columns text, vals text) RETURNS text LANGUAGE sql AS $$
    SELECT pg_temp.why(format('INSERT INTO accord.route (channel, %s) VALUES (''body'', %s)', columns, vals)) $$;
CREATE FUNCTION pg_temp.channel(columns text, vals text) RETURNS text LANGUAGE sql AS $$
    SELECT pg_temp.why(format('INSERT INTO accord.channel (name, base_url, %s) VALUES (''c'', ''https://c.example'', %s)', columns, vals)) $$;
BEGIN;
INSERT INTO accord.channel (name, base_url) VALUES ('body', 'https://body.example');
SELECT body, pg_temp.route('body', quote_literal(body)) FROM unnest(ARRAY['json', 'cloudevents', 'cloudevents-binary', 'form',
    'xml', 'multipart', 'text', 'bytes', 'none', 'yaml', '']) body;
SELECT body_from, pg_temp.route('body_from', quote_literal(body_from)) FROM unnest(ARRAY['payload', 'payload.a.0', 'before',
    'key', 'vars.x', '', 'payloads', '{payload}', '+payload', 'payload*', 'payload:3', 'payload,key']) body_from;
SELECT pg_temp.route('body, body_root', $$'xml', 'a:b'$$), pg_temp.route('body, body_root', $$'xml', 'a b'$$),
       pg_temp.route('body_root', $$'a'$$);
SELECT pg_temp.route('body, form_arrays', $$'form', 'repeat'$$), pg_temp.route('form_arrays', $$'csv'$$);
SELECT body, pg_temp.route('body, batch_size', quote_literal(body) || ', 10') FROM unnest(ARRAY['json', 'cloudevents', 'form',
    'cloudevents-binary']) body;
SELECT path, pg_temp.channel('idempotency_path', quote_literal(path)) FROM unnest(ARRAY['', '.a', 'a.', 'a..b', '$.a', 'a[0]',
    '{a}']) path;
SELECT pg_temp.channel('idempotency_key', $$'{nothing}'$$), pg_temp.channel('idempotency_key', $$''$$),
       pg_temp.channel('idempotency_max_length', '15'), pg_temp.channel('idempotency_query', $$''$$);
SELECT n, pattern, pg_temp.channel('idempotency_max_length, idempotency_pattern', format('%L, %L', n, pattern))
FROM (VALUES (NULL, '^[g-z]+$'), (20, '^[A-Z]+$'), (30, '^.{36}$'), (NULL, '(')) v (n, pattern);
SELECT pg_temp.channel('compress_above', '-1'), pg_temp.channel('probe_path', $$'status'$$),
       pg_temp.channel('probe_path', $$'/status?{price}'$$);
ROLLBACK;
