-- revert: undoing what transactions did to captured tables, and bringing deleted rows back.
--
-- What was done is found in the log, row by row and column by column (steps); what to do about it is decided against the
-- rows as they are, under lock (the plan); and then done by plain SQL on the application's tables, so that their
-- constraints, privileges and triggers hold, and the capture trigger writes what is done to the log (operations).

-- ---- what was done ----------------------------------------------------------------------------------------------------

CREATE FUNCTION accord.revert_commits(seqs bigint[], actor text, source text, correlation_id text, matching_reason text,
                                      since timestamptz, until timestamptz, after text, up_to text) RETURNS bigint[]
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    safe bigint := accord.safe_seq();
    lowest bigint := greatest(coalesce(accord.point_seq(after), 0),
                              coalesce(accord.seq_at(since - interval '1 microsecond'), 0)) + 1;
    highest bigint := least(safe, accord.point_seq(up_to), accord.seq_at(until));
    found bigint[];
    missing bigint;
BEGIN
    IF source IS NOT NULL THEN
        -- It is the events that have a source.
        SELECT coalesce(array_agg(s.seq), '{}') INTO found
        FROM (SELECT accord.seq_of(e.slot, e.tx_id) AS seq
              FROM (SELECT DISTINCT l.slot, l.tx_id FROM accord.event_log l
                    WHERE l.source = revert_commits.source AND l.table_id IS NOT NULL) e) s
        WHERE s.seq IS NOT NULL;
        seqs := CASE WHEN seqs IS NULL THEN found
                     ELSE ARRAY(SELECT unnest(seqs) INTERSECT SELECT unnest(found)) END;
    END IF;
    IF seqs IS NOT NULL THEN
        lowest := greatest(lowest, (SELECT min(s) FROM unnest(seqs) s));
        highest := least(highest, (SELECT max(s) FROM unnest(seqs) s));
    END IF;
    SELECT array_agg(c.seq ORDER BY c.seq) INTO found
    FROM accord.commit_log c
    WHERE c.seq BETWEEN lowest AND highest
      AND (seqs IS NULL OR c.seq = ANY (seqs))
      AND (actor IS NULL OR c.actor = revert_commits.actor)
      AND (correlation_id IS NULL OR c.correlation_id = revert_commits.correlation_id)
      AND (matching_reason IS NULL OR c.reason = revert_commits.matching_reason);
    RETURN coalesce(found, '{}');
END
$$;
COMMENT ON FUNCTION accord.revert_commits(bigint[], text, text, text, text, timestamptz, timestamptz, text, text) IS 'internal: the commits that accord.revert() is asked to revert';

-- What several events of a row come to: the row before and after them, null where it was not there. Where others changed
-- it in between, the way back ends at what they left, column by column.
CREATE FUNCTION accord.revert_net(ops text[], payloads jsonb[], befores jsonb[], OUT old jsonb, OUT new jsonb)
    RETURNS record
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n integer := cardinality(ops);
    left_behind jsonb;
    found jsonb;
    stopped text[] := '{}';
    c text;
BEGIN
    new := accord.state_after(ops[n], payloads[n]);
    old := accord.state_before(ops[n], payloads[n], befores[n]);
    FOR i IN REVERSE n - 1 .. 1 LOOP
        left_behind := accord.state_after(ops[i], payloads[i]);
        found := accord.state_before(ops[i], payloads[i], befores[i]);
        EXIT WHEN (left_behind IS NULL) <> (old IS NULL);
        IF old IS NULL THEN
            old := found;
        ELSIF found IS NULL THEN
            EXIT WHEN stopped <> '{}' OR NOT left_behind @> old;
            old := NULL;
        ELSE
            FOR c IN SELECT jsonb_object_keys(befores[i]) LOOP
                CONTINUE WHEN c = ANY (stopped);
                IF left_behind -> c IS NOT DISTINCT FROM old -> c THEN
                    old := jsonb_set(old, ARRAY[c], found -> c);
                ELSE
                    stopped := stopped || c;
                END IF;
            END LOOP;
            -- what this event did not touch, somebody else may have
            SELECT stopped || array_agg(k) INTO stopped FROM jsonb_object_keys(old) k
            WHERE NOT befores[i] ? k AND k <> ALL (stopped) AND left_behind -> k IS DISTINCT FROM old -> k;
            stopped := coalesce(stopped, '{}');
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION accord.revert_net(text[], jsonb[], jsonb[]) IS 'internal: what several events of a row come to';

-- One step for each row: {"id": captured.id, "key": ..., "old": image or null, "new": image or null}. A change of the key
-- is one step of the row under its new key.
CREATE FUNCTION accord.revert_steps(seqs bigint[], source text, table_id integer) RETURNS jsonb[]
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    steps jsonb[];
BEGIN
    WITH RECURSIVE logged AS MATERIALIZED (
        -- as columns are called now
        SELECT e.table_id, e.key, e.seq, e.ord, e.op,
               CASE WHEN s.table_id IS NULL THEN e.payload ELSE accord.reshape(e.payload, e.table_id, e.seq, e.ord) END AS payload,
               CASE WHEN s.table_id IS NULL THEN e.before ELSE accord.reshape(e.before, e.table_id, e.seq, e.ord) END AS before
        FROM accord.commit_events(seqs) e
        LEFT JOIN (SELECT DISTINCT c.table_id FROM accord.captured_shape c WHERE c.version > 1) s ON s.table_id = e.table_id
        WHERE e.key IS NOT NULL AND NOT (e.op = 'insert' AND e.before IS NOT NULL AND e.before = '{}')
          AND (revert_steps.source IS NULL OR e.source = revert_steps.source)
          AND (revert_steps.table_id IS NULL OR e.table_id = revert_steps.table_id)),
    beside AS MATERIALIZED (
        -- with what was written right before
        SELECT l.*, first_value(l.op) OVER w AS last_op, first_value(l.key) OVER w AS last_key,
               first_value(l.payload) OVER w AS last_payload, first_value(l.before) OVER w AS last_before
        FROM logged l
        WINDOW w AS (PARTITION BY l.table_id, l.seq ORDER BY l.ord RANGE BETWEEN 1 PRECEDING AND 1 PRECEDING)),
    turned AS MATERIALIZED (
        -- An insert that says what the row was, and is not the second half of a change of the key: an update made the row
        -- meet the table's condition. A delete before which is said what the row became: an update made it cease to.
        SELECT b.*, t.is_turned, t.is_left,
               CASE WHEN t.is_left THEN b.before || b.last_payload ELSE b.payload END AS new,
               CASE WHEN t.is_left THEN b.before WHEN t.is_turned THEN b.payload || b.before END AS old,
               CASE WHEN t.is_left THEN (SELECT coalesce(jsonb_object_agg(k, b.before -> k), '{}')
                                         FROM jsonb_object_keys(b.last_payload) k) ELSE b.before END AS changed,
               -- the one that it has, or had, where it does not meet it
               CASE WHEN t.is_turned THEN
                   accord.row_key(VARIADIC ARRAY(SELECT (CASE WHEN t.is_left THEN b.before || b.last_payload
                                                              ELSE b.payload || b.before END) ->> u.name
                                                 FROM unnest(c.key_columns) WITH ORDINALITY u (name, place) ORDER BY u.place))
               END AS other_key
        FROM beside b JOIN accord.captured c ON c.id = b.table_id
        CROSS JOIN LATERAL (SELECT i.is_left, i.is_left OR b.op = 'insert' AND b.before IS NOT NULL
                                       AND (b.last_op = 'delete' AND b.last_before = b.payload || b.before) IS NOT TRUE AS is_turned
                            FROM (SELECT (b.op = 'delete' AND b.last_op = 'event' AND b.last_key = b.key
                                          AND b.last_payload IS NOT NULL) IS TRUE AS is_left) i) t
        WHERE b.op <> 'event'),
    event AS MATERIALIZED (
        SELECT t.table_id, t.key, t.seq, t.ord, CASE WHEN t.is_turned THEN 'update' ELSE t.op END AS op, t.new AS payload,
               t.changed AS before, CASE WHEN t.op = 'insert' AND t.before IS NOT NULL AND t.last_op = 'delete'
                                              AND t.last_key <> t.key THEN t.last_key END AS moved_from
        FROM turned t WHERE NOT t.is_turned OR t.other_key = t.key
        UNION ALL
        -- with a change of the key it is the two halves of one
        SELECT t.table_id, CASE WHEN t.is_left THEN t.key ELSE t.other_key END, t.seq, t.ord, 'delete', NULL, t.old, NULL
        FROM turned t WHERE t.is_turned AND t.other_key <> t.key
        UNION ALL
        SELECT t.table_id, CASE WHEN t.is_left THEN t.other_key ELSE t.key END, t.seq, t.ord, 'insert', t.new, t.changed,
               CASE WHEN t.is_left THEN t.key ELSE t.other_key END
        FROM turned t WHERE t.is_turned AND t.other_key <> t.key),
    grouped AS MATERIALIZED (
        SELECT e.table_id, e.key, count(*) AS n, array_agg(e.op ORDER BY e.seq, e.ord) AS ops,
               array_agg(e.payload ORDER BY e.seq, e.ord) AS payloads, array_agg(e.before ORDER BY e.seq, e.ord) AS befores,
               (array_agg(e.moved_from ORDER BY e.seq, e.ord))[1] AS moved_from, min(e.seq) AS seq, min(e.ord) AS ord
        FROM event e GROUP BY e.table_id, e.key),
    net AS MATERIALIZED (
        SELECT g.table_id, g.key, g.moved_from, g.seq, g.ord,
               CASE g.ops[1] WHEN 'insert' THEN NULL WHEN 'update' THEN g.payloads[1] || g.befores[1] ELSE g.befores[1] END AS old,
               CASE WHEN g.ops[1] IN ('insert', 'update') THEN g.payloads[1] END AS new
        FROM grouped g WHERE g.n = 1
        UNION ALL
        SELECT g.table_id, g.key, g.moved_from, g.seq, g.ord, r.old, r.new
        FROM grouped g CROSS JOIN LATERAL accord.revert_net(g.ops, g.payloads, g.befores) r WHERE g.n > 1),
    -- from a row that came under its key by a change of the key, back to the key it had before all
    way AS (
        SELECT n.table_id, n.key AS tip, n.key AS at, n.moved_from, n.old, 0 AS length
        FROM net n WHERE n.new IS NOT NULL AND n.old IS NULL AND n.moved_from IS NOT NULL
        UNION ALL
        SELECT w.table_id, w.tip, n.key, n.moved_from, n.old, w.length + 1
        FROM way w JOIN net n ON n.table_id = w.table_id AND n.key = w.moved_from AND n.new IS NULL
        WHERE w.old IS NULL AND w.moved_from IS NOT NULL AND w.length < 1000),
    origin AS (SELECT w.table_id, w.tip, w.at, w.old FROM way w WHERE w.old IS NOT NULL)
    SELECT array_agg(jsonb_build_object('id', n.table_id, 'key', n.key, 'old', coalesce(o.old, n.old), 'new', n.new)
                     ORDER BY n.seq, n.ord)
    INTO steps
    FROM net n LEFT JOIN origin o ON o.table_id = n.table_id AND o.tip = n.key
    WHERE (n.old IS NOT NULL OR n.new IS NOT NULL)
      AND NOT EXISTS (SELECT FROM origin m WHERE m.table_id = n.table_id AND m.at = n.key);
    RETURN coalesce(steps, '{}');
END
$$;
COMMENT ON FUNCTION accord.revert_steps(bigint[], text, integer) IS 'internal: what commits did to captured rows, a step for each row';

-- ---- what to do about it ----------------------------------------------------------------------------------------------

-- Three-way, column by column: what is as it was left is put back; what is not was changed since.
CREATE FUNCTION accord.revert_decide(old jsonb, new jsonb, current jsonb, mode text, columns text[],
                                     OUT action text, OUT target jsonb, OUT changes jsonb, OUT kept jsonb, OUT why text)
    RETURNS record
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF old IS NULL THEN
        action := 'delete';
        IF current IS NOT NULL THEN
            SELECT jsonb_object_agg(c, jsonb_build_object('from', current -> c, 'to', new -> c))
                       FILTER (WHERE mode <> 'force' AND current -> c IS DISTINCT FROM new -> c),
                   jsonb_object_agg(c, jsonb_build_object('from', current -> c))
            INTO kept, changes FROM unnest(columns) c WHERE new ? c;
            IF kept IS NULL THEN
                target := '{}';
            ELSE
                changes := NULL;
                why := 'the row was changed since';
            END IF;
        END IF;
    ELSIF current IS NULL AND (new IS NULL OR mode = 'force') THEN
        action := 'insert';
        SELECT jsonb_object_agg(c, old -> c), jsonb_object_agg(c, jsonb_build_object('to', old -> c))
        INTO target, changes FROM unnest(columns) c WHERE old ? c;
    ELSIF current IS NULL THEN
        action := 'update';
        SELECT jsonb_object_agg(c, jsonb_build_object('from', NULL, 'to', old -> c))
        INTO kept FROM unnest(columns) c WHERE old ? c AND old -> c IS DISTINCT FROM new -> c;
        why := 'the row was deleted since';
    ELSE
        action := 'update';
        SELECT jsonb_object_agg(d.c, old -> d.c) FILTER (WHERE d.is_restored),
               jsonb_object_agg(d.c, jsonb_build_object('from', current -> d.c, 'to', old -> d.c)) FILTER (WHERE d.is_restored),
               jsonb_object_agg(d.c, jsonb_build_object('from', current -> d.c, 'to', old -> d.c)) FILTER (WHERE NOT d.is_restored)
        INTO target, changes, kept
        FROM (SELECT c, mode = 'force' OR coalesce(new ? c AND current -> c = new -> c, false) AS is_restored FROM unnest(columns) c
              WHERE old ? c AND (new IS NULL OR old -> c IS DISTINCT FROM new -> c)
                AND current -> c IS DISTINCT FROM old -> c) d;
        IF kept IS NOT NULL THEN
            why := CASE WHEN new IS NULL THEN 'the row is there again' ELSE 'changed since' END;
        END IF;
    END IF;
END
$$;
COMMENT ON FUNCTION accord.revert_decide(jsonb, jsonb, jsonb, text, text[]) IS 'internal: what to do about one row';

CREATE FUNCTION accord.key_image(image jsonb, key_columns text[]) RETURNS jsonb
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_object_agg(c, image -> c) FROM unnest(key_columns) c
$$;
COMMENT ON FUNCTION accord.key_image(jsonb, text[]) IS 'internal: the columns of the key, of an image';

-- "t.a = k.a AND t.b = k.b", with the types' own operators.
CREATE FUNCTION accord.key_condition(relation regclass, key_columns text[]) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format('t.%1$I %2$s k.%1$I', c, accord.equality(a.atttypid)), ' AND ' ORDER BY o)
    FROM unnest(key_columns) WITH ORDINALITY u (c, o)
    JOIN pg_attribute a ON a.attrelid = relation AND a.attname = c
$$;
COMMENT ON FUNCTION accord.key_condition(regclass, text[]) IS 'internal: how the rows of a table are found by their keys';

-- A table as FROM names it: without its children, unless it is partitioned.
CREATE FUNCTION accord.from_name(relation regclass) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || format('%I.%I', n.nspname, c.relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation
$$;
COMMENT ON FUNCTION accord.from_name(regclass) IS 'internal: a table as FROM names it';

CREATE FUNCTION accord.type_name(relation regclass) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation
$$;
COMMENT ON FUNCTION accord.type_name(regclass) IS 'internal: a table''s qualified name';

-- The images of the rows of these keys as they are now, null where there is none; with lock, nobody else changes them.
CREATE FUNCTION accord.revert_current(relation regclass, key_columns text[], keys jsonb[], lock boolean) RETURNS jsonb[]
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found jsonb[];
BEGIN
    EXECUTE format($q$
        SELECT array_agg(f.image ORDER BY s.n)
        FROM unnest($1::jsonb[]) WITH ORDINALITY AS s (key, n)
        LEFT JOIN (SELECT p.n, accord.image_of(t.*) AS image
                   FROM unnest($1::jsonb[]) WITH ORDINALITY AS p (key, n)
                   CROSS JOIN LATERAL accord.row_of(NULL::%s, p.key) AS k
                   JOIN %s AS t ON %s
                   ORDER BY %s %s) f ON f.n = s.n
        $q$, accord.type_name(relation), accord.from_name(relation), accord.key_condition(relation, key_columns),
        (SELECT string_agg(format('k.%I', c), ', ') FROM unnest(key_columns) c),
        CASE WHEN lock THEN 'FOR UPDATE OF t' ELSE '' END) INTO found USING keys;
    RETURN found;
END
$$;
COMMENT ON FUNCTION accord.revert_current(regclass, text[], jsonb[], boolean) IS 'internal: rows as they are now, by their keys';

-- Who changed a row after the last of these commits that did, for the plan.
CREATE FUNCTION accord.revert_since(table_id integer, key text, seqs bigint[], columns text[]) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(' by commit %s%s', coalesce(e.seq::text, 'of this transaction'),
                  coalesce(', ' || nullif(concat_ws(', ', 'actor ' || e.actor, 'reason ' || e.reason), ''), ''))
    FROM (SELECT n.*, max(n.place) FILTER (WHERE n.seq = ANY (seqs)) OVER () AS undone
          FROM (SELECT x.*, row_number() OVER (ORDER BY x.seq NULLS LAST, x.ord) AS place
                FROM accord.row_events(table_id, key) x) n) e
    WHERE e.place > coalesce(e.undone, 0)
      AND CASE e.op WHEN 'update' THEN e.before ?| columns WHEN 'insert' THEN e.before IS DISTINCT FROM '{}' ELSE e.op <> 'event' END
    ORDER BY e.place DESC LIMIT 1
$$;
COMMENT ON FUNCTION accord.revert_since(integer, text, bigint[], text[]) IS 'internal: who changed a row since, as text';

-- The plan for the steps of one table: of each, by its number among all, what is to be done, and what is kept.
CREATE FUNCTION accord.revert_plan_table(table_id integer, steps jsonb[], numbers integer[], seqs bigint[], mode text,
    OUT n integer, OUT relation text, OUT action text, OUT op jsonb, OUT changes jsonb, OUT kept jsonb, OUT why text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    target_table regclass := accord.captured_relation(table_id);
    known record;
    columns text[];
    keys jsonb[];
    now_there jsonb[];
    d record;
    step jsonb;
    old jsonb;
    new jsonb;
BEGIN
    SELECT coalesce(target_table::text, format('%I.%I', c.schema_name, c.table_name)),
           CASE WHEN target_table IS NULL THEN 'the table is gone'
                WHEN c.released_at IS NOT NULL THEN 'the table is not captured any more' END
    INTO relation, why FROM accord.captured c WHERE c.id = table_id;
    IF why IS NOT NULL THEN
        FOR i IN 1 .. cardinality(steps) LOOP
            n := numbers[i];
            action := CASE WHEN steps[i] ->> 'old' IS NULL THEN 'delete' WHEN steps[i] ->> 'new' IS NULL THEN 'insert'
                           ELSE 'update' END;
            RETURN NEXT;
        END LOOP;
        RETURN;
    END IF;
    SELECT * INTO known FROM accord.history_table(target_table);
    SELECT array_agg(a.attname::text ORDER BY a.attnum) INTO columns FROM pg_attribute a
    WHERE a.attrelid = target_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
      AND a.attname <> ALL (known.hidden);
    EXECUTE format('SELECT array_agg(jsonb_build_object(%s) ORDER BY u.o) '
                   'FROM (SELECT coalesce(nullif(s -> ''new'', ''null''), s -> ''old'') AS i, o '
                   'FROM unnest($1) WITH ORDINALITY v (s, o)) u',
                   (SELECT string_agg(format('%1$L, u.i -> %1$L', c), ', ') FROM unnest(known.key_columns) c))
    INTO keys USING steps;
    now_there := accord.revert_current(target_table, known.key_columns, keys, true);
    FOR i IN 1 .. cardinality(steps) LOOP
        step := steps[i];
        n := numbers[i];
        old := nullif(step -> 'old', 'null');
        new := nullif(step -> 'new', 'null');
        d := accord.revert_decide(old, new, now_there[i], mode, columns);
        IF d.kept IS NOT NULL THEN
            -- A column whose type was changed is not the same JSON, and may be the same value.
            BEGIN
                EXECUTE format('SELECT $1 || (SELECT jsonb_object_agg(c, m -> c) FROM jsonb_object_keys($1) c WHERE m ? c), '
                               '$2 || (SELECT jsonb_object_agg(c, w -> c) FROM jsonb_object_keys($2) c WHERE w ? c) '
                               'FROM accord.image_of(accord.row_of(NULL::%1$s, $1)) m, '
                               'LATERAL (SELECT accord.image_of(accord.row_of(NULL::%1$s, $2))) v (w)',
                               accord.type_name(target_table)) INTO old, new USING old, new;
                d := accord.revert_decide(old, new, now_there[i], mode, columns);
            EXCEPTION WHEN data_exception THEN
                NULL;
            END;
        END IF;
        action := d.action;
        changes := d.changes;
        kept := d.kept;
        op := CASE WHEN d.target IS NOT NULL THEN
                  jsonb_build_object('r', target_table::oid, 'a', d.action, 'k', keys[i], 't', d.target) END;
        why := CASE WHEN d.kept IS NOT NULL AND new IS NULL AND known.condition IS NOT NULL THEN
                   'the row is there again, or has left the capture''s condition: the log does not say what it became'
               WHEN d.kept IS NOT NULL THEN
                   d.why || coalesce(accord.revert_since(table_id, step ->> 'key', seqs,
                                                         ARRAY(SELECT jsonb_object_keys(d.kept))), ', by nothing that was captured')
               WHEN d.action = 'insert' AND known.hidden <> '{}' THEN
                   format('not captured, so not restored: %s', array_to_string(known.hidden, ', '))
               END;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION accord.revert_plan_table(integer, jsonb[], integer[], bigint[], text) IS 'internal: the plan for the rows of one table, which are locked by it';

-- ---- doing it ---------------------------------------------------------------------------------------------------------

-- Operations: {"r": table, "a": insert, update or delete, "k": image of the key now, "t": image of what is to be set}.

-- The statement for operations of one kind: $1 the images of keys, $2 those of what is to be set.
CREATE FUNCTION accord.revert_statement(relation regclass, action text, columns text[], key_columns text[]) RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text := accord.type_name(relation);
    found text := format('ROWS FROM (pg_catalog.unnest($1::pg_catalog.jsonb[]), pg_catalog.unnest($2::pg_catalog.jsonb[])) AS o (k, t) '
                         'CROSS JOIN LATERAL accord.row_of(NULL::%s, o.k) AS k', name);
    listed text := (SELECT string_agg(quote_ident(c), ', ') FROM unnest(columns) c);
    taken text := (SELECT string_agg(format('s.%I', c), ', ') FROM unnest(columns) c);
    changed text;
BEGIN
    changed := CASE action
        WHEN 'insert' THEN
            format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.jsonb[]), '
                   'pg_catalog.unnest($2::pg_catalog.jsonb[])) AS o (k, t) CROSS JOIN LATERAL accord.row_of(NULL::%s, o.t) AS s',
                   name, listed, taken, name)
        WHEN 'update' THEN
            format('UPDATE %s AS t SET (%s) = ROW(%s) FROM %s CROSS JOIN LATERAL accord.row_of(NULL::%s, o.t) AS s WHERE %s',
                   accord.from_name(relation), listed, taken, found, name, accord.key_condition(relation, key_columns))
        ELSE
            format('DELETE FROM %s AS t USING %s WHERE %s', accord.from_name(relation), found,
                   accord.key_condition(relation, key_columns))
        END;
    RETURN format('WITH changed AS (%s RETURNING 1) SELECT pg_catalog.count(*) FROM changed', changed);
END
$$;
COMMENT ON FUNCTION accord.revert_statement(regclass, text, text[], text[]) IS 'internal: the statement that carries operations of one kind out';

-- What a delete would take along or change beyond the plan: rows that refer to those of the keys $1 with a foreign key
-- that cascades. A query for the first of them, null when there is no such foreign key.
CREATE FUNCTION accord.revert_referrers(relation regclass, key_columns text[]) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format($q$(SELECT %L FROM unnest($1::jsonb[]) AS o (k)
                                 CROSS JOIN LATERAL accord.row_of(NULL::%s, o.k) AS k
                                 JOIN %s AS t ON %s JOIN %s AS c ON %s
                                 WHERE %s LIMIT 1)$q$,
                             format('rows of table "%s" refer to it (foreign key "%s")', f.conrelid::regclass, f.conname),
                             accord.type_name(revert_referrers.relation), accord.from_name(revert_referrers.relation),
                             accord.key_condition(revert_referrers.relation, key_columns), accord.from_name(f.conrelid), f.condition,
                             CASE WHEN f.conrelid = revert_referrers.relation THEN
                                 format('NOT EXISTS (SELECT FROM unnest($1::jsonb[]) AS i (j) '
                                        'CROSS JOIN LATERAL accord.row_of(NULL::%s, i.j) AS k WHERE %s)',
                                        accord.type_name(revert_referrers.relation),
                                        replace(accord.key_condition(revert_referrers.relation, key_columns), 't.', 'c.'))
                                 ELSE 'true' END),
                      ' UNION ALL ')
    FROM (SELECT g.conrelid, g.conname,
                 (SELECT string_agg(format('t.%I OPERATOR(%I.%s) c.%I', p.attname, n.nspname, q.oprname, r.attname), ' AND ')
                  FROM unnest(g.confkey, g.conkey, g.conpfeqop) AS u (pk, fk, eq)
                  JOIN pg_attribute p ON p.attrelid = g.confrelid AND p.attnum = u.pk
                  JOIN pg_attribute r ON r.attrelid = g.conrelid AND r.attnum = u.fk
                  JOIN pg_operator q ON q.oid = u.eq JOIN pg_namespace n ON n.oid = q.oprnamespace) AS condition
          FROM pg_constraint g
          WHERE g.contype = 'f' AND g.confrelid = revert_referrers.relation AND g.conparentid = 0
            AND g.confdeltype IN ('c', 'n', 'd')) f
$$;
COMMENT ON FUNCTION accord.revert_referrers(regclass, text[]) IS 'internal: a query for rows that a delete would take along';

-- Carries operations of one kind out, under the caller's search_path: all at once, or, when that fails, in halves, until
-- those to blame are found.
CREATE FUNCTION accord.revert_try(statement text, referrers text, path text, numbers integer[], keys jsonb[],
                                  targets jsonb[], INOUT failed integer[], INOUT errors text[])
    RETURNS record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    total integer := cardinality(numbers);
    half integer := total / 2;
    done bigint;
    blocker text;
    detail text;
BEGIN
    BEGIN
        IF referrers IS NOT NULL THEN
            EXECUTE referrers INTO blocker USING keys;
            IF blocker IS NOT NULL THEN
                RAISE EXCEPTION USING ERRCODE = 'foreign_key_violation', MESSAGE = blocker;
            END IF;
        END IF;
        PERFORM pg_catalog.set_config('search_path', path, true);
        EXECUTE statement INTO done USING keys, targets;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        IF done <> total THEN
            RAISE EXCEPTION USING ERRCODE = 'triggered_data_change_violation',
                MESSAGE = CASE WHEN total > 1 THEN 'not all rows were changed'
                               WHEN done > 1 THEN 'the key is not unique'
                               ELSE 'the row was not found, or a trigger or policy held the change back' END;
        END IF;
        RETURN;
    EXCEPTION WHEN integrity_constraint_violation OR data_exception OR raise_exception OR insufficient_privilege
        OR triggered_data_change_violation OR with_check_option_violation OR object_not_in_prerequisite_state THEN
        GET STACKED DIAGNOSTICS blocker = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    END;
    IF total = 1 THEN
        failed := failed || numbers[1];
        errors := errors || concat_ws(': ', blocker, nullif(detail, ''));
        RETURN;
    END IF;
    SELECT t.failed, t.errors INTO failed, errors
    FROM accord.revert_try(statement, referrers, path, numbers[:half], keys[:half], targets[:half], failed, errors) t;
    SELECT t.failed, t.errors INTO failed, errors
    FROM accord.revert_try(statement, referrers, path, numbers[half + 1:], keys[half + 1:], targets[half + 1:], failed,
                           errors) t;
END
$$;
COMMENT ON FUNCTION accord.revert_try(text, text, text, integer[], jsonb[], jsonb[], integer[], text[]) IS 'internal: carries operations of one kind out, and tells which failed, and why';

-- How far each table is from those that refer to no other: what is referred to comes first. Cycles end somewhere.
CREATE FUNCTION accord.revert_levels(relations oid[], OUT relation oid, OUT level integer) RETURNS SETOF record
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE path AS (
        SELECT r AS relation, 0 AS level FROM unnest(relations) r
        UNION
        SELECT f.conrelid, p.level + 1 FROM path p
        JOIN pg_constraint f ON f.contype = 'f' AND f.confrelid = p.relation AND f.conrelid <> f.confrelid
        WHERE f.conrelid = ANY (relations) AND p.level < cardinality(relations))
    SELECT relation, max(level) FROM path GROUP BY relation
$$;
COMMENT ON FUNCTION accord.revert_levels(oid[]) IS 'internal: an order of tables by their foreign keys';

-- Carries operations out, in the order of foreign keys, as often as that gets any of them further.
CREATE FUNCTION accord.revert_apply(ops jsonb[], path text, OUT failed integer[], OUT errors text[])
    RETURNS record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    pending boolean[] := array_fill(true, ARRAY[cardinality(ops)]);
    is_first boolean := true;
    left_over integer := cardinality(ops);
    before integer;
    g record;
    tried record;
    key_columns text[];
    i integer;
BEGIN
    LOOP
        before := left_over;
        failed := '{}';
        errors := '{}';
        FOR g IN
            SELECT o.relation, o.action, o.columns, array_agg(o.n ORDER BY o.n) AS numbers,
                   array_agg(o.key ORDER BY o.n) AS keys, array_agg(o.target ORDER BY o.n) AS targets
            FROM (SELECT (u.op ->> 'r')::oid AS relation, u.op ->> 'a' AS action, u.op -> 'k' AS key, u.op -> 't' AS target,
                         ARRAY(SELECT jsonb_object_keys(u.op -> 't')) AS columns, u.n::integer AS n
                  FROM unnest(ops, pending) WITH ORDINALITY u (op, is_pending, n) WHERE u.is_pending) o
            JOIN accord.revert_levels(ARRAY(SELECT DISTINCT (u ->> 'r')::oid FROM unnest(ops) u)) l
                ON l.relation = o.relation
            GROUP BY o.relation, o.action, o.columns, l.level
            ORDER BY array_position('{insert,update,delete}', o.action),
                     CASE WHEN o.action = 'delete' THEN -l.level ELSE l.level END, o.relation, min(o.n)
        LOOP
            key_columns := (SELECT h.key_columns FROM accord.history_table(g.relation::regclass) h);
            tried := accord.revert_try(accord.revert_statement(g.relation::regclass, g.action, g.columns, key_columns),
                                       CASE WHEN g.action = 'delete' THEN
                                           accord.revert_referrers(g.relation::regclass, key_columns) END,
                                       path, g.numbers, g.keys, g.targets, '{}', '{}');
            FOREACH i IN ARRAY g.numbers LOOP
                pending[i] := false;
            END LOOP;
            FOREACH i IN ARRAY tried.failed LOOP
                pending[i] := true;
            END LOOP;
            left_over := left_over - cardinality(g.numbers) + cardinality(tried.failed);
            failed := failed || tried.failed;
            errors := errors || tried.errors;
        END LOOP;
        EXIT WHEN left_over = 0 OR left_over = before;
    END LOOP;
END
$$;
COMMENT ON FUNCTION accord.revert_apply(jsonb[], text) IS 'internal: carries operations out, in the order of foreign keys; tells which failed, and why';

-- Columns of a table that may be null and are in the way of others or refer to them: by those, circles are opened and
-- closed.
CREATE FUNCTION accord.loose_columns(relation regclass) RETURNS text[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(DISTINCT a.attname::text), '{}')
    FROM (SELECT unnest(f.conkey) FROM pg_constraint f WHERE f.contype = 'f' AND f.conrelid = relation
          UNION ALL
          SELECT unnest(i.indkey) FROM pg_index i WHERE i.indrelid = relation AND (i.indisunique OR i.indisexclusion)) k (attnum)
    JOIN pg_attribute a ON a.attrelid = relation AND a.attnum = k.attnum
    WHERE a.attnum > 0 AND NOT a.attnotnull AND a.attgenerated = ''
$$;
COMMENT ON FUNCTION accord.loose_columns(regclass) IS 'internal: the columns of a table''s foreign and unique keys that may be null';

-- Constraints that can wait until the end of the transaction: of these tables, or about them.
CREATE FUNCTION accord.deferrable_constraints(relations oid[], initially_deferred boolean) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(DISTINCT format('%I.%I', n.nspname, c.conname), ', ')
    FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace
    WHERE c.condeferrable AND (c.conrelid = ANY (relations) OR c.confrelid = ANY (relations))
      AND (c.condeferred OR NOT initially_deferred)
$$;
COMMENT ON FUNCTION accord.deferrable_constraints(oid[], boolean) IS 'internal: names of constraints that can wait, as SET CONSTRAINTS takes them';

CREATE FUNCTION accord.set_constraints(names text, mode text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF names IS NOT NULL THEN
        EXECUTE format('SET CONSTRAINTS %s %s', names, mode);
    END IF;
END
$$;
COMMENT ON FUNCTION accord.set_constraints(text, text) IS 'internal: SET CONSTRAINTS, when there are any';

-- Rows that refer to each other, or take each other's values, in a circle: what may be null is left out or taken off at
-- first, and set afterwards. Constraints that can wait, wait. All of it, or nothing.
CREATE FUNCTION accord.revert_apply_circle(ops jsonb[], path text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    loosened jsonb[] := '{}';
    waiting text := accord.deferrable_constraints(ARRAY(SELECT (u ->> 'r')::oid FROM unnest(ops) u), false);
    tried record;
    o jsonb;
    loose text[];
    set_later jsonb;
BEGIN
    FOREACH o IN ARRAY ops LOOP
        loose := accord.loose_columns((o ->> 'r')::oid::regclass);
        IF o ->> 'a' = 'insert' AND o -> 't' ?| loose THEN
            SELECT jsonb_object_agg(c, o -> 't' -> c) INTO set_later FROM unnest(loose) c WHERE o -> 't' ? c;
            loosened := loosened || (o || jsonb_build_object('t', (o -> 't') - loose))
                        || (o || jsonb_build_object('a', 'update', 't', set_later));
        ELSIF o ->> 'a' = 'delete' AND loose <> '{}' OR o ->> 'a' = 'update' AND o -> 't' ?| loose THEN
            loosened := loosened || (o || jsonb_build_object('a', 'update',
                            't', (SELECT jsonb_object_agg(c, NULL) FROM unnest(loose) c
                                  WHERE o ->> 'a' = 'delete' OR o -> 't' ? c))) || o;
        ELSE
            loosened := loosened || o;
        END IF;
    END LOOP;
    PERFORM accord.set_constraints(waiting, 'DEFERRED');
    tried := accord.revert_apply(loosened, path);
    IF tried.failed <> '{}' THEN
        RAISE EXCEPTION USING ERRCODE = 'triggered_data_change_violation', MESSAGE = tried.errors[1];
    END IF;
    PERFORM accord.set_constraints(waiting, 'IMMEDIATE');
    RETURN true;
EXCEPTION WHEN integrity_constraint_violation OR triggered_data_change_violation THEN
    RETURN false;
END
$$;
COMMENT ON FUNCTION accord.revert_apply_circle(jsonb[], text) IS 'internal: carries out operations on rows that refer to each other in a circle; whether all could be';

-- What triggers made of rows that were set: operations that set them once more, each with the number ("n") of the one
-- that set it first.
CREATE FUNCTION accord.revert_moved(ops jsonb[]) RETURNS jsonb[]
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    g record;
    key_columns text[];
    keys jsonb[];
    now_there jsonb[];
    moved jsonb[] := '{}';
    again jsonb;
BEGIN
    FOR g IN SELECT (u.op ->> 'r')::oid::regclass AS relation, array_agg(u.op ORDER BY u.n) AS ops,
                    array_agg(u.n ORDER BY u.n) AS numbers
             FROM unnest(ops) WITH ORDINALITY u (op, n)
             WHERE u.op ->> 'a' <> 'delete' AND EXISTS (
                 SELECT FROM pg_trigger t WHERE NOT t.tgisinternal AND t.tgenabled <> 'D'
                    AND t.tgrelid IN (SELECT (v ->> 'r')::oid FROM unnest(ops) v)
                    AND t.tgfoid NOT IN ('accord.capture_row'::regproc, 'accord.capture_truncate'::regproc))
             GROUP BY 1 LOOP
        key_columns := (SELECT h.key_columns FROM accord.history_table(g.relation) h);
        SELECT array_agg(accord.key_image((u.op -> 'k') || (u.op -> 't'), key_columns) ORDER BY u.n) INTO keys
        FROM unnest(g.ops) WITH ORDINALITY u (op, n);
        now_there := accord.revert_current(g.relation, key_columns, keys, false);
        FOR i IN 1 .. cardinality(g.ops) LOOP
            SELECT jsonb_object_agg(t.key, t.value) INTO again FROM jsonb_each(g.ops[i] -> 't') t
            WHERE now_there[i] IS NOT NULL AND now_there[i] -> t.key IS DISTINCT FROM t.value;
            IF again IS NOT NULL THEN
                moved := moved || jsonb_build_object('r', g.relation::oid, 'a', 'update', 'k', keys[i], 't', again,
                                                     'n', g.numbers[i]);
            END IF;
        END LOOP;
    END LOOP;
    RETURN moved;
END
$$;
COMMENT ON FUNCTION accord.revert_moved(jsonb[]) IS 'internal: what triggers made of rows that were set';

-- Carries operations out by all means there are; of each, null or why it could not be, and what a trigger made of it.
CREATE FUNCTION accord.revert_execute(ops jsonb[], path text, OUT errors text[], OUT notes text[])
    RETURNS record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relations oid[] := ARRAY(SELECT DISTINCT (u ->> 'r')::oid FROM unnest(ops) u);
    tried record;
    moved jsonb[];
    o jsonb;
BEGIN
    errors := array_fill(NULL::text, ARRAY[cardinality(ops)]);
    notes := errors;
    PERFORM accord.set_constraints(accord.deferrable_constraints(relations, false), 'IMMEDIATE');
    tried := accord.revert_apply(ops, path);
    IF tried.failed <> '{}' AND NOT accord.revert_apply_circle(ARRAY(SELECT ops[i] FROM unnest(tried.failed) i), path) THEN
        FOR i IN 1 .. cardinality(tried.failed) LOOP
            errors[tried.failed[i]] := tried.errors[i];
        END LOOP;
    END IF;
    moved := accord.revert_moved(ARRAY(SELECT CASE WHEN errors[u.n] IS NULL THEN u.op ELSE u.op || '{"a": "delete"}' END
                                       FROM unnest(ops) WITH ORDINALITY u (op, n) ORDER BY u.n));
    IF moved <> '{}' THEN
        PERFORM accord.revert_apply(moved, path);
        FOREACH o IN ARRAY accord.revert_moved(moved) LOOP
            notes[(moved[(o ->> 'n')::integer] ->> 'n')::integer] := 'a trigger made something else of it: '
                || (SELECT string_agg(k, ', ') FROM jsonb_object_keys(o -> 't') k);
        END LOOP;
    END IF;
    PERFORM accord.set_constraints(accord.deferrable_constraints(relations, true), 'DEFERRED');
END
$$;
COMMENT ON FUNCTION accord.revert_execute(jsonb[], text) IS 'internal: carries operations out by all means there are';

CREATE FUNCTION accord.revert_note(payload jsonb) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT accord.control_append('accord.revert', payload)
$$;
COMMENT ON FUNCTION accord.revert_note(jsonb) IS 'internal: notes in the log what a transaction reverted';

-- Plans and does it. A dry run does it too, and takes it back.
CREATE FUNCTION accord.revert_run(steps jsonb[], seqs bigint[], mode text, dry_run boolean, reason text, note jsonb,
    path text, OUT table_name text, OUT row_key text, OUT action text, OUT changes jsonb, OUT status text, OUT why text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    total integer := cardinality(steps);
    -- the plan, step by step
    tables text[] := array_fill(NULL::text, ARRAY[total]);
    actions text[] := tables;
    reasons text[] := tables;
    restored jsonb[] := array_fill(NULL::jsonb, ARRAY[total]);
    left_alone jsonb[] := restored;
    op_of integer[] := array_fill(0, ARRAY[total]);
    ops jsonb[] := '{}';
    carried record;
    g record;
    d record;
    n_kept integer := 0;
    n_blocked integer := 0;
    refusals text[] := '{}';
BEGIN
    IF total = 0 THEN
        RETURN;
    END IF;
    BEGIN
        FOR g IN SELECT (u.s ->> 'id')::integer AS id, array_agg(u.s ORDER BY u.n) AS steps,
                        array_agg(u.n::integer ORDER BY u.n) AS numbers
                 FROM unnest(steps) WITH ORDINALITY u (s, n) GROUP BY 1 ORDER BY 1 LOOP
            FOR d IN SELECT * FROM accord.revert_plan_table(g.id, g.steps, g.numbers, seqs, mode) LOOP
                tables[d.n] := d.relation;
                actions[d.n] := d.action;
                reasons[d.n] := d.why;
                restored[d.n] := d.changes;
                left_alone[d.n] := d.kept;
                IF d.op IS NOT NULL THEN
                    ops := ops || d.op;
                    op_of[d.n] := cardinality(ops);
                ELSIF d.kept IS NULL AND d.why IS NOT NULL THEN
                    n_blocked := n_blocked + 1;
                END IF;
                n_kept := n_kept + (d.kept IS NOT NULL)::integer;
            END LOOP;
        END LOOP;
        IF ops <> '{}' THEN
            PERFORM set_config('accord.reason', reason, true);
            carried := accord.revert_execute(ops, path);
            n_blocked := n_blocked + (SELECT count(e) FROM unnest(carried.errors) e);
            PERFORM accord.revert_note(note || jsonb_build_object('mode', mode, 'rows', total, 'kept', n_kept,
                                                                  'blocked', n_blocked));
        END IF;
        IF dry_run THEN
            RAISE EXCEPTION USING ERRCODE = 'ACDRY';
        END IF;
    EXCEPTION WHEN SQLSTATE 'ACDRY' THEN
        NULL;
    END;

    FOR i IN 1 .. total LOOP
        table_name := tables[i];
        row_key := steps[i] ->> 'key';
        action := actions[i];
        IF op_of[i] > 0 THEN
            changes := restored[i];
            status := CASE WHEN carried.errors[op_of[i]] IS NULL THEN 'applied' ELSE 'blocked' END;
            why := coalesce(carried.errors[op_of[i]], carried.notes[op_of[i]],
                            CASE WHEN left_alone[i] IS NULL THEN reasons[i] END);
            RETURN NEXT;
        END IF;
        IF status = 'blocked' AND op_of[i] > 0 AND cardinality(refusals) < 20 THEN
            refusals := refusals || format('%s (%s): %s', table_name, row_key, why);
        END IF;
        IF op_of[i] = 0 OR left_alone[i] IS NOT NULL THEN
            changes := left_alone[i];
            why := reasons[i];
            status := CASE WHEN changes IS NOT NULL THEN 'kept' WHEN why IS NOT NULL THEN 'blocked' ELSE 'unneeded' END;
            RETURN NEXT;
            IF status <> 'unneeded' AND cardinality(refusals) < 20 THEN
                refusals := refusals || format('%s (%s): %s', table_name, row_key,
                                               concat_ws(': ', (SELECT string_agg(k, ', ') FROM jsonb_object_keys(changes) k), why));
            END IF;
        END IF;
    END LOOP;
    IF mode = 'strict' AND NOT dry_run AND n_kept + n_blocked > 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('nothing was reverted: %s rows were changed since, %s are blocked', n_kept, n_blocked),
            DETAIL = array_to_string(refusals, E'\n'),
            HINT = 'dry_run => true lists all of it; mode => ''merge'' keeps what was changed since, ''force'' overwrites it.';
    END IF;
END
$$;
COMMENT ON FUNCTION accord.revert_run(jsonb[], bigint[], text, boolean, text, jsonb, text) IS 'internal: plans what to do about steps, and does it';

CREATE FUNCTION accord.revert_check_mode(mode text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF mode IS NULL OR mode NOT IN ('merge', 'strict', 'force') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('there is no way to revert called "%s"', mode),
            HINT = 'Use merge (keep what was changed since), strict (refuse then) or force (overwrite it).';
    END IF;
END
$$;
COMMENT ON FUNCTION accord.revert_check_mode(text) IS 'internal: raises unless it is a mode of accord.revert()';

-- The default of path is the session's search_path: it is evaluated before the function sets its own.
CREATE FUNCTION accord.revert(seq bigint DEFAULT NULL, seqs bigint[] DEFAULT NULL, actor text DEFAULT NULL,
    source text DEFAULT NULL, correlation_id text DEFAULT NULL, matching_reason text DEFAULT NULL,
    since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL, after text DEFAULT NULL, up_to text DEFAULT NULL,
    relation regclass DEFAULT NULL, mode text DEFAULT 'merge', dry_run boolean DEFAULT false, reason text DEFAULT NULL,
    path text DEFAULT pg_catalog.current_setting('search_path'),
    OUT table_name text, OUT row_key text, OUT action text, OUT changes jsonb, OUT status text, OUT why text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    wanted bigint[] := CASE WHEN seq IS NULL THEN seqs ELSE seqs || seq END;
    commits bigint[];
    missing bigint;
BEGIN
    PERFORM accord.revert_check_mode(mode);
    IF num_nonnulls(wanted, actor, source, correlation_id, matching_reason, since, until, after, up_to) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'nothing says which transactions to revert',
            HINT = 'Give seq, seqs, actor, source, correlation_id, matching_reason, since, until, after or up_to.';
    END IF;
    SELECT s INTO missing FROM unnest(wanted) s WHERE NOT EXISTS (SELECT FROM accord.commit_log c WHERE c.seq = s) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('there is no commit %s in the log', coalesce(missing::text, 'null')),
            HINT = 'See accord.history() of a row, or accord.commit_log.';
    END IF;
    IF relation IS NOT NULL THEN
        PERFORM accord.history_table(relation);
    END IF;
    commits := accord.revert_commits(wanted, actor, source, correlation_id, matching_reason, since, until, after, up_to);
    RETURN QUERY SELECT * FROM accord.revert_run(
        accord.revert_steps(commits, source, accord.captured_id(relation)), commits, mode, coalesce(dry_run, false),
        coalesce(reason, nullif(current_setting('accord.reason', true), ''),
                 CASE WHEN cardinality(commits) = 1 THEN format('revert of commit %s', commits[1])
                      ELSE format('revert of %s commits', cardinality(commits)) END),
        jsonb_strip_nulls(jsonb_build_object('seqs', to_jsonb(commits[:1000]), 'commits', cardinality(commits),
                                             'source', source, 'table', relation)), path);
END
$$;
COMMENT ON FUNCTION accord.revert(bigint, bigint[], text, text, text, text, timestamptz, timestamptz, text, text, regclass, text, boolean, text, text) IS 'undoes what transactions did to captured tables: those of numbers (seq, seqs), of an actor, a source, a correlation id, a reason, a time (since, until), or between points (after, up_to), and perhaps of one table. What was changed since is kept (merge), makes it refuse (strict), or is overwritten (force). Returns the plan, which a dry_run does not carry out. It is a transaction like any other, which goes to the log and the channels, and can be reverted';

CREATE FUNCTION accord.undelete_row(relation regclass, key text, dry_run boolean, reason text, path text,
    OUT table_name text, OUT row_key text, OUT action text, OUT changes jsonb, OUT status text, OUT why text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    table_id integer := (SELECT h.id FROM accord.history_table(relation) h);
    e record;
BEGIN
    IF key IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = format('no key of a deleted row of table %s is given', relation),
            HINT = 'Give the key as accord.history() takes it.';
    END IF;
    SELECT * INTO e FROM accord.row_events(table_id, key) x WHERE x.op IN ('delete', 'truncate')
    ORDER BY x.seq DESC NULLS FIRST, x.ord DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'no_data_found',
            MESSAGE = format('the log knows of no deleted row (%s) of table %s', key, relation),
            HINT = 'See accord.history(); the log reaches back to accord.oldest_seq().';
    END IF;
    RETURN QUERY SELECT * FROM accord.revert_run(
        ARRAY[jsonb_build_object('id', table_id, 'key', key, 'old',
                                 accord.reshape(e.before, table_id, coalesce(e.seq, 9223372036854775807), e.ord), 'new', NULL)],
        ARRAY[e.seq], 'merge',
        coalesce(dry_run, false), coalesce(reason, nullif(current_setting('accord.reason', true), ''), 'undelete'),
        jsonb_build_object('undelete', relation, 'key', key), path);
END
$$;
COMMENT ON FUNCTION accord.undelete_row(regclass, text, boolean, text, text) IS 'internal: accord.undelete() of one row';

CREATE FUNCTION accord.undelete(relation regclass, key text, dry_run boolean DEFAULT false, reason text DEFAULT NULL,
    path text DEFAULT pg_catalog.current_setting('search_path'),
    OUT table_name text, OUT row_key text, OUT action text, OUT changes jsonb, OUT status text, OUT why text)
    RETURNS SETOF record
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM accord.undelete_row(relation, key, dry_run, reason, path)
$$;
COMMENT ON FUNCTION accord.undelete(regclass, text, boolean, text, text) IS 'brings a deleted row of a captured table back, as it was when it was deleted last';
CREATE FUNCTION accord.undelete(relation regclass, key anyelement, dry_run boolean DEFAULT false,
    reason text DEFAULT NULL, path text DEFAULT pg_catalog.current_setting('search_path'),
    OUT table_name text, OUT row_key text, OUT action text, OUT changes jsonb, OUT status text, OUT why text)
    RETURNS SETOF record
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM accord.undelete_row(relation, accord.key_of(key), dry_run, reason, path)
$$;
COMMENT ON FUNCTION accord.undelete(regclass, anyelement, boolean, text, text) IS 'the same by a key that is not text, or a ROW of several columns';
CREATE FUNCTION accord.undelete(relation regclass, matching jsonb, since timestamptz DEFAULT NULL,
    until timestamptz DEFAULT NULL, dry_run boolean DEFAULT false, reason text DEFAULT NULL,
    path text DEFAULT pg_catalog.current_setting('search_path'),
    OUT table_name text, OUT row_key text, OUT action text, OUT changes jsonb, OUT status text, OUT why text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    table_id integer := (SELECT h.id FROM accord.history_table(relation) h);
    steps jsonb[];
    seqs bigint[];
BEGIN
    IF matching IS NULL OR jsonb_typeof(matching) <> 'object' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('what deleted rows of table %s must contain is not a JSON object', relation),
            HINT = 'Give values of columns, such as ''{"room": "room-1"}''; ''{}'' is for all rows.';
    END IF;
    SELECT array_agg(jsonb_build_object('id', table_id, 'key', d.key, 'old', d.before, 'new', NULL)
                     ORDER BY d.recorded_at, d.ord),
           array_agg(accord.seq_of(d.slot, d.tx_id))
    INTO steps, seqs
    FROM (SELECT DISTINCT ON (l.key) l.slot, l.tx_id, l.ord, l.key, l.recorded_at,
                 accord.reshape(l.before, l.table_id, coalesce(accord.seq_of(l.slot, l.tx_id), 9223372036854775807), l.ord) AS before
          FROM accord.event_log l
          WHERE l.table_id = table_id AND l.op IN ('delete', 'truncate') AND l.key IS NOT NULL
          ORDER BY l.key, l.recorded_at DESC, l.tx_id DESC, l.ord DESC) d
    WHERE d.before @> matching
      AND (since IS NULL OR d.recorded_at >= since) AND (until IS NULL OR d.recorded_at <= until);
    RETURN QUERY SELECT * FROM accord.revert_run(
        coalesce(steps, '{}'), coalesce(seqs, '{}'), 'merge', coalesce(dry_run, false),
        coalesce(reason, nullif(current_setting('accord.reason', true), ''), 'undelete'),
        jsonb_build_object('undelete', relation, 'matching', matching), path);
END
$$;
COMMENT ON FUNCTION accord.undelete(regclass, jsonb, timestamptz, timestamptz, boolean, text, text) IS 'brings deleted rows back that contain these values: accord.undelete(''rate'', ''{"room": "room-1"}''::jsonb); perhaps only those deleted since, or until, a time';
