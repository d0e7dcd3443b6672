# accord.status of many endpoints: all that there is room for are shown live, a full board costs no more than that, and
# what is shown ends with whoever showed it.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', "accord.max_endpoints = 16\n");
my $stub = start_stub();

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

channel($node, $stub, 'ota', route => { topic => '*', path => '/{account}/{key}' });
value(q{INSERT INTO accord.account (channel, name) SELECT 'ota', 'a' || g FROM generate_series(1, 40) g});
value(q{INSERT INTO accord.outbox (topic, key, account) SELECT 't', g::text, 'a' || g FROM generate_series(1, 40) g});
wait_for_delivery($node);
wait_for_rows($node, q{SELECT count(*), count(*) FILTER (WHERE last_outcome = 'delivered'), min(state), max(state),
    sum(owed) FROM accord.status}, '41|16|idle|idle|0');
pass('as many as there is room for are shown, the others without what is not known');
like(slurp_file_of($node), qr/cannot be shown in accord\.status\n.*HINT: .*max_endpoints/s, '... which the log says');
is(scalar(() = slurp_file_of($node) =~ /cannot be shown in accord\.status/g), 1, '... once');

value('ALTER SYSTEM SET accord.dispatch = off');
$node->reload;
wait_for_rows($node, q{SELECT count(*), count(owed), count(last_outcome), min(state), max(state) FROM accord.status},
    '41|0|0|stopped|stopped');
pass('without a dispatcher nothing is shown');
value(q{INSERT INTO accord.outbox (topic, key, account) VALUES ('t', 'x', 'a40')});
is(value('SELECT count(*) FROM accord.owed()'), '1', '... but owed() knows');
value(q{SELECT accord.pause('ota', 'a40', 'for the test', now() + interval '1 hour')});
value('ALTER SYSTEM RESET accord.dispatch');
$node->reload;
wait_for_rows($node, q{SELECT state, owed, mode, paused_reason, paused_until > now() FROM accord.status WHERE account = 'a40'},
    'paused|1|lagging|for the test|t');
pass('another dispatcher shows its own');
value(q{SELECT accord.resume('ota', 'a40')});
wait_for_rows($node, q{SELECT state, owed, mode FROM accord.status WHERE account = 'a40'}, 'idle|0|direct');
pass('... and what has changed');

$node->stop;
done_testing();

sub slurp_file_of
{
    my ($node) = @_;
    return PostgreSQL::Test::Utils::slurp_file($node->logfile);
}
