# The outbox as drivers use it: the extended protocol, prepared statements and pipelines (by pgbench), cursors over
# RETURNING, COPY in both formats, INSERT ... SELECT, WITH, functions and triggers of the application. Whatever way an
# event is inserted, it is one event, of its transaction.
use strict;
use warnings FATAL => 'all';

use Accord;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('drivers', "accord.dispatch = off\n");
my $directory = PostgreSQL::Test::Utils::tempdir();

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# Runs a script of pgbench so many times in each of four sessions.
sub bench
{
    my ($protocol, $times, $script) = @_;
    my $file = "$directory/$protocol.sql";
    append_to_file($file, $script);
    $node->command_ok([ 'pgbench', '-n', '-M', $protocol, '-c', 4, '-j', 2, '-t', $times, '-f', $file, 'postgres' ],
        "pgbench: $protocol");
    unlink $file;
    return;
}

# What the log has of a topic: events, transactions, keys, and whether commit_log counts the same.
sub logged
{
    my ($topic) = @_;
    return value(qq{
        SELECT count(*), count(DISTINCT tx_id), count(DISTINCT e.key),
               coalesce(bool_and(c.events = n), false)
        FROM (SELECT *, count(*) OVER (PARTITION BY tx_id) AS n FROM accord.event_log WHERE topic LIKE '$topic') e
        JOIN accord.commit_log c USING (slot, tx_id)});
}

# ---- protocols

for my $protocol ('simple', 'extended', 'prepared')
{
    bench($protocol, 25, <<"SQL");
\\set n random(1, 1000000)
INSERT INTO accord.outbox (topic, key, payload) VALUES ('$protocol.one', :n, jsonb_build_object('n', :n::bigint)) RETURNING event_id, ord;
BEGIN;
INSERT INTO accord.outbox (topic, key) VALUES ('$protocol.two', :client_id), ('$protocol.two', :n) RETURNING *;
SAVEPOINT s;
INSERT INTO accord.outbox (topic, key) VALUES ('$protocol.two', 'undone');
ROLLBACK TO s;
INSERT INTO accord.outbox (topic, key) SELECT '$protocol.two', g::text FROM generate_series(1, 3) g WHERE g <> :client_id + 10;
COMMIT;
SQL
    is(logged("$protocol.one") =~ s/\|\d+\|t$//r, '100|100', "$protocol: an event for each statement");
    is(logged("$protocol.two") =~ s/\|\d+\|t$//r, '500|100', '... and those of a transaction together');
    is(value("SELECT count(*) FROM accord.event_log WHERE topic = '$protocol.two' AND key = 'undone'"), 0,
        '... without what was rolled back');
}

# A pipeline is one implicit transaction up to its end, or up to where it says otherwise.
bench('extended', 25, <<'SQL');
\startpipeline
INSERT INTO accord.outbox (topic, key) VALUES ('pipe.implicit', :client_id) RETURNING event_id;
INSERT INTO accord.outbox (topic, key) VALUES ('pipe.implicit', :client_id);
INSERT INTO accord.outbox (topic, key) VALUES ('pipe.implicit', :client_id);
\endpipeline
\startpipeline
BEGIN;
INSERT INTO accord.outbox (topic, key) VALUES ('pipe.explicit', :client_id);
INSERT INTO accord.outbox (topic, key) VALUES ('pipe.explicit', :client_id) RETURNING tx_id;
COMMIT;
\endpipeline
SQL
is(logged('pipe.implicit'), '300|100|4|t', 'a pipeline: its events are one transaction\'s');
is(logged('pipe.explicit'), '200|100|4|t', '... or those that it says');

# The idempotency key of a client that repeats itself, through prepared statements.
bench('prepared', 25, q{INSERT INTO accord.outbox (topic, key, idempotency_key) VALUES ('again', 'k', 'client ' || :client_id) RETURNING event_id;});
is(logged('again'), '4|4|1|t', 'repeated under an idempotency key: once');

# ---- COPY

value(q{CREATE TABLE source AS SELECT 'copy.text' AS topic, g::text AS key, jsonb_build_object('n', g) AS payload,
    now() AS occurred_at, '{"X-A": "b"}'::jsonb AS headers FROM generate_series(1, 500) g});
for my $format ('text', 'csv', 'binary')
{
    my $columns = '(topic, key, payload, occurred_at, headers)';
    value("COPY (SELECT 'copy.$format', key, payload, occurred_at, headers FROM source) TO '$directory/copy' (FORMAT $format)");
    value("COPY accord.outbox $columns FROM '$directory/copy' (FORMAT $format)");
    is(logged("copy.$format"), '500|1|500|t', "COPY, $format");
    is(value("SELECT count(*) FROM accord.event_log e JOIN source s USING (key, payload, occurred_at, headers)
        WHERE e.topic = 'copy.$format'"), 500, '... with all that was in it');
}

# ---- within other statements

value(q{
    CREATE TABLE booking (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, room text, event uuid);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO accord.outbox (topic, key, op, payload) VALUES ('in.trigger', NEW.id::text, lower(TG_OP), to_jsonb(NEW))
            RETURNING event_id INTO NEW.event;
        RETURN NEW;
    END $$;
    CREATE TRIGGER note BEFORE INSERT OR UPDATE ON booking FOR EACH ROW EXECUTE FUNCTION note();
    INSERT INTO booking (room) SELECT 'r' || g FROM generate_series(1, 10) g;
    UPDATE booking SET room = room || '!' WHERE id <= 5;
});
is(logged('in.trigger'), '15|2|10|t', 'a trigger of the application');
is(value('SELECT count(*) FROM booking b JOIN accord.event_log e ON e.event_id = b.event'), 10, '... which is told the event');

value(q{WITH e AS (INSERT INTO accord.outbox (topic, key) SELECT 'in.with', g::text FROM generate_series(1, 5) g
                   RETURNING event_id, key)
        INSERT INTO source (topic, key, payload) SELECT 'with', e.key, to_jsonb(e.event_id) FROM e});
is(value(q{SELECT count(*) FROM source s JOIN accord.event_log e ON to_jsonb(e.event_id) = s.payload AND e.key = s.key
    WHERE s.topic = 'with' AND e.topic = 'in.with'}), 5, 'WITH ... RETURNING feeds another INSERT');
value(q{DO $$
    DECLARE n int := 0; r record;
    BEGIN
        FOR r IN INSERT INTO accord.outbox (topic, key) SELECT 'in.loop', g::text FROM generate_series(1, 50) g RETURNING ord, key LOOP
            n := n + 1;
            ASSERT r.ord = n AND r.key = n::text;
        END LOOP;
        EXECUTE 'INSERT INTO accord.outbox (topic, key, payload) VALUES ($1, $2, $3)' USING 'in.loop', 'x', '{"a": 1}'::jsonb;
        ASSERT n = 50;
    END $$});
is(logged('in.loop'), '51|1|51|t', 'a loop over RETURNING, and a dynamic statement');
value(q{INSERT INTO accord.outbox (topic, key, op, payload, priority, headers, deliver_at)
        VALUES ('in.default', 'a', DEFAULT, DEFAULT, DEFAULT, DEFAULT, DEFAULT)});
is(value(q{SELECT op, priority, payload IS NULL, headers IS NULL, deliver_at IS NULL, occurred_at = recorded_at
    FROM accord.event_log WHERE topic = 'in.default'}), 'event|1|t|t|t|t', 'DEFAULT in an INSERT');

# ---- a statement of a million rows would fill no memory: the writer keeps none of them

SKIP:
{
    skip 'there is no /proc', 1 unless -r "/proc/$$/status";
    my ($pid, $grown) = split /\n/, value(q{
        SELECT pg_backend_pid();
        CREATE TEMP TABLE used (kb int);
        CREATE FUNCTION pg_temp.rss() RETURNS int LANGUAGE sql AS $$
            SELECT (regexp_match(pg_read_file('/proc/self/status'), 'RssAnon:\s+(\d+)'))[1]::int $$;
        INSERT INTO accord.outbox (topic, key) VALUES ('bulk.first', 'x');
        INSERT INTO used SELECT pg_temp.rss();
        INSERT INTO accord.outbox (topic, key, payload) SELECT 'bulk', (g % 100)::text, jsonb_build_object('n', g) FROM generate_series(1, 200000) g;
        SELECT pg_temp.rss() - kb FROM used;});
    memory_below($grown, 64 * 1024, "200,000 rows in a statement take $grown kB of the writer's memory");
}
is(logged(q{bulk}), q{200000|1|100|t}, '... and are one transaction');
is(value('SELECT accord.safe_seq() = last_value FROM accord.commit_seq'), 't', 'no floor is left standing');

done_testing();
