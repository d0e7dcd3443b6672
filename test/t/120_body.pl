# Bodies as they arrive at a real server: each format, with its Content-Type, the same to the letter when it is repeated;
# where the idempotency key goes and what becomes of one that a channel would not take; compression of what is sent, and
# of answers, a bomb among them.
use strict;
use warnings FATAL => 'all';

use Accord;
use IO::Compress::Gzip qw(gzip);
use IO::Uncompress::Gunzip qw(gunzip);
use JSON::PP qw(decode_json);
use PostgreSQL::Test::Utils qw(slurp_file);
use MIME::Base64 qw(decode_base64 encode_base64);
use Test::More;

my $node = new_node('main', "log_statement = none\n");
send_everything($node);
my $stub = start_stub();

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel at /name, and its route, which takes the topic of that name; every request is refused once.
sub body_channel
{
    my ($name, $route, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $stub->url("/$name"), patient(), retry_base => '1 ms',
        retry_cap => '1 ms', %column);
    route($node, $name, topic => $name, %$route);
    return;
}

# Sends an event; the request that it became: hash of the log, with the body's bytes as "bytes".
sub sent
{
    my ($name, %column) = @_;
    $stub->script([ { match => { times => 1 }, do => { status => 503 } } ]);
    my $id = events($node, { topic => $name, key => 'room 7', %column });
    wait_for_delivery($node);
    my @requests = grep { $_->{path} =~ m{^/$name(/|\?|$)} } $stub->log;
    $_->{bytes} = exists $_->{body_base64} ? decode_base64($_->{body_base64}) : $_->{body} for @requests;
    my ($first, $second) = @requests[-2, -1];
    die "$name: sent " . @requests . " times\n" if @requests < 2;
    is($second->{bytes}, $first->{bytes}, "$name: repeated to the letter");
    is($second->{path}, $first->{path}, '... at the same place');
    is(($second->{headers}{'idempotency-key'} || '') . $second->{headers}{'content-type'},
        ($first->{headers}{'idempotency-key'} || '') . $first->{headers}{'content-type'}, '... with the same key and type');
    $second->{id} = $id;
    return $second;
}

sub type { my ($request) = @_; return $request->{headers}{'content-type'}; }

# ---- formats

my $stripe = '{"amount": 2000, "metadata": {"order": "Ä & 6"}, "items": [{"price": "p1"}], "note": null}';
body_channel('form', { body => 'form', path => '/v1' });
my $request = sent('form', payload => $stripe);
is($request->{bytes}, 'note=&items[0][price]=p1&amount=2000&metadata[order]=%C3%84+%26+6', 'a form');
is(type($request), 'application/x-www-form-urlencoded', '... is called one');

body_channel('twilio', { body => 'form', form_arrays => 'repeat' });
is(sent('twilio', payload => '{"To": "+43 1", "MediaUrl": ["http://a", "http://b"]}')->{bytes},
    'To=%2B43+1&MediaUrl=http%3A%2F%2Fa&MediaUrl=http%3A%2F%2Fb', 'names repeated');

body_channel('xml', { body => 'xml', body_root => 'rate', method => 'PUT' });
$request = sent('xml', payload => '{"@id": "r<1>", "night": ["2026-12-01", "2026-12-02"]}');
is($request->{bytes}, qq{<?xml version="1.0" encoding="UTF-8"?>\n<rate id="r&lt;1&gt;"><night>2026-12-01</night>}
      . '<night>2026-12-02</night></rate>', 'a document');
is(type($request), 'application/xml', '... is called one');

body_channel('text', { body => 'text', body_from => 'payload.ical', content_type => 'text/calendar; charset=utf-8' });
$request = sent('text', payload => '{"ical": "BEGIN:VCALENDAR\r\nSUMMARY:Gäste\r\n"}');
is($request->{bytes}, "BEGIN:VCALENDAR\r\nSUMMARY:G\x{e4}ste\r\n", 'a text');
is(type($request), 'text/calendar; charset=utf-8', '... of the type that the route says');

my $bytes = join '', map { chr } 0 .. 255;
body_channel('bytes', { body => 'bytes', body_from => 'payload.photo', content_type => 'image/png' });
is(sent('bytes', payload => '{"photo": "' . encode_base64($bytes, '') . '"}')->{bytes}, $bytes, 'bytes, all of them');

body_channel('none', { body => 'none' });
insert_row($node, 'outbox', topic => 'none', payload => '{"a": 1}');
poll_until(sub { grep { $_->{path} eq '/none' } $stub->log }, 'a request without a body');
my ($none) = grep { $_->{path} eq '/none' } $stub->log;
is($none->{headers}{'content-length'} . $none->{body}, '0', 'no body at all');
ok(!exists $none->{headers}{'content-type'}, '... and no type of one');

body_channel('multipart', { body => 'multipart' });
$request = sent('multipart', payload => '{"name": "a\"b", "n": 5, "tags": ["x", "y"], "meta": {"k": 1}, "file": {"filename": "p.png",
    "content_type": "image/png", "base64": "' . encode_base64($bytes, '') . '"}, "inline": {"text": "hä"}}');
my ($boundary) = type($request) =~ /^multipart\/form-data; boundary=(accord-[0-9a-f]{32})$/;
ok(defined $boundary, 'parts with a boundary');
my @parts = split /(?:^|\r\n)--\Q$boundary\E(?:--)?\r\n/, $request->{bytes};
shift @parts;
my %part = map { /^Content-Disposition: form-data; name="(\w+)"(.*?)\r\n\r\n(.*)$/s ? ($1 => [ $2, $3 ]) : die "part $_\n" } @parts;
is(scalar(@parts), 7, '... one for each field, two for an array of two');
is($part{name}[1] . $part{n}[1] . $part{tags}[1], 'a"b5y', '... fields as they are');
is($part{meta}[0] . $part{meta}[1], "\r\nContent-Type: application/json" . '{"k": 1}', '... an object as JSON');
is($part{file}[0], qq{; filename="p.png"\r\nContent-Type: image/png}, '... a file with its name and type');
is($part{file}[1], $bytes, '... and its bytes');

sql(q{CREATE SCHEMA app;
    CREATE FUNCTION app.form(e accord.event_log) RETURNS accord.http_request LANGUAGE sql AS $$
        SELECT ROW(NULL, NULL, NULL, accord.encode_form(jsonb_build_object('k', e.key, 'p', e.payload)))::accord.http_request $$});
body_channel('function', { body => 'form', body_function => 'app.form', mode => 'command' }, idempotency_path => 'meta.key',
    idempotency_header => undef);
$request = sent('function', payload => '[1]');
is($request->{bytes}, "k=room+7&p[0]=1&meta[key]=$request->{id}", 'a function writes a form, and the key joins it');

# ---- CloudEvents

sql(q{ALTER SYSTEM SET accord.node_name = 'hotel 1'});
$node->reload;
body_channel('structured', { body => 'cloudevents' });
$request = sent('structured', payload => '{"price": 120}', op => 'update', occurred_at => '2026-12-01 10:00:00.5+01');
my $event = decode_json($request->{bytes});
is(type($request), 'application/cloudevents+json', 'an envelope');
is_deeply({ %$event, sequence => '?' }, { specversion => '1.0', id => $request->{id}, source => '/hotel%201', type => 'structured',
    subject => 'room 7', op => 'update', time => '2026-12-01T09:00:00.5+00:00', datacontenttype => 'application/json',
    data => { price => 120 }, sequence => '?' }, '... of the event');
is($event->{sequence}, $request->{headers}{'accord-sequence'}, '... and its place in the order');

body_channel('binary', { body => 'cloudevents-binary' });
$request = sent('binary', payload => '{"price": 120}', key => 'Zimmer "ä" 7%');
is($request->{bytes}, '{"price": 120}', 'binary mode: the data alone');
my $headers = $request->{headers};
is(join(' ', map { $headers->{"ce-$_"} } qw(specversion id source type subject op)),
    "1.0 $request->{id} /hotel%25201 binary Zimmer%20%22%C3%A4%22%207%25 event", '... and the attributes in headers');
is(type($request), 'application/json', '... the type is the data\'s');

sql(q{INSERT INTO accord.channel (name, base_url, enabled) VALUES ('batched', '} . $stub->url('/batched') . q{', false);
    INSERT INTO accord.route (channel, topic, body, batch_size) VALUES ('batched', 'batched', 'cloudevents', 10)});
$stub->script([]);
events($node, map { { topic => 'batched', key => "k$_", payload => $_ } } 1 .. 3);
sql(q{UPDATE accord.channel SET enabled = true WHERE name = 'batched'});
wait_for_delivery($node);
my ($batched) = grep { $_->{path} eq '/batched' } $stub->log;
is($batched->{headers}{'content-type'}, 'application/cloudevents-batch+json', 'a batch');
is(join(' ', map { "$_->{subject}=$_->{data}" } @{ decode_json($batched->{body}) }), 'k1=1 k2=2 k3=3', '... of envelopes');

# ---- the idempotency key

body_channel('square', { mode => 'command' }, idempotency_header => undef, idempotency_path => 'idempotency_key',
    idempotency_max_length => 45);
$request = sent('square', payload => '{"amount": 1}');
is_deeply(decode_json($request->{bytes}), { amount => 1, idempotency_key => $request->{id} }, 'a key in the body');

body_channel('graphql', {}, idempotency_header => undef, idempotency_path => 'variables.key');
$request = sent('graphql', payload => '{"query": "q", "variables": {"a": [1], "b": {}}}');
is_deeply(decode_json($request->{bytes}), { query => 'q', variables => { a => [1], b => {}, key => $request->{id} } },
    'a variable of GraphQL');
$request = sent('graphql', payload => undef);
is_deeply(decode_json($request->{bytes}), { variables => { key => $request->{id} } }, '... where nothing else is');
is(decode_json(sent('graphql', payload => '{"variables": {"key": "mine"}}')->{bytes})->{variables}{key}, 'mine',
    '... not over one that is there');

body_channel('query', { path => '/pay?currency=eur' }, idempotency_header => undef, idempotency_query => 'request id');
$request = sent('query', payload => '{}');
is($request->{path}, "/query/pay?currency=eur&request%20id=$request->{id}", 'a key in the URL');

body_channel('everywhere', { path => '/pay', body => 'form' }, idempotency_header => 'X-Key', idempotency_query => 'k',
    idempotency_path => 'key', idempotency_key => 'pay-{payload.n}');
$request = sent('everywhere', payload => '{"n": "17"}');
is("$request->{headers}{'x-key'} $request->{path} $request->{bytes}", 'pay-17 /everywhere/pay?k=pay-17 n=17&key=pay-17',
    'a key of my own, in three places');

body_channel('short', {}, idempotency_key => '{key}/{payload.n}', idempotency_max_length => 20);
my %key = map { $_ => sent('short', payload => qq{{"n": "$_"}})->{headers}{'idempotency-key'} }
  ('1', 'a' x 30, 'a' x 31, "ä", "a b");
like($_, qr/^[0-9a-f]{20}$/, 'a key that does not fit is hashed') for values %key;
my %distinct = map { $_ => 1 } values %key;
is(scalar(keys %distinct), scalar(keys %key), '... never cut: each has its own');
body_channel('uuid', {}, idempotency_key => 'charge {payload.n}', idempotency_pattern => '^[0-9a-f]{8}-[0-9a-f-]{27}$');
like(sent('uuid', payload => '{"n": "1"}')->{headers}{'idempotency-key'},
    qr/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/, '... as a UUID where the channel wants one');
body_channel('fits', {}, idempotency_key => 'a:{payload.n}', idempotency_pattern => '^[A-Za-z0-9_:-]{1,255}$');
is(sent('fits', payload => '{"n": "1"}')->{headers}{'idempotency-key'}, 'a:1', '... and left alone when it fits');

# the key in it does not make a request another one
body_channel('unchanged', { skip_unchanged => 'true' }, idempotency_header => undef, idempotency_path => 'key',
    idempotency_query => 'k', compress_above => 10);
sent('unchanged', payload => '{"rooms": 3, "what": "' . 'x' x 100 . '"}');
events($node, { topic => 'unchanged', key => 'room 7', payload => '{"rooms": 3, "what": "' . 'x' x 100 . '"}' });
wait_for_rows($node, q{SELECT outcome, count(*) FROM accord.attempt_log WHERE channel = 'unchanged' GROUP BY 1 ORDER BY 1},
    'delivered|1', 'retry|1', 'skipped|1');
pass('what is the same but for its key is unchanged');

# without a place for it a command is not repeated blindly
body_channel('placeless', { mode => 'command', body => 'text', body_from => 'payload.t' }, idempotency_header => undef,
    idempotency_path => 'key');
$stub->script([ { match => { path_regex => '^/placeless' }, do => { close_before_response => 1 } } ]);
events($node, { topic => 'placeless', key => 'p', payload => '{"t": "unlock"}' });
wait_for_rows($node, q{SELECT state, attempts FROM accord.backlog WHERE channel = 'placeless'}, 'held|1');
is(scalar(grep { $_->{path} eq '/placeless' } $stub->log), 1, 'a route that has no place for the key: held, not repeated');
sql(q{SELECT accord.discard('placeless', state => 'held')});
wait_for_delivery($node);

# what has no form
$stub->script([]);
my %poison = (form => '[1, 2]', xml => '{"a b": 1}', bytes => '{"photo": "***"}', multipart => '7', square => '"text"',
    graphql => '{"variables": []}', everywhere => '{}');
events($node, map { { topic => $_, key => 'poison', payload => $poison{$_} } } sort keys %poison);
wait_for_rows($node, q{SELECT channel, error FROM accord.dead_letter WHERE key = 'poison' ORDER BY channel},
    'bytes|invalid symbol "*" found while decoding base64 sequence',
    'everywhere|idempotency_key "pay-{payload.n}": the event defines no "payload.n"',
    'form|body from payload: a form is made of an object, and this is none',
    'graphql|the idempotency key has no place at "variables.key": "variables" of the body is not an object',
    'multipart|body from payload: a multipart body is made of an object, and this is none',
    'square|the idempotency key has no place at "idempotency_key": the body is not an object',
    'xml|body from payload: "a b" cannot be the name of an element');
pass('what has no form is a dead letter, and says why');

# ---- compression

body_channel('zip', {}, compress_above => 1000);
my $long = '{"text": "' . 'abc ä ' x 2000 . '"}';
$request = sent('zip', payload => $long);
is($request->{headers}{'content-encoding'}, 'gzip', 'a long body is compressed');
cmp_ok(length $request->{bytes}, '<', 500, '... and shorter');
my $unzipped;
gunzip(\$request->{bytes}, \$unzipped);
utf8::encode($long) if utf8::is_utf8($long);
is($unzipped, $long, '... and what it was');
ok(!exists sent('zip', payload => '{"text": "short"}')->{headers}{'content-encoding'}, 'a short one is not');
my $noise = encode_base64(join('', map { chr int rand 256 } 1 .. 900), '');
body_channel('noise', { body => 'bytes', body_from => 'payload.b' }, compress_above => 0);
ok(!exists sent('noise', payload => qq{{"b": "$noise"}})->{headers}{'content-encoding'}, '... nor one that gains nothing');

gzip(\'{"error": "compressed"}', \my $answer);
$stub->script([ { match => { path_regex => '^/form' },
    do => { status => 400, headers => { 'Content-Encoding' => 'gzip' }, body_base64 => encode_base64($answer, '') } } ]);
events($node, { topic => 'form', key => 'answer', payload => '{}' });
wait_for_rows($node, q{SELECT response FROM accord.attempt_log WHERE status = 400}, '{"error": "compressed"}');
pass('a compressed answer is read');

my $pid = dispatcher($node);
sub peak { my ($kb) = slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+)/m; return $kb; }
gzip(\("\0" x (64 << 20)), \my $bomb, -Level => 9);
gzip(\$bomb, \my $double, -Level => 9);
my $before = peak();
for my $case ([ 'gzip', $bomb ], [ 'gzip, gzip', $double ])
{
    my ($encoding, $content) = @$case;
    $stub->script([ { match => { path_regex => '^/form' }, do => { status => 422,
        headers => { 'Content-Encoding' => $encoding }, body_base64 => encode_base64($content, '') } } ]);
    events($node, map { { topic => 'form', key => "$encoding $_", payload => '{}' } } 1 .. 4);
}
wait_for_rows($node, q{SELECT outcome, count(*) FROM accord.attempt_log WHERE status = 422 GROUP BY 1}, 'rejected|8');
memory_below(peak() - $before, 16 << 10, 'a bomb of 64 MB in an answer takes no memory');
is(dispatcher($node), $pid, '... and ends nobody');

$node->stop;
done_testing();
