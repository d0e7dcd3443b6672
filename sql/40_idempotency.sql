-- idempotency: keys that were used, and for what content. Keys outlive their events.

-- idempotency_key: one row per used key.
--   scope        who keeps these keys: 'outbox' for events
--   fingerprint  SHA-256 of the content
CREATE TABLE accord.idempotency_key (
    scope text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    event_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (scope, key)
);
CREATE INDEX idempotency_key_created_at ON accord.idempotency_key USING brin (created_at);
COMMENT ON TABLE accord.idempotency_key IS 'idempotency keys that were used, with a fingerprint of the content; kept for accord.idempotency_retention';
