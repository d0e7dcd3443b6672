# Whose data it is, is known from CREATE EXTENSION on: a database made from another one is silent, also where no dispatcher
# ever ran in the original, and says why, in its log and in accord.status. One made from a template that has nothing to send
# is its own. Two databases of a cluster dispatch beside each other, each what is its own.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $stub = start_stub();
my $node = new_node('main', "accord.dispatch = off\nmax_worker_processes = 30\n", extension => 0);

sub value { my ($database, $sql) = @_; return $node->safe_psql($database, $sql); }
sub arrived { return join ' ', sort map { $_->{path} =~ m{/(.*)$} } $stub->log; }

# Whose rows accord.identity has: ours, others'.
sub identity
{
    return value($_[0], q{SELECT string_agg((i.database = d.oid AND i.system_identifier = s.system_identifier)::text, ' ')
        FROM accord.identity i, pg_database d, pg_control_system() s WHERE d.datname = current_database()});
}

# A channel of its own, and a route.
sub configure
{
    my ($database) = @_;
    value($database, "INSERT INTO accord.channel (name, base_url) VALUES ('ota', '@{[ $stub->url ]}/$database');
        INSERT INTO accord.route (channel, topic, path) VALUES ('ota', 't', '/{key}')");
    return;
}

sub write_event { my ($database, $key) = @_; return value($database, "INSERT INTO accord.outbox (topic, key) VALUES ('t', '$key')"); }

# ---- made while no dispatcher runs anywhere

value('template1', 'CREATE EXTENSION pg_accord');
value('postgres', 'CREATE DATABASE first');
value('postgres', 'CREATE DATABASE second');
is(identity('template1'), 'true', 'CREATE EXTENSION notes whose data it is');
is(identity('first'), 'false', 'a database made from a template has its row');
value('postgres', 'CREATE DATABASE original TEMPLATE template0');
value('original', 'CREATE EXTENSION pg_accord');
configure('original');
write_event('original', 'owed');
value('postgres', 'CREATE DATABASE cloned TEMPLATE original');
value('postgres', 'CREATE DATABASE prepared TEMPLATE template0');
value('prepared', 'CREATE EXTENSION pg_accord');
configure('prepared');
value('postgres', 'CREATE DATABASE from_prepared TEMPLATE prepared');
is(value('cloned', 'SELECT state, why_silent LIKE $$a copy of another database (%$$ FROM accord.status'), 'copy|t',
    'a copy is known to be one before any dispatcher has looked');
is(value('original', 'SELECT state, why_silent FROM accord.status'), 'stopped|accord.dispatch is off',
    'where nothing is sent for another reason, that is said');
$node->command_ok([ 'pg_dump', '-Fc', '-f', $node->basedir . '/blank.dump', 'first' ], 'a database without anything is dumped');
value('postgres', 'CREATE DATABASE restored TEMPLATE template0');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'restored', $node->basedir . '/blank.dump' ], '... and restored');

# ---- dispatch

value('postgres', 'ALTER SYSTEM SET accord.dispatch = on');
$node->reload;
for my $copy ('cloned', 'from_prepared')
{
    $node->wait_for_log(qr/database "$copy" is a copy: nothing is dispatched.*made in another cluster or database/s);
    is(value($copy, 'SELECT state, owed IS NULL, why_silent LIKE $$%accord.adopt()%$$ FROM accord.status'), 'copy|t|t',
        "$copy is silent, and says why");
}
$stub->wait_for_count(1);
for my $own ('first', 'second')
{
    configure($own);
    write_event($own, $_) for 1 .. 20;
}
write_event('from_prepared', 'never');
wait_for_delivery($node, $_) for 'first', 'second', 'original';
is(arrived(), join(' ', sort 'original/owed', map { my $own = $_; map { "$own/$_" } 1 .. 20 } 'first', 'second'),
    'two databases made from a template dispatch beside each other, each its own; copies send nothing');
is(identity('first'), 'true', '... and are their own');
is(value('first', 'SELECT state, why_silent IS NULL FROM accord.status'), 'idle|t', '... as their status says');
is(value('cloned', 'SELECT count(*) FROM accord.outbox'), 1, 'what a copy owes can be seen');
is(value('restored', 'SELECT state FROM accord.silence()'), 'copy', 'a restored database is a copy, though it was blank');

# ---- adopted

value('cloned', 'SELECT accord.adopt()');
wait_for_delivery($node, 'cloned');
is(value('cloned', 'SELECT DISTINCT state, why_silent IS NULL FROM accord.status'), 'idle|t', 'adopted, a copy dispatches');
is((grep { $_->{path} eq '/original/owed' } $stub->log), 2, '... what it owes');
is(value('from_prepared', 'SELECT state FROM accord.status'), 'copy', 'another one is silent still');
$node->stop;
done_testing();
