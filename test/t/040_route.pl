# From the configuration to the request: which channels an event is sent to, what the request looks like, with which
# credentials; body functions, in their owner's name; and that a change of the configuration takes effect at commit and
# not before, without a restart. What cannot be sent becomes a dead letter, and the dispatcher is the same to the end.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP;
use MIME::Base64;
use Session;
use Test::More;

# Statements are not logged because those that set a secret hold it.
my $node = new_node('main', <<'CONF');
log_statement = none
accord.function_timeout = '1s'
CONF
send_everything($node);
my $stub = start_stub();
my $dispatcher = dispatcher($node);
my $seen = 0;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel whose name is the first part of its requests' paths, with a route that takes the topics of that name.
sub named_channel
{
    my ($name, $route, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $stub->url("/$name"), retry_base => '10 ms',
        retry_cap => '20 ms', max_attempts => 10000, %column);
    route($node, $name, topic => "$name*", %$route) if $route;
    return;
}

# What the stub received since this was asked last.
sub received
{
    my @new = $stub->log($seen);
    $seen += @new;
    return @new;
}

# Inserts events, waits until nobody is owed anything, and returns what was sent.
sub sent
{
    my (@events) = @_;
    events($node, @events);
    wait_for_delivery($node);
    return received();
}

# The same as one line of "METHOD path", sorted.
sub lines { return join ' ', sort map { "$_->{method} $_->{path}" } @_; }
sub sent_lines { return lines(sent(@_)); }

# The reason of the newest dead letter.
sub reason { return sql('SELECT error FROM accord.dead_letter ORDER BY seq DESC, ord DESC LIMIT 1'); }

# ---- topics

my %pattern = (all => '*', exact => 'rate.changed', prefix => 'rate.*', suffix => '*.changed', inside => '*e.c*',
    middle => 'r*e.ch*d', two => 'rate*rate', underscore => 'rate_changed', percent => 'rate.%', case => 'Rate.changed',
    dot => 'rateXchanged', longer => 'rate.changed.*', star => '**');
for my $name (sort keys %pattern)
{
    insert_row($node, 'channel', name => $name, base_url => $stub->url("/$name"));
    route($node, $name, topic => $pattern{$name}, path => '/{topic}');
}
my %takers = (
    'rate.changed' => 'all exact inside middle prefix star suffix',
    'rate.' => 'all prefix star',
    'rate' => 'all star',
    'Rate.changed' => 'all case inside star suffix',
    'rate.changed.late' => 'all inside longer prefix star',
    'guest.rate.changed' => 'all inside star suffix',
    'raterate' => 'all star two',
    'rate_changed' => 'all star underscore',
    'rate.%' => 'all percent prefix star');
my @requests = sent(map { { topic => $_ } } sort keys %takers);
for my $topic (sort keys %takers)
{
    my $encoded = $topic =~ s/%/%25/gr;
    is(join(' ', sort map { $_->{path} =~ m{^/(\w+)/\Q$encoded\E$} ? $1 : () } @requests),
        $takers{$topic}, "topic $topic");
}
sql('DELETE FROM accord.channel');

# ---- op, position, id

named_channel('op');
route($node, 'op', topic => 'op', ops => '{insert,update}', method => 'PUT', path => '/{op}');
route($node, 'op', topic => 'op', ops => '{delete}', method => 'DELETE', path => '/{op}');
route($node, 'op', topic => 'op', path => '/other/{op}');
is(sent_lines(map { { topic => 'op', key => 'k', op => $_, payload => '{}' } } qw(insert update delete truncate event)),
    'DELETE /op/delete POST /op/other/event POST /op/other/truncate PUT /op/insert PUT /op/update',
    'the op chooses the route');

named_channel('place');
route($node, 'place', topic => 'place.*', path => '/second', position => 20);
route($node, 'place', topic => 'place.a', path => '/first', position => 10);
route($node, 'place', topic => 'place.*', path => '/third', position => 20);
route($node, 'place', topic => 'place.*', path => '/disabled', position => 1, enabled => 'false');
is(sent_lines({ topic => 'place.a' }, { topic => 'place.b' }), 'POST /place/first POST /place/second',
    'the lowest position is used, then the lowest id; a disabled route is none');

# ---- accounts

named_channel('hotel', { topic => 'stay', path => '/{vars.property}' });
named_channel('house', { topic => 'stay' });
insert_row($node, 'account', channel => 'hotel', name => 'one', vars => '{"property": "P1"}');
insert_row($node, 'account', channel => 'hotel', name => 'two', vars => '{"property": "P2"}',
    base_url => $stub->url('/two'));
is(sent_lines({ topic => 'stay', account => 'one' }), 'POST /hotel/P1 POST /house', 'an account of the channel');
is(sent_lines({ topic => 'stay', account => 'two' }), 'POST /house POST /two/P2', '... with a base_url of its own');
is(sent_lines({ topic => 'stay', account => 'three' }), 'POST /house',
    'an account that the channel does not have; a channel without accounts takes all');
sql(q{UPDATE accord.route SET path = '/none' WHERE channel = 'hotel'});
is(sent_lines({ topic => 'stay' }), 'POST /hotel/none POST /house', 'no account: the channel itself');
is(sql(q{SELECT count(DISTINCT account), min(account) FROM accord.attempt_log WHERE channel = 'house'}), '1|',
    'a channel without accounts is a single endpoint');

# ---- explicit addresses, and where events come from

named_channel($_, { topic => 'news' }) for 'a', 'b', 'c';
is(sent_lines({ topic => 'news' }), 'POST /a POST /b POST /c', 'without address: all that have a route');
is(sent_lines({ topic => 'news', channels => '{b}' }), 'POST /b', 'an explicit address');
is(sent_lines({ topic => 'news', channels => '{c,a}' }), 'POST /a POST /c', 'two of them');
is(sent_lines({ topic => 'news', source => 'b' }), 'POST /a POST /c', 'an event does not go back to its source');
is(sent_lines({ topic => 'news', source => 'b', channels => '{b,c}' }), 'POST /c', '... even if it is addressed there');
is(sent_lines({ topic => 'news', source => 'elsewhere' }), 'POST /a POST /b POST /c', 'a source that is no channel');
is(sent_lines({ topic => 'gossip', channels => '{a}' }), '', 'addressed to a channel without a route for it: not sent');
is(sql(q{SELECT topic, channel, error FROM accord.dead_letter}),
    'gossip|a|no route of the channel takes this topic and op', '... but a dead letter');
my (undef, undef, $stderr) = $node->psql('postgres', insert_sql('outbox', topic => 'news', channels => '{a,nobody}'));
like($stderr, qr/nobody/, 'addressed to nobody: refused');

# ---- templates

named_channel('map', {
    topic => 'map', method => 'PUT',
    path => '/{key}/{payload.a.b}/{payload.list.1}/{before.x}/{op}/{channel}{/vars.region}{?payload.q,payload.none}',
    headers => '{"X-Key": "{key}", "X-Mixed": "{topic}:{headers.Trace}:{payload.n}", "X-Over": "route"}' },
    headers => '{"X-Channel": "c {channel}", "X-Over": "channel", "X-Source": "{source}"}');
insert_row($node, 'account', channel => 'map', name => 'r', vars => '{"region": "s/w"}');
my ($id) = events($node, {
    topic => 'map', key => "room 1/\xc3\xa4?#%", account => 'r', op => 'update', source => 'door',
    payload => '{"a": {"b": "x y&z"}, "list": [1, "two"], "q": "ü=1", "n": 12.50}', before => '{"x": "old"}',
    headers => '{"Trace": "abc", "X-Event": "{key}", "User-Agent": "mine"}' });
wait_for_delivery($node);
my ($request) = received();
is($request->{path}, '/map/room%201%2F%C3%A4%3F%23%25/x%20y%26z/two/old/update/map/s%2Fw?payload.q=%C3%BC%3D1',
    'path: values of every kind, percent-encoded');
my $headers = $request->{headers};
is($headers->{'x-mixed'}, 'map:abc:12.50', 'header: values are literal');
is($headers->{'x-over'}, 'route', 'the route\'s header replaces the channel\'s');
is("$headers->{'x-channel'} $headers->{'x-source'} $headers->{'x-event'}", 'c map door {key}',
    'headers of the channel and the event; the event\'s are no templates');
is($headers->{'user-agent'}, 'mine', 'a User-Agent of one\'s own');
is($headers->{'accord-topic'}, 'map', 'Accord-Topic');
is($headers->{'accord-sequence'}, sql("SELECT seq || '.' || ord FROM accord.attempt WHERE event_id = '$id'"),
    'Accord-Sequence');
is_deeply(JSON::PP->new->decode($request->{body}),
    { a => { b => 'x y&z' }, list => [ 1, 'two' ], q => "\x{fc}=1", n => 12.5 }, 'the body is the payload');

named_channel('odd', { path => '/{key}', headers => '{"X-Key": "{key}"}' });
for my $bad (
    [ { key => '..' } => qr/dot segment/, 'a dot segment' ],
    [ {} => qr/the event defines no "key"/, 'an undefined variable' ],
    [ { key => "a\r\nX-Evil: 1" } => qr/control character/, 'a line break for a header' ])
{
    my ($event, $why, $what) = @$bad;
    is(sent_lines({ topic => 'odd', %$event }), '', "$what: not sent");
    like(reason(), $why, '... but a dead letter that says why');
}
is(sent_lines({ topic => 'odd', key => 'fine' }), 'POST /odd/fine', 'the next one is sent');

named_channel('bare', { topic => 'bare', method => 'GET' }, idempotency_header => undef);
my ($bare) = sent({ topic => 'bare', payload => '{"a": 1}' });
ok(!exists $bare->{headers}{'idempotency-key'}, 'no idempotency_header, no key');
is($bare->{body} . join(' ', grep { /^content-/ } keys %{ $bare->{headers} }), '', 'GET carries no body');
named_channel('named', { topic => 'named', content_type => 'text/plain', path => '?x={key}' },
    idempotency_header => 'X-Request-Key');
my ($named) = sent({ topic => 'named', key => 'k&k', payload => '"text"' });
is($named->{path}, '/named?x=k%26k', 'a path that is a query alone');
like($named->{headers}{'x-request-key'}, qr/^[0-9a-f-]{36}$/, 'the key under the name that the channel gives it');
is($named->{headers}{'content-type'}, 'text/plain', 'the route\'s content type');
my ($no_payload) = sent({ topic => 'named', key => 'k' });
is($no_payload->{body}, '', 'without a payload there is no body');

# Every kind of JSON value goes out as PostgreSQL prints it.
my @documents = ('null', 'true', '0.10', '1e30', '"a"', '""', '[]', '{}', '[[], {}, [[1, -2.5], "x"]]',
    '{"a": {"b": [true, false, null, {"c": {}}]}, "": "", "\"\\\\": 1}', '{"z": 1, "aa": 2, "b": [{"k": "v"}, 3]}',
    '["seven..\"", "1234567\" 2345678\\\\", "12345678\n12345678\u0019", "\u00ff\u00ff\u00ff\u00ff", "~~~~~~~~\u001f!!!!!!!!"]',
    '"\u0001 \b\f\n\r\t\u001f \u007f / \\\\ \" \u00e9\u20ac\ud83d\ude00"');
for my $document (@documents)
{
    my ($request) = sent({ topic => 'named', key => 'k', payload => $document });
    my $expected = sql(q{SELECT payload::text FROM accord.event_log ORDER BY tx_id DESC, ord DESC LIMIT 1});
    utf8::decode($expected);
    is($request->{body}, $expected, "the body is the payload: $document");
}

# ---- credentials

sql(q{INSERT INTO accord.secret (name, value) VALUES ('s', 'Geheim-1'), ('own', 'Geheim-2'), ('basic', 'Geheim:3 ü')});
named_channel('open', { topic => 'pass' });
named_channel('bearer', { topic => 'pass' }, auth => '{"type": "bearer", "secret": "s"}');
named_channel('basic', { topic => 'pass' }, auth => '{"type": "basic", "user": "me", "secret": "basic"}');
named_channel('header', { topic => 'pass' }, auth => '{"type": "header", "name": "X-Api-Key", "secret": "s"}');
named_channel('inherit', { topic => 'pass' }, auth => '{"type": "bearer", "secret": "s"}');
insert_row($node, 'account', channel => 'inherit', name => 'same');
insert_row($node, 'account', channel => 'inherit', name => 'other', auth => '{"type": "bearer", "secret": "own"}');
insert_row($node, 'account', channel => 'inherit', name => 'none', auth => '{"type": "none"}');

# Channel => what came as credentials.
sub credentials
{
    my %came;

    for my $request (@_)
    {
        my @values = grep { defined } @{ $request->{headers} }{qw(authorization x-api-key)};
        $came{ substr $request->{path}, 1 } = join ' ', @values;
    }
    return \%came;
}
my %plain = (open => '', bearer => 'Bearer Geheim-1', header => 'Geheim-1',
    basic => 'Basic ' . encode_base64("me:Geheim:3 \xc3\xbc", ''));
is_deeply(credentials(sent({ topic => 'pass' })), { %plain, inherit => 'Bearer Geheim-1' }, 'each kind of credentials');
is(credentials(sent({ topic => 'pass', account => 'same' }))->{inherit}, 'Bearer Geheim-1', 'an account inherits them');
is(credentials(sent({ topic => 'pass', account => 'other' }))->{inherit}, 'Bearer Geheim-2', '... or has its own');
is(credentials(sent({ topic => 'pass', account => 'none' }))->{inherit}, '', '... or none');
sql(q{UPDATE accord.secret SET value = 'Geheim-4' WHERE name = 's'});
is(credentials(sent({ topic => 'pass' }))->{bearer}, 'Bearer Geheim-4', 'a new value is used at once');
sql(q{DELETE FROM accord.secret WHERE name = 's'});
events($node, { topic => 'pass', channels => '{bearer}' });
wait_for_rows($node, q{SELECT DISTINCT outcome, sent, error FROM accord.attempt_log
    WHERE channel = 'bearer' AND outcome <> 'delivered'}, 'retry||secret "s" is not stored');
is(lines(received()), '', 'without its secret nothing is sent');
sql(q{INSERT INTO accord.secret (name, value) VALUES ('s', 'Geheim-5')});
wait_for_delivery($node);
is(credentials(received())->{bearer}, 'Bearer Geheim-5', '... until it is stored');

# ---- body functions

sql(<<'SQL');
CREATE SCHEMA app;
CREATE TABLE app.guest (name text, mail text);
INSERT INTO app.guest VALUES ('anna', 'anna@example.com');
CREATE TABLE app.switch (broken boolean);
INSERT INTO app.switch VALUES (true);
CREATE ROLE app_owner;
CREATE ROLE app_other;
GRANT USAGE ON SCHEMA app TO app_owner, app_other;
GRANT SELECT ON app.guest TO app_owner;

CREATE FUNCTION app.given(e accord.event_log) RETURNS accord.http_request LANGUAGE sql STABLE AS $$
    SELECT ROW(e.payload ->> 'method', e.payload ->> 'path', e.payload -> 'headers', e.payload ->> 'body')
           ::accord.http_request WHERE NOT e.payload ? 'nothing' $$;
CREATE FUNCTION app.welcome(e accord.event_log) RETURNS accord.http_request LANGUAGE sql STABLE AS $$
    SELECT ROW(NULL, NULL, NULL, current_user || ' ' || mail)::accord.http_request FROM app.guest WHERE name = e.key $$;
CREATE FUNCTION app.sleep(e accord.event_log) RETURNS accord.http_request LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_catalog.pg_sleep(600); RETURN NULL; END $$;
CREATE FUNCTION app.fickle(e accord.event_log) RETURNS accord.http_request LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT broken FROM app.switch) THEN
            RAISE EXCEPTION 'not now' USING ERRCODE = 'serialization_failure';
        END IF;
        RETURN ROW(NULL, NULL, NULL, 'now')::accord.http_request;
    END $$;
CREATE FUNCTION app.escape(e accord.event_log) RETURNS accord.http_request LANGUAGE plpgsql AS $$
    BEGIN EXECUTE 'SET ROLE ' || e.key; RETURN NULL; END $$;
CREATE FUNCTION app.die(e accord.event_log) RETURNS accord.http_request LANGUAGE plpgsql AS $$
    BEGIN RETURN ROW(NULL, NULL, NULL, (1 / 0)::text)::accord.http_request; END $$;
CREATE FUNCTION app.write(e accord.event_log) RETURNS accord.http_request LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO app.guest VALUES (e.key); RAISE EXCEPTION 'undone'; END $$;
SQL
named_channel('f', { topic => 'f', path => '/{key}', method => 'PUT', body_function => 'app.given',
    headers => '{"X-From": "route"}' });

# What came of a request that the function describes so.
sub made
{
    my (%wanted) = @_;
    my ($request) = sent({ topic => 'f', key => 'k', payload => encode_json(\%wanted) });
    return undef unless $request;
    my @content = map { "$_: $request->{headers}{$_}" } grep { /^content-/ } sort keys %{ $request->{headers} };
    return join "\n", "$request->{method} $request->{path} $request->{headers}{'x-from'}", @content, $request->{body};
}
is(made(method => 'DELETE'), "DELETE /f/k route\n", 'the method DELETE, and so no body');
is(made(method => 'GET'), "GET /f/k route\n", 'the method GET, and so no body');
is(made(method => 'HEAD'), "HEAD /f/k route\n", 'the method HEAD');
is(made(method => 'DELETE', body => 'why'),
    "DELETE /f/k route\ncontent-length: 3\ncontent-type: application/json\nwhy", '... unless the function makes one');
is(made(body => 'text', path => '/there?a=1', headers => { 'X-From' => 'function', 'Content-Type' => 'text/x' }),
    "PUT /f/there?a=1 function\ncontent-length: 4\ncontent-type: text/x\ntext", 'path, headers, body');
is(made(body => ''), "PUT /f/k route\ncontent-length: 0\n", 'an empty body');
is(made(), "PUT /f/k route\ncontent-length: 2\ncontent-type: application/json\n{}",
    'nothing but nulls: the route\'s own');
is(made(nothing => 1), undef, 'a null result: nothing is sent');
is(sql(q{SELECT outcome, sent, attempt FROM accord.attempt_log WHERE channel = 'f' ORDER BY seq DESC LIMIT 1}),
    'skipped||0', '... which is recorded');
for my $bad (
    [ { method => 'not a method' }, qr/is not an HTTP method/ ],
    [ { method => 'HEAD', body => 'x' }, qr/HEAD request cannot have a body/ ],
    [ { path => 'there' }, qr/does not begin with "\/"/ ],
    [ { path => '/a/../b' }, qr/dot segment/ ],
    [ { path => '/a b' }, qr/percent-encoded/ ],
    [ { headers => { 'X-From' => "a\nb" } }, qr/control character/ ],
    [ { headers => { 'Content-Length' => '7' } }, qr/Content-Length/ ],
    [ { headers => { map { ("X-$_" => 'x') } 1 .. 300 } }, qr/more than 256 headers/ ])
{
    my ($wanted, $why) = @$bad;
    is(made(%$wanted), undef, 'not sent: ' . join ' ', %{ $wanted->{headers} ? {} : $wanted });
    like(reason(), $why, "... $why");
}

# Who it runs as.
named_channel('who', { topic => 'who', body_function => 'app.welcome', owner => 'app_owner' });
named_channel('other', { topic => 'who', body_function => 'app.welcome', owner => 'app_other' });
is(join(' ', map { $_->{body} } sent({ topic => 'who', key => 'anna' })), 'app_owner anna@example.com',
    'a function reads rows in the name of the route\'s owner');
is(reason(), 'function app.welcome: permission denied for table guest', '... and only what that one may read');
sql('REVOKE EXECUTE ON FUNCTION app.welcome FROM PUBLIC');
is(sent_lines({ topic => 'who', key => 'anna', channels => '{who}' }), '', 'the owner may no longer execute it');
is(reason(), 'function app.welcome: permission denied for function app.welcome', '... and it says so');
named_channel('escape', { topic => 'escape', body_function => 'app.escape', owner => 'app_owner' });
is(sent_lines({ topic => 'escape', key => 'postgres' }), '', 'a function cannot become somebody else');
like(reason(), qr/cannot set parameter "role" within security-restricted operation/, '... and it says so');

# Errors.
named_channel('die', { topic => 'die', body_function => 'app.die' });
is(sent_lines({ topic => 'die' }), '', 'a function that raises');
is(reason(), 'function app.die: division by zero', '... makes a dead letter');
named_channel('write', { topic => 'write', body_function => 'app.write' });
is(sent_lines({ topic => 'write', key => 'ghost' }), '', 'a function that writes and raises');
is(sql(q{SELECT count(*) FROM app.guest WHERE name = 'ghost'}), '0', '... leaves nothing behind');
named_channel('slow', { topic => 'slow', body_function => 'app.sleep' }, max_attempts => 2);
is(sent_lines({ topic => 'slow' }), '', 'a function that does not end');
is(sql(q{SELECT attempt, outcome, sent, error FROM accord.attempt_log WHERE channel = 'slow' ORDER BY attempt}),
    join("\n", map { "$_|retry||function app.sleep: canceling statement due to statement timeout" } 1, 2),
    '... is ended by accord.function_timeout, and tried again');
named_channel('fickle', { topic => 'fickle', body_function => 'app.fickle' });
events($node, { topic => 'fickle' });
wait_for_rows($node, q{SELECT DISTINCT outcome, error FROM accord.attempt_log WHERE channel = 'fickle'},
    'retry|function app.fickle: not now');
sql('UPDATE app.switch SET broken = false');
wait_for_delivery($node);
is(join(' ', map { $_->{body} } received()), 'now', 'an error that may pass is tried again until it has');
sql('DROP FUNCTION app.die');
is(sent_lines({ topic => 'die' }), '', 'a function that was dropped');
like(reason(), qr/function app\.die or its route's owner does not exist/, '... makes a dead letter');

# ---- the configuration changes

is(sent_lines({ topic => 'late' }), '', 'no route');
named_channel('late', { topic => 'late' });
is(sent_lines({ topic => 'late' }), 'POST /late', 'a new channel and route take what comes after them');
sql("UPDATE accord.channel SET base_url = '" . $stub->url('/v2') . "' WHERE name = 'late'");
is(sent_lines({ topic => 'late' }), 'POST /v2', 'a new base_url');
sql("BEGIN; UPDATE accord.channel SET base_url = '" . $stub->url('/v3') . "' WHERE name = 'late'; "
      . insert_sql('route', channel => 'late', topic => 'undone') . '; ROLLBACK');
is(sent_lines({ topic => 'late' }, { topic => 'undone' }), 'POST /v2', 'what was rolled back does not take effect');
my $session = open_session($node, 'postgres');
$session->run("BEGIN; UPDATE accord.channel SET base_url = '" . $stub->url('/v4') . "' WHERE name = 'late'; "
      . insert_sql('outbox', topic => 'late', payload => '"with it"'));
is(sent_lines({ topic => 'late' }), 'POST /v2', 'what is not committed does not take effect');
$session->run('COMMIT');
wait_for_delivery($node);
is(lines(received()), 'POST /v4', 'it does at commit, for an event of its own transaction, too');
sql("BEGIN; SAVEPOINT s; UPDATE accord.channel SET base_url = '" . $stub->url('/v5')
      . "' WHERE name = 'late'; ROLLBACK TO s; COMMIT");
is(sent_lines({ topic => 'late' }), 'POST /v4', 'what was rolled back to a savepoint does not take effect');

sql(q{UPDATE accord.channel SET enabled = false WHERE name = 'late'});
events($node, { topic => 'late', key => 1 }, { topic => 'late', key => 2 }, { topic => 'bare' });
wait_for_rows($node, 'SELECT channel, state, count(*) FROM accord.owed() GROUP BY 1, 2', 'late|queued|2');
is(lines(received()), 'GET /bare', 'a disabled channel is sent nothing, others are');
wait_for_rows($node, q{SELECT state, owed FROM accord.status WHERE channel = 'late'}, 'paused|2');
pass('... and it is paused');
sql(q{UPDATE accord.channel SET enabled = true WHERE name = 'late'});
wait_for_delivery($node);
is(lines(received()), 'POST /v4 POST /v4', 'enabled, it gets what it is owed, without another event');

sql(q{UPDATE accord.account SET enabled = false WHERE channel = 'hotel' AND name = 'one'});
events($node, { topic => 'stay', account => 'one' }, { topic => 'stay', account => 'two' });
wait_for_rows($node, 'SELECT channel, account, state FROM accord.owed()', 'hotel|one|queued');
is(lines(received()), 'POST /house POST /house POST /two/none', 'a disabled account waits, others do not');
sql(q{UPDATE accord.account SET enabled = true WHERE channel = 'hotel' AND name = 'one'});
wait_for_delivery($node);
is(lines(received()), 'POST /hotel/none', 'enabled, it gets what it is owed');

# A channel that is removed while one event is being retried and one waits behind it.
$stub->script([ { match => { path_regex => '^/gone' }, do => { status => 503 } } ]);
named_channel('gone', { topic => 'gone' });
events($node, map { { topic => 'gone', key => 'k', payload => $_ } } 1, 2);
wait_for_rows($node, q{SELECT DISTINCT outcome FROM accord.attempt_log WHERE channel = 'gone'}, 'retry');
sql(q{DELETE FROM accord.channel WHERE name = 'gone'});
wait_for_rows($node, q{SELECT count(*) FROM accord.owed()}, 0);
wait_for_rows($node, q{SELECT outcome, error FROM accord.attempt_log WHERE channel = 'gone' AND outcome <> 'retry'
    ORDER BY seq LIMIT 1}, 'discarded|its channel, account or route was removed');
wait_for_rows($node, q{SELECT count(*) FROM accord.backlog WHERE channel = 'gone'}, 0);
is(scalar(grep { $_->{body} eq '2' } received()), 0, 'what a removed channel was owed is not sent');

# A route that is removed, likewise.
named_channel('shut', { topic => 'shut' });
$stub->script([ { match => { path_regex => '^/shut' }, do => { status => 503 } } ]);
events($node, { topic => 'shut', key => 'k' });
wait_for_rows($node, q{SELECT DISTINCT outcome FROM accord.attempt_log WHERE channel = 'shut'}, 'retry');
sql(q{DELETE FROM accord.route WHERE channel = 'shut'});
wait_for_rows($node, q{SELECT state FROM accord.backlog_log WHERE channel = 'shut' ORDER BY version DESC LIMIT 1},
    'discarded');
pass('what is retried is discarded with its last route');
received();

# ---- all of it without a crash, and without telling

is(dispatcher($node), $dispatcher, 'the dispatcher is the same process');
my @told = grep { /Geheim/ } split /\n/, join "\n", PostgreSQL::Test::Utils::slurp_file($node->logfile),
  map { sql("SELECT * FROM accord.$_") } 'attempt_log', 'backlog_log', 'timeline';
is(join("\n", @told), '', 'no credential is in a log, an attempt, the backlog or the timeline');

$node->stop;
done_testing();
