# What must hold of the past and of undoing, over random histories of random schemas: tables that refer to each other and
# to themselves, keys of one and of two columns, actions of every kind, values that must be unique, changes of keys.
#   - as_of() of every commit is the state that was there after it, and row_as_of() agrees;
#   - to revert the last commit gives the state before it, and to revert that the state after it;
#   - to revert everything after a point gives the state at the point;
#   - a dry run tells the same and changes nothing.
# And, over a table that is captured with a condition: the same of rows that come to meet it and cease to, by their values
# or their keys. (What happens to a row while it does not meet it is not in the log, so nothing of the kind is done to any.)
# ACCORD_SEED repeats a run.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;
use Time::HiRes qw(time);

my $seed = $ENV{ACCORD_SEED} || 20261128;
my $rounds = $ENV{ACCORD_ROUNDS} || 4;
my $node = new_node('main', "accord.dispatch = off\n");

sub run_sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

run_sql(<<'SQL');
CREATE SCHEMA p;
CREATE TABLE p.meta (n integer PRIMARY KEY, name text, is_wide boolean, has_u boolean, refs text[]);
CREATE TABLE p.failure (round integer, seq bigint, what text, detail text);
CREATE TABLE p.state_log (seq bigint PRIMARY KEY, state jsonb);
CREATE TABLE p.tally (what text PRIMARY KEY, n bigint);

CREATE FUNCTION p.chance(x float8) RETURNS boolean LANGUAGE sql VOLATILE AS 'SELECT random() < x';
CREATE FUNCTION p.dice(n integer) RETURNS integer LANGUAGE sql VOLATILE AS 'SELECT floor(random() * n)::integer';
CREATE FUNCTION p.count(what text, n bigint DEFAULT 1) RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO p.tally AS t VALUES (what, n) ON CONFLICT ON CONSTRAINT tally_pkey DO UPDATE SET n = t.n + excluded.n $$;

-- A column that refers to table r, with the name of its first part.
CREATE PROCEDURE p.add_reference(t text, r record, col text, may_be_null boolean) LANGUAGE plpgsql AS $$
DECLARE
    actions text[] := CASE WHEN may_be_null THEN '{NO ACTION,CASCADE,SET NULL,RESTRICT}'::text[] ELSE '{NO ACTION,CASCADE}' END;
    wait text := CASE WHEN p.chance(0.2) THEN 'DEFERRABLE INITIALLY DEFERRED' WHEN p.chance(0.1) THEN 'DEFERRABLE' ELSE '' END;
BEGIN
    EXECUTE format('ALTER TABLE p.%I ADD %I integer %s', t, col, CASE WHEN may_be_null THEN '' ELSE 'NOT NULL' END);
    IF r.is_wide THEN
        EXECUTE format('ALTER TABLE p.%I ADD %I text %s', t, col || '_g', CASE WHEN may_be_null THEN '' ELSE 'NOT NULL' END);
    END IF;
    EXECUTE format('ALTER TABLE p.%I ADD FOREIGN KEY (%s) REFERENCES p.%I (%s) ON DELETE %s ON UPDATE %s %s', t,
                   CASE WHEN r.is_wide THEN format('%I, %I', col, col || '_g') ELSE quote_ident(col) END, r.name,
                   CASE WHEN r.is_wide THEN 'id, g' ELSE 'id' END, actions[1 + p.dice(cardinality(actions))],
                   CASE WHEN p.chance(0.5) THEN 'CASCADE' ELSE 'NO ACTION' END, wait);
    UPDATE p.meta SET refs = refs || format('%s %s', r.name, col) WHERE name = t;
END $$;

CREATE PROCEDURE p.make_schema() LANGUAGE plpgsql AS $$
DECLARE
    m record;
    r record;
BEGIN
    FOR m IN SELECT * FROM p.meta LOOP
        EXECUTE format('DROP TABLE IF EXISTS p.%I CASCADE', m.name);
    END LOOP;
    TRUNCATE p.meta, p.state_log;
    FOR i IN 1 .. 3 + p.dice(3) LOOP
        INSERT INTO p.meta VALUES (i, CASE WHEN p.chance(0.2) THEN 'Tä "' || i || '"' ELSE 't' || i END, p.chance(0.4),
                                   p.chance(0.4), '{}') RETURNING * INTO m;
        EXECUTE format('CREATE TABLE p.%I (id integer, %s a integer CHECK (a < 100), b text, c numeric(6,2) DEFAULT 1, %s %s)',
                       m.name, CASE WHEN m.is_wide THEN 'g text,' ELSE '' END,
                       CASE WHEN m.has_u THEN 'u integer UNIQUE, ' ELSE '' END,
                       CASE WHEN m.is_wide THEN 'PRIMARY KEY (g, id)' ELSE 'PRIMARY KEY (id)' END);
        FOR r IN SELECT * FROM p.meta WHERE n <= i LOOP
            IF r.n < i AND p.chance(0.5) THEN
                CALL p.add_reference(m.name, r, 'r' || r.n, p.chance(0.6));
            ELSIF r.n = i AND p.chance(0.5) THEN
                CALL p.add_reference(m.name, r, 'self', true);
            END IF;
        END LOOP;
    END LOOP;
    -- a circle
    SELECT * INTO r FROM p.meta ORDER BY n DESC LIMIT 1;
    SELECT * INTO m FROM p.meta WHERE n = 1;
    IF p.chance(0.5) THEN
        CALL p.add_reference(m.name, r, 'back', true);
    END IF;
    FOR m IN SELECT * FROM p.meta LOOP
        PERFORM accord.capture(format('p.%I', m.name)::regclass, topic => 't');
    END LOOP;
END $$;

-- The parts of a reference to some row that is there, or to none.
CREATE FUNCTION p.reference(target text) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    m p.meta := (SELECT x FROM p.meta x WHERE x.name = target);
    found text[];
BEGIN
    IF p.chance(0.15) THEN
        RETURN '{NULL,NULL}';
    END IF;
    EXECUTE format('SELECT ARRAY[id::text, %s] FROM p.%I ORDER BY random() LIMIT 1',
                   CASE WHEN m.is_wide THEN 'quote_literal(g)' ELSE 'NULL' END, target) INTO found;
    RETURN coalesce(found, '{NULL,NULL}');
END $$;

CREATE FUNCTION p.value_of(m p.meta, col text) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT CASE col WHEN 'a' THEN p.dice(103)::text WHEN 'b' THEN quote_nullable(CASE WHEN p.chance(0.8) THEN 'b' || p.dice(5) END)
                    WHEN 'c' THEN (random() * 100)::numeric(6,2)::text WHEN 'u' THEN p.dice(8)::text
                    WHEN 'g' THEN quote_literal(CASE WHEN p.chance(0.5) THEN 'x' ELSE 'y,\' END) ELSE (1 + p.dice(7))::text END $$;

CREATE FUNCTION p.statement() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    m p.meta := (SELECT x FROM p.meta x ORDER BY random() LIMIT 1);
    cols text[] := ARRAY['id', 'a', 'b', 'c'] || CASE WHEN m.is_wide THEN '{g}'::text[] ELSE '{}' END
                   || CASE WHEN m.has_u THEN '{u}'::text[] ELSE '{}' END;
    vals text[] := '{}';
    ref text;
    part text[];
    col text;
    place text := format('WHERE id %% %s = %s', 1 + p.dice(5), p.dice(2));
BEGIN
    IF p.chance(0.45) THEN
        FOREACH col IN ARRAY cols LOOP
            vals := vals || p.value_of(m, col);
        END LOOP;
        FOREACH ref IN ARRAY m.refs LOOP
            part := p.reference(regexp_replace(ref, ' [^ ]*$', ''));
            col := regexp_replace(ref, '.* ', '');
            cols := cols || col;
            vals := vals || part[1];
            IF (SELECT x.is_wide FROM p.meta x WHERE x.name = regexp_replace(ref, ' [^ ]*$', '')) THEN
                cols := cols || (col || '_g');
                vals := vals || part[2];
            END IF;
        END LOOP;
        RETURN format('INSERT INTO p.%I (%s) VALUES (%s)', m.name, (SELECT string_agg(quote_ident(x), ', ') FROM unnest(cols) x),
                      array_to_string(vals, ', ', 'NULL'));
    ELSIF p.chance(0.25) THEN
        RETURN format('DELETE FROM p.%I %s', m.name, place);
    ELSIF p.chance(0.02) THEN
        RETURN format('TRUNCATE p.%I CASCADE', m.name);
    ELSIF p.chance(0.15) THEN
        RETURN format('UPDATE p.%I SET id = id + %s %s', m.name, 1 + p.dice(3), place);
    ELSIF p.chance(0.3) AND m.refs <> '{}' THEN
        ref := m.refs[1 + p.dice(cardinality(m.refs))];
        part := p.reference(regexp_replace(ref, ' [^ ]*$', ''));
        col := regexp_replace(ref, '.* ', '');
        RETURN format('UPDATE p.%I SET %I = %s%s %s', m.name, col, coalesce(part[1], 'NULL'),
                      CASE WHEN (SELECT x.is_wide FROM p.meta x WHERE x.name = regexp_replace(ref, ' [^ ]*$', '')) THEN
                          format(', %I = %s', col || '_g', coalesce(part[2], 'NULL')) ELSE '' END, place);
    END IF;
    col := (ARRAY['a', 'b', 'c', CASE WHEN m.has_u THEN 'u' ELSE 'a' END])[1 + p.dice(4)];
    RETURN format('UPDATE p.%I SET %I = %s %s', m.name, col, p.value_of(m, col), place);
END $$;

-- Some statements; those that fail are as if they had not been.
CREATE FUNCTION p.transaction() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 1 + p.dice(6) LOOP
        BEGIN
            EXECUTE p.statement();
        EXCEPTION WHEN integrity_constraint_violation OR object_in_use THEN
            NULL;
        END;
    END LOOP;
    SET CONSTRAINTS ALL IMMEDIATE;
EXCEPTION WHEN integrity_constraint_violation THEN
    NULL;
END $$;

CREATE FUNCTION p.state() RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    m record;
    part text;
    result jsonb := '{}';
BEGIN
    FOR m IN SELECT * FROM p.meta ORDER BY n LOOP
        EXECUTE format('SELECT string_agg(x::text, '' '' ORDER BY x::text) FROM p.%I x', m.name) INTO part;
        result := result || jsonb_build_object(m.name, part);
    END LOOP;
    RETURN result;
END $$;

CREATE FUNCTION p.state_as_of(seq bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    m record;
    part text;
    result jsonb := '{}';
BEGIN
    FOR m IN SELECT * FROM p.meta ORDER BY n LOOP
        EXECUTE format('SELECT string_agg(x::text, '' '' ORDER BY x::text) FROM accord.as_of(NULL::p.%I, $1) x', m.name)
            INTO part USING seq;
        result := result || jsonb_build_object(m.name, part);
    END LOOP;
    RETURN result;
END $$;

CREATE FUNCTION p.expect(round integer, seq bigint, what text, got jsonb, wanted jsonb, more text DEFAULT '') RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM p.count(what);
    IF got IS DISTINCT FROM wanted THEN
        INSERT INTO p.failure VALUES (round, seq, what, format(E'wanted %s\n   got %s\n%s', wanted, got, more));
    END IF;
END $$;

CREATE FUNCTION p.plan_text(rows jsonb) RETURNS text LANGUAGE sql AS $$ SELECT string_agg(r::text, E'\n') FROM jsonb_array_elements(rows) r $$;

CREATE PROCEDURE p.run(round integer, seed float8, n integer) LANGUAGE plpgsql AS $$
DECLARE
    before jsonb;
    after jsonb;
    last bigint;
    start bigint;
    seen bigint;
    plan jsonb;
    dry jsonb;
    m record;
    different bigint;
BEGIN
    PERFORM setseed(seed);
    CALL p.make_schema();
    COMMIT;
    start := accord.safe_seq();
    INSERT INTO p.state_log VALUES (start, p.state());
    COMMIT;
    FOR i IN 1 .. n LOOP
        before := p.state();
        seen := accord.safe_seq();
        PERFORM p.transaction();
        COMMIT;
        last := accord.safe_seq();
        after := p.state();
        INSERT INTO p.state_log VALUES (last, after) ON CONFLICT DO NOTHING;
        COMMIT;
        CONTINUE WHEN p.chance(0.3) OR last = seen;

        SELECT jsonb_agg(r) INTO dry FROM accord.revert(seq => last, dry_run => true) r;
        COMMIT;
        PERFORM p.expect(round, last, 'a dry run changes nothing', p.state(), after);
        SELECT jsonb_agg(r) INTO plan FROM accord.revert(seq => last) r;
        COMMIT;
        PERFORM p.expect(round, last, 'a dry run tells the same', dry, plan);
        PERFORM p.expect(round, last, 'reverted, the last commit was not', p.state(), before, p.plan_text(plan));
        COMMIT;
        IF accord.safe_seq() > last THEN
            last := accord.safe_seq();
            INSERT INTO p.state_log VALUES (last, p.state()) ON CONFLICT DO NOTHING;
            SELECT jsonb_agg(r) INTO plan FROM accord.revert(seq => last) r;
            COMMIT;
            PERFORM p.expect(round, last, 'reverted again, it was', p.state(), after, p.plan_text(plan));
            INSERT INTO p.state_log VALUES (accord.safe_seq(), p.state()) ON CONFLICT DO NOTHING;
            COMMIT;
        END IF;
    END LOOP;

    FOR m IN SELECT * FROM p.state_log ORDER BY 1 LOOP
        PERFORM p.expect(round, m.seq, 'the past is what was there', p.state_as_of(m.seq), m.state);
    END LOOP;
    COMMIT;
    FOR m IN SELECT l.seq, t.name, t.is_wide FROM p.state_log l, p.meta t ORDER BY random() LIMIT 5 LOOP
        EXECUTE format('WITH one AS (SELECT accord.row_as_of(NULL::p.%1$I, k.key, $1)::text AS r '
                       'FROM (SELECT DISTINCT e.key FROM accord.event_log e WHERE e.table_id = accord.captured_id(%2$L)) k), '
                       'whole AS (SELECT x::text AS r FROM accord.as_of(NULL::p.%1$I, $1) x) '
                       'SELECT count(*) FROM (SELECT r FROM one WHERE r IS NOT NULL) o FULL JOIN whole w ON w.r = o.r '
                       'WHERE o.r IS NULL OR w.r IS NULL', m.name, format('p.%I', m.name))
            INTO different USING m.seq;
        PERFORM p.expect(round, m.seq, 'a row''s past is its table''s', to_jsonb(different), '0');
    END LOOP;
    COMMIT;
    -- everything after a point, at once
    FOR m IN SELECT * FROM p.state_log WHERE p.state_log.seq > start ORDER BY random() LIMIT 2 LOOP
        SELECT jsonb_agg(r) INTO plan FROM accord.revert(after => m.seq::text) r;
        before := p.state();
        ROLLBACK;
        PERFORM p.expect(round, m.seq, 'all that came after a point is undone', before, m.state, p.plan_text(plan));
        COMMIT;
    END LOOP;
END $$;

-- A table of which rows are captured that are open and have a key below 50. No transaction takes a row that does not meet
-- that to another state, or none, in which it does not: neither that nor its undoing would be captured. So rows are made
-- and deleted by some; by others they cease to meet the condition first, and come to meet it then.
CREATE TABLE p.offer (id integer PRIMARY KEY, a integer, b text, open boolean NOT NULL);
CREATE FUNCTION p.offer_statement(kind text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    few text := format('AND id %% %s = %s', 1 + p.dice(4), p.dice(2));
BEGIN
    IF kind = 'growing' AND p.chance(0.6) THEN
        RETURN format('INSERT INTO p.offer VALUES (%s, %s, %L, true)', 1 + p.dice(20), p.dice(9), 'b' || p.dice(5));
    ELSIF kind = 'growing' AND p.chance(0.5) THEN
        RETURN 'DELETE FROM p.offer WHERE open AND id < 50 AND id % 3 = 0 ' || few;
    ELSIF kind = 'growing' OR p.chance(0.2) THEN
        RETURN format('UPDATE p.offer SET a = %s WHERE open AND id < 50 %s', p.dice(9), few);
    END IF;
    IF kind = 'leaving' THEN
        RETURN (ARRAY[format('UPDATE p.offer SET open = false, a = %s WHERE open AND id < 50 %s', p.dice(9), few),
                      format('UPDATE p.offer SET id = id + 40, a = %s WHERE open AND id < 50 %s', p.dice(9), few),
                      format('UPDATE p.offer SET id = id + 1 WHERE open AND id < 50 %s', few),
                      format('UPDATE p.offer SET open = false, id = id + 3 WHERE open AND id < 50 %s', few)])[1 + p.dice(4)];
    END IF;
    RETURN (ARRAY[format('UPDATE p.offer SET open = true, b = %L WHERE NOT open AND id < 50 %s', 'b' || p.dice(5), few),
                  format('UPDATE p.offer SET id = id - 40 WHERE open AND id >= 50 %s', few),
                  format('UPDATE p.offer SET open = true, id = id - 3 WHERE NOT open AND id BETWEEN 4 AND 52 %s', few)])[1 + p.dice(3)];
END $$;
-- Whether it was one that makes and deletes rows.
CREATE FUNCTION p.offer_transaction() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    is_growing boolean := p.chance(0.35) OR (SELECT count(*) FROM p.offer) < 6;
    n integer := 1 + p.dice(5);
    n_leaving integer := p.dice(n + 1);
BEGIN
    FOR i IN 1 .. n LOOP
        BEGIN
            EXECUTE p.offer_statement(CASE WHEN is_growing THEN 'growing' WHEN i <= n_leaving THEN 'leaving' ELSE 'entering' END);
        EXCEPTION WHEN integrity_constraint_violation THEN
            NULL;
        END;
    END LOOP;
    RETURN is_growing;
END $$;
CREATE FUNCTION p.offers() RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(string_agg(o::text, ' ' ORDER BY o::text)) FROM p.offer o $$;

CREATE PROCEDURE p.run_condition(round integer, seed float8, n integer) LANGUAGE plpgsql AS $$
DECLARE
    before jsonb;
    after jsonb;
    last bigint;
    seen bigint;
    grew boolean;
    plan jsonb;
    dry jsonb;
    m record;
BEGIN
    PERFORM setseed(seed);
    DROP TABLE IF EXISTS p.offer;
    TRUNCATE p.state_log;
    CREATE TABLE p.offer (id integer PRIMARY KEY, a integer, b text, open boolean NOT NULL);
    PERFORM accord.capture('p.offer', condition => 'open AND id < 50');
    COMMIT;
    FOR i IN 1 .. n LOOP
        before := p.offers();
        seen := accord.safe_seq();
        grew := p.offer_transaction();
        COMMIT;
        last := accord.safe_seq();
        after := p.offers();
        INSERT INTO p.state_log SELECT last, to_jsonb(string_agg(o::text, ' ' ORDER BY o::text)) FROM p.offer o WHERE open AND id < 50
            ON CONFLICT DO NOTHING;
        COMMIT;
        CONTINUE WHEN p.chance(0.3) OR last = seen;
        SELECT jsonb_agg(r) INTO dry FROM accord.revert(seq => last, dry_run => true) r;
        COMMIT;
        PERFORM p.expect(round, last, 'a dry run changes nothing', p.offers(), after);
        SELECT jsonb_agg(r) INTO plan FROM accord.revert(seq => last) r;
        COMMIT;
        PERFORM p.expect(round, last, 'a dry run tells the same', dry, plan);
        PERFORM p.expect(round, last, 'reverted, nothing had met the condition, or had ceased to', p.offers(), before, p.plan_text(plan));
        COMMIT;
        -- Where a row took the key of one that had left, those are deleted and made anew; what left is not captured.
        IF accord.safe_seq() > last AND (grew OR NOT jsonb_path_exists(plan, '$[*] ? (@.action != "update")')) THEN
            last := accord.safe_seq();
            SELECT jsonb_agg(r) INTO plan FROM accord.revert(seq => last) r;
            COMMIT;
            PERFORM p.expect(round, last, 'reverted again, it had', p.offers(), after, p.plan_text(plan));
            COMMIT;
        END IF;
    END LOOP;
    FOR m IN SELECT * FROM p.state_log ORDER BY 1 LOOP
        PERFORM p.expect(round, m.seq, 'the past is what met the condition', to_jsonb(string_agg(o::text, ' ' ORDER BY o::text)), m.state)
        FROM accord.as_of(NULL::p.offer, m.seq) o;
    END LOOP;
    COMMIT;
END $$;
SQL

my $begin = time;
my $done = 0;
for my $round (1 .. $rounds)
{
    my $at = (($seed * 7919 + $round * 104729) % 1000003) / 1000003;
    run_sql("CALL p.run($round, $at, 25)");
    run_sql("CALL p.run_condition($round, $at, 15)");
    $done++;
    last if time - $begin > 20 && $round >= 2;
}
note "seed $seed, $done rounds";
for my $line (split /\n/, run_sql('SELECT what, n FROM p.tally ORDER BY 1'))
{
    my ($what, $n) = split /\|/, $line;
    my $failures = run_sql('SELECT count(*) FROM p.failure WHERE what = ' . literal($what));
    is($failures, 0, "$what ($n times)");
}
diag "seed $seed: " . run_sql(q{SELECT format('round %s, commit %s: %s', round, seq, what) || E'\n' || detail
    FROM p.failure ORDER BY round, seq LIMIT 3}) if run_sql('SELECT count(*) FROM p.failure') > 0;
cmp_ok(run_sql('SELECT count(*) FROM p.tally'), '>=', 10, 'everything was looked at');
done_testing();
