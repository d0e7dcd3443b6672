# Every type of authentication, as it arrives at a server. Signatures are accepted by the library of Standard Webhooks (npm:
# standardwebhooks), of Stripe and of GitHub, and by a verifier of AWS's Signature Version 4 that is written after its
# specification, here; and refused when anything of the request was changed. A signature is made for each attempt; the
# credential goes nowhere else, not even when the server echoes it.
use strict;
use warnings FATAL => 'all';

use Accord;
use Digest::SHA qw(hmac_sha256 hmac_sha256_hex sha256_hex hmac_sha512_base64);
use Encode qw(encode_utf8);
use JSON::PP;
use MIME::Base64;
use Test::More;

my $node = new_node('main');
send_everything($node);
my $stub = start_stub();
my $json = JSON::PP->new->utf8->canonical;
sub value { return $node->safe_psql('postgres', @_); }

my %secret = (
    bearer => 'Bearer-Secret-1', basic => 'Basic-Secret:2', header => 'Header-Secret-3', query => 'Query Secret/4&5=6',
    hmac => 'Hmac-Secret-7', old => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', new => 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD',
    aws => 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY', session => 'Session+Token/8', hex => '00ff10');
value(insert_sql('secret', name => $_, value => $secret{$_})) for sort keys %secret;

my %auth = (
    bearer => { type => 'bearer', secret => 'bearer' },
    basic => { type => 'basic', user => 'ann', secret => 'basic' },
    header => { type => 'header', name => 'X-Api-Key', secret => 'header' },
    query => { type => 'query', name => 'key', secret => 'query' },
    hmac => {
        type => 'hmac', secret => 'hmac', sign => "{method}\n{target}\n{timestamp}\n{nonce}\n{body_sha256}\n{body}",
        user => 'key-1', hash => 'sha512', encoding => 'base64',
        headers => { Authorization => 'HMAC {user}:{signature}', 'X-Time' => '{timestamp}', 'X-Nonce' => '{nonce}' } },
    github => { type => 'hmac', secret => 'hmac', sign => '{body}', headers => { 'X-Hub-Signature-256' => 'sha256={signature}' } },
    stripe => {
        type => 'hmac', secret => 'hmac', sign => '{timestamp}.{body}',
        headers => { 'Stripe-Signature' => 't={timestamp},v1={signature}' } },
    raw => { type => 'hmac', secret => 'hex', key => 'hex', sign => '{body}', headers => { 'X-Signature' => '{signature}' } },
    standard => { type => 'standard', secrets => [ 'new', 'old' ] },
    aws => {
        type => 'aws_sigv4', access_key => 'AKIDEXAMPLE', secret => 'aws', region => 'eu-west-1', service => 'execute-api' },
    s3 => {
        type => 'aws_sigv4', access_key => 'AKIDEXAMPLE', secret => 'aws', region => 'eu-west-1', service => 's3',
        session_token => 'session' });
for my $name (sort keys %auth)
{
    channel($node, $stub, $name, auth => $json->encode($auth{$name}), retry_base => '1 ms', retry_cap => '5 ms');
    route($node, $name, topic => $name, path => '/{channel}/a%20b//{key}?z=1&a={payload.q}');
}
# Each is refused once, with an answer that holds all it was sent; then it is accepted.
my %echo = (%secret, query => "$secret{query} at ?key=Query%20Secret%2F4%265%3D6");
$stub->script([ map { { match => { path_regex => "^/$_/", times => 1 }, do => { status => 503, body => "echo: $echo{$_}" } } }
      grep { exists $secret{$_} } sort keys %auth ]);
for my $name (sort keys %auth)
{
    events($node, { topic => $name, key => 'k/1', payload => '{"q": "ä b", "n": [1, 2]}' });
}
wait_for_delivery($node);

my %request;
push @{ $request{ (split m{/}, $_->{path})[1] } }, $_ for $stub->log;
my ($first) = map { $_->[0] } $request{bearer};
sub headers_of { my ($name) = @_; return $request{$name}[-1]{headers}; }

is(scalar @{ $request{$_} }, exists $secret{$_} ? 2 : 1, "$_: as many requests as there should be") for sort keys %auth;
is(headers_of('bearer')->{authorization}, "Bearer $secret{bearer}", 'bearer');
is(headers_of('basic')->{authorization}, 'Basic ' . encode_base64("ann:$secret{basic}", ''), 'basic');
is(headers_of('header')->{'x-api-key'}, $secret{header}, 'a header');
like($request{query}[-1]{path}, qr{^/query/a%20b//k%2F1\?z=1&a=%C3%A4%20b&key=Query%20Secret%2F4%265%3D6$},
    'a parameter of the query, after those there are');

# ---- HMAC by templates

my $hmac = headers_of('hmac');
my $text = join "\n", 'POST', $request{hmac}[-1]{path}, $hmac->{'x-time'}, $hmac->{'x-nonce'}, sha256_hex(encode_utf8($request{hmac}[-1]{body})),
  encode_utf8($request{hmac}[-1]{body});
my $signature = hmac_sha512_base64($text, $secret{hmac});
$signature .= '=' while length($signature) % 4;
is($hmac->{authorization}, "HMAC key-1:$signature", 'HMAC over a template');
isnt($request{hmac}[0]{headers}{'x-nonce'}, $hmac->{'x-nonce'}, '... anew for each attempt');
isnt($request{hmac}[0]{headers}{authorization}, $hmac->{authorization}, '... and so its signature');

is(headers_of('raw')->{'x-signature'}, hmac_sha256_hex(encode_utf8($request{raw}[-1]{body}), pack('H*', $secret{hex})), '... by a key of bytes, written in hex');

# ---- AWS, after the specification

# Whether the signature of a request is right, as a server of AWS would see it.
sub aws_accepts
{
    my ($request, $service) = @_;
    my $headers = $request->{headers};
    my ($scope, $names, $given) =
      $headers->{authorization} =~ m{^AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/(\S+), SignedHeaders=(\S+), Signature=(\w{64})$}
      or return 0;
    my ($path, $query) = split /\?/, $request->{path}, 2;
    my $escape = sub { my ($text) = @_; $text =~ s/([^A-Za-z0-9._~-])/sprintf '%%%02X', ord $1/ge; return $text; };
    my $unescape = sub { my ($text) = @_; $text =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ge; return $text; };
    $path =~ s{/+}{/}g if $service ne 's3';
    my $uri = join '/', map { $escape->($service eq 's3' ? $unescape->($_) : $_) } split m{/}, $path, -1;
    my $parameters = join '&', sort map { join '=', map { $escape->($unescape->($_)) } split /=/, $_, 2 } split /&/, $query;
    my $canonical = join "\n", $request->{method}, $uri, $parameters,
      (map { "$_:$headers->{$_}" } split /;/, $names), '', $names, sha256_hex(encode_utf8($request->{body}));
    my ($day, $region, $for) = split m{/}, $scope;
    my $key = "AWS4$secret{aws}";
    $key = hmac_sha256($_, $key) for $day, 'eu-west-1', $service, 'aws4_request';
    return 0 if $region ne 'eu-west-1' || $for ne $service || $headers->{'x-amz-date'} !~ /^${day}T\d{6}Z$/;
    return hmac_sha256_hex(join("\n", 'AWS4-HMAC-SHA256', $headers->{'x-amz-date'}, $scope, sha256_hex($canonical)), $key) eq
      $given;
}

sub changed { my ($request, %other) = @_; return { %$request, %other, headers => { %{ $request->{headers} }, %{ $other{headers} || {} } } }; }

my $aws = $request{aws}[-1];
ok(aws_accepts($aws, 'execute-api'), 'Signature Version 4');
is($aws->{headers}{authorization} =~ /SignedHeaders=([^,]+)/ && $1, 'content-type;host;x-amz-date', '... with these headers signed');
ok(!aws_accepts(changed($aws, body => '{}'), 'execute-api'), '... not with another body');
ok(!aws_accepts(changed($aws, path => '/aws/other?z=1'), 'execute-api'), '... path');
ok(!aws_accepts(changed($aws, headers => { 'content-type' => 'text/plain' }), 'execute-api'), '... or type');
my $s3 = $request{s3}[-1];
ok(aws_accepts($s3, 's3'), '... for S3');
is($s3->{headers}{'x-amz-security-token'}, $secret{session}, '... with a session token');
like($s3->{headers}{authorization}, qr/;x-amz-content-sha256;x-amz-date;x-amz-security-token,/, '... that is signed as well');

# ---- official libraries

SKIP:
{
    my $modules = $ENV{ACCORD_NODE_MODULES};
    skip 'not installed: standardwebhooks, stripe and @octokit/webhooks-methods of npm (ACCORD_NODE_MODULES)', 12 unless defined $modules;
    my $script = $node->basedir . '/verify.mjs';
    PostgreSQL::Test::Utils::append_to_file($script, <<'JS');
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { readFileSync } from 'node:fs';
const modules = process.env.ACCORD_NODE_MODULES;
const require = createRequire(modules + '/');
const { Webhook } = require('standardwebhooks');
const stripe = new (require('stripe'))('sk_test_x');
const octokit = await import(pathToFileURL(modules + '/@octokit/webhooks-methods/dist-node/index.js').href);
const of = {
    standard: (r, secret) => new Webhook(secret).verify(r.body, r.headers),
    stripe: (r, secret) => stripe.webhooks.constructEvent(r.body, r.headers['stripe-signature'], secret),
    github: async (r, secret) => { if (!await octokit.verify(secret, r.body, r.headers['x-hub-signature-256'])) throw Error('no'); },
};
const results = [];
for (const [library, request, secret] of JSON.parse(readFileSync(0, 'utf8')))
    try { await of[library](request, secret); results.push('accepted'); } catch (e) { results.push('refused'); }
console.log(JSON.stringify(results));
JS
    my ($standard, $stripe, $github) = map { $request{$_}[-1] } 'standard', 'stripe', 'github';
    # the log has the body as text already
    my @cases = (
        [ 'by the new secret', 'accepted', 'standard', $standard, $secret{new} ],
        [ 'by the old one', 'accepted', 'standard', $standard, $secret{old} ],
        [ 'by another', 'refused', 'standard', $standard, 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' ],
        [ 'another body', 'refused', 'standard', changed($standard, body => '{}'), $secret{new} ],
        [ 'another id', 'refused', 'standard', changed($standard, headers => { 'webhook-id' => 'x' }), $secret{new} ],
        [ 'another time', 'refused', 'standard',
            changed($standard, headers => { 'webhook-timestamp' => $standard->{headers}{'webhook-timestamp'} + 1 }), $secret{new} ],
        [ 'Stripe', 'accepted', 'stripe', $stripe, $secret{hmac} ],
        [ 'Stripe: another body', 'refused', 'stripe', changed($stripe, body => '{}'), $secret{hmac} ],
        [ 'Stripe: another secret', 'refused', 'stripe', $stripe, 'x' ],
        [ 'GitHub', 'accepted', 'github', $github, $secret{hmac} ],
        [ 'GitHub: another body', 'refused', 'github', changed($github, body => '{}'), $secret{hmac} ],
        [ 'GitHub: another secret', 'refused', 'github', $github, 'x' ]);
    my $results;
    IPC::Run::run([ 'node', $script ], '<', \$json->encode([ map { [ @$_[2 .. 4] ] } @cases ]), '>', \$results)
      or die "node failed\n";
    my @results = @{ decode_json($results) };
    is($results[$_], $cases[$_][1], "signed for a library: $cases[$_][0]") for 0 .. $#cases;
}
my ($event_id) = split /\n/, value(q{SELECT event_id FROM accord.event_log WHERE topic = 'standard'});
is(headers_of('standard')->{'webhook-id'}, $event_id, 'a webhook\'s id is that of the event, for every attempt');

# ---- digest: curl answers the challenge

my $realm = 'test@example.com';
my $nonce = 'dcd98b7102dd2f0e8b11d0f600bfb0c093';
channel($node, $stub, 'digest', auth => '{"type": "digest", "user": "bert", "secret": "basic"}');
route($node, 'digest', topic => 'digest', path => '/digest');
$stub->script([
    { match => { path_regex => '^/digest', header => { Authorization => '^Digest ' } }, do => { status => 200 } },
    {
        match => { path_regex => '^/digest' },
        do => { status => 401, headers => { 'WWW-Authenticate' => qq{Digest realm="$realm", qop="auth", algorithm=SHA-256, nonce="$nonce"} } } } ]);
events($node, { topic => 'digest', key => 'd1', payload => '{"n": 1}' }, { topic => 'digest', key => 'd2', payload => '{"n": 2}' });
wait_for_delivery($node);
my @digest = grep { $_->{path} eq '/digest' } $stub->log;
my @answers = grep { ($_->{headers}{authorization} || '') =~ /^Digest/ } @digest;
is(scalar @digest, 4, 'digest: a challenge, and an answer, for each event');
is(join(' ', sort map { $_->{body} } @answers), '{"n": 1} {"n": 2}', '... with the body');
is(join(' ', map { $_->{body} } grep { !exists $_->{headers}{authorization} } @digest), ' ', '... which the challenge did not get');
for my $answer (@answers)
{
    my %part = $answer->{headers}{authorization} =~ /(\w+)="?([^",]+)"?/g;
    my $expected = sha256_hex(join ':', sha256_hex("bert:$realm:$secret{basic}"), $nonce, @part{qw(nc cnonce qop)},
        sha256_hex('POST:/digest'));
    is($part{response}, $expected, '... and the answer is right');
}
is(value(q{SELECT string_agg(DISTINCT outcome || ' ' || attempt, ',') FROM accord.attempt WHERE topic = 'digest'}), 'delivered 1',
    '... at one attempt');
# another channel with the same handles knows nothing of it
$stub->script([]);
events($node, { topic => 'bearer', key => 'after', payload => '{"q": 1}' });
wait_for_delivery($node);
is(($stub->log)[-1]{headers}{authorization}, "Bearer $secret{bearer}", 'what was agreed on is not used elsewhere');

# ---- nothing else shows them

is(value(q{SELECT count(*) FROM accord.attempt_log WHERE response LIKE 'echo: %***%'}), 6,
    'what a server echoes is kept without the credential');
is(value(q{SELECT count(*) FROM accord.attempt_log WHERE channel = 'query' AND response LIKE 'echo: *** at ?key=***'}), 1,
    '... also as it stands in a URL');
is(join(' ', rows_with($node, map { $secret{$_} } grep { $_ ne 'hex' } sort keys %secret)), '',
    'no table but accord.secret holds a secret');
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
is(join(' ', grep { index($log, "'$secret{$_}'") < 0 && index($log, $secret{$_}) >= 0 } sort keys %secret), '',
    'nor the log, but in the statements that set them');
$node->stop;
done_testing();
