# What an operator sees and may do: each state of a delivery in the outbox, in the status, in the timeline and among the
# attempts; what each of the three roles can do and cannot, in sessions of its own; and that a secret is seen nowhere.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $secret = 'S3cr3t-hotel-token';
my $node = new_node('main', <<'CONF');
log_min_messages = debug1
log_min_error_statement = panic
log_statement = none
log_error_verbosity = verbose
CONF
send_everything($node);
my $stub = start_stub();

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# ---- one delivery in each state

insert_row($node, 'secret', name => 'hotel', value => $secret);
channel($node, $stub, 'ota', retry_base => '1 h', retry_cap => '2 h', timeout => '1 h', stall_timeout => '1 h');
channel($node, $stub, 'crm', retry_base => '10 ms', retry_cap => '20 ms');
channel($node, $stub, 'sms', idempotency_header => undef);
channel($node, $stub, 'off', enabled => 'false');
channel($node, $stub, 'pms', auth => '{"type": "bearer", "secret": "hotel"}', retry_base => '1 h', retry_cap => '2 h');
insert_row($node, 'account', channel => 'pms', name => $_) for 'ann', 'bob';
route($node, $_, topic => "$_.*", path => "/$_/{key}") for 'ota', 'crm', 'off', 'pms';
route($node, $_, topic => 'all.*', path => "/$_/{key}") for 'ota', 'crm';
route($node, 'sms', topic => 'sms.*', path => '/sms/{key}', mode => 'command');
$stub->script([
    { match => { path_regex => '^/ota/retrying' }, do => { status => 503, body => 'try later' } },
    { match => { path_regex => '^/ota/dead' }, do => { status => 400, body => 'no such room' } },
    { match => { path_regex => '^/ota/hangs' }, do => { gate => 'shut' } },
    { match => { path_regex => '^/crm/life', times => 1 }, do => { status => 503, body => 'sorry' } },
    { match => { path_regex => '^/pms/refused' }, do => { status => 401, body => 'who are you' } },
    { match => { path_regex => '^/sms/held' }, do => { close_before_response => 1 } } ]);
$stub->close_gate('shut');
my ($life) = split /\n/, value(<<'SQL');
BEGIN;
SET LOCAL accord.actor = 'alice';
SET LOCAL accord.reason = 'a guest called';
SET LOCAL accord.correlation_id = 'c-7';
INSERT INTO accord.outbox (topic, key, op, payload) VALUES ('all.one', 'life', 'update', '{"a": 1}') RETURNING event_id;
COMMIT;
SQL
my %id;
@id{qw(retrying dead hangs later held off ann refused nobody)} = events(
    $node,
    { topic => 'ota.a', key => 'retrying', payload => '{"r": 1}', headers => '{"X-One": "1"}' },
    { topic => 'ota.a', key => 'dead', payload => '{"d": 1}' },
    { topic => 'ota.a', key => 'hangs' },
    { topic => 'ota.a', key => 'later', deliver_at => \q{now() + interval '1 day'} },
    { topic => 'sms.a', key => 'held' },
    { topic => 'off.a', key => 'off' },
    { topic => 'pms.a', key => 'ann', account => 'ann' },
    { topic => 'pms.a', key => 'refused', account => 'bob' },
    { topic => 'nobody', key => 'nobody' });
wait_for_rows(
    $node, q{SELECT key, state FROM accord.backlog ORDER BY 1},
    'dead|dead', 'hangs|sending', 'held|held', 'later|scheduled', 'refused|retrying', 'retrying|retrying');
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt_log WHERE outcome = 'delivered'}, 3);

# ---- the outbox, and what is owed

is(value('SELECT key FROM accord.outbox ORDER BY tx_id, ord'), join("\n", qw(retrying hangs later held off refused)),
    'the outbox shows the events that are owed, whatever their state, and no other');
is( value(q{SELECT topic, key, op, payload, headers, account, channels, deliver_at FROM accord.outbox
        WHERE key = 'retrying'}),
    'ota.a|retrying|event|{"r": 1}|{"X-One": "1"}|||', '... as they were written');
is(value(q{SELECT event_id FROM accord.outbox WHERE key = 'held'}), $id{held}, '... under their id');
is( value(q{SELECT e.key, o.channel, o.state, o.attempts, o.error FROM accord.owed() o JOIN accord.event_log e
        ON e.slot = o.event_slot AND e.tx_id = o.tx_id AND e.ord = o.ord ORDER BY o.seq}),
    join("\n",
        'retrying|ota|retrying|1|HTTP status 503',
        'hangs|ota|sending|1|', 'later|ota|scheduled|0|',
        'held|sms|held|1|' . value(q{SELECT error FROM accord.backlog WHERE key = 'held'}),
        'off|off|queued|0|', 'refused|pms|retrying|1|HTTP status 401'),
    'owed() tells the state of each');

# ---- the status of each endpoint

wait_for_rows(
    $node,
    q{SELECT channel, account, CASE WHEN channel = 'ota' THEN 'failing' ELSE state END, owed, queued, scheduled, sending,
        retrying, held, dead, in_flight, delivered_5m > 0, failed_5m > 0,
        CASE WHEN channel = 'ota' THEN '' ELSE last_outcome END, CASE WHEN channel = 'ota' THEN '' ELSE last_error END
        FROM accord.status ORDER BY channel, account},
    'crm||idle|0|0|0|0|0|0|0|0|t|t|delivered|HTTP status 503',
    'off||paused|1|1|0|0|0|0|0|0|f|f||',
    'ota||failing|3|0|1|1|1|0|1|1|t|t||',
    'pms|ann|idle|0|0|0|0|0|0|0|0|t|f|delivered|',
    'pms|bob|failing|1|0|0|0|1|0|0|0|f|t|unauthorized|HTTP status 401',
    'pms||idle|0|0|0|0|0|0|0|0|f|f||',
    'sms||failing|1|0|0|0|0|1|0|0|f|t|' . value(q{SELECT outcome || '|' || error FROM accord.attempt
            WHERE channel = 'sms'}));
pass('status counts them per endpoint');
is(value(q{SELECT bool_and(p50_ms > 0 AND p99_ms >= p50_ms AND last_delivered_at <= last_attempt_at) FROM accord.status
    WHERE delivered_5m > 0}), 't', '... with the time requests took');
is( value(q{SELECT s.oldest_owed = c.committed_at FROM accord.status s, accord.event_log e JOIN accord.commit_log c
        USING (tx_id) WHERE s.channel = 'ota' AND s.account IS NULL AND e.key = 'retrying'}),
    't', '... and since when the oldest is owed');

# ---- the life of one event

is( value(qq{SELECT channel, step, attempt, status, detail FROM accord.timeline WHERE event_id = '$life'
        ORDER BY channel NULLS FIRST, at, step, status}),
    join("\n",
        '|recorded|||actor alice, reason a guest called, correlation c-7',
        '|committed|||seq ' . value(qq{SELECT seq FROM accord.commit_log WHERE actor = 'alice'}),
        'crm|retry|1|503|HTTP status 503 | sorry',
        'crm|retrying|1||due '
          . value(q{SELECT due_at FROM accord.backlog_log WHERE channel = 'crm' AND state = 'retrying'}),
        'crm|delivered|2|200|',
        'crm|delivered|2||',
        'ota|delivered|1|200|'),
    'the timeline tells the life of one event across its channels');
is(value(qq{SELECT bool_and(at >= before) FROM (SELECT at, lag(at) OVER () AS before FROM accord.timeline
    WHERE event_id = '$life') t WHERE before IS NOT NULL}), 't', '... in the order of time, unasked');
is( value(q{SELECT event_id, topic, key, channel, attempt, outcome, status, sent, error, response FROM accord.attempt
        WHERE key = 'dead'}),
    "$id{dead}|ota.a|dead|ota|1|rejected|400|yes|HTTP status 400|no such room", 'an attempt tells what came back');
is( value(q{SELECT event_id, channel, account, key, attempts, error, payload FROM accord.dead_letter ORDER BY key}),
    "$id{dead}|ota||dead|1|HTTP status 400|{\"d\": 1}",
    'the dead letters say what was given up and why');
is(value(q{SELECT string_agg(step, ' ' ORDER BY at, step) FROM accord.timeline WHERE key = 'nobody'}),
    'recorded committed', 'of an event that nobody takes there is the beginning only');

# ---- the roles

value($_)
  for 'CREATE ROLE app LOGIN', 'CREATE ROLE support LOGIN', 'CREATE ROLE ops LOGIN', 'CREATE ROLE stranger LOGIN',
  q{SELECT accord.grant_writer('app')}, q{SELECT accord.grant_auditor('support')}, q{SELECT accord.grant_admin('ops')};

# Runs a statement as a role; returns its output, or the SQLSTATE.
sub as
{
    my ($role, $sql) = @_;
    my ($status, $out, $error) =
      $node->psql('postgres', $sql, extra_params => [ '-U', $role, '-v', 'VERBOSITY=sqlstate' ]);
    return $out if $status == 0;
    my ($sqlstate) = $error =~ /(?:ERROR|FATAL):\s+(\w{5})/;
    return $sqlstate || $error;
}

my $write = q{INSERT INTO accord.outbox (topic, key) VALUES ('nobody', 'role') RETURNING 'written'};
my @reads = map { "SELECT count(*) >= 0 FROM accord.$_" }
  qw(event_log commit_log attempt_log backlog_log cursor_log backlog dead_letter attempt timeline status channel account
  route identity idempotency_key), 'read(0)';
push @reads, 'SELECT accord.safe_seq() >= 0', 'SELECT count(name) >= 0 FROM accord.secret';
my @configures = (
    q{INSERT INTO accord.channel (name, base_url) VALUES ('new', 'http://127.0.0.1:9')},
    q{UPDATE accord.channel SET description = 'x' WHERE name = 'new'},
    q{INSERT INTO accord.account (channel, name) VALUES ('new', 'acc')},
    q{UPDATE accord.account SET enabled = false WHERE name = 'acc'},
    q{INSERT INTO accord.route (channel, topic) VALUES ('new', 'new.*')},
    q{UPDATE accord.route SET enabled = false WHERE channel = 'new'},
    q{INSERT INTO accord.secret (name, value) VALUES ('new', 'S3cr3t-new')},
    q{UPDATE accord.secret SET value = 'S3cr3t-newer' WHERE name = 'new'},
    q{DELETE FROM accord.secret WHERE name = 'new'},
    q{DELETE FROM accord.route WHERE channel = 'new'},
    q{DELETE FROM accord.account WHERE channel = 'new'},
    q{DELETE FROM accord.channel WHERE name = 'new'});
my @decides = (
    q{SELECT accord.redeliver('ota', key => 'nothing') = 0},
    q{SELECT accord.discard('ota', key => 'nothing') = 0},
    "SELECT accord.redeliver('$life'::uuid, 'nothing') = 0",
    "SELECT accord.discard('$life'::uuid, 'nothing') = 0");

# What nobody may but the owner.
my @never = (
    'SELECT value FROM accord.secret',
    q{SELECT count(*) FROM accord.secret WHERE value LIKE 'S%'},
    q{UPDATE accord.secret SET updated_at = now() RETURNING value},
    q{INSERT INTO accord.secret (name, value) VALUES ('own', 'S3cr3t-own') RETURNING value},
    'COPY accord.secret TO stdout',
    q{SELECT s FROM accord.secret s},
    'DELETE FROM accord.event_log',
    'UPDATE accord.commit_log SET actor = null',
    'TRUNCATE accord.attempt_log',
    q{INSERT INTO accord.event_log (topic) VALUES ('t')},
    'INSERT INTO accord.commit_log (seq) VALUES (1)',
    q{INSERT INTO accord.cursor_log (channel) VALUES ('ota')},
    'DELETE FROM accord.idempotency_key',
    'INSERT INTO accord.identity (system_identifier, database) VALUES (0, 0)',
    q{SELECT setval('accord.position_0', 0)},
    q{SELECT nextval('accord.tx_seq')},
    'SELECT accord.turn_rings(true)',
    q{SELECT accord.grant_admin('stranger')},
    q{SELECT accord.control_append('accord.redeliver', '{}')},
    q{SELECT accord.decide('accord.redeliver', ARRAY['[]'::jsonb], 'x')},
    'CREATE TABLE accord.mine (id integer)',
    'DROP EXTENSION pg_accord');

sub may
{
    my ($role, $what, @statements) = @_;
    my @refused = map { my $got = as($role, $_); $got =~ /^\w{5}$/ && $got =~ /\d/ ? "$_: $got" : () } @statements;
    return is(join("\n", @refused), '', "$role may $what");
}

sub may_not
{
    my ($role, $what, @statements) = @_;
    my @others = map { my $got = as($role, $_); $got eq '42501' ? () : "$_: $got" } @statements;
    return is(join("\n", @others), '', "$role may not $what");
}

is(as('app', $write), 'written', 'app may write events');
is(as('app', 'SELECT count(*) FROM accord.outbox'), 6, '... and see those that are owed');
is(as('app', 'SELECT count(*) FROM accord.owed()'), 6, '... to whom');
is(as('app', q{SELECT accord.expand('/{a}', '{"a": 1}')}), '/1', '... and try a template');
is( value(q{SELECT DISTINCT role::regrole FROM accord.event_log JOIN accord.commit_log USING (tx_id)
        WHERE key = 'role'}),
    'app', '... under its name');
is(as('app', q{UPDATE accord.outbox SET key = 'x'}), '42501', '... not change them');
is(as('app', q{DELETE FROM accord.outbox}), '42501', '... nor delete them');
may_not('app', 'read the logs', @reads);
may_not('app', 'configure', @configures);
may_not('app', 'decide', @decides, 'SELECT accord.adopt()', 'SELECT accord.launch()');
may_not('app', 'do what is the owner\'s', @never);

may('support', 'read everything', @reads, 'SELECT count(*) FROM accord.outbox', 'SELECT count(*) FROM accord.owed()');
may_not('support', 'write', $write);
may_not('support', 'configure', @configures);
may_not('support', 'decide', @decides, 'SELECT accord.adopt()', 'SELECT accord.launch()');
may_not('support', 'do what is the owner\'s', @never);

is(as('ops', $write), 'written', 'ops may write events');
may('ops', 'read everything', @reads, 'SELECT count(*) FROM accord.outbox', 'SELECT count(*) FROM accord.owed()');
may('ops', 'configure', @configures);
may('ops', 'decide', @decides, 'SELECT accord.adopt()', 'SELECT accord.launch()');
may_not('ops', 'do what is the owner\'s', @never);
is(as('ops', q{UPDATE accord.route SET owner = 'support' WHERE channel = 'sms' RETURNING owner}), 'ops',
    'ops may name nobody else as the owner of a route');

my @everything = ($write, @reads, @configures, @decides, @never, 'SELECT accord.adopt()', 'SELECT accord.launch()',
    'SELECT count(*) FROM accord.outbox', 'SELECT count(*) FROM accord.owed()', q{SELECT accord.expand('', '{}')});
may_not('stranger', 'do anything', @everything);

# What ops decides happens, and says who and why.
is(as('ops', q{SELECT accord.discard('sms', state => 'held', reason => 'the guest was called')}),
    1, 'ops gives one up');
wait_for_rows($node, q{SELECT step, detail FROM accord.timeline WHERE key = 'held' AND step = 'discarded'
    AND detail LIKE 'decided%'}, value(q{SELECT 'discarded|decided by seq ' || max(c.seq) FROM accord.commit_log c
    JOIN accord.event_log e USING (tx_id) WHERE e.topic = 'accord.discard'}));
is(value(q{SELECT role::regrole || ' ' || (e.payload ->> 'reason') FROM accord.commit_log c JOIN accord.event_log e
    USING (tx_id) WHERE e.topic = 'accord.discard'}), 'ops the guest was called', '... which is on record');

# ---- secrets

# Everything that can go wrong with one in hand: refused, unreachable, unsuitable, frozen, redelivered.
value(<<'SQL');
CREATE FUNCTION frozen(e accord.event_log) RETURNS accord.http_request
    LANGUAGE sql STABLE SET search_path = pg_catalog AS
    $$SELECT ROW(NULL, NULL, '{"X-Frozen": "yes"}', 'frozen')::accord.http_request$$;
INSERT INTO accord.route (channel, topic, mode, body_function, position)
    VALUES ('pms', 'pms.frozen', 'command', 'frozen', 1);
SQL
$stub->script([ { match => { body_regex => 'frozen' }, do => { status => 503 } } ]);
events($node, { topic => 'pms.frozen', key => 'frozen', account => 'ann' });
wait_for_rows($node, q{SELECT count(*) FROM accord.backlog_log WHERE key = 'frozen' AND request IS NOT NULL}, 1);
wait_for_rows($node, q{SELECT state FROM accord.backlog WHERE key = 'frozen'}, 'retrying');
is(($stub->log)[-1]{headers}{authorization}, "Bearer $secret", 'the secret does reach the channel');
$stub->stop;
events($node, { topic => 'pms.a', key => 'unreachable', account => 'ann' });
wait_for_rows($node, q{SELECT DISTINCT outcome FROM accord.attempt WHERE key = 'unreachable'}, 'unreachable');
for my $bad ("$secret\nX-Injected: 1", "$secret\r", "$secret\x01")
{
    my (undef, undef, $error) = $node->psql('postgres', insert_sql('secret', name => 'bad', value => $bad));
    like($error, qr/ERROR/, 'a secret that is no header value is refused');
    unlike($error, qr/S3cr3t/, '... without showing it');
    (undef, undef, $error) =
      $node->psql('postgres', "UPDATE accord.secret SET value = E'S3cr3t\\n' WHERE name = 'hotel'");
    unlike($error, qr/S3cr3t/, '... nor by UPDATE');
}
insert_row($node, 'channel', name => 'typo', base_url => 'http://127.0.0.1:9',
    auth => '{"type": "bearer", "secret": "nix"}');
route($node, 'typo', topic => 'typo');
events($node, { topic => 'typo', key => 'typo' });
wait_for_rows($node, q{SELECT DISTINCT outcome, error FROM accord.attempt WHERE key = 'typo'},
    'retry|secret "nix" is not stored');

my @tables = split /\n/, value(q{SELECT oid::regclass FROM pg_class WHERE relnamespace = 'accord'::regnamespace
    AND relkind IN ('r', 'v') AND relname <> 'secret'});
my %found = map { split /\|/ } split /\n/, value(join ' UNION ALL ',
    map { "SELECT '$_', count(*) FROM $_ t WHERE t::text LIKE '%S3cr3t%'" } @tables);
is($found{$_}, 0, "no secret is in $_") for @tables;
is(value(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_accord%' AND query LIKE '%S3cr3t%'}), 0,
    '... nor in pg_stat_activity');
for my $options ([], ['--inserts'], ['--data-only'])
{
    my ($dump) = PostgreSQL::Test::Utils::run_command([ 'pg_dump', @$options, '-d', $node->connstr('postgres') ]);
    like($dump, qr/all\.one/, "pg_dump @$options has the events");
    unlike($dump, qr/S3cr3t/, '... and no secret');
}
$node->stop;
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
like($log, qr/became a dead letter/, 'the server log tells of dead letters');
unlike($log, qr/S3cr3t/, '... and no secret');

done_testing();
