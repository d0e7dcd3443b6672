-- receive: messages from channels take effect once.

CREATE FUNCTION accord.receive(source text, event_id text, topic text DEFAULT NULL, key text DEFAULT NULL,
                               changes jsonb DEFAULT NULL, occurred_at timestamptz DEFAULT NULL,
                               revision numeric DEFAULT NULL, op text DEFAULT NULL, target regclass DEFAULT NULL,
                               account text DEFAULT NULL, base jsonb DEFAULT NULL) RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_receive';
COMMENT ON FUNCTION accord.receive(text, text, text, text, jsonb, timestamptz, numeric, text, regclass, text, jsonb) IS 'receives a message from a source, once: as an event under a topic, or as a change of a table (target); returns {"status": "applied"|"partly"|"lost"|"ignored", "event_id", "applied", "lost", "row"}, and to a repetition the same with "duplicate": true';

CREATE FUNCTION accord.receive_batch(source text, messages jsonb) RETURNS SETOF jsonb
    LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME', 'accord_receive_batch';
COMMENT ON FUNCTION accord.receive_batch(text, jsonb) IS 'receives an array of messages, each an object of event_id, topic, target, key, op, changes, occurred_at, revision, account and base, in their order and in one transaction; returns the result of each';

-- Webhooks: what arrives at a web server, with its headers and the bytes of its body as they are.
CREATE FUNCTION accord.receive_webhook(source text, headers jsonb, body bytea) RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_receive_webhook';
COMMENT ON FUNCTION accord.receive_webhook(text, jsonb, bytea) IS 'checks a webhook''s signature as accord.source says, makes messages of it by the source''s mapping, and receives them as the source''s owner; null headers: those that PostgREST sets as request.headers. Returns the result, or an array of several';

-- What PostgREST can call: POST /rpc/NAME with any body, whatever its Content-Type. A json parameter is the body to the
-- letter, blanks included.
CREATE FUNCTION accord.expose_webhook(source text, schema regnamespace, name text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    parameter record;
    signature text;
BEGIN
    IF NOT EXISTS (SELECT FROM accord.source s WHERE s.name = source) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('source "%s" does not exist', source), HINT = 'INSERT INTO accord.source first.';
    END IF;
    FOR parameter IN SELECT * FROM (VALUES ('json', 'pg_catalog.convert_to($1::text, ''UTF8'')'), ('bytea', '$1'),
                                           ('text', 'pg_catalog.convert_to($1, ''UTF8'')')) p (type, bytes) LOOP
        signature := format('%s.%I(%s)', schema, coalesce(name, source || '_webhook'), parameter.type);
        EXECUTE format('CREATE FUNCTION %s RETURNS jsonb LANGUAGE sql VOLATILE SECURITY DEFINER '
                       'SET search_path = pg_catalog, pg_temp AS %L',
                       signature, format('SELECT accord.receive_webhook(%L, NULL, %s)', source, parameter.bytes));
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        EXECUTE format('COMMENT ON FUNCTION %s IS %L', signature,
                       format('receives a webhook of source "%s" by PostgREST; made by accord.expose_webhook()', source));
    END LOOP;
END
$$;
COMMENT ON FUNCTION accord.expose_webhook(text, regnamespace, text) IS 'creates in a schema the functions by which PostgREST receives webhooks of a source: POST /rpc/SOURCE_webhook; grant EXECUTE on them to whom the web server calls them as';
