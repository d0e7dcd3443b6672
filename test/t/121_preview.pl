# accord.preview(): what is shown is what is sent, header by header and byte by byte, before and after; the credential
# masked where it will be; nothing sent, nothing written; and what keeps an event from being sent is said.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP qw(decode_json);
use MIME::Base64 qw(decode_base64);
use Test::More;

my $node = new_node('main', "log_statement = none\naccord.function_timeout = 3s\n");
send_everything($node);
my $stub = start_stub();

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# What accord.preview() shows, as a hash; content in hexadecimal digits.
sub preview
{
    my ($id, $channel, @account) = @_;
    my $arguments = join ', ', map { literal($_) } $id, $channel, @account;
    return decode_json(sql("SELECT row_to_json(p)::text FROM (SELECT method, url, headers, body,
        encode(content, 'hex') AS content, note FROM accord.preview($arguments)) p"));
}

# The only request to a path, and that it is what is shown: what curl itself adds aside.
sub is_sent
{
    my ($shown, $path, $masked, $what) = @_;
    poll_until(sub { grep { $_->{path} =~ m{^/$path} } $stub->log }, $what);
    my ($request) = grep { $_->{path} =~ m{^/$path} } $stub->log;
    my %sent = %{ $request->{headers} };
    my %shown = map { lc($_) => $shown->{headers}{$_} } keys %{ $shown->{headers} };
    delete @sent{ qw(host content-length accept) };
    is($masked ? delete $sent{$masked} : '', $masked ? 'Bearer very-secret' : '', "$what: the credential is sent") if $masked;
    is(delete $shown{$masked}, 'Bearer ***', '... and shown masked') if $masked;
    is_deeply(\%shown, \%sent, "$what: the headers that are shown are those that are sent");
    is("$shown->{method} $shown->{url}", $request->{method} . ' ' . $stub->url($request->{path}), '... method and URL');
    is(pack('H*', $shown->{content} || ''), exists $request->{body_base64} ? decode_base64($request->{body_base64})
        : do { my $b = $request->{body}; utf8::encode($b); $b }, '... and the bytes');
    return;
}

sql(q{INSERT INTO accord.secret VALUES ('token', 'very-secret'), ('other', 'other-secret');
    CREATE SCHEMA app;
    CREATE TABLE app.made (at timestamptz DEFAULT clock_timestamp());
    CREATE FUNCTION app.body(e accord.event_log) RETURNS accord.http_request LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO app.made DEFAULT VALUES;
        IF e.payload ->> 'do' = 'fail' THEN RAISE 'cannot'; END IF;
        IF e.payload ->> 'do' = 'skip' THEN RETURN NULL; END IF;
        IF e.payload ->> 'do' = 'sleep' THEN PERFORM pg_sleep(600); END IF;
        RETURN ROW('PUT', '/made/' || e.key, '{"X-Made": "yes"}', 'made ' || (SELECT count(*) FROM app.made))::accord.http_request;
    END $$});
insert_row($node, 'channel', name => 'shown', base_url => $stub->url('/shown'), enabled => 'false',
    auth => '{"type": "bearer", "secret": "token"}', headers => '{"X-Channel": "{channel}"}', compress_above => 100);
insert_row($node, 'account', channel => 'shown', name => 'a', auth => '{"type": "header", "name": "X-Api-Key", "secret": "other"}',
    vars => '{"p": "P 1"}');
route($node, 'shown', topic => 'plain', path => '/{key}', headers => '{"X-Var": "{payload.v}"}', method => 'PUT');
route($node, 'shown', topic => 'long', path => '/long', body => 'form');
route($node, 'shown', topic => 'var', path => '/{vars.p}');
route($node, 'shown', topic => 'batch', batch_size => 10);
my $log = sql('SELECT count(*) FROM accord.event_log');

# ---- before it is sent, and after

my $id = events($node, { topic => 'plain', key => 'room 7', payload => '{"v": "v", "n": 1.50, "s": "ä"}', headers => '{"X-Event": "e"}' });
my $shown = preview($id, 'shown');
is($shown->{body}, '{"n": 1.50, "s": "ä", "v": "v"}' =~ s/ä/\x{e4}/r, 'the body as text');
is($shown->{headers}{'X-Channel'} . $shown->{headers}{'X-Event'}, 'showne', 'headers of the channel and the event');
is($shown->{note}, undef, 'nothing to be said');
is($stub->count, 0, 'nothing was sent');
my $long = events($node, { topic => 'long', key => 'l', payload => '{"text": "' . 'ab ' x 200 . '"}' });
my $compressed = preview($long, 'shown');
is($compressed->{headers}{'Content-Encoding'}, 'gzip', 'what is long is compressed');
is($compressed->{body}, 'text=' . 'ab+' x 200, '... and shown as it is read');
is(preview($id, 'shown')->{content}, $shown->{content}, 'asked again, the same');
sql(q{UPDATE accord.channel SET enabled = true});
is_sent($shown, 'shown/room', 'authorization', 'a plain one');
is_sent($compressed, 'shown/long', 'authorization', 'a compressed one');
wait_for_delivery($node);
is_deeply(preview($id, 'shown'), $shown, 'after it was sent, the same');
sql(q{UPDATE accord.channel SET enabled = false});

# ---- accounts, and what does not go there by itself

$shown = preview(scalar events($node, { topic => 'var', key => 'k', payload => '{}', account => 'a' }), 'shown');
is($shown->{url}, $stub->url('/shown/P%201'), 'the event\'s account');
is($shown->{headers}{'X-Api-Key'}, '***', '... and its credential, masked');
is($shown->{headers}{Authorization}, undef, '... instead of the channel\'s');
$id = events($node, { topic => 'var', key => 'k', payload => '{}' });
like(preview($id, 'shown')->{note}, qr/^it cannot be sent: path .*defines no "vars.p"/, 'what cannot be sent, and why');
$shown = preview($id, 'shown', 'a');
is($shown->{url}, $stub->url('/shown/P%201'), 'another account');
is($shown->{note}, 'this event does not go there by itself', '... is said to be one');
is(preview(scalar events($node, { topic => 'nothing' }), 'shown')->{note},
    'no route of the channel takes this event; this event does not go there by itself', 'no route');
is(preview(scalar events($node, { topic => 'batch', payload => '1' }), 'shown')->{body}, '[1]', 'a batch, of one');
like(sql(q{BEGIN; INSERT INTO accord.outbox (topic, key, payload) VALUES ('plain', 'mine', '{"v": 1}');
    SELECT url, note FROM accord.preview((SELECT event_id FROM accord.event_log WHERE key = 'mine'), 'shown'); ROLLBACK}),
    qr{/shown/mine\|not committed}, 'an event of the transaction at hand');
for my $case ([ '0190c0de-0000-7000-8000-000000000000', 'shown' ], [ $id, 'hidden' ], [ $id, 'shown', 'b' ])
{
    my (undef, undef, $error) = $node->psql('postgres', 'SELECT accord.preview(' . join(', ', map { literal($_) } @$case) . ')');
    like($error, qr/ERROR:  .*(is not in the log|does not exist)/, "refused: $error" =~ s/\n.*//sr);
}

# ---- functions

insert_row($node, 'channel', name => 'made', base_url => $stub->url(''), idempotency_header => undef, enabled => 'false');
route($node, 'made', topic => 'made', mode => 'command', body_function => 'app.body');
$id = events($node, { topic => 'made', key => 'k', payload => '{}' });
for my $time (1, 2)
{
    $shown = preview($id, 'made');
    is(join(' ', map { defined $_ ? $_ : 'null' } @$shown{ qw(method url body note) }), 'PUT ' . $stub->url('/made/k') . ' made 1 null', 'a function makes it');
}
is(sql('SELECT count(*) FROM app.made'), '0', '... and what it wrote is undone');
my %why = (fail => 'it cannot be sent: function app.body: cannot', skip => 'its function has nothing to send',
    sleep => 'it cannot be sent: function app.body: it took longer than accord.function_timeout');
for my $do (sort keys %why)
{
    is(preview(scalar events($node, { topic => 'made', key => $do, payload => qq{{"do": "$do"}} }), 'made')->{note},
        $why{$do}, "a function that would $do");
}
my (undef, undef, $error) = $node->psql('postgres', q{SET statement_timeout = 100; SET accord.reason = '';
    SELECT accord.preview(event_id, 'made') FROM accord.event_log WHERE key = 'sleep'});
like($error, qr/canceling statement due to statement timeout/, 'the session\'s own timeout is its own');
is(preview($id, 'made')->{body}, 'made 1', '... and the next one works');
$stub->script([ { match => { path_regex => '^/made' }, do => { close_before_response => 1 } } ]);
sql(q{SELECT accord.discard(event_id, 'made') FROM accord.event_log WHERE topic = 'made' AND key <> 'k';
      UPDATE accord.channel SET enabled = true WHERE name = 'made'});
wait_for_rows($node, q{SELECT state FROM accord.backlog WHERE channel = 'made' AND key = 'k'}, 'held');
sql('INSERT INTO app.made SELECT FROM generate_series(1, 5)');
$shown = preview($id, 'made');
is($shown->{body}, 'made 1', 'a frozen command: as it was sent');
is($shown->{note}, 'as it was made when it was sent first', '... and that is said');

# ---- a function, run by the dispatcher, that looks itself, while the configuration changes

sql(q{CREATE FUNCTION app.look(e accord.event_log) RETURNS accord.http_request LANGUAGE sql AS $$
    SELECT ROW(NULL, NULL, NULL, (SELECT p.note FROM accord.preview(e.event_id, 'shown') p))::accord.http_request $$});
insert_row($node, 'channel', name => 'look', base_url => $stub->url('/look'));
route($node, 'look', topic => 'look', body_function => 'app.look');
for my $n (1 .. 3)
{
    insert_row($node, 'channel', name => "another$n", base_url => 'http://127.0.0.1:1');
    events($node, map { { topic => 'look', key => "$n.$_", payload => '{}' } } 1 .. 3);
}
poll_until(sub { 9 == grep { $_->{path} eq '/look' } $stub->log }, 'all that looked');
is(scalar(grep { $_->{path} eq '/look' && $_->{body} =~ /^no route of the channel/ } $stub->log), 9,
    'a function may look, also in a dispatcher');

# ---- who may

sql(q{CREATE ROLE auditor LOGIN; SELECT accord.grant_auditor('auditor'); CREATE ROLE nobody LOGIN});
is($node->safe_psql('postgres', "SELECT method FROM accord.preview('$id', 'made')", extra_params => [ '-U', 'auditor' ]), 'PUT',
    'an auditor may look');
(undef, undef, $error) = $node->psql('postgres', "SELECT accord.preview('$id', 'made')", extra_params => [ '-U', 'nobody' ]);
like($error, qr/permission denied for function preview/, '... nobody else');
is(sql(q{SELECT count(*) FROM accord.preview('} . $id . q{', 'made') p WHERE p::text LIKE '%secret%'}), '0', 'no secret is shown');

$node->stop;
done_testing();
