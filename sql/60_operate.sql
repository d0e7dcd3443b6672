-- operate: what a person does: redeliver, discard, adopt.

-- The backlog as it stands: the highest version of each delivery, as long as somebody must still do something.
CREATE VIEW accord.backlog AS
    SELECT b.seq, b.ord, b.channel, nullif(b.account, '') AS account, b.key, b.state, b.attempts,
           b.owed_since, b.attempted_at, b.due_at, b.recorded_at AS since, b.error, b.route, b.decided_by,
           b.tx_id, b.event_slot, b.version, b.priority, b.replay
    FROM (SELECT DISTINCT ON (l.channel, l.account, l.seq, l.ord) l.*
          FROM accord.backlog_log l
          ORDER BY l.channel, l.account, l.seq, l.ord, l.version DESC) b
    WHERE b.state IN ('scheduled', 'waiting', 'sending', 'retrying', 'replayed', 'accepted', 'verifying', 'held', 'dead');
COMMENT ON VIEW accord.backlog IS 'deliveries that are exceptions, as they stand: scheduled, waiting, sending, retrying, replayed, accepted, verifying, held or dead';

CREATE VIEW accord.dead_letter AS
    SELECT e.event_id, b.channel, b.account, e.topic, e.key, e.op, b.attempts, b.error, b.since AS died_at,
           b.owed_since, e.payload, b.seq, b.ord
    FROM accord.backlog b
    LEFT JOIN accord.event_log e ON e.slot = b.event_slot AND e.tx_id = b.tx_id AND e.ord = b.ord
    WHERE b.state = 'dead';
COMMENT ON VIEW accord.dead_letter IS 'deliveries that were given up, with the reason; see accord.redeliver() and accord.discard()';

-- Decisions are events: they take effect at commit, once, and in order, by the dispatcher that owns the endpoint.
CREATE FUNCTION accord.control_append(topic text, payload jsonb) RETURNS void
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'accord_control_append';
COMMENT ON FUNCTION accord.control_append(text, jsonb) IS 'internal: appends a decision about deliveries to the log';

CREATE FUNCTION accord.decide(topic text, selection jsonb[], reason text) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    total bigint := coalesce(array_length(selection, 1), 0);
    chunk jsonb;
BEGIN
    FOR i IN 0 .. (total - 1) / 200 LOOP
        EXIT WHEN total = 0;
        SELECT jsonb_agg(d) INTO chunk FROM unnest(selection[i * 200 + 1 : (i + 1) * 200]) AS d;
        PERFORM accord.control_append(topic, jsonb_build_object('deliveries', chunk, 'reason', reason));
    END LOOP;
    RETURN total;
END
$$;
COMMENT ON FUNCTION accord.decide(text, jsonb[], text) IS 'internal: writes a selection of deliveries as decisions, 200 to an event';

CREATE FUNCTION accord.select_deliveries(channel text, account text, topic text, key text, state text, error text,
                                         since timestamptz, until timestamptz) RETURNS jsonb[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(jsonb_build_array(b.seq, b.ord, b.event_slot, b.tx_id, b.channel, coalesce(b.account, ''), b.version)
                     ORDER BY b.seq, b.ord)
    FROM accord.backlog b
    LEFT JOIN accord.event_log e ON e.slot = b.event_slot AND e.tx_id = b.tx_id AND e.ord = b.ord
    WHERE b.channel = select_deliveries.channel
      AND (select_deliveries.account IS NULL OR b.account IS NOT DISTINCT FROM nullif(select_deliveries.account, ''))
      AND (select_deliveries.topic IS NULL OR e.topic LIKE replace(replace(replace(replace(select_deliveries.topic,
               '\', '\\'), '%', '\%'), '_', '\_'), '*', '%'))
      AND (select_deliveries.key IS NULL OR b.key = select_deliveries.key)
      AND b.state = select_deliveries.state
      AND (select_deliveries.error IS NULL OR b.error LIKE select_deliveries.error)
      AND (select_deliveries.since IS NULL OR b.since >= select_deliveries.since)
      AND (select_deliveries.until IS NULL OR b.since < select_deliveries.until)
$$;
COMMENT ON FUNCTION accord.select_deliveries(text, text, text, text, text, text, timestamptz, timestamptz) IS 'internal: the deliveries of the backlog that redeliver() and discard() are asked for';

CREATE FUNCTION accord.check_state(state text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF state IS NULL OR state NOT IN ('scheduled', 'waiting', 'sending', 'retrying', 'replayed', 'accepted', 'verifying', 'held', 'dead') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('no delivery in the backlog is in state "%s"', state),
            HINT = 'Give one of scheduled, waiting, sending, retrying, replayed, accepted, verifying, held, dead.';
    END IF;
END
$$;
COMMENT ON FUNCTION accord.check_state(text) IS 'internal: raises unless the word is a state of the backlog';

-- A channel that was removed may still have held or dead deliveries. An event's id that is not typed as a uuid arrives here.
CREATE FUNCTION accord.check_decided_channel(channel text) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM accord.channel c WHERE c.name = channel)
        OR EXISTS (SELECT FROM accord.backlog b WHERE b.channel = check_decided_channel.channel) THEN
        RETURN;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'undefined_object',
        MESSAGE = format('channel "%s" does not exist', channel),
        HINT = CASE WHEN channel ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
                    THEN format('To decide about one event, give its id as a uuid: uuid %L.', channel)
                    ELSE 'See SELECT name FROM accord.channel.' END;
END
$$;
COMMENT ON FUNCTION accord.check_decided_channel(text) IS 'internal: raises unless there is such a channel, or something left of it';

CREATE FUNCTION accord.redeliver(channel text, account text DEFAULT NULL, topic text DEFAULT NULL,
                                 key text DEFAULT NULL, state text DEFAULT 'dead', error text DEFAULT NULL,
                                 since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL,
                                 reason text DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM accord.check_state(state);
    PERFORM accord.check_decided_channel(channel);
    RETURN accord.decide('accord.redeliver', accord.select_deliveries(channel, account, topic, key, state, error,
                                                                      since, until), reason);
END
$$;
COMMENT ON FUNCTION accord.redeliver(text, text, text, text, text, text, timestamptz, timestamptz, text) IS 'owes deliveries of the backlog again, at commit: by default a channel''s dead letters; topic may hold *, error is a LIKE pattern, since and until bound when they got into that state. Returns how many';

CREATE FUNCTION accord.discard(channel text, account text DEFAULT NULL, topic text DEFAULT NULL,
                               key text DEFAULT NULL, state text DEFAULT 'dead', error text DEFAULT NULL,
                               since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL,
                               reason text DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM accord.check_state(state);
    PERFORM accord.check_decided_channel(channel);
    RETURN accord.decide('accord.discard', accord.select_deliveries(channel, account, topic, key, state, error,
                                                                    since, until), reason);
END
$$;
COMMENT ON FUNCTION accord.discard(text, text, text, text, text, text, timestamptz, timestamptz, text) IS 'gives up deliveries of the backlog, at commit: by default a channel''s dead letters; arguments as of accord.redeliver(). Returns how many';

-- One event, whatever became of it: its deliveries that were ever tried or are in the backlog.
CREATE FUNCTION accord.select_event(event_id uuid, channel text, account text) RETURNS jsonb[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(DISTINCT jsonb_build_array(c.seq, e.ord, e.slot, e.tx_id, d.channel, d.account))
    FROM accord.event_log e
    JOIN accord.commit_log c ON c.slot = e.slot AND c.tx_id = e.tx_id
    CROSS JOIN LATERAL (
        SELECT a.channel, a.account FROM accord.attempt_log a WHERE a.seq = c.seq AND a.ord = e.ord
        UNION
        SELECT b.channel, b.account FROM accord.backlog_log b WHERE b.seq = c.seq AND b.ord = e.ord
    ) d
    WHERE e.event_id = select_event.event_id
      AND (select_event.channel IS NULL OR d.channel = select_event.channel)
      AND (select_event.account IS NULL OR d.account = select_event.account)
$$;
COMMENT ON FUNCTION accord.select_event(uuid, text, text) IS 'internal: the deliveries of one event';

CREATE FUNCTION accord.redeliver(event_id uuid, channel text DEFAULT NULL, account text DEFAULT NULL,
                                 reason text DEFAULT NULL) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT accord.decide('accord.redeliver', accord.select_event(event_id, channel, account), reason)
$$;
COMMENT ON FUNCTION accord.redeliver(uuid, text, text, text) IS 'owes one event again, at commit, to the channels it was delivered or owed to, whatever became of it; the idempotency key stays the same. Over a selection: SELECT accord.redeliver(event_id, channel, account) FROM accord.dead_letter WHERE ...';

-- What of one event can still be given up: it is in the backlog, or waits in the log and was not settled.
CREATE FUNCTION accord.unread(seq bigint, ord integer) RETURNS TABLE (channel text, account text)
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'accord_unread';
COMMENT ON FUNCTION accord.unread(bigint, integer) IS 'internal: endpoints that an event is routed to and that no position or cursor has passed it for';

CREATE FUNCTION accord.select_owed(event_id uuid, channel text, account text) RETURNS jsonb[]
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(DISTINCT jsonb_build_array(c.seq, e.ord, e.slot, e.tx_id, d.channel, d.account))
    FROM accord.event_log e
    JOIN accord.commit_log c ON c.slot = e.slot AND c.tx_id = e.tx_id
    CROSS JOIN LATERAL (
        SELECT b.channel, coalesce(b.account, '') FROM accord.backlog b WHERE b.seq = c.seq AND b.ord = e.ord
        UNION
        SELECT u.channel, u.account FROM accord.unread(c.seq, e.ord) u
        WHERE NOT EXISTS (SELECT FROM accord.attempt_log a
                          WHERE a.seq = c.seq AND a.ord = e.ord AND a.channel = u.channel AND a.account = u.account
                            AND a.outcome IN ('delivered', 'skipped', 'superseded', 'expired', 'discarded'))
          AND NOT EXISTS (SELECT FROM accord.backlog_log b
                          WHERE b.seq = c.seq AND b.ord = e.ord AND b.channel = u.channel AND b.account = u.account)
    ) AS d (channel, account)
    WHERE e.event_id = select_owed.event_id
      AND (select_owed.channel IS NULL OR d.channel = select_owed.channel)
      AND (select_owed.account IS NULL OR d.account = select_owed.account)
$$;
COMMENT ON FUNCTION accord.select_owed(uuid, text, text) IS 'internal: the deliveries of one event that are still owed, or dead';

CREATE FUNCTION accord.discard(event_id uuid, channel text DEFAULT NULL, account text DEFAULT NULL,
                               reason text DEFAULT NULL) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT accord.decide('accord.discard', accord.select_owed(event_id, channel, account), reason)
$$;
COMMENT ON FUNCTION accord.discard(uuid, text, text, text) IS 'gives up what is still owed of one event, at commit: cancelled, if it was not sent; else given up if it fails. Over a selection: SELECT accord.discard(event_id, ''ota'') FROM accord.outbox WHERE ...';

-- Pausing: a row of accord.paused stops an endpoint; an event says so to the log, and by it to endpoint_log.
CREATE FUNCTION accord.find_endpoint(channel text, account text) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM accord.channel c WHERE c.name = find_endpoint.channel) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('channel "%s" does not exist', channel),
            HINT = 'See SELECT name FROM accord.channel.';
    END IF;
    IF account IS NOT NULL AND NOT EXISTS (SELECT FROM accord.account a WHERE a.channel = find_endpoint.channel
                                                                          AND a.name = find_endpoint.account) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('channel "%s" has no account "%s"', channel, account),
            HINT = 'See SELECT name FROM accord.account; a null account means the channel with all its accounts.';
    END IF;
END
$$;
COMMENT ON FUNCTION accord.find_endpoint(text, text) IS 'internal: raises unless the channel, and the account when one is given, exist';

CREATE FUNCTION accord.pause(channel text, account text DEFAULT NULL, reason text DEFAULT NULL,
                             until timestamptz DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM accord.find_endpoint(channel, account);
    until := nullif(until, 'infinity');
    IF until <= now() THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('channel "%s" cannot be paused until a time that has passed', channel),
            HINT = 'Give a time to come, or none: then accord.resume() ends the pause.';
    END IF;
    INSERT INTO accord.paused AS p (channel, account, reason, actor, until)
        VALUES (pause.channel, pause.account, pause.reason,
                coalesce(nullif(current_setting('accord.actor', true), ''), session_user), pause.until)
        ON CONFLICT (channel, (coalesce(account, '')))
        DO UPDATE SET reason = excluded.reason, actor = excluded.actor, since = excluded.since, until = excluded.until;
    PERFORM accord.control_append('accord.pause', jsonb_build_object(
        'channel', channel, 'account', account, 'reason', reason,
        'until_us', ((extract(epoch FROM until) - 946684800) * 1000000)::bigint::text));
END
$$;
COMMENT ON FUNCTION accord.pause(text, text, text, timestamptz) IS 'stops a channel, or one account of it, at commit: nothing more is sent, what it is owed waits in the log; until a time, or until accord.resume()';

CREATE FUNCTION accord.resume(channel text, account text DEFAULT NULL, reason text DEFAULT NULL) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was_paused boolean;
BEGIN
    PERFORM accord.find_endpoint(channel, account);
    DELETE FROM accord.paused p
        WHERE p.channel = resume.channel AND p.account IS NOT DISTINCT FROM resume.account;
    was_paused := FOUND;
    PERFORM accord.control_append('accord.resume',
                                  jsonb_build_object('channel', channel, 'account', account, 'reason', reason));
    RETURN was_paused;
END
$$;
COMMENT ON FUNCTION accord.resume(text, text, text) IS 'lets a channel, or one account of it, go on, at commit: ends a pause, closes its circuit breaker, forgets what the server asked for, and tries at once what is retried. Returns whether it was paused. A channel''s pause is not one of its accounts'', nor the other way round';

CREATE FUNCTION accord.adopt() RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- beside a restored row there is the one of CREATE EXTENSION, at zero
    start bigint := (SELECT max(position) FROM accord.checkpoint);
    highest bigint := (SELECT max(seq) FROM accord.commit_log);
    position bigint;
BEGIN
    -- A restored position may be ahead of the rows that were restored with it: what it passed would be lost.
    FOR i IN 0 .. 15 LOOP
        EXECUTE format('SELECT last_value FROM accord.position_%s', i) INTO position;
        PERFORM setval(format('accord.position_%s', i)::regclass, least(position, start, highest));
    END LOOP;
    IF highest > (SELECT last_value FROM accord.commit_seq) THEN
        PERFORM setval('accord.commit_seq', highest);
    END IF;
    DELETE FROM accord.checkpoint;
    INSERT INTO accord.checkpoint (position, recorded_at) VALUES (start, now());
    PERFORM accord.take_identity();
    -- Dispatchers that are there began when this was a copy, perhaps an empty one.
    PERFORM accord.launch();
END
$$;
COMMENT ON FUNCTION accord.adopt() IS 'lets a copy of a database dispatch: from now on it takes the place of the original, which must be silent';
COMMENT ON TABLE accord.identity IS 'the cluster and database whose data this is (zero: restored); in another one it is a copy and stays silent until accord.adopt()';

CREATE FUNCTION accord.launch() RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'accord_launch';
COMMENT ON FUNCTION accord.launch() IS 'asks the launcher, at commit, to look whether this database needs dispatchers; CREATE EXTENSION calls it';
