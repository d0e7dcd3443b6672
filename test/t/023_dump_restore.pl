# A dump taken while the rings are in a later slot comes back whole: in the same cluster, in another one, by pg_restore
# and by psql. A copy, however it was made, is silent until it is adopted; then it goes on where the original stopped.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', undef, extension => 0);
my $other = new_node('other', undef, extension => 0);
my $stub = start_stub();

sub value { my ($at, $database, $sql) = @_; return $at->safe_psql($database, $sql); }

# Keys of the events in the log of a database, in commit order.
sub logged
{
    my ($at, $database) = @_;
    return value($at, $database, 'SELECT string_agg(key, $$ $$ ORDER BY seq, ord) FROM accord.read(0, 100000)');
}

# Everything that is to come back, as one text.
sub contents
{
    my ($at, $database) = @_;
    # of partitioned tables the whole; a copy's identity and checkpoint are its own besides, and secrets are not all dumped
    my @tables = split /\n/, value($at, $database, <<'SQL');
SELECT relname FROM pg_class WHERE relnamespace = 'accord'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
    AND relname NOT IN ('identity', 'secret', 'checkpoint') ORDER BY 1
SQL
    my $checkpoint = value($at, $database, 'SELECT max(position) FROM accord.checkpoint');
    my @sequences = split /\n/, value($at, $database, <<'SQL');
SELECT oid::regclass FROM pg_class WHERE relnamespace = 'accord'::regnamespace AND relkind = 'S' ORDER BY 1
SQL
    return join "\n", "checkpoint: $checkpoint",
      (map { "$_: " . value($at, $database, "SELECT string_agg(t::text, E'\\n' ORDER BY t::text) FROM accord.$_ t") }
          @tables),
      (map { "$_: " . value($at, $database, "SELECT last_value, is_called FROM $_") } @sequences);
}

sub write_event
{
    my ($at, $database, $key) = @_;
    return value($at, $database,
        "INSERT INTO accord.outbox (topic, key, payload) VALUES ('t', '$key', '{}') RETURNING event_id");
}

# Keys that arrived at the stub, sorted.
sub arrived { return join ' ', sort map { $_->{path} =~ m{([^/]+)$} } $stub->log; }

# As README says: a table loaded before the channels it belongs to is loaded once more.
sub restore_in_parallel
{
    local %ENV = $node->_get_env();
    my @restore = ('pg_restore', '-d', 'again', $node->basedir . '/app.dump');
    PostgreSQL::Test::Utils::run_log([ @restore, '-j2' ]);
    for my $table ('account', 'route')
    {
        next if value($node, 'again', "SELECT count(*) FROM accord.$table") > 0;
        ok(PostgreSQL::Test::Utils::run_log([ @restore, '-a', '-n', 'accord', '-t', $table ]), "$table, once more");
    }
    return;
}

# ---- the original: events in four slots, some delivered, one retrying, one dead, one not read yet

value($node, 'postgres', 'CREATE DATABASE app');
value($node, 'app', 'CREATE EXTENSION pg_accord');
value($node, 'app', <<"SQL");
INSERT INTO accord.secret (name, value) VALUES ('token', 'very secret');
INSERT INTO accord.channel (name, base_url, retry_base, retry_cap, description)
    VALUES ('ota', '@{[ $stub->url ]}', '1 h', '2 h', E'a \\ttab and a ''quote''');
INSERT INTO accord.channel (name, base_url, auth)
    VALUES ('paid', '@{[ $stub->url ]}', '{"type": "bearer", "secret": "token"}');
INSERT INTO accord.account (channel, name, vars) VALUES ('ota', 'ann', '{"hotel": 7}');
INSERT INTO accord.route (channel, topic, path) VALUES ('ota', 't', '/{key}');
INSERT INTO accord.route (channel, topic, path) VALUES ('paid', 'paid', '/{key}');
SQL
$stub->script([ { match => { path_regex => '/retrying' }, do => { status => 503 } },
        { match => { path_regex => '/dead' }, do => { status => 400 } } ]);
for my $key (qw(one two retrying dead))
{
    write_event($node, 'app', $key);
    # housekeeping passes when somebody else keeps house just now
    my $slot = value($node, 'app', 'SELECT last_value FROM accord.log_slot');
    poll_until(sub {
            value($node, 'app', 'SELECT accord.turn_rings(true)');
            return value($node, 'app', 'SELECT last_value FROM accord.log_slot') > $slot;
        }, 'the rings to turn');
}
value($node, 'app', q{BEGIN; SET LOCAL accord.actor = 'ann'; SET LOCAL accord.reason = 'why';
    INSERT INTO accord.outbox (topic, key, payload, idempotency_key) VALUES ('t', 'three', '{}', 'once'); COMMIT});
$stub->wait_for_count(5);
$node->poll_query_until('app', q{SELECT count(*) = 2 FROM accord.backlog WHERE state IN ('retrying', 'dead')});
$node->poll_query_until('app', 'SELECT count(*) = 1 FROM accord.outbox');
# A rolled back transaction leaves a gap in tx_seq; what is written last is not read by any dispatcher.
value($node, 'app', q{BEGIN; INSERT INTO accord.outbox (topic, key) VALUES ('t', 'undone'); ROLLBACK});
value($node, 'postgres', 'ALTER SYSTEM SET accord.dispatch = off');
$node->reload;
poll_until(sub { !workers($node, 'dispatcher') }, 'the dispatchers to end');
write_event($node, 'app', 'unread');
is(value($node, 'app', 'SELECT string_agg(DISTINCT slot::text, $$ $$) FROM accord.event_log'), '0 1 2 3 4',
    'the original has events in five slots');
my $contents = contents($node, 'app');
my $arrived = arrived();
is($arrived, 'dead one retrying three two', '... and has delivered what it could');

# ---- dumps

my $dump = $node->basedir . '/app.dump';
my $script = $node->basedir . '/app.sql';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, 'app' ], 'pg_dump, custom format');
$node->command_ok([ 'pg_dump', '-f', $script, 'app' ], 'pg_dump, plain');
unlike(PostgreSQL::Test::Utils::slurp_file($script), qr/very secret/, 'a secret is not in the dump');
# Nothing is moved by housekeeping while it is compared; the dispatchers of the first cluster are off already.
value($other, 'postgres', 'ALTER SYSTEM SET accord.dispatch = off');
$other->reload;
poll_until(sub { !workers($other, 'dispatcher') }, 'the dispatchers to end');
value($node, 'postgres', 'CREATE DATABASE restored');
value($node, 'postgres', 'CREATE DATABASE again');
value($other, 'postgres', 'CREATE DATABASE app');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'restored', $dump ], 'pg_restore into the same cluster');
restore_in_parallel();
$other->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', 'app', '-f', $script ], 'psql into another cluster');
is(contents($node, 'restored'), $contents,
    'restored in the same cluster: all rows, configuration and sequences are there');
is(contents($node, 'again'), $contents, '... also in parallel');
is(contents($other, 'app'), $contents, '... and in another cluster');
is(logged($other, 'app'), logged($node, 'app'), '... in the same commit order');
is(value($node, 'app', 'SELECT count(*) FROM accord.identity'), 1, 'the original knows itself');
is(value($node, 'restored', 'SELECT count(*) FROM accord.identity WHERE system_identifier = 0'), 1,
    'a restored database knows that it is one, whatever else was restored');
value($node, 'postgres', 'CREATE DATABASE template_copy TEMPLATE app');
is(contents($node, 'template_copy'), $contents, 'CREATE DATABASE ... TEMPLATE copies it');

# ---- adopted, one goes back to the last housekeeping of its original, and no further: attempts may be gone by then

value($node, 'again', 'UPDATE accord.channel SET enabled = false');
value($node, 'again', 'SELECT accord.adopt()');
my $checkpoint = value($node, 'app', 'SELECT position FROM accord.checkpoint');
cmp_ok($checkpoint, '>', 0, 'the original has kept house');
is(value($node, 'again', 'SELECT last_value FROM accord.position_0'), $checkpoint, '... where a copy goes back to');
is(value($node, 'again', 'SELECT position FROM accord.checkpoint'), $checkpoint, '... and keeps the log from');

# ---- copies are silent

my $main_start = -s $node->logfile;
value($node, 'postgres', 'ALTER SYSTEM RESET accord.dispatch');
$node->reload;
value($other, 'postgres', 'ALTER SYSTEM RESET accord.dispatch');
$other->reload;
for my $copy ([ $node, 'restored' ], [ $node, 'template_copy' ], [ $other, 'app' ])
{
    my ($at, $database) = @$copy;
    poll_until(sub { workers($at, 'dispatcher', $database) }, "a dispatcher of $database");
    write_event($at, $database, "from_$database");
    $at->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = '$database'
        AND backend_type LIKE 'pg_accord%' AND wait_event_type = 'Extension'") or die "the dispatcher does not wait\n";
    $at->wait_for_log(qr/database "$database" is a copy: nothing is dispatched/);
}
# The original has gone on meanwhile: that its events arrive shows that time enough has passed.
write_event($node, 'app', 'original');
$stub->wait_for_count(7);
$node->poll_query_until('app', q{SELECT count(*) = 1 FROM accord.outbox WHERE key = 'retrying'});
is(arrived(), 'dead one original retrying three two unread', 'the original goes on');
is(value($_->[0], $_->[1], q{SELECT string_agg(key, ' ' ORDER BY tx_id) FROM accord.outbox}),
    "retrying unread from_$_->[1]", "... the copy $_->[1] owes what it owed, and what was written since")
  for [ $node, 'restored' ], [ $node, 'template_copy' ], [ $other, 'app' ];

# ---- until they are adopted

value($node, 'app', 'UPDATE accord.channel SET enabled = false');
$stub->script([]);
$stub->reset;
value($other, 'app', 'SELECT accord.adopt()');
$stub->wait_for_count(2);
poll_until(sub { value($other, 'app', q{SELECT count(*) = 1 FROM accord.outbox WHERE key = 'retrying'
    AND NOT EXISTS (SELECT FROM accord.outbox WHERE key <> 'retrying')}) eq 't' }, 'the copy to deliver');
is(arrived(), 'from_app unread', 'an adopted copy goes on where the original stopped, and repeats nothing');
value($other, 'app', q{SELECT accord.redeliver('ota', state => 'retrying')});
value($other, 'app', q{SELECT accord.redeliver('ota')});
wait_for_delivery($other, 'app');
is(arrived(), 'dead from_app retrying unread', '... and knows what the original left behind');
my $high = value($node, 'app', 'SELECT last_value FROM accord.tx_seq');
is(value($other, 'app', 'SELECT count(*) - count(DISTINCT (tx_id, ord)) FROM accord.event_log'), 0, 'no number twice');
value($other, 'app',
    q{INSERT INTO accord.outbox (topic, key, payload, idempotency_key) VALUES ('t', 'three', '{}', 'once')});
is(value($other, 'app', q{SELECT count(*) FROM accord.event_log WHERE key = 'three'}), 1,
    'an idempotency key of the original is known');
value($other, 'app', q{INSERT INTO accord.outbox (topic, key) VALUES ('paid', 'bill')});
value($other, 'app', q{INSERT INTO accord.secret (name, value) VALUES ('token', 'given again')});
write_event($other, 'app', 'new');
$stub->wait_for_count(5);
ok((grep { $_->{path} eq '/new' } $stub->log), 'new events are delivered');

# A copy by files: another cluster with the same system identifier is a standby that was promoted, and goes on.
$node->stop;
$other->stop;
done_testing();
