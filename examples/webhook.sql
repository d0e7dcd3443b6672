-- Webhooks that others receive (Standard Webhooks): each customer has an address and a secret of its own, whose signature every
-- library of https://www.standardwebhooks.com verifies; one that answers 410 is not called any more.
--
--   psql -v ON_ERROR_STOP=1 -f webhook.sql
--   SELECT app.subscribe('acme', 'https://acme.example.com/hook');     -- returns the secret, once
--   INSERT INTO accord.outbox (topic, key, account, payload) VALUES ('booking.created', 'B42', 'acme', '{"nights": 3}');
--
-- accord.secret_key_file should be set (see "Secrets"), or secrets are stored as they are.
\set ON_ERROR_STOP on
BEGIN;
CREATE SCHEMA app;

-- The channel's own address is nobody's: a customer's is its account's. A delivery is tried for three days, an endpoint that is
-- down left alone for up to ten minutes at a time. Times and order do not matter to receivers; ids tell repetitions apart.
INSERT INTO accord.channel (name, base_url, ordering, idempotency_header, timeout, retry_base, retry_cap, max_attempts, max_age,
                            breaker_cap, account_max_in_flight)
    VALUES ('webhook', 'https://webhook.invalid', 'none', NULL, '15 s', '5 s', '6 h', 50, '3 days', '10 min', 2);

-- The payload is the event, in the envelope that the specification recommends: type, timestamp, data.
CREATE FUNCTION app.envelope(e accord.event_log) RETURNS accord.http_request
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ROW(NULL, NULL, NULL, jsonb_build_object('type', e.topic, 'timestamp', e.occurred_at, 'data', e.payload))::accord.http_request
$$;
INSERT INTO accord.route (channel, topic, coalesce, body_function) VALUES ('webhook', '*', NULL, 'app.envelope');

-- 410: the customer has taken its endpoint away. 4xx may be a mistake that is mended: tried again.
INSERT INTO accord.rule (channel, position, status, outcome) VALUES ('webhook', 1, '410', 'rejected'), ('webhook', 2, '4xx', 'retry');

CREATE FUNCTION app.subscribe(customer text, url text) RETURNS text
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    secret text := 'whsec_' || encode(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()), 'base64');
BEGIN
    INSERT INTO accord.secret (name, value) VALUES (format('webhook/%s/1', customer), secret);
    INSERT INTO accord.account (channel, name, base_url, auth)
        VALUES ('webhook', customer, url,
                jsonb_build_object('type', 'standard', 'secrets', jsonb_build_array(format('webhook/%s/1', customer))));
    RETURN secret;
END
$$;

-- Another secret beside the old one: both sign, until app.retire() takes the old one away.
CREATE FUNCTION app.rotate(customer text) RETURNS text
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    secret text := 'whsec_' || encode(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()), 'base64');
    added text := format('webhook/%s/%s', customer, extract(epoch FROM clock_timestamp())::bigint);
BEGIN
    INSERT INTO accord.secret (name, value) VALUES (added, secret);
    UPDATE accord.account a SET auth = jsonb_set(a.auth, '{secrets}', jsonb_build_array(added) || (a.auth -> 'secrets'))
        WHERE a.channel = 'webhook' AND a.name = customer;
    RETURN secret;
END
$$;

CREATE FUNCTION app.retire(customer text) RETURNS void
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE accord.account a SET auth = jsonb_set(a.auth, '{secrets}', jsonb_build_array(a.auth -> 'secrets' -> 0))
        WHERE a.channel = 'webhook' AND a.name = customer
$$;
COMMIT;
