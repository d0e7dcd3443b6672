-- outbox: the insertable face of the log.

-- What is still owed, one row per delivery: from the log beyond what dispatchers have settled, and from the backlog.
--   state   queued (not tried yet), or the backlog's: scheduled, waiting, sending, retrying, replayed, accepted, verifying, held
CREATE FUNCTION accord.owed(
    OUT seq bigint, OUT tx_id bigint, OUT ord integer, OUT event_slot smallint, OUT committed_at timestamptz,
    OUT channel text, OUT account text, OUT state text, OUT attempts integer, OUT due_at timestamptz, OUT error text)
    RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'accord_owed';
COMMENT ON FUNCTION accord.owed() IS 'every delivery still owed to a channel, with its state: queued, scheduled, waiting, sending, retrying, replayed, accepted, verifying or held';

-- Columns as in event_log; what the author does not know is left out of INSERT and comes back by RETURNING.
CREATE VIEW accord.outbox AS
    SELECT e.event_id, e.topic, e.key, e.op, e.payload, e.before, e.source, e.account, e.channels, e.deliver_at,
           e.expires_at, e.priority, e.idempotency_key, e.headers, e.occurred_at, e.recorded_at, e.tx_id, e.ord
    FROM accord.event_log e
    WHERE (e.slot, e.tx_id, e.ord) IN (SELECT o.event_slot, o.tx_id, o.ord FROM accord.owed() o);
-- No defaults: each would be parsed, planned and computed by every INSERT; the trigger knows them.
COMMENT ON VIEW accord.outbox IS 'INSERT an event here; SELECT shows the events still owed to some channel';
COMMENT ON COLUMN accord.outbox.event_id IS 'UUID version 7, given by INSERT ... RETURNING; channels see it as the idempotency key';
COMMENT ON COLUMN accord.outbox.topic IS 'what kind of thing this is about, such as rate.changed; routes match it. Topics beginning with "accord." are reserved';
COMMENT ON COLUMN accord.outbox.key IS 'which one; a channel sees the events of one key in commit order. Null: in any order';
COMMENT ON COLUMN accord.outbox.op IS 'insert, update, delete, truncate, or event (the default)';
COMMENT ON COLUMN accord.outbox.payload IS 'the message, or the row after the change';
COMMENT ON COLUMN accord.outbox.before IS 'for an update, the old values of the changed columns';
COMMENT ON COLUMN accord.outbox.source IS 'the channel it came from, which will not hear of it again; null: the application itself';
COMMENT ON COLUMN accord.outbox.account IS 'the customer''s connection it concerns (accord.account.name)';
COMMENT ON COLUMN accord.outbox.channels IS 'an explicit address: these channels and no others';
COMMENT ON COLUMN accord.outbox.deliver_at IS 'not to be sent before';
COMMENT ON COLUMN accord.outbox.expires_at IS 'from then on it is not sent any more, but logged as expired';
COMMENT ON COLUMN accord.outbox.priority IS '0 urgent, 1 normal (the default), 2 bulk: what is more urgent overtakes, but does not starve the rest';
COMMENT ON COLUMN accord.outbox.idempotency_key IS 'an event with a key already used is discarded when its content is the same, refused when it differs';
COMMENT ON COLUMN accord.outbox.headers IS 'an object of HTTP headers to send along, such as traceparent';
COMMENT ON COLUMN accord.outbox.occurred_at IS 'when it happened, by its author''s clock; the time of the INSERT when left out';
COMMENT ON COLUMN accord.outbox.recorded_at IS 'when it was written';
COMMENT ON COLUMN accord.outbox.tx_id IS 'the transaction that wrote it; commit_log tells its place in the commit order';
COMMENT ON COLUMN accord.outbox.ord IS 'its place within that transaction';

CREATE FUNCTION accord.outbox_insert() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'accord_outbox_insert';
COMMENT ON FUNCTION accord.outbox_insert() IS 'trigger: appends a row inserted into accord.outbox to the log';
CREATE FUNCTION accord.outbox_refuse() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'accord_outbox_refuse';
COMMENT ON FUNCTION accord.outbox_refuse() IS 'trigger: refuses UPDATE and DELETE of accord.outbox';
CREATE TRIGGER outbox_insert INSTEAD OF INSERT ON accord.outbox
    FOR EACH ROW EXECUTE FUNCTION accord.outbox_insert();
CREATE TRIGGER outbox_refuse INSTEAD OF UPDATE OR DELETE ON accord.outbox
    FOR EACH ROW EXECUTE FUNCTION accord.outbox_refuse();
