-- An application on Citus: rows are in shards on several nodes, and pg_accord on every node sends what happens to its own. Run on the
-- coordinator, in a database that has Citus with all its workers, and pg_accord (CREATE EXTENSION on the coordinator makes it on all
-- nodes; shared_preload_libraries = 'citus, pg_accord' on each, max_prepared_transactions above 0):
--
--   psql -v ON_ERROR_STOP=1 -v url=https://api.example.com -v per_second=20 -v in_flight=8 -f citus.sql
--
-- per_second and in_flight are what the channel allows the whole service: each worker takes its share.
\set ON_ERROR_STOP on
CREATE SCHEMA app;

CREATE TABLE app.room (
    property text NOT NULL,
    room text NOT NULL,
    free integer NOT NULL CHECK (free >= 0),
    PRIMARY KEY (property, room)
);
SELECT create_distributed_table('app.room', 'property', shard_count := 8);

-- ---- configuration: each node has its own, and all have the same

-- Runs a statement on every node, those that join later excepted; raises when it fails on any.
CREATE FUNCTION app.everywhere(statement text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    failed text;
    nodes bigint;
BEGIN
    SELECT string_agg(format('node %s: %s', nodeid, result), '; ') FILTER (WHERE NOT success), count(*) INTO failed, nodes
    FROM run_command_on_all_nodes(statement);
    IF failed IS NOT NULL THEN
        RAISE EXCEPTION '%', failed;
    END IF;
    RETURN nodes;
END
$$;

-- A channel that allows so much in all is divided among the nodes that have shards.
CREATE FUNCTION app.configure(url text, per_second integer, in_flight integer) RETURNS bigint LANGUAGE sql AS $$
    SELECT app.everywhere(format($statement$
        INSERT INTO accord.channel (name, base_url, max_in_flight, headers)
            SELECT 'ota', %1$L, greatest(%3$s / %4$s, 1), jsonb_build_object('X-Node', groupid::text) FROM pg_dist_local_group;
        INSERT INTO accord.rate_limit (channel, amount, period, burst)
            VALUES ('ota', %2$s, make_interval(secs => %4$s), greatest(%2$s / %4$s, 1));
        INSERT INTO accord.route (channel, topic, method, path, coalesce)
            VALUES ('ota', 'room', 'PUT', '/properties/{payload.property}/rooms/{payload.room}', NULL),
                   ('ota', 'note', 'POST', '/properties/{payload.property}/notes', NULL)$statement$,
        url, per_second, in_flight, nodes))
    FROM (SELECT greatest(count(*), 1) AS nodes FROM pg_dist_node WHERE shouldhaveshards AND noderole = 'primary') n
$$;
SELECT app.configure(:'url', :'per_second', :'in_flight');

-- ---- rows: the triggers of capture() are Citus' own business, it takes them along to each shard, wherever it is moved

-- Citus calls triggers on distributed tables unsafe, as they might query other nodes. These write to the node they are on.
SET citus.enable_unsafe_triggers = on;
SELECT accord.capture('app.room', topic => 'room', on_truncate => 'refuse');
RESET citus.enable_unsafe_triggers;

-- ---- events that are no rows: written where the rows of their key are, so that they are in order with these

CREATE FUNCTION app.announce(property text, note jsonb) RETURNS uuid LANGUAGE sql AS $$
    INSERT INTO accord.outbox (topic, key, payload)
        VALUES ('note', announce.property, note || jsonb_build_object('property', announce.property)) RETURNING event_id
$$;
-- force_delegation: also in a transaction of several statements
SELECT create_distributed_function('app.announce(text, jsonb)', 'property', colocate_with := 'app.room', force_delegation := true);

-- ---- looking at all nodes

CREATE VIEW app.status AS
    SELECT n.nodename, n.nodeport, s.*
    FROM run_command_on_all_nodes('SELECT coalesce(jsonb_agg(to_jsonb(s)), ''[]'') FROM accord.status s') r
    JOIN pg_dist_node n USING (nodeid)
    CROSS JOIN LATERAL jsonb_to_recordset(r.result::jsonb) AS s (channel text, account text, state text, owed bigint,
        oldest_owed timestamptz, retrying bigint, held bigint, dead bigint, last_error text, why_silent text);

-- How much a node still has to send of what is in a shard.
CREATE FUNCTION app.owed(shard bigint) RETURNS bigint LANGUAGE sql AS $$
    SELECT count(*) FROM accord.outbox o
    WHERE CASE WHEN coalesce(o.payload, o.before) ->> 'property' IS NOT NULL THEN
        get_shard_id_for_distribution_column('app.room', coalesce(o.payload, o.before) ->> 'property') = shard END
$$;

-- ---- moving a shard

-- What the old node has to send comes before what the new one has: so the new one sends nothing until the old one is through.
-- Writes go on meanwhile, but for the moment that Citus takes. Should this be interrupted, the channel of the node that is
-- moved to stays disabled (app.status says so): call it again, or enable it.
CREATE PROCEDURE app.move(shard bigint, target integer, mode citus.shard_transfer_mode DEFAULT 'auto') LANGUAGE plpgsql AS $$
DECLARE
    source integer;
    owed text;
BEGIN
    SELECT n.nodeid INTO STRICT source FROM pg_dist_placement p JOIN pg_dist_node n USING (groupid)
    WHERE p.shardid = move.shard AND n.noderole = 'primary';
    PERFORM app.on_node(target, 'UPDATE accord.channel SET enabled = false WHERE name = ''ota''');
    IF source <> target THEN
        PERFORM citus_move_shard_placement(shard, source, target, mode);
    END IF;
    COMMIT;
    LOOP
        SELECT sum(result::bigint) INTO owed FROM run_command_on_all_nodes(format('SELECT app.owed(%s)', shard))
        WHERE nodeid <> target;
        EXIT WHEN owed = '0';
        COMMIT;
        PERFORM pg_sleep(0.1);
    END LOOP;
    PERFORM app.on_node(target, 'UPDATE accord.channel SET enabled = true WHERE name = ''ota''');
END
$$;

-- Runs a statement on one node.
CREATE FUNCTION app.on_node(node integer, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    answer record;
BEGIN
    -- the others do nothing: no statement of Citus' asks a single node, whichever it is
    SELECT * INTO STRICT answer FROM run_command_on_all_nodes(format(
        'DO %L', format('BEGIN IF (SELECT groupid FROM pg_dist_local_group) = %s THEN %s; END IF; END',
                        (SELECT groupid FROM pg_dist_node WHERE nodeid = node), statement)))
    WHERE nodeid = node;
    IF NOT answer.success THEN
        RAISE EXCEPTION 'node %: %', node, answer.result;
    END IF;
    RETURN answer.result;
END
$$;
