-- history: what became of captured rows, who did it, and how a table was at a point in time.

-- mark_log: names for places in the commit order.
--   name          unique; not a number
--   slot, tx_id   the transaction that set it: its place is that transaction's commit
--   marked_at     when; actor: who
--   comment       what for
CREATE TABLE accord.mark_log (
    name text PRIMARY KEY CHECK (name <> '' AND name !~ '^[0-9]+$' AND octet_length(name) <= 255),
    slot smallint NOT NULL,
    tx_id bigint NOT NULL,
    marked_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    actor text,
    comment text
);
COMMENT ON TABLE accord.mark_log IS 'named places in the commit order, by accord.mark(); accord.marks shows them with their numbers';

CREATE FUNCTION accord.current_place(OUT slot smallint, OUT tx_id bigint) RETURNS record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'accord_current_place';
COMMENT ON FUNCTION accord.current_place() IS 'internal: where the events of the current transaction lie, null when it has written none';

CREATE FUNCTION accord.seq_of(slot smallint, tx_id bigint) RETURNS bigint
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'accord_seq_of';
COMMENT ON FUNCTION accord.seq_of(smallint, bigint) IS 'internal: the commit number of a transaction whose events lie in a slot, null when it has not committed or is not kept any more';

CREATE FUNCTION accord.oldest_seq() RETURNS bigint
    LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'accord_oldest_seq';
COMMENT ON FUNCTION accord.oldest_seq() IS 'the oldest commit that the log keeps, null when it is empty';

CREATE FUNCTION accord.mark(name text, comment text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF name IS NULL OR name = '' OR name ~ '^[0-9]+$' OR octet_length(name) > 255 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('"%s" cannot be the name of a mark', coalesce(name, 'null')),
            HINT = 'Give a name of at most 255 bytes that is not a number.';
    END IF;
    PERFORM accord.control_append('accord.mark', jsonb_build_object('name', name, 'comment', comment));
    INSERT INTO accord.mark_log (name, slot, tx_id, actor, comment)
        SELECT mark.name, p.slot, p.tx_id, coalesce(nullif(current_setting('accord.actor', true), ''), session_user),
               mark.comment
        FROM accord.current_place() p;
EXCEPTION WHEN unique_violation THEN
    RAISE EXCEPTION USING ERRCODE = 'duplicate_object',
        MESSAGE = format('mark "%s" exists', name),
        HINT = 'Choose another name; see SELECT * FROM accord.marks.';
END
$$;
COMMENT ON FUNCTION accord.mark(text, text) IS 'names the place in the commit order that the current transaction will have; the name can be given wherever a point in time can';

CREATE VIEW accord.marks AS
    SELECT m.name, accord.seq_of(m.slot, m.tx_id) AS seq, m.marked_at, m.actor, m.comment
    FROM accord.mark_log m;
COMMENT ON VIEW accord.marks IS 'named places in the commit order; seq is null when the commit is not kept any more';

CREATE FUNCTION accord.point_seq(point text) RETURNS bigint
    LANGUAGE plpgsql STABLE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    seq bigint;
    mark accord.mark_log;
    highest bigint;
BEGIN
    IF point ~ '^-?[0-9]+$' THEN
        SELECT CASE WHEN s.is_called THEN s.last_value ELSE 0 END INTO highest FROM accord.commit_seq s;
        IF point::numeric > highest THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('there is no commit %s yet', point),
                HINT = format('The highest number drawn so far is %s.', highest);
        END IF;
        RETURN least(point::bigint, accord.safe_seq());
    END IF;
    SELECT * INTO mark FROM accord.mark_log m WHERE m.name = point;
    IF FOUND THEN
        seq := accord.seq_of(mark.slot, mark.tx_id);
        IF seq IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('mark "%s" has no place in the log', point),
                HINT = 'It was set by this very transaction, or the log does not reach back to it any more.';
        END IF;
        RETURN least(seq, accord.safe_seq());
    END IF;
    BEGIN
        RETURN least(accord.seq_at(point::timestamptz), accord.safe_seq());
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('"%s" is no point in time', point),
            DETAIL = 'It is neither a number, nor the name of a mark, nor a time.',
            HINT = 'See SELECT * FROM accord.marks; times are written as ''2026-12-01 10:00+01''.';
    END;
END
$$;
COMMENT ON FUNCTION accord.point_seq(text) IS 'the commit that a point in time means: a number itself, the name of a mark its transaction''s, a time the last one not later; never one beyond accord.safe_seq()';

-- What is known of a captured table; with a point, raises unless the log reaches back to it.
CREATE FUNCTION accord.history_table(relation regclass, seq bigint DEFAULT NULL,
    OUT id integer, OUT key_columns text[], OUT hidden text[], OUT condition text, OUT is_shaped boolean)
    RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c accord.captured;
    since bigint;
    is_new boolean;
BEGIN
    SELECT * INTO c FROM accord.captured t WHERE t.id = accord.captured_id(relation);
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('table %s is not captured', coalesce(relation::text, 'null')),
            HINT = 'Its history begins with SELECT accord.capture(''schema.table'').';
    END IF;
    id := c.id;
    key_columns := c.key_columns;
    condition := c.condition;
    SELECT coalesce(array_agg(a.attname::text), '{}') INTO hidden FROM pg_attribute a
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
      AND a.attname <> ALL (c.key_columns) AND a.attname IS DISTINCT FROM c.account_column
      AND (a.attname <> ALL (c.columns) OR a.attname = ANY (c.excluded));
    is_shaped := EXISTS (SELECT FROM accord.captured_shape s WHERE s.table_id = c.id AND s.version > 1);
    IF seq IS NULL THEN
        RETURN;
    END IF;
    IF c.released_at IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('cannot tell how table %s was: it is not captured any more', relation),
            DETAIL = format('It was released at %s; what happened to it since is not known.', c.released_at),
            HINT = 'accord.history() still shows what was captured of a row.';
    END IF;
    IF seq < accord.oldest_seq() - 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('the log does not reach back to commit %s', seq),
            DETAIL = format('The oldest commit it keeps is %s.', accord.oldest_seq()),
            HINT = 'Give a later point. accord.log_retention says how long events are kept.';
    END IF;
    -- What is captured by this very transaction has no place yet.
    is_new := c.since_tx_id = (SELECT p.tx_id FROM accord.current_place() p);
    since := CASE WHEN is_new IS NOT TRUE THEN accord.seq_of(c.since_slot, c.since_tx_id) END;
    IF is_new OR seq < since THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('table %s was not captured yet at commit %s', relation, seq),
            DETAIL = 'It is captured, and the way it is, since '
                     || CASE WHEN is_new THEN 'this transaction.' ELSE format('commit %s.', since) END,
            HINT = 'Give a later point.';
    END IF;
END
$$;
COMMENT ON FUNCTION accord.history_table(regclass, bigint) IS 'internal: how a table is captured; raises when it is not, or was not yet, or the log does not reach back, at the point';

-- How its columns, as they are now, were called before, from an event on; nothing where nothing became of them.
CREATE FUNCTION accord.history_shapes(table_id integer, OUT seq bigint, OUT ord integer, OUT names text[])
    RETURNS SETOF record
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN s.version = 1 THEN 0
                ELSE coalesce(c.seq, CASE WHEN s.tx_id = p.tx_id THEN 9223372036854775807 ELSE 0 END) END,
           s.ord,
           (SELECT array_agg(was.name ORDER BY a.attnum)
            FROM pg_attribute a
            LEFT JOIN jsonb_to_recordset(last.columns) AS now (id integer, attnum integer) ON now.attnum = a.attnum
            LEFT JOIN jsonb_to_recordset(s.columns) AS was (id integer, name text) ON was.id = now.id
            WHERE a.attrelid = accord.captured_relation(history_shapes.table_id) AND a.attnum > 0)
    FROM (SELECT l.columns, l.version FROM accord.captured_shape l WHERE l.table_id = history_shapes.table_id
          ORDER BY l.version DESC LIMIT 1) last
    CROSS JOIN accord.current_place() p
    JOIN accord.captured_shape s ON s.table_id = history_shapes.table_id AND last.version > 1
    LEFT JOIN accord.commit_log c ON c.tx_id = s.tx_id AND s.version > 1
    ORDER BY s.version
$$;
COMMENT ON FUNCTION accord.history_shapes(integer) IS 'internal: how the columns of a captured table were called, from an event on';

-- A key as it is in the log.
CREATE FUNCTION accord.key_of(value anycompatible) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'accord_key_of';
COMMENT ON FUNCTION accord.key_of(anycompatible) IS 'internal: text as it is; another value, or a ROW of them, as the key of a captured row';

CREATE FUNCTION accord.equality(type regtype) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'accord_equality';
COMMENT ON FUNCTION accord.equality(regtype) IS 'internal: how SQL writes the equality operator of a type, whatever the search_path';

-- A row and its image, both ways.
CREATE FUNCTION accord.row_of(base anyelement, image jsonb) RETURNS anyelement
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'accord_row_of';
COMMENT ON FUNCTION accord.row_of(anyelement, jsonb) IS 'a row of a table from its image in the log (payload, or payload || before): accord.row_of(NULL::room, payload)';
CREATE FUNCTION accord.image_of(value anyelement) RETURNS jsonb
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'accord_image_of';
COMMENT ON FUNCTION accord.image_of(anyelement) IS 'internal: the image of a row, as it would be captured with all its columns';

CREATE FUNCTION accord.row_events(table_id integer, key text,
    OUT table_id integer, OUT key text, OUT tx_id bigint, OUT slot smallint, OUT ord integer, OUT event_id uuid,
    OUT occurred_at timestamptz, OUT recorded_at timestamptz, OUT op text, OUT source text, OUT payload jsonb,
    OUT before jsonb, OUT seq bigint, OUT committed_at timestamptz, OUT role oid, OUT actor text,
    OUT application_name text, OUT client_addr inet, OUT reason text, OUT correlation_id text)
    RETURNS SETOF record
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'accord_row_events';
COMMENT ON FUNCTION accord.row_events(integer, text) IS 'internal: the events of a captured row, in commit order, those of the current transaction last and without a number';

CREATE FUNCTION accord.commit_events(seqs bigint[],
    OUT table_id integer, OUT key text, OUT tx_id bigint, OUT slot smallint, OUT ord integer, OUT event_id uuid,
    OUT occurred_at timestamptz, OUT recorded_at timestamptz, OUT op text, OUT source text, OUT payload jsonb,
    OUT before jsonb, OUT seq bigint, OUT committed_at timestamptz, OUT role oid, OUT actor text,
    OUT application_name text, OUT client_addr inet, OUT reason text, OUT correlation_id text)
    RETURNS SETOF record
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED ROWS 1000 AS 'MODULE_PATHNAME', 'accord_commit_events';
COMMENT ON FUNCTION accord.commit_events(bigint[]) IS 'internal: the events of captured rows of some commits';

-- What an event changed, {"price": {"old": 100, "new": 120}}: an insert has no old values, a delete no new ones.
CREATE FUNCTION accord.changes(op text, payload jsonb, before jsonb) RETURNS jsonb
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'accord_changes';
COMMENT ON FUNCTION accord.changes(text, jsonb, jsonb) IS 'internal: what an event changed, column by column';

CREATE FUNCTION accord.history(relation regclass, key anycompatible,
    OUT seq bigint, OUT committed_at timestamptz, OUT op text, OUT changes jsonb, OUT actor text, OUT reason text,
    OUT role text, OUT source text, OUT correlation_id text, OUT application_name text, OUT client_addr inet,
    OUT tx_id bigint, OUT ord integer, OUT event_id uuid)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    number integer := (SELECT h.id FROM accord.history_table(history.relation) h);
BEGIN
    -- before the delete of a row that ceased to meet the condition it is said what it became
    RETURN QUERY
    SELECT e.seq, e.committed_at, CASE WHEN e.op = 'insert' AND e.before = '{}' THEN 'baseline' ELSE e.op END,
           accord.changes(e.op, CASE WHEN e.op = 'delete' AND e.last_op = 'event' THEN nullif(e.last_payload, '{}')
                                     ELSE e.payload END, e.before), e.actor, e.reason,
           pg_get_userbyid(e.role)::text, e.source, e.correlation_id, e.application_name, e.client_addr, e.tx_id, e.ord,
           e.event_id
    FROM (SELECT r.*, first_value(r.op) OVER w AS last_op, first_value(r.payload) OVER w AS last_payload
          FROM accord.row_events(number, accord.key_of(history.key)) r
          WINDOW w AS (PARTITION BY r.tx_id ORDER BY r.ord RANGE BETWEEN 1 PRECEDING AND 1 PRECEDING)) e
    WHERE e.op <> 'event'
    ORDER BY e.seq, e.ord;
END
$$;
COMMENT ON FUNCTION accord.history(regclass, anycompatible) IS 'what became of a row of a captured table, oldest first: what changed, when, by whom and why; the key of several columns is a ROW of them. Changes of the current transaction come last, without a seq';

-- The state a row was in before, and after, an event.
CREATE FUNCTION accord.state_before(op text, payload jsonb, before jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN op = 'insert' THEN CASE WHEN before = '{}' THEN payload END
                WHEN op = 'update' THEN payload || before ELSE before END
$$;
COMMENT ON FUNCTION accord.state_before(text, jsonb, jsonb) IS 'internal: the image of a row before an event, null when it was not there; an event of accord.baseline() changed nothing';
CREATE FUNCTION accord.state_after(op text, payload jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN op IN ('insert', 'update') THEN payload END
$$;
COMMENT ON FUNCTION accord.state_after(text, jsonb) IS 'internal: the image of a row after an event, null when it is gone';

-- The events of a row, with the names that columns have now; is_shaped: some were called otherwise.
CREATE FUNCTION accord.shaped_events(table_id integer, is_shaped boolean, key text,
    OUT op text, OUT payload jsonb, OUT before jsonb, OUT seq bigint, OUT committed_at timestamptz, OUT role oid,
    OUT actor text, OUT source text, OUT reason text, OUT correlation_id text, OUT tx_id bigint, OUT place bigint)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
    SELECT e.op, CASE WHEN shaped_events.is_shaped
                      THEN accord.reshape(e.payload, e.table_id, coalesce(e.seq, 9223372036854775807), e.ord) ELSE e.payload END,
           CASE WHEN shaped_events.is_shaped
                THEN accord.reshape(e.before, e.table_id, coalesce(e.seq, 9223372036854775807), e.ord) ELSE e.before END,
           e.seq, e.committed_at, e.role, e.actor, e.source, e.reason, e.correlation_id, e.tx_id,
           row_number() OVER (ORDER BY e.seq, e.ord)
    FROM accord.row_events(shaped_events.table_id, shaped_events.key) e
    WHERE e.op <> 'event'
    ORDER BY e.seq, e.ord;
END
$$;
COMMENT ON FUNCTION accord.shaped_events(integer, boolean, text) IS 'internal: the events of a captured row, with the names that its columns have now';

CREATE FUNCTION accord.blame(relation regclass, key anycompatible,
    OUT column_name text, OUT value jsonb, OUT seq bigint, OUT committed_at timestamptz, OUT op text, OUT actor text,
    OUT reason text, OUT role text, OUT source text, OUT correlation_id text, OUT tx_id bigint)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known record;
BEGIN
    SELECT h.id, h.is_shaped INTO known FROM accord.history_table(blame.relation) h;
    RETURN QUERY
    WITH e AS MATERIALIZED (
        SELECT * FROM accord.shaped_events(known.id, known.is_shaped, accord.key_of(blame.key))),
    last AS (SELECT coalesce(e.payload, e.before) AS image, e.payload FROM e ORDER BY e.place DESC LIMIT 1)
    SELECT c.name, last.payload -> c.name, s.seq, s.committed_at, s.op, s.actor, s.reason,
           pg_get_userbyid(s.role)::text, s.source, s.correlation_id, s.tx_id
    FROM last
    CROSS JOIN LATERAL jsonb_object_keys(last.image) AS c (name)
    LEFT JOIN pg_attribute a ON a.attrelid = blame.relation AND a.attname = c.name AND NOT a.attisdropped
    LEFT JOIN LATERAL (SELECT * FROM e WHERE CASE e.op WHEN 'update' THEN e.before ? c.name
                                                       WHEN 'insert' THEN e.before IS DISTINCT FROM '{}' ELSE true END
                       ORDER BY e.place DESC LIMIT 1) s ON true
    ORDER BY a.attnum, c.name;
END
$$;
COMMENT ON FUNCTION accord.blame(regclass, anycompatible) IS 'of each column of a row of a captured table who set its value last, when, why, and in which transaction; null where that was before the log begins. Of a deleted row: who deleted it';

CREATE FUNCTION accord.diff_seq(relation regclass, key text, from_seq bigint, to_seq bigint,
    OUT column_name text, OUT old_value jsonb, OUT new_value jsonb)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known record;
    e record;                           -- the last one, at the end
    old jsonb;                          -- the states at the two points: what the first event after each of them found
    new jsonb;
    is_old boolean := false;
    is_new boolean := false;
BEGIN
    SELECT h.id, h.is_shaped INTO known FROM accord.history_table(diff_seq.relation, least(from_seq, to_seq)) h;
    FOR e IN SELECT * FROM accord.shaped_events(known.id, known.is_shaped, diff_seq.key) LOOP
        IF NOT is_old AND (e.seq > from_seq OR e.seq IS NULL) THEN
            is_old := true;
            old := accord.state_before(e.op, e.payload, e.before);
        END IF;
        IF NOT is_new AND (e.seq > to_seq OR e.seq IS NULL) THEN
            is_new := true;
            new := accord.state_before(e.op, e.payload, e.before);
        END IF;
    END LOOP;
    IF NOT is_old THEN
        old := accord.state_after(e.op, e.payload);
    END IF;
    IF NOT is_new THEN
        new := accord.state_after(e.op, e.payload);
    END IF;
    RETURN QUERY
    SELECT c.name, old -> c.name, new -> c.name
    FROM jsonb_object_keys(coalesce(old, '{}') || coalesce(new, '{}')) AS c (name)
    LEFT JOIN pg_attribute a ON a.attrelid = diff_seq.relation AND a.attname = c.name AND NOT a.attisdropped
    WHERE old -> c.name IS DISTINCT FROM new -> c.name
    ORDER BY a.attnum, c.name;
END
$$;
COMMENT ON FUNCTION accord.diff_seq(regclass, text, bigint, bigint) IS 'internal: accord.diff() between two commit numbers';

CREATE FUNCTION accord.diff(relation regclass, key anycompatible, from_point text, to_point text DEFAULT NULL,
    OUT column_name text, OUT old_value jsonb, OUT new_value jsonb)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT * FROM accord.diff_seq(relation, accord.key_of(key), accord.point_seq(from_point),
                                  coalesce(accord.point_seq(to_point), accord.safe_seq()));
END
$$;
COMMENT ON FUNCTION accord.diff(regclass, anycompatible, text, text) IS 'in which columns a row of a captured table differs between two points, and how; an old value is null when there was no row, a new one when there is none. Without to_point: until now';
CREATE FUNCTION accord.diff(relation regclass, key anycompatible, from_point timestamptz,
    to_point timestamptz DEFAULT NULL, OUT column_name text, OUT old_value jsonb, OUT new_value jsonb)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT * FROM accord.diff_seq(relation, accord.key_of(key), accord.seq_at(from_point),
                                  coalesce(accord.seq_at(to_point), accord.safe_seq()));
END
$$;
COMMENT ON FUNCTION accord.diff(regclass, anycompatible, timestamptz, timestamptz) IS 'the same between two times';
CREATE FUNCTION accord.diff(relation regclass, key anycompatible, from_point bigint, to_point bigint DEFAULT NULL,
    OUT column_name text, OUT old_value jsonb, OUT new_value jsonb)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT * FROM accord.diff_seq(relation, accord.key_of(key), accord.point_seq(from_point::text),
                                  coalesce(accord.point_seq(to_point::text), accord.safe_seq()));
END
$$;
COMMENT ON FUNCTION accord.diff(regclass, anycompatible, bigint, bigint) IS 'the same between two commit numbers';

-- The past of a table, and of a row. An unknown literal is text, and so any kind of point.
CREATE FUNCTION accord.as_of(base anyelement, point text) RETURNS SETOF anyelement
    LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1000 AS 'MODULE_PATHNAME', 'accord_as_of';
COMMENT ON FUNCTION accord.as_of(anyelement, text) IS 'the rows of a captured table as they were at a point (a time, a commit number, or a mark): SELECT * FROM accord.as_of(NULL::room, ''2026-12-01 10:00''). A time means the last commit not later, so the state is one that existed';
CREATE FUNCTION accord.as_of(base anyelement, point timestamptz) RETURNS SETOF anyelement
    LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1000 AS 'MODULE_PATHNAME', 'accord_as_of';
COMMENT ON FUNCTION accord.as_of(anyelement, timestamptz) IS 'the same at a time';
CREATE FUNCTION accord.as_of(base anyelement, point bigint) RETURNS SETOF anyelement
    LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1000 AS 'MODULE_PATHNAME', 'accord_as_of';
COMMENT ON FUNCTION accord.as_of(anyelement, bigint) IS 'the same after a commit';
CREATE FUNCTION accord.row_as_of(base anyelement, key anycompatible, point text) RETURNS anyelement
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_row_as_of';
COMMENT ON FUNCTION accord.row_as_of(anyelement, anycompatible, text) IS 'one row of a captured table as it was at a point, null when it was not there; the key of several columns is a ROW of them';
CREATE FUNCTION accord.row_as_of(base anyelement, key anycompatible, point timestamptz) RETURNS anyelement
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_row_as_of';
COMMENT ON FUNCTION accord.row_as_of(anyelement, anycompatible, timestamptz) IS 'the same at a time';
CREATE FUNCTION accord.row_as_of(base anyelement, key anycompatible, point bigint) RETURNS anyelement
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_row_as_of';
COMMENT ON FUNCTION accord.row_as_of(anyelement, anycompatible, bigint) IS 'the same after a commit';
