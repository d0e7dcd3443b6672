# Transactions that are committed in two phases: their events get their place when COMMIT PREPARED runs, in whatever
# session, survive a restart and a crash in between, and vanish on ROLLBACK PREPARED. One that was committed without
# getting its place, as its session or its server ended at that moment, gets it as soon as a dispatcher can see to it. The
# extension can be made and dropped in such a transaction, too.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main', "max_prepared_transactions = 20\nrestart_after_crash = on\naccord.restart_interval = '100ms'\n");
send_everything($node);
my $stub = start_stub();
channel($node, $stub, 'ota');
route($node, 'ota', path => '/{key}', coalesce => undef);

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# The keys committed since the last call, in order, as transactions: "a b, c".
my $cursor = 0;

sub news
{
    my $keys = value("SELECT string_agg(keys, ', ' ORDER BY seq) FROM (SELECT seq,
        string_agg(key, ' ' ORDER BY ord) AS keys FROM accord.read($cursor, 100000) GROUP BY seq) t");
    $cursor = value('SELECT last_value FROM accord.commit_seq');
    return $keys;
}

sub prepare
{
    my ($gid, @keys) = @_;
    value(join '', 'BEGIN; ', map({ "INSERT INTO accord.outbox (topic, key) VALUES ('t', '$_'); " } @keys),
        "PREPARE TRANSACTION '$gid'");
    return;
}

sub arrived { return join ' ', map { substr $_->{path}, 1 } $stub->log; }
sub sound { return is(value('SELECT count(*) FROM accord.verify()'), 0, $_[0]); }

# ---- the place is that of COMMIT PREPARED

value('CREATE TABLE stock (id integer PRIMARY KEY, n integer); INSERT INTO stock VALUES (1, 0)');
value(q{SELECT accord.capture('stock', topic => 't')});
news();
value(q{SET accord.actor = 'ada'; SET accord.reason = 'both sides'; BEGIN;
    INSERT INTO accord.outbox (topic, key) VALUES ('t', 'a'); SAVEPOINT s;
    INSERT INTO accord.outbox (topic, key) VALUES ('t', 'undone'); ROLLBACK TO s;
    INSERT INTO accord.outbox (topic, key) VALUES ('t', 'b');
    PREPARE TRANSACTION 'one'});
value(q{INSERT INTO accord.outbox (topic, key) VALUES ('t', 'meanwhile')});
is(news(), 'meanwhile', 'what is prepared holds nobody up');
is(value('SELECT count(*) FROM accord.prepared'), 0, '... and nobody sees it');
$stub->wait_for_count(1);
is(arrived(), 'meanwhile', '... nor is it sent');
value(q{COMMIT PREPARED 'one'});
is(news(), 'a b', 'COMMIT PREPARED, in another session, gives it its place');
$stub->wait_for_count(3);
is(arrived(), 'meanwhile a b', '... and it is delivered');
is(value(q{SELECT actor || ', ' || reason || ', ' || events FROM accord.commit_log ORDER BY seq DESC LIMIT 1}),
    'ada, both sides, 2', 'who prepared it, and why, is known');
is(value('SELECT count(*) FROM accord.prepared'), 0, 'nothing is left of it');
sound('its digest is right');

prepare('undone', 'never');
value(q{ROLLBACK PREPARED 'undone'});
is(news(), '', 'ROLLBACK PREPARED: its events vanish');
value(q{BEGIN; SAVEPOINT s; INSERT INTO accord.outbox (topic, key) VALUES ('t', 'never'); ROLLBACK TO s;
    PREPARE TRANSACTION 'empty'; COMMIT PREPARED 'empty'});
is(news(), '', 'one whose events were all rolled back has no place');

# Whoever waited for its locks comes after it.
value(q{BEGIN; UPDATE stock SET n = n + 1; PREPARE TRANSACTION 'first'});
my $second = open_session($node);
$second->send('UPDATE stock SET n = n + 1');
poll_until(sub { value(q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'UPDATE stock%'}) },
    'the second to wait');
value(q{COMMIT PREPARED 'first'});
$second->wait_for_end;
$second->close;
is(value(q{SELECT string_agg(payload ->> 'n', ' ' ORDER BY seq) FROM accord.read(0, 100000) WHERE op = 'update'}), '1 2',
    'who waited for a prepared transaction has a later place');
news();

# A name may be used again, and is refused while it is in use.
prepare('name', 'x');
my (undef, undef, $error) = $node->psql('postgres', q{BEGIN; INSERT INTO accord.outbox (topic, key) VALUES ('t', 'y');
    PREPARE TRANSACTION 'name'}, on_error_stop => 0);
like($error, qr/already in use/, 'a name that is in use is refused');
value(q{COMMIT PREPARED 'name'});
prepare('name', 'z');
value(q{COMMIT PREPARED 'name'});
is(news(), 'x, z', 'and may be used again');

# ---- restart, and crash

prepare('restarted', 'r1', 'r2');
prepare('rolled back', 'never');
$node->restart;
prepare('crashed', 'c1');
crash_server($node);
is(value(q{SELECT string_agg(gid, ', ' ORDER BY gid) FROM pg_prepared_xacts}), 'crashed, restarted, rolled back',
    'prepared transactions survive a restart and a crash');
value(q{INSERT INTO accord.outbox (topic, key) VALUES ('t', 'between')});
value(q{COMMIT PREPARED 'crashed'});
value(q{COMMIT PREPARED 'restarted'});
value(q{ROLLBACK PREPARED 'rolled back'});
is(news(), 'between, c1, r1 r2', '... and get their places when they are committed');
wait_for_delivery($node);
sound('their digests are right');

# ---- committed, and then the session or the server ends before the place is written

# Until this is closed nobody can append to commit_log.
sub close_log
{
    my $session = open_session($node);
    $session->run('BEGIN; LOCK TABLE ' . join ', ', map { "accord.commit_log_$_" } 0 .. 7);
    return $session;
}

sub commit_halfway
{
    my ($gid) = @_;
    my $session = open_session($node);
    $session->send("COMMIT PREPARED '$gid'");
    poll_until(sub { value("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $session->{pid}") }, "$gid to wait");
    is(value('SELECT count(*) FROM accord.prepared'), 1, "$gid: committed, and has no place yet");
    return $session;
}

prepare('cut off', 'p1', 'p2');
my $closed = close_log();
my $halfway = commit_halfway('cut off');
is(news(), '', 'nobody reads its events');
value("SELECT pg_terminate_backend($halfway->{pid})");
$closed->close;
poll_until(sub { value('SELECT count(*) FROM accord.prepared') eq '0' }, 'a dispatcher to place it');
is(news(), 'p1 p2', 'a session that ends halfway: its events get their place all the same');
wait_for_delivery($node);
like(arrived(), qr/p1.*p2/, '... and are delivered');

prepare('power', 'q1');
$closed = close_log();
$halfway = commit_halfway('power');
crash_server($node);
poll_until(sub { value('SELECT count(*) FROM accord.prepared') eq '0' }, 'a dispatcher to place it');
is(news(), 'q1', 'a server that crashes halfway: the same');
wait_for_delivery($node);
like(arrived(), qr/q1/, '... and delivered');
sound('all digests are right');
is(value('SELECT accord.safe_seq() = last_value FROM accord.commit_seq'), 't', 'no floor is left standing');

# ---- the extension itself, made and dropped so

$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', q{BEGIN; CREATE EXTENSION pg_accord; PREPARE TRANSACTION 'made'});
is(scalar(workers($node, 'dispatcher', 'other')), 0, 'an extension made by a prepared transaction is not there yet');
$node->safe_psql('other', q{COMMIT PREPARED 'made'});
poll_until(sub { workers($node, 'dispatcher', 'other') }, 'a dispatcher of what was made');
pass('COMMIT PREPARED: it has its dispatcher');
$node->safe_psql('other', q{BEGIN; DROP EXTENSION pg_accord; PREPARE TRANSACTION 'dropped'});
$node->restart;
$node->safe_psql('other', q{COMMIT PREPARED 'dropped'});
$node->safe_psql('other', q{SET client_min_messages = error; CREATE EXTENSION pg_accord});
poll_until(sub { workers($node, 'dispatcher', 'other') }, 'a dispatcher of what was made again');
$node->safe_psql('other', q{BEGIN; DROP EXTENSION pg_accord; PREPARE TRANSACTION 'dropped'});
$node->safe_psql('other', q{COMMIT PREPARED 'dropped'});
poll_until(sub { !workers($node, 'dispatcher', 'other') }, 'the dispatcher of what was dropped to go');
pass('dropped so, it has none any more');

$node->stop;
done_testing();
