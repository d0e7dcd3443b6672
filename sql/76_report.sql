-- report: one HTML page of how deliveries went, for a person: no scripts, nothing from elsewhere, well-formed XML as well.
-- Made of the logs, of which only the interval asked for is read; drawn in SVG.

-- Text between tags and in attributes: also what no XML document may hold is put out of the way.
CREATE FUNCTION accord.report_text(value text) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT regexp_replace(replace(replace(replace(replace(replace(value, '&', '&amp;'), '<', '&lt;'), '>', '&gt;'),
                                          '"', '&quot;'), '''', '&#39;'), E'[\\x01-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f]', '?', 'g')
$$;
COMMENT ON FUNCTION accord.report_text(text) IS 'internal: text as HTML and XML take it';

CREATE FUNCTION accord.report_number(value double precision) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN value IS NULL THEN '' WHEN value = 0 THEN '0'
                WHEN abs(value) >= 1000 THEN to_char(value, 'FM999,999,999,999,990')
                WHEN abs(value) >= 100 OR value = trunc(value) THEN to_char(value, 'FM990')
                WHEN abs(value) >= 10 THEN to_char(value, 'FM990.0')
                WHEN abs(value) >= 0.01 THEN to_char(value, 'FM990.00') ELSE '< 0.01' END
$$;
COMMENT ON FUNCTION accord.report_number(double precision) IS 'internal: a number as people read it';

-- A table: heads, and an array of rows, each an array of cells; numbers are strings that begin with a digit or "<".
CREATE FUNCTION accord.report_table(heads text[], cells jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT '<div class="wide"><table><thead><tr>'
        || (SELECT string_agg('<th scope="col">' || accord.report_text(h) || '</th>', '' ORDER BY n) FROM unnest(heads) WITH ORDINALITY u (h, n))
        || '</tr></thead><tbody>'
        || coalesce((SELECT string_agg('<tr>' || (
                         SELECT string_agg(format('<td%s>%s</td>', CASE WHEN c ~ '^(?:< )?[0-9][0-9,.]*%?$' THEN ' class="n"' ELSE '' END,
                                                  accord.report_text(coalesce(c, ''))), '' ORDER BY m)
                         FROM jsonb_array_elements_text(r) WITH ORDINALITY w (c, m)) || E'</tr>\n', '' ORDER BY n)
                     FROM jsonb_array_elements(cells) WITH ORDINALITY v (r, n)),
                    format('<tr><td colspan="%s">none</td></tr>', cardinality(heads)))
        || '</tbody></table></div>'
$$;
COMMENT ON FUNCTION accord.report_table(text[], jsonb) IS 'internal: a table of the report';

-- The next number at or above whose quarters are round; at least 4, as what is counted is whole.
CREATE FUNCTION accord.report_ceiling(value double precision) RETURNS double precision
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN value > 4 THEN min(m * p) ELSE 4 END
    FROM unnest(ARRAY[1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10]) m, (SELECT power(10::double precision, floor(log(greatest(value, 4))))) s (p)
    WHERE m * p >= value * 0.999999
$$;
COMMENT ON FUNCTION accord.report_ceiling(double precision) IS 'internal: the next round number';

-- A plot over time: bars that are stacked, or lines over a logarithmic axis. Series: [{"name", "tone", "values": [...]}],
-- a value for each label; null: none. Whoever does not see it gets its title, what it shows, and the numbers.
CREATE FUNCTION accord.report_plot(id text, title text, description text, unit text, kind text, labels text[], series jsonb)
    RETURNS text
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- the drawing, and the part of it in which there is data
    width constant double precision := 760;
    height constant double precision := 250;
    x0 constant double precision := 62;
    x1 constant double precision := 752;
    y0 constant double precision := 214;
    y1 constant double precision := 12;
    is_log constant boolean := kind = 'lines';
    n constant integer := cardinality(labels);
    step double precision := (x1 - x0) / greatest(n, 1);
    low double precision := 0;
    high double precision;
    drawing text := '';
    legend text;
    every integer := greatest(1, ceil(n / 7.0)::integer);
BEGIN
    IF is_log THEN
        SELECT power(10, floor(log(min(v)))), power(10, ceil(log(max(v)) + 1e-9)) INTO low, high
        FROM jsonb_array_elements(series) s, jsonb_array_elements_text(s -> 'values') e (t), CAST(e.t AS double precision) v WHERE v > 0;
    ELSE
        SELECT accord.report_ceiling(max(total)) INTO high
        FROM (SELECT sum(v::double precision) AS total FROM jsonb_array_elements(series) s,
                     jsonb_array_elements_text(s -> 'values') WITH ORDINALITY e (v, i) GROUP BY i) t;
    END IF;
    IF is_log THEN
        low := coalesce(low, 1);
        high := greatest(coalesce(high, 10), low * 10);
    END IF;

    -- grid, with its numbers
    SELECT string_agg(format('<line class="grid" x1="%s" x2="%s" y1="%s" y2="%s"/><text x="%s" y="%s" class="y">%s</text>',
                             x0, x1, round(y::numeric, 1), round(y::numeric, 1), x0 - 6, round(y::numeric + 4, 1), accord.report_text(accord.report_number(v))), E'\n')
    INTO drawing
    FROM (SELECT v, y0 - (y0 - y1) * CASE WHEN is_log THEN log(v / low) / log(high / low) ELSE v / high END AS y
          FROM (SELECT CASE WHEN is_log THEN low * power(10::double precision, g) ELSE high * g / 4 END AS v
                FROM generate_series(0, CASE WHEN is_log THEN round(log(high / low))::integer ELSE 4 END) g) t) u;
    drawing := drawing || E'\n' || coalesce((
        SELECT string_agg(format('<text x="%s" y="%s" class="x">%s</text>', round((x0 + (i - 0.5) * step)::numeric, 1), y0 + 18,
                                 accord.report_text(labels[i])), E'\n' ORDER BY i)
        FROM generate_series(1, n, every) i), '');

    IF kind = 'bars' THEN
        drawing := drawing || E'\n' || coalesce((
            SELECT string_agg(format('<rect class="%s" x="%s" width="%s" y="%s" height="%s"><title>%s, %s: %s %s</title></rect>',
                              tone, round((x0 + (i - 1) * step + step * 0.1)::numeric, 1), round((step * 0.8)::numeric, 1),
                              round((y0 - (y0 - y1) * top / high)::numeric, 1), round(((y0 - y1) * v / high)::numeric, 1),
                              accord.report_text(labels[i::integer]), accord.report_text(name), accord.report_number(v),
                              accord.report_text(unit)), E'\n' ORDER BY s, i)
            FROM (SELECT s, s1 ->> 'name' AS name, s1 ->> 'tone' AS tone, i, v::double precision AS v,
                         sum(v::double precision) OVER (PARTITION BY i ORDER BY s) AS top
                  FROM jsonb_array_elements(series) WITH ORDINALITY a (s1, s),
                       jsonb_array_elements_text(s1 -> 'values') WITH ORDINALITY e (v, i)) t
            WHERE v > 0), '');
    ELSE
        drawing := drawing || E'\n' || coalesce((
            SELECT string_agg(format('<polyline class="%s" points="%s"/>%s', tone, points, dots), E'\n' ORDER BY s)
            FROM (SELECT s, piece, min(tone) AS tone, string_agg(x || ',' || y, ' ' ORDER BY i) AS points,
                         string_agg(format('<circle class="%s" cx="%s" cy="%s" r="2"><title>%s, %s: %s %s</title></circle>', tone, x, y,
                                           accord.report_text(labels[i::integer]), accord.report_text(name), accord.report_number(v),
                                           accord.report_text(unit)), '' ORDER BY i) AS dots
                  FROM (SELECT t.*, round((x0 + (i - 0.5) * step)::numeric, 1) AS x,
                               round((y0 - (y0 - y1) * log(greatest(v, low) / low) / log(high / low))::numeric, 1) AS y,
                               -- a line breaks where there is nothing
                               i - row_number() OVER (PARTITION BY s ORDER BY i) AS piece
                        FROM (SELECT s, s1 ->> 'name' AS name, s1 ->> 'tone' AS tone, i, v::double precision AS v
                              FROM jsonb_array_elements(series) WITH ORDINALITY a (s1, s),
                                   jsonb_array_elements_text(s1 -> 'values') WITH ORDINALITY e (v, i) WHERE v IS NOT NULL) t) u
                  GROUP BY s, piece) w), '');
    END IF;

    SELECT string_agg(format('<span><i class="%s"></i>%s</span>', s ->> 'tone', accord.report_text(s ->> 'name')), ' ' ORDER BY n_)
    INTO legend FROM jsonb_array_elements(series) WITH ORDINALITY a (s, n_);
    RETURN format(E'<figure id="%s"><figcaption><h2>%s</h2><p class="legend">%s</p></figcaption>\n'
                  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %s %s" role="img" aria-labelledby="%s-title %s-desc">'
                  '<title id="%s-title">%s</title><desc id="%s-desc">%s</desc>%s</svg>\n'
                  '<details><summary>The numbers (%s)</summary>%s</details></figure>',
                  id, accord.report_text(title), legend, width, height, id, id, id, accord.report_text(title), id,
                  accord.report_text(description), drawing, accord.report_text(unit),
                  accord.report_table((SELECT ARRAY['from'] || array_agg(s ->> 'name' ORDER BY n_)
                                       FROM jsonb_array_elements(series) WITH ORDINALITY a (s, n_)),
                                      (SELECT jsonb_agg(jsonb_build_array(labels[i]) || (
                                                  SELECT jsonb_agg(accord.report_number((s -> 'values' ->> (i - 1))::double precision) ORDER BY n_)
                                                  FROM jsonb_array_elements(series) WITH ORDINALITY a (s, n_)) ORDER BY i)
                                       FROM generate_series(1, n) i)));
END
$$;
COMMENT ON FUNCTION accord.report_plot(text, text, text, text, text, text[], jsonb) IS 'internal: a plot of the report';

CREATE FUNCTION accord.report_span(span interval) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN s IS NULL THEN NULL WHEN s < 120 THEN s || ' s' WHEN s < 7200 THEN s / 60 || ' min' WHEN s < 172800 THEN s / 3600 || ' h'
                ELSE s / 86400 || ' days' END
    FROM (SELECT extract(epoch FROM span)::bigint) e (s)
$$;
COMMENT ON FUNCTION accord.report_span(interval) IS 'internal: a span of time as people read it';

CREATE FUNCTION accord.report_style() RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT '
:root { color-scheme: light dark; --back: #fff; --text: #1f2328; --dim: #59636e; --line: #d1d9e0; --good: #1a7f37; --fair: #0969da;
        --slow: #9a6700; --bad: #cf222e; --grave: #8250df; --still: #8c959f; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #e6edf3; --dim: #9198a1; --line: #30363d; --good: #3fb950;
        --fair: #58a6ff; --slow: #d29922; --bad: #f85149; --grave: #bc8cff; --still: #6e7681; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 0; } p.about { color: var(--dim); margin: .2rem 0 1.5rem; }
dl.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .6rem; margin: 0; }
dl.tiles div { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem; }
dl.tiles dt { color: var(--dim); font-size: .85rem; } dl.tiles dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
figure { margin: 0; } figcaption { display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between; }
.legend { margin: 0; font-size: .85rem; color: var(--dim); } .legend span { margin-left: 1em; white-space: nowrap; }
.legend i { display: inline-block; width: .7em; height: .7em; margin-right: .4em; border-radius: 2px; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--dim); font-size: 11px; } svg .y { text-anchor: end; } svg .x { text-anchor: middle; }
.grid { stroke: var(--line); } polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
'
        || (SELECT string_agg(format('i.%s { background: var(--%1$s); } rect.%1$s, circle.%1$s { fill: var(--%1$s); } polyline.%1$s { stroke: var(--%1$s); }', t), E'\n')
            FROM unnest(ARRAY['good', 'fair', 'slow', 'bad', 'grave', 'still']) t)
        || '
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .85rem; margin: .5rem 0; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; } td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
details summary { color: var(--dim); font-size: .85rem; cursor: pointer; } footer { color: var(--dim); font-size: .85rem; margin: 2rem 0; }
@media print { details { display: none; } }
'
$$;
COMMENT ON FUNCTION accord.report_style() IS 'internal: how the report looks, by day and by night';

-- How attempts went, by parts of the interval: numbers of each outcome, and percentiles of answers and of the time from
-- commit to delivery.
CREATE FUNCTION accord.report_attempts(since timestamptz, until timestamptz, channel text, step interval)
    RETURNS TABLE (part integer, delivered bigint, again bigint, failed bigint, passed bigint, answer double precision[], whole double precision[])
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH attempt AS MATERIALIZED (
        SELECT a.seq, a.recorded_at, a.outcome, a.duration_ms,
               floor(extract(epoch FROM a.recorded_at - since) / extract(epoch FROM step))::integer AS part
        FROM accord.attempt_log a
        WHERE a.recorded_at >= since AND a.recorded_at < until
          AND (report_attempts.channel IS NULL OR a.channel = report_attempts.channel)
    ), delivered AS (
        SELECT a.part, extract(epoch FROM a.recorded_at - c.committed_at)::double precision * 1000 AS ms
        FROM attempt a JOIN accord.commit_log c ON c.seq = a.seq
        WHERE a.outcome = 'delivered' AND c.seq >= (SELECT min(seq) FROM attempt WHERE outcome = 'delivered')
    )
    SELECT a.part, count(*) FILTER (WHERE a.outcome = 'delivered'),
           count(*) FILTER (WHERE a.outcome IN ('retry', 'retry_after', 'unauthorized', 'unreachable', 'timeout', 'stalled', 'cut_off', 'lost')),
           count(*) FILTER (WHERE a.outcome IN ('rejected', 'invalid')),
           count(*) FILTER (WHERE a.outcome IN ('skipped', 'superseded', 'expired', 'discarded')),
           percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY a.duration_ms) FILTER (WHERE a.outcome = 'delivered'),
           (SELECT percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY d.ms) FROM delivered d WHERE d.part = a.part)
    FROM attempt a GROUP BY a.part
$$;
COMMENT ON FUNCTION accord.report_attempts(timestamptz, timestamptz, text, interval) IS 'internal: attempts by parts of an interval';

-- How many deliveries waited at the end of each part: committed by then, and settled later, or owed still.
CREATE FUNCTION accord.report_waiting(since timestamptz, until timestamptz, channel text, step interval, parts integer)
    RETURNS TABLE (part integer, waiting bigint)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH settled AS MATERIALIZED (
        SELECT a.seq, a.recorded_at FROM accord.attempt_log a
        WHERE a.recorded_at >= since AND a.recorded_at < until
          AND a.outcome IN ('delivered', 'skipped', 'superseded', 'expired', 'discarded', 'rejected', 'invalid')
          AND (report_waiting.channel IS NULL OR a.channel = report_waiting.channel)
    ), span AS (
        SELECT c.committed_at AS began, s.recorded_at AS ended
        FROM settled s JOIN accord.commit_log c ON c.seq = s.seq WHERE c.seq >= (SELECT min(seq) FROM settled)
        UNION ALL
        -- what is owed now counts when the report ends now, and it is not too much to be listed
        SELECT o.committed_at, 'infinity' FROM accord.owed() o
        WHERE until >= now() - interval '1 minute' AND (report_waiting.channel IS NULL OR o.channel = report_waiting.channel)
          AND (SELECT coalesce(sum(t.owed), 0) <= 200000 FROM accord.status t)
    ), change AS (
        SELECT greatest(ceil(extract(epoch FROM began - since) / extract(epoch FROM step))::integer, 1) AS part, count(*) AS n FROM span GROUP BY 1
        UNION ALL
        SELECT ceil(extract(epoch FROM ended - since) / extract(epoch FROM step))::integer, -count(*) FROM span WHERE ended < 'infinity' GROUP BY 1
    )
    SELECT g - 1, sum(coalesce(c.n, 0)) OVER (ORDER BY g)::bigint
    FROM generate_series(1, parts) g LEFT JOIN (SELECT part, sum(n) AS n FROM change GROUP BY part) c ON c.part = g
$$;
COMMENT ON FUNCTION accord.report_waiting(timestamptz, timestamptz, text, interval, integer) IS 'internal: deliveries that waited, by parts of an interval';

CREATE FUNCTION accord.report_conflicts(since timestamptz, until timestamptz, step interval)
    RETURNS TABLE (part integer, decided bigint, held bigint)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT floor(extract(epoch FROM c.recorded_at - since) / extract(epoch FROM step))::integer,
           count(*) FILTER (WHERE NOT c.held), count(*) FILTER (WHERE c.held)
    FROM accord.conflict_log c WHERE c.recorded_at >= since AND c.recorded_at < until GROUP BY 1
$$;
COMMENT ON FUNCTION accord.report_conflicts(timestamptz, timestamptz, interval) IS 'internal: conflicts by parts of an interval';

-- The tables below the plots.
CREATE FUNCTION accord.report_tables(since timestamptz, until timestamptz, channel text) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT '<section id="endpoints"><h2>Endpoints</h2>' || accord.report_table(
        ARRAY['channel', 'account', 'state', 'owed', 'oldest', 'dead', 'held', 'delivered', 'failed', 'p50 ms', 'p99 ms', 'last error'],
        (SELECT jsonb_agg(jsonb_build_array(e.channel, e.account, e.state, accord.report_number(e.owed), e.oldest,
                    accord.report_number(e.dead), accord.report_number(e.held), accord.report_number(e.delivered), accord.report_number(e.failed),
                    accord.report_number(e.p50), accord.report_number(e.p99), left(e.last_error, 200)) ORDER BY e.owed DESC NULLS LAST, e.channel, e.account NULLS FIRST)
         FROM (SELECT s.*, accord.report_span(clock_timestamp() - s.oldest_owed) AS oldest, a.delivered, a.failed, a.p50, a.p99
               FROM accord.status s
               LEFT JOIN (SELECT t.channel, t.account, count(*) FILTER (WHERE t.outcome = 'delivered') AS delivered,
                                 count(*) FILTER (WHERE t.outcome NOT IN ('delivered', 'skipped', 'superseded', 'expired', 'discarded')) AS failed,
                                 percentile_cont(0.5) WITHIN GROUP (ORDER BY t.duration_ms) FILTER (WHERE t.outcome = 'delivered') AS p50,
                                 percentile_cont(0.99) WITHIN GROUP (ORDER BY t.duration_ms) FILTER (WHERE t.outcome = 'delivered') AS p99
                          FROM accord.attempt_log t WHERE t.recorded_at >= since AND t.recorded_at < until GROUP BY 1, 2) a
                      ON a.channel = s.channel AND a.account = coalesce(s.account, '')
               WHERE report_tables.channel IS NULL OR s.channel = report_tables.channel
               ORDER BY s.owed DESC NULLS LAST, a.delivered DESC NULLS LAST LIMIT 100) e))
    || E'</section>\n<section id="errors"><h2>Errors</h2>' || accord.report_table(
        ARRAY['channel', 'outcome', 'status', 'error', 'times', 'last'],
        (SELECT jsonb_agg(jsonb_build_array(e.channel, e.outcome, e.status, left(e.error, 300), accord.report_number(e.n), e.last) ORDER BY e.n DESC, e.channel)
         FROM (SELECT a.channel, a.outcome, a.status, a.error, count(*) AS n, to_char(max(a.recorded_at), 'YYYY-MM-DD HH24:MI:SS') AS last
               FROM accord.attempt_log a
               WHERE a.recorded_at >= since AND a.recorded_at < until
                 AND a.outcome NOT IN ('delivered', 'skipped', 'superseded', 'expired', 'discarded')
                 AND (report_tables.channel IS NULL OR a.channel = report_tables.channel)
               GROUP BY 1, 2, 3, 4 ORDER BY n DESC LIMIT 25) e))
    || E'</section>\n<section id="states"><h2>Breakers, throttles, pauses</h2>' || accord.report_table(
        ARRAY['at', 'channel', 'account', 'state', 'until', 'reason'],
        (SELECT jsonb_agg(jsonb_build_array(to_char(e.recorded_at, 'YYYY-MM-DD HH24:MI:SS'), e.channel, e.account, e.state,
                                            to_char(e.until, 'YYYY-MM-DD HH24:MI:SS'), left(e.reason, 200)) ORDER BY e.recorded_at DESC)
         FROM (SELECT l.* FROM accord.endpoint_log l
               WHERE l.recorded_at >= since AND l.recorded_at < report_tables.until
                 AND (report_tables.channel IS NULL OR l.channel = report_tables.channel)
               ORDER BY l.recorded_at DESC LIMIT 50) e))
    || '</section>'
$$;
COMMENT ON FUNCTION accord.report_tables(timestamptz, timestamptz, text) IS 'internal: the tables of the report';

CREATE FUNCTION accord.report(since timestamptz DEFAULT now() - interval '1 day', until timestamptz DEFAULT now(), channel text DEFAULT NULL)
    RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    step interval;
    parts integer;
    first timestamptz;
    labels text[];
    attempts jsonb;                         -- an array for each part, with nulls where nothing was
    waiting jsonb;
    conflicts jsonb;
    page text;
    total record;
    now_owed record;
BEGIN
    IF since IS NULL OR until IS NULL OR since >= until OR NOT isfinite(since) OR NOT isfinite(until) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'the interval of the report is empty or has no end',
            HINT = 'Give a time since, and a later one until.';
    END IF;
    -- some 50 to 100 parts, as clocks and calendars divide
    SELECT s INTO step FROM unnest(ARRAY['1 s', '2 s', '5 s', '15 s', '30 s', '1 min', '2 min', '5 min', '15 min', '30 min', '1 h', '2 h', '4 h', '8 h', '1 day',
                                         '2 days', '7 days', '30 days', '120 days']::interval[]) s
    WHERE s * 96 >= until - since ORDER BY s LIMIT 1;
    IF step IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'the interval of the report is too long',
            HINT = 'Give at most 30 years.';
    END IF;
    first := date_bin(step, since, date_trunc('day', since));
    parts := ceil(extract(epoch FROM until - first) / extract(epoch FROM step));
    SELECT array_agg(to_char(first + g * step, CASE WHEN step < interval '1 min' THEN 'HH24:MI:SS' WHEN until - since <= interval '1 day' THEN 'HH24:MI'
                                                    WHEN step < interval '1 day' THEN 'MM-DD HH24:MI' ELSE 'YYYY-MM-DD' END) ORDER BY g)
    INTO labels FROM generate_series(0, parts - 1) g;

    SELECT jsonb_agg(to_jsonb(a) ORDER BY g.part) INTO attempts
    FROM generate_series(0, parts - 1) g (part) LEFT JOIN accord.report_attempts(first, until, channel, step) a ON a.part = g.part;
    SELECT jsonb_agg(w.waiting ORDER BY w.part) INTO waiting FROM accord.report_waiting(first, until, channel, step, parts) w;
    SELECT jsonb_agg(to_jsonb(c) ORDER BY g.part) INTO conflicts
    FROM generate_series(0, parts - 1) g (part) LEFT JOIN accord.report_conflicts(first, until, step) c ON c.part = g.part;

    SELECT sum((a ->> 'delivered')::bigint) AS delivered, sum((a ->> 'again')::bigint) AS again, sum((a ->> 'failed')::bigint) AS failed,
           max((a -> 'answer' ->> 1)::double precision) AS worst, max((a -> 'whole' ->> 1)::double precision) AS longest
    INTO total FROM jsonb_array_elements(attempts) a;
    SELECT sum(s.owed) AS owed, sum(s.dead) AS dead, sum(s.held) AS held, min(s.oldest_owed) AS oldest INTO now_owed
    FROM accord.status s WHERE channel IS NULL OR s.channel = channel;

    page := format(E'<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en">\n<head><meta charset="utf-8"/>'
                   '<meta name="viewport" content="width=device-width, initial-scale=1"/><title>%s</title><style>%s</style></head>\n<body>\n'
                   '<header><h1>Deliveries of %s</h1><p class="about">%s to %s (%s), in parts of %s%s</p></header>' || E'\n<main>\n',
                   accord.report_text('pg_accord: deliveries of ' || current_database()), accord.report_style(),
                   accord.report_text(current_database()), to_char(since, 'YYYY-MM-DD HH24:MI:SS'),
                   to_char(until, 'YYYY-MM-DD HH24:MI:SS'), accord.report_text(current_setting('TimeZone')), accord.report_span(step),
                   CASE WHEN channel IS NULL THEN '' ELSE ', channel ' || accord.report_text(channel) END)
        || '<dl class="tiles">' || (
            SELECT string_agg(format('<div><dt>%s</dt><dd>%s</dd></div>', name, accord.report_text(coalesce(nullif(value, ''), '-'))), '' ORDER BY n)
            FROM (VALUES (1, 'delivered', accord.report_number(coalesce(total.delivered, 0))),
                         (2, 'attempts that were made again', accord.report_number(coalesce(total.again, 0))),
                         (3, 'attempts refused for good', accord.report_number(coalesce(total.failed, 0))),
                         (4, 'slowest p95 of answers, ms', accord.report_number(total.worst)),
                         (5, 'slowest p95, commit to delivery, ms', accord.report_number(total.longest)),
                         (6, 'owed now', accord.report_number(now_owed.owed)),
                         (7, 'oldest owed', accord.report_span(clock_timestamp() - now_owed.oldest)),
                         (8, 'dead letters now', accord.report_number(now_owed.dead)),
                         (9, 'held now', accord.report_number(now_owed.held))) t (n, name, value))
        || E'</dl>\n';

    page := page
        || accord.report_plot('throughput', 'Throughput', 'Attempts in each part of the interval: delivered, to be made again, and refused for good.',
               'attempts', 'bars', labels, jsonb_build_array(
                   jsonb_build_object('name', 'delivered', 'tone', 'good', 'values', (SELECT jsonb_agg(coalesce(a -> 'delivered', '0')) FROM jsonb_array_elements(attempts) a)),
                   jsonb_build_object('name', 'made again', 'tone', 'slow', 'values', (SELECT jsonb_agg(coalesce(a -> 'again', '0')) FROM jsonb_array_elements(attempts) a)),
                   jsonb_build_object('name', 'refused for good', 'tone', 'bad', 'values', (SELECT jsonb_agg(coalesce(a -> 'failed', '0')) FROM jsonb_array_elements(attempts) a)),
                   jsonb_build_object('name', 'settled without', 'tone', 'still', 'values', (SELECT jsonb_agg(coalesce(a -> 'passed', '0')) FROM jsonb_array_elements(attempts) a))))
        || accord.report_plot('latency', 'Answers', 'How long channels took to answer what they accepted: median, 95th and 99th percentile, over a logarithmic axis.',
               'ms', 'lines', labels, (SELECT jsonb_agg(jsonb_build_object('name', name, 'tone', tone, 'values',
                   (SELECT jsonb_agg(a -> 'answer' -> i) FROM jsonb_array_elements(attempts) a)) ORDER BY i)
                   FROM (VALUES (0, 'p50', 'good'), (1, 'p95', 'fair'), (2, 'p99', 'grave')) v (i, name, tone)))
        || accord.report_plot('delay', 'Commit to delivery', 'How long it took from an event''s commit to its delivery: median, 95th and 99th percentile, over a logarithmic axis.',
               'ms', 'lines', labels, (SELECT jsonb_agg(jsonb_build_object('name', name, 'tone', tone, 'values',
                   (SELECT jsonb_agg(a -> 'whole' -> i) FROM jsonb_array_elements(attempts) a)) ORDER BY i)
                   FROM (VALUES (0, 'p50', 'good'), (1, 'p95', 'fair'), (2, 'p99', 'grave')) v (i, name, tone)))
        || accord.report_plot('backlog', 'Waiting', 'Deliveries that waited at the end of each part: committed by then, settled later or owed still.',
               'deliveries', 'bars', labels, jsonb_build_array(jsonb_build_object('name', 'waiting', 'tone', 'fair', 'values', waiting)))
        || accord.report_plot('conflicts', 'Conflicts', 'Decisions that had a loser, in each part; held ones wait for a person.',
               'conflicts', 'bars', labels, jsonb_build_array(
                   jsonb_build_object('name', 'decided', 'tone', 'fair', 'values', (SELECT jsonb_agg(coalesce(c -> 'decided', '0')) FROM jsonb_array_elements(conflicts) c)),
                   jsonb_build_object('name', 'held', 'tone', 'bad', 'values', (SELECT jsonb_agg(coalesce(c -> 'held', '0')) FROM jsonb_array_elements(conflicts) c))))
        || accord.report_tables(since, until, channel)
        || format(E'\n</main>\n<footer>pg_accord %s, PostgreSQL %s, %s</footer>\n</body>\n</html>\n',
                  (SELECT extversion FROM pg_extension WHERE extname = 'pg_accord'), current_setting('server_version'),
                  to_char(clock_timestamp(), 'YYYY-MM-DD HH24:MI:SS TZ'));
    RETURN page;
END
$$;
COMMENT ON FUNCTION accord.report(timestamptz, timestamptz, text) IS 'how deliveries went (of one channel, perhaps) as one HTML page to open in a browser, the last day by default: throughput, latency, what waited, errors and conflicts; it reads the logs of that interval';
