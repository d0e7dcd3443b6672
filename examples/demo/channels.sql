-- The channels: where they are, how they are spoken to, and which events become which requests.
-- psql variables: ota_url, calendar_url, messaging_url.

INSERT INTO accord.secret (name, value) VALUES
    ('ota-token', 'demo-token'),
    ('calendar-password', 'demo-password'),
    ('messaging-key', 'demo-key'),
    ('ota-hook', 'demo-hook-secret');

-- Times are short, because the show is; the defaults are made for the world outside.
INSERT INTO accord.channel (name, base_url, auth, stall_timeout, retry_base, retry_cap, breaker_failures,
                            breaker_cooldown, breaker_cap) VALUES
    ('ota', :'ota_url', '{"type": "bearer", "secret": "ota-token"}', '1 s', '100 ms', '2 s', 5, '500 ms', '1 s'),
    ('calendar', :'calendar_url', '{"type": "basic", "user": "host", "secret": "calendar-password"}',
     '2 s', '100 ms', '2 s', 5, '500 ms', '1 s'),
    ('messaging', :'messaging_url', '{"type": "header", "name": "X-Api-Key", "secret": "messaging-key"}',
     '1 s', '100 ms', '2 s', 5, '500 ms', '1 s');

-- What the booking site allows, a little less than it says.
INSERT INTO accord.rate_limit (channel, amount, period, burst) VALUES ('ota', 250, '1 s', 100);

-- Rates are state: only the latest matters, and putting it twice does no harm. Of changes of one night that have not been
-- sent yet only the newest is.
INSERT INTO accord.route (channel, topic, ops, method, path) VALUES
    ('ota', 'rate.*', '{insert,update}', 'PUT', '/listings/{payload.listing}/rates/{payload.night}'),
    ('ota', 'rate.*', '{delete}', 'DELETE', '/listings/{before.listing}/rates/{before.night}');

-- Guests book there, too. What changes is read from its feed: every five seconds, and whenever a webhook says that there is
-- news. It becomes rows of site_booking.
INSERT INTO accord.feed (name, channel, every, path, query, mode, paging, start, items, next_cursor, mapping) VALUES
    ('ota/bookings', 'ota', '5 s', '/changes', '{"since": "{cursor}"}', 'cursor', 'cursor', '0', '$.changes[*]', '$.last',
     '{"target": "public.site_booking", "key": "$.id", "changes": {"listing": "$.listing", "guest": "$.guest",
       "arrives": "$.arrives", "leaves": "$.leaves", "status": "$.status", "version": "$.version"}}');
INSERT INTO accord.source (name, verify, polls)
    VALUES ('ota', '{"type": "hmac", "header": "X-Signature", "prefix": "sha256=", "secrets": ["ota-hook"]}', '{ota/bookings}');

-- What it holds can be compared with what it was told: SELECT accord.reconcile('ota', repair => true).
INSERT INTO accord.reconciliation (name, channel, path, query, paging, item_key, topic, compared, grace) VALUES
    ('ota/rates', 'ota', '/nights', '{"page": "{page}"}', 'number', '$.id', 'rate.changed',
     '{"price": "$.price", "available": "$.available", "version": "$.version"}', '0');

-- A message is a command: it counts once. Its event's id is its Idempotency-Key, by which the service knows a repeat.
INSERT INTO accord.route (channel, topic, path, mode)
    VALUES ('messaging', 'message.*', '/messages', 'command');

-- A booking is an entry of the listing's calendar. SQL writes the iCalendar object; the entry of a cancelled booking
-- is deleted instead.
CREATE FUNCTION as_icalendar(event accord.event_log) RETURNS accord.http_request LANGUAGE sql STABLE AS $$
    SELECT CASE event.payload ->> 'status'
        WHEN 'cancelled' THEN ('DELETE', NULL, NULL, NULL)::accord.http_request
        ELSE (NULL, NULL, NULL, concat_ws(E'\r\n',
            'BEGIN:VCALENDAR',
            'VERSION:2.0',
            'PRODID:-//pg_accord//demo//EN',
            'BEGIN:VEVENT',
            'UID:booking-' || event.key,
            'DTSTAMP:' || to_char(event.occurred_at AT TIME ZONE 'UTC', 'YYYYMMDD"T"HH24MISS"Z"'),
            'DTSTART;VALUE=DATE:' || replace(event.payload ->> 'arrives', '-', ''),
            'DTEND;VALUE=DATE:' || replace(event.payload ->> 'leaves', '-', ''),
            'SEQUENCE:' || (event.payload ->> 'revision'),
            'SUMMARY:' || regexp_replace(event.payload ->> 'guest', '([\\;,])', '\\\1', 'g'),
            'END:VEVENT',
            'END:VCALENDAR', ''))::accord.http_request
    END
$$;
INSERT INTO accord.route (channel, topic, method, path, content_type, body_function)
    VALUES ('calendar', 'booking.*', 'PUT', '/host/listing-{payload.listing}/{key}.ics', 'text/calendar; charset=utf-8',
            'as_icalendar');
