# examples/stripe.sql, as it stands: against an emulator of Stripe, whose state tells what arrived (it does not honour
# idempotency keys, so what is sent twice is there twice), and against Stoplight's Prism with a description of the same
# forms. Needs emulate and @stoplight/prism-cli in ACCORD_NODE_MODULES.
use strict;
use warnings FATAL => 'all';

use Accord;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use JSON::PP qw(decode_json);
use Servers;
use Test::More;

plan skip_all => 'not installed: emulate and @stoplight/prism-cli of npm (ACCORD_NODE_MODULES)'
  if !defined Servers::modules() || grep { !-e Servers::modules() . "/.bin/$_" } 'emulate', 'prism';
my $top = abs_path(dirname(__FILE__) . '/../..');
my $node = new_node('main', "log_statement = none\n");
my $stripe = Servers->node('emulate', sub { my ($port) = @_; return ('--service', 'stripe', '--port', $port) });
my $prism = Servers->node('prism', sub { my ($port) = @_;
    return ('mock', '--errors', '--host', '127.0.0.1', '--port', $port, "$top/test/openapi/payments.yaml") });

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
sql(q{SELECT accord.discard('stripe')});
wait_for_delivery($node);

# ---- the same requests, held against a description

sql("UPDATE accord.channel SET base_url = '" . $prism->url . "' WHERE name = 'stripe'");
sql(q{INSERT INTO shop.booking VALUES ('P1', 'p@example.com', 12.34);
      INSERT INTO accord.outbox (topic, key, payload)
          VALUES ('payment.capture', 'P1', '{"intent": "pi_123", "with": {"amount_to_capture": 1234}}')});
wait_for_delivery($node);
is(sql(q{SELECT topic, outcome, status FROM accord.attempt WHERE key = 'P1' ORDER BY 1}),
    "payment.capture|delivered|200\npayment.request|delivered|200", 'Prism finds nothing wrong with either');
sql(q{INSERT INTO accord.outbox (topic, key, payload) VALUES
    ('payment.request', 'wrong', '{"amount": "much", "currency": "EURO", "receipt_email": "p@example.com"}')});
wait_for_rows($node, q{SELECT status, response LIKE '%currency%' FROM accord.attempt WHERE key = 'wrong'}, '422|t');
pass('... and does where something is');

$node->stop;
done_testing();
