-- One node of an application that is sharded by database: what concerns a property is on one node, chosen by its key; pg_accord
-- there delivers that node's events. Run on every node, each time with its own number (examples/shards/shards does it all):
--
--   psql -v ON_ERROR_STOP=1 -v node=0 -v nodes=2 -v url=https://api.example.com -v per_second=20 -v in_flight=8 -f node.sql
--
-- per_second and in_flight are what the channel allows the whole service: each node takes its share. max_prepared_transactions
-- must not be 0 where one transaction writes to several nodes.
\set ON_ERROR_STOP on
BEGIN;
CREATE SCHEMA app;

-- Which node a property is on: the first 32 bits of SHA-256 of its name, modulo the number of nodes; a line in any language. A
-- change of the number of nodes moves nearly everything: begin with more databases than machines, and move databases.
CREATE FUNCTION app.node_of(property text, nodes integer) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT (('x' || encode(substr(sha256(convert_to(property, 'UTF8')), 1, 4), 'hex'))::bit(32)::bigint % nodes)::integer
$$;

-- A row on the wrong node is refused: two nodes with events of one key would know no order between them.
CREATE TABLE app.room (
    property text NOT NULL,
    room text NOT NULL,
    free integer NOT NULL CHECK (free >= 0),
    PRIMARY KEY (property, room)
);
SELECT format('ALTER TABLE app.room ADD CONSTRAINT lives_here CHECK (app.node_of(property, %s) = %s)', :'nodes'::integer, :'node'::integer) \gexec

-- What was decided about a transaction of several nodes; on node 0 alone. See examples/shards/shards.
CREATE TABLE app.decision (gid text PRIMARY KEY, committed boolean NOT NULL, decided_at timestamptz NOT NULL DEFAULT now());

SELECT accord.capture('app.room', topic => 'room');
-- The share of what the service as a whole may send; at least 1. Bursts are shared, too: the nodes' together are the service's.
INSERT INTO accord.channel (name, base_url, max_in_flight, headers)
    VALUES ('ota', :'url', greatest(:'in_flight'::integer / :'nodes'::integer, 1), jsonb_build_object('X-Node', :'node'));
INSERT INTO accord.rate_limit (channel, amount, period, burst)
    VALUES ('ota', :'per_second'::integer, make_interval(secs => :'nodes'::integer), greatest(:'per_second'::integer / :'nodes'::integer, 1));
INSERT INTO accord.route (channel, topic, method, path, coalesce)
    VALUES ('ota', 'room', 'PUT', '/properties/{payload.property}/rooms/{payload.room}', NULL);
COMMIT;
