# Webhooks signed by the libraries that their senders publish (npm: standardwebhooks, stripe, @octokit/webhooks-methods)
# are accepted, and not when anything of them was changed. test/run installs the libraries and names them by
# ACCORD_NODE_MODULES; where it is not set, nothing can be said.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP;
use Test::More;

my $modules = $ENV{ACCORD_NODE_MODULES};
plan skip_all => 'not installed: standardwebhooks, stripe and @octokit/webhooks-methods of npm (ACCORD_NODE_MODULES)'
  unless defined $modules;

my $node = new_node('main');
sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

value(<<'SQL');
INSERT INTO accord.secret (name, value) VALUES ('standard/old', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'),
    ('standard/new', 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD'), ('stripe', 'whsec_plain text'), ('github', 'It''s a Secret');
INSERT INTO accord.source (name, verify, mapping) VALUES
    ('standard', '{"type": "standard", "secrets": ["standard/new", "standard/old"]}', NULL),
    ('stripe', '{"type": "stripe", "secrets": ["stripe"]}', '{"topic": "$.type", "key": "$.data.object.id", "changes": "$.data.object", "occurred_at": "$.created"}'),
    ('github', '{"type": "github", "secrets": ["github"]}', NULL);
SQL

# What the libraries make: a list of objects of source, headers and body.
my $script = $node->basedir . '/sign.mjs';
open my $file, '>', $script or die "$script: $!";
print $file <<'JS';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
const modules = process.env.ACCORD_NODE_MODULES;
const require = createRequire(modules + '/');
const { Webhook } = require('standardwebhooks');
const Stripe = require('stripe');
const octokit = await import(pathToFileURL(modules + '/@octokit/webhooks-methods/dist-node/index.js').href);
const bodies = ['{"type":"guest.created","name":"Zoë 🏨"}', '{}', JSON.stringify({ type: 'x', filler: 'ä'.repeat(5000) }, null, 4) + '\n'];
const signed = [];
for (const secret of ['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD'])
    bodies.forEach((body, i) => {
        const id = `msg_${secret.length}_${secret[6]}_${i}`, now = new Date();
        signed.push({ source: 'standard', body, headers: { 'webhook-id': id, 'webhook-timestamp': String(Math.floor(now / 1000)),
            'webhook-signature': new Webhook(secret).sign(id, now, body) } });
    });
const stripe = new Stripe('sk_test_x');
for (const id of ['ch_1', 'ch_2']) {
    const body = JSON.stringify({ id: `evt_${id}`, type: 'charge.succeeded', created: 1767323045, data: { object: { id, amount: 100 } } }, null, 2);
    signed.push({ source: 'stripe', body, headers: { 'stripe-signature': stripe.webhooks.generateTestHeaderString({ payload: body, secret: 'whsec_plain text' }) } });
}
for (const body of bodies)
    signed.push({ source: 'github', body, headers: { 'X-GitHub-Event': 'push', 'X-GitHub-Delivery': `d${body.length}`,
        'X-Hub-Signature-256': await octokit.sign("It's a Secret", body) } });
console.log(JSON.stringify(signed));
JS
close $file;
my $output = `node '$script'`;
is($?, 0, 'the libraries sign') or BAIL_OUT('node failed');
my @webhooks = @{ decode_json($output) };
is(scalar @webhooks, 11, 'eleven webhooks');

my $json = JSON::PP->new->utf8->canonical;

# The result, or the SQLSTATE of the error.
sub receive
{
    my ($webhook) = @_;
    my $body = $webhook->{body};
    utf8::encode($body) if utf8::is_utf8($body);
    my ($headers, $hex) = ($json->encode($webhook->{headers}), unpack 'H*', $body);
    $headers =~ s/'/''/g;
    my ($status, $out, $err) = $node->psql('postgres',
        "\\set VERBOSITY sqlstate\nSELECT accord.receive_webhook('$webhook->{source}', '$headers', '\\x$hex')");
    return $err =~ /ERROR:  (\S+)/ ? $1 : decode_json($out);
}

sub copy { my ($webhook) = @_; return decode_json($json->encode($webhook)); }

my ($accepted, $repeated, $refused, $tampered) = (0, 0, 0, 0);
for my $webhook (@webhooks)
{
    # Anything that is changed, before the webhook itself was received.
    my @changed = map { copy($webhook) } 1 .. 3;
    $changed[0]{body} .= ' ';
    $changed[1]{body} =~ s/.\z/ /s;
    for my $value (values %{ $changed[2]{headers} })
    {
        $value =~ s/([0-9a-f])(?=[^0-9a-f]*\z)/$1 eq '0' ? '1' : '0'/e if $value =~ /[=,]/;
    }
    $tampered += @changed;
    $refused += grep { !ref && $_ eq '28000' } map { receive($_) } @changed;
    my $result = receive($webhook);
    $accepted++ if ref $result && $result->{status} eq 'applied' && !$result->{duplicate};
    $result = receive($webhook);
    $repeated++ if ref $result && $result->{duplicate};
}
is($accepted, 11, 'all of them are accepted');
is($repeated, 11, '... and known when they come again');
is($refused, $tampered, 'none that was changed is');
is(value(q{SELECT count(*) FROM accord.inbox}), 11, '... nor remembered');
is(value(q{SELECT topic, key, payload ->> 'amount', extract(epoch FROM occurred_at)::bigint FROM accord.event_log WHERE source = 'stripe' ORDER BY tx_id}),
    "charge.succeeded|ch_1|100|1767323045\ncharge.succeeded|ch_2|100|1767323045", 'Stripe\'s by its mapping');
is(value(q{SELECT payload ->> 'name' FROM accord.event_log WHERE source = 'standard' AND topic = 'standard.guest.created' LIMIT 1}),
    "Zo\xc3\xab \xf0\x9f\x8f\xa8", 'bodies are UTF-8');

# A secret that is taken out of use ends what it signed; the other goes on.
value(q{UPDATE accord.source SET verify = '{"type": "standard", "secrets": ["standard/new"]}' WHERE name = 'standard'});
is(join(' ', map { my $r = receive($_); ref $r ? 'good' : $r } grep { $_->{source} eq 'standard' } @webhooks),
    '28000 28000 28000 good good good', 'after rotation the old secret is of no use');

$node->stop;
done_testing();
