-- archive: what is copied out of the logs before their slots are emptied; and what the rings hold.

-- archive: a function for a log; a log without one is emptied without a copy.
--   log            'event' (event_log and commit_log) or 'attempt' (attempt_log and endpoint_log)
--   function       f(accord.retirement) RETURNS void, which copies the rows of that slot
--   owner          whom it runs as
--   failures       in a row; error and failed_at are the last one's
CREATE TABLE accord.archive (
    log text PRIMARY KEY CHECK (log IN ('event', 'attempt')),
    function text NOT NULL,
    owner text NOT NULL DEFAULT CURRENT_USER,
    enabled boolean NOT NULL DEFAULT true,
    failures integer NOT NULL DEFAULT 0,
    failed_at timestamptz,
    error text,
    description text
);
COMMENT ON TABLE accord.archive IS 'what copies the slots of a log out before they are emptied: INSERT a function';
COMMENT ON COLUMN accord.archive.function IS 'f(accord.retirement) RETURNS void: copies the rows of the slot it is given; when it raises, the slot is kept';
COMMENT ON COLUMN accord.archive.owner IS 'whom it runs as: whoever gave it; only a superuser may name another';

CREATE FUNCTION accord.archive_check() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'accord_archive_check';
COMMENT ON FUNCTION accord.archive_check() IS 'trigger: checks a row of accord.archive';
CREATE TRIGGER archive_check BEFORE INSERT OR UPDATE OF function, owner ON accord.archive
    FOR EACH ROW EXECUTE FUNCTION accord.archive_check();
ALTER TABLE accord.archive ENABLE ALWAYS TRIGGER archive_check;

CREATE FUNCTION accord.archive_run(function text, owner text, slot accord.retirement) RETURNS void
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'accord_archive_run';
COMMENT ON FUNCTION accord.archive_run(text, text, accord.retirement) IS 'internal: calls an archive function as its owner';

-- Archives the oldest slot of each log that waits for nothing else. The copy and the note of it commit together. Writers
-- have left the slot, readers are not disturbed; a failure is noted, and tried again after 1, 2, 4... minutes, at most 60.
CREATE FUNCTION accord.archive_slots() RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a accord.archive;
    turns bigint;
    slot accord.retirement;
    archived integer := 0;
    problem text;
BEGIN
    FOR a IN SELECT * FROM accord.archive WHERE enabled ORDER BY log LOOP
        CONTINUE WHEN a.failed_at > clock_timestamp() - least(interval '30 seconds' * 2 ^ least(a.failures, 10),
                                                              interval '1 hour');
        EXECUTE format('SELECT last_value FROM accord.%I', CASE a.log WHEN 'event' THEN 'log_slot' ELSE 'attempt_slot' END)
            INTO turns;
        FOR i IN 1 .. 7 LOOP
            slot := accord.ring_bounds(a.log, ((turns + i) % 8)::integer);
            CONTINUE WHEN slot.newest IS NULL;
            EXIT WHEN EXISTS (SELECT FROM accord.ring_needs(slot));
            CONTINUE WHEN NOT accord.ring_unarchived(slot);
            BEGIN
                EXECUTE 'LOCK TABLE ' || accord.ring_tables(a.log, slot.slot) || ' IN SHARE MODE NOWAIT';
                slot := accord.ring_bounds(a.log, slot.slot);
                PERFORM accord.archive_run(a.function, a.owner, slot);
                slot.archived_at := clock_timestamp();
                DELETE FROM accord.retirement r
                    WHERE r.log = slot.log AND r.slot = slot.slot AND r.truncated_at IS NULL;
                INSERT INTO accord.retirement SELECT slot.*;
                UPDATE accord.archive r SET failures = 0, failed_at = NULL, error = NULL
                    WHERE r.log = a.log AND r.failures > 0;
                archived := archived + 1;
            EXCEPTION
                WHEN lock_not_available THEN
                    NULL;               -- in use: another time
                WHEN others THEN
                    GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT;
                    UPDATE accord.archive r SET failures = r.failures + 1, failed_at = clock_timestamp(), error = problem
                        WHERE r.log = a.log;
                    RAISE LOG USING
                        MESSAGE = format('could not archive slot %s of the %s log: function %s: %s', slot.slot, a.log,
                                         a.function, problem),
                        HINT = 'The slot is kept until it is archived; see accord.archive.';
            END;
            EXIT;
        END LOOP;
    END LOOP;
    RETURN archived;
END
$$;
COMMENT ON FUNCTION accord.archive_slots() IS 'housekeeping, done once a minute while events come: archives the oldest slot of each log that is to be emptied; returns how many';

CREATE FUNCTION accord.ring_slots(OUT log text, OUT slot smallint, OUT is_current boolean, OUT bytes bigint,
    OUT estimated_rows bigint, OUT first_seq bigint, OUT last_seq bigint, OUT oldest timestamptz, OUT newest timestamptz,
    OUT needed_by text[], OUT archived_at timestamptz)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ring record;
    turns bigint;
    here accord.retirement;
BEGIN
    FOR ring IN SELECT * FROM (VALUES ('event', 8, 'log_slot'), ('attempt', 8, 'attempt_slot'),
                                      ('backlog', 4, 'backlog_slot'), ('consumer', 4, 'consumer_slot'))
                              AS r (name, slots, sequence) LOOP
        EXECUTE format('SELECT last_value FROM accord.%I', ring.sequence) INTO turns;
        FOR s IN 0 .. ring.slots - 1 LOOP
            log := ring.name;
            slot := s;
            is_current := s = turns % ring.slots;
            bytes := accord.ring_bytes(ring.name, s);
            estimated_rows := (SELECT nullif(c.reltuples, -1) FROM pg_class c
                               WHERE c.oid = format('accord.%s_log_%s', ring.name, s)::regclass);
            here := NULL;
            IF ring.slots = 8 THEN
                here := accord.ring_bounds(ring.name, s);
            END IF;
            first_seq := here.first_seq;
            last_seq := here.last_seq;
            oldest := here.oldest;
            newest := here.newest;
            needed_by := CASE WHEN here.newest IS NOT NULL THEN ARRAY(
                SELECT 'being written' WHERE is_current UNION ALL
                SELECT n FROM accord.ring_needs(here) n UNION ALL
                SELECT 'archive' WHERE accord.ring_unarchived(here)) END;
            archived_at := (SELECT max(r.archived_at) FROM accord.retirement r
                            WHERE r.log = here.log AND r.slot = here.slot AND r.truncated_at IS NULL);
            RETURN NEXT;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION accord.ring_slots() IS 'internal: what accord.ring shows';

CREATE VIEW accord.ring AS SELECT * FROM accord.ring_slots();
COMMENT ON VIEW accord.ring IS 'the slots of the logs: how large they are, from when to when, and what they are kept for. Rows as of the last VACUUM or ANALYZE';
