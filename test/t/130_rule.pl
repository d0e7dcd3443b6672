# Rules: an answer is what they say, in their order, before its status is asked; of a batch also item by item. What was
# decided, and by which rule, is in attempt_log; a command is repeated only where a rule says that it was not done.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP ();
use Test::More;

my $node = new_node('main', "log_statement = none\naccord.response_excerpt = '200B'\n");
send_everything($node);
my $stub = start_stub();
my (@script, %expected);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel with these rules, and what it answers; expected: outcome|status|the rule's place|attempts|state afterwards.
sub answering
{
    my ($name, $do, $rules, $expected, %option) = @_;
    push @script, { match => { path_regex => "^/$name(/|\$)" }, do => $do };
    channel($node, $stub, $name, base_url => $stub->url("/$name"), retry_base => '1 h', retry_cap => '1 h',
        %{ $option{channel} || {} });
    route($node, $name, topic => $name, %{ $option{route} || {} });
    my $place = 0;
    insert_row($node, 'rule', channel => $name, position => ++$place, description => $place, %$_) for @$rules;
    $expected{$name} = $expected;
    return;
}

my $errors = { status => 200, body => { errors => [ { code => 1, message => 'busy' }, { code => 7 } ] } };

answering('in_200', $errors, [ { body => '$.errors[*] ? (@.code == 1)', outcome => 'retry', error => '$.errors[*].message' } ],
    'retry|200|1|1|retrying|busy');
answering('first', $errors, [
    { status => '4xx', outcome => 'delivered' },
    { body => '$.errors[*] ? (@.code == 2)', outcome => 'delivered' },
    { status => '200,201', body => '$.errors', outcome => 'rejected' },
    { outcome => 'delivered' } ], 'rejected|200|3|1|dead|HTTP status 200');
answering('none', $errors, [ { status => '5xx', outcome => 'retry' }, { body => '$.errors[*] ? (@.code == 9)', outcome => 'retry' } ],
    'delivered|200||1|done|');
answering('predicate', { status => 200, body => { errcode => 30006 } },
    [ { body => '$.errcode == 5', outcome => 'rejected' }, { body => '$.errcode == 30006', outcome => 'retry' } ],
    'retry|200|2|1|retrying|HTTP status 200');
answering('falsity', { status => 200, body => { failed => JSON::PP::false(), error => undef } },
    [ { body => '$.failed', outcome => 'rejected' }, { body => '$.error', outcome => 'rejected' } ], 'delivered|200||1|done|');
answering('duplicate', { status => 409, body => { error => 'duplicate' } },
    [ { status => '409', body => '$ ? (@.error == "duplicate")', outcome => 'duplicate' } ],
    'delivered|409|1|1|done|it was done before');
answering('header', { status => 403, headers => { 'X-Reason' => 'QUOTA: exceeded' } },
    [ { headers => '{"X-Reason": "quota*"}', outcome => 'rejected' }, { headers => '{"x-reason": "QUOTA*", "X-None": "*"}', outcome => 'rejected' },
        { headers => '{"x-reason": "QUOTA*"}', outcome => 'retry' } ], 'retry|403|3|1|retrying|HTTP status 403');
answering('throttle', { status => 200, body => { error => 'slow down' } },
    [ { body => '$.error', outcome => 'retry_after', pause => '1 h', error => '$.error' } ], 'retry_after|200|1|0|retrying|slow down');
answering('unauthorized', { status => 200, body => { errcode => 10004 } },
    [ { body => '$.errcode == 10004', outcome => 'unauthorized' } ], 'unauthorized|200|1|1|retrying|HTTP status 200');
answering('fine', { status => 422 }, [ { status => '422', outcome => 'delivered' } ], 'delivered|422|1|1|done|');
answering('not_json', { status => 200, body => '<Errors/>' }, [ { body => '$', outcome => 'rejected' } ], 'delivered|200||1|done|');
answering('too_long', { status => 200, body => { errors => 'x' x 100 } }, [ { body => '$.errors', outcome => 'rejected' } ],
    'delivered|200||1|done|', channel => { max_response => 50 });
answering('mad', { status => 200, body => '{"a": "\u0000"}' }, [ { body => '$', outcome => 'rejected' } ], 'delivered|200||1|done|');
answering('deep', { status => 200, body => '[' x 20000 }, [ { body => '$.**', outcome => 'rejected' } ], 'delivered|200||1|done|');
answering('disabled', $errors, [ { body => '$.errors', outcome => 'rejected', enabled => 'false' } ], 'delivered|200||1|done|');
answering('broken', { close_before_response => 1 },
    [ { outcome => 'delivered' }, { transport => 'timeout', outcome => 'delivered' }, { transport => 'cut_off', outcome => 'rejected' } ],
    'rejected||3|1|dead|*');
# commands: what a rule calls unclear is held, what it says was not done is repeated
my $command = { route => { mode => 'command' }, channel => { idempotency_header => undef } };
answering('unclear', $errors, [ { body => '$.errors', outcome => 'unclear' } ], 'unclear|200|1|1|held|HTTP status 200', %$command);
answering('not_done', $errors, [ { body => '$.errors', outcome => 'retry' } ], 'retry|200|1|1|retrying|HTTP status 200', %$command);
answering('five_hundred', { status => 500 }, [ { status => '500', outcome => 'retry' } ],
    'retry|500|1|1|retrying|HTTP status 500', %$command);

# A rule of one route does not concern the others.
answering('other_route', $errors, [], 'delivered|200||1|done|');
route($node, 'other_route', topic => 'never');
sql(q{INSERT INTO accord.rule (channel, route, body, outcome)
      SELECT 'other_route', id, '$.errors', 'rejected' FROM accord.route WHERE channel = 'other_route' AND topic = 'never'});

$stub->script(\@script);
my $dispatcher = dispatcher($node);
events($node, map { { topic => $_, key => 'k' } } sort keys %expected);
wait_for_rows($node, 'SELECT count(DISTINCT channel) FROM accord.attempt_log', scalar keys %expected);
for my $name (sort keys %expected)
{
    my $got = sql(qq{SELECT concat_ws('|', a.outcome, coalesce(a.status::text, ''), coalesce(r.description, ''),
            coalesce(b.attempts, a.attempt), coalesce(b.state, 'done'), coalesce(a.error, ''))
        FROM accord.attempt_log a LEFT JOIN accord.rule r ON r.id = a.rule
        LEFT JOIN accord.backlog b ON b.channel = a.channel WHERE a.channel = '$name'});
    my ($wanted, $any) = $expected{$name} =~ /^(.*?)(\*?)$/;
    $got =~ s/[^|]*$// if $any;
    is($got, $wanted, $name);
}
is(sql(q{SELECT state FROM accord.status WHERE channel = 'throttle'}), 'throttled', 'a rule that asks for a pause throttles');
cmp_ok(sql(q{SELECT extract(epoch FROM due_at - since) FROM accord.backlog WHERE channel = 'throttle'}), '>', 3000, '... for so long');
is(sql(q{SELECT rule IS NOT NULL FROM accord.attempt WHERE channel = 'in_200'}), 't', 'accord.attempt names the rule');
like(sql(q{SELECT detail FROM accord.timeline WHERE topic = 'in_200' AND step = 'retry'}), qr/^rule \d+ \| busy \| /, '... and the timeline');
is(dispatcher($node), $dispatcher, 'through all of it the dispatcher stays the same');

# What is edited holds from its commit on.
sql(q{UPDATE accord.rule SET outcome = 'delivered' WHERE channel = 'first' AND position = 3});
sql(q{SELECT accord.redeliver('first')});
wait_for_rows($node, q{SELECT string_agg(outcome, ' ' ORDER BY recorded_at) FROM accord.attempt_log WHERE channel = 'first'}, 'rejected delivered');

# ---- batches

sub batching
{
    my ($name, $route, $do, @rules) = @_;
    push @script, { match => { path_regex => "^/$name" }, do => $do };
    $stub->script(\@script);
    channel($node, $stub, $name, base_url => $stub->url("/$name"), enabled => 'false', retry_base => '1 h', retry_cap => '1 h');
    route($node, $name, topic => $name, batch_size => 10, %$route);
    insert_row($node, 'rule', channel => $name, description => $_->{outcome}, %$_) for @rules;
    sql("INSERT INTO accord.outbox (topic, key) SELECT '$name', 'k' || g FROM generate_series(1, 4) g");
    sql("UPDATE accord.channel SET enabled = true WHERE name = '$name'");
    wait_for_rows($node, "SELECT count(*) FROM accord.attempt_log WHERE channel = '$name'", 4);
    return sql(qq{SELECT string_agg(e.key || ' ' || a.outcome || coalesce(' ' || r.description, '') || coalesce(' ' || a.error, ''), ', ' ORDER BY e.key)
        FROM accord.attempt e JOIN accord.attempt_log a USING (seq, ord, channel) LEFT JOIN accord.rule r ON r.id = a.rule
        WHERE a.channel = '$name'});
}

# As _bulk_docs of CouchDB answers: 201, and per document.
my $bulk = [ { id => 'k2', error => 'conflict' }, { id => 'k1', ok => JSON::PP::true() },
    { id => 'k4', error => 'forbidden', reason => 'no' } ];
is(batching('bulk', { batch_items => '', batch_item_id => 'id', batch_item_error => 'error' }, { status => 201, body => $bulk },
        { item => 'true', body => '$ ? (@.error == "conflict")', outcome => 'retry' },
        { item => 'true', body => '$ ? (@.error == "forbidden")', outcome => 'rejected', error => '$.reason' },
        { body => '$', outcome => 'delivered', position => 200 }),
    'k1 delivered, k2 retry retry conflict, k3 retry the answer tells nothing about this event, k4 rejected rejected no',
    'each item by a rule over its own result');
is(batching('mixed', { batch_items => 'results', batch_item_status => 'status' },
        { status => 422, body => { results => [ map { { status => $_ } } 200, 422, 500, 409 ] } },
        { status => '422', outcome => 'per_item' }, { item => 'true', status => '409', outcome => 'duplicate' }),
    'k1 delivered, k2 rejected item status 422, k3 retry item status 500, k4 delivered duplicate it was done before',
    'a status that is no success may have results, too');
is(batching('whole', {}, { status => 200, body => { error => 'full' } }, { body => '$.error', outcome => 'retry', error => '$.error' }),
    'k1 retry retry full, k2 retry retry full, k3 retry retry full, k4 retry retry full', 'a rule over the answer to a whole batch');
is(dispatcher($node), $dispatcher, 'and still the same dispatcher');

done_testing();
