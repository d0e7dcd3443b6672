-- ring: the logs' slots move on, and the oldest are emptied when nothing needs them any more.
-- Run by the keeper, which dispatcher 0 starts at most once a minute and only when it is awake; by hand with
-- accord.turn_rings().

CREATE FUNCTION accord.ring_truncate(tables text) RETURNS void
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'accord_ring_truncate';
COMMENT ON FUNCTION accord.ring_truncate(text) IS 'internal: truncates slots of a ring past their guard';

CREATE FUNCTION accord.ring_retention(setting text) RETURNS interval
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.setting::integer * interval '1 minute' FROM pg_settings s WHERE s.name = ring_retention.setting
$$;
COMMENT ON FUNCTION accord.ring_retention(text) IS 'internal: a retention setting as an interval';

-- retirement: what was archived and emptied of the logs, and when; the horizon of every reader.
--   log                  'event' (event_log and commit_log) or 'attempt' (attempt_log and endpoint_log)
--   first_seq, last_seq  of events: the lowest and the highest commit number in the slot
--   oldest, newest       the first and the last time of commit, or of recording
--   archived_at          when it was copied out; null: it was not
--   truncated_at         null: it is still there
-- An archive function gets such a row, before its slot is emptied.
CREATE TABLE accord.retirement (
    log text NOT NULL CHECK (log IN ('event', 'attempt')),
    slot smallint NOT NULL,
    first_seq bigint,
    last_seq bigint,
    oldest timestamptz NOT NULL,
    newest timestamptz NOT NULL,
    bytes bigint NOT NULL,
    archived_at timestamptz,
    truncated_at timestamptz
);
COMMENT ON TABLE accord.retirement IS 'the slots of the logs that were archived or emptied: what was in them, and when; what an archive function is called with';

-- Whether a consumer still reads a slot: it has not come by all of it, and what is in it is not older than its max_lag.
CREATE FUNCTION accord.consumer_claims(last_seq bigint, newest timestamptz) RETURNS SETOF text
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.name
    FROM accord.consumer c CROSS JOIN LATERAL accord.consumer_position(c.id) p
    WHERE p > 0 AND p < last_seq
      AND newest > now() - coalesce(c.max_lag, nullif(accord.ring_retention('accord.consumer_max_lag'), interval '0'),
                                    interval '1000 years')
    ORDER BY c.name
$$;
COMMENT ON FUNCTION accord.consumer_claims(bigint, timestamptz) IS 'internal: the consumers that a slot of the event log is kept for';

-- A slot's tables, locked without waiting, so that nobody is held up: false when somebody is reading or writing them.
CREATE FUNCTION accord.ring_lock(tables text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE 'LOCK TABLE ' || tables || ' IN ACCESS EXCLUSIVE MODE NOWAIT';
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;
COMMENT ON FUNCTION accord.ring_lock(text) IS 'internal: locks slots of a ring, or says that they are in use';

-- Whether they could be locked now; they are not then.
CREATE FUNCTION accord.ring_probe(tables text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    BEGIN
        EXECUTE 'LOCK TABLE ' || tables || ' IN ACCESS EXCLUSIVE MODE NOWAIT';
        RAISE EXCEPTION USING ERRCODE = 'AC000', MESSAGE = 'give the lock back';
    EXCEPTION WHEN lock_not_available THEN
        RETURN false;
    WHEN SQLSTATE 'AC000' THEN
        RETURN true;
    END;
END
$$;
COMMENT ON FUNCTION accord.ring_probe(text) IS 'internal: whether slots of a ring could be locked';

-- How far every dispatcher has come.
CREATE FUNCTION accord.lowest_position() RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    dispatchers bigint;
    lowest bigint;
    position bigint;
BEGIN
    SELECT last_value INTO dispatchers FROM accord.dispatcher_count;
    FOR i IN 0 .. greatest(dispatchers, 1) - 1 LOOP
        EXECUTE format('SELECT last_value FROM accord.position_%s', i) INTO position;
        lowest := least(lowest, position);
    END LOOP;
    RETURN lowest;
END
$$;
COMMENT ON FUNCTION accord.lowest_position() IS 'internal: the lowest position of the dispatchers';

-- How far every dispatcher, every endpoint that lags, every replay, and the checkpoint have come.
CREATE FUNCTION accord.ring_floor() RETURNS bigint
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT least(accord.lowest_position(), (SELECT min(position) FROM accord.checkpoint),
                 (SELECT min(r.first_seq) - 1 FROM accord.replay_needs() r),
                 (SELECT min(c.seq) - 1 FROM (SELECT DISTINCT ON (channel, account, priority) seq FROM accord.cursor_log
                                              ORDER BY channel, account, priority, version DESC) c))
$$;
COMMENT ON FUNCTION accord.ring_floor() IS 'internal: the commit number up to which no dispatcher will read the logs again';

-- What is in a slot: read from both its ends. Null when it is empty.
CREATE FUNCTION accord.ring_bounds(log text, slot integer) RETURNS accord.retirement
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result accord.retirement;
    pages bigint;
BEGIN
    result.log := log;
    result.slot := slot;
    IF log = 'event' THEN
        EXECUTE format('SELECT seq, committed_at FROM accord.commit_log_%s ORDER BY seq LIMIT 1', slot)
            INTO result.first_seq, result.oldest;
        EXECUTE format('SELECT seq, committed_at FROM accord.commit_log_%s ORDER BY seq DESC LIMIT 1', slot)
            INTO result.last_seq, result.newest;
    ELSE
        EXECUTE format('SELECT recorded_at FROM accord.attempt_log_%s LIMIT 1', slot) INTO result.oldest;
        -- its last pages; all of them where these hold nothing that counts
        pages := pg_relation_size(format('accord.attempt_log_%s', slot)) / current_setting('block_size')::bigint;
        FOR i IN 1 .. 2 LOOP
            EXIT WHEN result.newest IS NOT NULL OR result.oldest IS NULL;
            EXECUTE format('SELECT max(recorded_at) FROM accord.attempt_log_%s WHERE ctid >= %L', slot,
                           format('(%s,0)', CASE i WHEN 1 THEN greatest(pages - 8, 0) ELSE 0 END)) INTO result.newest;
        END LOOP;
    END IF;
    IF result.newest IS NULL THEN
        RETURN NULL;
    END IF;
    result.bytes := accord.ring_bytes(log, slot);
    RETURN result;
END
$$;
COMMENT ON FUNCTION accord.ring_bounds(text, integer) IS 'internal: what is in a slot of the event or the attempt log; null when it is empty';

CREATE FUNCTION accord.ring_tables(log text, slot integer) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(CASE log WHEN 'event' THEN 'accord.event_log_%1$s, accord.commit_log_%1$s'
                           WHEN 'attempt' THEN 'accord.attempt_log_%1$s, accord.endpoint_log_%1$s'
                           WHEN 'backlog' THEN 'accord.backlog_log_%1$s, accord.cursor_log_%1$s, accord.replay_log_%1$s'
                           WHEN 'consumer' THEN 'accord.consumer_log_%1$s' END, slot)
$$;
COMMENT ON FUNCTION accord.ring_tables(text, integer) IS 'internal: the tables of a slot';

CREATE FUNCTION accord.ring_bytes(log text, slot integer) RETURNS bigint
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT sum(pg_total_relation_size(t::regclass))::bigint
    FROM unnest(string_to_array(accord.ring_tables(log, slot), ', ')) AS t
$$;
COMMENT ON FUNCTION accord.ring_bytes(text, integer) IS 'internal: what a slot takes, indexes and TOAST included';

-- The bound of a log's size; null: there is none.
CREATE FUNCTION accord.ring_max_bytes(log text) RETURNS bigint
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT nullif(s.setting::bigint, 0) * 1024 * 1024 FROM pg_settings s
    WHERE s.name = CASE log WHEN 'event' THEN 'accord.log_max_size' ELSE 'accord.attempt_max_size' END
$$;
COMMENT ON FUNCTION accord.ring_max_bytes(text) IS 'internal: accord.log_max_size or accord.attempt_max_size in bytes; null when it is 0';

-- Whether a slot is past its time, or its log has outgrown its size.
CREATE FUNCTION accord.ring_is_due(slot accord.retirement) RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT slot.newest <= now() - accord.ring_retention(CASE slot.log WHEN 'event' THEN 'accord.log_retention'
                                                                      ELSE 'accord.attempt_retention' END)
        OR coalesce((SELECT sum(accord.ring_bytes(slot.log, s)) FROM generate_series(0, 7) s)
                    > accord.ring_max_bytes(slot.log), false)
$$;
COMMENT ON FUNCTION accord.ring_is_due(accord.retirement) IS 'internal: whether a slot is past retention, by age or by size';

-- Who still needs a slot, and whether it must wait for its time.
CREATE FUNCTION accord.ring_needs(slot accord.retirement) RETURNS SETOF text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_needed boolean;
BEGIN
    IF NOT accord.ring_is_due(slot) THEN
        RETURN NEXT 'retention';
    END IF;
    IF slot.log = 'attempt' THEN
        -- What was settled beyond the floor must be known when it is read again.
        EXECUTE format('SELECT EXISTS (SELECT FROM accord.attempt_log_%s WHERE seq > $1 AND outcome = ANY ($2))', slot.slot)
            INTO is_needed
            USING accord.ring_floor(), ARRAY['delivered', 'skipped', 'superseded', 'expired', 'discarded'];
        IF is_needed THEN
            RETURN NEXT 'dispatch';
        END IF;
        RETURN;
    END IF;
    IF slot.last_seq > least(accord.lowest_position(), (SELECT min(c.position) FROM accord.checkpoint c)) THEN
        RETURN NEXT 'dispatch';
    END IF;
    RETURN QUERY SELECT DISTINCT 'channel ' || c.channel
        FROM (SELECT DISTINCT ON (l.channel, l.account, l.priority) l.seq, l.channel FROM accord.cursor_log l
              ORDER BY l.channel, l.account, l.priority, l.version DESC) c
        WHERE c.seq - 1 < slot.last_seq;
    RETURN QUERY SELECT DISTINCT 'backlog of ' || b.channel FROM accord.backlog b
        WHERE b.event_slot = slot.slot AND b.state <> 'dead';
    IF slot.last_seq > coalesce((SELECT max(s.size) FROM accord.seal s), 0) THEN
        RETURN NEXT 'seal';
    END IF;
    RETURN QUERY SELECT 'replay ' || r.job FROM accord.replay_needs() r WHERE r.first_seq <= slot.last_seq;
    RETURN QUERY SELECT 'consumer ' || c FROM accord.consumer_claims(slot.last_seq, slot.newest) c;
END
$$;
COMMENT ON FUNCTION accord.ring_needs(accord.retirement) IS 'internal: what a slot of the event or the attempt log is kept for, besides its archive';

-- Whether a slot must still be copied out, as it stands.
CREATE FUNCTION accord.ring_unarchived(slot accord.retirement) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM accord.archive a WHERE a.log = slot.log AND a.enabled)
       AND NOT EXISTS (SELECT FROM accord.retirement r
                       WHERE r.log = slot.log AND r.slot = slot.slot AND r.truncated_at IS NULL
                         AND r.newest = slot.newest AND r.last_seq IS NOT DISTINCT FROM slot.last_seq);
END
$$;
COMMENT ON FUNCTION accord.ring_unarchived(accord.retirement) IS 'internal: whether a slot is to be archived and is not';

-- Empties a log's oldest slots, as far as they may go; it holds its lock for an instant, and waits for none.
CREATE FUNCTION accord.ring_empty(log text, turns bigint) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    slot accord.retirement;
    tables text;
BEGIN
    FOR i IN 1 .. 7 LOOP
        slot := accord.ring_bounds(log, ((turns + i) % 8)::integer);
        CONTINUE WHEN slot.newest IS NULL;
        EXIT WHEN EXISTS (SELECT FROM accord.ring_needs(slot)) OR accord.ring_unarchived(slot);
        tables := accord.ring_tables(log, slot.slot);
        -- What takes long is done before the lock, unless that could not be had.
        EXIT WHEN NOT accord.ring_probe(tables);
        IF log = 'event' THEN
            PERFORM accord.seal_keep_slot(slot);
        END IF;
        EXIT WHEN NOT accord.ring_lock(tables);
        -- Somebody may have committed into it before the lock.
        slot := accord.ring_bounds(log, slot.slot);
        EXIT WHEN EXISTS (SELECT FROM accord.ring_needs(slot)) OR accord.ring_unarchived(slot);
        UPDATE accord.retirement r SET truncated_at = now()
            WHERE r.log = slot.log AND r.slot = slot.slot AND r.truncated_at IS NULL;
        IF NOT FOUND THEN
            slot.truncated_at := now();
            INSERT INTO accord.retirement SELECT slot.*;
        END IF;
        PERFORM accord.ring_truncate(tables);
    END LOOP;
END
$$;
COMMENT ON FUNCTION accord.ring_empty(text, bigint) IS 'internal: empties the oldest slots of the event or the attempt log that nothing needs any more';

-- It moves on when the current slot holds its share of the retention, or of the size, and the next one is empty.
CREATE FUNCTION accord.ring_may_move(log text, turns bigint, force boolean) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    current accord.retirement := accord.ring_bounds(log, (turns % 8)::integer);
    kept interval := accord.ring_retention(CASE log WHEN 'event' THEN 'accord.log_retention'
                                                    ELSE 'accord.attempt_retention' END);
    is_empty boolean;
BEGIN
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM accord.%s_log_%s)', log, (turns + 1) % 8) INTO is_empty;
    RETURN is_empty AND (force OR coalesce(current.oldest < now() - kept / 6, false)
                         OR coalesce(current.bytes > accord.ring_max_bytes(log) / 6, false));
END
$$;
COMMENT ON FUNCTION accord.ring_may_move(text, bigint, boolean) IS 'internal: whether the event or the attempt log is to go on in its next slot';

CREATE FUNCTION accord.turn_log_ring(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    turns bigint := (SELECT last_value FROM accord.log_slot);
BEGIN
    PERFORM accord.ring_empty('event', turns);
    IF accord.ring_may_move('event', turns, force) THEN
        PERFORM setval('accord.log_slot', turns + 1);
    END IF;
END
$$;
COMMENT ON FUNCTION accord.turn_log_ring(boolean) IS 'internal: moves event_log and commit_log to their next slot and empties those past accord.log_retention';

CREATE FUNCTION accord.turn_attempt_ring(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    turns bigint := (SELECT last_value FROM accord.attempt_slot);
BEGIN
    PERFORM accord.ring_empty('attempt', turns);
    IF accord.ring_may_move('attempt', turns, force) THEN
        PERFORM setval('accord.attempt_slot', turns + 1);
    END IF;
END
$$;
COMMENT ON FUNCTION accord.turn_attempt_ring(boolean) IS 'internal: moves attempt_log to its next slot and empties those past accord.attempt_retention';

-- The backlog is compacted: what still counts of the oldest slot is copied to the current one, under its own version;
-- a turn later, when nobody can still be reading from before the copy, the slot is emptied.
CREATE FUNCTION accord.turn_backlog_ring(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    turns bigint := (SELECT last_value FROM accord.backlog_slot);
    current integer := turns % 4;
    slot integer;
    floor bigint := accord.ring_floor();
    tables text;
    copied bigint;
    cursors bigint;
    replays bigint;
    is_empty boolean;
BEGIN
    FOR i IN 1 .. 3 LOOP
        slot := (turns + i) % 4;
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM accord.backlog_log_%s) AND NOT EXISTS (SELECT FROM accord.cursor_log_%s)'
                       ' AND NOT EXISTS (SELECT FROM accord.replay_log_%s)', slot, slot, slot) INTO is_empty;
        CONTINUE WHEN is_empty;
        tables := format('accord.backlog_log_%s, accord.cursor_log_%s, accord.replay_log_%s', slot, slot, slot);
        -- Whoever still writes into it might commit after the copy, and be lost.
        BEGIN
            EXECUTE 'LOCK TABLE ' || tables || ' IN SHARE ROW EXCLUSIVE MODE NOWAIT';
        EXCEPTION WHEN lock_not_available THEN
            RETURN;
        END;
        EXECUTE format($q$
            INSERT INTO accord.backlog_log
                (seq, tx_id, recorded_at, owed_since, attempted_at, due_at, route, decided_by, ord, version, attempts,
                 slot, event_slot, priority, channel, account, key, state, error, request, replay)
            SELECT o.seq, o.tx_id, o.recorded_at, o.owed_since, o.attempted_at, o.due_at, o.route, o.decided_by, o.ord,
                   o.version, o.attempts, %1$s, o.event_slot, o.priority, o.channel, o.account, o.key, o.state, o.error,
                   -- a command's request was kept with its first intent
                   coalesce(o.request, (SELECT r.request FROM accord.backlog_log r
                                        WHERE r.channel = o.channel AND r.account = o.account AND r.seq = o.seq
                                          AND r.ord = o.ord AND r.request IS NOT NULL
                                          AND r.replay IS NOT DISTINCT FROM o.replay LIMIT 1)), o.replay
            FROM accord.backlog_log_%2$s o
            WHERE (o.state IN ('scheduled', 'waiting', 'sending', 'retrying', 'replayed', 'accepted', 'verifying', 'held', 'dead') OR o.seq > %3$s)
              AND NOT EXISTS (SELECT FROM accord.backlog_log n
                              WHERE n.channel = o.channel AND n.account = o.account AND n.seq = o.seq AND n.ord = o.ord
                                AND (n.version > o.version OR n.version = o.version AND n.slot <> o.slot))
            $q$, current, slot, floor);
        GET DIAGNOSTICS copied = ROW_COUNT;
        EXECUTE format($q$
            INSERT INTO accord.cursor_log (version, seq, recorded_at, behind, counted, ord, slot, priority, channel,
                                           account)
            SELECT o.version, o.seq, o.recorded_at, o.behind, o.counted, o.ord, %1$s, o.priority, o.channel, o.account
            FROM accord.cursor_log_%2$s o
            WHERE NOT EXISTS (SELECT FROM accord.cursor_log n
                              WHERE n.channel = o.channel AND n.account = o.account AND n.priority = o.priority
                                AND (n.version > o.version OR n.version = o.version AND n.slot <> o.slot))
            $q$, current, slot);
        GET DIAGNOSTICS cursors = ROW_COUNT;
        EXECUTE format($q$
            INSERT INTO accord.replay_log (job, version, seq, recorded_at, started_at, since, first_seq, done, delivered,
                                           failed, passed, pass_low, pass_high, ord, slot, state, reason)
            SELECT o.job, o.version, o.seq, o.recorded_at, o.started_at, o.since, o.first_seq, o.done, o.delivered,
                   o.failed, o.passed, o.pass_low, o.pass_high, o.ord, %1$s, o.state, o.reason
            FROM accord.replay_log_%2$s o
            WHERE NOT EXISTS (SELECT FROM accord.replay_log n
                              WHERE n.job = o.job
                                AND (n.version > o.version OR n.version = o.version AND n.slot <> o.slot))
            $q$, current, slot);
        GET DIAGNOSTICS replays = ROW_COUNT;
        IF copied + cursors + replays = 0 AND accord.ring_lock(tables) THEN
            PERFORM accord.ring_truncate(tables);
        END IF;
        RETURN;
    END LOOP;

    -- Move on when the current slot has grown large.
    IF force OR pg_relation_size(format('accord.backlog_log_%s', current)) > 16 * 1024 * 1024
             OR pg_relation_size(format('accord.cursor_log_%s', current)) > 16 * 1024 * 1024
             OR pg_relation_size(format('accord.replay_log_%s', current)) > 16 * 1024 * 1024 THEN
        PERFORM setval('accord.backlog_slot', turns + 1);
    END IF;
END
$$;
COMMENT ON FUNCTION accord.turn_backlog_ring(boolean) IS 'internal: moves backlog_log and cursor_log to their next slot, carries over what still counts, and empties the slot it left';

-- The consumers' positions are carried over in the same way.
CREATE FUNCTION accord.turn_consumer_ring(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    turns bigint := (SELECT last_value FROM accord.consumer_slot);
    current integer := turns % 4;
    slot integer;
    tables text;
    copied bigint;
    is_empty boolean;
BEGIN
    FOR i IN 1 .. 3 LOOP
        slot := (turns + i) % 4;
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM accord.consumer_log_%s)', slot) INTO is_empty;
        CONTINUE WHEN is_empty;
        tables := format('accord.consumer_log_%s', slot);
        BEGIN
            EXECUTE 'LOCK TABLE ' || tables || ' IN SHARE ROW EXCLUSIVE MODE NOWAIT';
        EXCEPTION WHEN lock_not_available THEN
            RETURN;
        END;
        EXECUTE format($q$
            INSERT INTO accord.consumer_log (version, position, recorded_at, consumer, slot)
            SELECT o.version, o.position, o.recorded_at, o.consumer, %1$s
            FROM (SELECT DISTINCT ON (consumer) * FROM accord.consumer_log_%2$s ORDER BY consumer, version DESC) o
            WHERE EXISTS (SELECT FROM accord.consumer c WHERE c.id = o.consumer)
              AND NOT EXISTS (SELECT FROM accord.consumer_log n
                              WHERE n.consumer = o.consumer
                                AND (n.version > o.version OR n.version = o.version AND n.slot <> o.slot))
            $q$, current, slot);
        GET DIAGNOSTICS copied = ROW_COUNT;
        IF copied = 0 AND accord.ring_lock(tables) THEN
            PERFORM accord.ring_truncate(tables);
        END IF;
        RETURN;
    END LOOP;
    IF force OR pg_relation_size(format('accord.consumer_log_%s', current)) > 4 * 1024 * 1024 THEN
        PERFORM setval('accord.consumer_slot', turns + 1);
    END IF;
END
$$;
COMMENT ON FUNCTION accord.turn_consumer_ring(boolean) IS 'internal: moves consumer_log to its next slot, carries over what still counts, and empties the slot it left';

CREATE FUNCTION accord.turn_rings(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- One at a time; whoever comes second has nothing to do. Not an advisory lock: anybody can take those, and keep them.
    -- Whoever asks for it by force waits for his turn.
    IF force THEN
        LOCK TABLE accord.identity IN SHARE UPDATE EXCLUSIVE MODE;
    ELSE
        BEGIN
            LOCK TABLE accord.identity IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
        EXCEPTION WHEN lock_not_available THEN
            RETURN;
        END;
    END IF;
    PERFORM accord.seal();
    PERFORM accord.turn_log_ring(force), accord.turn_attempt_ring(force), accord.turn_backlog_ring(force),
            accord.turn_consumer_ring(force), accord.turn_feed_ring(force), accord.turn_key_rings(force), accord.turn_conflict_ring(force);
    UPDATE accord.checkpoint c SET position = p.lowest, recorded_at = now()
    FROM (SELECT accord.lowest_position() AS lowest) p WHERE c.position <> p.lowest;
END
$$;
COMMENT ON FUNCTION accord.turn_rings(boolean) IS 'housekeeping, done by the dispatcher once a minute while it is awake: moves the rings of the logs on and empties slots past their retention; with force, moves on at once where the next slot is empty';
