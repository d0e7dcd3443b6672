# Reconciling: what is missing, extra and different is found, with both sides; grace; repair by the smallest correction;
# by list and one by one; by the log and by a function; normalised; on a schedule; cancelled.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP;
use Test::More;

my $node = new_node('main');
my $stub = start_stub();

sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query); }

sub page
{
    my ($path, $body, %do) = @_;
    return { match => { method => 'GET', path_regex => $path }, do => { body => $body, %do } };
}

# Runs a reconciliation, and waits for its end; returns its row of accord.progress.
sub reconcile
{
    my (%argument) = @_;
    my $arguments = join ', ', map { "$_ => $argument{$_}" } sort keys %argument;
    my $job = sql("SELECT accord.reconcile($arguments)");
    poll_until(sub { sql("SELECT state FROM accord.progress WHERE job = $job") =~ /done|failed|cancelled/ }, "job $job");
    return sql("SELECT state, done, failed, passed, delivered FROM accord.progress WHERE job = $job");
}

sub drift { return sql('SELECT key, kind FROM accord.drift ORDER BY reconciliation, key'); }

# What was sent to the channel, without what was asked of it.
sub sent
{
    my ($after) = @_;
    return [ map { "$_->{method} $_->{path}" } grep { $_->{method} ne 'GET' } $stub->log($after) ];
}

channel($node, $stub, 'ota', retry_base => '10 ms', retry_cap => '50 ms');
route($node, 'ota', topic => 'rate.*', method => 'PUT', path => '/rates/{key}', ops => '{insert,update,event}');
route($node, 'ota', topic => 'rate.*', method => 'DELETE', path => '/rates/{key}', ops => '{delete}');
insert_row($node, 'reconciliation', name => 'rates', channel => 'ota', path => '/rates', query => '{"page": "{page}"}',
    paging => 'number', item_key => '$.id', value => '$.rate', topic => 'rate.set', grace => '0');
events($node, map { { topic => 'rate.set', key => "r$_", payload => qq({"price": $_}) } } 1 .. 4);
events($node, { topic => 'rate.set', key => 'r4', op => 'delete' }, { topic => 'other', key => 'x' });
wait_for_delivery($node);

# As it should be, but for r1 (another price), r2 (gone), r4 (still there) and r9 (nobody knows why).
$stub->script([
        page('page=1$', [ { id => 'r1', rate => { price => 99 } }, { id => 'r3', rate => { price => 3 } } ]),
        page('page=2$', [ { id => 'r4', rate => { price => 4 } }, { id => 'r9', rate => { price => 9 } } ]),
        page('page=3$', [])
]);
my $before = $stub->count;
is(reconcile(channel => "'ota'"), 'done|4|4|1|0', 'a list is read and compared');
is(drift(), "r1|different\nr2|missing\nr4|extra\nr9|extra", 'what differs is listed');
is(sql(q{SELECT expected, actual FROM accord.drift WHERE key = 'r1'}), '{"price": 1}|{"price": 99}', 'with both sides');
is_deeply(sent($before), [], 'nothing is corrected unless it is asked for');

is(reconcile(channel => "'ota'", repair => 'true', keys => "'{r1,r2}'"), 'done|4|2|0|2', 'some keys are corrected');
$stub->wait_for_count($before + 8);
wait_for_delivery($node);
is_deeply([ sort @{ sent($before) } ], [ 'PUT /rates/r1', 'PUT /rates/r2' ], 'by what concerns them alone');
is(sql(q{SELECT e.op, e.payload, e.channels, c.actor FROM accord.drift d JOIN accord.event_log e ON e.event_id = d.repaired_by
         JOIN accord.commit_log c USING (tx_id, slot) WHERE d.key = 'r2'}), 'insert|{"price": 2}|{ota}|reconciliation rates',
    'a correction is an event like any other');
$before = $stub->count;
is(reconcile(channel => "'ota'", repair => 'true'), 'done|4|4|1|4', 'all are');
wait_for_delivery($node);
is_deeply([ sort @{ sent($before) } ], [ 'DELETE /rates/r4', 'DELETE /rates/r9', 'PUT /rates/r1', 'PUT /rates/r2' ],
    'what is extra is deleted');
$stub->script([ page('page=1$', [ map { { id => "r$_", rate => { price => $_ } } } 1 .. 3 ]), page('page=2$', []) ]);
is(reconcile(channel => "'ota'"), 'done|3|0|5|0', 'and then the two sides are equal');
is(drift(), '', 'nothing drifts any more');

# The grace: what was sent just now may not show yet.
sql(q{UPDATE accord.reconciliation SET grace = '1 hour'});
$stub->script([ page('page=1$', []) ]);
is(reconcile(channel => "'ota'"), 'done|0|0|0|0', 'what changed within the grace is not judged');

# One by one, by a function, normalised; on a schedule. What drifts is corrected once it has done so for a while.
sql(q{CREATE SCHEMA app;
      CREATE TABLE app.code (lock text PRIMARY KEY, pin text, cents integer);
      INSERT INTO app.code VALUES ('l1', '11', 100), ('l2', '22', 200), ('l/3', '33', 300);
      CREATE FUNCTION app.codes(account text) RETURNS TABLE (key text, value jsonb) LANGUAGE sql STABLE
          AS $$SELECT lock, jsonb_build_object('pin', pin, 'cents', cents, 'note', 'ours') FROM app.code$$;
      CREATE FUNCTION app.normal(side text, value jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE
          AS $$SELECT CASE side WHEN 'actual' THEN jsonb_build_object('pin', value ->> 'PIN', 'cents', (value ->> 'price')::numeric * 100)
                      ELSE value END$$});
channel($node, $stub, 'locks', retry_base => '10 ms', retry_cap => '50 ms', max_attempts => 3);
route($node, 'locks', topic => 'code', method => 'PUT', path => '/locks/{key}');
$stub->script([
        page('/locks/l1$', { code => { PIN => '11', price => '1.00' } }),
        page('/locks/l2$', { code => { PIN => '20', price => '2.00' } }),
        { match => { method => 'GET', path_regex => '/locks/l%2F3$' }, do => { status => 404 } }
]);
$before = $stub->count;
insert_row($node, 'reconciliation', name => 'codes', channel => 'locks', read => 'each', path => '/locks/{key}', value => '$.code',
    topic => 'code', expected_function => 'app.codes', normalise_function => 'app.normal', ignored => '{note}',
    grace => '300 ms', every => '1 s', repair => 't');
wait_for_rows($node, 'SELECT key, kind FROM accord.drift ORDER BY key', 'l/3|missing', 'l2|different');
poll_until(sub { @{ sent($before) } >= 2 }, 'corrections');
is_deeply([ sort @{ sent($before) } ]->[0], 'PUT /locks/l%2F3', 'it runs by itself, and corrects what goes on drifting');
$stub->script([
        page('/locks/l1$', { code => { PIN => '11', price => '1.00' } }),
        page('/locks/l2$', { code => { PIN => '22', price => '2' } }),
        page('/locks/l%2F3$', { code => { PIN => '33', price => '3.0' } })
]);
wait_for_rows($node, 'SELECT count(*) FROM accord.drift', 0);
pass('until nothing does');
sql(q{UPDATE accord.reconciliation SET every = NULL});

# It fails when the channel goes on failing; it can be cancelled; only listed paths are compared.
$stub->script([ { match => { method => 'GET' }, do => { status => 400, body => { error => 'no such path' } } } ]);
like(reconcile(channel => "'locks'"), qr/^failed/, 'a run fails after as many attempts as a delivery has');
like(sql(q{SELECT ended_by FROM accord.progress ORDER BY job DESC LIMIT 1}), qr/^the channel answered 400: .*no such path/, 'and says why');
$stub->script([ { match => { method => 'GET' }, do => { gate => 'shut' } } ]);
my $job = sql(q{SELECT accord.reconcile('locks')});
poll_until(sub { $stub->counters->{in_flight} == 1 }, 'a request');
is(sql("SELECT accord.cancel_reconcile($job, 'enough')"), 't', 'a run can be cancelled');
is(sql("SELECT state, ended_by ~ 'enough' FROM accord.progress WHERE job = $job"), 'cancelled|t', 'and is');
$stub->open_gate('shut');
sql(q{UPDATE accord.reconciliation SET normalise_function = NULL, compared = '{"pin": {"expected": "$.pin", "actual": "$.PIN"}}'
      WHERE name = 'codes'});
$stub->script([ page('/locks/l1$', { code => { PIN => '11' } }), page('/locks/l2$', { code => { PIN => '22' } }),
        page('/locks/', { code => { PIN => '0' } }) ]);
is(reconcile(channel => "'locks'", repair => 'false'), 'done|3|1|2|0', 'only listed paths are compared');
my (undef, undef, $refusal) = $node->psql('postgres', q{UPDATE accord.reconciliation SET compared = '{"pin": {"expected": "$.pin", "actual": "$."}}'
    WHERE name = 'codes'});
like($refusal, qr/actual "pin" in compared of reconciliation "codes" is not a JSON path: .*HINT/s, 'what is no path is refused when it is given');

# A server that is killed while it reads goes on where it was.
$stub->script([ page('page=1$', [ { id => 'r1', rate => { price => 1 } } ]),
        { match => { method => 'GET', path_regex => 'page=2$', times => 1 }, do => { gate => 'crash' } },
        page('page=2$', [ { id => 'r2', rate => { price => 2 } } ]), page('page=3$', []) ]);
sql(q{UPDATE accord.reconciliation SET grace = '0' WHERE name = 'rates'});
$before = $stub->count;
$job = sql(q{SELECT accord.reconcile('ota', name => 'rates')});
$stub->wait_for_count($before + 2);
crash_server($node);
poll_until(sub { sql("SELECT state FROM accord.progress WHERE job = $job") eq 'done' }, 'the run to end');
is(sql("SELECT done, failed FROM accord.progress WHERE job = $job"), '2|1', 'a crash does not lose what was read');
is(scalar(grep { $_->{path} =~ /page=1$/ } $stub->log($before)), 1, 'nor is it read again');

# What it asks is within the limits of its channel.
sql(q{CREATE FUNCTION app.many(account text) RETURNS TABLE (key text, value jsonb) LANGUAGE sql STABLE
          AS $$SELECT 'm' || n, '{"n": 1}'::jsonb FROM generate_series(1, 15) n$$});
channel($node, $stub, 'slow');
route($node, 'slow', path => '/slow/{key}');
insert_row($node, 'rate_limit', channel => 'slow', amount => 20, period => '1 s', burst => 2);
insert_row($node, 'reconciliation', name => 'many', channel => 'slow', read => 'each', path => '/slow/{key}', topic => 'many',
    expected_function => 'app.many', grace => '0');
$stub->script([ page('/slow/', { n => 1 }) ]);
is(reconcile(channel => "'slow'"), 'done|15|0|15|0', 'a channel that has a limit is read');
my @asked = map { $_->{time} } grep { $_->{path} =~ m{^/slow/} } $stub->log;
is(scalar @asked, 15, '... each key once');
cmp_ok(fullest(20, @asked), '<=', 2 + 20 * $stub->slack, '... within it');

done_testing();
