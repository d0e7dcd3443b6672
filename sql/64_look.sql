-- look: what a channel would be sent, and whether it can be reached.

CREATE FUNCTION accord.preview_event(slot integer, tx_id bigint, ord integer, seq bigint, channel text, account text,
    OUT method text, OUT url text, OUT headers jsonb, OUT body text, OUT content bytea, OUT note text) RETURNS record
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'accord_preview_event';
COMMENT ON FUNCTION accord.preview_event(integer, bigint, integer, bigint, text, text) IS 'internal: the request that the event at this place makes';

CREATE FUNCTION accord.preview(event_id uuid, channel text, account text DEFAULT NULL,
    OUT method text, OUT url text, OUT headers jsonb, OUT body text, OUT content bytea, OUT note text) RETURNS record
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    place record;
BEGIN
    IF channel IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'no channel is given to look at',
            HINT = 'Give the name of a row of accord.channel.';
    END IF;
    SELECT e.slot, e.tx_id, e.ord, c.seq INTO place
    FROM accord.event_log e LEFT JOIN accord.commit_log c ON c.slot = e.slot AND c.tx_id = e.tx_id
    WHERE e.event_id = preview.event_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('event "%s" is not in the log', event_id),
            HINT = 'See accord.event_log; events are kept for accord.log_retention.';
    END IF;
    SELECT p.* INTO method, url, headers, body, content, note
    FROM accord.preview_event(place.slot::integer, place.tx_id, place.ord, coalesce(place.seq, 0), channel, account) p;
END
$$;
COMMENT ON FUNCTION accord.preview(uuid, text, text) IS 'the exact request that an event makes at a channel, sent or not: secrets masked, nothing sent, nothing written; note says what else there is to know';

CREATE FUNCTION accord.probe_endpoint(channel text, account text, path text, patience bigint,
    OUT ok boolean, OUT verdict text, OUT detail text, OUT status integer, OUT duration_ms real, OUT url text) RETURNS record
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'accord_probe';
COMMENT ON FUNCTION accord.probe_endpoint(text, text, text, bigint) IS 'internal: has the dispatcher call an endpoint, and waits for what it finds';

CREATE FUNCTION accord.probe(channel text, account text DEFAULT NULL, path text DEFAULT NULL,
    OUT ok boolean, OUT verdict text, OUT detail text, OUT status integer, OUT duration_ms real, OUT url text) RETURNS record
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c accord.channel;
BEGIN
    SELECT * INTO c FROM accord.channel t WHERE t.name = probe.channel;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('channel "%s" does not exist', channel),
            HINT = 'See accord.channel.';
    END IF;
    IF account IS NOT NULL AND NOT EXISTS (SELECT FROM accord.account a WHERE a.channel = c.name AND a.name = probe.account) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('account "%s" of channel "%s" does not exist', account, channel), HINT = 'See accord.account.';
    END IF;
    IF path IS NOT NULL THEN
        PERFORM accord.expand(path, '{}');
        IF path !~ '^([/?]|\{[/?]|$)' THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('path "%s" does not begin with "/"', path),
                HINT = 'It is appended to base_url.';
        END IF;
    END IF;
    SELECT p.* INTO ok, verdict, detail, status, duration_ms, url
    FROM accord.probe_endpoint(c.name, coalesce(account, ''), coalesce(path, c.probe_path),
                               (extract(epoch FROM c.connect_timeout + c.timeout) * 1000)::bigint) p;
END
$$;
COMMENT ON FUNCTION accord.probe(text, text, text) IS 'calls a channel once (GET of base_url and probe_path, or another path), with its credentials, and says in plain words whether it works or what is wrong';
