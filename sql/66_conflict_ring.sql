-- conflict_ring: conflict_log and change_log move on, and their oldest slots are emptied; by accord.turn_rings().

CREATE FUNCTION accord.turn_conflict_ring(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    retention interval := accord.ring_retention('accord.conflict_retention');
    turns bigint := (SELECT last_value FROM accord.conflict_slot);
    slot integer;
    tables text;
    newest timestamptz;
    oldest timestamptz;
    is_held boolean;
    is_empty boolean;
BEGIN
    FOR i IN 1 .. 7 LOOP
        slot := (turns + i) % 8;
        EXECUTE format('SELECT greatest((SELECT max(recorded_at) FROM accord.change_log_%1$s), '
                       '(SELECT max(recorded_at) FROM accord.conflict_log_%1$s))', slot) INTO newest;
        CONTINUE WHEN newest IS NULL;
        tables := format('accord.change_log_%1$s, accord.conflict_log_%1$s', slot);
        EXIT WHEN newest > now() - retention OR NOT accord.ring_lock(tables);
        -- what waits for a person is kept
        EXECUTE format('SELECT EXISTS (SELECT FROM accord.conflict_log_%s l JOIN accord.conflict c USING (conflict_id) '
                       'WHERE l.held AND c.state = ''held'' AND c.relation IS NOT NULL)', slot) INTO is_held;
        EXIT WHEN is_held;
        PERFORM accord.ring_truncate(tables);
    END LOOP;
    EXECUTE format('SELECT recorded_at FROM accord.change_log_%s LIMIT 1', turns % 8) INTO oldest;
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM accord.change_log_%1$s) AND NOT EXISTS (SELECT FROM accord.conflict_log_%1$s)',
                   (turns + 1) % 8) INTO is_empty;
    IF is_empty AND (force OR oldest < now() - retention / 6) THEN
        PERFORM setval('accord.conflict_slot', turns + 1);
    END IF;
END
$$;
COMMENT ON FUNCTION accord.turn_conflict_ring(boolean) IS 'internal: moves conflict_log and change_log to their next slot and empties those past accord.conflict_retention';
