-- auth: every type of authentication is checked when it is given, with an error that says what is wrong.
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS pg_accord;
\set VERBOSITY terse
INSERT INTO accord.secret (name, value) VALUES ('a', 'Secret-a'), ('b', 'Secret-b');
INSERT INTO accord.channel (name, base_url) VALUES ('auth', 'http://127.0.0.1:9/');

-- What is accepted.
CREATE FUNCTION pg_temp.try(auth jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    hint text;
BEGIN
    UPDATE accord.channel SET auth = try.auth WHERE name = 'auth';
    RETURN 'fine';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN format('%s: %s [%s]', SQLSTATE, SQLERRM, hint);
END
$$;
SELECT auth ->> 'type' AS type, pg_temp.try(auth) FROM (VALUES
    ('{"type": "none"}'::jsonb),
    ('{"type": "bearer", "secret": "a"}'),
    ('{"type": "basic", "user": "u", "secret": "a"}'),
    ('{"type": "digest", "user": "u", "secret": "a"}'),
    ('{"type": "header", "name": "X-Key", "secret": "a"}'),
    ('{"type": "query", "name": "api_key", "secret": "a"}'),
    ('{"type": "hmac", "secret": "a", "sign": "{timestamp}.{body}", "headers": {"X-Signature": "sha256={signature}"}}'),
    ('{"type": "hmac", "secret": "a", "sign": "{method}\n{target}\n{header.Content-Type}", "headers": {"Authorization": "HMAC {user}:{signature}", "X-Time": "{timestamp}"}, "user": "k", "hash": "sha512", "encoding": "base64", "key": "hex", "timestamp": "iso"}'),
    ('{"type": "standard", "secrets": ["a"]}'),
    ('{"type": "standard", "secrets": ["a", "b"]}'),
    ('{"type": "aws_sigv4", "access_key": "AKID", "secret": "a", "region": "eu-west-1", "service": "execute-api"}'),
    ('{"type": "aws_sigv4", "access_key": "AKID", "secret": "a", "region": "eu-west-1", "service": "s3", "session_token": "b"}')
) AS v (auth);

-- What is not.
SELECT pg_temp.try(auth) FROM (VALUES
    ('{}'::jsonb),
    ('[]'),
    ('{"type": "kerberos"}'),
    ('{"type": "query", "secret": "a"}'),
    ('{"type": "query", "name": "api key", "secret": "a"}'),
    ('{"type": "query", "name": "a&b", "secret": "a"}'),
    ('{"type": "digest", "secret": "a"}'),
    ('{"type": "digest", "user": "u:p", "secret": "a"}'),
    ('{"type": "header", "name": "Host", "secret": "a"}'),
    ('{"type": "bearer", "token": "abc"}'),
    ('{"type": "bearer", "secret": 7}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body}"}'),
    ('{"type": "hmac", "secret": "a", "headers": {"S": "{signature}"}}'),
    ('{"type": "hmac", "secret": "a", "sign": "{payload}", "headers": {"S": "{signature}"}}'),
    ('{"type": "hmac", "secret": "a", "sign": "{signature}", "headers": {"S": "{signature}"}}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body", "headers": {"S": "{signature}"}}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body}", "headers": {"S": "{time}"}}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body}", "headers": {"S": "{timestamp}"}}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body}", "headers": {"S S": "{signature}"}}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body}", "headers": {"Content-Length": "{signature}"}}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body}", "headers": {"S": 1}}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body}", "headers": {"S": "{signature}\n"}}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body}", "headers": "S"}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body}", "headers": {"S": "{signature}"}, "hash": "md5"}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body}", "headers": {"S": "{signature}"}, "timestamp": "h"}'),
    ('{"type": "hmac", "secret": "a", "sign": "{body}", "headers": {"S": "{signature}"}, "salt": "x"}'),
    ('{"type": "standard", "secret": "a"}'),
    ('{"type": "standard"}'),
    ('{"type": "standard", "secrets": "a"}'),
    ('{"type": "standard", "secrets": []}'),
    ('{"type": "standard", "secrets": ["a", "a", "a", "a", "a"]}'),
    ('{"type": "standard", "secrets": ["a", 1]}'),
    ('{"type": "aws_sigv4", "access_key": "AKID", "secret_key": "a", "region": "eu-west-1", "service": "s3"}'),
    ('{"type": "aws_sigv4", "access_key": "AKID", "secret": "a", "region": "eu-west-1"}')
) AS v (auth);

-- Tokens.
SELECT pg_temp.try(auth) FROM (VALUES
    ('{"type": "oauth2", "token_url": "https://a.example.com/token", "client_id": "c", "secret": "a"}'::jsonb),
    ('{"type": "oauth2", "token_url": "https://a.example.com/token", "client_id": "c", "refresh_token": "b"}'),
    ('{"type": "oauth2", "token_url": "https://a.example.com/token", "client_id": "c", "secret": "a", "refresh_token": "b", "scope": "x y", "parameters": {"audience": "z"}, "client_auth": "body", "lifetime": 60, "margin": 5}'),
    ('{"type": "login", "token_url": "https://a.example.com/login", "secret": "a"}'),
    ('{"type": "login", "token_url": "https://a.example.com/login", "secret": "a", "prefix": "", "name": "X-Session", "token": "data.token", "format": "form"}'),
    ('{"type": "oauth2", "client_id": "c", "secret": "a"}'),
    ('{"type": "oauth2", "token_url": "ftp://a/", "client_id": "c", "secret": "a"}'),
    ('{"type": "oauth2", "token_url": "https://u:p@a.example.com/", "client_id": "c", "secret": "a"}'),
    ('{"type": "oauth2", "token_url": "https://a.example.com/token", "client_id": "c"}'),
    ('{"type": "oauth2", "token_url": "https://a.example.com/token", "client_id": "c", "client_secret": "abc"}'),
    ('{"type": "oauth2", "token_url": "https://a.example.com/token", "client_id": "c", "secret": "a", "parameters": {"password": "x"}}'),
    ('{"type": "oauth2", "token_url": "https://a.example.com/token", "client_id": "c", "secret": "a", "parameters": {"n": 1}}'),
    ('{"type": "oauth2", "token_url": "https://a.example.com/token", "client_id": "c", "secret": "a", "parameters": []}'),
    ('{"type": "oauth2", "token_url": "https://a.example.com/token", "client_id": "c", "secret": "a", "margin": -1}'),
    ('{"type": "oauth2", "token_url": "https://a.example.com/token", "client_id": "c", "secret": "a", "lifetime": "1 h"}'),
    ('{"type": "login", "token_url": "https://a.example.com/login", "secret": "a", "token": "$.data"}'),
    ('{"type": "login", "token_url": "https://a.example.com/login", "secret": "a", "name": "Host"}')
) AS v (auth);

-- A secret that is not there may come later.
SET client_min_messages = warning;
UPDATE accord.channel SET auth = '{"type": "standard", "secrets": ["a", "none"]}' WHERE name = 'auth';
DELETE FROM accord.channel WHERE name = 'auth';
DELETE FROM accord.secret WHERE name IN ('a', 'b');
