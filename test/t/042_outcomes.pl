# Every row of README's table of outcomes, produced for real: a channel per kind of answer, and of misbehaviour, one
# event to each, all at the same time. For each the first attempt's outcome, how far the request got and the status, and
# what became of the delivery. Through all of it the dispatcher stays the same process, and a channel that behaves is
# served as if nothing were wrong.
#
# Deliveries that will be tried again are looked at by their first attempt and first row alone, so that nothing depends
# on when their next turn comes.
use strict;
use warnings FATAL => 'all';

use Accord;
use IO::Socket::INET;
use POSIX qw(strftime);
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('main', <<'CONF');
accord.response_excerpt = '64B'
log_statement = none
CONF
send_everything($node);
my $stub = start_stub();
my $elsewhere = start_stub();

# A server whose certificate nobody knows.
my $cert = $node->basedir . '/cert.pem';
my $key = $node->basedir . '/key.pem';
PostgreSQL::Test::Utils::system_or_bail('openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt',
    'ec_paramgen_curve:prime256v1', '-nodes', '-days', '30', '-subj', '/CN=stub', '-addext',
    'subjectAltName=IP:127.0.0.1', '-keyout', $key, '-out', $cert);
my $secure = start_stub('--cert', $cert, '--key', $key, '--log', $node->basedir . '/secure.log');

# A port that is taken, but at which nobody listens.
my $silent = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'tcp') or die "no port: $!";
my $closed = 'http://127.0.0.1:' . $silent->sockport;

my $hour = 3600;
my $date = strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime(int(time) + $hour));
my $old_date = strftime('%A, %d-%b-%y %H:%M:%S GMT', gmtime(int(time) + $hour));
my $big = 1024 * 1024 * 1024;

# name => { do: what the stub does; channel, route, event: columns; expect: outcome|sent|status|then }
# "then" is the first state of the backlog, or "done" when there is none.
my %case = (
    # ---- by status
    ok => { do => { status => 200 }, expect => 'delivered|yes|200|done' },
    created => { do => { status => 201, body => '' }, expect => 'delivered|yes|201|done' },
    accepted => { do => { status => 202, body => 'later' }, expect => 'delivered|yes|202|done' },
    no_content => { do => { status => 204 }, expect => 'delivered|yes|204|done' },
    odd_success => { do => { status => 299 }, expect => 'delivered|yes|299|done' },
    gone => { do => { status => 404 }, route => { method => 'DELETE' }, expect => 'delivered|yes|404|done' },
    gone_for_good => { do => { status => 410 }, route => { method => 'DELETE' }, expect => 'delivered|yes|410|done' },
    not_found => { do => { status => 404 }, expect => 'rejected|yes|404|dead' },
    not_found_put => { do => { status => 410 }, route => { method => 'PUT' }, expect => 'rejected|yes|410|dead' },
    bad_request => { do => { status => 400 }, expect => 'rejected|yes|400|dead' },
    unprocessable => { do => { status => 422 }, expect => 'rejected|yes|422|dead' },
    odd_refusal => { do => { status => 499 }, expect => 'rejected|yes|499|dead' },
    unauthorized => { do => { status => 401 }, expect => 'unauthorized|yes|401|retrying' },
    forbidden => { do => { status => 403 }, expect => 'unauthorized|yes|403|retrying' },
    proxy => { do => { status => 407 }, expect => 'unauthorized|yes|407|retrying' },
    request_timeout => { do => { status => 408 }, expect => 'retry|yes|408|retrying' },
    conflict => { do => { status => 409 }, expect => 'retry|yes|409|retrying' },
    misdirected => { do => { status => 421 }, expect => 'retry|yes|421|retrying' },
    locked => { do => { status => 423 }, expect => 'retry|yes|423|retrying' },
    too_early => { do => { status => 425 }, expect => 'retry|yes|425|retrying' },
    too_many => { do => { status => 429 }, expect => 'retry_after|yes|429|retrying' },
    too_many_seconds => {
        do => { status => 429, headers => { 'Retry-After' => $hour } }, due => $hour,
        expect => 'retry_after|yes|429|retrying' },
    too_many_date => {
        do => { status => 429, headers => { 'Retry-After' => $date } }, due_date => $date,
        expect => 'retry_after|yes|429|retrying' },
    too_many_days => {
        do => { status => 429, headers => { 'Retry-After' => 999_999_999_999 } }, due => 24 * $hour,
        expect => 'retry_after|yes|429|retrying' },
    failure => { do => { status => 500 }, expect => 'retry|yes|500|retrying' },
    bad_gateway => { do => { status => 502 }, expect => 'retry|yes|502|retrying' },
    unavailable => { do => { status => 503 }, expect => 'retry|yes|503|retrying' },
    unavailable_seconds => {
        do => { status => 503, headers => { 'Retry-After' => " $hour " } }, due => $hour,
        expect => 'retry_after|yes|503|retrying' },
    unavailable_date => {
        do => { status => 503, headers => { 'Retry-After' => $old_date } }, due_date => $date,
        expect => 'retry_after|yes|503|retrying' },
    unavailable_nonsense => {
        do => { status => 503, headers => { 'Retry-After' => 'soon' } }, expect => 'retry|yes|503|retrying' },
    gateway_timeout => { do => { status => 504 }, expect => 'retry|yes|504|retrying' },
    odd_failure => { do => { status => 599 }, expect => 'retry|yes|599|retrying' },
    not_implemented => { do => { status => 501 }, expect => 'rejected|yes|501|dead' },
    version => { do => { status => 505 }, expect => 'rejected|yes|505|dead' },
    moved => { do => { redirect => $elsewhere->url('/moved') }, expect => 'rejected|yes|302|dead' },
    moved_for_good => {
        do => { status => 301, redirect => $elsewhere->url('/moved') }, expect => 'rejected|yes|301|dead' },
    see_other => { do => { status => 303, redirect => $elsewhere->url('/moved') }, expect => 'rejected|yes|303|dead' },
    moved_with_body => {
        do => { status => 307, redirect => $elsewhere->url('/moved') },
        channel => { auth => '{"type": "bearer", "secret": "token"}' }, expect => 'rejected|yes|307|dead' },
    moved_get => {
        do => { status => 308, redirect => $elsewhere->url('/moved') }, route => { method => 'GET' },
        channel => { auth => '{"type": "basic", "user": "u", "secret": "token"}' }, expect => 'rejected|yes|308|dead' },

    # ---- no connection
    refused_connection => { channel => { base_url => $closed }, expect => 'unreachable|no||retrying' },
    unknown_certificate => {
        channel => { base_url => $secure->url('/unknown') }, expect => 'unreachable|no||retrying' },
    tls_to_plain => {
        channel => { base_url => "https://127.0.0.1:${\$stub->port}/tls" }, expect => 'unreachable|no||retrying' },
    refused_network => { channel => { base_url => 'http://10.1.2.3/' }, expect => 'unreachable|no||retrying' },
    metadata => { channel => { base_url => 'http://169.254.169.254/' }, expect => 'unreachable|no||retrying' },
    mapped_address => { channel => { base_url => 'http://[::ffff:10.1.2.3]/' }, expect => 'unreachable|no||retrying' },

    # ---- no whole answer
    silence => { do => { hang => 1 }, channel => { timeout => '2 s' }, expect => 'timeout|unknown||retrying' },
    long_body => {
        do => { stall_after_bytes => 10 }, channel => { timeout => '2 s' }, expect => 'timeout|unknown|200|retrying' },
    drop_by_drop => {
        do => { drip => { bytes => 1, every_ms => 200 }, body => 'z' x 1000 }, channel => { timeout => '2 s' },
        expect => 'timeout|unknown|200|retrying' },
    stalled => { do => { hang => 1 }, channel => { stall_timeout => '1 s' }, expect => 'stalled|unknown||retrying' },
    stalled_body => {
        do => { stall_after_bytes => 10 }, channel => { stall_timeout => '1 s' },
        expect => 'stalled|unknown|200|retrying' },
    closed => { do => { close_before_response => 1 }, expect => 'cut_off|unknown||retrying' },
    reset => { do => { reset => 1 }, expect => 'cut_off|unknown||retrying' },
    cut_off_body => { do => { cut_after_bytes => 10 }, expect => 'cut_off|unknown|200|retrying' },
    cut_off_headers => { do => { raw => "HTTP/1.1 200 OK\r\nX-Re" }, expect => 'cut_off|unknown|200|retrying' },
    cut_off_chunk => {
        do => { raw => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{}" },
        expect => 'cut_off|unknown|200|retrying' },
    garbage => { do => { garbage => 1 }, expect => 'cut_off|unknown||retrying' },
    garbage_chunk => {
        do => { raw => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}" },
        expect => 'cut_off|unknown|200|retrying' },
    garbage_status => { do => { raw => "HTTP/1.1 OK\r\n\r\n" }, expect => 'cut_off|unknown||retrying' },
    unknown_status => { do => { status => 799 }, expect => 'cut_off|yes|799|retrying' },
    endless_headers => { do => { endless_headers => 1 }, expect => 'cut_off|unknown|200|retrying' },
    endless_header => {
        do => { raw => "HTTP/1.1 200 OK\r\nX-Long: " . 'y' x 300_000 }, expect => 'cut_off|unknown|200|retrying' },

    # ---- strange, but whole
    nul => { do => { status => 500, nul => 1 }, expect => 'retry|yes|500|retrying' },
    invalid_utf8 => { do => { status => 400, invalid_utf8 => 1 }, expect => 'rejected|yes|400|dead' },
    strange_success => { do => { invalid_utf8 => 1 }, expect => 'delivered|yes|200|done' },
    endless_body => { do => { stream_bytes => $big }, expect => 'delivered|yes|200|done' },
    endless_failure => { do => { status => 500, stream_bytes => $big }, expect => 'retry|yes|500|retrying' },
    no_length => { do => { raw => "HTTP/1.1 200 OK\r\n\r\nyes" }, expect => 'delivered|yes|200|done' },
    no_length_refused => { do => { raw => "HTTP/1.0 400 No\r\n\r\nno" }, expect => 'rejected|yes|400|dead' },
    compressed => {
        do => { status => 400, headers => { 'Content-Encoding' => 'gzip' }, body_base64 =>
                'H4sIAAAAAAACA8vLVyguTc5QyMksLsnMSwcA3ep5vw8AAAA=' }, expect => 'rejected|yes|400|dead' },
    chunks => { do => { chunked => 1, body => 'x' x 1000 }, expect => 'delivered|yes|200|done' },
    informational => {
        do => { raw => "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n" },
        expect => 'delivered|yes|201|done' },

    # ---- no request
    undefined => { route => { path => '/{payload.nothing}' }, expect => 'invalid|||dead' },
    raising => { route => { body_function => 'app.raising' }, expect => 'invalid|||dead' },
    no_route => { route => { topic => 'other' }, event => { channels => '{no_route}' }, expect => 'invalid|||dead' },
    nothing_to_send => { route => { body_function => 'app.nothing' }, expect => 'skipped|||done' },
    no_secret => { channel => { auth => '{"type": "bearer", "secret": "none"}' }, expect => 'retry|||retrying' },
);

# What is in the way of the dispatcher's memory.
sub peak_memory
{
    my ($pid) = @_;
    my ($kb) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+) kB/m;
    return $kb;
}

# ---- everything at once

my (@rules, @configuration, @events);
for my $name (sort keys %case)
{
    my $case = $case{$name};
    my %channel = (name => $name, base_url => $stub->url("/$name"), retry_base => '10 s', retry_cap => '1 h',
        %{ $case->{channel} || {} });
    push @rules, { match => { path_regex => "^/$name\$" }, do => $case->{do} } if $case->{do};
    push @configuration, insert_sql('channel', %channel), insert_sql('route', channel => $name, topic => $name,
        %{ $case->{route} || {} });
    push @events, { topic => $name, key => 'k', payload => '{"a": 1}', %{ $case->{event} || {} } };
}
$node->safe_psql('postgres', join ";\n", <<'SQL', @configuration);
CREATE SCHEMA app;
CREATE FUNCTION app.raising(accord.event_log) RETURNS accord.http_request LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'no such thing'; END $$;
CREATE FUNCTION app.nothing(accord.event_log) RETURNS accord.http_request LANGUAGE sql AS
    'SELECT NULL::accord.http_request';
INSERT INTO accord.secret VALUES ('token', 'very-secret');
SQL
channel($node, $stub, 'steady', route => { topic => 'steady', path => '/steady/{payload.n}' });
$stub->script(\@rules);
my $dispatcher = dispatcher($node);
my $memory = peak_memory($dispatcher);

my @steady = map { { topic => 'steady', key => 'k', payload => qq({"n": $_}) } } 1 .. 40;
my @ids = events($node, @events, @steady);
my $n = keys %case;
wait_for_rows($node, q{SELECT count(DISTINCT channel) FROM accord.attempt_log WHERE channel <> 'steady'}, $n);

# ---- what was concluded

my %seen = map { split /\|/, $_, 2 } split /\n/, $node->safe_psql('postgres', <<'SQL');
SELECT a.channel, a.outcome, a.sent, a.status, coalesce(b.state, 'done')
FROM (SELECT DISTINCT ON (channel) * FROM accord.attempt_log ORDER BY channel, recorded_at) a
LEFT JOIN (SELECT DISTINCT ON (channel) * FROM accord.backlog_log
           WHERE state NOT IN ('sending', 'delivered', 'skipped') ORDER BY channel, version) b USING (channel)
SQL
is($seen{$_}, $case{$_}{expect}, $_) for sort keys %case;

for my $name (grep { $case{$_}{due} || $case{$_}{due_date} } sort keys %case)
{
    my ($due, $due_date) = @{ $case{$name} }{qw(due due_date)};
    my $not_before = $due ? "recorded_at + interval '$due s'" : "timestamptz '$due_date'";
    my $bound = "$not_before + interval '2 min'";
    is($node->safe_psql('postgres', "SELECT bool_and(due_at >= $not_before - interval '2 s' AND due_at < $bound)
          FROM accord.backlog_log WHERE channel = '$name' AND state = 'retrying'"),
        't', "$name: the channel says when");
}
is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT attempts::text, ' ') FROM accord.backlog_log
     WHERE channel LIKE 'too_many%' AND state = 'retrying'}), '0', 'a 429 costs no attempt');

# ---- what is said about it

sub said
{
    my ($name, $column) = @_;
    return $node->safe_psql('postgres', "SELECT $column FROM accord.attempt_log WHERE channel = '$name'
                                          ORDER BY recorded_at LIMIT 1");
}

is(said('failure', 'error'), 'HTTP status 500', 'error: the status');
like(said('unknown_certificate', 'error'), qr/certificate/, 'error: the certificate');
is(said('refused_network', 'error'), 'address 10.1.2.3 is in a refused network', 'error: the refused network');
is(said('metadata', 'error'), 'address 169.254.169.254 is in a refused network', 'error: the link-local address');
like(said('mapped_address', 'error'), qr/is in a refused network/, 'error: an IPv4 address in IPv6');
like(said('refused_connection', 'error'), qr/connect/i, 'error: the refused connection');
is(said('endless_headers', 'error'), 'headers of the answer exceed 65536 bytes', 'error: too many headers');
like(said('endless_header', 'error'), qr/header|grew larger than allowed/, 'error: too long a header');
like(said('undefined', 'error'), qr/the event defines no "payload\.nothing"/, 'error: the undefined variable');
is(said('raising', 'error'), 'function app.raising: no such thing', 'error: the function\'s');
is(said('no_secret', 'error'), 'secret "none" is not stored', 'error: the missing secret');
is(said('ok', 'error IS NULL AND response IS NULL'), 't', 'a success says nothing');
is(said('no_length_refused', 'response'), 'no', 'an answer without a length is read to its end');
is(said('nul', 'response'), '{"nul": "a?b"}', 'NUL in an answer');
is(said('invalid_utf8', 'response'), '{"bytes": "?( ?? ?"}', 'invalid UTF-8 in an answer');
is(said('compressed', 'response'), 'no such listing', 'a compressed answer is taken apart');
is(said('endless_failure', 'response'), 'z' x 64, 'of an endless answer the beginning is kept');
is($node->safe_psql('postgres', q{SELECT string_agg(channel, ' ' ORDER BY channel) FROM accord.dead_letter}),
    join(' ', sort grep { $case{$_}{expect} =~ /dead$/ } keys %case), 'the dead letters are what must be dead');

# ---- nothing leaked, and nothing else was disturbed

is($elsewhere->count, 0, 'no redirect was followed, with or without a credential');
is(-s $node->basedir . '/secure.log', 0, 'nothing was sent to the server with the unknown certificate');
is(scalar(grep { $_->{path} =~ m{^/(tls|undefined|raising|no_route|nothing|no_secret)} } $stub->log),
    0, 'what cannot be sent was not sent');
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt_log WHERE channel = 'steady' AND outcome = 'delivered'},
    scalar @steady);
is_deeply([ map { $_->{path} =~ m{^/steady/(\d+)} ? $1 : () } $stub->log ],
    [ 1 .. @steady ], 'a channel that behaves gets all of its events, in order and once');
is(dispatcher($node), $dispatcher, 'the dispatcher is the same process');
memory_below(peak_memory($dispatcher) - $memory, 64 * 1024, 'its memory did not grow with the answers');
my $rows = $node->safe_psql('postgres', 'SELECT a FROM accord.attempt_log a');
my @log = split /\n/, PostgreSQL::Test::Utils::slurp_file($node->logfile);
is(join("\n", grep { / (ERROR|FATAL|PANIC): |TRAP|terminated by signal/ } @log), '', 'the server did not complain');
is(join("\n", grep { /very-secret/ } @log, $rows), '', 'the credential is in no row and no log');

# ---- a certificate that is trusted

$node->append_conf('postgresql.conf', "accord.ca_file = '$cert'\n");
$node->reload;
$node->safe_psql('postgres',
    q{SELECT accord.redeliver(event_id, topic) FROM accord.event_log WHERE topic = 'unknown_certificate'});
wait_for_rows($node, q{SELECT sent, status FROM accord.attempt_log WHERE channel = 'unknown_certificate'
    AND outcome = 'delivered'}, 'yes|200');
pass('with accord.ca_file the server is reached, after a reload');

$node->stop;
done_testing();
