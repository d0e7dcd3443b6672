-- capture.sql: three tables alike: one as it is, one with the usual audit trigger in PL/pgSQL, one captured; and a procedure
-- that tells what a statement costs. Run by test/bench/run capture.

-- The usual audit trigger: one row per change in one table, the old and the new row as jsonb, and an index by which the
-- history of a row is found. Written here, as a careful application would.
CREATE TABLE audit (
    id bigserial PRIMARY KEY,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_by name NOT NULL DEFAULT current_user,
    application text DEFAULT current_setting('application_name'),
    tx xid8 NOT NULL DEFAULT pg_current_xact_id(),
    table_name text NOT NULL,
    op text NOT NULL,
    key text NOT NULL,
    old_row jsonb,
    new_row jsonb
);
CREATE INDEX audit_key ON audit (table_name, key);
CREATE FUNCTION audit_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO audit (table_name, op, key, new_row) VALUES (TG_TABLE_NAME, 'insert', NEW.aid::text, to_jsonb(NEW));
    ELSIF TG_OP = 'UPDATE' THEN
        IF OLD IS DISTINCT FROM NEW THEN
            INSERT INTO audit (table_name, op, key, old_row, new_row)
                VALUES (TG_TABLE_NAME, 'update', NEW.aid::text, to_jsonb(OLD), to_jsonb(NEW));
        END IF;
    ELSE
        INSERT INTO audit (table_name, op, key, old_row) VALUES (TG_TABLE_NAME, 'delete', OLD.aid::text, to_jsonb(OLD));
    END IF;
    RETURN NULL;
END
$$;

CREATE TABLE plain_t (aid integer PRIMARY KEY, bid integer, abalance integer, filler char(84), changed_at timestamptz);
CREATE TABLE audited_t (LIKE plain_t INCLUDING ALL);
CREATE TABLE captured_t (LIKE plain_t INCLUDING ALL);
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON audited_t FOR EACH ROW EXECUTE FUNCTION audit_row();
SELECT accord.capture('captured_t');

-- Microseconds of CPU this session has used, in user and system.
CREATE FUNCTION session_cpu(ticks numeric) RETURNS numeric LANGUAGE sql AS $$
    SELECT (s[14]::numeric + s[15]::numeric) * 1000000 / ticks
    FROM regexp_split_to_array(pg_read_file('/proc/self/stat', 0, 4000), ' ') s
$$;

CREATE UNLOGGED TABLE cost (statement text, kind text, elapsed numeric, cpu numeric, wal numeric);
CREATE PROCEDURE measure(statement text, kind text, n integer, ticks numeric, command text) LANGUAGE plpgsql AS $$
DECLARE
    start timestamptz := clock_timestamp();
    used numeric := session_cpu(ticks);
    before pg_lsn := pg_current_wal_insert_lsn();
BEGIN
    EXECUTE command;
    used := session_cpu(ticks) - used;
    INSERT INTO cost VALUES (statement, kind, extract(epoch FROM clock_timestamp() - start) * 1000000 / n, used / n,
                             (pg_current_wal_insert_lsn() - before) / n);
    COMMIT;
END
$$;
