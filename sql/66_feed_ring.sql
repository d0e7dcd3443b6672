-- feed ring: the places of feeds move on to the next slot, and the oldest is emptied. Part of accord.turn_rings().

-- What still counts is carried over: the last state of each feed, its last wish, and the pages of a poll under way.
CREATE FUNCTION accord.turn_feed_ring(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    turns bigint := (SELECT last_value FROM accord.feed_slot);
    current integer := turns % 4;
    slot integer;
    tables text;
    copied bigint;
    is_empty boolean;
BEGIN
    FOR i IN 1 .. 3 LOOP
        slot := (turns + i) % 4;
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM accord.feed_log_%s)', slot) INTO is_empty;
        CONTINUE WHEN is_empty;
        tables := format('accord.feed_log_%s', slot);
        BEGIN
            EXECUTE 'LOCK TABLE ' || tables || ' IN SHARE ROW EXCLUSIVE MODE NOWAIT';
        EXCEPTION WHEN lock_not_available THEN
            RETURN;
        END;
        EXECUTE format($q$
            INSERT INTO accord.feed_log (version, feed, recorded_at, due_at, polled_at, news_at, run, seen, received,
                                         failures, pages, slot, account, what, error, keys, state)
            SELECT o.version, o.feed, o.recorded_at, o.due_at, o.polled_at, o.news_at, o.run, o.seen, o.received,
                   o.failures, o.pages, %1$s, o.account, o.what, o.error, o.keys, o.state
            FROM accord.feed_log_%2$s o
            WHERE EXISTS (SELECT FROM accord.feed f WHERE f.id = o.feed)
              AND NOT EXISTS (SELECT FROM accord.feed_log n
                              WHERE n.feed = o.feed AND n.account = o.account AND n.what = o.what
                                AND (n.version > o.version AND (o.keys IS NULL OR n.run > o.run)
                                     OR n.version = o.version AND n.slot <> o.slot))
            $q$, current, slot);
        GET DIAGNOSTICS copied = ROW_COUNT;
        IF copied = 0 AND accord.ring_lock(tables) THEN
            PERFORM accord.ring_truncate(tables);
        END IF;
        RETURN;
    END LOOP;
    IF force OR pg_relation_size(format('accord.feed_log_%s', current)) > 4 * 1024 * 1024 THEN
        PERFORM setval('accord.feed_slot', turns + 1);
    END IF;
END
$$;
COMMENT ON FUNCTION accord.turn_feed_ring(boolean) IS 'internal: moves feed_log to its next slot, carries over what still counts, and empties the slot it left';
