-- citus: captured tables whose rows are in shards, on other nodes.
--
-- Citus gives the triggers of a distributed table to each of its shards, wherever they are, and again where one is moved to. There
-- they make events of the node that the shard is on, under the number that the table has on all nodes: each must know it.

CREATE FUNCTION accord.citus_kind(relation regclass) RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kind text;
BEGIN
    IF to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL THEN
        EXECUTE 'SELECT CASE WHEN partmethod <> ''n'' OR repmodel <> ''t'' AND colocationid <> 0 THEN ''distributed'' '
                'WHEN repmodel = ''t'' THEN ''reference'' END FROM pg_dist_partition WHERE logicalrelid = $1'
            INTO kind USING relation;
    END IF;
    RETURN kind;
END
$$;
COMMENT ON FUNCTION accord.citus_kind(regclass) IS 'internal: whether Citus has a table as distributed or reference; null: it is an ordinary one';

CREATE FUNCTION accord.citus_number(relation regclass) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    failed text;
    number integer;
BEGIN
    IF accord.citus_kind(relation) IS DISTINCT FROM 'distributed' THEN
        RETURN NULL;
    END IF;
    EXECUTE 'SELECT min(result) FILTER (WHERE NOT success), max(CASE WHEN success THEN result::integer END) '
            'FROM run_command_on_all_nodes(''SELECT nextval(''''accord.captured_id_seq'''')'')' INTO failed, number;
    PERFORM accord.citus_check(relation, failed);
    RETURN number;
END
$$;
COMMENT ON FUNCTION accord.citus_number(regclass) IS 'internal: a number for a distributed table that no captured table has on any node; null for any other table';

CREATE FUNCTION accord.citus_check(relation regclass, failed text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF failed IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('cannot capture distributed table %s: a node has not taken note of it', relation), DETAIL = failed,
            HINT = 'All nodes must be up, with pg_accord of the same version in this database.';
    END IF;
END
$$;
COMMENT ON FUNCTION accord.citus_check(regclass, text) IS 'internal: raises when a node has failed';

-- The workers commit it at once, before there is any trigger: should this be rolled back, it means nothing there.
CREATE FUNCTION accord.citus_tell(id integer, relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    failed text;
    is_coordinator boolean;
BEGIN
    IF accord.citus_kind(relation) IS DISTINCT FROM 'distributed' THEN
        RETURN;
    END IF;
    EXECUTE 'SELECT groupid = 0 FROM pg_dist_local_group' INTO is_coordinator;
    IF NOT is_coordinator THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('cannot capture distributed table %s on a worker', relation),
            HINT = 'Call accord.capture() on the coordinator: it concerns all nodes.';
    END IF;
    EXECUTE 'SELECT min(result) FROM run_command_on_workers($1) WHERE NOT success' INTO failed
        USING (SELECT format('SELECT accord.citus_note(%L)', to_jsonb(c)) FROM accord.captured c WHERE c.id = citus_tell.id);
    PERFORM accord.citus_check(relation, failed);
END
$$;
COMMENT ON FUNCTION accord.citus_tell(integer, regclass) IS 'internal: has the workers write down that a distributed table is captured';

CREATE FUNCTION accord.citus_note(captured jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    told accord.captured := jsonb_populate_record(NULL::accord.captured, captured);
    known accord.captured;
    is_same boolean;
BEGIN
    SELECT c.* INTO known FROM accord.captured c WHERE c.id = told.id;
    IF (known.schema_name, known.table_name) <> (told.schema_name, told.table_name) THEN
        RAISE EXCEPTION USING ERRCODE = 'unique_violation',
            MESSAGE = format('number %s is that of captured table %I.%I', known.id, known.schema_name, known.table_name),
            HINT = 'A node that had captured tables of its own joined the cluster: release the distributed table, and capture it anew.';
    END IF;
    is_same := (known.key_columns, known.columns, known.excluded, known.condition) IS NOT DISTINCT FROM
               (told.key_columns, told.columns, told.excluded, told.condition) AND known.released_at IS NULL;
    told.since_slot := known.since_slot;
    told.since_tx_id := known.since_tx_id;
    told.since_at := known.since_at;
    DELETE FROM accord.captured c WHERE c.id = told.id;
    INSERT INTO accord.captured SELECT told.*;
    PERFORM setval('accord.captured_id_seq', greatest(told.id, (SELECT s.last_value FROM accord.captured_id_seq s)));
    PERFORM accord.shape_record(told.id, format('%I.%I', told.schema_name, told.table_name)::regclass);
    IF NOT is_same THEN
        PERFORM accord.capture_begin(told.id);
    END IF;
END
$$;
COMMENT ON FUNCTION accord.citus_note(jsonb) IS 'internal: on a worker, writes down that a distributed table is captured, and how: a row of the coordinator''s accord.captured';

-- What is computed back from the rows that there are needs them all on one node, and a number of their own.
CREATE FUNCTION accord.citus_check_past(relation regclass) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF accord.citus_kind(relation) IS NOT NULL OR EXISTS (
        SELECT FROM pg_trigger own JOIN pg_trigger other ON other.tgfoid = own.tgfoid AND other.tgargs = own.tgargs
        WHERE own.tgrelid = relation AND own.tgfoid = 'accord.capture_row'::regproc AND other.tgrelid <> relation
          AND other.tgparentid = 0 AND own.tgparentid = 0) THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('cannot compute the past of %s: its rows are in shards', relation),
            HINT = 'Ask accord.history() on the node of the row''s shard.';
    END IF;
END
$$;
COMMENT ON FUNCTION accord.citus_check_past(regclass) IS 'internal: raises for a distributed table, and for its shards';
