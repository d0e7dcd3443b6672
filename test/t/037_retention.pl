# Slots of the logs go by age and by size, not before they are archived where they are to be: into a table or a file. An
# archive that fails keeps the slot, and says so. A keeper does it beside the dispatcher, which does not wait for it, and
# whoever wants the database to himself does not find it there.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main', "accord.dispatch = off\naccord.log_retention = 0\naccord.attempt_retention = 0\n");
my $stub = start_stub();

sub value { return $node->safe_psql('postgres', @_); }

# No dispatcher runs: the position is moved by hand.
sub settle_all
{
    return value(q{SELECT setval('accord.position_0', (SELECT last_value FROM accord.commit_seq));
                   UPDATE accord.checkpoint SET position = (SELECT last_value FROM accord.commit_seq)});
}

# Events into the current slot, and on to the next one.
sub fill_slot
{
    my ($topic, $events, $bytes) = @_;
    value("INSERT INTO accord.outbox (topic, key, payload)
           SELECT '$topic', g, jsonb_build_object('x', (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, $bytes / 32)))
           FROM generate_series(1, $events) g");
    settle_all();
    return;
}

sub topics { return value(q{SELECT string_agg(DISTINCT topic, ' ' ORDER BY topic) FROM accord.event_log}); }
sub needs { return value(q{SELECT array_to_string(needed_by, ', ') FROM accord.ring WHERE log = 'event' AND first_seq = 1}); }

# ---- into a table

value(<<'SQL');
CREATE ROLE keeper_of_all;
SELECT accord.grant_auditor('keeper_of_all');
CREATE SCHEMA cellar AUTHORIZATION keeper_of_all;
SET ROLE keeper_of_all;
CREATE TABLE cellar.event (LIKE accord.event_log);
CREATE TABLE cellar.commit (LIKE accord.commit_log);
CREATE FUNCTION cellar.store(slot accord.retirement) RETURNS void LANGUAGE sql AS $$
    INSERT INTO cellar.event SELECT e.* FROM accord.event_log e WHERE e.slot = store.slot.slot;
    INSERT INTO cellar.commit SELECT c.* FROM accord.commit_log c WHERE c.slot = store.slot.slot;
$$;
CREATE FUNCTION cellar.fail(accord.retirement) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO cellar.event SELECT * FROM accord.event_log LIMIT 1; RAISE 'the cellar is full'; END $$;
CREATE FUNCTION cellar.other(integer) RETURNS void LANGUAGE sql AS '';
RESET ROLE;
SQL
for my $wrong ("'event', 'cellar.none'", "'event', 'cellar.other'", "'backlog', 'cellar.store'")
{
    my ($status) = $node->psql('postgres', "INSERT INTO accord.archive (log, function) VALUES ($wrong)");
    isnt($status, 0, "no archive: $wrong");
}
my ($status, undef, $error) = $node->psql('postgres', "INSERT INTO accord.archive (log, function) VALUES ('event', 'cellar.store')");
like($error, qr/would run as superuser/, 'a function of a mere user is not run as superuser');
value(q{INSERT INTO accord.archive (log, function, owner) VALUES ('event', 'cellar.fail', 'keeper_of_all')});

fill_slot('one', 5, 32);
my $before = value('SELECT string_agg(e::text, $$,$$ ORDER BY tx_id, ord) FROM accord.event_log e');
is(needs(), 'being written, seal, archive', 'a slot that is written is not archived');
value('SELECT accord.turn_rings(true)');
is(needs(), 'archive', 'a slot that is past retention waits for its archive');
value('SELECT accord.turn_rings()');
is(topics(), 'one', '... and is not emptied');
is(value('SELECT accord.archive_slots()'), 0, 'an archive that fails');
value('SELECT accord.turn_rings()');
is(topics(), 'one', '... keeps the slot');
is(value('SELECT failures, error, failed_at IS NOT NULL FROM accord.archive'), '1|the cellar is full|t', '... is shown');
like(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/could not archive slot 0 of the event log: function cellar.fail: the cellar is full/,
    '... and logged');
is(value('SELECT count(*) FROM cellar.event'), 0, '... and leaves nothing behind');
is(value('SELECT accord.archive_slots(), failures FROM accord.archive'), '0|1', '... and is not tried again at once');

value(q{UPDATE accord.archive SET function = 'cellar.store'; UPDATE accord.archive SET failed_at = NULL});
my $reader = open_session($node);
$reader->run('BEGIN; SELECT count(*) FROM accord.event_log');
is(value('SELECT accord.archive_slots()'), 1, 'a slot is archived, also while somebody reads it');
is(value('SELECT failures, error FROM accord.archive'), '0|', '... and the failure is forgotten');
value('SELECT accord.turn_rings()');
is(topics(), 'one', '... but not emptied then');
is(value('SELECT accord.archive_slots()'), 0, '... and not archived twice');
$reader->run('COMMIT');
value('SELECT accord.turn_rings()');
is(topics(), '', '... and emptied afterwards');
is(value('SELECT string_agg(e::text, $$,$$ ORDER BY tx_id, ord) FROM cellar.event e'), $before, 'the copy is whole');
is(value('SELECT log, slot, first_seq, last_seq, archived_at < truncated_at, bytes > 0 FROM accord.retirement'),
    'event|0|1|1|t|t', 'what was retired is written down');

# ---- into a file

my $file = $node->basedir . '/archive';
value(<<"SQL");
CREATE FUNCTION to_file(slot accord.retirement) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
    EXECUTE format('COPY (SELECT * FROM accord.event_log WHERE slot = %s ORDER BY tx_id, ord) TO %L', slot.slot,
                   format('$file.%s-%s', slot.first_seq, slot.last_seq));
END \$\$;
UPDATE accord.archive SET function = 'to_file', owner = 'postgres';
SQL
fill_slot('two', 3, 32);
$before = value('SELECT string_agg(key, $$ $$ ORDER BY ord) FROM accord.event_log');
value('SELECT accord.turn_rings(true); SELECT accord.archive_slots(); SELECT accord.turn_rings()');
is(topics(), '', 'a slot was archived by COPY');
value("CREATE TABLE back (LIKE accord.event_log); COPY back FROM '$file.2-2'");
is(value('SELECT string_agg(key, $$ $$ ORDER BY ord) FROM back'), $before, '... and the file can be read back');

# ---- by size

value('DELETE FROM accord.archive');
value($_) for 'ALTER SYSTEM SET accord.log_retention = $$30 d$$', 'ALTER SYSTEM SET accord.log_max_size = $$6 MB$$';
$node->reload;
$node->poll_query_until('postgres', q{SELECT setting = '6' FROM pg_settings WHERE name = 'accord.log_max_size'});
for my $n (1 .. 12)
{
    fill_slot(sprintf('size.%02d', $n), 1000, 1024);
    value('SELECT accord.turn_rings()');
}
my $bytes = value(q{SELECT sum(bytes) FROM accord.ring WHERE log = 'event'});
cmp_ok($bytes, '<=', 9 * 1024 * 1024, "the log is held to its size ($bytes bytes)");
like(topics(), qr/^size\.0[6-9] .*size\.12$/, '... by its oldest slots');
value(q{INSERT INTO accord.channel (name, base_url, enabled) VALUES ('ota', 'http://127.0.0.1:1', false)});
value(q{INSERT INTO accord.consumer (name) VALUES ('slow'); SELECT accord.rewind('slow', accord.safe_seq() - 2)});
my $kept = topics();
fill_slot(sprintf('size.%02d', $_), 1000, 1024), value('SELECT accord.turn_rings()') for 13 .. 16;
like(topics(), qr/size\.11 size\.12 .*size\.16/, 'what a consumer has not read is kept, whatever the size');
is(value(q{SELECT count(*) FROM accord.ring WHERE needed_by @> ARRAY['consumer slow']}) > 0, 1, '... and the ring says so');
value('DELETE FROM accord.consumer');

# ---- the keeper

value(<<'SQL');
ALTER SYSTEM SET accord.log_retention = 0;
CREATE TABLE gate AS SELECT 'closed' AS state;
CREATE TABLE seen (slot integer, by text);
CREATE FUNCTION slowly(slot accord.retirement) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WHILE EXISTS (SELECT FROM public.gate) LOOP
        PERFORM pg_sleep(0.1);
    END LOOP;
    INSERT INTO public.seen VALUES (slot.slot, (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()));
END $$;
INSERT INTO accord.archive (log, function) VALUES ('event', 'slowly');
SQL
value('SELECT accord.turn_rings(true)');
value('ALTER SYSTEM SET accord.dispatch = on');
$node->restart;
send_everything($node);
channel($node, $stub, 'live', route => { topic => 'live' });
value(q{INSERT INTO accord.outbox (topic, key) VALUES ('live', '1')});
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_accord keeper' AND wait_event = 'PgSleep'})
  or die "no keeper waits at the gate\n";
value(q{INSERT INTO accord.outbox (topic, key) VALUES ('live', '2')});
$stub->wait_for_count(2);
pass('deliveries do not wait for an archive function');
value('DELETE FROM gate');
$node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM seen WHERE by = 'pg_accord keeper'}) or die;
$node->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM accord.event_log WHERE topic LIKE 'size.1%')})
  or die "the keeper emptied nothing\n";
pass('a keeper archives and empties what may go, slot after slot');
$node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pg_accord keeper'}) or die;
pass('... and ends');

# Whoever wants a database to himself gets it, whatever the keeper does there.
value('CREATE DATABASE other');
$node->safe_psql('other', <<'SQL');
CREATE EXTENSION pg_accord;
CREATE FUNCTION forever(accord.retirement) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(10000)';
INSERT INTO accord.archive (log, function) VALUES ('event', 'forever');
INSERT INTO accord.outbox (topic) VALUES ('t');
SELECT accord.turn_rings(true);
SQL
$node->poll_query_until('other', q{SELECT accord.lowest_position() > 0}) or die "nothing is dispatched\n";
# The keeper that is there now may be at it; the next one comes once, and is to find nothing in its way.
$node->poll_query_until('other', q{SELECT accord.turn_rings(); SELECT needed_by = '{archive}' FROM accord.ring WHERE log = 'event' AND first_seq = 1},
  "\nt") or die "the slot is kept for more than its archive\n";
$node->restart;
$node->safe_psql('other', q{INSERT INTO accord.outbox (topic) VALUES ('t')});
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity
    WHERE backend_type = 'pg_accord keeper' AND wait_event = 'PgSleep' AND datname = 'other'}) or die "no keeper sleeps\n";
value('DROP DATABASE other');
pass('a database is dropped while its keeper is at work');
$node->stop;
done_testing();
