-- A booking site (OTA) that takes availability and rates as JSON, many days at a time: your tables are the truth, and
-- every change of them goes there by itself.
--
--   psql -v base_url=https://api.example.com -v api_key=... -f ota.sql
--
-- accord.secret_key_file should be set (see "Secrets"), or the key is stored as it is.
\set ON_ERROR_STOP on
\if :{?base_url} \else
    \echo 'give -v base_url=... -v api_key=...'
    \quit
\endif
BEGIN;
CREATE SCHEMA hotel;
CREATE TABLE hotel.night (
    property text NOT NULL,
    room_type text NOT NULL,
    night date NOT NULL,
    rooms integer NOT NULL CHECK (rooms >= 0),          -- how many can still be sold
    price numeric(10, 2) NOT NULL CHECK (price > 0),
    min_stay integer NOT NULL DEFAULT 1,
    closed boolean NOT NULL DEFAULT false,
    PRIMARY KEY (property, room_type, night)
);
-- each change of a row is an event, of the property's account
SELECT accord.capture('hotel.night', topic => 'hotel.night', account_column => 'property');

-- The site, and its rules: an API key, ten calls a minute for each property and kind of call, one at a time.
INSERT INTO accord.secret (name, value) VALUES ('ota/key', :'api_key');
INSERT INTO accord.channel (name, base_url, auth, account_max_in_flight, compress_above, probe_path)
    VALUES ('ota', rtrim(:'base_url', '/') || '/api/v1', '{"type": "header", "name": "user-api-key", "secret": "ota/key"}', 1,
            NULL, '/properties/{vars.id}');
INSERT INTO accord.rate_limit (channel, bucket, amount, period, burst) VALUES ('ota', '{account}', 10, '1 min', 10);
-- says 200, and means it only where nothing is listed as wrong
INSERT INTO accord.rule (channel, status, body, outcome, error) VALUES ('ota', '200', '$.errors', 'rejected', '$.errors[0].message');

-- What is sent is what the table says when it is sent, in one call for up to 500 nights; nights that are over are not.
CREATE FUNCTION hotel.days(events accord.event_log[]) RETURNS SETOF hotel.night
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT n.* FROM unnest(events) e
    JOIN hotel.night n ON n.property = e.payload ->> 'property' AND n.room_type = e.payload ->> 'room_type'
                      AND n.night = (e.payload ->> 'night')::date
    WHERE n.night >= current_date ORDER BY n.property, n.room_type, n.night
$$;
CREATE FUNCTION hotel.ari(events accord.event_log[]) RETURNS accord.http_request
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ROW(NULL, NULL, NULL, jsonb_build_object('values', jsonb_agg(jsonb_build_object(
        'property_id', a.vars ->> 'id', 'room_type_id', d.room_type, 'date', d.night,
        'availability', CASE WHEN d.closed THEN 0 ELSE d.rooms END))))::accord.http_request
    FROM hotel.days(events) d JOIN accord.account a ON a.channel = 'ota' AND a.name = d.property
    HAVING count(*) > 0
$$;
CREATE FUNCTION hotel.rates(events accord.event_log[]) RETURNS accord.http_request
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ROW(NULL, NULL, NULL, jsonb_build_object('values', jsonb_agg(jsonb_build_object(
        'property_id', a.vars ->> 'id', 'rate_plan_id', a.vars -> 'rate_plans' ->> d.room_type, 'date', d.night,
        'rate', to_char(d.price, 'FM9999990.00'), 'min_stay', d.min_stay, 'closed', d.closed))))::accord.http_request
    FROM hotel.days(events) d JOIN accord.account a ON a.channel = 'ota' AND a.name = d.property
    HAVING count(*) > 0
$$;
-- A channel uses the first of its routes that takes an event; so rates are a second channel, at the same address.
INSERT INTO accord.route (channel, topic, ops, path, batch_size, batch_wait, batch_function)
    VALUES ('ota', 'hotel.night', '{insert,update}', '/availability', 500, '1 s', 'hotel.ari');
INSERT INTO accord.channel (name, base_url, auth, account_max_in_flight, probe_path)
    SELECT 'ota-rates', base_url, auth, 1, probe_path FROM accord.channel WHERE name = 'ota';
INSERT INTO accord.rate_limit (channel, bucket, amount, period, burst) VALUES ('ota-rates', '{account}', 10, '1 min', 10);
INSERT INTO accord.rule (channel, status, body, outcome, error) VALUES ('ota-rates', '200', '$.errors', 'rejected', '$.errors[0].message');
INSERT INTO accord.route (channel, topic, ops, path, batch_size, batch_wait, batch_function)
    VALUES ('ota-rates', 'hotel.night', '{insert,update}', '/restrictions', 500, '1 s', 'hotel.rates');
COMMIT;

-- A hotel joins: what the site calls it, and its rate plans.
--   INSERT INTO accord.account (channel, name, vars)
--       SELECT c, 'seaview', '{"id": "716305c4-561a-4561-a187-7f5b8aeb5920", "rate_plans": {"double": "rp-1"}}'
--       FROM unnest('{ota,ota-rates}'::text[]) c;
--   SELECT * FROM accord.probe('ota', 'seaview');                       -- does it work?
-- All of it again, from the rows there are (a full sync): SELECT accord.backfill('ota', 'seaview');
-- What happened: SELECT at, channel, step, status, detail FROM accord.timeline WHERE topic = 'hotel.night';
