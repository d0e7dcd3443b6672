# A cursor ahead of the position: an endpoint that lags keeps its own, while the position waits for others, or is set
# back because it is shared or a copy was adopted. What lies between the two was sent already: the log's reader passes
# it on its way, and does not give it to that endpoint again, however many turns it takes to get there.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $sent = 3000;    # more than are read at a time
my $node = new_node('main', "accord.restart_interval = '100ms'\n");
send_everything($node);
my $stub = start_stub();
channel($node, $stub, 'z', route => { path => '/z/{key}' });
my $insert = q{INSERT INTO accord.outbox (topic, key) SELECT 'w', 'k' || g FROM generate_series};

$node->safe_psql('postgres', "$insert(1, $sent / 2) g; $insert($sent / 2 + 1, $sent) g");
$stub->wait_for_answered($sent);
wait_for_delivery($node);
$node->safe_psql('postgres', q{UPDATE accord.channel SET enabled = false});
events($node, { topic => 'w', key => 'later' });
my $cursor = q{SELECT seq FROM accord.cursor_log ORDER BY version DESC LIMIT 1};
wait_for_rows($node, "SELECT ($cursor) > 1", 't');

# as a position is that was shared with a slower dispatcher's
$node->safe_psql('postgres', q{ALTER SYSTEM SET accord.dispatch = off});
$node->reload;
poll_until(sub { !workers($node, 'dispatcher') }, 'the dispatcher to end');
is($node->safe_psql('postgres', "SELECT setval('accord.position_0', 0) < ($cursor)"), 't',
    'the position is behind the cursor');
$node->safe_psql('postgres', q{UPDATE accord.channel SET enabled = true});
$node->safe_psql('postgres', q{ALTER SYSTEM RESET accord.dispatch});
$node->reload;
wait_for_delivery($node);
is($stub->count, $sent + 1, 'nothing was sent again');
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT (seq, ord)) FROM accord.attempt_log'),
    $sent + 1 . '|' . ($sent + 1), '... and each delivery is recorded once');
$node->stop;
done_testing();
