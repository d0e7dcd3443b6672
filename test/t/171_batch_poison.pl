# A batch on which the server fails because of one of its members: it is divided, by retries, until that one is alone; an
# outage divides it too, and costs nobody an attempt; a server that has no room gets it as it is.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP qw(decode_json);
use Test::More;

my $node = new_node('main', "log_statement = none\n");
my $stub = start_stub();

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel whose batches are of 16, owed 16 events.
sub owe
{
    my ($name, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $stub->url("/$name"), patient(), enabled => 'false',
        retry_base => '10 ms', retry_cap => '20 ms', breaker_failures => undef, breaker_ratio => undef, %column);
    route($node, $name, topic => $name, batch_size => 16);
    sql("INSERT INTO accord.outbox (topic, key, payload)
        SELECT '$name', 'k' || g, jsonb_build_object('n', g) FROM generate_series(1, 16) g");
    sql("UPDATE accord.channel SET enabled = true WHERE name = '$name'");
    return;
}

sub settled
{
    my ($name, $n) = @_;
    wait_for_rows($node, "SELECT count(*) FROM accord.attempt_log WHERE channel = '$name' AND outcome = 'delivered'", $n);
    return;
}

sub sizes
{
    my ($name) = @_;
    return map { scalar @{ decode_json($_->{body}) } } grep { $_->{path} =~ m{^/$name} } $stub->log;
}

$stub->script([
    { match => { path_regex => '^/poison', body_regex => '"n":\s*7\D' }, do => { status => 500 } },
    { match => { path_regex => '^/outage', times => 5 }, do => { status => 502 } },
    { match => { path_regex => '^/full', times => 4 }, do => { status => 503 } },
    { match => { path_regex => '^/once', body_regex => '"n":\s*7\D', times => 1 }, do => { status => 500 } },
]);

owe('poison', max_attempts => 5);
settled('poison', 15);
wait_for_rows($node, q{SELECT key, attempts FROM accord.dead_letter WHERE channel = 'poison'}, 'k7|5');
pass('the one on which the server fails is found, and has its attempts alone');
my @sizes = sizes('poison');
is(join(' ', @sizes[ 0 .. 2 ]), '16 16 16', '... after the batch was retried as it was');
is(scalar(grep { $_ == 8 } @sizes), 2, '... and then halved');
cmp_ok(scalar(@sizes), '<=', 3 + 2 * 4 + 2, '... with two requests for each halving, and what is left for the one alone');
is(sql(q{SELECT count(*) FROM accord.dead_letter WHERE channel = 'poison'}), 1, '... and it is the only one given up');

owe('outage', max_attempts => 3);
settled('outage', 16);
is(join(' ', sizes('outage')), '16 16 16 8 8 4 4 4 4', 'an outage divides it as well');
is(sql(q{SELECT count(*) FROM accord.dead_letter WHERE channel = 'outage'}), 0,
    '... and costs none of them more attempts than it has');

owe('full');
settled('full', 16);
is(join(' ', sizes('full')), '16 16 16 16 16', 'a server without room gets it as it is');

owe('once');
settled('once', 16);
is(join(' ', sizes('once')), '16 16', 'what fails once is retried once, together');

$node->stop;
done_testing();
