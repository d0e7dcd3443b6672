-- delivery: what was tried, what is owed beside the log, and how far each dispatcher has come.
-- All of it is written by the dispatchers alone.

CREATE SEQUENCE accord.attempt_slot AS bigint MINVALUE 0 START 0;
CREATE SEQUENCE accord.backlog_slot AS bigint MINVALUE 0 START 0;
SELECT pg_catalog.setval('accord.attempt_slot', 0), pg_catalog.setval('accord.backlog_slot', 0);

-- The persisted positions, one per dispatcher, and the number of dispatchers they belong to. Sequences, because a row
-- updated for every batch decays under a held snapshot.
CREATE SEQUENCE accord.dispatcher_count AS bigint MINVALUE 0 START 0;
SELECT pg_catalog.setval('accord.dispatcher_count', 0);
DO $$
BEGIN
    FOR d IN 0..15 LOOP
        EXECUTE pg_catalog.format('CREATE SEQUENCE accord.position_%s AS bigint MINVALUE 0 START 0', d);
        PERFORM pg_catalog.setval(pg_catalog.format('accord.position_%s', d)::pg_catalog.regclass, 0);
    END LOOP;
END
$$;

-- attempt_log: one row per HTTP attempt, and per event that was settled without one.
--   seq, ord       the event: its transaction's place in the commit order, and its place therein
--   outcome        what was concluded (README, "Outcomes")
--   sent           how far the request got: no (not sent), unknown (sent, no answer), yes (answered)
--   replay         the replay that it was a part of
--   rule           the rule that decided; null: a built-in one
CREATE TABLE accord.attempt_log (
    seq bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    ord integer NOT NULL,
    attempt integer NOT NULL,
    duration_ms real,
    slot smallint NOT NULL,
    status smallint,
    channel text NOT NULL,
    account text NOT NULL,
    outcome text NOT NULL,
    sent text,
    error text,
    response text,
    request_id text,
    replay bigint,
    rule bigint
) PARTITION BY LIST (slot);

-- backlog_log: the states a delivery passed through once it became an exception; the highest version counts.
--   owed_since     when it was committed, due for the first time, or replayed: what max_age counts from
--   attempted_at   its first attempt; due_at: not to be tried before
--   decided_by     the commit number of the redeliver() or discard() that brought it here
--   request        of a command: the request as first made, to be repeated to the letter; of what was accepted: how to ask what
--                  became of it
--   replay         the replay that it is a part of
-- Appended, never updated: a row updated for every retry decays under a held snapshot.
CREATE TABLE accord.backlog_log (
    seq bigint NOT NULL,
    tx_id bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    owed_since timestamptz NOT NULL,
    attempted_at timestamptz,
    due_at timestamptz,
    route bigint,
    decided_by bigint,
    ord integer NOT NULL,
    version integer NOT NULL,
    attempts integer NOT NULL,
    slot smallint NOT NULL,
    event_slot smallint NOT NULL,
    priority smallint NOT NULL,
    channel text NOT NULL,
    account text NOT NULL,
    key text,
    state text NOT NULL CHECK (state IN ('scheduled', 'waiting', 'sending', 'retrying', 'replayed', 'accepted', 'verifying', 'held', 'dead', 'delivered', 'skipped', 'superseded', 'expired', 'discarded')),
    error text,
    request jsonb,
    replay bigint
) PARTITION BY LIST (slot);
CREATE INDEX backlog_log_delivery ON accord.backlog_log (channel, account, seq, ord, version);

-- cursor_log: how far an endpoint has come that lags behind its dispatcher's position; the highest version counts,
-- everything up to event ord of transaction seq is settled; a null seq means that it no longer lags. behind counts what was
-- owed after that, of the log up to transaction "counted".
CREATE TABLE accord.cursor_log (
    version bigint NOT NULL,
    seq bigint,
    recorded_at timestamptz NOT NULL,
    behind bigint,
    counted bigint,
    ord integer,
    slot smallint NOT NULL,
    priority smallint NOT NULL,
    channel text NOT NULL,
    account text NOT NULL
) PARTITION BY LIST (slot);
CREATE INDEX cursor_log_endpoint ON accord.cursor_log (channel, account, priority, version);

-- endpoint_log: changes of an endpoint's state.
--   state   open, half_open, closed (its circuit breaker), throttled (the server asked for a pause), paused, resumed
--   until   open: when a probe is due; throttled, paused: when it ends, if that is known
CREATE TABLE accord.endpoint_log (
    recorded_at timestamptz NOT NULL,
    until timestamptz,
    slot smallint NOT NULL,
    channel text NOT NULL,
    account text NOT NULL,
    state text NOT NULL CHECK (state IN ('open', 'half_open', 'closed', 'throttled', 'paused', 'resumed')),
    reason text
) PARTITION BY LIST (slot);
CREATE INDEX endpoint_log_endpoint ON accord.endpoint_log (channel, account, recorded_at);

DO $$
BEGIN
    FOR s IN 0..7 LOOP
        EXECUTE pg_catalog.format('CREATE TABLE accord.endpoint_log_%s PARTITION OF accord.endpoint_log FOR VALUES IN (%s)', s, s);
        EXECUTE pg_catalog.format('CREATE TABLE accord.attempt_log_%s PARTITION OF accord.attempt_log FOR VALUES IN (%s) WITH (autovacuum_vacuum_insert_scale_factor = 0.05)', s, s);
        EXECUTE pg_catalog.format('CREATE INDEX attempt_log_%s_seq ON accord.attempt_log_%s USING brin (seq, recorded_at) WITH (pages_per_range = 32)', s, s);
    END LOOP;
    FOR s IN 0..3 LOOP
        EXECUTE pg_catalog.format('CREATE TABLE accord.backlog_log_%s PARTITION OF accord.backlog_log FOR VALUES IN (%s)', s, s);
        EXECUTE pg_catalog.format('CREATE TABLE accord.cursor_log_%s PARTITION OF accord.cursor_log FOR VALUES IN (%s)', s, s);
    END LOOP;
END
$$;

-- checkpoint: one row, the lowest position as of the last housekeeping. A dump reads sequences later than rows, so a
-- restored position may be ahead of the rows restored with it; this is not, and adopt() goes back to it. Nothing after it
-- is emptied.
CREATE TABLE accord.checkpoint (
    position bigint NOT NULL,
    recorded_at timestamptz NOT NULL
);
INSERT INTO accord.checkpoint (position, recorded_at) VALUES (0, pg_catalog.now());
COMMENT ON TABLE accord.checkpoint IS 'the lowest position of the dispatchers as of the last housekeeping: what a restored copy goes back to when it is adopted';

-- identity: the database whose data this is, from CREATE EXTENSION on; zero: rows of the log came from elsewhere, by a
-- restore. More than one, or another one: it is a copy, and silent.
CREATE TABLE accord.identity (
    system_identifier bigint NOT NULL,
    database oid NOT NULL,
    timeline integer NOT NULL DEFAULT 0,
    recorded_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
-- No unique key: sessions that restore in parallel would wait for each other.
ALTER TABLE accord.identity REPLICA IDENTITY FULL;
CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON accord.identity
    FOR EACH STATEMENT EXECUTE FUNCTION accord.config_changed();
ALTER TABLE accord.identity ENABLE ALWAYS TRIGGER config_changed;
CREATE FUNCTION accord.take_identity() RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'accord_take_identity';
COMMENT ON FUNCTION accord.take_identity() IS 'internal: the data is this database''s own from now on';
REVOKE ALL ON FUNCTION accord.take_identity() FROM PUBLIC;
SELECT accord.take_identity();
CREATE FUNCTION accord.silence(OUT state text, OUT why text) RETURNS record
    LANGUAGE c STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'accord_silence';
COMMENT ON FUNCTION accord.silence() IS 'why nothing is sent from this database: copy (until accord.adopt()), standby or stopped, and the reason; nulls when it is not so';

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['event_log', 'commit_log', 'attempt_log', 'backlog_log', 'cursor_log', 'endpoint_log'] LOOP
        EXECUTE pg_catalog.format('CREATE TRIGGER log_guard BEFORE INSERT OR UPDATE OR DELETE ON accord.%I FOR EACH ROW EXECUTE FUNCTION accord.log_guard()', t);
        EXECUTE pg_catalog.format('CREATE TRIGGER log_guard_truncate BEFORE TRUNCATE ON accord.%I FOR EACH STATEMENT EXECUTE FUNCTION accord.log_guard()', t);
    END LOOP;
    -- A trigger's enabled state is not inherited by partitions, and statement triggers are not cloned at all.
    FOR t IN SELECT c.relname FROM pg_catalog.pg_class c
             WHERE c.relnamespace = 'accord'::pg_catalog.regnamespace AND c.relkind IN ('r', 'p')
               AND c.relname ~ '^(event|commit|attempt|backlog|cursor|endpoint)_log(_[0-9]+)?$' LOOP
        IF t ~ '_[0-9]+$' THEN
            EXECUTE pg_catalog.format('CREATE TRIGGER log_guard_truncate BEFORE TRUNCATE ON accord.%I FOR EACH STATEMENT EXECUTE FUNCTION accord.log_guard()', t);
        END IF;
        EXECUTE pg_catalog.format('ALTER TABLE accord.%I ENABLE ALWAYS TRIGGER log_guard', t);
        EXECUTE pg_catalog.format('ALTER TABLE accord.%I ENABLE ALWAYS TRIGGER log_guard_truncate', t);
    END LOOP;
END
$$;

COMMENT ON TABLE accord.attempt_log IS 'one row per attempt, and per event settled without one; accord.attempt joins it with the events';
COMMENT ON COLUMN accord.attempt_log.outcome IS 'delivered, accepted, conflict, retry, retry_after, rejected, unauthorized, unreachable, timeout, stalled, cut_off, unclear, invalid, skipped, superseded, expired, discarded or lost';
COMMENT ON COLUMN accord.attempt_log.sent IS 'no: nothing left, safe to repeat; unknown: sent, no complete answer; yes: answered';
COMMENT ON COLUMN accord.attempt_log.response IS 'the beginning of an answer that was not a success';
COMMENT ON COLUMN accord.attempt_log.rule IS 'the row of accord.rule that decided; null: a built-in rule';
COMMENT ON COLUMN accord.attempt_log.account IS 'the account; empty for the channel''s own endpoint';
COMMENT ON TABLE accord.backlog_log IS 'the states a delivery passed through once it became an exception; the highest version counts: see accord.backlog';
COMMENT ON TABLE accord.endpoint_log IS 'changes of an endpoint''s state: its circuit breaker (open, half_open, closed), throttled by the server, paused and resumed by somebody';
COMMENT ON COLUMN accord.endpoint_log.account IS 'the account; empty for the channel''s own endpoint, and for what concerns the whole channel';
COMMENT ON COLUMN accord.endpoint_log.until IS 'open: when a probe is due; throttled, paused: when that ends, if it is known';
COMMENT ON COLUMN accord.endpoint_log.reason IS 'open: the last error; throttled: the answer; paused, resumed: as given';
COMMENT ON TABLE accord.cursor_log IS 'how far endpoints have come that lag behind their dispatcher''s position; the highest version counts';
