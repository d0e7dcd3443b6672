-- idempotent: de-duplication for tables of the application, and for work of any kind.

CREATE FUNCTION accord.idempotent_insert() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'accord_idempotent_insert';
COMMENT ON FUNCTION accord.idempotent_insert() IS 'trigger: discards a row whose key was used before, or raises';

CREATE FUNCTION accord.detach_idempotent(relation regclass) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = relation AND t.tgname = 'zz_accord_idempotent'
                                              AND t.tgparentid = 0) THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TRIGGER zz_accord_idempotent ON %s', relation);
    RETURN true;
END
$$;
COMMENT ON FUNCTION accord.detach_idempotent(regclass) IS 'internal: what accord.not_idempotent() does once the caller is known to own the table';

CREATE FUNCTION accord.attach_idempotent(relation regclass, columns text[], "window" interval, on_repeat text,
                                         content text[]) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    -- The keys of a table that was renamed stay its own; those of one that took its name are not.
    scope text := coalesce(
        (SELECT split_part(encode(t.tgargs, 'escape'), '\000', 1) FROM pg_trigger t
         WHERE t.tgrelid = relation AND t.tgname = 'zz_accord_idempotent'), format('table %s/%s', relation, relation::oid));
    missing text;
    arguments text;
BEGIN
    IF (SELECT c.relkind FROM pg_class c WHERE c.oid = relation) NOT IN ('r', 'p') THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type', MESSAGE = format('%s is not a table', relation),
            HINT = 'Call accord.idempotent() for a table.';
    END IF;
    IF (SELECT c.relispartition FROM pg_class c WHERE c.oid = relation) THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type', MESSAGE = format('%s is a partition', relation),
            HINT = format('Call accord.idempotent() for the table it belongs to, %s, with all its partitions.',
                          pg_partition_root(relation));
    END IF;
    IF coalesce(cardinality(columns), 0) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('no columns are given that make the key of a row of %s', relation),
            HINT = 'Give them as in accord.idempotent(''payment'', ''{charge_id}'').';
    END IF;
    SELECT coalesce(n, 'null') INTO missing FROM unnest(columns || coalesce(content, '{}')) n
        WHERE NOT EXISTS (SELECT FROM pg_attribute a
                          WHERE a.attrelid = relation AND a.attname = n AND a.attnum > 0 AND NOT a.attisdropped);
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_column',
            MESSAGE = format('column "%s" of table %s does not exist', missing, relation),
            HINT = 'Give the names of columns as they are, without quotes around them.';
    END IF;
    SELECT a.attname INTO missing FROM pg_attribute a
        WHERE a.attrelid = relation AND a.attname = ANY (columns || coalesce(content, '{}')) AND a.attgenerated <> '';
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('column "%s" of table %s is generated: it is not known yet when a row is looked at', missing, relation),
            HINT = 'Give the columns that it is made of.';
    END IF;
    IF on_repeat IS NULL OR on_repeat NOT IN ('discard', 'raise') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('on_repeat "%s" of accord.idempotent() is not known', on_repeat),
            HINT = 'Use discard (the default) or raise.';
    END IF;
    IF "window" < interval '1 min' OR "window" > interval '100 years' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('window %s of accord.idempotent() is not between a minute and a hundred years', "window"),
            HINT = 'Give how long a repetition may come after the first, or null for accord.idempotency_retention.';
    END IF;
    PERFORM accord.detach_idempotent(relation);
    SELECT string_agg(quote_literal(a), ', ') INTO arguments
        FROM unnest(ARRAY[scope, on_repeat, cardinality(columns)::text] || columns || coalesce(content, '{}')) a;
    -- of a partitioned table updates are heard of, too: what they move to another partition is inserted there
    EXECUTE format('CREATE TRIGGER zz_accord_idempotent BEFORE %s ON %s FOR EACH ROW '
                   'EXECUTE FUNCTION accord.idempotent_insert(%s)',
                   CASE (SELECT c.relkind FROM pg_class c WHERE c.oid = relation) WHEN 'p' THEN 'INSERT OR UPDATE'
                        ELSE 'INSERT' END, relation, arguments);
    INSERT INTO accord.idempotency_scope AS s (scope, retention, description)
        VALUES (scope, "window", format('accord.idempotent() of %s', relation))
        ON CONFLICT ON CONSTRAINT idempotency_scope_pkey DO UPDATE SET retention = excluded.retention;
    RETURN scope;
END
$$;
COMMENT ON FUNCTION accord.attach_idempotent(regclass, text[], interval, text, text[]) IS 'internal: what accord.idempotent() does once the caller is known to own the table';

-- These look whether the caller owns the table, and then do what is above as the owner of the extension.
CREATE FUNCTION accord.idempotent(relation regclass, columns text[], "window" interval DEFAULT NULL,
                                  on_repeat text DEFAULT 'discard', content text[] DEFAULT NULL) RETURNS text
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'accord_idempotent';
COMMENT ON FUNCTION accord.idempotent(regclass, text[], interval, text, text[]) IS 'from now on a row whose columns say what those of an earlier one said is not inserted (INSERT 0 0), or raises; also when the earlier one is gone. Keys are kept for window, by default accord.idempotency_retention. Where content columns are given, a repetition that differs in them is an error in any case. Returns the scope of the keys in accord.idempotency_key';

CREATE FUNCTION accord.not_idempotent(relation regclass) RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'accord_not_idempotent';
COMMENT ON FUNCTION accord.not_idempotent(regclass) IS 'ends what accord.idempotent() began; the keys stay for their time. Returns whether there was anything to end';

CREATE FUNCTION accord.once(scope text, key text, request jsonb, statement text, wait boolean DEFAULT true) RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_once';
COMMENT ON FUNCTION accord.once(text, text, jsonb, text, boolean) IS 'runs a statement ($1 is the request) and returns the first row of its result (of one column its value), once for each key: a repeat returns the same without running it; one with another request raises AC001. While it is under way others wait, or raise where wait is false. What fails or is rolled back may be tried again';
