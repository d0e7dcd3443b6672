# Everything at once: writers that never stop, channels of every kind, and an operator who never stops either: number,
# memory and requests in flight of the dispatchers change, dispatchers are asked to end or killed, channels and
# accounts are disabled and enabled, rings turned, deliveries redelivered and discarded, and the channels refuse, stall,
# hang up and ask for patience. When all that is over, what was committed is compared with what arrived:
#   - each event arrived at each channel that it was owed to, or was closed there with a reason, and nothing else did,
#   - each key's events arrived in commit order, and none was repeated after a later one of its key,
#   - no command arrived twice at a channel without an idempotency key,
#   - each delivery is in attempt_log as delivered once, nothing is owed any more, and nothing crashed.
#
# SEED=n repeats the decisions of a run (not its timing); ROUNDS=n makes it longer.
use strict;
use warnings FATAL => 'all';

use Accord;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;
use Time::HiRes qw(time);
use Writers;

my $seed = $ENV{SEED} || int rand 1_000_000;
my $rounds = $ENV{ROUNDS} || 110;
srand $seed;
note("SEED=$seed");

my $node = new_node('main', <<'CONF');
restart_after_crash = on
accord.restart_interval = '100ms'
deadlock_timeout = '100ms'
log_statement = none
CONF
send_everything($node);
my $log = $node->basedir . '/requests';
my $stub = start_stub('--log', $log);
my @hurry = (retry_base => '20 ms', retry_cap => '200 ms', max_attempts => 1000);

# even: nothing ever goes wrong there.   moody: fails in every way that is tried again.   loose: has no order.
# paused: is disabled and enabled.       customers: has accounts.   grumpy: refuses for good, and people redeliver.
# once: executes commands, without a key.
channel($node, $stub, $_, @hurry) for qw(even loose paused customers grumpy);
channel($node, $stub, 'moody', @hurry, timeout => '2 s');
channel($node, $stub, 'once', @hurry, idempotency_header => undef);
$node->safe_psql('postgres', q{UPDATE accord.channel SET ordering = 'none' WHERE name = 'loose'});
insert_row($node, 'account', channel => 'customers', name => "a$_") for 0 .. 2;
route($node, $_, path => "/$_/{key}", topic => 'w') for qw(even moody loose paused grumpy);
route($node, 'customers', path => '/customers/{account}/{key}', topic => 'w');
route($node, 'once', path => '/once/{key}', topic => 'w', mode => 'command');
prepare_writers($node, 60);

# Keys belong to four accounts, of which customers has three; one event in fifty is large.
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION account_of(key text) RETURNS text LANGUAGE sql AS $$ SELECT 'a' || substr(key, 2)::integer % 4 $$;
CREATE FUNCTION filler() RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(md5(random()::text), '')
    FROM generate_series(1, CASE WHEN random() < 0.02 THEN 1000 ELSE 3 END) $$;
CREATE OR REPLACE FUNCTION write(of_key text) RETURNS void LANGUAGE sql AS $$
    WITH number AS (UPDATE counter SET n = n + 1 WHERE key = of_key RETURNING n),
    event AS (INSERT INTO accord.outbox (topic, key, account, payload)
              SELECT 'w', of_key, account_of(of_key), jsonb_build_object('key', of_key, 'n', n, 'filler', filler())
              FROM number
              RETURNING tx_id, ord, event_id, key, payload)
    INSERT INTO truth SELECT tx_id, ord, event_id, key, (payload ->> 'n')::integer FROM event $$;
SQL

# ---- what may happen

# Says it until the server has heard it: it may be on its way back from a crash.
sub insist
{
    my ($sql) = @_;
    my $answer;
    poll_until(
        sub {
            my ($status, $out, $err) = $node->psql('postgres', $sql, on_error_die => 0);
            die "$sql: $err\n" if $status && $err =~ /^psql:[^\n]* ERROR:/m;
            $answer = $out;
            return $status == 0;
        },
        "the server to take: $sql");
    return $answer;
}

sub one_of { return $_[ int rand @_ ]; }

sub setting
{
    my ($name, $value) = @_;
    insist("ALTER SYSTEM SET $name = '$value'");
    insist('SELECT pg_reload_conf()');
    return "$name = $value";
}

# A random dispatcher is sent a signal.
sub signal_dispatcher
{
    my ($signal) = @_;
    my @pids = split /\n/,
      insist(q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'pg_accord%dispatcher%' ORDER BY pid});
    return 'no dispatcher to end' if !@pids;
    kill $signal, one_of(@pids);
    return "SIG$signal to a dispatcher";
}

# What the channels do wrong from now on, so and so often.
sub mood
{
    my ($path, $times, $do, $body) = @_;
    return { match => { path_regex => "^/$path", times => $times, body_regex => $body || '' }, do => $do };
}

sub change_moods
{
    my @moods = (
        mood('moody', 1 + int rand 20, { status => one_of(408, 409, 500, 503) }, '"n": \d*[37],'),
        mood('moody', 1 + int rand 5, { delay_ms => 1100 + int rand 500 }),
        mood('moody', 1 + int rand 3, { hang => JSON::PP::true }),
        mood('moody', 1 + int rand 5, one_of({ close_before_response => 1 }, { reset => 1 }, { garbage => 1 })),
        mood('customers/a1', 1 + int rand 5, { status => 429, headers => { 'Retry-After' => '1' } }),
        mood('grumpy', 1 + int rand 20, { status => one_of(400, 404, 422) }, '"n": \d*[159],'),
        mood('once', 1 + int rand 2, one_of({ status => 500 }, { close_before_response => 1 })),
        mood('once', 1 + int rand 5, { delay_ms => 1100 }));
    $stub->script([ grep { rand() < 0.7 } @moods ]);
    return 'other moods';
}

sub set_enabled
{
    my ($enabled) = @_;
    insist("UPDATE accord.channel SET enabled = $enabled WHERE name = 'paused'");
    insist("UPDATE accord.account SET enabled = $enabled WHERE name = 'a0'") if rand() < 0.5;
    return "enabled = $enabled";
}

# Dead letters, a key that waits, what was delivered, and nothing at all.
sub decide
{
    my $key = "'k" . int(rand 60) . "'";
    return insist(one_of(
            q{SELECT 'redeliver ' || accord.redeliver('grumpy')},
            q{SELECT 'redeliver ' || accord.redeliver('grumpy', since => now() - interval '2 s')},
            "SELECT 'discard ' || accord.discard('grumpy', key => $key)",
            "SELECT 'discard ' || accord.discard('moody', state => 'dead')",
            "SELECT 'redeliver ' || accord.redeliver('even', state => 'dead', key => $key)",
            "SELECT 'redeliver delivered ' || coalesce(sum(accord.redeliver(t.event_id, 'grumpy')), 0) FROM
                 (SELECT e.event_id FROM accord.attempt_log a JOIN accord.commit_log c USING (seq)
                  JOIN accord.event_log e ON e.slot = c.slot AND e.tx_id = c.tx_id AND e.ord = a.ord
                  WHERE a.channel = 'grumpy' AND a.outcome = 'delivered' AND e.key = $key LIMIT 5) t"));
}

sub give_up_held { return insist(q{SELECT 'discard held ' || accord.discard('once', state => 'held')}); }

my @chaos = (
    [ 3, sub { return setting('accord.dispatchers', 1 + int rand 4) } ],
    [ 3, sub { return signal_dispatcher('TERM') } ],
    [ 1, sub { return signal_dispatcher('KILL') } ],
    [ 4, sub { return set_enabled(one_of('true', 'false')) } ],
    [ 2, sub { insist('SELECT accord.turn_rings(true)'); return 'turn_rings' } ],
    [ 2, sub { return setting('accord.dispatch_memory', one_of('1MB', '64MB')) } ],
    [ 1, sub { return setting('accord.max_in_flight', one_of(4, 1000)) } ],
    [ 1, sub { return setting('accord.settle_delay', one_of(0, 5, 100)) } ],
    [ 3,
        sub {
            my ($name, $n) = (one_of(qw(even moody loose paused customers grumpy once)), one_of(1, 2, 8, 16));
            insist("UPDATE accord.channel SET max_in_flight = $n WHERE name = '$name'");
            return "max_in_flight of $name = $n";
        } ],
    [ 1,
        sub {
            return insist("SELECT 'cut off writers ' || count(pg_terminate_backend(pid)) FROM (SELECT pid FROM
                           pg_stat_activity WHERE application_name = 'writer' ORDER BY random() LIMIT 2) w");
        } ],
    [ 4, \&decide ],
    [ 2, \&give_up_held ],
    [ 4, \&change_moods ]);
my @choices = map { ($_->[1]) x $_->[0] } @chaos;

my $begin = time;
my $writers = start_writers($node, seed => $seed, clients => 2, keys => 60, async => 30);
change_moods();
for my $round (1 .. $rounds)
{
    $stub->wait_for_count($stub->count + int rand 600);
    note("round $round: " . one_of(@choices)->());
}
my $counters = $writers->finish;
note(sprintf 'chaos for %.0f s; %s', time - $begin, join ', ', map { "$_: $counters->{$_}" } sort keys %$counters);

# ---- everybody is well again, and all of it is delivered, but for commands whose outcome nobody knows

$stub->script([]);
set_enabled('true');
insist('UPDATE accord.account SET enabled = true');
insist('UPDATE accord.channel SET max_in_flight = 16');
setting('accord.max_in_flight', 1000);
setting('accord.settle_delay', 5);
poll_until(
    sub {
        give_up_held();
        return insist('SELECT count(*) FROM accord.owed()') eq '0';
    },
    'everything to be delivered');
pass('nothing is owed any more');

# ---- what arrived against what was committed

sub value { return $node->safe_psql('postgres', @_); }
value(<<"SQL");
CREATE TABLE raw (n bigserial, line text);
COPY raw (line) FROM '$log' (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02');
CREATE TABLE arrival AS
    SELECT arrived AS n, split_part(path, '/', 2) AS channel, path, (headers ->> 'idempotency-key')::uuid AS event_id,
        event.key, event.n AS number
    FROM (SELECT raw.n AS arrived, r.* FROM raw, json_to_record(line::json) AS r(path text, headers json, body text)) r
        CROSS JOIN json_to_record(body::json) AS event(key text, n integer);
-- What each channel was owed, and how it ended there.
CREATE TABLE owed AS
    SELECT t.*, c.seq, r.channel, CASE WHEN r.channel = 'customers' THEN account_of(t.key) ELSE '' END AS account
    FROM truth t JOIN accord.commit_log c USING (tx_id) CROSS JOIN (SELECT DISTINCT channel FROM accord.route) r
    WHERE r.channel <> 'customers' OR account_of(t.key) <> 'a3';
CREATE TABLE ending AS
    SELECT o.*, coalesce(a.delivered, 0) AS delivered, coalesce(a.closed, 0) AS closed, b.state
    FROM owed o
    LEFT JOIN (SELECT seq, ord, channel, account, count(*) FILTER (WHERE outcome = 'delivered') AS delivered,
                   count(*) FILTER (WHERE outcome IN ('rejected', 'discarded')) AS closed
               FROM accord.attempt_log GROUP BY 1, 2, 3, 4) a USING (seq, ord, channel, account)
    LEFT JOIN (SELECT seq, ord, channel, coalesce(account, '') AS account, state FROM accord.backlog) b
        USING (seq, ord, channel, account);
SQL

my $written = value('SELECT count(*) FROM truth');
cmp_ok($written, '>', 500, "there was load: $written events");
is(value("SELECT count(*) FROM truth t FULL JOIN (SELECT * FROM accord.event_log WHERE topic = 'w') e USING (event_id)
            WHERE t.key IS DISTINCT FROM e.key"), 0, 'the log holds what was committed');

for my $channel (qw(even moody loose paused customers grumpy once))
{
    my $own = "(SELECT * FROM arrival WHERE channel = '$channel') a";
    my $owed = "(SELECT * FROM ending WHERE channel = '$channel') o";
    my $arrived = "EXISTS (SELECT FROM $own WHERE a.key = o.key AND a.number = o.n)";
    my ($closed, $rejects) = $channel eq 'grumpy' ? ("o.state = 'dead' OR closed > 0", 1)
      : $channel eq 'once' ? ('closed > 0', 1) : ('false', 0);

    is(value("SELECT count(*) FROM $owed WHERE NOT ($arrived OR $closed)"), 0,
        "$channel: every committed event arrived" . ($rejects ? ', or was given up' : ''));
    is(value("SELECT count(*) FROM $owed WHERE NOT (delivered = 1 OR $closed)
                OR delivered > 1 AND channel <> 'grumpy' OR delivered > 0 AND NOT $arrived"), 0,
        '... and is in attempt_log as delivered, once');
    is(value("SELECT count(*) FROM $own WHERE NOT EXISTS (SELECT FROM $owed WHERE a.key = o.key AND a.number = o.n
                AND coalesce(a.event_id, o.event_id) = o.event_id)"), 0, '... and nothing else arrived');
    is(value("SELECT count(*) FROM $owed WHERE state IS NOT NULL AND state <> 'dead'"), 0,
        '... and nothing is left in the backlog');
    next if $channel eq 'loose';

    # What people redelivered comes again after later ones; a first arrival never comes after a later one's.
    my $considered = $channel ne 'grumpy' ? $own : "(SELECT key, number, min(n) AS n FROM $own GROUP BY 1, 2) a";
    is(value("SELECT count(*) FROM (SELECT number < max(number) OVER (PARTITION BY key ORDER BY n) AS late
                FROM $considered) o WHERE late"), 0,
        '... in commit order' . ($channel eq 'grumpy' ? '' : ', none again after a later one of its key'));
}
is(value("SELECT count(*) FROM (SELECT FROM arrival WHERE channel = 'once' GROUP BY key, number
            HAVING count(*) > 1) a"), 0, 'no command arrived twice at the channel without a key');
is(value("SELECT count(*) FROM arrival WHERE channel = 'customers'
            AND path NOT LIKE '/customers/' || account_of(key) || '/%'"), 0,
    "every event arrived at its own customer's account");
is(value('SELECT count(*) FROM accord.outbox'), 0, 'the outbox is empty');
is(value('SELECT accord.safe_seq() = last_value FROM accord.commit_seq'), 't', 'no floor is left standing');

# The clients that are cut off, the children of a postmaster that ends them, and a keeper that has to go before its
# dispatcher, are no failures.
my $harmless = qr/signal\ 9|could\ not\ (send|receive)\ data\ (to|from)\ client|could\ not\ serialize\ access
    |terminating\ background\ worker\ "pg_accord\ keeper"/x;
my $crash = qr/TRAP|PANIC|terminated by signal|could not|exited with exit code (?!1)/;
my @lines = grep { !/$harmless/ } split /\n/, slurp_file($node->logfile);
my @crashes = grep { /$crash/ || /(ERROR|FATAL):/ && !/ (writer|psql|\[unknown\]) / } @lines;
is(join("\n", @crashes > 5 ? @crashes[0 .. 4] : @crashes), '',
    'nothing crashed, and nothing that the dispatchers tried failed');
$node->stop;
done_testing();
