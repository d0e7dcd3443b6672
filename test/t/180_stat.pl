# accord.pg_stat_accord: what is counted of endpoints and of the database; that it is kept when a dispatcher or the server
# is stopped, begins anew after a crash or stat_reset(); and what the processes say they wait for.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main');
my $stub = start_stub();

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

sub counted
{
    my ($columns, $channel) = @_;
    return "SELECT $columns FROM accord.pg_stat_accord WHERE channel = '$channel' AND account IS NULL";
}

# ---- endpoints ----
send_everything($node);
channel($node, $stub, 'ota', route => { topic => '*', path => '/{key}' }, retry_base => '1 ms', retry_cap => '1 ms',
    max_attempts => 3, breaker_failures => 4, breaker_cooldown => '1 ms', breaker_cap => '1 ms');
is(value(counted('requests, delivered, latency, answer_time, stats_reset', 'ota')),
    '0|0|{' . join(',', (0) x 16) . '}|0|', 'nothing is counted of an endpoint without deliveries');
$stub->script([
    { match => { path_regex => '^/never$' }, do => { status => 404 } },
    { match => { path_regex => '^/dead$' }, do => { status => 500 } },
    { match => { path_regex => '^/later$', times => 1 }, do => { status => 429, headers => { 'Retry-After' => '0' } } },
    { match => { path_regex => '^/once$', times => 1 }, do => { status => 503 } },
    { match => { path_regex => '^/login$', times => 1 }, do => { status => 401 } },
    { match => { path_regex => '^/cut$', times => 1 }, do => { body => 'abcdef', cut_after_bytes => 2 } },
]);
events($node, map { { topic => 't', key => $_, payload => '{"n": 1}' } } qw(fine never once login cut));
wait_for_delivery($node);
wait_for_rows($node, counted('requests, answered, delivered, dead, retried, rejected, unauthorized, cut_off, throttles,
    breaker_openings, bytes_sent', 'ota'), '8|7|4|1|3|1|1|1|0|0|64');
pass('each outcome counts where it belongs');
is(value(counted('answered = (SELECT sum(n) FROM unnest(latency) n), answer_time > 0, bytes_received > 0, stats_reset < now()',
            'ota')), 't|t|t|t', '... latencies, times and bytes as well');
is(value(q{SELECT count(*) || ' ' || min(b) || ' ' || max(b) FROM unnest(accord.latency_bounds()) b}), '16 0.5 Infinity',
    'the classes of latencies have bounds');
events($node, { topic => 't', key => 'later' });
wait_for_delivery($node);
is(value(counted('delivered, retried', 'ota')), '5|4', 'what is refused as too early is tried again');
events($node, map { { topic => 't', key => $_ } } qw(dead));
wait_for_rows($node, counted('dead, retried', 'ota'), '2|6');
pass('what is given up is counted');

my ($skipped) = events($node, { topic => 't', key => 'late', expires_at => \'clock_timestamp()' });
wait_for_rows($node, counted('expired', 'ota'), '1');
pass('what expires is counted');
value(q{SELECT accord.discard('ota')});
wait_for_rows($node, counted('discarded', 'ota'), '2');
pass('... and what is discarded');

$stub->script([{ match => { path_regex => '^/down$', times => 5 }, do => { status => 500 } },
    { match => { path_regex => '^/pause$', times => 1 }, do => { status => 429, headers => { 'Retry-After' => '1' } } }]);
value(q{UPDATE accord.channel SET max_attempts = 100});
events($node, { topic => 't', key => 'down' });
wait_for_delivery($node);
is(value(counted('breaker_openings', 'ota')), '1', 'a breaker that opens is counted, a probe that fails is not');
events($node, { topic => 't', key => 'pause' });
wait_for_delivery($node);
is(value(counted('throttles', 'ota')), '2', 'each pause that the server asks for is counted');

# ---- accounts, and resetting ----
channel($node, $stub, 'pms', route => { topic => 'p' });
value(q{INSERT INTO accord.account (channel, name) VALUES ('pms', 'a'), ('pms', 'b')});
events($node, map { { topic => 'p', account => $_, channels => '{pms}' } } qw(a a b));
wait_for_delivery($node);
my $accounts = q{SELECT string_agg(account || delivered, ' ' ORDER BY account) FROM accord.pg_stat_accord WHERE channel = 'pms'};
is(value($accounts), 'a2 b1', 'accounts are counted each for itself');
value(q{SELECT accord.stat_reset('pms', 'a')});
is(value($accounts), 'a0 b1', 'one can be counted anew');
events($node, { topic => 'p', account => 'a', channels => '{pms}' });
wait_for_delivery($node);
is(value($accounts), 'a1 b1', '... and is counted on by its dispatcher');
value(q{SELECT accord.stat_reset('pms')});
is(value($accounts), 'a0 b0', 'a channel is counted anew with its accounts');
cmp_ok(value(counted('delivered', 'ota')), '>', 0, '... and no other');
is(($node->psql('postgres', q{SELECT accord.stat_reset(account => 'a')}))[0], 0, 'an account alone means all');

# ---- the database ----
value('SELECT accord.stat_reset()');
is(value(counted('delivered', 'ota')), '0', 'everything is counted anew');
my $database = 'SELECT transactions, events, captured, received, duplicates, repeated, conflicts FROM accord.pg_stat_accord_database';
is(value($database), '0|0|0|0|0|0|0', '... in the database as well');
value(q{CREATE TABLE room (id text PRIMARY KEY, price int, note text);
    SELECT accord.capture('room'); SELECT accord.manage('room'); SELECT accord.set_policy('room', '*', 'latest');
    INSERT INTO accord.source (name) VALUES ('x'), ('y')});
value('SELECT accord.stat_reset()');
value(q{BEGIN; INSERT INTO room VALUES ('1', 1), ('2', 2);
    SAVEPOINT a; INSERT INTO room VALUES ('3', 3); SAVEPOINT b; INSERT INTO room VALUES ('4', 4); RELEASE b; ROLLBACK TO a;
    SAVEPOINT c; INSERT INTO room VALUES ('5', 5); SAVEPOINT d; UPDATE room SET price = 6 WHERE id = '5'; RELEASE d; RELEASE c;
    INSERT INTO accord.outbox (topic, key) VALUES ('x', 'fine'); COMMIT});
is(value($database), '1|5|4|0|0|0|0', 'a transaction counts what it has committed, savepoints minded');
value(q{BEGIN; INSERT INTO room VALUES ('9', 1); ROLLBACK});
is(value($database), '1|5|4|0|0|0|0', '... and nothing when it rolls back');
my $now = value('SELECT now()');
value(qq{SELECT accord.receive('x', 'm1', target => 'room', key => '1', changes => '{"price": 8}', occurred_at => '$now')}) for 1 .. 3;
value(q{SELECT accord.receive('y', 'm2', target => 'room', key => '1', changes => '{"price": 9}', occurred_at => now() - interval '1 hour')});
is(value(q{SELECT received, duplicates, conflicts = (SELECT count(*) FROM accord.conflict), conflicts > 0
        FROM accord.pg_stat_accord_database}), '2|2|t|t', 'messages, repetitions and conflicts are counted');
value(q{INSERT INTO accord.outbox (topic, key, idempotency_key) VALUES ('x', 'fine', 'k')}) for 1 .. 2;
is(value('SELECT repeated FROM accord.pg_stat_accord_database'), '1', '... and events whose key was used');

# ---- who may look ----
value(q{CREATE ROLE monitor; GRANT pg_monitor TO monitor; CREATE ROLE nobody});
value(qq{SET ROLE monitor; TABLE accord.$_}) for qw(pg_stat_accord pg_stat_accord_database status progress ring consumer_status);
pass('a member of pg_monitor may look at it');
isnt(($node->psql('postgres', 'SET ROLE monitor; SELECT accord.stat_reset()'))[0], 0, '... but not reset it');
isnt(($node->psql('postgres', 'SET ROLE nobody; TABLE accord.pg_stat_accord'))[0], 0, 'others may not look');

# ---- what it survives ----
events($node, { topic => 't', key => 'fine' });
wait_for_delivery($node);
my $totals = 'SELECT (SELECT sum(delivered) FROM accord.pg_stat_accord), (SELECT events FROM accord.pg_stat_accord_database)';
my $before = value($totals);
my $pid = dispatcher($node);
value("SELECT pg_terminate_backend($pid)");
poll_until(sub { (workers($node, 'dispatcher'))[0] // $pid != $pid }, 'another dispatcher');
is(value($totals), $before, 'counters outlive the dispatcher');
$node->restart;
is(value($totals), $before, '... and a restart of the server');
ok(!-e $node->data_dir . '/pg_stat/pg_accord.stat', '... whose file is gone when it was read');
dispatcher($node);
events($node, { topic => 't', key => 'fine' });
wait_for_delivery($node);
isnt(value($totals), $before, '... and are counted on');
$node->stop;
open my $file, '+<', $node->data_dir . '/pg_stat/pg_accord.stat' or die "there is no file: $!\n";
seek $file, 100, 0;
print $file 'x';
close $file;
$node->start;
like(value($totals), qr/^0\|/, 'a file that was tampered with is not believed');
like(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/pg_accord\.stat" does not hold what was written/, '... and the log says so');
events($node, { topic => 't', key => 'fine' });
wait_for_delivery($node);
crash_server($node);
like(value($totals), qr/^0\|/, 'after a crash they begin anew');

# ---- what processes wait for ----
my $named = $node->pg_version >= 17;
wait_for_rows($node, q{SELECT backend_type, wait_event_type, wait_event FROM pg_stat_activity
    WHERE backend_type LIKE 'pg_accord%' ORDER BY 1},
    'pg_accord dispatcher|Extension|' . ($named ? 'AccordDispatcherMain' : 'Extension'),
    'pg_accord launcher|Extension|' . ($named ? 'AccordLauncherMain' : 'Extension'));
pass('the processes say what they wait for');

$node->stop;
done_testing();
