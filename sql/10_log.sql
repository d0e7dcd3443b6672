-- log: the events, the commits that made them visible, and how both are read in commit order.

-- Numbers.
--   tx_seq      names a transaction that wrote events (drawn at its first event)
--   commit_seq  orders them (drawn at its commit); a reader's cursor is one of these
--   log_slot    how often the ring of event_log and commit_log has moved on; modulo 8 it is the current slot
CREATE SEQUENCE accord.tx_seq AS bigint;
CREATE SEQUENCE accord.commit_seq AS bigint;
CREATE SEQUENCE accord.log_slot AS bigint MINVALUE 0 START 0;
SELECT pg_catalog.setval('accord.log_slot', 0);

-- event_log: one row per change, for good (until retention).
--   tx_id, ord       the transaction that wrote it, and the place within it
--   slot             the ring's partition
--   event_id         UUID version 7; also the idempotency key every channel sees
--   occurred_at      when it happened, by its author's clock; recorded_at: when it was written, by ours
--   deliver_at       not to be sent before; expires_at: not to be sent from then on
--   table_id         the captured table whose row changed (accord.captured.id); null: it came through the outbox
--   priority         0 urgent, 1 normal, 2 bulk
--   salt             10 random bytes, so that the content cannot be guessed from its digest; and 6 bytes of the event's
--                    digest, which tell which event of a transaction was changed
--   topic, key, op   what it is about; one key's events reach a channel in commit order
--   source           who caused it: null for the application itself, else the channel it came from
--   account          the customer's connection it concerns
--   channels         explicit address; null: the routes decide
--   payload, before  after image or message; for an update, the old values of the changed columns
--   headers          HTTP headers to send along
--   erased           of an erased event: the digest of its payload, before and headers, which are null then, as salt is
--   erased_by        the transaction (tx_id) that erased it
CREATE TABLE accord.event_log (
    tx_id bigint NOT NULL,
    ord integer NOT NULL,
    slot smallint NOT NULL,
    priority smallint NOT NULL,
    event_id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    deliver_at timestamptz,
    expires_at timestamptz,
    erased_by bigint,
    table_id integer,
    salt uuid,
    topic text NOT NULL CHECK (topic <> ''),
    key text,
    op text NOT NULL CHECK (op IN ('insert', 'update', 'delete', 'truncate', 'event')),
    source text,
    account text,
    channels text[],
    idempotency_key text,
    payload jsonb,
    before jsonb,
    headers jsonb,
    erased bytea,
    PRIMARY KEY (tx_id, ord, slot)
) PARTITION BY LIST (slot);

-- commit_log: one row per transaction that wrote events, in commit order.
--   digest           SHA-256 of this row and of its events: the leaf of the Merkle tree that accord.seal is the root of
CREATE TABLE accord.commit_log (
    seq bigint NOT NULL,
    tx_id bigint NOT NULL,
    committed_at timestamptz NOT NULL,
    role oid NOT NULL,
    events integer NOT NULL,
    slot smallint NOT NULL,
    digest bytea NOT NULL,
    actor text,
    application_name text,
    client_addr inet,
    reason text,
    correlation_id text,
    PRIMARY KEY (seq, slot)
) PARTITION BY LIST (slot);

-- prepared: one row of each prepared transaction that wrote events, and a part of it; what COMMIT PREPARED needs to give it
-- its place in commit_log (src/prepared.c). So what one sees here was committed, and is about to get its place.
--   digest           until then, the root of its events
CREATE TABLE accord.prepared (
    LIKE accord.commit_log,
    gid text COLLATE "C" NOT NULL
);
CREATE INDEX prepared_gid ON accord.prepared (gid);

-- A fixed ring: partitions made at run time would be DDL on the hot path and would not be extension members.
-- What happened to one row of a captured table is found by (table_id, key): ask WHERE table_id = ... AND key COLLATE "C" =
-- ...; events of the outbox are not in that index and do not pay for it. The block range indexes are summarized by autovacuum, which therefore comes more often than for other insert-only
-- tables; not by autosummarize, as that complains in the writer's session when autovacuum's list of requests is full.
DO $$
BEGIN
    FOR s IN 0..7 LOOP
        EXECUTE pg_catalog.format('CREATE TABLE accord.event_log_%s PARTITION OF accord.event_log FOR VALUES IN (%s) WITH (autovacuum_vacuum_insert_scale_factor = 0.05)', s, s);
        EXECUTE pg_catalog.format('CREATE INDEX event_log_%s_event_id ON accord.event_log_%s USING brin (event_id) WITH (pages_per_range = 32)', s, s);
        EXECUTE pg_catalog.format('CREATE INDEX event_log_%s_table_key ON accord.event_log_%s (table_id, key COLLATE "C") WHERE table_id IS NOT NULL', s, s);
        EXECUTE pg_catalog.format('CREATE TABLE accord.commit_log_%s PARTITION OF accord.commit_log FOR VALUES IN (%s) WITH (autovacuum_vacuum_insert_scale_factor = 0.05)', s, s);
        EXECUTE pg_catalog.format('CREATE INDEX commit_log_%s_tx_id ON accord.commit_log_%s USING brin (tx_id) WITH (pages_per_range = 32)', s, s);
    END LOOP;
END
$$;

-- The guard: rows of a log are for good. ENABLE ALWAYS, so that session_replication_role does not open it.
CREATE FUNCTION accord.log_guard() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'accord_log_guard';
COMMENT ON FUNCTION accord.log_guard() IS 'trigger: refuses UPDATE, DELETE and TRUNCATE of a log, and INSERTs that did not come through accord.outbox';

CREATE FUNCTION accord.safe_seq() RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_safe_seq';
COMMENT ON FUNCTION accord.safe_seq() IS 'the highest commit number up to which every commit is visible to a snapshot taken after this call';

CREATE FUNCTION accord.read(after_seq bigint, max integer DEFAULT 1000,
    OUT seq bigint, OUT committed_at timestamptz, OUT tx_id bigint, OUT ord integer, OUT event_id uuid,
    OUT topic text, OUT key text, OUT op text, OUT payload jsonb, OUT before jsonb,
    OUT source text, OUT account text, OUT occurred_at timestamptz, OUT recorded_at timestamptz,
    OUT deliver_at timestamptz, OUT expires_at timestamptz, OUT priority smallint, OUT channels text[], OUT idempotency_key text, OUT headers jsonb,
    OUT table_id integer, OUT actor text, OUT reason text, OUT correlation_id text)
    RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE ROWS 1000 AS 'MODULE_PATHNAME', 'accord_read';
COMMENT ON FUNCTION accord.read(bigint, integer) IS 'events committed after after_seq, in commit order and in whole transactions, until at least max events are returned; none is ever missed by a reader that remembers the last seq it saw';

COMMENT ON TABLE accord.event_log IS 'every event, for good until retention; written through accord.outbox and by captured tables, read in commit order by accord.read()';
COMMENT ON TABLE accord.commit_log IS 'one row per transaction that wrote events, in commit order: who, when, why';
COMMENT ON TABLE accord.prepared IS 'transactions that were prepared and wrote events, until COMMIT PREPARED gives them their place in commit_log';
COMMENT ON COLUMN accord.event_log.table_id IS 'the captured table whose row changed, accord.captured.id; null: the event came through accord.outbox';
COMMENT ON COLUMN accord.event_log.erased IS 'not null: the content was erased (accord.erase()), and this is its digest';
COMMENT ON COLUMN accord.commit_log.digest IS 'SHA-256 of the row and its events; sealed in accord.seal, checked by accord.verify()';
COMMENT ON COLUMN accord.commit_log.seq IS 'place in the commit order; a reader''s cursor is one of these';
COMMENT ON COLUMN accord.commit_log.actor IS 'accord.actor of the session when it committed';
COMMENT ON COLUMN accord.commit_log.reason IS 'accord.reason of the session when it committed';
COMMENT ON COLUMN accord.commit_log.correlation_id IS 'accord.correlation_id of the session when it committed';
