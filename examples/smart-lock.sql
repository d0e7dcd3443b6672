-- A smart lock: each stay has a code on its door, valid from arrival to departure (Seam's API: https://docs.seam.co).
--
--   psql -v url=https://connect.getseam.com -v key=THE_KEY -f examples/smart-lock.sql
--
-- A code is created with the stay, updated when the stay changes, and deleted when it is cancelled or gone. The API gives codes
-- ids of its own, says "setting" or "pending" first and the outcome later, and refuses a second code of the same digits on one
-- door with 409, which is what a create meets whose first answer was lost.

CREATE TABLE stay (
    id text PRIMARY KEY,
    door text NOT NULL,                 -- Seam's device_id
    guest text NOT NULL,
    code text NOT NULL CHECK (code ~ '^[0-9]{4,8}$'),
    arrival timestamptz NOT NULL,
    departure timestamptz NOT NULL CHECK (departure > arrival),
    cancelled boolean NOT NULL DEFAULT false
);
SELECT accord.capture('stay', condition => 'NOT cancelled');            -- a stay that is cancelled is a delete

INSERT INTO accord.secret (name, value) VALUES ('lock/key', :'key');
INSERT INTO accord.channel (name, base_url, auth, idempotency_header)
    VALUES ('lock', :'url', '{"type": "bearer", "secret": "lock/key"}', NULL);
INSERT INTO accord.rate_limit (channel, bucket, amount, period) VALUES
    ('lock', '', 300, '1 min'), ('lock', '{payload.door}', 10, '1 min');                 -- a door takes its time

-- The body of all three requests; of a create there is no id yet, of a delete nothing else.
CREATE FUNCTION lock_code(e accord.event_log) RETURNS accord.http_request
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ROW(NULL, NULL, NULL, jsonb_strip_nulls(jsonb_build_object(
        'access_code_id', (accord.remote('lock', 'access_code', e.key)).id,
        'device_id', e.payload ->> 'door', 'name', e.payload ->> 'guest', 'code', e.payload ->> 'code',
        'starts_at', e.payload ->> 'arrival', 'ends_at', e.payload ->> 'departure')))::accord.http_request
$$;

INSERT INTO accord.route (channel, topic, ops, remote, remote_when, path, remote_id, lookup, poll, body_function) VALUES
    ('lock', 'stay', '{insert,update}', 'access_code', 'unknown', '/access_codes/create', '$.access_code.access_code_id',
     '{"path": "/access_codes/list?device_id={payload.door}",
       "id": "$.access_codes[*] ? (@.code == $payload.code).access_code_id"}',
     '{"path": "/access_codes/get?access_code_id={answer.access_code.access_code_id}", "every": "5 s", "deadline": "15 min"}',
     'lock_code'),
    ('lock', 'stay', '{insert,update}', 'access_code', 'known', '/access_codes/update', NULL, NULL,
     '{"path": "/action_attempts/get?action_attempt_id={answer.action_attempt.action_attempt_id}", "every": "5 s",
       "deadline": "15 min"}', 'lock_code'),
    ('lock', 'stay', '{delete}', 'access_code', 'known', '/access_codes/delete', NULL, NULL,
     '{"path": "/action_attempts/get?action_attempt_id={answer.action_attempt.action_attempt_id}", "every": "5 s",
       "deadline": "15 min"}', 'lock_code');

INSERT INTO accord.rule (channel, position, status, body, outcome, error) VALUES
    ('lock', 10, '2xx', '$.access_code ? (@.status == "setting")', 'accepted', NULL),
    ('lock', 20, '2xx', '$.action_attempt ? (@.status == "pending")', 'accepted', NULL),
    ('lock', 30, '2xx', '$.action_attempt ? (@.status == "error")', 'rejected', '$.action_attempt.error.message'),
    ('lock', 40, '2xx', '$.access_code.errors[*].error_code', 'rejected', '$.access_code.errors[*].message'),
    ('lock', 50, '404', '$.error ? (@.type == "access_code_not_found")', 'gone', NULL);    -- somebody deleted it: made anew

-- What is on which door: SELECT key, id, updated_at FROM accord.remote_id WHERE channel = 'lock' AND kind = 'access_code'.
-- What did not work out: SELECT key, error FROM accord.dead_letter WHERE channel = 'lock'.
