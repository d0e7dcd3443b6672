# Captured tables as processes see them: a change is delivered, but not back to where it came from; under pgbench's load, and
# with a baseline written meanwhile, the tables can be rebuilt from the log, row for row; a dump brings the history back under
# the same numbers; rows that arrive by logical replication are not captured again.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', "wal_level = logical\nmax_wal_senders = 4\n");
my $stub = start_stub();

sub value { my ($sql, $database) = @_; return $node->safe_psql($database || 'postgres', $sql); }

# ---- delivered

channel($node, $stub, 'ota');
channel($node, $stub, 'lock');
route($node, $_, topic => 'room', path => "/$_/{key}") for 'ota', 'lock';
value(q{CREATE TABLE room (code text PRIMARY KEY, price numeric(10, 2));
    INSERT INTO room VALUES ('older', 5);
    SELECT accord.capture('room');
    SELECT accord.baseline('room');
    INSERT INTO room VALUES ('a b', 80.50);
    BEGIN; SET LOCAL accord.source = 'ota'; UPDATE room SET price = 81 WHERE code = 'a b'; COMMIT;
    BEGIN; UPDATE room SET price = 99; ROLLBACK;
    DELETE FROM room WHERE code = 'older';});
poll_until(sub { value('SELECT count(*) FROM accord.owed()') == 0 }, 'everything to be delivered');
my @log = $stub->log;
# state routes send the latest of what waits: so only what must, and must not, have arrived
is((grep { $_->{path} =~ m{/older$} && $_->{body} =~ /price/ } @log), 0, 'what a baseline tells is sent to nobody');
is((grep { $_->{path} eq '/lock/a%20b' && $_->{body} =~ /81\.00/ } @log), 1, 'the change is delivered');
is((grep { $_->{path} eq '/ota/a%20b' && $_->{body} =~ /81\.00/ } @log), 0, 'not to the channel it came from');
is((grep { $_->{body} =~ /99/ } @log), 0, 'what was rolled back is not');
is((grep { $_->{path} =~ m{/older$} } @log), 2, 'the delete is delivered to both');

# ---- rebuilt

$node->command_ok([ 'pgbench', '-i', '-q', 'postgres' ], 'pgbench makes its tables');
# fewer rows, of which pgbench then touches a good part
value('DELETE FROM pgbench_accounts WHERE aid > 10000');
value(q{SELECT accord.capture('pgbench_tellers'), accord.capture('pgbench_branches'),
    accord.capture('pgbench_history', key_columns => '{tid,bid,aid,delta,mtime}'), accord.capture('pgbench_accounts')});
# rows are read by the baseline while they are written
my $pgbench = IPC::Run::start(
    [ 'pgbench', '-n', '-c', '4', '-j', '2', '-t', '400', '-h', $node->host, '-p', $node->port, 'postgres' ],
    '>', \my $out, '2>', \my $err);
for my $table (qw(accounts tellers branches))
{
    my $sql = "SELECT accord.baseline('pgbench_$table', 2000)";
    1 while value($sql) >= 2000;
}
ok($pgbench->finish, 'pgbench ran to its end') or diag $err;
for my $table (qw(accounts tellers branches history))
{
    my $difference = value(<<"SQL");
WITH told AS (
    SELECT DISTINCT ON (e.key) e.op, e.payload FROM accord.event_log e JOIN accord.commit_log c USING (slot, tx_id)
    WHERE e.table_id = accord.captured_id('pgbench_$table') AND e.op <> 'event' ORDER BY e.key, c.seq DESC, e.ord DESC)
SELECT count(*) FROM (SELECT jsonb_populate_record(NULL::pgbench_$table, payload)::text AS r FROM told WHERE op <> 'delete') t
FULL JOIN (SELECT t::text AS r FROM pgbench_$table t) r USING (r) WHERE t.r IS NULL OR r.r IS NULL
SQL
    is($difference, 0, "pgbench_$table, rebuilt from the log, is what it is");
}
is(value("SELECT count(*) FROM pgbench_history"), 1600, 'all transactions were there');
is(value(q{SELECT count(*) FROM (SELECT payload || before AS was, lag(payload) OVER (PARTITION BY table_id, key ORDER BY c.seq, ord) AS left_as
    FROM accord.event_log e JOIN accord.commit_log c USING (slot, tx_id)
    WHERE table_id IN (accord.captured_id('pgbench_tellers'), accord.captured_id('pgbench_branches')) AND op IN ('insert', 'update')) s
    WHERE was <> left_as}), 0, 'every event begins where the one before it ended');

# ---- dumped and restored

value(q{CREATE TABLE "Gäste" (gone int, nr int PRIMARY KEY, name text, born date) PARTITION BY RANGE (nr);
    CREATE TABLE gast_1 PARTITION OF "Gäste" FOR VALUES FROM (0) TO (1000);
    ALTER TABLE "Gäste" DROP gone;
    SELECT accord.capture('"Gäste"', topic => 'guest', condition => 'nr > 1', excluded => '{born}');
    INSERT INTO "Gäste" VALUES (1, 'hidden'), (2, 'ann'), (3, 'bob');
    ALTER TABLE "Gäste" RENAME name TO full_name;
    UPDATE "Gäste" SET full_name = 'Ann' WHERE nr = 2;});
my $guest = value(q{SELECT accord.captured_id('"Gäste"')});
my $history = q{SELECT string_agg(format('%s %s %s', key, op, accord.reshape(payload, table_id, seq, ord)), '; ' ORDER BY seq, ord)
    FROM accord.event_log JOIN accord.commit_log USING (slot, tx_id) WHERE table_id = } . "$guest AND op <> 'event'";
my $before = value($history);
is($before, '2 insert {"nr": 2, "full_name": "ann"}; 3 insert {"nr": 3, "full_name": "bob"}; '
      . '2 update {"nr": 2, "full_name": "Ann"}', 'the history, in the names of today');
my $dump = $node->basedir . '/captured.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, 'postgres' ], 'pg_dump');
value('ALTER SYSTEM SET accord.dispatch = off');
$node->reload;
value('CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'restored', $dump ], 'pg_restore');
is(value($history, 'restored'), $before, 'the history came with it');
is(value(q{SELECT accord.captured_id('"Gäste"')}, 'restored'), $guest, 'under the same number');
is(value('SELECT count(*) FROM accord.captured WHERE released_at IS NOT NULL', 'restored'), 0, 'nothing was taken for released');
value(q{UPDATE "Gäste" SET full_name = 'Bob' WHERE nr = 3;
    ALTER TABLE "Gäste" RENAME full_name TO guest;
    CREATE TABLE gast_2 PARTITION OF "Gäste" FOR VALUES FROM (1000) TO (2000);
    INSERT INTO "Gäste" VALUES (1001, 'eve');
    TRUNCATE gast_2;
    UPDATE "Gäste" SET nr = 0 WHERE nr = 2;}, 'restored');
is(value($history, 'restored'),
    '2 insert {"nr": 2, "guest": "ann"}; 3 insert {"nr": 3, "guest": "bob"}; 2 update {"nr": 2, "guest": "Ann"}; '
      . '3 update {"nr": 3, "guest": "Bob"}; 1001 insert {"nr": 1001, "guest": "eve"}; 1001 truncate ; 2 delete ',
    'and goes on there: columns renamed, a new partition truncated, a condition no longer met');
is(value(q{SELECT count(*) FROM accord.captured_shape WHERE table_id = } . $guest, 'restored'), 3,
    'the columns are those of before, though their numbers have changed');

# ---- replicated

value(q{CREATE TABLE repl (id int PRIMARY KEY, v text); SELECT accord.capture('repl');
    CREATE PUBLICATION p FOR TABLE repl;
    SELECT pg_create_logical_replication_slot('s', 'pgoutput')});
value('CREATE DATABASE replica');
value(q{CREATE EXTENSION pg_accord; CREATE TABLE repl (id int PRIMARY KEY, v text); SELECT accord.capture('repl');}, 'replica');
value('CREATE SUBSCRIPTION s CONNECTION ' . literal($node->connstr('postgres'))
      . ' PUBLICATION p WITH (create_slot = false, copy_data = false)', 'replica');
value(q{INSERT INTO repl VALUES (1, 'a'), (2, 'b'); UPDATE repl SET v = 'c' WHERE id = 1; DELETE FROM repl WHERE id = 2;});
poll_until(sub { value('SELECT string_agg(id || v, $$ $$) FROM repl', 'replica') eq '1c' }, 'the rows to arrive');
value(q{INSERT INTO repl VALUES (3, 'here')}, 'replica');
my $events = q{SELECT string_agg(key || op, ' ' ORDER BY tx_id, ord) FROM accord.event_log WHERE topic = 'repl'};
is(value($events), '1insert 2insert 1update 2delete', 'captured where they were made');
is(value($events, 'replica'), '3insert', 'and not again where they arrive');
value('ALTER SUBSCRIPTION s DISABLE', 'replica');
value('ALTER SUBSCRIPTION s SET (slot_name = NONE)', 'replica');
value('DROP SUBSCRIPTION s', 'replica');
done_testing();
