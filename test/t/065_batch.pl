# Batches: how many events go in one request, which ones, what their answers mean for each, and how one poisoned event
# is found. The stub counts requests; sizes and members are read off their bodies.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP qw(decode_json);
use Test::More;

my $node = new_node('main', "log_statement = none\n");
my $stub = start_stub();

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel, disabled until its events are there, and its route.
sub batching
{
    my ($name, $route, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $stub->url("/$name"), patient(), enabled => 'false',
        retry_base => '10 ms', retry_cap => '20 ms', breaker_failures => undef, breaker_ratio => undef, %column);
    route($node, $name, topic => $name, %$route);
    return;
}

sub insert
{
    my ($name, $n, %column) = @_;
    my $key = delete $column{key} || q{'k' || g};
    my $payload = delete $column{payload} || q{jsonb_build_object('n', g)};
    my @names = sort keys %column;
    sql("INSERT INTO accord.outbox (" . join(', ', 'topic', 'key', 'payload', @names) . ")
        SELECT " . join(', ', "'$name'", $key, $payload, map { $column{$_} } @names) . " FROM generate_series(1, $n) g");
    return;
}

sub enable
{
    my ($name) = @_;
    sql("UPDATE accord.channel SET enabled = true WHERE name = '$name'");
    return;
}

sub settled
{
    my ($name, $n) = @_;
    wait_for_rows($node, "SELECT count(*) FROM accord.attempt_log WHERE channel = '$name'
        AND outcome IN ('delivered', 'superseded', 'skipped', 'discarded')", $n);
    return;
}

sub requests { my ($path) = @_; return grep { $_->{path} =~ m{^/$path} } $stub->log; }
sub members { my ($request) = @_; return map { $_->{n} } @{ decode_json($request->{body}) }; }
sub sizes { my ($path) = @_; return join ' ', map { scalar(my @m = members($_)) } requests($path); }
sub all { my ($path) = @_; return join ' ', sort { $a <=> $b } map { members($_) } requests($path); }

# ---- how many

batching('size', { batch_size => 10 });
insert('size', 45);
enable('size');
settled('size', 45);
is(join(' ', sort { $b <=> $a } split / /, sizes('size')), '10 10 10 10 5', 'so many in a request, and the rest');
is(all('size'), join(' ', 1 .. 45), '... each once');
is(scalar(grep { $_->{headers}{'accord-batch'} == (my @m = members($_)) } requests('size')), 5, '... which says how many');
my %keys = map { $_->{headers}{'idempotency-key'} => 1 } requests('size');
is(scalar(keys %keys), 5, '... under a key of its own');
like((keys %keys)[0], qr/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/, '... a UUID of version 8');

batching('bytes', { batch_size => 1000, batch_bytes => 1000 });
insert('bytes', 20, payload => q{jsonb_build_object('n', g, 'text', repeat('x', 200))});
enable('bytes');
settled('bytes', 20);
is(scalar(grep { length($_->{body}) > 1200 } requests('bytes')), 0, 'so many bytes in a request');
cmp_ok(scalar(my @bytes = requests('bytes')), '<=', 7, '... and not much less');

batching('group', { batch_size => 100, batch_group => '{payload.hotel}' });
insert('group', 40, payload => q{jsonb_build_object('n', g, 'hotel', g % 4)});
enable('group');
settled('group', 40);
is(sizes('group'), '10 10 10 10', 'only of one group');
is(scalar(grep { my %h = map { $_ % 4 => 1 } members($_); keys %h == 1 } requests('group')), 4, '... each');

batching('account', { batch_size => 100, path => '/{account}' }, account_max_in_flight => 16);
insert_row($node, 'account', channel => 'account', name => $_) for 'a', 'b';
insert('account', 20, account => q{CASE WHEN g <= 12 THEN 'a' ELSE 'b' END});
enable('account');
settled('account', 20);
is(join(' ', sizes('account/a'), sizes('account/b')), '12 8', 'only of one account');

batching('keys', { batch_size => 100, coalesce => undef });
insert('keys', 30, key => q{'k' || g % 10});
enable('keys');
settled('keys', 30);
is(join(' ', map { join ',', sort { $a <=> $b } members($_) } requests('keys')),
    join(' ', join(',', 1 .. 10), join(',', 11 .. 20), join(',', 21 .. 30)), 'one of a key in a request, in order');
batching('several', { batch_size => 100, coalesce => undef }, ordering => 'none', max_in_flight => 1);
insert('several', 30, key => q{'k'});
enable('several');
settled('several', 30);
is(join(',', map { members($_) } requests('several')), join(',', 1 .. 30),
    '... or several of them, where there is no order to keep: as they were committed');
cmp_ok(scalar(my @several = requests('several')), '<', 30, '... which takes fewer requests');

# One that waits for more: it goes when it is full, or when its time is over.
batching('wait', { batch_size => 5, batch_wait => '1 h' }, enabled => 'true');
insert('wait', 4);
insert('size', 1, payload => q{'{"n": 100}'});
poll_until(sub { all('size') =~ / 100$/ }, 'a later event elsewhere');
is(scalar(requests('wait')), 0, 'it waits for more');
insert('wait', 1, key => q{'k9'}, payload => q{'{"n": 5}'});
settled('wait', 5);
is(all('wait'), '1 2 3 4 5', '... and goes when it is full');
batching('short', { batch_size => 5, batch_wait => '300 ms' }, enabled => 'true');
insert('short', 3);
settled('short', 3);
is(sizes('short'), '3', '... or when its time is over');
my ($arrived) = map { $_->{time} } requests('short');
cmp_ok($arrived - sql(q{SELECT extract(epoch FROM min(recorded_at)) FROM accord.event_log WHERE topic = 'short'}), '>=', 0.3,
    '... and not before');

# What waits can still be superseded.
batching('newer', { batch_size => 3, batch_wait => '1 h' }, enabled => 'true');
insert('newer', 2);
insert('newer', 2, payload => q{jsonb_build_object('n', g + 10)});
insert('newer', 1, key => q{'k3'}, payload => q{'{"n": 3}'});
settled('newer', 5);
is(all('newer'), '3 11 12', 'a member that waits is superseded');

# ---- what became of each

# The stub's answer tells of each item; of those that are wrong twice.
my @items = map { { id => "k$_", status => $_ == 3 ? 422 : $_ == 5 ? 503 : 200, error => $_ == 3 ? 'no such room' : undef } } 1 .. 6;
$stub->script([
    { match => { path_regex => '^/status', times => 1 }, do => { body => { results => \@items } } },
    { match => { path_regex => '^/status' }, do => { body => { results => [ { id => 'k5', status => 200 } ] } } },
    { match => { path_regex => '^/index', times => 1 }, do => { body => [ map { $_ == 2 ? { error => 'bad' } : {} } 1 .. 4 ] } },
    { match => { path_regex => '^/named' }, do => { body => { k1 => { ok => 1 }, k2 => { error => 'gone' } } } },
    { match => { path_regex => '^/plain' }, do => { body => [ 200, 422, 200 ] } },
    { match => { path_regex => '^/poison', body_regex => '"n":\s*13\D' }, do => { status => 400 } },
    { match => { path_regex => '^/down', times => 1 }, do => { status => 503 } },
    { match => { path_regex => '^/mute', times => 1 }, do => { body => { results => [] } } },
]);
my $by = { batch_size => 100, batch_items => 'results', batch_item_id => 'id', batch_item_status => 'status',
    batch_item_error => 'error' };
batching('status', $by);
insert('status', 6);
enable('status');
settled('status', 5);
is(sql(q{SELECT e.key, string_agg(a.outcome, ' ' ORDER BY a.recorded_at) FROM accord.attempt_log a
    JOIN accord.commit_log c USING (seq) JOIN accord.event_log e ON e.tx_id = c.tx_id AND e.ord = a.ord
    WHERE a.channel = 'status' GROUP BY 1 ORDER BY 1}),
    "k1|delivered\nk2|delivered\nk3|rejected\nk4|delivered\nk5|retry delivered\nk6|delivered", 'each by its own status');
is(join(' ', map { join ',', members($_) } requests('status')), '1,2,3,4,5,6 5', '... and the failed one alone is retried');
is(sql(q{SELECT key, error FROM accord.dead_letter WHERE channel = 'status'}), 'k3|no such room', '... or given up, with its error');

batching('index', { batch_size => 100, batch_items => '', batch_item_error => 'error' });
insert('index', 4);
enable('index');
settled('index', 3);
is(sql(q{SELECT payload ->> 'n', error FROM accord.dead_letter WHERE channel = 'index'}), '2|bad', 'by its place');

batching('plain', { batch_size => 100, batch_items => '', batch_item_status => '' });
insert('plain', 3);
enable('plain');
settled('plain', 2);
is(sql(q{SELECT payload ->> 'n', error FROM accord.dead_letter WHERE channel = 'plain'}), '2|item status 422',
    'a result that is nothing but a status');

batching('named', { batch_size => 100, batch_items => '', batch_item_error => 'error' }, max_attempts => 1);
insert('named', 3);
enable('named');
settled('named', 1);
wait_for_rows($node, q{SELECT key, error FROM accord.dead_letter WHERE channel = 'named' ORDER BY key},
    "k2|gone\nk3|the answer tells nothing about this event");
pass('by its name; what is not told of is not delivered');

batching('poison', { batch_size => 64 });
insert('poison', 64);
enable('poison');
settled('poison', 63);
is(sql(q{SELECT key, attempts FROM accord.dead_letter WHERE channel = 'poison'}), 'k13|1',
    'refused as a whole: divided until the one to blame is found');
is(scalar(my @poison = requests('poison')), 13, '... with two requests for each halving');

batching('down', { batch_size => 10 });
insert('down', 10);
enable('down');
settled('down', 10);
is(sql(q{SELECT outcome, count(*) FROM accord.attempt_log WHERE channel = 'down' GROUP BY 1 ORDER BY 1}),
    "delivered|10\nretry|10", 'failed as a whole: all are retried');
batching('mute', $by, max_attempts => 1);
insert('mute', 2);
enable('mute');
wait_for_rows($node, q{SELECT count(*) FROM accord.dead_letter WHERE channel = 'mute'}, 2);
pass('an answer that tells of none: none is delivered');

# ---- by a function

sql(q{CREATE FUNCTION public.sum_up(e accord.event_log[]) RETURNS accord.http_request LANGUAGE sql STABLE AS $$
    SELECT ROW(NULL, '/sum', NULL, (SELECT jsonb_build_array(jsonb_build_object('n', sum(10 / (x.payload ->> 'n')::int)))
                                    FROM unnest(e) x)::text)::accord.http_request $$});
batching('function', { batch_size => 4, batch_function => 'public.sum_up' });
insert('function', 4, payload => q{jsonb_build_object('n', g % 4)});
enable('function');
settled('function', 3);
is(sql(q{SELECT key, error FROM accord.dead_letter WHERE channel = 'function'}), 'k4|function public.sum_up: division by zero',
    'a function makes the body; an event it fails on is found');
is(all('function/sum'), '3 15', '... and the others are sent');

# ---- configuration, and a crash

sub refused
{
    my ($column, $value, $expected) = @_;
    my (undef, undef, $error) = $node->psql('postgres', insert_sql('route', channel => 'size', $column => $value, batch_size => 2));
    return $error =~ /$expected/;
}
ok(refused('mode', 'command', 'mode, skip_unchanged and batch_size .* do not go together'), 'commands are not batched');
ok(refused('batch_function', 'nosuch', 'does not exist'), 'a batch function must exist');
ok(refused('batch_group', '{payload', 'is not a URI template'), 'a group must be a template');
ok(refused('body_function', 'public.sum_up', 'does not exist'), 'a body function is another thing');

batching('crash', { batch_size => 25 });
$stub->script([ { match => { path_regex => '^/crash' }, do => { gate => 'crash' } } ]);
$stub->close_gate('crash');
insert('crash', 500);
enable('crash');
poll_until(sub { requests('crash') >= 16 }, 'batches in flight');
crash_server($node);
$stub->open_gate('crash');
settled('crash', 500);
is(join(' ', do { my %s; grep { !$s{$_}++ } split / /, all('crash') }), join(' ', 1 .. 500), 'killed: all of it arrives');
is(sql('SELECT count(*) FROM accord.outbox'), '0', '... and nothing is owed');

$node->stop;
done_testing();
