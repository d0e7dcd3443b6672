# pg_upgrade keeps everything: history and the past, undo, seals, what is owed, consumers, policies and what they decided,
# claims, sealed secrets, keys; by copy and by link. The new cluster is a copy until it is adopted, also a database in which
# no dispatcher ever ran; then it goes on where the old one stopped. ACCORD_OLD_INSTALL names the installation to come from;
# without it (test/run's PG_OLD_MAJOR) the old cluster is of the same major as the new one.
use strict;
use warnings FATAL => 'all';

use Accord;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = <<"CONF";
shared_preload_libraries = 'pg_accord'
accord.allowed_networks = '127.0.0.0/8,::1/128'
accord.secret_key_file = '@{[ PostgreSQL::Test::Utils::tempdir() ]}/keys'
max_worker_processes = 20
CONF
my ($key_file) = $conf =~ /'(\S+keys)'/;
append_to_file($key_file, 'a' x 64 . "\n");
chmod 0600, $key_file or die "$key_file: $!";
my $stub = start_stub();

sub value { my ($at, $sql, $database) = @_; return $at->safe_psql($database || 'app', $sql); }
sub arrived { return join ' ', sort map { $_->{path} =~ m{([^/]+)$} } $stub->log; }

sub new_cluster
{
    my ($name, %option) = @_;
    my $node = PostgreSQL::Test::Cluster->new($name, %option);
    # 18 has checksums unless told otherwise; both must agree
    $node->init(extra => $node->pg_version >= 18 ? ['--no-data-checksums'] : []);
    $node->append_conf('postgresql.conf', $conf);
    return $node;
}

# What must be the same before and after, as one text.
sub contents
{
    my ($at) = @_;
    return value($at, <<'SQL');
SELECT seq, op, changes, actor, event_id FROM accord.history('room', 1);
SELECT * FROM accord.blame('room', 2);
SELECT id, price FROM accord.as_of(NULL::room, 'good') ORDER BY 1;
SELECT name, seq, comment FROM accord.marks;
SELECT seq, key, event_id, payload FROM accord.read(0, 1000);
SELECT seq, ord, channel, account, attempt, outcome, status FROM accord.attempt_log ORDER BY 1, 2, 3, 5;
SELECT channel, key, state, attempts FROM accord.backlog ORDER BY 1, 2;
SELECT key, channels FROM accord.outbox ORDER BY tx_id, ord;
SELECT * FROM accord.consumer_position((SELECT id FROM accord.consumer));
SELECT * FROM accord.policy;
SELECT * FROM accord.row_state ORDER BY 1, 2;
SELECT conflict_id, relation, key, column_name, rule, winner, loser FROM accord.conflict ORDER BY 1;
SELECT column_name, verdict, value, source FROM accord.explain('booking', 'b-7') ORDER BY 1, 2, 3;
SELECT id, accepted FROM claim ORDER BY 1;
SELECT * FROM accord.channel;
SELECT * FROM accord.route;
SELECT name, value FROM accord.secret;
SELECT * FROM accord.seal;
SELECT * FROM accord.inbox;
SELECT * FROM accord.idempotency_key;
SELECT count(*) FROM accord.verify();
SQL
}

# ---- the old cluster

my $old = new_cluster('old', $ENV{ACCORD_OLD_INSTALL} ? (install_path => $ENV{ACCORD_OLD_INSTALL}) : ());
$old->start;
value($old, 'CREATE DATABASE app', 'postgres');
value($old, 'CREATE DATABASE quiet', 'postgres');
value($old, <<"SQL");
CREATE EXTENSION pg_accord;
INSERT INTO accord.secret (name, value) VALUES ('token', 'very secret');
INSERT INTO accord.channel (name, base_url, auth, retry_base, retry_cap)
    VALUES ('ota', '@{[ $stub->url ]}', '{"type": "bearer", "secret": "token"}', '1 h', '2 h');
INSERT INTO accord.route (channel, topic, path) VALUES ('ota', 't', '/{key}');
INSERT INTO accord.consumer (name, topic) VALUES ('projection', 't');
CREATE TABLE room (id integer PRIMARY KEY, price numeric(8,2));
SELECT accord.capture('room');
CREATE TABLE booking (id text PRIMARY KEY, nights integer, price numeric(8,2));
INSERT INTO accord.source (name) VALUES ('pricing');
SELECT accord.set_policy('booking', 'price', 'priority', '{"order": ["application", "pricing"]}');
CREATE TABLE claim (id text PRIMARY KEY, room text, nights daterange, made integer, accepted boolean NOT NULL DEFAULT false);
SELECT accord.manage_claims('claim', '{room}', 'nights', ranking => '{made}');
SQL
$stub->script([ { match => { path_regex => '/retrying' }, do => { status => 503 } },
        { match => { path_regex => '/dead' }, do => { status => 400 } } ]);
value($old, "INSERT INTO accord.outbox (topic, key, payload, idempotency_key) VALUES ('t', '$_', '{}', 'key-$_')")
  for qw(one two retrying dead);
$stub->wait_for_count(4);
$old->poll_query_until('app', q{SELECT count(*) = 2 FROM accord.backlog WHERE state IN ('retrying', 'dead')});
$old->poll_query_until('app', 'SELECT count(*) = 1 FROM accord.outbox');
value($old, 'INSERT INTO room VALUES (1, 80), (2, 95)');
value($old, q{SELECT accord.mark('good', 'all is well')});
value($old, q{BEGIN; SET LOCAL accord.actor = 'bert'; UPDATE room SET price = price * 10; COMMIT});
value($old, q{SELECT accord.advance('projection', (SELECT max(seq) FROM accord.poll('projection', 2)))});
is(value($old, 'SELECT position FROM accord.consumer_status'),
    value($old, q{SELECT seq FROM accord.read(0, 1000) WHERE key = 'two'}),
    'a consumer has read two events');
value($old, q{INSERT INTO booking VALUES ('b-7', 2, 240)});
value($old, q{SELECT accord.receive('pricing', 'p-1', target => 'booking', key => 'b-7', op => 'update',
    changes => '{"price": 280}')});
value($old, q{INSERT INTO claim VALUES ('late', '7', '[2026-12-24,2026-12-27)', 2), ('early', '7', '[2026-12-26,2026-12-28)', 1)});
value($old, 'SELECT accord.seal()');
value($old, 'ALTER SYSTEM SET accord.dispatch = off', 'postgres');
$old->reload;
poll_until(sub { !workers($old, 'dispatcher') }, 'the dispatchers to end');
# No dispatcher ever sees this database, and none has read this event.
value($old, <<"SQL", 'quiet');
CREATE EXTENSION pg_accord;
INSERT INTO accord.channel (name, base_url) VALUES ('ota', '@{[ $stub->url ]}');
INSERT INTO accord.route (channel, topic, path) VALUES ('ota', 't', '/{key}');
INSERT INTO accord.outbox (topic, key) VALUES ('t', 'quiet');
SQL
value($old, q{INSERT INTO accord.outbox (topic, key) VALUES ('t', 'unread')});
my $contents = contents($old);
like($contents, qr/bert/, 'there is a history');
is(arrived(), 'dead one retrying two', 'the old cluster has delivered what it could');
value($old, 'ALTER SYSTEM RESET accord.dispatch', 'postgres');
$old->stop;

# ---- upgraded, by copy and by link

my $bindir = sub { my ($at) = @_; return $at->config_data('--bindir'); };
# By link last: the old cluster is not to be used after that. Within one major once is enough.
for my $mode ($ENV{ACCORD_OLD_INSTALL} ? 'copy' : (), 'link')
{
    my $new = new_cluster($mode);
    my $script_dir = PostgreSQL::Test::Utils::tempdir();
    {
        # it writes where it stands
        local %ENV = $new->_get_env();
        chdir $script_dir or die "$script_dir: $!";
        command_ok(
            [   'pg_upgrade', '--no-sync', $mode eq 'link' ? '--link' : (), '-d', $old->data_dir, '-D', $new->data_dir, '-b', $bindir->($old),
                '-B', $bindir->($new), '-s', $new->host, '-p', $old->port, '-P', $new->port
            ],
            "pg_upgrade by $mode from " . $old->pg_version . ' to ' . $new->pg_version);
    }
    $stub->reset;
    $stub->script([]);
    $new->start;
    is(contents($new), $contents, 'everything is there');

    # ---- silent
    for my $database ('app', 'quiet')
    {
        poll_until(sub { workers($new, 'dispatcher', $database) }, "a dispatcher of $database");
        $new->wait_for_log(qr/database "$database" is a copy: nothing is dispatched/);
        is(value($new, 'SELECT DISTINCT state, owed IS NULL FROM accord.status', $database), 'copy|t',
            "$database is known to be a copy");
        like(value($new, 'SELECT why_silent FROM accord.status', $database), qr/made in another cluster.*accord\.adopt/,
            '... which says why it is silent');
    }
    is(arrived(), '', 'nothing was sent');

    # ---- and goes on
    value($new, 'SELECT accord.adopt()', $_) for 'app', 'quiet';
    $stub->wait_for_count(2);
    is(arrived(), 'quiet unread', 'adopted, it goes on where the old one stopped');
    my ($unread) = grep { $_->{path} eq '/unread' } $stub->log;
    is($unread->{headers}{authorization}, 'Bearer very secret', '... with the sealed secret');
    value($new, q{SELECT accord.redeliver('ota', state => 'retrying')});
    value($new, q{SELECT accord.redeliver('ota')});
    value($new, q{INSERT INTO accord.outbox (topic, key) VALUES ('t', 'new')});
    value($new, q{INSERT INTO accord.outbox (topic, key, payload, idempotency_key) VALUES ('t', 'one', '{}', 'key-one')});
    wait_for_delivery($new, 'app');
    is(arrived(), 'dead new quiet retrying unread', '... knows what the old one left behind, and keys used there');
    is(value($new, 'SELECT string_agg(DISTINCT state, $$ $$) FROM accord.status'), 'idle', '... and owes nothing');
    is(value($new, q{SELECT string_agg(key, ' ' ORDER BY seq, ord) FROM accord.poll('projection', 100)}),
        'retrying dead unread new', 'the consumer goes on');
    is(value($new, q{SELECT table_name, row_key, action, status FROM accord.revert(actor => 'bert') ORDER BY 2}),
        "public.room|1|update|applied\npublic.room|2|update|applied", 'what was done before is undone');
    is(value($new, 'SELECT * FROM room ORDER BY 1'), "1|80.00\n2|95.00", '... as it was');
    like(value($new, q{SELECT accord.receive('pricing', 'p-1', target => 'booking', key => 'b-7', op => 'update',
        changes => '{"price": 280}')}), qr/"lost": \{"price"/, 'a message that was received before is known');
    value($new, q{SELECT accord.receive('pricing', 'p-2', target => 'booking', key => 'b-7', op => 'update',
        changes => '{"price": 290, "nights": 5}')});
    is(value($new, 'SELECT * FROM booking'), 'b-7|5|240.00', 'policies hold');
    value($new, q{DELETE FROM claim WHERE id = 'early'});
    is(value($new, 'SELECT id, accepted FROM claim'), 'late|t', 'claims are decided');
    value($new, 'SELECT accord.seal()');
    is(value($new, 'SELECT * FROM accord.verify()'), '', 'the log verifies, old and new');
    $new->stop;
}
done_testing();
