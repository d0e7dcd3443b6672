-- stat: what was counted, since the server was set up or stat_reset() was called.

CREATE FUNCTION accord.endpoint_counters(channel text, account text,
    OUT requests bigint, OUT answered bigint, OUT delivered bigint, OUT skipped bigint, OUT superseded bigint,
    OUT expired bigint, OUT discarded bigint, OUT dead bigint, OUT held bigint, OUT retried bigint, OUT rejected bigint,
    OUT invalid bigint, OUT unauthorized bigint, OUT unreachable bigint, OUT timeouts bigint, OUT cut_off bigint,
    OUT throttles bigint, OUT breaker_openings bigint, OUT bytes_sent bigint, OUT bytes_received bigint,
    OUT answer_time double precision, OUT latency bigint[], OUT stats_reset timestamptz)
    RETURNS record
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'accord_endpoint_counters';
COMMENT ON FUNCTION accord.endpoint_counters(text, text) IS 'internal: what was counted of an endpoint; an empty account is the channel itself';

CREATE FUNCTION accord.database_counters(
    OUT transactions bigint, OUT events bigint, OUT captured bigint, OUT received bigint, OUT duplicates bigint,
    OUT repeated bigint, OUT conflicts bigint, OUT dispatcher_starts bigint, OUT stats_reset timestamptz)
    RETURNS record
    LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'accord_database_counters';
COMMENT ON FUNCTION accord.database_counters() IS 'internal: what was counted in this database';

CREATE FUNCTION accord.reset_counters(channel text, account text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_stat_reset';
COMMENT ON FUNCTION accord.reset_counters(text, text) IS 'internal: counts an endpoint anew, or everything';

CREATE FUNCTION accord.latency_bounds() RETURNS double precision[]
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'accord_latency_bounds';
COMMENT ON FUNCTION accord.latency_bounds() IS 'up to how many milliseconds the classes of accord.pg_stat_accord.latency reach';

CREATE VIEW accord.pg_stat_accord AS
    SELECT e.channel, nullif(e.account, '') AS account, c.*
    FROM (SELECT n.name AS channel, ''::text AS account FROM accord.channel n
          UNION ALL
          SELECT a.channel, a.name FROM accord.account a) e
    CROSS JOIN LATERAL accord.endpoint_counters(e.channel, e.account) c;
COMMENT ON VIEW accord.pg_stat_accord IS 'what was counted of every endpoint (channel, or account of a channel) since stats_reset; live, kept when the server is stopped, begun anew after a crash';
COMMENT ON COLUMN accord.pg_stat_accord.requests IS 'HTTP requests of deliveries that ended, whatever their end; a batch is one';
COMMENT ON COLUMN accord.pg_stat_accord.answered IS 'requests that got a complete answer, whatever its status';
COMMENT ON COLUMN accord.pg_stat_accord.delivered IS 'deliveries: events that the channel accepted';
COMMENT ON COLUMN accord.pg_stat_accord.dead IS 'deliveries that became dead letters';
COMMENT ON COLUMN accord.pg_stat_accord.held IS 'deliveries that came to wait for a person';
COMMENT ON COLUMN accord.pg_stat_accord.retried IS 'attempts that failed and are made again';
COMMENT ON COLUMN accord.pg_stat_accord.timeouts IS 'attempts that took too long, or stalled';
COMMENT ON COLUMN accord.pg_stat_accord.throttles IS 'pauses that the server asked for';
COMMENT ON COLUMN accord.pg_stat_accord.breaker_openings IS 'how often the circuit breaker opened; a probe that fails is not counted';
COMMENT ON COLUMN accord.pg_stat_accord.bytes_sent IS 'of requests'' bodies, as they went over the wire';
COMMENT ON COLUMN accord.pg_stat_accord.bytes_received IS 'of answers'' bodies, as they came over the wire';
COMMENT ON COLUMN accord.pg_stat_accord.answer_time IS 'milliseconds that all answered requests took, together';
COMMENT ON COLUMN accord.pg_stat_accord.latency IS 'how many answered requests took how long: one number for each class of accord.latency_bounds()';
COMMENT ON COLUMN accord.pg_stat_accord.stats_reset IS 'when counting began; null: nothing was counted yet';

CREATE VIEW accord.pg_stat_accord_database AS SELECT c.* FROM accord.database_counters() c;
COMMENT ON VIEW accord.pg_stat_accord_database IS 'what was counted in this database since stats_reset, of transactions that committed';
COMMENT ON COLUMN accord.pg_stat_accord_database.transactions IS 'transactions that wrote events';
COMMENT ON COLUMN accord.pg_stat_accord_database.events IS 'events written';
COMMENT ON COLUMN accord.pg_stat_accord_database.captured IS 'of these, events of captured tables';
COMMENT ON COLUMN accord.pg_stat_accord_database.received IS 'messages received for the first time';
COMMENT ON COLUMN accord.pg_stat_accord_database.duplicates IS 'messages received again, that had no effect';
COMMENT ON COLUMN accord.pg_stat_accord_database.repeated IS 'events, rows and work discarded because their idempotency key was used';
COMMENT ON COLUMN accord.pg_stat_accord_database.conflicts IS 'decisions of a policy, or about claims, that had a loser';
COMMENT ON COLUMN accord.pg_stat_accord_database.dispatcher_starts IS 'dispatchers that were started';

CREATE FUNCTION accord.stat_reset(channel text DEFAULT NULL, account text DEFAULT NULL) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT accord.reset_counters(NULL, NULL) WHERE stat_reset.channel IS NULL;
    SELECT accord.reset_counters(s.channel, coalesce(s.account, ''))
    FROM accord.pg_stat_accord s
    WHERE s.channel = stat_reset.channel
      AND (stat_reset.account IS NULL OR coalesce(s.account, '') = stat_reset.account);
$$;
COMMENT ON FUNCTION accord.stat_reset(text, text) IS 'counts anew in accord.pg_stat_accord: an endpoint (an empty account is the channel itself), a channel with all its accounts, or, without a channel, everything of this database';
