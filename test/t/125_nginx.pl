# nginx as a real limiter in front of a channel: what it refuses with 429 or 503 is delivered all the same and costs no
# attempt, a limit of our own that is as tight keeps it from refusing anything, and answers that it compresses are read.
# Needs nginx.
use strict;
use warnings FATAL => 'all';

use Accord;
use File::Temp qw(tempdir);
use Servers;
use Test::More;

my ($program) = grep { -x } map { "$_/nginx" } '/usr/sbin', '/usr/bin', split /:/, $ENV{PATH};
plan skip_all => 'not installed: nginx (Debian: nginx-light); its limits and its gzip are not tested' unless defined $program;
my $node = new_node('main', "log_statement = none\n");
send_everything($node);
my $stub = start_stub();
my $upstream = '127.0.0.1:' . $stub->port;
my $directory = tempdir(CLEANUP => 1);
chmod 0755, $directory;
my $nginx = Servers->start(
    sub {
        my ($port) = @_;
        open my $conf, '>', "$directory/nginx.conf" or die "nginx.conf: $!";
        print $conf <<"CONF";
daemon off;
pid $directory/pid;
worker_processes 1;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path $directory/body; proxy_temp_path $directory/proxy; fastcgi_temp_path $directory/fastcgi;
    uwsgi_temp_path $directory/uwsgi; scgi_temp_path $directory/scgi;
    limit_req_zone \$http_x_hotel zone=calls:1m rate=20r/s;
    limit_conn_zone \$http_x_hotel zone=connections:1m;
    proxy_http_version 1.1;
    gzip on; gzip_min_length 1; gzip_types application/json; gzip_proxied any;
    server {
        listen 127.0.0.1:$port;
        location /plain/ { limit_req zone=calls burst=4 nodelay; limit_req_status 429; proxy_pass http://$upstream; }
        location /polite/ {
            limit_req zone=calls burst=4 nodelay; limit_req_status 429; error_page 429 = \@slow; proxy_pass http://$upstream;
        }
        location \@slow { add_header Retry-After 1 always; return 429; }
        location /single/ { limit_conn connections 1; limit_conn_status 503; proxy_pass http://$upstream; }
        location /zipped/ { proxy_pass http://$upstream; }
    }
}
CONF
        close $conf;
        return ($program, '-p', $directory, '-e', 'stderr', '-c', "$directory/nginx.conf");
    });

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel behind a location of that name, for a hotel that the limits are kept by; and so many events, at once.
sub deliver
{
    my ($name, $hotel, $n, %column) = @_;
    my $limit = delete $column{limit};
    insert_row($node, 'channel', name => $hotel, base_url => $nginx->url("/$name/$hotel"), headers => qq({"X-Hotel": "$hotel"}),
        retry_base => '50 ms', retry_cap => '200 ms', max_attempts => 3, patient(), enabled => 'false', %column);
    route($node, $hotel, topic => $hotel, path => '/{key}');
    insert_row($node, 'rate_limit', channel => $hotel, %$limit) if $limit;
    sql("INSERT INTO accord.outbox (topic, key, payload) SELECT '$hotel', 'k' || g, '{}' FROM generate_series(1, $n) g");
    sql("UPDATE accord.channel SET enabled = true WHERE name = '$hotel'");
    wait_for_delivery($node);
    my %path = map { $_->{path} => 1 } grep { $_->{path} =~ m{/$hotel/} } $stub->log;
    is(scalar(keys %path), $n, "$hotel: all of them arrive");
    is(sql("SELECT count(*) FROM accord.backlog WHERE channel = '$hotel' AND state IN ('dead', 'held')"), '0', '... none is given up');
    return sql("SELECT count(*) FROM accord.attempt_log WHERE channel = '$hotel' AND status IN (429, 503)");
}

cmp_ok(deliver('plain', 'eager', 40), '>=', 1, '... though nginx refused some with 429');
cmp_ok(deliver('polite', 'asked', 30), '>=', 1, '... though it said when to come again');
is(deliver('plain', 'limited', 40, limit => { amount => 18, period => '1 s', burst => 1 }), 0,
    '... and by a limit of our own nothing is refused');
is(sql(q{SELECT max(attempt) FROM accord.attempt_log WHERE outcome = 'delivered'}) <= 3, 1, 'a refusal costs no attempt');
$stub->script([ { match => { path_regex => '/parallel/' }, do => { delay_ms => 30 } } ]);
cmp_ok(deliver('single', 'parallel', 12, max_attempts => 1000, breaker_failures => undef), '>=', 1, '... though 503 was the answer to what came at the same time');
is(deliver('single', 'serial', 12, max_in_flight => 1), 0, '... and one at a time nothing is refused');

$stub->script([ { match => { path_regex => '/zipped/' }, do => { status => 422,
    headers => { 'Content-Type' => 'application/json' }, body => { error => 'no such room' } } } ]);
insert_row($node, 'channel', name => 'zipped', base_url => $nginx->url('/zipped'), patient());
route($node, 'zipped', topic => 'zipped', path => '/{key}');
events($node, { topic => 'zipped', key => 'z', payload => '{}' });
wait_for_rows($node, q{SELECT response FROM accord.attempt_log WHERE channel = 'zipped'}, '{"error": "no such room"}');
is((grep { $_->{path} eq '/zipped/z' } $stub->log)[0]{headers}{'accept-encoding'}, 'gzip', 'an answer that nginx compressed is read');

$node->stop;
done_testing();
