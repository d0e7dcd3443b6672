-- source: who may send us messages, how they are checked, and the inbox that remembers them.

-- source: what is said of a sender, usually a channel by the same name; a channel without a row has the defaults.
CREATE TABLE accord.source (
    name text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$'),
    enabled boolean NOT NULL DEFAULT true,
    skew interval NOT NULL DEFAULT '5 min' CHECK (skew BETWEEN interval '0' AND interval '1 year'),
    when_ahead text NOT NULL DEFAULT 'clamp' CHECK (when_ahead IN ('clamp', 'refuse')),
    retention interval CHECK (retention BETWEEN interval '1 min' AND interval '100 years'),
    verify jsonb,
    tolerance interval NOT NULL DEFAULT '5 min' CHECK (tolerance BETWEEN interval '1 s' AND interval '1 day'),
    mapping jsonb,
    mapping_function text,
    polls text[] NOT NULL DEFAULT '{}',
    owner text NOT NULL DEFAULT CURRENT_USER,
    description text,
    CONSTRAINT mapping_or_mapping_function CHECK (mapping IS NULL OR mapping_function IS NULL)
);
COMMENT ON TABLE accord.source IS 'who sends us messages by accord.receive() and accord.receive_webhook(), usually a channel of the same name';
COMMENT ON COLUMN accord.source.enabled IS 'false: its messages are refused';
COMMENT ON COLUMN accord.source.skew IS 'how far its clock may be ahead of ours';
COMMENT ON COLUMN accord.source.when_ahead IS 'what becomes of a message from further in the future: clamp (it counts as having happened now plus skew, and the result says so) or refuse';
COMMENT ON COLUMN accord.source.retention IS 'how long its messages are remembered, at least; null: accord.idempotency_retention';
COMMENT ON COLUMN accord.source.verify IS 'how a webhook''s signature is checked: {"type": "standard"|"stripe"|"shopify"|"woocommerce"|"github"|"hmac"|"basic"|"header"|"none", "secrets": [NAME, ...]}; NAMEs are rows of accord.secret, each of which is good. Null: webhooks are refused';
COMMENT ON COLUMN accord.source.tolerance IS 'how old, or how far in the future, a signed webhook may be';
COMMENT ON COLUMN accord.source.mapping IS 'what a webhook means: an object of event_id, topic, target, key, changes, occurred_at, revision, op and account, each a JSON path ("$...") over the body, with $headers, or a constant';
COMMENT ON COLUMN accord.source.mapping_function IS 'FUNCTION f(headers jsonb, body jsonb) RETURNS SETOF accord.message, run as the owner; instead of mapping';
COMMENT ON COLUMN accord.source.polls IS 'names of feeds to be polled when a webhook of it was received';
COMMENT ON COLUMN accord.source.owner IS 'the role that a webhook''s mapping function and its changes to tables run as';

-- message: what is received, as a mapping function gives it; in accord.receive() they are arguments, in the batch form
-- members of JSON objects.
CREATE TYPE accord.message AS (event_id text, topic text, target regclass, key text, op text, changes jsonb,
    occurred_at timestamptz, revision numeric, account text, base jsonb);
COMMENT ON TYPE accord.message IS 'a message from outside, made by a source''s mapping function: f(headers jsonb, body jsonb) RETURNS SETOF accord.message; a null event_id means the one that the webhook''s scheme gives';

-- Which options a type of verify takes, and which it needs; all but none need secrets.
CREATE FUNCTION accord.verify_options(type text, OUT takes text[], OUT needs text[]) RETURNS record
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT v.takes || ARRAY['type'], v.needs
    FROM (VALUES ('none', ARRAY[]::text[], ARRAY[]::text[]),
                 ('standard', ARRAY['secrets'], ARRAY['secrets']),
                 ('stripe', ARRAY['secrets'], ARRAY['secrets']),
                 ('shopify', ARRAY['secrets'], ARRAY['secrets']),
                 ('woocommerce', ARRAY['secrets'], ARRAY['secrets']),
                 ('github', ARRAY['secrets'], ARRAY['secrets']),
                 ('hmac', ARRAY['secrets', 'header', 'prefix', 'encoding', 'hash'], ARRAY['secrets', 'header']),
                 ('basic', ARRAY['secrets', 'user'], ARRAY['secrets', 'user']),
                 ('header', ARRAY['secrets', 'name'], ARRAY['secrets', 'name'])) v (type, takes, needs)
    WHERE v.type = verify_options.type
$$;
COMMENT ON FUNCTION accord.verify_options(text) IS 'internal: the options of a type of accord.source.verify';

CREATE FUNCTION accord.check_verify(verify jsonb) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    type text := verify ->> 'type';
    takes text[] := (accord.verify_options(type)).takes;
    option record;
    missing text;
    secret text;
BEGIN
    IF takes IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('verify of accord.source has type "%s", which is not known', coalesce(type, 'null')),
            HINT = 'Use {"type": "standard", "secrets": [NAME]}, or "stripe", "shopify", "woocommerce", "github", "hmac", "basic", "header", "none".';
    END IF;
    FOR option IN SELECT m.key, m.value FROM jsonb_each(verify) m LOOP
        IF NOT option.key = ANY (takes) THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('verify of accord.source has an option "%s" that type "%s" does not know', option.key, type),
                HINT = format('Type "%s" takes: %s.', type, array_to_string(takes, ', '));
        END IF;
        IF option.key = 'secrets' AND (jsonb_typeof(option.value) <> 'array' OR option.value = '[]'
                                       OR option.value @? '$[*] ? (@.type() != "string" || @ == "")')
           OR option.key <> 'secrets' AND (jsonb_typeof(option.value) <> 'string' OR option.value = '""' AND option.key <> 'prefix')
           OR option.key = 'encoding' AND option.value NOT IN ('"hex"', '"base64"')
           OR option.key = 'hash' AND option.value NOT IN ('"sha256"', '"sha1"', '"sha512"') THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('%s %s in verify of accord.source cannot be used', option.key, option.value),
                HINT = 'secrets is an array of names in accord.secret, encoding hex or base64, hash sha256, sha1 or sha512.';
        END IF;
    END LOOP;
    SELECT n INTO missing FROM unnest((accord.verify_options(type)).needs) n WHERE verify -> n IS NULL LIMIT 1;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('verify of accord.source with type "%s" needs "%s"', type, missing),
            HINT = format('Type "%s" takes: %s.', type, array_to_string(takes, ', '));
    END IF;
    FOR secret IN SELECT n FROM jsonb_array_elements_text(verify -> 'secrets') n LOOP
        IF NOT EXISTS (SELECT FROM accord.secret s WHERE s.name = secret) THEN
            RAISE WARNING USING ERRCODE = 'undefined_object',
                MESSAGE = format('secret "%s" is not stored yet', secret),
                HINT = 'INSERT INTO accord.secret (name, value) before webhooks are received.';
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION accord.check_verify(jsonb) IS 'internal: raises unless accord.source.verify can be used';

CREATE FUNCTION accord.check_path(path text, what text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM path::jsonpath;
EXCEPTION WHEN syntax_error OR data_exception THEN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
        MESSAGE = format('%s is not a JSON path: %s', what, SQLERRM),
        HINT = 'Write it as in "$.data.id"; a name that has other characters than letters in double quotes: $."first name".';
END
$$;
COMMENT ON FUNCTION accord.check_path(text, text) IS 'internal: raises unless a text is a JSON path';

CREATE FUNCTION accord.is_relation(name text) RETURNS boolean
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN to_regclass(name) IS NOT NULL;
EXCEPTION WHEN invalid_name OR syntax_error OR feature_not_supported THEN
    RETURN false;               -- no name at all, or one in another database
END
$$;
COMMENT ON FUNCTION accord.is_relation(text) IS 'internal: whether something is the name of a relation; false, too, where it cannot be a name';

CREATE FUNCTION accord.check_mapping(mapping jsonb, whose text DEFAULT 'accord.source') RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    member record;
BEGIN
    IF jsonb_typeof(mapping) <> 'object' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('mapping of %s is not an object', whose),
            HINT = 'Write it as in {"topic": "booking.changed", "key": "$.id", "changes": "$.data"}.';
    END IF;
    FOR member IN SELECT m.key, m.value FROM jsonb_each(mapping) m LOOP
        IF member.key NOT IN ('event_id', 'topic', 'target', 'key', 'op', 'changes', 'occurred_at', 'revision', 'account', 'base') THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('mapping of %s has a member "%s" that is not known', whose, member.key),
                HINT = 'Use event_id, topic, target, key, op, changes, occurred_at, revision, account and base.';
        END IF;
        IF jsonb_typeof(member.value) = 'object' AND member.key IN ('changes', 'base') THEN
            PERFORM accord.check_path(o.value #>> '{}', format('member "%s.%s" of mapping of %s', member.key, o.key, whose))
                FROM jsonb_each(member.value) o WHERE o.value #>> '{}' LIKE '$%';
            CONTINUE;
        END IF;
        IF jsonb_typeof(member.value) <> 'string' THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('member "%s" of mapping of %s is not a string', member.key, whose),
                HINT = 'Give a JSON path that begins with "$", or a constant; for changes and base, an object of them will do.';
        END IF;
        IF member.key = 'target' AND member.value #>> '{}' LIKE '$%' THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('target in mapping of %s is a path: its sender would choose the table', whose),
                HINT = 'Give the name of a table with its schema, or write a mapping_function.';
        END IF;
        IF member.value #>> '{}' LIKE '$%' THEN
            PERFORM accord.check_path(member.value #>> '{}', format('member "%s" of mapping of %s', member.key, whose));
        ELSIF member.key = 'target' AND NOT accord.is_relation(member.value #>> '{}') THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_table',
                MESSAGE = format('target "%s" in mapping of %s does not exist', member.value #>> '{}', whose),
                HINT = 'Give the name of a table with its schema.';
        END IF;
    END LOOP;
    IF mapping -> 'topic' IS NULL AND mapping -> 'target' IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('mapping of %s has neither topic nor target', whose),
            HINT = 'Say what a message is about: a topic, or a table as target.';
    END IF;
END
$$;
COMMENT ON FUNCTION accord.check_mapping(jsonb, text) IS 'internal: raises unless the mapping of a source or a feed can be used';

-- The function as given, when it exists and the owner may run it.
CREATE FUNCTION accord.check_mapping_function(name text, owner text, whose text DEFAULT 'accord.source') RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found regprocedure := to_regprocedure(name || '(jsonb, jsonb)');
BEGIN
    IF found IS NULL OR NOT EXISTS (SELECT FROM pg_proc p
                                    WHERE p.oid = found AND p.prorettype = 'accord.message'::regtype) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_function',
            MESSAGE = format('mapping_function "%s" of %s does not exist with the right signature', name, whose),
            HINT = format('It must be FUNCTION %s(jsonb, jsonb) RETURNS SETOF accord.message; name it with its schema.', name);
    END IF;
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = owner)
       AND NOT has_function_privilege(owner, found, 'EXECUTE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('permission denied for function %s', name),
            HINT = format('GRANT EXECUTE on it to the owner given in %s.', whose);
    END IF;
    IF (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = owner)
       AND NOT (SELECT r.rolsuper FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner WHERE p.oid = found) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('mapping_function %s would run as superuser "%s", but its owner is none', name, owner),
            HINT = format('Give the application''s role as the owner in %s, or make the function a superuser''s.', whose);
    END IF;
END
$$;
COMMENT ON FUNCTION accord.check_mapping_function(text, text, text) IS 'internal: raises unless the mapping_function of a source or a feed can be run';

CREATE FUNCTION accord.source_check() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- What is written as another role is not theirs to change.
    IF NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
        IF TG_OP = 'INSERT' OR (NEW.verify, NEW.mapping, NEW.mapping_function, NEW.owner)
                               IS DISTINCT FROM (OLD.verify, OLD.mapping, OLD.mapping_function, OLD.owner) THEN
            NEW.owner := current_user;
        END IF;
    ELSIF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = NEW.owner) THEN
        RAISE WARNING USING ERRCODE = 'undefined_object',
            MESSAGE = format('role "%s", owner of source "%s", does not exist', NEW.owner, NEW.name),
            HINT = 'UPDATE accord.source SET owner to an existing role.';
    END IF;
    IF NEW.verify IS NOT NULL THEN
        PERFORM accord.check_verify(NEW.verify);
    END IF;
    IF NEW.mapping IS NOT NULL THEN
        PERFORM accord.check_mapping(NEW.mapping);
    END IF;
    IF NEW.mapping_function IS NOT NULL AND (TG_OP = 'INSERT' OR (NEW.mapping_function, NEW.owner)
                                             IS DISTINCT FROM (OLD.mapping_function, OLD.owner)) THEN
        PERFORM accord.check_mapping_function(NEW.mapping_function, NEW.owner);
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION accord.source_check() IS 'trigger: checks a row of accord.source before it is stored';
CREATE TRIGGER source_check BEFORE INSERT OR UPDATE ON accord.source
    FOR EACH ROW EXECUTE FUNCTION accord.source_check();
CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON accord.source
    FOR EACH STATEMENT EXECUTE FUNCTION accord.config_changed();
ALTER TABLE accord.source ENABLE ALWAYS TRIGGER source_check;
ALTER TABLE accord.source ENABLE ALWAYS TRIGGER config_changed;

-- How often the ring of inbox has moved on; modulo 4 it is the current slot.
CREATE SEQUENCE accord.inbox_slot AS bigint MINVALUE 0 START 0;
SELECT pg_catalog.setval('accord.inbox_slot', 0);

-- inbox: one row per message received. src/keys.c sees to it that there is only one, across the slots; the columns are
-- those of idempotency_key.
--   source, event_id  who sent it, and its own id there
--   fingerprint       SHA-256 of what was received
--   tx_id             the transaction that received it, where it wrote events
--   event             event_log.event_id of the event it became
--   result            what accord.receive() returned, where that does not follow from the rest
CREATE TABLE accord.inbox (
    source text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    slot smallint NOT NULL,
    received_at timestamptz NOT NULL,
    fingerprint bytea NOT NULL,
    tx_id bigint,
    event uuid,
    result jsonb,
    PRIMARY KEY (event_id, source, slot)
) PARTITION BY LIST (slot);
COMMENT ON TABLE accord.inbox IS 'messages received, so that a repetition is recognised; kept for accord.source.retention. Messages themselves are in event_log';
COMMENT ON COLUMN accord.inbox.event_id IS 'the message''s id at its source';
COMMENT ON COLUMN accord.inbox.fingerprint IS 'SHA-256 of what was received';
COMMENT ON COLUMN accord.inbox.tx_id IS 'the transaction that received it; see commit_log';
COMMENT ON COLUMN accord.inbox.event IS 'event_log.event_id of the event it became';
COMMENT ON COLUMN accord.inbox.result IS 'what accord.receive() returned; null: it was applied as it came';

DO $$
BEGIN
    FOR s IN 0..3 LOOP
        EXECUTE pg_catalog.format('CREATE TABLE accord.inbox_%s PARTITION OF accord.inbox FOR VALUES IN (%s) WITH (autovacuum_vacuum_insert_scale_factor = 0.05)', s, s);
        EXECUTE pg_catalog.format('CREATE INDEX inbox_%s_received_at ON accord.inbox_%s USING brin (received_at) WITH (pages_per_range = 32)', s, s);
    END LOOP;
END
$$;
