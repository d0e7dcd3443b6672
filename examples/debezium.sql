-- The log for Kafka: Debezium reads it by logical decoding, and its outbox event router makes a Kafka message of each event.
--
--   psql -v ON_ERROR_STOP=1 -f examples/debezium.sql        -- wal_level = logical; as a superuser
--
-- Two ways, each a publication and a slot of its own; take one, and leave the other's statements out. Both give every committed
-- event once, events of a transaction together and in their order, prepared transactions at COMMIT PREPARED, nothing of what was rolled
-- back; the publications are of INSERTs, so what the log does for itself (its rings are truncated, an event is erased) is no message.
--
-- A. The log itself. Nothing is written, and nothing has to run. The order is that of the commit records in WAL, which is that of
--    accord.read() for transactions of which one could see or waited for the other. The router is told the columns' names:
--
--      transforms.outbox.table.field.event.id=event_id
--      transforms.outbox.table.field.event.key=key
--      transforms.outbox.route.by.field=topic
--      transforms.outbox.table.fields.additional.placement=op:header:op,headers:header:headers
--
-- B. A table with the columns that the router expects when it is told nothing (id, aggregatetype, aggregateid, type, payload),
--    which a consumer fills in the log's own order, exactly once, as its place in the log moves in the same transaction. It costs
--    one more row per event, without an index, and somebody has to run debezium.publish().
--
-- Of both, the connector:
--
--      connector.class=io.debezium.connector.postgresql.PostgresConnector
--      plugin.name=pgoutput
--      publication.autocreate.mode=disabled
--      publication.name=accord_log                         B: debezium_outbox
--      slot.name=accord_log                                B: debezium_outbox
--      table.include.list=accord.event_log                 B: debezium.outbox
--      snapshot.mode=no_data                               what was there before the slot is not read again
--      transforms=outbox
--      transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
--      tombstones.on.delete=false
--
-- A slot that nobody reads keeps WAL for ever: watch pg_replication_slots, or set max_slot_wal_keep_size and lose the slot instead.
\set ON_ERROR_STOP on

-- A. As of one table, whatever slot of the ring a row is in; without what is only the log's own. A row filter chooses.
CREATE PUBLICATION accord_log
    FOR TABLE accord.event_log (tx_id, ord, slot, event_id, topic, key, op, source, account, occurred_at, payload, before, headers)
    WHERE (topic NOT LIKE 'accord.%')
    WITH (publish = 'insert', publish_via_partition_root = true);
SELECT pg_create_logical_replication_slot('accord_log', 'pgoutput');

-- B. The table has no index: nobody reads it but by way of WAL.
CREATE SCHEMA debezium;
CREATE TABLE debezium.outbox (
    id uuid NOT NULL,                   -- the event's; in the message's headers, by which receivers know repetitions
    aggregatetype text NOT NULL,        -- the topic: outbox.event.<topic> in Kafka
    aggregateid text,                   -- the key: what has the same is in one partition, in order
    type text NOT NULL,                 -- what happened: insert, update, delete, truncate, event
    payload jsonb,
    "timestamp" timestamp NOT NULL,     -- in UTC; transforms.outbox.table.field.event.timestamp=timestamp
    headers jsonb,                      -- transforms.outbox.table.fields.additional.placement=headers:header:headers
    seq bigint NOT NULL                 -- the commit's place in the log
);
CREATE PUBLICATION debezium_outbox FOR TABLE debezium.outbox WITH (publish = 'insert');
SELECT pg_create_logical_replication_slot('debezium_outbox', 'pgoutput');

INSERT INTO accord.consumer (name, topic, description) VALUES ('debezium', '*', 'what Kafka gets');
SELECT accord.rewind('debezium', accord.safe_seq());                   -- from now on; 0: from the oldest event there is

-- The next events; returns how many. One session at a time: another waits. The table is emptied when it has grown, which nobody
-- is told of. A failure undoes all of it, the place in the log included.
CREATE FUNCTION debezium.publish(max integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    last bigint;
    n integer;
BEGIN
    IF pg_relation_size('debezium.outbox') > 64 * 1024 * 1024 THEN
        TRUNCATE debezium.outbox;
    END IF;
    WITH event AS MATERIALIZED (SELECT * FROM accord.poll('debezium', max)),
         published AS (
             INSERT INTO debezium.outbox
             SELECT e.event_id, e.topic, e.key, e.op, e.payload, e.occurred_at AT TIME ZONE 'UTC', e.headers, e.seq
             FROM event e ORDER BY e.seq, e.ord
         )
    SELECT max(e.seq), count(*) INTO last, n FROM event e;
    IF n > 0 THEN
        PERFORM accord.advance('debezium', last);
    END IF;
    RETURN n;
END
$$;

-- For ever: psql -c 'CALL debezium.run()', under whatever keeps services running. A place of its own per batch.
CREATE PROCEDURE debezium.run(pause interval DEFAULT '100 ms')
    LANGUAGE plpgsql AS $$
DECLARE
    n integer;
BEGIN
    LOOP
        n := debezium.publish();
        COMMIT;
        IF n = 0 THEN
            PERFORM pg_catalog.pg_sleep_for(pause);
        END IF;
    END LOOP;
END
$$;
