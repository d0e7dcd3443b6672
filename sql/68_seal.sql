-- seal: the log under a Merkle tree (RFC 6962), so that a change, a removal or an insertion shows; and what may be erased.

-- seal: the tree over the commits up to "size", as it was; its root stands for all of them.
--   size         the highest commit number in it; numbers that no transaction has are in it as gaps
--   previous     the size of the seal before it
--   witness      the transaction (tx_id) whose event accord.seal told channels of it
CREATE TABLE accord.seal (
    size bigint PRIMARY KEY,
    root bytea NOT NULL,
    sealed_at timestamptz NOT NULL,
    previous bigint,
    witness bigint
);
COMMENT ON TABLE accord.seal IS 'the roots of the Merkle tree over commit_log, each over all commits up to its size; see accord.verify() and accord.proof()';
COMMENT ON COLUMN accord.seal.size IS 'the highest commit number that is sealed by it';

-- seal_node: its nodes.
--   level, index   the subtree of the 2^level numbers from index * 2^level + 1; from level 6 on, unless all are gaps
-- Of level 0: the 64 leaves of chunk "index" in one piece, of chunks that lost some of them with an emptied slot.
CREATE TABLE accord.seal_node (
    level smallint NOT NULL,
    index bigint NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (level, index)
);
ALTER TABLE accord.seal_node ALTER COLUMN hash SET STORAGE PLAIN;
COMMENT ON TABLE accord.seal_node IS 'nodes of the tree that accord.seal has the roots of; they stay when slots are emptied';

CREATE TABLE accord.seal_gap (
    first bigint PRIMARY KEY,
    last bigint NOT NULL
);
COMMENT ON TABLE accord.seal_gap IS 'sealed commit numbers that no transaction has: it was rolled back at its commit, or the server crashed';

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['seal', 'seal_node', 'seal_gap'] LOOP
        EXECUTE pg_catalog.format('CREATE TRIGGER log_guard BEFORE UPDATE OR DELETE ON accord.%I FOR EACH ROW EXECUTE FUNCTION accord.log_guard()', t);
        EXECUTE pg_catalog.format('CREATE TRIGGER log_guard_truncate BEFORE TRUNCATE ON accord.%I FOR EACH STATEMENT EXECUTE FUNCTION accord.log_guard()', t);
        EXECUTE pg_catalog.format('ALTER TABLE accord.%I ENABLE ALWAYS TRIGGER log_guard', t);
        EXECUTE pg_catalog.format('ALTER TABLE accord.%I ENABLE ALWAYS TRIGGER log_guard_truncate', t);
    END LOOP;
END
$$;

CREATE FUNCTION accord.seal_extend(old_size bigint, witness bigint) RETURNS bigint
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_seal_extend';
COMMENT ON FUNCTION accord.seal_extend(bigint, bigint) IS 'internal: makes the tree as large as the log; returns its size, null when there is nothing new';
CREATE FUNCTION accord.seal_root(size bigint) RETURNS bytea
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_seal_root';
COMMENT ON FUNCTION accord.seal_root(bigint) IS 'internal: the root of the tree of that size, computed from its nodes';
CREATE FUNCTION accord.seal_keep(slot integer, first bigint, last bigint, sealed bigint, ends bigint[]) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_seal_keep';
COMMENT ON FUNCTION accord.seal_keep(integer, bigint, bigint, bigint, bigint[]) IS 'internal: keeps those leaves of a slot that must be known when it is emptied';
CREATE FUNCTION accord.log_transaction() RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_log_transaction_id';
COMMENT ON FUNCTION accord.log_transaction() IS 'internal: the tx_id of the current transaction; null when it has written no event';

CREATE FUNCTION accord.seal() RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    latest accord.seal;
    now_sealed accord.seal;
BEGIN
    BEGIN
        LOCK TABLE accord.seal IN SHARE ROW EXCLUSIVE MODE NOWAIT;
    EXCEPTION WHEN lock_not_available THEN
        RETURN NULL;
    END;
    LOOP
        SELECT * INTO latest FROM accord.seal s ORDER BY s.size DESC LIMIT 1;
        now_sealed.size := accord.seal_extend(coalesce(latest.size, 0), coalesce(latest.witness, 0));
        EXIT WHEN now_sealed.size IS NULL;
        now_sealed.root := accord.seal_root(now_sealed.size);
        now_sealed.sealed_at := clock_timestamp();
        now_sealed.previous := latest.size;
        -- Channels are told where a route asks for it. What tells of a seal is itself sealed with the next one.
        IF EXISTS (SELECT FROM accord.route r WHERE r.topic = 'accord.seal' AND r.enabled) THEN
            PERFORM accord.control_append('accord.seal', jsonb_build_object(
                'size', now_sealed.size, 'root', encode(now_sealed.root, 'hex'), 'sealed_at', now_sealed.sealed_at,
                'previous_size', latest.size, 'previous_root', encode(latest.root, 'hex')));
            now_sealed.witness := accord.log_transaction();
        END IF;
        INSERT INTO accord.seal SELECT now_sealed.*;
    END LOOP;
    RETURN latest.size;
END
$$;
COMMENT ON FUNCTION accord.seal() IS 'housekeeping, done once a minute while events come: seals what was committed; returns the highest commit number that is sealed';

-- Before a slot is emptied.
CREATE FUNCTION accord.seal_keep_slot(slot accord.retirement) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT accord.seal_keep(slot.slot::integer, slot.first_seq, slot.last_seq, (SELECT max(s.size) FROM accord.seal s),
                            coalesce((SELECT array_agg(DISTINCT s.size / 64 ORDER BY s.size / 64) FROM accord.seal s
                                      WHERE s.size % 64 <> 0 AND s.size BETWEEN slot.first_seq - 64 AND slot.last_seq + 64),
                                     '{}'))
$$;
COMMENT ON FUNCTION accord.seal_keep_slot(accord.retirement) IS 'internal: keeps those leaves of a slot that must be known when it is emptied';

CREATE FUNCTION accord.verify_log(first bigint, last bigint, sealed bigint, gaps bigint[], retired bigint[],
    OUT seq bigint, OUT ord integer, OUT tx_id bigint, OUT problem text, OUT detail text)
    RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_verify_log';
COMMENT ON FUNCTION accord.verify_log(bigint, bigint, bigint, bigint[], bigint[]) IS 'internal: what accord.verify() finds in the log and its tree';

CREATE FUNCTION accord.verify(from_seq bigint DEFAULT NULL, to_seq bigint DEFAULT NULL,
    OUT seq bigint, OUT ord integer, OUT tx_id bigint, OUT problem text, OUT detail text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    lowest bigint := greatest(coalesce(from_seq, 1), 1);
    highest bigint := coalesce(to_seq, 9223372036854775807);
BEGIN
    -- Nothing is emptied meanwhile.
    LOCK TABLE accord.event_log, accord.commit_log IN ACCESS SHARE MODE;
    RETURN QUERY
        SELECT v.seq, v.ord, v.tx_id, v.problem, v.detail
        FROM (SELECT coalesce((SELECT max(s.size) FROM accord.seal s), 0) AS sealed,
                     coalesce((SELECT array_agg(b ORDER BY g.first, b)
                               FROM accord.seal_gap g, unnest(ARRAY[g.first, g.last]) b
                               WHERE g.first <= highest AND g.last >= (lowest - 1) / 64 * 64), '{}') AS gaps,
                     coalesce((SELECT array_agg(b ORDER BY r.first_seq, r.last_seq, b)
                               FROM accord.retirement r, unnest(ARRAY[r.first_seq, r.last_seq]) b
                               WHERE r.log = 'event' AND r.truncated_at IS NOT NULL), '{}') AS retired) p
        CROSS JOIN LATERAL accord.verify_log(lowest, highest, p.sealed, p.gaps, p.retired) v;
    RETURN QUERY
        SELECT s.size, NULL::integer, NULL::bigint, 'changed',
               format('the tree over the commits up to %s has another root than was sealed at %s', s.size, s.sealed_at)
        FROM accord.seal s
        WHERE s.size BETWEEN lowest AND highest AND s.root <> accord.seal_root(s.size);
    IF from_seq IS NULL AND to_seq IS NULL THEN
        RETURN QUERY
            SELECT NULL::bigint, e.ord, e.tx_id, 'inserted', 'no commit has its transaction'
            FROM accord.event_log e
            WHERE NOT EXISTS (SELECT FROM accord.commit_log c WHERE c.slot = e.slot AND c.tx_id = e.tx_id)
              AND e.tx_id IS DISTINCT FROM accord.log_transaction();
    END IF;
END
$$;
COMMENT ON FUNCTION accord.verify(bigint, bigint) IS 'what is wrong with the log: events and commits that were changed, removed, inserted, or erased without a word, compared with the digests written at commit and with what was sealed. No row: nothing';

CREATE FUNCTION accord.seal_inclusion(seq bigint, size bigint, OUT leaf bytea, OUT path bytea[]) RETURNS record
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_seal_inclusion';
COMMENT ON FUNCTION accord.seal_inclusion(bigint, bigint) IS 'internal: the leaf of a commit number and its audit path';
CREATE FUNCTION accord.seal_consistency(old_size bigint, size bigint) RETURNS bytea[]
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_seal_consistency';
COMMENT ON FUNCTION accord.seal_consistency(bigint, bigint) IS 'internal: the consistency proof between two sizes of the tree';

CREATE FUNCTION accord.check_proof(seq bigint, size bigint, leaf bytea, path bytea[], root bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'accord_check_proof';
COMMENT ON FUNCTION accord.check_proof(bigint, bigint, bytea, bytea[], bytea) IS 'whether a leaf is that of this commit number in the tree with this size and root (RFC 6962, section 2.1.1)';
CREATE FUNCTION accord.check_consistency(old_size bigint, old_root bytea, size bigint, root bytea, path bytea[]) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'accord_check_consistency';
COMMENT ON FUNCTION accord.check_consistency(bigint, bytea, bigint, bytea, bytea[]) IS 'whether a tree is the beginning of another: nothing sealed by the first was changed or removed since (RFC 6962, section 2.1.2)';

-- A seal, by its size; null: the latest.
CREATE FUNCTION accord.find_seal(tree_size bigint) RETURNS accord.seal
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found accord.seal;
BEGIN
    SELECT * INTO found FROM accord.seal s WHERE s.size = tree_size OR tree_size IS NULL ORDER BY s.size DESC LIMIT 1;
    IF found.size IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = coalesce('nothing was sealed with size ' || tree_size, 'nothing is sealed yet'),
            HINT = 'See SELECT size FROM accord.seal; accord.seal() seals what was committed.';
    END IF;
    RETURN found;
END
$$;
COMMENT ON FUNCTION accord.find_seal(bigint) IS 'internal: the seal of that size, or the latest';

CREATE FUNCTION accord.proof(seq bigint, tree_size bigint DEFAULT NULL,
    OUT size bigint, OUT root bytea, OUT leaf bytea, OUT path bytea[])
    RETURNS record
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    sealed accord.seal := accord.find_seal(tree_size);
BEGIN
    size := sealed.size;
    root := sealed.root;
    IF seq IS NULL OR seq < 1 OR seq > size THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('commit number %s is not among the %s that were sealed', seq, size),
            HINT = 'Give a number between 1 and that.';
    END IF;
    SELECT i.leaf, i.path INTO leaf, path FROM accord.seal_inclusion(seq, size) i;
    IF NOT accord.check_proof(seq, size, leaf, path, root) THEN
        RAISE EXCEPTION USING ERRCODE = 'no_data_found',
            MESSAGE = format('what was committed as number %s cannot be proven', seq),
            HINT = 'Its slot was emptied, or the log was tampered with: see accord.verify().';
    END IF;
END
$$;
COMMENT ON FUNCTION accord.proof(bigint, bigint) IS 'that a commit is in the log that was sealed: its leaf (commit_log.digest; of a gap, a fixed one) and the path to the root of a seal, by default the latest; see accord.check_proof()';

CREATE FUNCTION accord.consistency(old_size bigint, tree_size bigint DEFAULT NULL,
    OUT size bigint, OUT root bytea, OUT path bytea[])
    RETURNS record
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    old accord.seal := accord.find_seal(old_size);
    sealed accord.seal := accord.find_seal(tree_size);
BEGIN
    size := sealed.size;
    root := sealed.root;
    IF old.size > size THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('the seal over %s commits is not the beginning of the one over %s', old.size, size),
            HINT = 'Give the older seal first.';
    END IF;
    path := accord.seal_consistency(old.size, size);
END
$$;
COMMENT ON FUNCTION accord.consistency(bigint, bigint) IS 'that a seal, by default the latest, contains all that an older one did: a path for accord.check_consistency()';

-- Erasing: the content goes, its digest stays, so that what was sealed can still be verified.
CREATE FUNCTION accord.erase_event(slot integer, tx_id bigint, ord integer, seq bigint) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'accord_erase_event';
COMMENT ON FUNCTION accord.erase_event(integer, bigint, integer, bigint) IS 'internal: erases the content of an event; the event that says so was written just before';

CREATE FUNCTION accord.erase(event_id uuid, reason text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    place record;
BEGIN
    IF coalesce(reason, '') = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('event %s cannot be erased without a reason', event_id),
            HINT = 'Give the reason; it is kept in place of what is erased.';
    END IF;
    SELECT e.slot, e.tx_id, e.ord, e.op, e.table_id, e.key, e.idempotency_key, c.seq, e.erased IS NOT NULL AS is_erased INTO place
    FROM accord.event_log e
    JOIN accord.commit_log c ON c.slot = e.slot AND c.tx_id = e.tx_id
    WHERE e.event_id = erase.event_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('event %s is not in the log', event_id),
            HINT = 'An event can be erased once it is committed, until its slot is emptied.';
    END IF;
    IF place.is_erased THEN
        RETURN false;
    END IF;
    PERFORM accord.decide('accord.discard', accord.select_owed(event_id, NULL, NULL), 'erased: ' || reason);
    -- The last event of the transaction so far: the erased one refers to it.
    PERFORM accord.control_append('accord.erase', jsonb_build_object(
        'event_id', event_id, 'seq', place.seq, 'ord', place.ord, 'reason', reason));
    PERFORM accord.erase_event(place.slot, place.tx_id, place.ord, place.seq);
    -- A fingerprint of what little can be guessed gives it away.
    UPDATE accord.idempotency_key k SET fingerprint = '' WHERE k.scope = 'outbox' AND k.key = place.idempotency_key;
    -- What was said beside it of the same row.
    IF place.op = 'delete' THEN
        PERFORM accord.erase(e.event_id, reason) FROM accord.event_log e
        WHERE e.slot = place.slot AND e.tx_id = place.tx_id AND e.ord = place.ord - 1 AND e.topic = 'accord.left'
          AND e.table_id = place.table_id AND e.key = place.key;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION accord.erase(uuid, text) IS 'erases an event''s payload, before and headers, and what is kept of its requests and answers; the rest of the row stays, and the log remains verifiable. What is not sent yet is discarded. False: it was erased already';
