-- A CalDAV calendar (Radicale, Nextcloud, ...): stays are entries of it, entries that somebody makes there are stays, and once
-- a day the two are compared.
--
--   psql -v url=https://cloud.example.com/host/stays -v user=host -v password=... -f caldav.sql
--
-- accord.secret_key_file should be set (see "Secrets"), or the password is stored as it is.
\set ON_ERROR_STOP on
\if :{?url} \else
    \echo 'give -v url=... -v user=... -v password=...'
    \quit
\endif
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.stay (
    id text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9_-]{1,100}$'),
    guest text NOT NULL,
    arrival date NOT NULL,
    departure date NOT NULL CHECK (departure > arrival),
    origin text NOT NULL DEFAULT 'ours'
);
SELECT accord.capture('app.stay', topic => 'stay');

INSERT INTO accord.secret (name, value) VALUES ('calendar/password', :'password');
INSERT INTO accord.channel (name, base_url, auth)
    VALUES ('calendar', rtrim(:'url', '/'), jsonb_build_object('type', 'basic', 'user', :'user', 'secret', 'calendar/password'));

-- There: an entry is a file named by the stay, DTEND the day of departure. A new one must not replace somebody else's of that
-- name; 412 is also what the repetition of a request gets whose answer was lost, and reconciling sees what it was.
CREATE FUNCTION app.entry(e accord.event_log) RETURNS accord.http_request
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ROW(NULL, NULL, NULL, array_to_string(ARRAY[
        'BEGIN:VCALENDAR', 'VERSION:2.0', 'PRODID:-//pg_accord//caldav//EN', 'BEGIN:VEVENT',
        'UID:' || e.key,
        'DTSTAMP:' || to_char(e.occurred_at AT TIME ZONE 'UTC', 'YYYYMMDD"T"HH24MISS"Z"'),
        'DTSTART;VALUE=DATE:' || replace(e.payload ->> 'arrival', '-', ''),
        'DTEND;VALUE=DATE:' || replace(e.payload ->> 'departure', '-', ''),
        'SUMMARY:' || replace(regexp_replace(e.payload ->> 'guest', '([\\;,])', '\\\1', 'g'), E'\n', '\n'),
        'END:VEVENT', 'END:VCALENDAR', ''], E'\r\n'))::accord.http_request
$$;
INSERT INTO accord.route (channel, topic, ops, method, path, headers, content_type, body_function) VALUES
    ('calendar', 'stay', '{insert}', 'PUT', '/{key}.ics', '{"If-None-Match": "*"}', 'text/calendar; charset=utf-8', 'app.entry'),
    ('calendar', 'stay', '{update}', 'PUT', '/{key}.ics', '{}', 'text/calendar; charset=utf-8', 'app.entry'),
    ('calendar', 'stay', '{delete}', 'DELETE', '/{key}.ics', '{}', 'text/calendar', NULL);
INSERT INTO accord.rule (channel, status, outcome) VALUES ('calendar', '412', 'duplicate');

-- And back: the calendar as a whole is a snapshot. What we know already changes nothing, and is not sent there again.
CREATE FUNCTION app.stay_of(headers jsonb, item jsonb) RETURNS SETOF accord.message
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NULL, NULL, 'app.stay'::regclass, item ->> 'uid', CASE WHEN gone THEN 'delete' ELSE 'upsert' END,
           CASE WHEN NOT gone THEN
               jsonb_build_object('guest', item ->> 'summary', 'arrival', item ->> 'start', 'departure', item ->> 'end')
               || CASE WHEN EXISTS (SELECT FROM app.stay s WHERE s.id = item ->> 'uid') THEN '{}'
                       ELSE '{"origin": "calendar"}'::jsonb END END,
           NULL::timestamptz, NULL::numeric, NULL, NULL::jsonb
    FROM (SELECT coalesce((item -> 'vanished')::boolean, (item -> 'cancelled')::boolean)) g (gone)
    WHERE item -> 'all_day' = 'true'
$$;
INSERT INTO accord.feed (name, channel, every, format, mode, mapping_function)
    VALUES ('calendar/stays', 'calendar', '5 min', 'ical', 'snapshot', 'app.stay_of');

-- What drifts is listed in accord.drift; SELECT accord.reconcile('calendar', repair => true) puts it right.
CREATE FUNCTION app.stays(account text) RETURNS TABLE (key text, value jsonb)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.id, jsonb_build_object('guest', s.guest, 'arrival', s.arrival, 'departure', s.departure) FROM app.stay s
$$;
INSERT INTO accord.reconciliation (name, channel, every, format, topic, expected_function, compared)
    VALUES ('calendar/stays', 'calendar', '1 day', 'ical', 'stay', 'app.stays',
            '{"guest": {"expected": "$.guest", "actual": "$.summary"}, "arrival": {"expected": "$.arrival", "actual": "$.start"},
              "departure": {"expected": "$.departure", "actual": "$.end"}}');
COMMIT;
