-- config: every mistake in the configuration is refused when it is made, with its SQLSTATE and what to do; what is good
-- is stored; who may do what; and settings out of range are refused.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
CREATE ROLE regress_accord_admin;
CREATE ROLE regress_accord_auditor;
CREATE ROLE regress_accord_writer;
CREATE ROLE regress_accord_nobody;
SELECT accord.grant_admin('regress_accord_admin'), accord.grant_auditor('regress_accord_auditor'),
       accord.grant_writer('regress_accord_writer') \g /dev/null
RESET client_min_messages;
INSERT INTO accord.secret (name, value) VALUES ('cf/key', 'value');
INSERT INTO accord.channel (name, base_url) VALUES ('cf', 'https://cf.example');

-- Runs a statement, and undoes it: what it returned or raised.
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text;
    message text;
    hint text;
BEGIN
    EXECUTE statement;
    RAISE SQLSTATE 'TESTS';
EXCEPTION WHEN SQLSTATE 'TESTS' THEN
    RETURN 'accepted';
WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
    RETURN format('%s: %s%s', state, message, E'\n  ' || nullif(hint, ''));
END
$$;
-- A row with these columns beside the ones it needs.
CREATE FUNCTION pg_temp.channel(col text, val text) RETURNS text LANGUAGE sql AS $$
    SELECT pg_temp.try(format('INSERT INTO accord.channel (name, base_url) VALUES (''c'', ''https://c.example'');'
                              'UPDATE accord.channel SET %I = %L WHERE name = ''c''', col, val))
$$;
CREATE FUNCTION pg_temp.account(col text, val text) RETURNS text LANGUAGE sql AS $$
    SELECT pg_temp.try(format('INSERT INTO accord.account (channel, name) VALUES (''cf'', ''a'');'
                              'UPDATE accord.account SET %I = %L WHERE name = ''a''', col, val))
$$;
CREATE FUNCTION pg_temp.route(col text, val text) RETURNS text LANGUAGE sql AS $$
    SELECT pg_temp.try(format('INSERT INTO accord.route (channel, %I) VALUES (''cf'', %L)', col, val))
$$;
\pset format unaligned
\pset tuples_only on
\pset fieldsep ' | '

-- channel: its name
SELECT pg_temp.try(format('INSERT INTO accord.channel (name, base_url) VALUES (%L, ''https://c.example'')', name))
FROM unnest(ARRAY['a', '0_a.b-c', repeat('x', 63), repeat('x', 64), '', '.a', '-a', 'a b', 'a/b', U&'\00E9', NULL,
    'cf']) name;
SELECT pg_temp.try($$UPDATE accord.channel SET name = 'other' WHERE name = 'cf'$$);
-- where it is
SELECT url, pg_temp.channel('base_url', url) FROM unnest(ARRAY['https://c.example', 'HTTP://c.example:8080/v1/',
    'http://[2a00::1]/',
    'http://1.2.3.4:1/', NULL, '', 'c.example', 'ftp://c.example', 'file:///etc/passwd', 'https://', 'https:///v1',
    'https://user@c.example',
    'https://user:word@c.example', 'https://c.example/a?b=c', 'https://c.example/#a', 'https://c.example/a b',
    E'https://c.example/\nX: y', U&'https://c.example/\00E9', 'https://c.exa mple']) url;
-- what libcurl finds in it is said in libcurl's words
SELECT url, regexp_replace(pg_temp.channel('base_url', url), '(cannot be parsed: ).*?\n', '\1...')
FROM unnest(ARRAY['https://c.example:99999/', 'https://c.example:a/', 'https://[::1', 'https://c%00.example']) url;
-- a refused network is only warned of, as it may be allowed before an event is sent
SELECT pg_temp.channel('base_url', 'http://10.1.2.3/');
SELECT pg_temp.channel('base_url', 'http://[fe80::1]/');
SELECT pg_temp.channel('base_url', 'http://127.0.0.1:8080/');
-- a slash at the end is taken off, as the path begins with one
INSERT INTO accord.channel (name, base_url) VALUES ('cfs', 'https://cf.example/v1//') RETURNING base_url;
DELETE FROM accord.channel WHERE name = 'cfs';
-- how it is authenticated
SELECT auth, pg_temp.channel('auth', auth) FROM unnest(ARRAY[
    '{"type": "none"}', '{"type": "bearer", "secret": "cf/key"}', '{"type": "basic", "user": "u", "secret": "cf/key"}',
    '{"type": "header", "name": "X-Api-Key", "secret": "cf/key"}',
    '{"type": "header", "name": "Authorization", "secret": "cf/key"}',
    NULL, '{}', '[]', '"none"', 'null', '{"type": null}', '{"type": 1}', '{"type": "digest"}',
    '{"type": "none", "secret": "cf/key"}',
    '{"type": "bearer"}', '{"type": "bearer", "secret": ""}', '{"type": "bearer", "secret": 1}',
    '{"type": "bearer", "secret": "cf/key", "user": "u"}', '{"type": "bearer", "token": "t"}',
    '{"type": "bearer", "value": "v"}',
    '{"type": "basic", "user": "u", "password": "p"}', '{"type": "basic", "secret": "cf/key"}',
    '{"type": "basic", "user": "", "secret": "cf/key"}', '{"type": "basic", "user": "a:b", "secret": "cf/key"}',
    '{"type": "basic", "user": "a\nb", "secret": "cf/key"}', '{"type": "header", "secret": "cf/key"}',
    '{"type": "header", "name": "X Key", "secret": "cf/key"}',
    '{"type": "header", "name": "X-Key: a", "secret": "cf/key"}',
    '{"type": "header", "name": "Host", "secret": "cf/key"}',
    '{"type": "header", "name": "transfer-encoding", "secret": "cf/key"}',
    '{"type": "header", "name": "X-Api-Key", "secret": ["cf/key"]}']) auth;
-- a secret may be stored later
SELECT pg_temp.channel('auth', '{"type": "bearer", "secret": "cf/later"}');
-- what it is sent along
SELECT headers, pg_temp.channel('headers', headers) FROM unnest(ARRAY[
    '{}', '{"X-A": "b", "X-B": ""}', '{"X-A": "{topic}/{payload.a}{?vars.b}"}', NULL, '[]', '"a"', 'null', '{"": "a"}',
    '{"X A": "b"}', '{"X:A": "b"}',
    '{"X-A": 1}', '{"X-A": null}', '{"X-A": ["a"]}', '{"X-A": "a\nb"}', '{"X-A": "a\rb"}', '{"X-A": "{"}',
    '{"X-A": "{price}"}',
    '{"X-A": "{keys}"}', '{"X-A": "{key.a}"}', '{"Host": "h"}', '{"authorization": "a"}', '{"Proxy-Connection": "a"}',
    '{"Content-Length": "0"}']) headers;
SELECT header, pg_temp.channel('idempotency_header', header) FROM unnest(ARRAY['Idempotency-Key', NULL, '', 'a b', 'a:',
    'Host', 'Authorization']) header;
-- how patiently; each limit, and one beyond it
SELECT col, val, pg_temp.channel(col, val) FROM (VALUES
    ('enabled', NULL), ('ordering', 'none'), ('ordering', 'any'), ('ordering', NULL),
    ('max_in_flight', '1'), ('max_in_flight', '10000'), ('max_in_flight', '0'), ('max_in_flight', '10001'),
    ('max_in_flight', NULL),
    ('connect_timeout', '1 ms'), ('connect_timeout', '10 min'), ('connect_timeout', '0'), ('connect_timeout', '601 s'),
    ('connect_timeout', '-1 s'),
    ('timeout', '1 ms'), ('timeout', '1 h'), ('timeout', '0'), ('timeout', '3601 s'), ('timeout', NULL),
    ('stall_timeout', '1 s'), ('stall_timeout', '1 h'), ('stall_timeout', '999 ms'), ('stall_timeout', '3601 s'),
    ('retry_base', '1 ms'), ('retry_base', '10 min'), ('retry_base', '0'), ('retry_base', '601 s'), ('retry_base',
    '25 h'),
    ('retry_cap', '1 s'), ('retry_cap', '7 days'), ('retry_cap', '999 ms'), ('retry_cap', '8 days'),
    ('max_attempts', '1'), ('max_attempts', '10000'), ('max_attempts', '0'), ('max_attempts', '10001'),
    ('max_age', '1 s'), ('max_age', '1 year'), ('max_age', '999 ms'), ('max_age', '366 days'),
    ('idempotency_window', NULL), ('idempotency_window', '1 s'), ('idempotency_window', '0'),
    ('max_response', '0'), ('max_response', '67108864'), ('max_response', '-1'), ('max_response', '67108865'),
    ('description', 'anything'), ('description', NULL)) AS c (col, val);

-- account
SELECT pg_temp.try(format('INSERT INTO accord.account (channel, name) VALUES (%L, %L)', channel, name))
FROM (VALUES ('cf', 'hotel 42'), ('cf', repeat(U&'\20AC', 255)), ('cf', repeat('x', 256)), ('cf', ''), ('cf', NULL),
    (NULL, 'a'), ('nowhere', 'a'))
    AS a (channel, name);
SELECT col, val, pg_temp.account(col, val) FROM (VALUES
    ('base_url', NULL), ('base_url', 'https://a.example/'), ('base_url', 'a.example'), ('base_url',
    'https://a.example/?b'), ('enabled', NULL),
    ('auth', NULL), ('auth', '{"type": "bearer", "secret": "cf/key"}'), ('auth', '{"type": "bearer"}'), ('auth', '[]'),
    ('vars', '{"property": {"id": 42}}'), ('vars', '[]'), ('vars', '"a"'), ('vars', NULL)) AS c (col, val);

-- route
SELECT substr(pg_temp.route('topic', repeat('t', 255)), 1, 20);
SELECT substr(pg_temp.route('topic', repeat('t', 256)), 1, 20);
SELECT col, val, pg_temp.route(col, val) FROM (VALUES
    ('topic', 'rate.*'), ('topic', '*'), ('topic', 'a*b*c'), ('topic', ''),
    ('topic', 'a b'), ('topic', E'a\nb'), ('topic', 'accord.redeliver'), ('topic', 'accord.*'), ('topic', NULL),
    ('ops', NULL), ('ops', '{insert,update,delete,truncate,event}'), ('ops', '{}'), ('ops', '{upsert}'), ('ops',
    '{insert,NULL}'), ('ops', '{INSERT}'),
    ('method', 'PATCH'), ('method', 'PURGE'), ('method', 'post'), ('method', ''), ('method', 'A B'), ('method',
    'CONNECT'), ('method', 'TRACE'),
    ('path', ''), ('path', '/a/{key}'), ('path', '?q={key}'), ('path', '{/key}'), ('path', '{?payload.a}'), ('path',
    '{+vars.path}'), ('path', 'a'),
    ('path', '/{'), ('path', '/{}'), ('path', '/{price}'), ('path', '/{payloads.a}'), ('path', '/a b'), ('path',
    '/a#b'), ('path', '/a\b'),
    ('path', E'/a\nb'), ('path', NULL),
    ('headers', '{"X-A": "{account}"}'), ('headers', '{"X-A": "{nothing}"}'), ('headers', '{"Cookie": "a"}'),
    ('headers', '[]'), ('headers', NULL),
    ('content_type', 'text/plain; charset=utf-8'), ('content_type', 'json'), ('content_type', '/json'), ('content_type',
    'a/'),
    ('content_type', E'a/b\nX: y'), ('content_type', NULL),
    ('mode', 'command'), ('mode', 'event'), ('ambiguous', 'retry'), ('ambiguous', 'guess'), ('position', '-1'),
    ('position', NULL)) AS c (col, val);
SELECT pg_temp.try($$INSERT INTO accord.route (channel) VALUES ('nowhere')$$);
-- a body function is stored qualified, so that it always means the same
CREATE SCHEMA cf_app;
CREATE FUNCTION cf_app.body(e accord.event_log) RETURNS accord.http_request
    LANGUAGE sql AS 'SELECT NULL::accord.http_request';
CREATE FUNCTION cf_app.wrong(e accord.event_log) RETURNS text LANGUAGE sql AS 'SELECT NULL';
CREATE FUNCTION cf_app.wrong(e jsonb) RETURNS accord.http_request LANGUAGE sql AS 'SELECT NULL::accord.http_request';
CREATE FUNCTION cf_app."Odd name"(e accord.event_log) RETURNS accord.http_request
    LANGUAGE sql AS 'SELECT NULL::accord.http_request';
SELECT name, pg_temp.route('body_function', name)
FROM unnest(ARRAY['cf_app.body', 'body', 'cf_app.wrong', 'cf_app.nothing', 'nowhere.body', '', 'a.b.c.d',
    'cf_app."Odd name"', 'cf_app.Odd name']) name;
SET search_path = cf_app, public;
INSERT INTO accord.route (channel, body_function) VALUES ('cf', 'body'), ('cf', '"Odd name"') RETURNING body_function;
RESET search_path;
DELETE FROM accord.route WHERE channel = 'cf';
-- its owner must be allowed to run it; a function of a mere user does not run as a superuser
REVOKE EXECUTE ON FUNCTION cf_app.body FROM PUBLIC;
SELECT pg_temp.try($$INSERT INTO accord.route (channel, body_function, owner)
    VALUES ('cf', 'cf_app.body', 'regress_accord_nobody')$$);
SELECT pg_temp.try($$INSERT INTO accord.route (channel, body_function, owner)
    VALUES ('cf', 'cf_app."Odd name"', 'regress_accord_nobody')$$);
SELECT pg_temp.try($$INSERT INTO accord.route (channel, owner) VALUES ('cf', 'regress_accord_missing')$$);
ALTER FUNCTION cf_app.body OWNER TO regress_accord_nobody;
SELECT pg_temp.try($$INSERT INTO accord.route (channel, body_function) VALUES ('cf', 'cf_app.body')$$) = format(
$$42501: body_function cf_app.body would run as superuser "%s", but its owner is none
  Give the application's role as the route's owner, or make the function a superuser's.$$, current_user);
SELECT pg_temp.try($$INSERT INTO accord.route (channel, body_function, owner)
    VALUES ('cf', 'cf_app.body', 'regress_accord_nobody')$$);

-- secret
SELECT pg_temp.try(format('INSERT INTO accord.secret (name, value) VALUES (%L, %L)', name, value)) FROM (VALUES
    ('pms/hotel-42', 'x'), (repeat('n', 127), 'x'), (repeat('n', 128), 'x'), ('', 'x'), ('/a', 'x'), ('a b', 'x'),
    (NULL, 'x'), ('cf/key', 'x'),
    ('a', U&'\00E9 and blanks'), ('a', ''), ('a', E'a\nb'), ('a', E'a\rb'), ('a', E'a\tb'), ('a', NULL)) AS s (name,
    value);
UPDATE accord.secret SET updated_at = '2000-01-01', value = 'new' WHERE name = 'cf/key' RETURNING value,
    updated_at = now();

-- Checked also where triggers would not fire otherwise.
SET session_replication_role = replica;
SELECT pg_temp.channel('base_url', 'ftp://c.example');
SELECT pg_temp.route('path', 'a');
RESET session_replication_role;

-- Who may configure: an admin, who cannot read a secret, and whose routes run as himself.
CREATE FUNCTION pg_temp.roles(statement text) RETURNS TABLE (role text, result text) LANGUAGE plpgsql AS $$
BEGIN
    FOREACH role IN ARRAY ARRAY['admin', 'auditor', 'writer', 'nobody'] LOOP
        EXECUTE format('SET LOCAL ROLE regress_accord_%s', role);
        result := pg_temp.try(statement);
        RESET ROLE;
        RETURN NEXT;
    END LOOP;
END
$$;
GRANT EXECUTE ON FUNCTION pg_temp.try TO PUBLIC;
INSERT INTO accord.account (channel, name) VALUES ('cf', 'a');
SELECT statement, r.* FROM unnest(ARRAY[
    $$INSERT INTO accord.channel (name, base_url) VALUES ('c', 'https://c.example')$$,
    $$UPDATE accord.channel SET enabled = false$$,
    $$DELETE FROM accord.channel$$, $$TRUNCATE accord.channel CASCADE$$, $$SELECT FROM accord.channel$$,
    $$INSERT INTO accord.account (channel, name) VALUES ('cf', 'b')$$, $$UPDATE accord.account SET enabled = false$$,
    $$DELETE FROM accord.account$$,
    $$INSERT INTO accord.route (channel) VALUES ('cf')$$, $$UPDATE accord.route SET topic = 'a'$$,
    $$DELETE FROM accord.route$$,
    $$INSERT INTO accord.secret (name, value) VALUES ('c', 'x')$$,
    $$UPDATE accord.secret SET value = 'x' WHERE name = 'cf/key'$$,
    $$DELETE FROM accord.secret WHERE name = 'cf/key'$$, $$SELECT name, updated_at FROM accord.secret$$,
    $$SELECT value FROM accord.secret$$,
    $$SELECT * FROM accord.secret$$, $$SELECT FROM accord.secret s WHERE s::text LIKE '%x%'$$,
    $$UPDATE accord.secret SET name = name WHERE value > 'a'$$, $$DELETE FROM accord.secret RETURNING value$$,
    $$INSERT INTO accord.secret AS s (name, value) VALUES ('cf/key', 'x')
    ON CONFLICT (name) DO UPDATE SET value = 'y' WHERE s.value > 'a'$$]) statement,
    LATERAL pg_temp.roles(statement) r;
GRANT USAGE ON SCHEMA cf_app TO regress_accord_admin;
SET ROLE regress_accord_admin;
INSERT INTO accord.route (channel, topic, owner) VALUES ('cf', 'a', 'regress_accord_nobody') RETURNING owner;
INSERT INTO accord.route (channel, body_function) VALUES ('cf', 'cf_app.body');
INSERT INTO accord.route (channel, body_function) VALUES ('cf', 'cf_app."Odd name"') RETURNING owner, body_function;
RESET ROLE;
-- another's route may be moved and disabled, also when the function is not the admin's to run or is gone; but what runs
-- as the other is not the admin's to choose: with another function, or owner, it becomes the admin's own
INSERT INTO accord.route (channel, topic, body_function, owner) VALUES ('cf', 'theirs', 'cf_app.body',
    'regress_accord_nobody');
SET ROLE regress_accord_admin;
UPDATE accord.route SET position = 5 WHERE topic = 'theirs' RETURNING position, owner;
UPDATE accord.route SET owner = 'regress_accord_writer' WHERE topic = 'theirs';
RESET ROLE;
ALTER FUNCTION cf_app.body RENAME TO gone;
SET ROLE regress_accord_admin;
UPDATE accord.route SET enabled = false WHERE topic = 'theirs' RETURNING enabled, owner, body_function;
UPDATE accord.route SET body_function = 'cf_app."Odd name"' WHERE topic = 'theirs' RETURNING owner, body_function;
RESET ROLE;

-- Settings: what describes a session is anybody's; what the workers read is the configuration file's.
SET ROLE regress_accord_nobody;
SET accord.actor = 'ann';
SET accord.reason = 'why';
SET accord.correlation_id = 'c-1';
SELECT current_setting('accord.actor'), current_setting('accord.reason'), current_setting('accord.correlation_id');
SELECT pg_temp.try($$SELECT current_setting('accord.ca_file')$$) LIKE '42501: %';
RESET ROLE;
RESET accord.actor;
RESET accord.reason;
RESET accord.correlation_id;
SELECT name, substr(pg_temp.try(format('SELECT set_config(%L, %L, false)', name, setting)), 1, 5) AS sqlstate, context
FROM pg_settings WHERE name LIKE 'accord.%' AND context <> 'user' ORDER BY name COLLATE "C";
SET accord.nonsense = 1;
-- The words are PostgreSQL's and change with it: the SQLSTATEs alone.
\set VERBOSITY sqlstate
ALTER SYSTEM SET accord.dispatch = maybe;
ALTER SYSTEM SET accord.dispatchers = 0;
ALTER SYSTEM SET accord.dispatchers = 17;
ALTER SYSTEM SET accord.dispatch_memory = '1023kB';
ALTER SYSTEM SET accord.function_timeout = 0;
ALTER SYSTEM SET accord.max_databases = 0;
ALTER SYSTEM SET accord.max_in_flight = 0;
ALTER SYSTEM SET accord.response_excerpt = '65 kB';
ALTER SYSTEM SET accord.restart_interval = '99ms';
ALTER SYSTEM SET accord.settle_delay = '2s';
ALTER SYSTEM SET accord.settle_delay = '5 parsecs';
ALTER SYSTEM SET accord.log_retention = '40000d';
ALTER SYSTEM SET accord.attempt_retention = '-1d';
ALTER SYSTEM SET accord.idempotency_retention = 'for ever';
-- Networks; what is wrong is said by us.
\set VERBOSITY default
ALTER SYSTEM SET accord.allowed_networks = 'localhost';
ALTER SYSTEM SET accord.allowed_networks = '10.0.0.1/8';
ALTER SYSTEM SET accord.allowed_networks = '10.0.0.0/33';
ALTER SYSTEM SET accord.allowed_networks = '10.0.0/8';
ALTER SYSTEM SET accord.allowed_networks = '10.0.0.0/8,';
ALTER SYSTEM SET accord.allowed_networks = '10.0.0.0/8 192.168.0.0/16';
ALTER SYSTEM SET accord.allowed_networks = 'fd00::1/8';
ALTER SYSTEM SET accord.allowed_networks = '10.0.0.0/8;';

-- Traffic control.
\set VERBOSITY default
CREATE FUNCTION pg_temp.rate_limit(col text, val text) RETURNS text LANGUAGE sql AS $$
    SELECT pg_temp.try(format('INSERT INTO accord.rate_limit (channel, amount, period) VALUES (''cf'', 10, ''1 s'');'
                              'UPDATE accord.rate_limit SET %I = %L WHERE channel = ''cf''', col, val))
$$;
SELECT c, v, pg_temp.channel(c, v) FROM (VALUES ('account_max_in_flight', '0'), ('throttle_scope', 'galaxy'),
    ('breaker_failures', '0'), ('breaker_ratio', '0'), ('breaker_ratio', '1.1'), ('breaker_minimum', '0'),
    ('breaker_window', '1 ms'), ('breaker_cooldown', '6 min'), ('breaker_cap', '1 s'), ('breaker_failures', NULL),
    ('breaker_ratio', NULL), ('account_max_in_flight', NULL)) AS t (c, v);
SELECT c, v, pg_temp.try(format('INSERT INTO accord.account (channel, name, %I) VALUES (''cf'', ''share'', %L)', c, v))
FROM (VALUES ('max_in_flight', '0'), ('weight', '0'), ('weight', '101'), ('weight', '100')) AS t (c, v);
SELECT c, v, pg_temp.rate_limit(c, v) FROM (VALUES ('amount', '0'), ('period', '0 s'), ('period', '-1 s'),
    ('burst', '0'), ('bucket', '{account'), ('bucket', '{nosuch}'), ('bucket', '{payload.device}/{vars.hotel}'),
    ('burst', NULL)) AS t (c, v);
SELECT c, v, pg_temp.route(c, v) FROM (VALUES ('coalesce', ''), ('coalesce', '{key'), ('coalesce', '{nosuch}'),
    ('coalesce', '{key}/{payload.date}'), ('coalesce', NULL), ('quiet', '0 s'), ('quiet', '1 s'), ('quiet_max', '1 s'),
    ('skip_unchanged', 'true'), ('when_dead', 'shrug'), ('when_dead', 'hold'), ('batch_size', '0'),
    ('batch_size', '1001'), ('batch_size', '100'), ('batch_bytes', '0'), ('batch_wait', '2 h'),
    ('batch_group', '{payload'), ('batch_function', 'nosuch'), ('batch_id', '{'), ('batch_item_id', 'id'),
    ('batch_items', 'results')) AS t (c, v);
SELECT what, pg_temp.try('INSERT INTO accord.route (channel, mode, coalesce, quiet, quiet_max, skip_unchanged, '
                         'batch_size) VALUES (''cf'', ' || what || ')') FROM unnest(ARRAY[
    $$'command', '{key}', '1 s', NULL, false, 1$$, $$'state', NULL, '1 s', NULL, false, 1$$,
    $$'state', '{key}', '2 s', '1 s', false, 1$$, $$'state', '{key}', '1 s', '2 s', false, 1$$,
    $$'command', '{key}', NULL, NULL, true, 1$$, $$'command', '{key}', NULL, NULL, false, 2$$,
    $$'state', '{key}', NULL, NULL, true, 2$$]) what;
SELECT what, pg_temp.try('INSERT INTO accord.outbox (topic, priority, deliver_at, expires_at) VALUES (''t'', ' || what
                         || ')')
FROM unnest(ARRAY[$$3, NULL, NULL$$, $$-1, NULL, NULL$$, $$NULL, NULL, NULL$$, $$0, '2026-01-02', '2026-01-01'$$,
    $$2, '2026-01-01', '2026-01-02'$$]) what;
SELECT pg_temp.try(what) FROM unnest(ARRAY[$$SELECT accord.pause('nosuch')$$, $$SELECT accord.pause('cf', 'nosuch')$$,
    $$SELECT accord.pause('cf', until => 'yesterday')$$, $$SELECT accord.resume('nosuch')$$]) what;
SELECT accord.pause('cf', reason => 'maintenance'), accord.pause('cf', reason => 'longer') \g /dev/null
SELECT channel, account, reason, until FROM accord.paused;
SELECT accord.resume('cf'), accord.resume('cf');

SELECT accord.pause('cf', until => 'infinity') \g /dev/null
SELECT channel, until FROM accord.paused;
SELECT accord.resume('cf');
SELECT what, pg_temp.try('INSERT INTO accord.route (channel, batch_size, batch_items, batch_item_id, batch_item_status, '
                         'batch_item_error) VALUES (''cf'', 2, ' || what || ')') FROM unnest(ARRAY[
    $$'', 'id', 'a.0.b', ''$$, $$'$.items', NULL, NULL, NULL$$, $$'items[*]', NULL, NULL, NULL$$,
    $$'a..b', NULL, NULL, NULL$$, $$'', '.id', NULL, NULL$$, $$'', NULL, 'status.', NULL$$, $$'', NULL, NULL, '*'$$]) what;
SELECT pg_temp.try(what) FROM unnest(ARRAY[$$SELECT accord.grant_writer(NULL)$$, $$SELECT accord.grant_auditor(NULL)$$,
    $$SELECT accord.grant_admin(NULL)$$]) what;

-- Whatever is wrong with the row of a secret, its value is in no part of what is said.
CREATE FUNCTION pg_temp.says(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    message text;
    detail text;
    hint text;
BEGIN
    EXECUTE statement;
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(' ', message, detail, hint);
END
$$;
SELECT name, pg_temp.says(format('INSERT INTO accord.secret (name, value) VALUES (%L, %L)', name, value)) LIKE '%S3cr3t%'
FROM (VALUES (NULL, 'S3cr3t'), ('', 'S3cr3t'), ('a b', 'S3cr3t'), (repeat('n', 128), 'S3cr3t'), ('cf/key', 'S3cr3t'),
    ('cf/new', E'S3cr3t\n')) AS s (name, value);

-- A channel takes its accounts and routes with it.
DELETE FROM accord.channel WHERE name = 'cf';
SELECT count(*) FROM accord.account WHERE channel = 'cf';
SELECT count(*) FROM accord.route WHERE channel = 'cf';
DELETE FROM accord.secret WHERE name LIKE 'cf/%';
SET client_min_messages = warning;
DROP SCHEMA cf_app CASCADE;
DROP OWNED BY regress_accord_admin, regress_accord_auditor, regress_accord_writer, regress_accord_nobody;
DROP ROLE regress_accord_admin, regress_accord_auditor, regress_accord_writer, regress_accord_nobody;
