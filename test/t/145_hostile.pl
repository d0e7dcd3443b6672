# A hostile server, on raw sockets: every kind of answer that is malformed, endless, slow, wrong about its length, compressed to
# burst, reset or flooded with headers. Each is logged as what it is; the dispatcher stays the same process, its memory bounded,
# and a channel that behaves is served beside it all.
use strict;
use warnings FATAL => 'all';

use Accord;
use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Socket qw(SOL_SOCKET SO_LINGER);
use Test::More;

my $node = new_node('main', "accord.response_excerpt = '100B'\nlog_statement = none\n");
send_everything($node);
my $good = start_stub();

my $crlf = "\r\n";
my $ok = "HTTP/1.1 200 OK$crlf";
sub gzip_of_zeros { my ($mb) = @_; return `python3 -c 'import gzip,sys; sys.stdout.buffer.write(gzip.compress(bytes($mb << 20)))'`; }
my $bomb = gzip_of_zeros(100);
my $twice = do { PostgreSQL::Test::Utils::append_to_file($node->basedir . '/z', $bomb); my $file = $node->basedir . '/z'; `gzip -c '$file'`; };

# What is sent, in pieces; the word after it says what becomes of the connection: close, reset, or silence. A sub makes pieces
# until the other side goes away. Expected: outcome|sent|status, of the first attempt, and a pattern of its error or response.
my %case = (
    nothing => [ 'close', 'cut_off|unknown|', qr/Empty reply/ ],
    reset => [ 'reset', 'cut_off|unknown|', qr/reset|Recv failure/ ],
    half_a_status => [ 'HTTP/1.1 20', 'close', 'cut_off|unknown|', qr/./ ],
    not_http => [ "SSH-2.0-OpenSSH_9.2$crlf", 'close', 'cut_off|unknown|', qr/HTTP\/0\.9/ ],
    binary => [ join('', map { chr } 0 .. 255), 'close', 'cut_off|unknown|', qr/./ ],
    odd_version => [ "HTTP/7.3 200 OK$crlf$crlf", 'close', 'cut_off|unknown|', qr/HTTP/ ],
    letters_for_status => [ "HTTP/1.1 abc OK$crlf$crlf", 'close', 'cut_off|unknown|', qr/HTTP/ ],
    status_0 => [ "HTTP/1.1 000 No${crlf}Content-Length: 0$crlf$crlf", 'close', 'cut_off|unknown|', qr/./ ],
    status_999 => [ "HTTP/1.1 999 Odd${crlf}Content-Length: 0$crlf$crlf", 'close', 'cut_off|yes|999', qr/HTTP status 999/ ],
    endless_continue => [ sub { "HTTP/1.1 100 Continue$crlf$crlf" }, 'cut_off|unknown|', qr/headers of the answer exceed/ ],
    headers_cut => [ "${ok}Content-Length: 5$crlf", 'close', 'cut_off|unknown|200', qr/remaining to read|ended within its headers/ ],
    header_flood => [ $ok, sub { "X-Flood: y$crlf" }, 'cut_off|unknown|200', qr/headers of the answer exceed 65536 bytes|too many response headers/i ],
    one_long_header => [ $ok, 'X-Long: ', sub { 'z' x 4096 }, 'cut_off|unknown|200', qr/too long|exceed|larger than allowed/ ],
    header_without_colon => [ "${ok}no colon here${crlf}Content-Length: 0$crlf$crlf", 'close', 'cut_off|unknown|200', qr/Header without colon/ ],
    nul_in_header => [ "${ok}X-A: b\0c${crlf}Content-Length: 0$crlf$crlf", 'close', 'cut_off|unknown|200', qr/nul byte/i ],
    length_short => [ "${ok}Content-Length: 2$crlf${crlf}more than two", 'close', 'delivered|yes|200', qr/^$/ ],
    length_long => [ "${ok}Content-Length: 1000$crlf${crlf}less", 'close', 'cut_off|unknown|200', qr/remaining to read|bytes missing/ ],
    length_negative => [ "${ok}Content-Length: -5$crlf${crlf}x", 'close', 'cut_off|unknown|200', qr/./ ],
    length_twice => [ "${ok}Content-Length: 3${crlf}Content-Length: 30$crlf${crlf}abc", 'close', 'cut_off|unknown|200', qr/./ ],
    length_huge => [ "${ok}Content-Length: 99999999999999999999999$crlf${crlf}x", 'close', undef, qr/./ ],
    length_letters => [ "${ok}Content-Length: many$crlf${crlf}x", 'close', undef, qr/./ ],
    chunk_nonsense => [ "${ok}Transfer-Encoding: chunked$crlf${crlf}zz${crlf}", 'close', 'cut_off|unknown|200', qr/./ ],
    chunk_huge => [ "${ok}Transfer-Encoding: chunked$crlf${crlf}FFFFFFFFFFFFFFFFFF${crlf}x", 'close', 'cut_off|unknown|200', qr/./ ],
    chunk_cut => [ "${ok}Transfer-Encoding: chunked$crlf${crlf}10${crlf}abc", 'close', 'cut_off|unknown|200', qr/./ ],
    endless_chunks => [ "${ok}Transfer-Encoding: chunked$crlf$crlf", sub { "1000$crlf" . 'c' x 4096 . $crlf }, 'delivered|yes|200', qr/^$/ ],
    endless_body => [ "HTTP/1.1 500 Bad$crlf$crlf", sub { 'b' x 8192 }, 'retry|yes|500', qr/^b{100}$/ ],
    endless_trailers => [ "${ok}Transfer-Encoding: chunked$crlf${crlf}0$crlf", sub { "X-T: u$crlf" }, undef, qr/./ ],
    gzip_bomb => [ "HTTP/1.1 503 No${crlf}Content-Encoding: gzip${crlf}Content-Length: " . length($bomb) . "$crlf$crlf$bomb", 'close', 'retry|yes|503', qr/^\?+$/ ],
    gzip_twice => [ "HTTP/1.1 503 No${crlf}Content-Encoding: gzip, gzip${crlf}Content-Length: " . length($twice) . "$crlf$crlf$twice", 'close', 'retry|yes|503', qr/^\?+$/ ],
    gzip_layers => [ "${ok}Content-Encoding: " . join(', ', ('gzip') x 50) . "${crlf}Content-Length: 1$crlf${crlf}x", 'close', 'cut_off|unknown|200', qr/./ ],
    gzip_garbage => [ "${ok}Content-Encoding: gzip${crlf}Content-Length: 9$crlf${crlf}not gzip!", 'close', 'cut_off|unknown|200', qr/./ ],
    gzip_cut => [ "${ok}Content-Encoding: gzip${crlf}Content-Length: 5000$crlf$crlf" . substr($bomb, 0, 12), 'close', 'cut_off|unknown|200', qr/./ ],
    body_reset => [ "${ok}Content-Length: 100$crlf${crlf}begun", 'reset', 'cut_off|unknown|200', qr/./ ],
    silence => [ 'silence', 'stalled|unknown|', qr/./ ],
    silence_in_body => [ "${ok}Content-Length: 100$crlf${crlf}begun", 'silence', 'stalled|unknown|200', qr/./ ],
    retry_after_nonsense => [ "HTTP/1.1 503 No${crlf}Retry-After: " . '9' x 400 . "${crlf}Content-Length: 0$crlf$crlf", 'close', 'retry_after|yes|503', qr/^$/ ],
    two_answers => [ "${ok}Content-Length: 0$crlf${crlf}HTTP/1.1 500 Not yours$crlf$crlf", 'close', 'delivered|yes|200', qr/^$/ ],
    upgrade => [ "HTTP/1.1 101 Switching Protocols${crlf}Upgrade: websocket$crlf$crlf", 'close', undef, qr/./ ],
    controls_in_body => [ "HTTP/1.1 400 No${crlf}Content-Length: 6$crlf$crlf\0\e[31m\xFF", 'close', 'rejected|yes|400', qr/^\?/ ]);

# The server: a process that serves the case that the path names, all connections at once.
my $listen = IO::Socket::INET->new(Listen => 128, LocalAddr => '127.0.0.1', Proto => 'tcp') or die "no port: $!";
my $port = $listen->sockport;
my $server = fork;
die "could not fork: $!" unless defined $server;
if ($server == 0)
{
    $SIG{__DIE__} = sub { POSIX::_exit(1) };       # what runs at this process' end is the test's
    $SIG{PIPE} = 'IGNORE';
    $SIG{CHLD} = 'IGNORE';
    my $parent = getppid;
    while (getppid == $parent)
    {
        next unless IO::Select->new($listen)->can_read(1);
        my $client = $listen->accept or next;
        next if fork;
        my $request = '';
        while ($request !~ /\r\n\r\n/ && sysread $client, my $part, 65536) { $request .= $part; }
        my ($name) = $request =~ m{^POST /(\w+)};
        my @steps = @{ $case{$name} };
        splice @steps, -2;
        my $end = 'close';
        for my $step (@steps)
        {
            if (ref $step) { 1 while syswrite $client, $step->(); next; }
            if ($step =~ /^(close|reset|silence)$/) { $end = $step; next; }
            for (my $at = 0; $at < length $step;) { my $n = syswrite $client, substr $step, $at; last unless $n; $at += $n; }
        }
        sysread $client, my $rest, 1 if $end eq 'silence';
        setsockopt $client, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0 if $end eq 'reset';
        close $client;
        POSIX::_exit(0);
    }
    POSIX::_exit(0);
}
close $listen;

sub memory { my ($pid) = @_; open my $file, '<', "/proc/$pid/status" or die; my ($kb) = join('', <$file>) =~ /VmRSS:\s+(\d+)/; return $kb; }

$node->safe_psql('postgres', join ';', map {
    (insert_sql('channel', name => $_, base_url => "http://127.0.0.1:$port/$_", retry_base => '1 h', retry_cap => '1 h', stall_timeout => '1 s', max_response => 10000),
        insert_sql('route', channel => $_, topic => $_)) } sort keys %case);
channel($node, $good, 'good', route => { topic => 'good' });
my $pid = dispatcher($node);
my $before = memory($pid);
events($node, map { ({ topic => $_, key => $_, payload => '{}' }, { topic => 'good', key => "beside $_", payload => '{}' }) } sort keys %case);
my $expected = keys %case;
wait_for_rows($node, q{SELECT count(DISTINCT channel) FROM accord.attempt_log WHERE channel <> 'good'}, $expected);
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt_log WHERE channel = 'good' AND outcome = 'delivered'}, $expected);
pass('a channel that behaves is served beside them');
my %seen = map { my ($channel, @rest) = split /\t/; ($channel => \@rest) } split /\n/, $node->safe_psql('postgres',
    q{SELECT concat_ws(E'\t', channel, outcome, sent, coalesce(status::text, ''), coalesce(error, ''), coalesce(response, ''))
    FROM accord.attempt_log WHERE channel <> 'good' AND attempt = 1});
for my $name (sort keys %case)
{
    my ($wanted, $pattern) = @{ $case{$name} }[ -2, -1 ];
    my ($outcome, $sent, $status, $error, $response) = map { defined $_ ? $_ : "" } @{ $seen{$name} }[ 0 .. 4 ];
    if (defined $wanted) { is("$outcome|$sent|$status", $wanted, "$name: what it is") or diag($error); }
    else { like($outcome, qr/^(delivered|cut_off|retry|rejected)$/, "$name: judged ($outcome, $error)"); }
    like($error ne '' && $error !~ /^HTTP status [^9]/ ? $error : $response, $pattern, "$name: ... and says so") if defined $wanted;
    unlike($error, qr/[\x00-\x08\x0b-\x1f\x7f]/, "$name: ... without control characters");
}
is(dispatcher($node), $pid, 'the dispatcher is the same process');
memory_below(memory($pid) - $before, 48 * 1024, 'its memory has not grown with what was sent');
my @log = split /\n/, PostgreSQL::Test::Utils::slurp_file($node->logfile);
is(join("\n", grep { / (ERROR|FATAL|PANIC): |TRAP|terminated by signal/ } @log), '', 'the server did not complain');
kill 'TERM', $server;
waitpid $server, 0;
$? = 0;
$node->stop;
done_testing();
