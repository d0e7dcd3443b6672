-- ring: the logs' slots move on, and the oldest are emptied when nothing needs them any more.
-- Run by dispatcher 0, at most once a minute and only when it is awake; by hand with accord.turn_rings().

CREATE FUNCTION accord.ring_truncate(tables text) RETURNS void
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'accord_ring_truncate';
COMMENT ON FUNCTION accord.ring_truncate(text) IS 'internal: truncates slots of a ring past their guard';

CREATE FUNCTION accord.ring_retention(setting text) RETURNS interval
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.setting::integer * interval '1 minute' FROM pg_settings s WHERE s.name = ring_retention.setting
$$;
COMMENT ON FUNCTION accord.ring_retention(text) IS 'internal: a retention setting as an interval';

-- retirement: what was emptied of the event log, and when; the horizon of every reader.
--   log                  'event' (event_log and commit_log) or 'attempt' (attempt_log and endpoint_log)
--   first_seq, last_seq  the lowest and the highest commit number in the slot; of attempts: those they are about
--   oldest, newest       its first and last time of commit, or of recording
CREATE TABLE accord.retirement (
    log text NOT NULL CHECK (log IN ('event', 'attempt')),
    slot smallint NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    oldest timestamptz NOT NULL,
    newest timestamptz NOT NULL,
    bytes bigint NOT NULL,
    truncated_at timestamptz
);
COMMENT ON TABLE accord.retirement IS 'the slots of the logs that were emptied: what was in them, and when they were';

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

-- How far every dispatcher, every endpoint that lags, and the checkpoint have come.
CREATE FUNCTION accord.ring_floor() RETURNS bigint
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT least(accord.lowest_position(), (SELECT min(position) FROM accord.checkpoint),
                 (SELECT min(c.seq) - 1 FROM (SELECT DISTINCT ON (channel, account, priority) seq FROM accord.cursor_log
                                              ORDER BY channel, account, priority, version DESC) c))
$$;
COMMENT ON FUNCTION accord.ring_floor() IS 'internal: the commit number up to which no dispatcher will read the logs again';

CREATE FUNCTION accord.turn_log_ring(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    retention interval := accord.ring_retention('accord.log_retention');
    turns bigint := (SELECT last_value FROM accord.log_slot);
    slot integer;
    tables text;
    newest record;
    oldest timestamptz;
    is_empty boolean;
BEGIN
    -- Empty the oldest slots that are past retention and that no delivery still needs.
    FOR i IN 1 .. 7 LOOP
        slot := (turns + i) % 8;
        EXECUTE format('SELECT seq, committed_at FROM accord.commit_log_%s ORDER BY seq DESC LIMIT 1', slot) INTO newest;
        CONTINUE WHEN newest.seq IS NULL;
        EXIT WHEN newest.committed_at > now() - retention OR newest.seq > accord.ring_floor();
        EXIT WHEN EXISTS (SELECT FROM accord.backlog b WHERE b.event_slot = slot AND b.state <> 'dead');
        tables := format('accord.event_log_%s, accord.commit_log_%s', slot, slot);
        EXIT WHEN NOT accord.ring_lock(tables);
        -- Somebody may have committed into it before the lock.
        EXECUTE format('SELECT seq, committed_at FROM accord.commit_log_%s ORDER BY seq DESC LIMIT 1', slot) INTO newest;
        EXIT WHEN newest.committed_at > now() - retention OR newest.seq > accord.ring_floor();
        EXIT WHEN EXISTS (SELECT FROM accord.consumer_claims(newest.seq, newest.committed_at));
        EXECUTE format('INSERT INTO accord.retirement (log, slot, first_seq, last_seq, oldest, newest, bytes, truncated_at) '
                       'SELECT ''event'', %1$s, min(seq), max(seq), min(committed_at), max(committed_at), '
                       'pg_total_relation_size(''accord.event_log_%1$s'') '
                       '+ pg_total_relation_size(''accord.commit_log_%1$s''), now() FROM accord.commit_log_%1$s', slot);
        PERFORM accord.ring_truncate(tables);
    END LOOP;

    -- Move on when the current slot holds its share of the retention and the next one is empty.
    EXECUTE format('SELECT committed_at FROM accord.commit_log_%s ORDER BY seq LIMIT 1', turns % 8) INTO oldest;
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM accord.event_log_%s)', (turns + 1) % 8) INTO is_empty;
    IF is_empty AND (force OR oldest < now() - retention / 6) THEN
        PERFORM setval('accord.log_slot', turns + 1);
    END IF;
END
$$;
COMMENT ON FUNCTION accord.turn_log_ring(boolean) IS 'internal: moves event_log and commit_log to their next slot and empties those past accord.log_retention';

CREATE FUNCTION accord.turn_attempt_ring(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    retention interval := accord.ring_retention('accord.attempt_retention');
    turns bigint := (SELECT last_value FROM accord.attempt_slot);
    slot integer;
    tables text;
    newest timestamptz;
    oldest timestamptz;
    is_needed boolean;
    is_empty boolean;
BEGIN
    FOR i IN 1 .. 7 LOOP
        slot := (turns + i) % 8;
        tables := format('accord.attempt_log_%s, accord.endpoint_log_%s', slot, slot);
        EXECUTE format('SELECT recorded_at FROM accord.attempt_log_%s ORDER BY ctid DESC LIMIT 1', slot) INTO newest;
        CONTINUE WHEN newest IS NULL;
        EXIT WHEN newest > now() - retention OR NOT accord.ring_lock(tables);
        -- What was settled beyond the floor must be known when it is read again.
        EXECUTE format('SELECT EXISTS (SELECT FROM accord.attempt_log_%s WHERE seq > accord.ring_floor() '
                       'AND outcome IN (''delivered'', ''skipped'', ''superseded'', ''expired'', ''discarded''))',
                       slot) INTO is_needed;
        EXIT WHEN is_needed;
        PERFORM accord.ring_truncate(tables);
    END LOOP;
    EXECUTE format('SELECT recorded_at FROM accord.attempt_log_%s LIMIT 1', turns % 8) INTO oldest;
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM accord.attempt_log_%s)', (turns + 1) % 8) INTO is_empty;
    IF is_empty AND (force OR oldest < now() - retention / 6) THEN
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
    is_empty boolean;
BEGIN
    FOR i IN 1 .. 3 LOOP
        slot := (turns + i) % 4;
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM accord.backlog_log_%s) AND NOT EXISTS (SELECT FROM accord.cursor_log_%s)',
                       slot, slot) INTO is_empty;
        CONTINUE WHEN is_empty;
        tables := format('accord.backlog_log_%s, accord.cursor_log_%s', slot, slot);
        -- Whoever still writes into it might commit after the copy, and be lost.
        BEGIN
            EXECUTE 'LOCK TABLE ' || tables || ' IN SHARE ROW EXCLUSIVE MODE NOWAIT';
        EXCEPTION WHEN lock_not_available THEN
            RETURN;
        END;
        EXECUTE format($q$
            INSERT INTO accord.backlog_log
                (seq, tx_id, recorded_at, owed_since, attempted_at, due_at, route, decided_by, ord, version, attempts,
                 slot, event_slot, priority, channel, account, key, state, error, request)
            SELECT o.seq, o.tx_id, o.recorded_at, o.owed_since, o.attempted_at, o.due_at, o.route, o.decided_by, o.ord,
                   o.version, o.attempts, %1$s, o.event_slot, o.priority, o.channel, o.account, o.key, o.state, o.error,
                   -- a command's request was kept with its first intent
                   coalesce(o.request, (SELECT r.request FROM accord.backlog_log r
                                        WHERE r.channel = o.channel AND r.account = o.account AND r.seq = o.seq
                                          AND r.ord = o.ord AND r.request IS NOT NULL LIMIT 1))
            FROM accord.backlog_log_%2$s o
            WHERE (o.state IN ('scheduled', 'waiting', 'sending', 'retrying', 'replayed', 'held', 'dead') OR o.seq > %3$s)
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
        IF copied + cursors = 0 AND accord.ring_lock(tables) THEN
            PERFORM accord.ring_truncate(tables);
        END IF;
        RETURN;
    END LOOP;

    -- Move on when the current slot has grown large.
    IF force OR pg_relation_size(format('accord.backlog_log_%s', current)) > 16 * 1024 * 1024
             OR pg_relation_size(format('accord.cursor_log_%s', current)) > 16 * 1024 * 1024 THEN
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

CREATE FUNCTION accord.prune_idempotency_keys() RETURNS bigint
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    WITH gone AS (
        DELETE FROM accord.idempotency_key k
        USING (SELECT scope, key FROM accord.idempotency_key
               WHERE created_at < now() - accord.ring_retention('accord.idempotency_retention') LIMIT 1000) old
        WHERE k.scope = old.scope AND k.key = old.key
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
COMMENT ON FUNCTION accord.prune_idempotency_keys() IS 'internal: forgets up to 1000 keys older than accord.idempotency_retention';

CREATE FUNCTION accord.turn_rings(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- One at a time; whoever comes second has nothing to do. Not an advisory lock: anybody can take those, and keep them.
    BEGIN
        LOCK TABLE accord.identity IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
    EXCEPTION WHEN lock_not_available THEN
        RETURN;
    END;
    PERFORM accord.turn_log_ring(force), accord.turn_attempt_ring(force), accord.turn_backlog_ring(force),
            accord.turn_consumer_ring(force), accord.prune_idempotency_keys();
    UPDATE accord.checkpoint c SET position = p.lowest, recorded_at = now()
    FROM (SELECT accord.lowest_position() AS lowest) p WHERE c.position <> p.lowest;
END
$$;
COMMENT ON FUNCTION accord.turn_rings(boolean) IS 'housekeeping, done by the dispatcher once a minute while it is awake: moves the rings of the logs on and empties slots past their retention; with force, moves on at once where the next slot is empty';
