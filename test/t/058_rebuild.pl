# A tool that nobody here wrote agrees: pgbench's own tables are rebuilt from the log after a load by several clients, and
# compared with the real ones row for row; as they are at the end, and as they were in the middle. The log turns meanwhile.
use strict;
use warnings FATAL => 'all';

use Accord;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', "accord.dispatch = off\n");
my @tables = qw(accounts branches tellers history);
my @keys = ('aid', 'bid', 'tid', 'id');

sub run_sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub load { my (@options) = @_; return $node->command_ok([ 'pgbench', '-n', @options, 'postgres' ], 'pgbench ' . join ' ', @options); }

$node->command_ok([ 'pgbench', '-i', '-q', '-s', '1', 'postgres' ], 'pgbench -i');
run_sql(q{ALTER TABLE pgbench_history ADD id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY});
run_sql("SELECT accord.capture('pgbench_$_')") for @tables;
my $start = run_sql('SELECT accord.safe_seq()');
# What is older than the capture is in the baselines.
run_sql(qq{DO \$\$ BEGIN WHILE accord.baseline('pgbench_$_') >= 10000 LOOP COMMIT; END LOOP; END \$\$}) for @tables;
load('-c', '4', '-j', '2', '-t', '200');
run_sql('SELECT accord.turn_log_ring(true)');
run_sql('SELECT accord.mark($$middle$$)');
run_sql("CREATE TABLE middle_$_ AS TABLE pgbench_$_") for @tables;
run_sql('SELECT accord.turn_log_ring(true)');
load('-c', '4', '-j', '2', '-t', '200', '-b', 'tpcb-like@5', '-b', 'simple-update@5');
run_sql('DELETE FROM pgbench_history WHERE id % 7 = 0; UPDATE pgbench_accounts SET filler = NULL WHERE aid % 1000 = 1');

# Rebuilt: each row's last image. Written here, without accord's own reading functions.
sub rebuilt
{
    my ($table, $upto) = @_;
    return qq{(SELECT (jsonb_populate_record(NULL::pgbench_$table, payload)).* FROM (
        SELECT DISTINCT ON (e.key) e.payload
        FROM accord.event_log e JOIN accord.commit_log c ON c.slot = e.slot AND c.tx_id = e.tx_id
        WHERE e.table_id = accord.captured_id('pgbench_$table') AND e.op <> 'event' AND c.seq <= $upto
        ORDER BY e.key, c.seq DESC, e.ord DESC) last WHERE payload IS NOT NULL)};
}

sub differences
{
    my ($one, $other) = @_;
    return run_sql("SELECT count(*) FROM ((TABLE one EXCEPT ALL TABLE other) UNION ALL (TABLE other EXCEPT ALL TABLE one)) d"
          =~ s/TABLE one/SELECT * FROM $one/gr =~ s/TABLE other/SELECT * FROM $other/gr);
}

my $end = run_sql('SELECT accord.safe_seq()');
my $middle = run_sql(q{SELECT accord.point_seq('middle')});
for my $table (@tables)
{
    cmp_ok(run_sql("SELECT count(*) FROM pgbench_$table"), '>=', 1, "$table has rows");
    is(differences("pgbench_$table", rebuilt($table, $end) . ' x'), 0, "$table, rebuilt from the log, is the same");
    is(differences("middle_$table", rebuilt($table, $middle) . ' x'), 0, '... and as it was in the middle');
    is(differences("middle_$table", "accord.as_of(NULL::pgbench_$table, 'middle') x"), 0, '... which as_of() says too');
}
is(run_sql('SELECT count(DISTINCT slot) FROM accord.commit_log'), 3, 'the log turned meanwhile');
is(run_sql("SELECT count(*), sum(abalance) FROM accord.as_of(NULL::pgbench_accounts, $start)"), '100000|0',
    'as_of() of the beginning: no balance yet');

# All of the second half is undone at once, and that as well.
run_sql('CREATE TABLE after_accounts AS TABLE pgbench_accounts; CREATE TABLE after_history AS TABLE pgbench_history');
is(run_sql(q{SELECT string_agg(DISTINCT status, ' ') FROM accord.revert(after => 'middle', reason => 'the second half')}), 'applied',
    'the second half is reverted');
is(differences("middle_$_", "pgbench_$_"), 0, "... $_") for @tables;
is(run_sql(q{SELECT string_agg(DISTINCT status, ' ') FROM accord.revert(matching_reason => 'the second half')}), 'applied',
    'that is reverted');
is(differences("after_$_", "pgbench_$_"), 0, "... $_") for qw(accounts history);
done_testing();
