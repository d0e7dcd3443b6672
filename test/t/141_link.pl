# How a channel is reached: a certificate that is shown to it, an authority that only it is trusted by, a proxy; and refused
# networks, which nothing of that leads around: names that are bound again, addresses in every notation, redirects, proxies.
use strict;
use warnings FATAL => 'all';

use Accord;
use Certificates;
use JSON::PP qw(encode_json);
use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Test::More;

# ---- certificates

my $dir = PostgreSQL::Test::Utils::tempdir();
sub file { return PostgreSQL::Test::Utils::slurp_file("$dir/$_[0]"); }
authority($dir, $_) for 'ours', 'theirs';
certificate($dir, @$_, 'IP:127.0.0.1') for [ 'server', 'ours' ], [ 'client', 'ours' ], [ 'stranger', 'theirs' ];

# ---- names, by a resolver of our own

my $shim = "$dir/resolver.so";
my ($source) = map { "$_/resolver.c" } grep { -e "$_/resolver.c" } @INC;
PostgreSQL::Test::Utils::system_or_bail('gcc', '-shared', '-fPIC', '-o', $shim, $source, '-ldl');
PostgreSQL::Test::Utils::append_to_file("$dir/names", <<'NAMES');
fine.test 127.0.0.1
rebound.test 127.0.0.1 127.0.0.2
both.test 127.0.0.2,127.0.0.1
inside.test 127.0.0.2
mapped.test ::ffff:127.0.0.2
metadata.test 169.254.169.254
NAMES
my $shimmed = !$ENV{SANITIZE};
my $node = new_node('main', <<'CONF', extension => 0, start => 0);
log_statement = none
accord.allowed_networks = '127.0.0.1/32'
CONF
{
    local %ENV = (%ENV, $shimmed ? (LD_PRELOAD => $shim, ACCORD_RESOLVER => "$dir/names") : ());
    $node->start;
}
sub value { return $node->safe_psql('postgres', @_); }
value('CREATE EXTENSION pg_accord');
send_everything($node);
my $stub = start_stub();
my $secure = start_stub('--cert', "$dir/server.pem", '--key', "$dir/server.key", '--log', "$dir/secure.log");
my $mutual = start_stub('--cert', "$dir/server.pem", '--key', "$dir/server.key", '--client-ca', "$dir/ours.pem", '--log', "$dir/mutual.log");
# what must not be reached: a listener on the port of the stub, at 127.0.0.2
my $trap = IO::Socket::INET->new(Listen => 16, LocalAddr => '127.0.0.2', LocalPort => $stub->port, Proto => 'tcp') or die "no trap: $!";

value(insert_sql('secret', name => $_->[0], value => $_->[1]))
  for [ ca => file('ours.pem') ], [ other_ca => file('theirs.pem') ], [ client => file('client.pem') . file('client.key') ],
  [ certificate => file('client.pem') ], [ key => file('client.key') ], [ stranger => file('stranger.pem') . file('stranger.key') ],
  [ nonsense => "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----" ], [ password => 'Proxy-Password' ];

my @sent;
sub send_to
{
    my ($name, %column) = @_;
    value(insert_sql('channel', name => $name, retry_base => '1 h', retry_cap => '1 h', timeout => '1 h', stall_timeout => '1 h', %column) . ';'
          . insert_sql('route', channel => $name, topic => $name, path => "/$name"));
    events($node, { topic => $name, key => $name });
    push @sent, $name;
    return;
}

# outcome|sent|error of a channel's first attempt
sub told
{
    my ($name) = @_;
    my $row;
    poll_until(sub { $row = value(qq{SELECT outcome || '|' || sent || '|' || coalesce(error, '') FROM accord.attempt_log
        WHERE channel = '$name' AND attempt = 1}); }, "an attempt of $name");
    return $row;
}

send_to('plain_ca', base_url => $secure->url, tls => '{"ca": "ca"}');
send_to('no_ca', base_url => $secure->url);
send_to('other_ca', base_url => $secure->url, tls => '{"ca": "other_ca"}');
send_to('mutual', base_url => $mutual->url, tls => '{"ca": "ca", "certificate": "client"}');
send_to('two_files', base_url => $mutual->url, tls => '{"ca": "ca", "certificate": "certificate", "key": "key"}');
send_to('nobody', base_url => $mutual->url, tls => '{"ca": "ca"}');
send_to('stranger', base_url => $mutual->url, tls => '{"ca": "ca", "certificate": "stranger"}');
send_to('nonsense', base_url => $mutual->url, tls => '{"ca": "ca", "certificate": "nonsense"}');
send_to('missing', base_url => $mutual->url, tls => '{"ca": "nowhere"}');
is(told('plain_ca'), 'delivered|yes|', 'an authority of the channel\'s own is trusted');
like(told('no_ca'), qr/^unreachable\|no\|.*certificate/, '... by no other');
like(told('other_ca'), qr/^unreachable\|no\|.*certificate/, '... and another\'s signature is not enough');
is(told('mutual'), 'delivered|yes|', 'a certificate is shown, its key in the same secret');
is(told('two_files'), 'delivered|yes|', '... or in another');
like(told('nobody'), qr/^(unreachable|cut_off)\|/, 'who shows none is refused');
like(told('stranger'), qr/^(unreachable|cut_off)\|/, '... and who shows a stranger\'s');
like(told('nonsense'), qr/^unreachable\|no\|/, 'a certificate that is none: nothing is sent');
is(value(q{SELECT outcome, error FROM accord.attempt_log WHERE channel = 'missing'}), 'retry|secret "nowhere" is not stored',
    'a secret that is not stored is told');
value(q{INSERT INTO accord.account (channel, name, tls) VALUES ('nobody', 'anna', '{"ca": "ca", "certificate": "client"}')});
events($node, { topic => 'nobody', key => 'a', account => 'anna' });
wait_for_rows($node, q{SELECT outcome FROM accord.attempt_log WHERE channel = 'nobody' AND account = 'anna'}, 'delivered');
pass('an account shows its own');

# ---- refused networks

my $port = $stub->port;
my %refused = (
    address => "http://127.0.0.2:$port", decimal => "http://2130706434:$port", octal => "http://0177.0.0.2:$port", hexadecimal => "http://0x7f.0.0.2:$port",
    short => "http://127.2:$port", mapped => "http://[::ffff:127.0.0.2]:$port", compatible => "http://[::127.0.0.2]:$port", loopback6 => "http://[::1]:$port",
    zero => "http://0.0.0.0:$port", nat64 => "http://[64:ff9b::7f00:2]:$port", six_to_four => "http://[2002:7f00:2::]:$port",
    $shimmed ? (inside => "http://inside.test:$port", mapped_name => "http://mapped.test:$port", metadata => "http://metadata.test:$port") : ());
send_to("refused_$_", base_url => $refused{$_}) for sort keys %refused;
like(told("refused_$_"), qr/^unreachable\|no\|(address .* is in a refused network|.*(rejected|resolve|not).*)$/, "refused: $refused{$_}") for sort keys %refused;
SKIP:
{
    skip 'a sanitizer is preloaded instead', 4 unless $shimmed;
    send_to('fine', base_url => "http://fine.test:$port");
    is(told('fine'), 'delivered|yes|', 'a name is resolved');
    send_to('both', base_url => "http://both.test:$port");
    is(told('both'), 'delivered|yes|', 'of two addresses the one that may be called is');
    send_to('rebound', base_url => "http://rebound.test:$port");
    is(told('rebound'), 'delivered|yes|', 'a name is good at first');
    {
        local %ENV = (%ENV, LD_PRELOAD => $shim, ACCORD_RESOLVER => "$dir/names");
        $node->restart;
    }
    events($node, { topic => 'rebound', key => 'later' });
    wait_for_rows($node, q{SELECT outcome, sent, error FROM accord.attempt WHERE key = 'later'},
        'unreachable|no|address 127.0.0.2 is in a refused network');
    pass('... and is judged anew when it is resolved anew');
}
my %other = (unix => 'unix:///var/run/x', file => 'file:///etc/passwd', gopher => "gopher://127.0.0.1:$port/", ftp => "ftp://127.0.0.1:$port/");
for my $scheme (sort keys %other)
{
    my ($status, undef, $error) = $node->psql('postgres', insert_sql('channel', name => $scheme, base_url => $other{$scheme}));
    like($error, qr/scheme of the URL is not http or https/, "$scheme: refused when it is given");
}
$stub->script([ { match => { path_regex => '^/redirected' }, do => { redirect => "http://127.0.0.2:$port/" } } ]);
send_to('redirected', base_url => $stub->url);
is(told('redirected'), 'rejected|yes|HTTP status 302', 'a redirect is not followed');

# A token endpoint is called like a channel.
my %token_url = (token_address => "http://127.0.0.2:$port/", token_octal => "http://0177.0.0.2:$port/", token_redirect => $stub->url('/redirected'),
    $shimmed ? (token_name => "http://inside.test:$port/") : ());
for my $name (sort keys %token_url)
{
    channel($node, $stub, $name, base_url => $stub->url, auth => encode_json(
        { type => 'oauth2', token_url => $token_url{$name}, client_id => 'c', secret => 'password' }));
    route($node, $name, topic => $name);
    events($node, { topic => $name, key => 'k' });
    $node->poll_query_until('postgres', "SELECT last_error IS NOT NULL FROM accord.status WHERE channel = '$name'") or die;
    is(value("SELECT state FROM accord.status WHERE channel = '$name'"), 'throttled', "no token from $token_url{$name}: nothing is sent");
    like(value("SELECT last_error FROM accord.status WHERE channel = '$name'"),
        $name eq 'token_redirect' ? qr/^no token: HTTP status 302$/ : qr/^no token: .*refused network$/, '... and why');
}

# ---- proxies

my $listen = IO::Socket::INET->new(Listen => 64, LocalAddr => '127.0.0.1', Proto => 'tcp') or die;
my $proxy = 'http://127.0.0.1:' . $listen->sockport;
my $pid = fork;
if ($pid == 0)
{
    $SIG{__DIE__} = sub { POSIX::_exit(1) };       # what runs at this process' end is the test's
    # CONNECT, and absolute URLs; 407 without the password; notes what it was asked
    my $parent = getppid;
    $SIG{CHLD} = 'IGNORE';
    while (getppid == $parent)
    {
        next unless IO::Select->new($listen)->can_read(1);
        my $client = $listen->accept or next;
        next if fork;
        my $head = '';
        while ($head !~ /\r\n\r\n/ && sysread $client, my $part, 1) { $head .= $part; }
        PostgreSQL::Test::Utils::append_to_file("$dir/proxy.log", $head);
        my ($connect, $target) = $head =~ m{^(CONNECT )?(?:\w+ http://)?([^/ ]+)};
        if ($head !~ /^Proxy-Authorization: Basic YW5uOlByb3h5LVBhc3N3b3Jk\r$/m)
        {
            syswrite $client, "HTTP/1.1 407 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            POSIX::_exit(0);
        }
        my $server = IO::Socket::INET->new(PeerAddr => $target) or POSIX::_exit(0);
        if ($connect) { syswrite $client, "HTTP/1.1 200 Established\r\n\r\n"; }
        else { $head =~ s{ http://[^/]+}{ }; $head =~ s{^Proxy-[^\r]*\r\n}{}gm; syswrite $server, $head; }
        my $select = IO::Select->new($client, $server);
        while (my @ready = $select->can_read)
        {
            for my $from (@ready)
            {
                sysread $from, my $bytes, 65536 or POSIX::_exit(0);
                syswrite $from == $client ? $server : $client, $bytes;
            }
        }
        POSIX::_exit(0);
    }
    POSIX::_exit(0);
}
close $listen;
sub proxy { return '{"url": "' . $proxy . '"' . ($_[0] ? ', "user": "ann", "secret": "password"' : '') . '}'; }
send_to('not_allowed', base_url => $stub->url, proxy => proxy(1));
wait_for_rows($node, q{SELECT outcome, error FROM accord.attempt_log WHERE channel = 'not_allowed'}, qq{retry|proxy "$proxy" is not in accord.allowed_proxies});
ok(!-e "$dir/proxy.log", 'a proxy that the server\'s settings do not name is not used');
value("ALTER SYSTEM SET accord.allowed_proxies = '$proxy'");
$node->reload;
$node->poll_query_until('postgres', "SELECT current_setting('accord.allowed_proxies') = '$proxy'") or die;
send_to('through', base_url => $stub->url, proxy => proxy(1), auth => '{"type": "bearer", "secret": "password"}');
is(told('through'), 'delivered|yes|', 'through a proxy: http');
send_to('tunnel', base_url => $secure->url, proxy => proxy(1), tls => '{"ca": "ca"}', auth => '{"type": "bearer", "secret": "password"}');
is(told('tunnel'), 'delivered|yes|', '... and https, by a tunnel');
my ($tunnel) = PostgreSQL::Test::Utils::slurp_file("$dir/proxy.log") =~ /^(CONNECT .*?\r\n\r\n)/ms;
unlike($tunnel, qr/Authorization: Bearer|Idempotency-Key/, '... of which the proxy sees no header of the request');
send_to('no_password', base_url => $secure->url, proxy => proxy(0), tls => '{"ca": "ca"}');
like(told('no_password'), qr/^unreachable\|no\|.*407/, 'a proxy that refuses: nothing was sent to the channel');
send_to('literal', base_url => "http://0177.0.0.2:$port", proxy => proxy(1));
wait_for_rows($node, q{SELECT outcome, error FROM accord.attempt_log WHERE channel = 'literal'}, 'retry|the address of the URL is in a refused network');
pass('an address in a refused network is refused by way of a proxy, too');
for my $bad ('{"url": "socks5://127.0.0.1:1"}', '{"url": "http://u:p@127.0.0.1:1"}', '{"url": "http://127.0.0.1"}', '[]', '{"uri": "x"}', '{"url": "http://h:1", "user": "u"}')
{
    my (undef, undef, $error) = $node->psql('postgres', insert_sql('channel', name => 'bad', base_url => 'http://127.0.0.1', proxy => $bad));
    like($error, qr/ERROR:  .* of accord\.channel .*\nHINT: /, "refused when it is given: $bad");
}

# ---- nothing came through

ok(!IO::Select->new($trap)->can_read(0), 'nobody has called what lies in a refused network');
is(join(' ', rows_with($node, 'Proxy-Password', 'BEGIN EC PRIVATE', 'BEGIN PRIVATE')), '', 'no table shows a key or a password');
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
unlike($log, qr/Proxy-Password|BEGIN (EC )?PRIVATE/, 'nor does the log');
kill 'TERM', $pid;
waitpid $pid, 0;
$? = 0;
$node->stop;
done_testing();
