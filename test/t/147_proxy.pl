# Proxies of every kind that a channel may have: https (Debian's tinyproxy behind stunnel), socks5h (microsocks) and socks4a (a
# small one of our own, test/lib/socks4a.py; http is in 141_link.pl). Names are known to them alone. What is
# reached through them, what is told when they do not let it through, that one credential's connection is not another's, that nothing
# shows a credential, and what is refused when it is given.
use strict;
use warnings FATAL => 'all';

use Accord;
use Certificates;
use JSON::PP qw(decode_json encode_json);
use MIME::Base64;
use Servers;
use Test::More;

my $tools = $ENV{ACCORD_TOOLS} || '/usr/bin';
plan skip_all => 'not installed: microsocks, tinyproxy-bin and stunnel4 (ACCORD_TOOLS)'
  if grep { !-x "$tools/$_" } 'microsocks', 'tinyproxy', 'stunnel4';
my $dir = PostgreSQL::Test::Utils::tempdir();
sub file { return PostgreSQL::Test::Utils::slurp_file("$dir/$_[0]"); }
sub write_file { my ($name, $text) = @_; PostgreSQL::Test::Utils::append_to_file("$dir/$name", $text); return "$dir/$name"; }
authority($dir, $_) for 'ours', 'theirs';
certificate($dir, @$_) for [ 'server', 'ours', 'IP:127.0.0.1', 'DNS:by-proxy.test' ], [ 'proxy', 'ours', 'IP:127.0.0.1' ],
  [ 'false', 'theirs', 'IP:127.0.0.1' ], [ 'misnamed', 'ours', 'DNS:elsewhere.test' ];

# ---- proxies

my ($source) = map { "$_/resolver.c" } grep { -e "$_/resolver.c" } @INC;
PostgreSQL::Test::Utils::system_or_bail('gcc', '-shared', '-fPIC', '-o', "$dir/resolver.so", $source, '-ldl');
my @knows = ('env', "LD_PRELOAD=$dir/resolver.so", 'ACCORD_RESOLVER=' . write_file('names', "by-proxy.test 127.0.0.1\n"));
my $password = 'Proxy-Password-1';
my ($libraries) = glob "$tools/../lib/*-linux-gnu";

sub start_tinyproxy
{
    return Servers->start(sub { my ($port) = @_;
        return (@knows, "$tools/tinyproxy", '-d', '-c', write_file("tinyproxy.$port",
            "Port $port\nListen 127.0.0.1\nBasicAuth ann $password\nMaxClients 100\nTimeout 600\n")) });
}

# Before the proxy at this port, by TLS.
sub start_stunnel
{
    my ($to, $certificate) = @_;
    return Servers->start(sub { my ($port) = @_;
        return ('env', 'LD_LIBRARY_PATH=' . ($libraries || ''), "$tools/stunnel4", write_file("stunnel.$port",
            "foreground = yes\npid =\n[proxy]\naccept = 127.0.0.1:$port\nconnect = 127.0.0.1:$to\n"
              . "cert = $dir/$certificate.pem\nkey = $dir/$certificate.key\n")) });
}
my $tinyproxy = start_tinyproxy();
my %server = (https => start_stunnel($tinyproxy->port, 'proxy'), false => start_stunnel($tinyproxy->port, 'false'),
    misnamed => start_stunnel($tinyproxy->port, 'misnamed'),
    socks5h => Servers->start(sub { return (@knows, "$tools/microsocks", '-i', '127.0.0.1', '-p', $_[0], '-u', 'ann', '-P', $password) }),
    socks4a => Servers->start(sub { return ('python3', grep({ -e } map { "$_/socks4a.py" } @INC), $_[0], 'by-proxy.test', '127.0.0.1') }));
my $stub = start_stub();
my $secure = start_stub('--cert', "$dir/server.pem", '--key', "$dir/server.key", '--log', "$dir/secure.log");
my $closed = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'tcp') or die "no port: $!\n";

# The address of one: "socks5h", or "https" for those with false certificates, too.
sub url
{
    my ($kind) = @_;
    return "http://127.0.0.1:" . $stub->port if $kind eq 'echo';
    return ($kind =~ /^socks/ ? $kind : 'https') . '://127.0.0.1:' . $server{$kind}->port;
}
my %nowhere = (nobody => 'socks5h://127.0.0.1:' . $closed->sockport, nameless => 'https://no-such-proxy.test:3128');
my $node = new_node('main', "log_statement = none\naccord.allowed_networks = '127.0.0.1/32'\naccord.ca_file = '$dir/ours.pem'\n"
      . "accord.allowed_proxies = '" . join(', ', values %nowhere, map { url($_) } 'echo', keys %server) . "'\n");
sub value { return $node->safe_psql('postgres', @_); }
send_everything($node);
value(insert_sql('secret', name => $_->[0], value => $_->[1]))
  for [ password => $password ], [ wrong => 'Wrong-Password-2' ], [ token => 'Bearer-Token-3' ], [ theirs => file('theirs.pem') ];

sub proxy
{
    my ($kind, $secret) = @_;
    return encode_json({ url => $nowhere{$kind} || url($kind), $kind ne 'socks4a' && $secret ? (user => 'ann', secret => $secret) : () });
}

sub send_to
{
    my ($name, $base_url, $proxy, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $base_url, proxy => $proxy, retry_base => '1 h', retry_cap => '1 h', patient(),
        auth => '{"type": "bearer", "secret": "token"}', %column);
    route($node, $name, topic => $name, path => "/$name");
    events($node, { topic => $name, key => $name });
    return;
}

# outcome|sent|status|error of a channel's first attempt
sub told
{
    my ($name) = @_;
    my $row;
    poll_until(sub { $row = value(qq{SELECT concat_ws('|', outcome, sent, coalesce(status, 0), error) FROM accord.attempt_log
        WHERE channel = '$name' AND attempt = 1}); }, "an attempt of $name");
    return $row;
}
sub secured { return map { decode_json($_) } split /\n/, file('secure.log'); }
sub http { return 'http://by-proxy.test:' . $stub->port; }
sub https { return 'https://by-proxy.test:' . $secure->port; }

# ---- through them

send_to('direct', http(), undef);
like(told('direct'), qr/^unreachable\|no\|0\|.*resolve/i, 'without a proxy nobody knows the name');
my %certified = (https => { tls => '{"ca": "theirs"}' }, socks5h => {}, socks4a => {});
for my $kind (sort keys %certified)
{
    send_to("$kind-http", http(), proxy($kind, 'password'));
    is(told("$kind-http"), 'delivered|yes|200', "$kind: a channel that only the proxy knows by name");
    send_to("$kind-https", https(), proxy($kind, 'password'));
    is(told("$kind-https"), 'delivered|yes|200', '... and by TLS from end to end');
    is(value("SELECT ok, verdict FROM accord.probe('$kind-https')"), 't|works', '... and a probe says so');
    send_to("$kind-false", https(), proxy($kind, 'password'), tls => '{"ca": "theirs"}');
    # by TLS in TLS libcurl loses the reason
    like(told("$kind-false"), $kind eq 'https' ? qr/^unreachable\|no\|0\|.*(SSL|TLS|certificate)/ : qr/^unreachable\|no\|0\|.*certificate/i, '... a channel whose certificate nobody vouches for is not trusted');
    for my $url ('http://127.0.0.2:1', 'http://2130706434:1', 'http://[::ffff:127.0.0.2]:1')
    {
        value(insert_sql('channel', name => "$kind-refused", base_url => $url, proxy => proxy($kind, 'password')));
        like(value("SELECT detail FROM accord.probe('$kind-refused')"), qr/the address of the URL is in a refused network/, "... nor $url called");
        value("DELETE FROM accord.channel WHERE name = '$kind-refused'");
    }
}
like($server{socks4a}->output, qr/^'' by-proxy\.test \d+ granted$/m, 'a name is told as such');

# Connections are kept, so that what comes below about other passwords means something.
for my $kind ('https', 'socks5h')
{
    events($node, { topic => "$kind-https", key => 'again' });
    wait_for_rows($node, "SELECT outcome FROM accord.attempt WHERE channel = '$kind-https' AND key = 'again'", 'delivered');
}
my %kept;
push @{ $kept{ $_->{path} } }, $_->{connection} for grep { $_->{path} =~ /-https$/ } secured();
SKIP:
{
    my ($major, $minor) = `python3 -c 'import ctypes as c; f = c.CDLL("libcurl.so.4").curl_version; f.restype = c.c_char_p; print(f().decode())'` =~
      m{libcurl/(\d+)\.(\d+)} or die 'no libcurl';
    # see accord_http_link_alone()
    skip "libcurl $major.$minor does not tell a proxy's users apart", 2 if $major == 8 && $minor < 14;
    ok(@$_ == 2 && $_->[0] == $_->[1], 'a connection is kept') for @kept{ '/https-https', '/socks5h-https' };
}

# A token is fetched the same way.
$stub->script([ { match => { path_regex => '^/token' }, do => { body => { access_token => 'Access-Token-4', expires_in => 600 } } } ]);
send_to('oauth', http(), proxy('socks5h', 'password'), auth => encode_json({ type => 'oauth2', token_url => http() . '/token', client_id => 'c',
    secret => 'token' }));
is(told('oauth'), 'delivered|yes|200', 'so is a token endpoint reached');

# ---- not through them

for my $kind ('https', 'socks5h')
{
    send_to("$kind-wrong", https(), proxy($kind, 'wrong'));
    like(told("$kind-wrong"), $kind eq 'https' ? qr/^unreachable\|no\|0\|CONNECT tunnel failed, response 401/ : qr/^unreachable\|no\|0\|.*SOCKS5/,
        "$kind: with another password nothing is sent, not even by a connection that is open to there");
    like(value("SELECT verdict || ': ' || detail FROM accord.probe('$kind-wrong')"), qr/^proxy: its proxy .*does not let it through/,
        '... and a probe says whose fault it is');
}
send_to('http-wrong', http(), proxy('https', 'wrong'));
is(told('http-wrong'), 'unauthorized|yes|401|HTTP status 401', 'without a tunnel the answer is the proxy\'s');
for my $kind ('false', 'misnamed')
{
    send_to($kind, https(), proxy($kind, 'password'));
    like(told($kind), qr/^unreachable\|no\|0\|.*(certificate|subject name)/i, "a proxy with a $kind certificate is not told a thing");
    like(value("SELECT verdict FROM accord.probe('$kind')"), qr/^proxy$/, '... and a probe says whose fault it is');
}
for my $kind (sort keys %nowhere)
{
    send_to($kind, https(), proxy($kind, 'password'));
    like(told($kind), $kind eq 'nobody' ? qr/^unreachable\|no\|0\|.*connect/i : qr/^unreachable\|no\|0\|.*could not resolve/i,
        "a proxy that is not there ($kind): nothing is sent");
    is(value("SELECT verdict FROM accord.probe('$kind')"), 'proxy', '... and a probe says whose fault it is');
}
for my $kind (sort keys %certified)
{
    send_to("$kind-closed", 'https://by-proxy.test:' . $closed->sockport, proxy($kind, 'password'));
    like(told("$kind-closed"), qr/^unreachable\|no\|0\|/, "$kind: a channel where nobody listens: nothing is sent");
}
$stub->script([ { match => { path_regex => '^/.*-cut' }, do => { reset => JSON::PP::true } } ]);
for my $kind ('socks4a', 'socks5h')
{
    send_to("$kind-cut", http(), proxy($kind, 'password'));
    like(told("$kind-cut"), qr/^cut_off\|unknown\|0\|/, "$kind: a connection that ends behind the proxy: nobody knows");
}

# ---- credentials stay where they are

my $basic = encode_base64("ann:$password", '');
$stub->script([ { do => { status => 407, body => "what you sent: Basic $basic, $password, Bearer Bearer-Token-3" } } ]);
send_to('echo', http(), proxy('echo', 'password'));
is(told('echo'), 'unauthorized|yes|407|HTTP status 407', 'a proxy that shows what it was sent');
is(value(q{SELECT response FROM accord.attempt_log WHERE channel = 'echo'}), 'what you sent: Basic ***, ***, Bearer ***', '... is not quoted on that');
my ($asked) = grep { ($_->{headers}{'proxy-authorization'} || '') eq "Basic $basic" } $stub->log;
ok($asked, '... and was sent it');
ok(!(grep { $_->{headers}{'proxy-authorization'} } grep { ($_->{headers}{host} || '') =~ /by-proxy/ && $_->{path} !~ /echo/ } $stub->log),
    'channels are not told the proxy\'s password');
is(join(' ', rows_with($node, $password, $basic, 'Wrong-Password-2', 'Bearer-Token-3')), '', 'no table shows a credential');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/$password|\Q$basic\E|Wrong-Password|Bearer-Token/, 'nor does the log');

# ---- what is refused when it is given

my %bad = (
    '{"url": "socks5://127.0.0.1:1080"}' => qr/url "socks5:.*by which the proxy resolves names/s, '{"url": "socks4://127.0.0.1:1080"}' => qr/url "socks4:/,
    '{"url": "socks://127.0.0.1:1080"}' => qr/url "socks:/, '{"url": "127.0.0.1:1080"}' => qr/url "127/, '{"url": "https://127.0.0.1"}' => qr/url "https:/,
    '{"url": "https://127.0.0.1:99999"}' => qr/url "https:/, '{"url": "https://::1:80"}' => qr/url "https:/, '{"url": "socks5h://a:b@h:1"}' => qr/url "socks5h:/,
    '{"url": "socks4a://h:1", "user": "ann", "secret": "password"}' => qr/user of proxy of accord\.channel cannot be used: socks4a has no place for a secret/,
    '{"url": "socks5h://h:1", "user": "' . 'u' x 256 . '", "secret": "password"}' => qr/user of proxy .*too long for socks5h/,
    '{"url": "https://h:1", "user": "a:b", "secret": "password"}' => qr/user of proxy .*a colon/,
    '{"url": "https://h:1", "secret": "password"}' => qr/has one of user and secret, not both/);
for my $bad (sort keys %bad)
{
    my (undef, undef, $error) = $node->psql('postgres', insert_sql('channel', name => 'bad', base_url => 'http://127.0.0.1', proxy => $bad));
    like($error, $bad{$bad}, 'refused when it is given: ' . substr($bad, 0, 70));
    like($error, qr/HINT: /, '... with a hint');
}
$node->stop;
done_testing();
