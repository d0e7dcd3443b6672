# W3C Trace Context: what a transaction says of its trace goes along with its events, captured ones too, to every channel
# and with every attempt; an event's own goes instead; what is none is refused.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main');
my $stub = start_stub();
my $trace = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
my $other = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00';

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

send_everything($node);
channel($node, $stub, 'ota', route => { topic => '*' }, retry_base => '1 ms', retry_cap => '1 ms');
value(q{CREATE TABLE room (id text PRIMARY KEY, price int); SELECT accord.capture('room')});
$stub->script([{ match => { body_regex => '"again"', times => 1 }, do => { status => 500 } }]);

value(qq{BEGIN; SET LOCAL accord.traceparent = '$trace'; SET LOCAL accord.tracestate = 'congo=t61rcWkgMzE,rojo=00f067aa0ba902b7';
    INSERT INTO accord.outbox (topic, payload) VALUES ('t', '{"id": "plain"}');
    INSERT INTO accord.outbox (topic, payload, headers) VALUES ('t', '{"id": "more"}', '{"X-Mine": "1", "Tracestate": "x=1"}'),
        ('t', '{"id": "own"}', '{"Traceparent": "$other", "tracestate": "x=2"}');
    INSERT INTO accord.outbox (topic, payload) VALUES ('t', '{"id": "again"}');
    INSERT INTO room VALUES ('captured', 1); COMMIT;
    INSERT INTO accord.outbox (topic, payload) VALUES ('t', '{"id": "none"}')});
wait_for_delivery($node);
my %seen;
for my $request ($stub->log)
{
    my ($id) = $request->{body} =~ /"id": ?"(\w+)"/;
    my %header = map { lc $_ => $request->{headers}{$_} } keys %{ $request->{headers} };
    push @{ $seen{$id} }, join '|', map { $header{$_} // '' } qw(traceparent tracestate x-mine);
}
my $state = 'congo=t61rcWkgMzE,rojo=00f067aa0ba902b7';
is_deeply(
    \%seen,
    {   plain => ["$trace|$state|"],
        more => ["$trace|$state|1"],
        own => ["$other|x=2|"],
        again => ["$trace|$state|", "$trace|$state|"],
        captured => ["$trace|$state|"],
        none => ['||'],
    },
    'the trace goes with each event, each attempt, and none after the transaction');
is(value(qq{SELECT count(*) FROM accord.event_log WHERE headers ->> 'traceparent' = '$trace'}), '4', 'the log has it');
is(value('SELECT count(*) FROM accord.verify()'), '0', '... and verifies with it');

my $insert = q{INSERT INTO accord.outbox (topic, payload, idempotency_key) VALUES ('t', '{"id": "k"}', 'k') RETURNING
    headers ->> 'traceparent'};
is(value("SET accord.traceparent = '$trace'; $insert"), $trace, 'RETURNING tells it');
is(value("SET accord.traceparent = '$other'; $insert"), '', 'a repetition in another trace is a repetition');

for my $wrong ('x', "$trace-1", '00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01', 'ff' . substr($trace, 2),
    "00-" . '0' x 32 . '-00f067aa0ba902b7-01', '00-4bf92f3577b34da6a3ce929d0e0e4736-' . '0' x 16 . '-01', substr($trace, 0, 54))
{
    my ($status, undef, $error) = $node->psql('postgres', "SET accord.traceparent = '$wrong'");
    ok($status != 0 && $error =~ /invalid value for parameter "accord.traceparent"/, "\"$wrong\" is refused");
}
is(value("SET accord.traceparent = '01" . substr($trace, 2) . "-more'; SELECT 1"), '1', 'a later version may say more');
isnt(($node->psql('postgres', q{SET accord.tracestate = E'a\nb'}))[0], 0, 'a tracestate with a line break is refused');

$node->stop;
done_testing();
