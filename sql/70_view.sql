-- view: what an operator looks at.

CREATE VIEW accord.attempt AS
    SELECT a.recorded_at, e.event_id, e.topic, e.key, a.channel, nullif(a.account, '') AS account, a.attempt,
           a.outcome, a.status, a.sent, a.duration_ms, a.error, a.response, a.request_id, a.seq, a.ord
    FROM accord.attempt_log a
    LEFT JOIN accord.commit_log c ON c.seq = a.seq
    LEFT JOIN accord.event_log e ON e.slot = c.slot AND e.tx_id = c.tx_id AND e.ord = a.ord;
COMMENT ON VIEW accord.attempt IS 'every attempt with the event it was about';

-- The life of events across their channels, step by step.
CREATE VIEW accord.timeline AS
    SELECT e.event_id, e.topic, e.key, s.at, s.channel, s.account, s.step, s.attempt, s.status, s.duration_ms, s.detail,
           c.seq, e.ord
    FROM accord.event_log e
    JOIN accord.commit_log c ON c.slot = e.slot AND c.tx_id = e.tx_id
    CROSS JOIN LATERAL (
        SELECT e.recorded_at AS at, NULL::text AS channel, NULL::text AS account, 'recorded'::text AS step,
               NULL::integer AS attempt, NULL::smallint AS status, NULL::real AS duration_ms,
               pg_catalog.concat_ws(', ', 'actor ' || c.actor, 'reason ' || c.reason,
                                    'correlation ' || c.correlation_id) AS detail
        UNION ALL
        SELECT c.committed_at, NULL, NULL, 'committed', NULL, NULL, NULL, 'seq ' || c.seq
        UNION ALL
        SELECT a.recorded_at, a.channel, nullif(a.account, ''), a.outcome, a.attempt, a.status, a.duration_ms,
               pg_catalog.concat_ws(' | ', a.error, a.response)
        FROM accord.attempt_log a WHERE a.seq = c.seq AND a.ord = e.ord
        UNION ALL
        SELECT b.recorded_at, b.channel, nullif(b.account, ''), b.state, b.attempts, NULL, NULL,
               pg_catalog.concat_ws(' | ', 'due ' || b.due_at, 'decided by seq ' || b.decided_by)
        FROM accord.backlog_log b WHERE b.seq = c.seq AND b.ord = e.ord
    ) s
    ORDER BY c.seq, e.ord, s.at;
COMMENT ON VIEW accord.timeline IS 'the life of an event across its channels: recorded, committed, every attempt and every state of the backlog, in the order of time; ask WHERE event_id = ...';

CREATE VIEW accord.status AS
    WITH owed AS (
        SELECT o.channel, o.account, pg_catalog.count(*) AS owed, pg_catalog.min(o.committed_at) AS oldest_owed,
               pg_catalog.count(*) FILTER (WHERE o.state IN ('queued', 'waiting')) AS queued,
               pg_catalog.count(*) FILTER (WHERE o.state = 'scheduled') AS scheduled,
               pg_catalog.count(*) FILTER (WHERE o.state = 'sending') AS sending,
               pg_catalog.count(*) FILTER (WHERE o.state IN ('retrying', 'replayed')) AS retrying,
               pg_catalog.count(*) FILTER (WHERE o.state = 'held') AS held
        FROM accord.owed() o GROUP BY o.channel, o.account
    ), dead AS (
        SELECT b.channel, coalesce(b.account, '') AS account, pg_catalog.count(*) AS dead
        FROM accord.backlog b WHERE b.state = 'dead' GROUP BY 1, 2
    ), hour AS MATERIALIZED (
        SELECT a.channel, a.account,
               pg_catalog.count(*) FILTER (WHERE a.outcome = 'delivered') AS delivered,
               pg_catalog.count(*) FILTER (WHERE a.outcome <> 'delivered') AS failed,
               pg_catalog.percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY a.duration_ms)
                   FILTER (WHERE a.outcome = 'delivered') AS percentiles,
               pg_catalog.max(a.recorded_at) FILTER (WHERE a.outcome = 'delivered') AS last_delivered_at,
               pg_catalog.max(a.recorded_at) AS last_attempt_at,
               pg_catalog.max(a.recorded_at) FILTER (WHERE a.error IS NOT NULL) AS last_error_at
        FROM accord.attempt_log a
        WHERE a.recorded_at > pg_catalog.now() - interval '1 hour'
        GROUP BY a.channel, a.account
    ), last AS (
        -- attempts that were settled together have the same time: any of them will do
        SELECT a.channel, a.account,
               pg_catalog.max(a.outcome) FILTER (WHERE a.recorded_at = h.last_attempt_at) AS outcome,
               pg_catalog.max(a.error) FILTER (WHERE a.recorded_at = h.last_error_at) AS error
        FROM hour h
        JOIN accord.attempt_log a ON a.channel = h.channel AND a.account = h.account
                                 AND a.recorded_at IN (h.last_attempt_at, h.last_error_at)
        WHERE a.recorded_at > pg_catalog.now() - interval '1 hour'
        GROUP BY a.channel, a.account
    ), endpoint AS (
        SELECT c.name AS channel, ''::text AS account FROM accord.channel c
        UNION SELECT a.channel, a.name FROM accord.account a
        UNION SELECT owed.channel, owed.account FROM owed
        UNION SELECT dead.channel, dead.account FROM dead
    )
    SELECT e.channel, nullif(e.account, '') AS account,
           CASE WHEN c.name IS NULL THEN 'removed'
                WHEN NOT c.enabled OR NOT coalesce(ac.enabled, true) THEN 'paused'
                WHEN coalesce(o.owed, 0) = 0 THEN 'idle'
                WHEN o.retrying + o.held > 0 AND l.outcome IS DISTINCT FROM 'delivered' THEN 'failing'
                ELSE 'busy' END AS state,
           coalesce(o.owed, 0) AS owed, o.oldest_owed, coalesce(o.queued, 0) AS queued,
           coalesce(o.scheduled, 0) AS scheduled, coalesce(o.sending, 0) AS sending,
           coalesce(o.retrying, 0) AS retrying, coalesce(o.held, 0) AS held,
           coalesce(d.dead, 0) AS dead,
           coalesce(h.delivered, 0) AS delivered_last_hour, coalesce(h.failed, 0) AS failed_last_hour,
           h.percentiles[1] AS p50_ms, h.percentiles[2] AS p99_ms, h.last_delivered_at,
           h.last_attempt_at, l.outcome AS last_outcome, l.error AS last_error, h.last_error_at
    FROM endpoint e
    LEFT JOIN accord.channel c ON c.name = e.channel
    LEFT JOIN accord.account ac ON ac.channel = e.channel AND ac.name = e.account
    LEFT JOIN owed o ON o.channel = e.channel AND o.account = e.account
    LEFT JOIN dead d ON d.channel = e.channel AND d.account = e.account
    LEFT JOIN hour h ON h.channel = e.channel AND h.account = e.account
    LEFT JOIN last l ON l.channel = e.channel AND l.account = e.account;
COMMENT ON VIEW accord.status IS 'every endpoint (channel, or account of a channel): what it is owed, what failed, how fast it answers, and its last error';
