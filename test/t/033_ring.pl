# The rings move on while events are owed: a dispatcher, a lagging endpoint and a reader that cross from slot to slot meet
# every event once and in order; a slot is emptied when it is past retention and nobody needs it, and not before.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main');
send_everything($node);
my $stub = start_stub();
my $written = 0;

sub value { return $node->safe_psql('postgres', @_); }

# Writes events of two keys into the current slot, and moves the ring on.
sub fill_slot
{
    for (1 .. 3)
    {
        $written++;
        value("INSERT INTO accord.outbox (topic, key, payload) VALUES ('t', 'key' || $written % 2, '{\"n\": $written}')");
    }
    value('SELECT accord.turn_rings(true)');
    return;
}

sub slots
{
    return value(q{SELECT string_agg(DISTINCT slot::text, ' ' ORDER BY slot::text) FROM accord.commit_log});
}

# The numbers that arrived at a channel, those of each key apart.
sub arrived
{
    my ($channel) = @_;
    my %of;
    for my $request (grep { $_->{path} =~ m{^/$channel/} } $stub->log)
    {
        my ($key) = $request->{path} =~ m{([^/]+)$};
        my ($n) = $request->{body} =~ /(\d+)/;
        push @{ $of{$key} }, $n;
    }
    return join ' | ', map { join ' ', @{ $of{$_} } } sort keys %of;
}

sub expected { return join ' | ', map { my $odd = $_; join ' ', grep { $_ % 2 == $odd } 1 .. $written } 0, 1; }

sub all_read
{
    return value('SELECT count(*), count(DISTINCT (seq, ord)), min(seq), max(seq) FROM accord.read(0, 100000)');
}

for my $name ('quick', 'late')
{
    channel($node, $stub, $name);
    value("UPDATE accord.channel SET base_url = base_url || '/$name' WHERE name = '$name'");
    route($node, $name, topic => 't', path => '/{key}');
}
value(q{UPDATE accord.channel SET enabled = false WHERE name = 'late'});

# One channel keeps up with the ring, the other lags through five slots of it.
fill_slot() for 1 .. 5;
is(slots(), '0 1 2 3 4', 'the log spans five slots');
$node->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM accord.owed() WHERE channel = 'quick')}) or die;
is(arrived('quick'), expected(), 'a channel that keeps up got each event once, in order');
is(all_read(), '15|15|1|15', 'a reader meets each event once, across the slots');
is(value('SELECT count(*) FROM accord.outbox'), 15, 'the outbox shows what the other channel is owed');

# A dispatcher that begins anew reads from slot to slot, too.
$node->stop('immediate');
$node->start;
value(q{UPDATE accord.channel SET enabled = true WHERE name = 'late'});
wait_for_delivery($node);
is(arrived('late'), expected(), 'a channel that lagged across slots got each event once, in order');
is(arrived('quick'), expected(), '... and the other got none again');

# Nothing is emptied before its time; then all but the current slot, except what is still owed.
value('SELECT accord.turn_rings()');
is(slots(), '0 1 2 3 4', 'nothing goes before log_retention');
value(q{UPDATE accord.channel SET enabled = false WHERE name = 'late'});
fill_slot();
my $kept = $written - 3;
value('ALTER SYSTEM SET accord.log_retention = 0');
$node->reload;
$node->poll_query_until('postgres', 'SELECT setting::integer = 0 FROM pg_settings WHERE name = $$accord.log_retention$$');
poll_until(sub { value('SELECT accord.turn_rings()'); value('SELECT min(seq) > 15 FROM accord.commit_log') eq 't' },
    'the oldest slots to be emptied');
is(value('SELECT count(*) FROM accord.event_log'), 3, 'what is past retention is gone');
is(value('SELECT count(*) FROM accord.outbox'), 3, '... and what is owed is not');
value(q{UPDATE accord.channel SET enabled = true WHERE name = 'late'});
wait_for_delivery($node);
is(arrived('late'), expected(), '... and is delivered');

# Round the ring twice more.
fill_slot() for 1 .. 18;
wait_for_delivery($node);
is(arrived('quick'), expected(), 'twice round the ring, each event once, in order');
is(arrived('late'), expected(), '... to both channels');
# Cursors are written once a second at most, and what they need is kept: so the last of it goes a little later.
poll_until(sub { value('SELECT accord.turn_rings()'); value('SELECT count(*) FROM accord.event_log') <= 3 },
    'all but the current slot to be emptied');
pass('... and the old slots went');

$node->stop;
done_testing();
