-- feed: what is wrong with a row is said when it is given; iCalendars; Link headers; requests.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;
BEGIN;
SET client_min_messages = warning;
INSERT INTO accord.channel (name, base_url, headers)
    VALUES ('feed_ota', 'https://ota.example/v1/', '{"Accept": "application/json", "X-Of": "{payload.x}"}');
INSERT INTO accord.account (channel, name, vars) VALUES ('feed_ota', 'h 1', '{"id": "7/8"}');
CREATE FUNCTION pg_temp.try(columns text, given text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    code text;
    wrong text;
BEGIN
    EXECUTE format('INSERT INTO accord.feed (name, channel, mapping%s) VALUES (''f'', ''feed_ota'', ''{"topic": "t"}''%s)',
                   ', ' || columns, ', ' || given);
    DELETE FROM accord.feed WHERE name = 'f';
    RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, wrong = MESSAGE_TEXT;
    RETURN code || ' ' || wrong;
END
$$;
SELECT columns, given, pg_temp.try(columns, given) FROM (VALUES
    ('item_key', $$'$.id'$$), ('mode, item_key', $$'list', '$.'$$), ('mode', $$'list'$$), ('mode', $$'cursor'$$), ('mode', $$'since'$$),
    ('mode, updated, start', $$'since', '$.at', 'yesterdayish'$$), ('paging, item_key', $$'cursor', '$.id'$$),
    ('account, item_key', $$'nobody', '$.id'$$), ('account, item_key', $$'*', '$.id'$$),
    ('path, item_key', $$'/{x', '$.id'$$), ('query, item_key', $$'{"a": 1}', '$.id'$$), ('format', $$'ical'$$),
    ('format, mode, next_cursor', $$'ical', 'cursor', '$.x'$$), ('expand, item_key', $$'1 year', '$.id'$$),
    ('every, item_key', $$'1 ms', '$.id'$$), ('mapping_function, item_key', $$'f', '$.id'$$)) t (columns, given);
INSERT INTO accord.feed (name, channel, item_key, mapping) VALUES ('f', 'feed_ota', '$.id', '{"topic": "t", "target": "$.x"}');
ROLLBACK;

-- Requests: what is not there is left out of query and headers, but not of the path.
BEGIN;
SET client_min_messages = warning;
INSERT INTO accord.channel (name, base_url, headers)
    VALUES ('feed_ota', 'https://ota.example/v1/', '{"Accept": "application/json", "X-Of": "{payload.x}"}');
INSERT INTO accord.account (channel, name, vars) VALUES ('feed_ota', 'h 1', '{"id": "7/8"}');
INSERT INTO accord.feed (name, channel, account, path, query, headers, mode, paging, next_cursor, mapping) VALUES
    ('f', 'feed_ota', '*', '/{vars.id}/changes{?account}', '{"since": "{cursor}", "limit": "10", "a b": "c d"}',
     '{"accept": "text/plain", "X-Cursor": "{cursor}"}', 'cursor', 'cursor', '$.last', '{"topic": "t"}');
SELECT r.url, r.method, r.headers, r.error FROM accord.feed f, accord.pull_request('feed', f.id, 'h 1') r;
UPDATE accord.feed SET path = '/{cursor}';
SELECT r.url, r.error FROM accord.feed f, accord.pull_request('feed', f.id, 'h 1') r;
SELECT accord.utc_text('2026-12-01 10:00:00+01'), accord.utc_text('2026-12-01 10:00:00.25+00');
ROLLBACK;

SELECT accord.link_next(jsonb_build_object('link', l), 'https://ota.example/v1/list?page=1') FROM (VALUES
    ('<https://ota.example/v1/list?page=2>; rel="next"'), ('<?page=2>; rel=next'), ('</x#part>; rel="last next"'),
    ('<https://ota.example:443/y>; rel=next'), ('<?page=2>; rel=prev'), ('nonsense')) t (l);
SELECT accord.link_next('{"link": "<http://ota.example/>; rel=next"}', 'https://ota.example/');
SELECT accord.link_next('{"link": "<//other.example/>; rel=next"}', 'https://ota.example/');
SELECT accord.link_next('{"link": "<https://ota.example@other.example/>; rel=next"}', 'https://ota.example/');

-- iCalendars.
CREATE FUNCTION calendar(VARIADIC lines text[]) RETURNS text LANGUAGE sql AS $$
    SELECT array_to_string(ARRAY['BEGIN:VCALENDAR', 'VERSION:2.0', 'PRODID:-//test//EN', 'BEGIN:VTIMEZONE', 'TZID:Berlin',
        'BEGIN:STANDARD', 'DTSTART:19701025T030000', 'TZOFFSETFROM:+0200', 'TZOFFSETTO:+0100',
        'RRULE:FREQ=YEARLY;BYMONTH=10;BYDAY=-1SU', 'END:STANDARD', 'BEGIN:DAYLIGHT', 'DTSTART:19700329T020000',
        'TZOFFSETFROM:+0100', 'TZOFFSETTO:+0200', 'RRULE:FREQ=YEARLY;BYMONTH=3;BYDAY=-1SU', 'END:DAYLIGHT',
        'END:VTIMEZONE', 'BEGIN:VEVENT'] || lines || ARRAY['END:VEVENT', 'END:VCALENDAR', ''], E'\r\n')
$$;
SELECT jsonb_pretty(e) FROM accord.ical_events(calendar('UID:a', 'DTSTART;VALUE=DATE:20261224', 'DTEND;VALUE=DATE:20261227',
    'SUMMARY:Reserved\, Ann\nand Bob', 'DESCRIPTION:a long', '  line', 'STATUS:CONFIRMED', 'X-CODE:HM1', 'SEQUENCE:3'), NULL, NULL) e;
SELECT e ->> 'start' AS start, e ->> 'end' AS "end", e ->> 'start_at' AS start_at, e ->> 'end_at' AS end_at, e ->> 'tzid' AS tzid,
       e -> 'all_day' AS all_day, e -> 'cancelled' AS cancelled
FROM (VALUES
    (ARRAY['DTSTART;TZID=Berlin:20260701T100000', 'DTEND;TZID=Berlin:20260701T113000']),
    (ARRAY['DTSTART;TZID=Berlin:20261201T100000', 'DURATION:PT90M']),
    (ARRAY['DTSTART:20261201T100000Z', 'DTEND:20261201T110000Z', 'STATUS:CANCELLED']),
    (ARRAY['DTSTART:20261201T100000']),
    (ARRAY['DTSTART;VALUE=DATE:20261231']),
    (ARRAY['DTSTART;VALUE=DATE:20261231', 'DURATION:P2D'])) t (lines),
    accord.ical_events(calendar(VARIADIC ARRAY['UID:a'] || lines), NULL, NULL) e;
-- Of one key the latest; one without UID; repeating ones as rules.
SELECT e ->> 'key' AS key, e ->> 'summary' AS summary, e ->> 'rrule' AS rrule, e -> 'exdate' AS exdate
FROM accord.ical_events(calendar('UID:a', 'SEQUENCE:2', 'DTSTART:20261201T100000Z', 'SUMMARY:newer', 'END:VEVENT',
    'BEGIN:VEVENT', 'UID:a', 'SEQUENCE:1', 'DTSTART:20261201T100000Z', 'SUMMARY:older', 'END:VEVENT',
    'BEGIN:VEVENT', 'DTSTART;VALUE=DATE:20261201', 'SUMMARY:no uid', 'END:VEVENT',
    'BEGIN:VEVENT', 'UID:r', 'DTSTART;TZID=Berlin:20261023T100000', 'RRULE:FREQ=DAILY;COUNT=4', 'EXDATE;TZID=Berlin:20261024T100000',
    'END:VEVENT', 'BEGIN:VEVENT', 'UID:r', 'RECURRENCE-ID;TZID=Berlin:20261025T100000', 'DTSTART;TZID=Berlin:20261025T120000',
    'SUMMARY:moved'), NULL, NULL) e;
-- Expanded: over the end of summer time, without what is excepted, with what was moved.
SELECT e ->> 'key' AS key, e ->> 'start' AS start, e ->> 'start_at' AS start_at, e ->> 'end_at' AS end_at, e ->> 'summary' AS summary
FROM accord.ical_events(calendar('UID:r', 'SEQUENCE:5', 'DTSTART;TZID=Berlin:20261023T100000', 'DURATION:PT1H',
    'RRULE:FREQ=DAILY;COUNT=4', 'EXDATE;TZID=Berlin:20261024T100000', 'RDATE;TZID=Berlin:20261101T090000', 'END:VEVENT',
    'BEGIN:VEVENT', 'UID:r', 'RECURRENCE-ID;TZID=Berlin:20261025T100000', 'DTSTART;TZID=Berlin:20261025T120000', 'SUMMARY:moved',
    'END:VEVENT', 'BEGIN:VEVENT', 'UID:old', 'DTSTART;VALUE=DATE:20200101', 'RRULE:FREQ=YEARLY'),
    '2026-01-01', '2027-01-01') e;
SELECT count(*) FROM accord.ical_events(calendar('UID:s', 'DTSTART:20260101T000000Z', 'RRULE:FREQ=SECONDLY'), '2026-01-01', '2027-01-01');
SELECT count(*) FROM accord.ical_events('<html>', NULL, NULL);
SELECT count(*) FROM accord.ical_events('', NULL, NULL);
SELECT count(*) FROM accord.ical_events(replace(calendar('UID:a', 'DTSTART:20260101T000000Z'), 'END:VCALENDAR', ''), NULL, NULL);
SELECT count(*) FROM accord.ical_events(E'BEGIN:VCALENDAR\r\nEND:VCALENDAR', NULL, NULL);
SELECT count(*) FROM accord.ical_events(calendar('UID:a', 'DTSTART:rubbish', 'DTEND;TZID=Nowhere:20260101T000000'), NULL, NULL);
DROP FUNCTION calendar(text[]);
