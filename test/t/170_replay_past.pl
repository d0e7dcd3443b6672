# A replay of a channel with all its accounts is read past those that cannot take it now: who is paused, broken or slow
# keeps nobody else waiting, and gets all of it, in order, when he can.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', "log_statement = none\n");
my $stub = start_stub();
send_everything($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# Bodies of what an account was sent, since the stub last forgot.
sub sent { my ($account) = @_; return map { $_->{body} } grep { $_->{path} =~ m{^/$account/} } $stub->log; }
sub wait_for_sent { my ($account, $n) = @_; poll_until(sub { sent($account) >= $n }, "$n requests of $account"); return; }

my %n = (paused => 3000, broken => 1000, slow => 1000, well => 300);
channel($node, $stub, 'ota', patient(), max_in_flight => 40, account_max_in_flight => 2, breaker_failures => 3, breaker_ratio => undef,
    breaker_cooldown => '1 h', breaker_cap => '1 h', route => { path => '/{account}/{key}' });
insert_row($node, 'account', channel => 'ota', name => $_) for sort keys %n;
# those of who is well are the last
for my $account (qw(paused broken slow well))
{
    sql("INSERT INTO accord.outbox (topic, key, account, payload)
         SELECT 't', 'k' || g % 7, '$account', to_jsonb(g) FROM generate_series(1, $n{$account}) g");
}
wait_for_delivery($node);
$stub->reset;

$stub->script([
    { match => { path_regex => '^/slow/' }, do => { gate => 'slow' } },
    { match => { path_regex => '^/broken/' }, do => { status => 500 } },
]);
$stub->close_gate('slow');
sql(q{SELECT accord.pause('ota', 'paused')});
my $job = sql(q{SELECT accord.replay('ota')});
wait_for_sent('well', $n{well});
pass('who is well gets his, behind thousands of those who cannot take theirs');
is(scalar(sent('paused')), 0, '... who is paused gets nothing');
cmp_ok(scalar(sent('slow')), '<=', 2, '... who is slow no more than he may have in flight');
is(sql("SELECT state FROM accord.progress WHERE job = $job"), 'running', '... and the replay goes on');
cmp_ok(sql(q{SELECT count(*) FROM accord.backlog WHERE account = 'paused'}), '==', 0, '... without a row for what waits');

# The next dispatcher walks again from the first that is owed, and passes over what was settled.
crash_server($node);
$stub->script([]);
$stub->open_gate('slow');
sql(q{SELECT accord.resume('ota', 'paused')});
sql(q{SELECT accord.resume('ota', 'broken')});
wait_for_rows($node, "SELECT state FROM accord.progress WHERE job = $job", 'done');
for my $account (sort keys %n)
{
    my %seen;
    my @first = grep { !$seen{$_}++ } reverse sent($account);
    is(scalar(@first), $n{$account}, "all of it has reached who was $account");
    my %last;
    my $wrong = 0;
    for my $body (reverse @first)
    {
        $wrong++ if ($last{ $body % 7 } // 0) > $body;
        $last{ $body % 7 } = $body;
    }
    is($wrong, 0, '... in order, of each key');
}
is(sql("SELECT delivered + passed FROM accord.progress WHERE job = $job") >= 4000, 1, '... as its progress says');

$node->stop;
done_testing();
