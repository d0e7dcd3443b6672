-- receive: messages from channels take effect once.

CREATE FUNCTION accord.receive(source text, event_id text, topic text DEFAULT NULL, key text DEFAULT NULL,
                               changes jsonb DEFAULT NULL, occurred_at timestamptz DEFAULT NULL,
                               revision numeric DEFAULT NULL, op text DEFAULT NULL, target regclass DEFAULT NULL,
                               account text DEFAULT NULL) RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_receive';
COMMENT ON FUNCTION accord.receive(text, text, text, text, jsonb, timestamptz, numeric, text, regclass, text) IS 'receives a message from a source, once: as an event under a topic, or as a change of a table (target); returns {"status": "applied"|"partly"|"lost"|"ignored", "event_id", "applied", "lost", "row"}, and to a repetition the same with "duplicate": true';

CREATE FUNCTION accord.receive_batch(source text, messages jsonb) RETURNS SETOF jsonb
    LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME', 'accord_receive_batch';
COMMENT ON FUNCTION accord.receive_batch(text, jsonb) IS 'receives an array of messages, each an object of event_id, topic, target, key, op, changes, occurred_at, revision and account, in their order and in one transaction; returns the result of each';
