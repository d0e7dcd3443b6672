# HTTP/2, against nghttpd: deliveries to one endpoint share a connection, over TLS whose certificate is verified.
use strict;
use warnings FATAL => 'all';

use Accord;
use IPC::Run;
use Test::More;

my $node = new_node('main');
send_everything($node);
my $dir = $node->basedir;
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $events = 300;
my ($server, $log);

sub value { return $node->safe_psql('postgres', @_); }

sub start_server
{
    my ($name) = @_;
    $log = "$dir/$name.log";
    $server = IPC::Run::start(
        [ 'stdbuf', '-oL', 'nghttpd', '-v', '--echo-upload', '-a', '127.0.0.1', '-d', $dir, $port, "$dir/key.pem",
            "$dir/cert.pem" ],
        '>', $log, '2>&1');
    poll_until(sub { PostgreSQL::Test::Utils::slurp_file($log) =~ /listen/ }, 'nghttpd to listen');
    return;
}

sub stop_server { $server->kill_kill if $server; undef $server; return; }
END { local $?; stop_server(); }

# What the server's log says about requests: [connection, header] for each such header.
sub received
{
    my ($header) = @_;
    my $text = PostgreSQL::Test::Utils::slurp_file($log);
    $text =~ s/\e\[[\d;]*m//g;
    my @found;
    push @found, [ $1, $2 ] while $text =~ /^\[id=(\d+)\] .* recv \(stream_id=\d+\) \Q$header\E: (.*)$/mg;
    return @found;
}

PostgreSQL::Test::Utils::system_or_bail('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj',
    '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost', '-keyout', "$dir/key.pem", '-out', "$dir/cert.pem");
start_server('first');
value(qq{INSERT INTO accord.channel (name, base_url, max_in_flight, retry_base, retry_cap)
    VALUES ('h2', 'https://localhost:$port', 32, '100 ms', '200 ms')});
route($node, 'h2', topic => 'x', method => 'PUT', path => '/things/{key}');

# Nobody vouches for the certificate.
value(q{INSERT INTO accord.outbox (topic, key, payload) VALUES ('x', 'first', '{}')});
$node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM accord.attempt_log WHERE outcome = 'unreachable'
    AND error LIKE '%certificate%'}) or die "no attempt was refused\n";
is(scalar(received(':path')), 0, 'a certificate that nobody vouches for: nothing is sent');

value("ALTER SYSTEM SET accord.ca_file = '$dir/cert.pem'");
$node->reload;
wait_for_delivery($node);
is(join(' ', map { $_->[1] } received(':path')), '/things/first', '... and with accord.ca_file it is');

value("INSERT INTO accord.outbox (topic, key, payload) SELECT 'x', 'k' || g, jsonb_build_object('n', g)
       FROM generate_series(1, $events) g");
wait_for_delivery($node);
poll_until(sub { received(':path') >= $events + 1 }, "the server's log");
my @paths = received(':path');
is(scalar(@paths), $events + 1, 'all of it went by HTTP/2, each event once');
my %connections = map { $_->[0] => 1 } @paths[ 1 .. $#paths ];
cmp_ok(scalar(keys %connections), '<=', 2, 'requests share a connection');
my %keys = map { $_->[1] => 1 } received('idempotency-key');
is(scalar(keys %keys), $events + 1, 'each under a key of its own');
is((grep { $_->[1] ne 'PUT' } received(':method')) + 0, 0, 'with the method of the route');

# A server that goes away is found again.
stop_server();
value(q{INSERT INTO accord.outbox (topic, key, payload) VALUES ('x', 'later', '{}')});
$node->poll_query_until('postgres',
    q{SELECT count(*) > 0 FROM accord.attempt WHERE key = 'later' AND outcome <> 'delivered'})
  or die "no attempt failed\n";
start_server('second');
wait_for_delivery($node);
is(join(' ', map { $_->[1] } received(':path')), '/things/later', 'a server that came back gets what it missed, once');

$node->stop;
done_testing();
