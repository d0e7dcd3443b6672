# examples/citus.sql, as it stands, on a coordinator and two workers, and a third that joins: a row's event is sent by the node
# of its shard, once and in order; a write on several nodes is sent after it was committed, and not at all when it was not, also
# when the coordinator, or a worker, crashes in between; a shard that is moved stays captured, and what it was sends first.
# Needs Citus in the PostgreSQL that is tested; no package of Debian's has it.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $share = `\${PG_CONFIG:-pg_config} --sharedir`;
chomp $share;
plan skip_all => 'Citus is not in this PostgreSQL; examples/citus.sql is not tested' unless -e "$share/extension/citus.control";

my $stub = start_stub();

# Citus would have TLS between nodes; these are told apart by their sockets' directory and port.
sub citus_node
{
    my ($name) = @_;
    my $n = new_node($name, <<CONF, extension => 0);
shared_preload_libraries = 'citus, pg_accord'
max_prepared_transactions = 50
max_worker_processes = 40
wal_level = logical
max_wal_senders = 10
max_replication_slots = 20
restart_after_crash = on
citus.recover_2pc_interval = '1s'
citus.node_conninfo = 'sslmode=prefer'
citus.show_shards_for_app_name_prefixes = '*'
accord.restart_interval = '100ms'
CONF
    $n->append_conf('postgresql.conf', "citus.local_hostname = '" . $n->host . "'");
    $n->reload;
    $n->safe_psql('postgres', 'CREATE EXTENSION citus');
    return $n;
}
sub value { my ($n, $sql) = @_; return $n->safe_psql('postgres', $sql); }

my ($coordinator, @worker) = map { citus_node($_) } 'coordinator', 'one', 'two';
sub run { my ($sql) = @_; return value($coordinator, $sql); }
sub join_cluster { my ($n) = @_; return run("SELECT citus_add_node('" . $n->host . "', " . $n->port . ')'); }

sub both_settle { wait_for_delivery($_) for @worker; return; }

# Whether there is something prepared, on each of two; a statement has a transaction for each connection that Citus used.
sub prepared { return join ' ', map { value($_, 'SELECT (count(*) > 0)::integer FROM pg_prepared_xacts') } @worker[ 0, 1 ]; }

run("SELECT citus_set_coordinator_host('" . $coordinator->host . "', " . $coordinator->port . ')');
my @id = map { join_cluster($_) } @worker;
run('CREATE EXTENSION pg_accord');
is(join(' ', map { value($_, q{SELECT count(*) FROM pg_extension WHERE extname = 'pg_accord'}) } @worker), '1 1',
    'CREATE EXTENSION on the coordinator makes it on all nodes');
dispatcher($_) for $coordinator, @worker;
pass('each of them has its dispatcher');
is(join(' ', map { value($_, 'SELECT count(*) FROM accord.silence() s WHERE s.state IS NOT NULL') } @worker), '0 0', 'none is taken for a copy');

my $example = "$ENV{TESTDIR}/examples/citus.sql";
$coordinator->command_ok([ 'psql', '-Xq', '-v', 'url=' . $stub->url, '-v', 'per_second=1000', '-v', 'in_flight=8', '-d',
        $coordinator->connstr('postgres'), '-f', $example ], 'the example');
is(run('SELECT string_agg(DISTINCT state, $$ $$) || $$ $$ || count(*) FROM app.status'), 'idle 3', 'its channel is on all nodes');

# Requests since the last call: [ node's group, property, what ].
my $seen = 0;
sub arrived
{
    my @new = $stub->log($seen);
    $seen += @new;
    return map { [ $_->{headers}{'x-node'}, $_->{path} =~ m{/properties/([^/]+)/}, $_->{body} =~ /"(?:free|n)": ?(\d+)/ ] } @new;
}
sub in_words { return join ', ', map { join ' ', @$_ } @_; }
sub sorted_words { return in_words(sort { "@$a" cmp "@$b" } @_); }

# Two properties on each worker.
my %group = map { $_ => run("SELECT p.groupid FROM pg_dist_placement p
    WHERE p.shardid = get_shard_id_for_distribution_column('app.room', '$_')") } map { "h$_" } 1 .. 20;
my @property = map { my $g = $_; [ grep { $group{$_} == $g } sort keys %group ] } 1, 2;
my ($a, $b) = map { $_->[0] } @property;
ok(@{ $property[0] } > 1 && @{ $property[1] } > 1, 'both workers have properties');

# ---- rows

run("INSERT INTO app.room VALUES ('$_', 'r', 5)") for $a, $b;
both_settle();
is(sorted_words(arrived()), "1 $a 5, 2 $b 5", 'the node of the shard sends what happens in it, and no other');
run("UPDATE app.room SET free = $_ WHERE property = '$a'") for 4, 3, 2;
both_settle();
is(in_words(arrived()), join(', ', map { "1 $a $_" } 4, 3, 2), '... in order');
run('UPDATE app.room SET free = free + 5');
both_settle();
is(sorted_words(arrived()), "1 $a 7, 2 $b 10", 'a statement of both nodes is sent by each');
$coordinator->psql('postgres', "BEGIN; UPDATE app.room SET free = free - 8 WHERE property = '$b'; UPDATE app.room SET free = free - 8 WHERE property = '$a'; COMMIT");
is(run('SELECT sum(free) FROM app.room'), '17', 'a transaction that fails on one of them');
both_settle();
is(in_words(arrived()), '', '... is sent by none');

$coordinator->command_ok([ 'psql', '-Xq', '-d', $coordinator->connstr('postgres'), map { ('-c', $_) } q{SET citus.propagate_set_commands = 'local'}, 'BEGIN',
        q{SET LOCAL accord.actor = 'ada'}, "UPDATE app.room SET free = 1 WHERE property = '$a'", 'COMMIT' ], 'SET LOCAL accord.actor on the coordinator');
is(value($worker[0], 'SELECT actor FROM accord.commit_log ORDER BY seq DESC LIMIT 1'), 'ada', '... is known to the worker');
is(value($worker[0], "SELECT string_agg(op, ' ' ORDER BY seq) FROM accord.history('app.room', accord.row_key('$a', 'r'))"),
    'insert update update update update update', 'the history of a row is on its node');
both_settle();
arrived();

# ---- events that are no rows

run("SELECT app.announce('$a', '{\"n\": 1}')");
run("BEGIN; UPDATE app.room SET free = 2 WHERE property = '$a'; SELECT app.announce('$a', '{\"n\": 3}'); COMMIT");
run("BEGIN; SELECT app.announce('$a', '{\"n\": 4}'); ROLLBACK");
both_settle();
is(sorted_words(arrived()), "1 $a 1, 1 $a 2, 1 $a 3", 'a delegated function writes its events where the rows are, in their transaction');
is(value($coordinator, "SELECT count(*) FROM accord.event_log WHERE topic IN ('room', 'note')"), 0, '... and nothing on the coordinator');

# ---- what cannot be

sub complaint { my ($n, $sql) = @_; my (undef, undef, $error) = $n->psql('postgres', $sql); return $error; }
my $unsafe = 'SET citus.enable_unsafe_triggers = on';
like(complaint($coordinator, 'TRUNCATE app.room'), qr/cannot truncate captured table/, 'TRUNCATE is refused');
like(complaint($worker[0], 'TRUNCATE app.room'), qr/cannot truncate captured table/, '... on workers, too');
like(complaint($coordinator, "$unsafe; SELECT accord.capture('app.room')"), qr/on_truncate "events" is not possible/, '... and nothing else can be chosen');
run('CREATE TABLE app.kind (id integer PRIMARY KEY)');
run(q{SELECT create_reference_table('app.kind')});
like(complaint($coordinator, "$unsafe; SELECT accord.capture('app.kind')"), qr/it is a reference table/, 'a reference table is not captured');
like(complaint($worker[0], 'SELECT * FROM accord.as_of(NULL::app.room, now())'), qr/its rows are in shards/, 'as_of() says that it cannot');
like(complaint($coordinator, "SELECT accord.baseline('app.room')"), qr/they are in shards/, '... and so does baseline()');
like(complaint($worker[0], "SELECT accord.capture('app.room', on_truncate => 'refuse')"), qr/on a worker/, 'capture() is the coordinator\'s');

# ---- DDL

run('ALTER TABLE app.room ADD COLUMN note text');
run('ALTER TABLE app.room RENAME COLUMN note TO remark');
run("UPDATE app.room SET free = 6, remark = 'x' WHERE property = '$a'");
is(value($worker[0], "SELECT payload ->> 'remark' FROM accord.event_log WHERE topic = 'room' ORDER BY tx_id DESC, ord DESC LIMIT 1"), 'x', 'columns follow');
is(join(' ', map { value($_, q{SELECT table_name || ' ' || accord.captured_relation(id) FROM accord.captured}) } @worker), 'room app.room room app.room',
    'the table of the number is the table, not a shard of it');
both_settle();
arrived();

# ---- two-phase commit, and who dies in it

my $both = 'UPDATE app.room SET free = free + 10';
my $waits = q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE};
run('CREATE TABLE beat ()');
$coordinator->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$coordinator->reload;
my $probe = open_session($coordinator);
poll_until(sub { $probe->send('INSERT INTO beat DEFAULT VALUES'); run("$waits 'INSERT INTO beat%'") }, 'the coordinator to wait for a standby when it commits');
my $session = open_session($coordinator);
$session->send($both);
poll_until(sub { run("$waits 'UPDATE app.room%'") }, 'the coordinator to have decided');
is(prepared(), '1 1', 'decided by the coordinator, prepared on both workers');
value($worker[0], "INSERT INTO accord.outbox (topic, key, payload) VALUES ('note', 'other', '{\"property\": \"other\", \"n\": 1}')");
both_settle();
is(in_words(arrived()), '1 other 1', '... of which nothing is sent, and which holds up no others');
crash_server($worker[1]);
is(prepared(), '1 1', '... also after a crash of a worker');
$coordinator->append_conf('postgresql.conf', "synchronous_standby_names = ''");
crash_server($coordinator);
poll_until(sub { prepared() eq '0 0' }, 'Citus to recover');
both_settle();
is(sorted_words(arrived()), "1 $a 16, 2 $b 20", 'the coordinator crashed: Citus commits it when it is back, and each worker sends its part, once');

my $gate = open_session($worker[1]);
$gate->run('BEGIN; LOCK TABLE accord.prepared IN EXCLUSIVE MODE');
$session = open_session($coordinator);
$session->send($both);
poll_until(sub { $session->take; die "$session->{output}\n" if $session->{output} =~ /ERROR/; prepared() =~ /^1/ && value($worker[1], q{SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'accord.prepared'::regclass}) },
    'one worker to be prepared');
crash_server($coordinator);
$gate->close;
poll_until(sub { prepared() eq '0 0' && !value($worker[1], q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'PREPARE TRANSACTION%' AND state = 'active'}) },
    'Citus to recover');
is(run('SELECT sum(free) FROM app.room'), '36', 'one that crashed before it decided: Citus rolls it back');
run("UPDATE app.room SET free = 1 WHERE property = '$_'") for $a, $b;
both_settle();
is(sorted_words(arrived()), "1 $a 1, 2 $b 1", '... and nothing of it is sent');

# ---- a worker that joins

my $third = citus_node('three');
push @worker, $third;
push @id, join_cluster($third);
my @group = map { value($_, 'SELECT groupid FROM pg_dist_local_group') } @worker;
dispatcher($third);
is(value($third, 'SELECT count(*) FROM accord.silence() s WHERE s.state IS NOT NULL'), 0, 'a worker that joins is no copy');
run("$unsafe; SELECT accord.capture('app.room', topic => 'room', on_truncate => 'refuse')");
value($third, "INSERT INTO accord.channel (name, base_url, headers) VALUES ('ota', '" . $stub->url . qq{', '{"X-Node": "$group[2]"}')});
value($third, q{INSERT INTO accord.route (channel, topic, method, path, coalesce) VALUES ('ota', 'room', 'PUT', '/properties/{payload.property}/rooms/{payload.room}', NULL)});

# ---- a shard that is moved

my $shard = run("SELECT get_shard_id_for_distribution_column('app.room', '$a')");
for my $way ([ 0, 2, 'force_logical' ], [ 2, 0, 'block_writes' ])
{
    my ($from, $to, $mode) = @$way;
    $stub->close_gate('slow');
    $stub->script([ { match => { path_regex => "/properties/$a/" }, do => { gate => 'slow' } } ]);
    my $n = $stub->count;
    run("UPDATE app.room SET free = 50 WHERE property = '$a'");
    run("UPDATE app.room SET free = 51 WHERE property = '$a'");
    $stub->wait_for_count($n + 1);
    my $mover = open_session($coordinator);
    $mover->send("CALL app.move($shard, $id[$to], '$mode')");
    poll_until(sub { $mover->take; die "$mover->{output}\n" if $mover->{output} =~ /ERROR/; run("SELECT groupid FROM pg_dist_placement WHERE shardid = $shard ORDER BY placementid DESC LIMIT 1") == $group[$to] }, 'the shard to be moved');
    run("UPDATE app.room SET free = $_ WHERE property = '$a'") for 52, 53;
    is(value($worker[$to], "SELECT count(*) FROM accord.event_log WHERE topic = 'room' AND payload ->> 'free' IN ('52', '53')") > 0, 1,
        "$mode: the shard is captured on its new node");
    is($stub->count, $n + 1, '... which sends nothing until the old one is through');
    $stub->open_gate('slow');
    $mover->wait_for_end;
    $mover->close;
    both_settle();
    is(in_words(arrived()), "$group[$from] $a 50, $group[$from] $a 51, $group[$to] $a 52, $group[$to] $a 53", '... and then goes on, in order');
}
is(join(' ', map { value($_, 'SELECT count(*) FROM accord.verify()') } @worker), '0 0 0', 'the logs are sound');

# ---- the end

run("$unsafe; SELECT accord.release('app.room')");
run('UPDATE app.room SET free = 7');
is(join(' ', map { value($_, 'SELECT count(*) FROM accord.captured WHERE released_at IS NULL') } @worker), '0 0 0', 'released on all nodes');
both_settle();
is(in_words(arrived()), '', '... of which nothing is captured any more');
run('DROP EXTENSION pg_accord CASCADE');
poll_until(sub { !grep { workers($_, 'dispatcher') } $coordinator, @worker }, 'the dispatchers to go');
pass('DROP EXTENSION on the coordinator drops it on all nodes');

$_->stop for $coordinator, @worker;
done_testing();
