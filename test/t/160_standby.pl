# A physical standby sends nothing, and says so. Promoted, it goes on where the primary stopped: what was settled is not
# repeated, what was owed is sent, in the order of keys. With accord.dispatch_after = standby an event is sent only when
# the synchronous standby has flushed it, whatever its writer waited for. With accord.on_promotion = silent a promoted
# clone is a copy until it is adopted.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $stub = start_stub();
my $primary = new_node('primary', "synchronous_commit = local\n", init => [ allows_streaming => 1 ]);
send_everything($primary);

sub value { my ($at, $sql) = @_; return $at->safe_psql('postgres', $sql); }
sub arrived { return join ' ', map { $_->{path} =~ m{([^/]+)$} } $stub->log(@_); }
sub write_events { my ($at, @keys) = @_; return events($at, map { { topic => 't', key => $_ } } @keys); }

sub set
{
    my ($at, $name, $setting) = @_;
    value($at, "ALTER SYSTEM SET $name = " . literal($setting));
    $at->reload;
    $at->poll_query_until('postgres', "SELECT current_setting('$name') = " . literal($setting)) or die;
    return;
}

sub new_standby
{
    my ($name, $from) = @_;
    my $node = PostgreSQL::Test::Cluster->new($name);
    $node->init_from_backup($primary, $from, has_streaming => 1);
    return $node;
}

channel($primary, $stub, 'ota', retry_base => '1 h', retry_cap => '2 h');
route($primary, 'ota', topic => 't', path => '/{key}');
$primary->backup('base');
my $standby = new_standby('standby', 'base');
$standby->start;
$primary->wait_for_catchup($standby);

# ---- a standby sends nothing

$stub->script([ { match => { path_regex => '/retrying' }, do => { status => 503 } } ]);
write_events($primary, qw(one retrying));
$stub->wait_for_count(2);
wait_for_rows($primary, 'SELECT key, state FROM accord.backlog', 'retrying|retrying');
$primary->wait_for_catchup($standby);
is(workers($standby, 'launcher'), 0, 'there is no launcher on a standby');
is(value($standby, 'SELECT state, owed IS NULL, why_silent FROM accord.status'),
    'standby|t|a standby dispatches nothing', '... whose status says so');
is(value($standby, q{SELECT string_agg(key, ' ' ORDER BY tx_id) FROM accord.event_log}), 'one retrying',
    '... and whose log can be read');

# ---- only what the synchronous standby has flushed is sent

set($primary, 'accord.dispatch_after', 'standby');
set($primary, 'synchronous_standby_names', 'standby');
poll_until(sub { value($primary, q{SELECT sync_state FROM pg_stat_replication}) eq 'sync' }, 'the synchronous standby');
write_events($primary, 'two');
$stub->wait_for_count(3);
pass('what the standby flushes is sent');
$standby->stop;
write_events($primary, 'three');
$primary->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity
    WHERE backend_type = 'pg_accord dispatcher' AND query = 'waiting for synchronous standbys'}) or die;
# What is answered meanwhile is settled, what was read before is sent.
value($primary, q{SELECT accord.safe_seq()});
is(arrived(), 'one retrying two', 'without the standby a new event waits, and its writer does not');
$standby->start;
$stub->wait_for_count(4);
is(arrived(3), 'three', 'it is sent when the standby has it');

# A restart makes visible what no standby has: COMMIT was never answered.
$standby->stop;
set($primary, 'synchronous_commit', 'on');
my $writer = open_session($primary);
$writer->send(q{INSERT INTO accord.outbox (topic, key) VALUES ('t', 'unacknowledged')});
$primary->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'
    AND backend_type = 'client backend'}) or die;
$primary->restart;
$writer->close;
is(value($primary, q{SELECT count(*) FROM accord.event_log WHERE key = 'unacknowledged'}), 1,
    'after a restart a commit that was never acknowledged is visible');
$primary->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity
    WHERE backend_type = 'pg_accord dispatcher' AND query = 'waiting for synchronous standbys'}) or die;
is(arrived(4), '', '... and not sent');

# ---- failover: the standby lacks it, and so it was right not to send it

$primary->stop('immediate');
$standby->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");
$standby->start;
$standby->promote;
$standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die;
is(value($standby, q{SELECT count(*) FROM accord.event_log WHERE key = 'unacknowledged'}), 0,
    'the new primary lacks what the old one had not sent');
poll_until(sub { workers($standby, 'dispatcher', 'postgres') }, 'a dispatcher on the new primary');
$stub->script([]);
write_events($standby, 'four');
value($standby, q{SELECT accord.redeliver('ota', state => 'retrying')});
wait_for_delivery($standby);
is(join(' ', sort split / /, arrived(4)), 'four retrying',
    'promoted, it goes on where the other stopped, and repeats nothing');
is(value($standby, 'SELECT DISTINCT timeline > 1 FROM accord.identity'), 't', '... and knows its timeline');
is(value($standby, 'SELECT * FROM accord.verify()'), '', '... with a log that verifies');

# ---- a clone that is promoted where that was not meant

$standby->backup('clone');
my $clone = PostgreSQL::Test::Cluster->new('clone');
$clone->init_from_backup($standby, 'clone', has_streaming => 1);
$clone->append_conf('postgresql.conf', "accord.on_promotion = silent\n");
$clone->start;
write_events($standby, 'five');
wait_for_delivery($standby);
$standby->wait_for_catchup($clone);
$clone->promote;
$clone->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die;
$clone->wait_for_log(qr/database "postgres" is a copy: nothing is dispatched.*promoted.*on_promotion is silent/s);
my $count = $stub->count;
write_events($clone, 'by_mistake');
write_events($standby, 'six');
$stub->wait_for_count($count + 1);
is(arrived($count), 'six', 'a clone that was promoted is silent, its original goes on');
like(value($clone, 'SELECT state, why_silent FROM accord.status'), qr/^copy\|.*accord\.on_promotion is silent/,
    '... and says why');
$standby->stop;
value($clone, 'SELECT accord.adopt()');
wait_for_delivery($clone);
is(arrived($count + 1), 'by_mistake', '... until it is adopted');
$clone->stop;
done_testing();
