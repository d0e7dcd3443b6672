-- watch: how endpoints are doing, drawn for a terminal.

-- Full blocks and a part of one where the encoding has them, else number signs. (The encoding is asked within chr(), too: the
-- planner computes an expression of constants, from 18 on also of known arguments, in every encoding.)
CREATE FUNCTION accord.bar(value double precision, most double precision, width integer) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN value IS NULL OR value <= 0 OR most <= 0 THEN ''
                WHEN getdatabaseencoding() <> 'UTF8' THEN repeat('#', least(ceil(value / most * width)::integer, width))
                ELSE repeat(chr(CASE WHEN getdatabaseencoding() = 'UTF8' THEN 9608 ELSE 35 END), e / 8)
                     || CASE WHEN e % 8 > 0 THEN chr(CASE WHEN getdatabaseencoding() = 'UTF8' THEN 9616 - e % 8 ELSE 35 END)
                             ELSE '' END END
    FROM (SELECT least(ceil(value / nullif(most, 0) * width * 8)::integer, width * 8) AS e) s
$$;
COMMENT ON FUNCTION accord.bar(double precision, double precision, integer) IS 'internal: a bar of so many characters when the value is the most there is';

CREATE FUNCTION accord.watch(channel text DEFAULT NULL, max integer DEFAULT 30)
    RETURNS TABLE (endpoint text, state text, owed bigint, waiting text, per_second numeric, delivering text,
                   failing numeric, p50_ms numeric, p99_ms numeric, oldest interval, note text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH shown AS (
        SELECT s.*, max(s.owed) OVER () AS most_owed, max(s.delivered_1m) OVER () AS fastest
        FROM accord.status s
        WHERE watch.channel IS NULL OR s.channel = watch.channel
    )
    SELECT concat_ws('/', s.channel, s.account), s.state, s.owed, accord.bar(s.owed, s.most_owed, 20),
           round(s.delivered_1m::numeric, 1), accord.bar(s.delivered_1m, s.fastest, 20), round(s.failed_1m::numeric, 1),
           round(s.p50_ms::numeric, 1), round(s.p99_ms::numeric, 1), date_trunc('second', clock_timestamp() - s.oldest_owed),
           concat_ws('; ',
                     CASE WHEN s.dead > 0 THEN s.dead || ' dead' END, CASE WHEN s.held > 0 THEN s.held || ' held' END,
                     CASE WHEN s.paused_since IS NOT NULL THEN concat_ws(': ', 'paused', s.paused_reason) END,
                     CASE WHEN s.breaker <> 'closed' THEN 'breaker ' || s.breaker END,
                     CASE WHEN s.throttled_until IS NOT NULL THEN 'until ' || to_char(s.throttled_until, 'HH24:MI:SS') END,
                     CASE WHEN s.last_error_at > s.last_delivered_at OR s.last_delivered_at IS NULL
                          THEN left(translate(s.last_error, E'\n\r\t', '   '), 60) END)
    FROM shown s
    ORDER BY s.state IN ('failing', 'broken', 'throttled', 'stopped', 'copy') DESC, s.owed DESC NULLS LAST, s.delivered_1m DESC NULLS LAST,
             s.channel, s.account NULLS FIRST
    LIMIT watch.max
$$;
COMMENT ON FUNCTION accord.watch(text, integer) IS 'how endpoints are doing, with bars, for psql''s \watch: those in trouble first, then those that are owed most; max of them, perhaps of one channel';
