# One event, from INSERT to the channel, and what is left of it afterwards.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP;
use Test::More;

my $node = new_node('main');
send_everything($node);
my $stub = start_stub();

channel($node, $stub, 'ota');
route($node, 'ota', topic => 'rate.*', method => 'PUT', path => '/listings/{key}/rates');

my $event_id = $node->safe_psql('postgres', <<'SQL');
INSERT INTO accord.outbox (topic, key, payload)
VALUES ('rate.changed', 'room 1', '{"price": 120}') RETURNING event_id
SQL
like($event_id, qr/^[0-9a-f-]{36}$/, 'RETURNING gives the event id');

$stub->wait_for_count(1);
my ($request) = $stub->log;
is($request->{method}, 'PUT', 'the route gives the method');
is($request->{path}, '/listings/room%201/rates', 'the path is expanded from the event');
is_deeply(decode_json($request->{body}), { price => 120 }, 'the body is the payload');
is($request->{headers}{'content-type'}, 'application/json', 'the content type is the route\'s');
is($request->{headers}{'idempotency-key'}, $event_id, 'the idempotency key is the event id');

wait_for_delivery($node);
is($node->safe_psql('postgres', 'SELECT channel, outcome, sent, status, attempt FROM accord.attempt_log'),
    'ota|delivered|yes|200|1', 'the attempt is recorded');
is($node->safe_psql('postgres', 'SELECT topic, key FROM accord.event_log'),
    'rate.changed|room 1', 'the event stays in the log');
is($node->safe_psql('postgres', 'SELECT count(*) FROM accord.backlog_log'), '0', 'a success leaves no backlog');

$node->safe_psql('postgres', q{INSERT INTO accord.outbox (topic, key, payload) VALUES ('guest.moved', '1', '{}')});
$node->safe_psql('postgres', q{INSERT INTO accord.outbox (topic, key, payload) VALUES ('rate.changed', '2', '{}')});
$stub->wait_for_count(2);
wait_for_delivery($node);
is(join(' ', map { $_->{path} } $stub->log), '/listings/room%201/rates /listings/2/rates',
    'an event that no route takes is not sent');

$node->stop;
done_testing();
