-- An iCal feed, as booking sites give one for each listing: nights that are taken elsewhere are blocked here, and free again
-- when they vanish from the feed.
--
--   psql -v url=https://www.example.com/calendar/7.ics?s=abc -v site=example -v listing=7 -f ical.sql
\set ON_ERROR_STOP on
\if :{?url} \else
    \echo 'give -v url=... -v site=... -v listing=...'
    \quit
\endif
BEGIN;
CREATE SCHEMA IF NOT EXISTS app;
-- DTEND is the day of departure, so the range does not hold it.
CREATE TABLE IF NOT EXISTS app.block (
    uid text PRIMARY KEY,
    listing text NOT NULL,
    arrival date NOT NULL,
    departure date NOT NULL,
    nights daterange GENERATED ALWAYS AS (daterange(arrival, departure)) STORED,
    note text
);
INSERT INTO accord.channel (name, base_url) VALUES (:'site', regexp_replace(:'url', '^(https?://[^/]+).*$', '\1'));
INSERT INTO accord.feed (name, channel, every, path, format, mode, mapping) VALUES
    (:'site' || '/' || :'listing', :'site', '15 min', regexp_replace(:'url', '^https?://[^/]+', ''), 'ical', 'snapshot',
     jsonb_build_object('target', 'app.block', 'key', '$.key', 'changes', jsonb_build_object(
         'listing', :'listing', 'arrival', '$.start', 'departure', '$.end', 'note', '$.summary')));
COMMIT;
