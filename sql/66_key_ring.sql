-- key ring: the slots of inbox and idempotency_key move on, and the oldest are emptied. Part of accord.turn_rings().
-- A ring's retention is the longest that any of its keys has; what may be forgotten earlier is deleted in bounded
-- batches. Rows lie in a slot in the order of time, so that both find what they look for without searching.

-- pruned: how far the keys of a scope (or source) that are kept for a shorter time than others have been deleted.
CREATE TABLE accord.pruned (
    store text NOT NULL CHECK (store IN ('inbox', 'idempotency_key')),
    scope text NOT NULL,
    until timestamptz NOT NULL,
    PRIMARY KEY (store, scope)
);
COMMENT ON TABLE accord.pruned IS 'housekeeping''s note: keys of this scope, or messages of this source, older than this are deleted already';

-- Deletes up to 5,000 keys of one scope that are older than its retention. The batch begins where the one before
-- ended, so what was deleted and is not vacuumed yet (somebody holds a snapshot) is not gone through again; but a
-- minute earlier, as rows of concurrent transactions may lie a little out of order.
CREATE FUNCTION accord.prune_keys(store text, scope text, retention interval) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    name text := CASE store WHEN 'inbox' THEN 'source' ELSE 'scope' END;
    at text := CASE store WHEN 'inbox' THEN 'received_at' ELSE 'created_at' END;
    cutoff timestamptz := clock_timestamp() - retention;
    since timestamptz := (SELECT p.until FROM accord.pruned p WHERE p.store = store AND p.scope = scope);
    turns bigint;
    latest timestamptz;
    gone bigint;
    total bigint := 0;
BEGIN
    EXECUTE format('SELECT last_value FROM accord.%I', CASE store WHEN 'inbox' THEN 'inbox_slot' ELSE 'key_slot' END)
        INTO turns;
    FOR i IN 1 .. 4 LOOP                -- the oldest slot first
        EXECUTE format($q$
            WITH old AS MATERIALIZED (
                SELECT k.ctid FROM accord.%1$I k WHERE k.%2$I = $1 AND k.%3$I >= $2 AND k.%3$I < $3 LIMIT $4),
            gone AS (DELETE FROM accord.%1$I k USING old WHERE k.ctid = old.ctid RETURNING k.%3$I)
            SELECT count(*), max(%3$I) FROM gone $q$, format('%s_%s', store, (turns + i) % 4), name, at)
            INTO gone, latest USING scope, coalesce(since - interval '1 min', '-infinity'), cutoff, 5000 - total;
        total := total + gone;
        EXIT WHEN total >= 5000;
    END LOOP;
    INSERT INTO accord.pruned AS p (store, scope, until)
        VALUES (store, scope, CASE WHEN total >= 5000 THEN latest ELSE cutoff END)
        ON CONFLICT ON CONSTRAINT pruned_pkey DO UPDATE SET until = excluded.until;
    RETURN total;
END
$$;
COMMENT ON FUNCTION accord.prune_keys(text, text, interval) IS 'internal: deletes up to 5000 keys of a scope, or messages of a source, that are older than its retention';

CREATE FUNCTION accord.turn_key_ring(store text, longest interval, force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at text := CASE store WHEN 'inbox' THEN 'received_at' ELSE 'created_at' END;
    sequence text := CASE store WHEN 'inbox' THEN 'inbox_slot' ELSE 'key_slot' END;
    retention interval := greatest(accord.ring_retention('accord.idempotency_retention'), longest);
    turns bigint;
    slot integer;
    oldest timestamptz;
    is_empty boolean;
BEGIN
    EXECUTE format('SELECT last_value FROM accord.%I', sequence) INTO turns;
    FOR i IN 1 .. 3 LOOP
        slot := (turns + i) % 4;
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM accord.%I)', format('%s_%s', store, slot)) INTO is_empty;
        CONTINUE WHEN is_empty;
        -- Its newest rows are as old as the first row after it.
        oldest := NULL;
        FOR later IN i + 1 .. 4 LOOP
            EXECUTE format('SELECT %I FROM accord.%I LIMIT 1', at, format('%s_%s', store, (turns + later) % 4))
                INTO oldest;
            EXIT WHEN oldest IS NOT NULL;
        END LOOP;
        EXIT WHEN oldest IS NULL OR oldest > now() - retention;
        EXIT WHEN NOT accord.ring_lock(format('accord.%I', format('%s_%s', store, slot)));
        PERFORM accord.ring_truncate(format('accord.%I', format('%s_%s', store, slot)));
    END LOOP;

    -- Move on when the current slot holds half of the retention and the next one is empty.
    EXECUTE format('SELECT %I FROM accord.%I LIMIT 1', at, format('%s_%s', store, turns % 4)) INTO oldest;
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM accord.%I)', format('%s_%s', store, (turns + 1) % 4)) INTO is_empty;
    IF is_empty AND (force OR oldest < now() - retention / 2) THEN
        PERFORM setval(format('accord.%I', sequence)::regclass, turns + 1);
    END IF;
END
$$;
COMMENT ON FUNCTION accord.turn_key_ring(text, interval, boolean) IS 'internal: moves inbox or idempotency_key to the next slot and empties those past the longest retention';

CREATE FUNCTION accord.turn_key_rings(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    standard interval := accord.ring_retention('accord.idempotency_retention');
    longest interval := greatest(standard, (SELECT max(s.retention) FROM accord.idempotency_scope s));
BEGIN
    PERFORM accord.prune_keys('idempotency_key', s.scope, s.retention)
        FROM accord.idempotency_scope s WHERE s.retention < longest;
    PERFORM accord.turn_key_ring('idempotency_key', longest, force);
    longest := greatest(standard, (SELECT max(s.retention) FROM accord.source s));
    PERFORM accord.prune_keys('inbox', s.name, s.retention) FROM accord.source s WHERE s.retention < longest;
    PERFORM accord.turn_key_ring('inbox', longest, force);
END
$$;
COMMENT ON FUNCTION accord.turn_key_rings(boolean) IS 'internal: forgets keys and messages past their retention';
