# A channel and its route that are committed while a dispatcher reads the configuration for the first time: what is
# committed after them is sent by them. (The dispatcher is told of the change once, in the middle of its reading.)
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main', "accord.dispatch = off\n");
my $stub = start_stub();

# Whoever reads the configuration waits for the last of its tables, its snapshot taken.
my $holder = open_session($node);
$holder->run('BEGIN; LOCK TABLE accord.rule');
$node->safe_psql('postgres', 'ALTER SYSTEM SET accord.dispatch = on');
$node->reload;
$node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'accord.rule'::regclass})
  or die "no dispatcher came to read the configuration\n";
channel($node, $stub, 'ota');
route($node, 'ota', path => '/{key}');
events($node, { topic => 't', key => 'first' });
$holder->run('COMMIT');
$holder->close;
wait_for_delivery($node);
is(join(' ', map { $_->{path} } $stub->log), '/first', 'the event is sent');
is($node->safe_psql('postgres', q{SELECT count(*) FROM accord.attempt_log WHERE outcome = 'delivered'}), 1, '... and recorded');
$node->stop;
done_testing();
