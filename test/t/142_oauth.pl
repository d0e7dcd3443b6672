# Tokens. A scripted endpoint: fetched once for all who share it, kept across a restart, renewed before it ends, replaced once
# when a channel refuses it and the delivery sent again at no attempt, a refresh token that was rotated is used from then on,
# also after a crash; an endpoint that fails is asked at growing intervals, and says why; a login before the call. Then a real
# server (npm: oauth2-mock-server): eight dispatchers, one expired token, exactly one request for a new one.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP;
use MIME::Base64;
use Test::More;

my $key_file = PostgreSQL::Test::Utils::tempdir() . '/keys';
PostgreSQL::Test::Utils::append_to_file($key_file, 'a' x 64 . "\n");
chmod 0600, $key_file or die;
my $node = new_node('main', "accord.secret_key_file = '$key_file'\naccord.dispatchers = 8\nmax_worker_processes = 24\n");
send_everything($node);
my $stub = start_stub();
my $json = JSON::PP->new->utf8->canonical;
sub value { return $node->safe_psql('postgres', @_); }

# Answers with these tokens, one after the other; then the last.
sub grant
{
    my ($path, @answers) = @_;
    return map { { match => { path_regex => "^$path", (@answers > 1 ? (times => 1) : ()) }, do => $_ } } @answers;
}
sub token { my (%members) = @_; return { status => 200, body => { token_type => 'Bearer', expires_in => 3600, %members } }; }
sub requests { my ($path) = @_; return grep { $_->{path} =~ m{^$path} } $stub->log; }
sub bearers { my ($path) = @_; return map { $_->{headers}{authorization} =~ s/^Bearer //r } requests($path); }

value(insert_sql('secret', name => $_, value => "The-Secret-Of-$_")) for 'client', 'refresh', 'password', 'bad';

# ---- client credentials, shared by accounts and by channels of other dispatchers

my %shared = (type => 'oauth2', token_url => $stub->url('/token'), client_id => 'the client', secret => 'client', scope => 'rates:write');
channel($node, $stub, "pms$_", auth => $json->encode(\%shared), retry_base => '1 ms', retry_cap => '2 ms') for 1 .. 8;
route($node, "pms$_", path => '/pms') for 1 .. 8;
value(insert_sql('account', channel => 'pms1', name => "hotel-$_")) for 1 .. 5;
$stub->script([ { match => { path_regex => '^/token' }, do => { %{ token(access_token => 'Access-1') }, gate => 'token' } } ]);
$stub->close_gate('token');
value(join ';', map { insert_sql('outbox', topic => 'x', key => "k$_", ($_ % 2 ? (account => 'hotel-' . (1 + $_ % 5)) : ())) } 1 .. 20);
$stub->wait_for_count(1);
$stub->open_gate('token');
wait_for_delivery($node);
my @asked = requests('/token');
is(scalar @asked, 1, 'eight dispatchers, thirteen connections: one request for the token they share');
is($asked[0]{body}, 'grant_type=client_credentials&scope=rates%3Awrite', '... by its grant');
is($asked[0]{headers}{authorization}, 'Basic ' . encode_base64('the%20client:The-Secret-Of-client', ''), '... with the client\'s credentials');
is($asked[0]{headers}{'content-type'}, 'application/x-www-form-urlencoded', '... as a form');
is(join(',', keys %{ { map { $_ => 1 } bearers('/pms') } }), 'Access-1', '... and used by all');
like(value('SELECT access_token FROM accord.token'), qr/^sealed:1:/, 'it is kept, sealed');

$node->restart;
events($node, { topic => 'x', key => 'after a restart', channels => '{pms2,pms3}' });
wait_for_delivery($node);
is(scalar(requests('/token')), 1, 'after a restart it is not asked for again');

# ---- refused by the channel

$stub->script([
    grant('/token', token(access_token => 'Access-2')),
    { match => { path_regex => '^/pms', header => { Authorization => 'Access-1$' } }, do => { status => 401, body => 'Bearer Access-1?' } } ]);
events($node, { topic => 'x', key => 'refused', channels => '{pms2}' });
wait_for_delivery($node);
is(scalar(requests('/token')), 2, 'a token that a channel refuses is replaced');
is(value(q{SELECT string_agg(concat_ws(' ', outcome, attempt, error, response), ', ' ORDER BY recorded_at)
    FROM accord.attempt WHERE key = 'refused'}),
    'unauthorized 1 HTTP status 401: sent again with a new token Bearer ***?, delivered 1', '... and the delivery sent again at no attempt');
events($node, { topic => 'x', key => 'refused elsewhere', channels => '{pms3}' });
wait_for_delivery($node);
is(scalar(requests('/token')), 2, '... and the other dispatchers take it over');

# a channel that refuses every token
$stub->script([ grant('/token', map { token(access_token => "Access-$_") } 3 .. 9), { match => { path_regex => '^/pms' }, do => { status => 401 } } ]);
value(q{UPDATE accord.channel SET max_attempts = 4 WHERE name = 'pms2'});
events($node, { topic => 'x', key => 'always', channels => '{pms2}' });
wait_for_rows($node, q{SELECT state FROM accord.backlog WHERE key = 'always'}, 'dead');
is(scalar(requests('/token')), 3, 'a channel that refuses the new one as well is not given one after the other');
is(value(q{SELECT count(*) FROM accord.attempt WHERE key = 'always'}), 5, '... and its deliveries are attempts like others');
$stub->script([ grant('/token', token(access_token => 'Access-X')) ]);

# ---- refresh tokens

my %rotated = (type => 'oauth2', token_url => $stub->url('/rotate'), client_id => 'c', secret => 'client', refresh_token => 'refresh', client_auth => 'body');
channel($node, $stub, 'rotated', auth => $json->encode(\%rotated));
route($node, 'rotated', path => '/turned');
$stub->script([ grant('/rotate', map { token(access_token => "Rotated-$_", refresh_token => "Refresh-$_", expires_in => 4) } 1 .. 50) ]);
sub rotated { events($node, { topic => 'x', key => "r$_[0]", channels => '{rotated}' }); return wait_for_delivery($node); }
rotated(1);
is((requests('/rotate'))[0]{body}, 'grant_type=refresh_token&refresh_token=The-Secret-Of-refresh&client_id=c&client_secret=The-Secret-Of-client',
    'a refresh token is exchanged');
poll_until(sub { rotated(rand); return requests('/rotate') > 1; }, 'the token to be renewed');
like((requests('/rotate'))[1]{body}, qr/&refresh_token=Refresh-1&/, 'the one that came with the answer is used next');
ok((requests('/rotate'))[1]{time} < (requests('/rotate'))[0]{time} + 4, '... before the token has ended');
my $before = requests('/rotate');
crash_server($node);
poll_until(sub { rotated(rand); return requests('/rotate') > $before; }, 'the token to be renewed');
my @exchanges = requests('/rotate');
like($exchanges[$_]{body}, qr/&refresh_token=Refresh-$_&/, "... exchange $_, each by the one before") for 1 .. $#exchanges;
my %used = map { $_ => 1 } bearers('/turned');
is(scalar(grep { !/^Rotated-\d+$/ } keys %used), 0, '... and nothing but what was given is used');
value(q{UPDATE accord.secret SET value = 'Given-Anew' WHERE name = 'refresh'});
poll_until(sub { rotated(rand); return (requests('/rotate'))[-1]{body} =~ /=Given-Anew&/; }, 'the new secret');
pass('a refresh token that a person sets takes the place of what was given');

# ---- an endpoint that fails

channel($node, $stub, 'failing', auth => $json->encode({ %shared, token_url => $stub->url('/fail'), secret => 'bad' }));
route($node, 'failing', path => '/mended');
$stub->script([
    { match => { path_regex => '^/fail', times => 1 }, do => { status => 401, body => { error => 'invalid_client', error_description => 'not The-Secret-Of-bad' } } },
    grant('/fail', token(access_token => 'At-Last')) ]);
events($node, map { { topic => 'x', key => "f$_", channels => '{failing}' } } 1 .. 50);
wait_for_rows($node, q{SELECT state, last_error, throttled_until > now() + interval '20 s' FROM accord.status WHERE channel = 'failing'},
    'throttled|no token: HTTP status 401, invalid_client|t');
wait_for_rows($node, q{SELECT state, reason FROM accord.endpoint_log WHERE channel = 'failing'},
    'throttled|no token: HTTP status 401, invalid_client');
is(scalar(requests('/fail')), 1, 'an endpoint that says no is left alone for a while');
is(value(q{SELECT count(*) FROM accord.attempt WHERE channel = 'failing'}), 0, '... and what waits is no attempt');
is(value(q{SELECT failures, error FROM accord.token WHERE url LIKE '%/fail'}), '1|HTTP status 401, invalid_client', '... for everybody to see');
value(q{SELECT accord.resume('failing')});
wait_for_delivery($node);
is(scalar(requests('/fail')), 2, '... until somebody resumes it');
is(scalar(bearers('/mended')), 50, '... then everything goes');

# ---- a login

channel($node, $stub, 'login', auth => $json->encode({
    type => 'login', token_url => $stub->url('/login'), parameters => { user => 'ann' }, secret_parameter => 'pass', secret => 'password',
    token => 'data.session', expires => 'data.seconds', name => 'X-Session', prefix => '' }));
route($node, 'login', path => '/guests');
$stub->script([ { match => { path_regex => '^/login' }, do => { status => 200, body => { data => { session => 'S-1', seconds => '600' } } } } ]);
events($node, { topic => 'x', key => 'l', channels => '{login}' });
wait_for_delivery($node);
is((requests('/login'))[0]{body}, '{"user":"ann","pass":"The-Secret-Of-password"}', 'a login: its call');
is((requests('/guests'))[0]{headers}{'x-session'}, 'S-1', '... and what it gave');
$stub->script([ { match => { path_regex => '^/login' }, do => { status => 200, body => { data => { session => "S\r\nX: y" } } } } ]);
value(q{UPDATE accord.secret SET updated_at = now() WHERE name = 'password'; UPDATE accord.channel SET description = 'x' WHERE name = 'login'});
value(q{UPDATE accord.secret SET value = 'The-Other-Password' WHERE name = 'password'});
events($node, { topic => 'x', key => 'l2', channels => '{login}' });
wait_for_rows($node, q{SELECT last_error FROM accord.status WHERE channel = 'login'}, 'no token: the answer holds no token');
pass('a token that cannot stand in a header is none');
value(q{DELETE FROM accord.channel WHERE name = 'login'});

# ---- a real server

SKIP:
{
    my $modules = $ENV{ACCORD_NODE_MODULES};
    skip 'not installed: oauth2-mock-server of npm (ACCORD_NODE_MODULES)', 4 unless defined $modules;
    my $script = $node->basedir . '/oauth.mjs';
    PostgreSQL::Test::Utils::append_to_file($script, <<'JS');
import { pathToFileURL } from 'node:url';
const { OAuth2Server } = await import(pathToFileURL(process.env.ACCORD_NODE_MODULES + '/oauth2-mock-server/dist/index.mjs').href);
const server = new OAuth2Server();
await server.issuer.keys.generate('RS256');
await server.start(0, '127.0.0.1');
// two of one second would be the same
let issued = 0;
server.service.on('beforeTokenSigning', token => { token.payload.jti = String(++issued); });
server.service.on('beforeResponse', (response, request) => console.log(`TOKEN ${request.body.grant_type}`));
console.log(`PORT ${server.address().port}`);
process.stdin.on('end', () => process.exit(0)).resume();
JS
    my ($in, $out, $err) = ('', '', '');
    my $server = IPC::Run::start([ 'node', $script ], '<', \$in, '>', \$out, '2>', \$err);
    poll_until(sub { $server->pump_nb; return $out =~ /PORT (\d+)/ || $err; }, 'the OAuth server');
    my ($port) = $out =~ /PORT (\d+)/ or die "oauth2-mock-server: $err\n";
    my $auth = $json->encode({ %shared, token_url => "http://127.0.0.1:$port/token" });
    value(join ';', map { 'UPDATE accord.channel SET auth = ' . literal($auth) . " WHERE name = 'pms$_'" } 1 .. 8);
    my $all = '{' . join(',', map { "pms$_" } 1 .. 8) . '}';
    events($node, { topic => 'x', key => 'first', channels => $all });
    wait_for_delivery($node);
    $server->pump_nb;
    is(scalar(() = $out =~ /TOKEN client_credentials/g), 1, 'oauth2-mock-server gives one token');
    my ($jwt) = (bearers('/pms'))[-1];
    like($jwt, qr/^eyJ[\w-]+\.[\w-]+\.[\w-]+$/, '... a JWT, which is used');
    # everybody's token has ended
    value(q{UPDATE accord.token SET expires_at = now() WHERE url LIKE '%' || } . literal(":$port/token"));
    $node->restart;
    value(join ';', map { insert_sql('outbox', topic => 'x', key => "e$_", channels => $all) } 1 .. 40);
    wait_for_delivery($node);
    $server->pump_nb;
    is(scalar(() = $out =~ /TOKEN/g), 2, 'eight dispatchers, one expired token: exactly one request for a new one');
    isnt((bearers('/pms'))[-1], $jwt, '... which all use');
    $in = '';
    $server->kill_kill;
}

# ---- nowhere else

my @values = (map({ "The-Secret-Of-$_" } 'client', 'refresh', 'password', 'bad'), 'Given-Anew', 'Access-', 'Rotated-', 'Refresh-1', 'At-Last');
my $log = join "\n", grep { !/statement: .*(INSERT INTO|UPDATE) accord\.secret/ } split /\n/, PostgreSQL::Test::Utils::slurp_file($node->logfile);
is(join(' ', grep { index($log, $_) >= 0 } @values), '', 'the log shows no secret and no token');
is(join(' ', rows_with($node, @values)), '', 'nor does any table');
$node->stop;
my ($found) = PostgreSQL::Test::Utils::run_command([ 'grep', '-rlE', 'Access-[12]|Rotated-1|Refresh-1|At-Last', $node->data_dir ]);
is($found, '', 'nor any file of the cluster');
done_testing();
