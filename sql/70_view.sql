-- view: what an operator looks at.

CREATE VIEW accord.attempt AS
    SELECT a.recorded_at, e.event_id, e.topic, e.key, a.channel, nullif(a.account, '') AS account, a.attempt,
           a.outcome, a.status, a.sent, a.duration_ms, a.error, a.response, a.request_id, a.seq, a.ord,
           a.replay, a.rule
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
               pg_catalog.concat_ws(' | ', 'replay ' || a.replay, 'rule ' || a.rule, a.error, a.response)
        FROM accord.attempt_log a WHERE a.seq = c.seq AND a.ord = e.ord
        UNION ALL
        SELECT b.recorded_at, b.channel, nullif(b.account, ''), b.state, b.attempts, NULL, NULL,
               pg_catalog.concat_ws(' | ', 'replay ' || b.replay, 'due ' || b.due_at, 'decided by seq ' || b.decided_by)
        FROM accord.backlog_log b WHERE b.seq = c.seq AND b.ord = e.ord
    ) s
    ORDER BY c.seq, e.ord, s.at;
COMMENT ON VIEW accord.timeline IS 'the life of an event across its channels: recorded, committed, every attempt and every state of the backlog, in the order of time; ask WHERE event_id = ...';

-- What its dispatcher shows of an endpoint: nothing is counted, no log is read.
CREATE FUNCTION accord.endpoint_state(channel text, account text,
    OUT mode text, OUT breaker text, OUT next_probe_at timestamptz, OUT throttled_until timestamptz,
    OUT owed bigint, OUT oldest_owed timestamptz, OUT queued bigint, OUT scheduled bigint, OUT sending bigint,
    OUT retrying bigint, OUT held bigint, OUT dead bigint, OUT in_flight integer, OUT tokens bigint,
    OUT delivered_1m real, OUT delivered_5m real, OUT failed_1m real, OUT failed_5m real, OUT p50_ms real,
    OUT p99_ms real, OUT last_delivered_at timestamptz, OUT last_attempt_at timestamptz, OUT last_outcome text,
    OUT last_error text, OUT last_error_at timestamptz, OUT replaying integer)
    RETURNS record
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'accord_endpoint_state';
COMMENT ON FUNCTION accord.endpoint_state(text, text) IS 'internal: what its dispatcher shows of an endpoint; an empty account is the channel itself; null when nobody dispatches here';

CREATE VIEW accord.status AS
    SELECT e.channel, nullif(e.account, '') AS account,
           CASE WHEN w.state = 'copy' THEN 'copy'
                WHEN NOT e.enabled OR p.since IS NOT NULL THEN 'paused'
                WHEN s.mode IS NULL THEN coalesce(w.state, 'stopped')
                WHEN s.breaker <> 'closed' THEN 'broken'
                WHEN s.throttled_until > pg_catalog.clock_timestamp() THEN 'throttled'
                WHEN s.owed = 0 THEN 'idle'
                WHEN s.retrying + s.held > 0 AND s.last_outcome IS DISTINCT FROM 'delivered' THEN 'failing'
                ELSE 'busy' END AS state,
           s.mode, s.owed, s.oldest_owed, s.queued, s.scheduled, s.sending, s.retrying, s.held, s.dead, s.in_flight,
           s.tokens, s.breaker, s.next_probe_at,
           CASE WHEN s.throttled_until > pg_catalog.clock_timestamp() THEN s.throttled_until END AS throttled_until,
           p.since AS paused_since, p.until AS paused_until, p.reason AS paused_reason,
           s.delivered_1m, s.delivered_5m, s.failed_1m, s.failed_5m, s.p50_ms, s.p99_ms,
           s.last_delivered_at, s.last_attempt_at, s.last_outcome, s.last_error, s.last_error_at, s.replaying,
           w.why AS why_silent
    FROM (SELECT c.name AS channel, ''::text AS account, c.enabled FROM accord.channel c
          UNION ALL
          SELECT a.channel, a.name, a.enabled AND c.enabled
          FROM accord.account a JOIN accord.channel c ON c.name = a.channel) e
    CROSS JOIN accord.silence() w
    -- what the dispatcher of a copy shows is not what is owed
    LEFT JOIN LATERAL accord.endpoint_state(e.channel, e.account) s ON w.state IS DISTINCT FROM 'copy'
    LEFT JOIN LATERAL (SELECT q.since, q.until, q.reason FROM accord.paused q
                       WHERE q.channel = e.channel AND (q.account IS NULL OR q.account = e.account)
                         AND (q.until IS NULL OR q.until > pg_catalog.now())
                       ORDER BY q.account LIMIT 1) p ON true;
COMMENT ON VIEW accord.status IS 'every endpoint (channel, or account of a channel), live: what it is owed, whether it lags, its circuit breaker and limits, rates over one and five minutes, latency, and its last error; null where nobody dispatches, and why that is';

CREATE VIEW accord.consumer_status AS
    SELECT c.name, c.topic, c.owner, p.position, greatest(s.seq - p.position, 0) AS behind,
           (SELECT l.committed_at FROM accord.commit_log l WHERE l.seq > p.position AND l.seq <= s.seq ORDER BY l.seq LIMIT 1) AS oldest_unread,
           p.position > 0 AND p.position < h.seq AS lost
    FROM accord.consumer c
    CROSS JOIN LATERAL accord.consumer_position(c.id) AS p (position)
    CROSS JOIN LATERAL (SELECT coalesce(max(r.last_seq), 0) AS seq FROM accord.retirement r
                        WHERE r.log = 'event' AND r.truncated_at IS NOT NULL) AS h
    CROSS JOIN LATERAL accord.safe_seq() AS s (seq);
COMMENT ON VIEW accord.consumer_status IS 'how far each consumer has come: its position, the commit numbers behind it, the time of the oldest commit it has not read, and whether it has lost its place';
