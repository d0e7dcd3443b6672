-- idempotency: keys that were used, and for what content. Keys outlive what they were used for.

-- How often the ring of idempotency_key has moved on; modulo 4 it is the current slot.
CREATE SEQUENCE accord.key_slot AS bigint MINVALUE 0 START 0;
SELECT pg_catalog.setval('accord.key_slot', 0);

-- idempotency_key: one row per used key. src/keys.c sees to it that there is only one, across the slots; the columns
-- are those of inbox.
--   scope        who keeps these keys: 'outbox' for events, a table's for accord.idempotent(), any for accord.once()
--   fingerprint  SHA-256 of the content
--   tx_id        the transaction that wrote events under it
--   event_id     the event it stands for
--   result       what accord.once() returned
CREATE TABLE accord.idempotency_key (
    scope text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    slot smallint NOT NULL,
    created_at timestamptz NOT NULL,
    fingerprint bytea NOT NULL,
    tx_id bigint,
    event_id uuid,
    result jsonb,
    PRIMARY KEY (key, scope, slot)
) PARTITION BY LIST (slot);
COMMENT ON TABLE accord.idempotency_key IS 'idempotency keys that were used, with a fingerprint of the content, and the result where there is one; kept for accord.idempotency_retention, or as idempotency_scope says';
COMMENT ON COLUMN accord.idempotency_key.scope IS 'outbox for events; else the scope of accord.idempotent() or accord.once()';
COMMENT ON COLUMN accord.idempotency_key.fingerprint IS 'SHA-256 of the content';
COMMENT ON COLUMN accord.idempotency_key.event_id IS 'of the event it stands for';
COMMENT ON COLUMN accord.idempotency_key.result IS 'what accord.once() returns to every repeat';

DO $$
BEGIN
    FOR s IN 0..3 LOOP
        EXECUTE pg_catalog.format('CREATE TABLE accord.idempotency_key_%s PARTITION OF accord.idempotency_key FOR VALUES IN (%s) WITH (autovacuum_vacuum_insert_scale_factor = 0.05)', s, s);
        EXECUTE pg_catalog.format('CREATE INDEX idempotency_key_%s_created_at ON accord.idempotency_key_%s USING brin (created_at) WITH (pages_per_range = 32)', s, s);
    END LOOP;
END
$$;

-- idempotency_scope: what is said of a scope; one without a row has the defaults.
CREATE TABLE accord.idempotency_scope (
    scope text PRIMARY KEY CHECK (scope <> '' AND pg_catalog.octet_length(scope) <= 255),
    retention interval CHECK (retention BETWEEN interval '1 min' AND interval '100 years'),
    description text
);
COMMENT ON TABLE accord.idempotency_scope IS 'how long the keys of a scope are kept, where accord.idempotency_retention is not the answer';
COMMENT ON COLUMN accord.idempotency_scope.retention IS 'keys are kept at least so long; null: accord.idempotency_retention';
