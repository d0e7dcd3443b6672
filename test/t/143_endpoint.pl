# examples/webhook.sql: a customer's endpoint gets what concerns it, signed so that the official library (npm: standardwebhooks)
# verifies it; by both secrets while one replaces the other; an event that was refused keeps its id.
use strict;
use warnings FATAL => 'all';

use Accord;
use Encode ();
use JSON::PP;
use Test::More;

my $modules = $ENV{ACCORD_NODE_MODULES};
plan skip_all => 'not installed: standardwebhooks of npm (ACCORD_NODE_MODULES)' unless defined $modules;
my ($example) = grep { -e } map { "$_/../../examples/webhook.sql" } @INC;
my $node = new_node('main');
my $stub = start_stub();
my $json = JSON::PP->new->utf8->canonical;
sub value { return $node->safe_psql('postgres', @_); }

my (undef, undef, $said) = $node->psql('postgres', PostgreSQL::Test::Utils::slurp_file($example));
is($said, '', 'the example is accepted');
my $old = value("SELECT app.subscribe('acme', '" . $stub->url('/acme') . "')");
value("SELECT app.subscribe('other', '" . $stub->url('/other') . "')");
value(q{UPDATE accord.channel SET retry_base = '1 ms', retry_cap = '10 ms'});
$stub->script([ { match => { times => 1 }, do => { status => 404 } } ]);
events($node, { topic => 'booking.created', key => 'B42', account => 'acme', payload => '{"guest": "Zoë"}' });
wait_for_delivery($node);
my $new = value("SELECT app.rotate('acme')");
events($node, { topic => 'booking.changed', key => 'B42', account => 'acme', payload => '{}' });
wait_for_delivery($node);
value("SELECT app.retire('acme')");
events($node, { topic => 'booking.deleted', key => 'B42', account => 'acme', payload => '{}' });
wait_for_delivery($node);
my @got = $stub->log;
is(join(' ', map { $_->{path} } @got), '/acme /acme /acme /acme', 'a customer gets what concerns it, the refused one again');
is($got[0]{headers}{'webhook-id'}, $got[1]{headers}{'webhook-id'}, '... under the same id');
is($json->decode(Encode::encode_utf8($got[1]{body}))->{type}, 'booking.created', '... with its type');

my $script = $node->basedir . '/verify.mjs';
PostgreSQL::Test::Utils::append_to_file($script, <<'JS');
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
const { Webhook } = createRequire(process.env.ACCORD_NODE_MODULES + '/')('standardwebhooks');
console.log(JSON.parse(readFileSync(0, 'utf8')).map(([request, secret]) => {
    try { new Webhook(secret).verify(request.body, request.headers); return 'yes'; } catch (e) { return 'no'; } }).join(' '));
JS
my $results;
IPC::Run::run([ 'node', $script ], '<', \$json->encode([ map { [ $_, $old ], [ $_, $new ] } @got[ 1 .. 3 ] ]), '>', \$results) or die;
is($results, "yes no yes yes no yes\n", 'by the old secret, by both, by the new one');

$stub->script([ { do => { status => 410 } } ]);
events($node, { topic => 'booking.created', key => 'B43', account => 'acme', payload => '{}' });
wait_for_rows($node, q{SELECT state FROM accord.backlog WHERE key = 'B43'}, 'dead');
pass('what is gone is not called again');
$node->stop;
done_testing();
