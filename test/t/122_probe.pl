# accord.probe(): what is wrong with a channel, in plain words: its name, its port, its network, its certificate, its
# credential, its patience; without sending an event, waiting for a pause or a breaker, or showing a secret.
use strict;
use warnings FATAL => 'all';

use Accord;
use IO::Socket::INET;
use Test::More;

my $node = new_node('main', "log_statement = none\n");
my $stub = start_stub();

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# ok and verdict; then the detail
sub probe
{
    my (@arguments) = @_;
    return split /\|/, sql('SELECT ok, verdict, detail FROM accord.probe(' . join(', ', map { literal($_) } @arguments) . ')'), 3;
}

sub is_probed
{
    my ($what, $verdict, $detail, @arguments) = @_;
    my ($ok, $got, $said) = probe(@arguments);
    is("$ok $got", $verdict, $what);
    like($said, $detail, '... and says why');
    return;
}

sub try
{
    my ($name, $url, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $url, %column);
    return $name;
}

sub certificate
{
    my ($name, @subject) = @_;
    my $stem = $node->data_dir . "/../$name";
    system('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', "$stem.key", '-out', "$stem.crt", '-days', '2',
        @subject) == 0 or die 'openssl';
    return ("$stem.crt", "$stem.key");
}

# ---- what works

sql(q{INSERT INTO accord.secret VALUES ('token', 'very-secret')});
try('stub', $stub->url('/v1'), auth => '{"type": "bearer", "secret": "token"}', probe_path => '/hotels/{vars.p}{?account}',
    headers => '{"X-Key": "{key}", "X-Channel": "{channel}"}', breaker_failures => 1, retry_base => '1 h', retry_cap => '1 h');
insert_row($node, 'account', channel => 'stub', name => 'a b', vars => '{"p": "P/1"}');
is_probed('an account', 't works', qr/^it answered 200$/, 'stub', 'a b');
my ($seen) = $stub->log;
is("$seen->{method} $seen->{path}", 'GET /v1/hotels/P%2F1?account=a%20b', 'a GET of its probe_path');
is("$seen->{headers}{authorization} $seen->{headers}{'x-channel'}", 'Bearer very-secret stub', '... with credential and headers');
ok(!exists $seen->{headers}{'x-key'}, '... but what is an event\'s');
is_probed('what the account lacks', 'f not sent', qr/the account defines no "vars.p"/, 'stub');
is_probed('another path', 't works', qr/200/, 'stub', undef, '/other');
my %answer = (401 => 'f unauthorized', 403 => 'f forbidden', 404 => 't reachable', 302 => 't reachable', 429 => 'f throttled',
    500 => 'f failing', 503 => 'f failing', 204 => 't works');
for my $status (sort keys %answer)
{
    $stub->script([ { do => { status => $status + 0, body => 'very-secret' } } ]);
    is_probed("status $status", $answer{$status}, qr/^it answered $status(?!.*very-secret)/, 'stub', undef, '');
}
$stub->script([ { do => { status => 503, headers => { 'Retry-After' => 7 } } } ]);
is_probed('a pause', 'f throttled', qr/try again in [67] s/, 'stub', undef, '');
my %broken = (garbage => [ 'f not HTTP', { garbage => 1 } ], cut => [ 'f cut off', { cut_after_bytes => 1 } ]);
for my $how (sort keys %broken)
{
    $stub->script([ { do => $broken{$how}[1] } ]);
    is_probed("an answer that is $how", $broken{$how}[0], qr/./, 'stub', undef, '');
}

# ---- neither pause nor breaker keeps it

$stub->script([ { match => { method => 'POST' }, do => { status => 500 } } ]);
route($node, 'stub', topic => 'broken');
events($node, { topic => 'broken', key => 'k', payload => '{}' });
wait_for_rows($node, q{SELECT breaker FROM accord.status WHERE channel = 'stub' AND account IS NULL}, 'open');
sql(q{SELECT accord.pause('stub')});
is_probed('through an open breaker and a pause', 't works', qr/200/, 'stub', undef, '/x');
is(sql(q{SELECT breaker FROM accord.endpoint_state('stub', '')}), 'open', '... which stays open');
is(sql(q{SELECT count(*) FROM accord.attempt_log}), '1', '... and it is no attempt');

# ---- what does not

is_probed('a name that there is not', 'f name not found', qr/no-such-host/, try('name', 'http://no-such-host.invalid'));
my $closed = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'tcp') or die;
is_probed('a port where nobody listens', 'f connection refused', qr/nothing accepts/,
    try('port', 'http://127.0.0.1:' . $closed->sockport));
$node->psql('postgres', q{INSERT INTO accord.channel (name, base_url) VALUES ('network', 'http://169.254.169.254')});
is_probed('a network that is refused', 'f refused network', qr/169\.254\.169\.254.*allowed_networks/, 'network');
my $silent = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 5) or die;
is_probed('one that says nothing', 'f timed out', qr/timeouts/,
    try('silent', 'http://127.0.0.1:' . $silent->sockport, timeout => '300 ms', connect_timeout => '200 ms'));
my ($crt, $key) = certificate('self', '-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1');
my $tls = start_stub('--cert', $crt, '--key', $key);
is_probed('a certificate that nobody vouches for', 'f certificate', qr/not trusted: .*self.signed/i, try('self', $tls->url));
($crt, $key) = certificate('other', '-subj', '/CN=other.example', '-addext', 'subjectAltName=DNS:other.example');
my $other = start_stub('--cert', $crt, '--key', $key);
sql("ALTER SYSTEM SET accord.ca_file = '$crt'");
$node->reload;
$node->poll_query_until('postgres', qq{SELECT current_setting('accord.ca_file') = '$crt'});
poll_until(sub { my @p = probe(try('other' . int rand 1e9, $other->url)); $p[2] =~ /subject name|certificate subject/ },
    'another one\'s certificate');
pass('a certificate of somebody else');
$node->psql('postgres', q{INSERT INTO accord.channel (name, base_url, auth)
    VALUES ('lost', 'http://127.0.0.1:1', '{"type": "bearer", "secret": "lost"}')});
is_probed('a secret that is not stored', 'f not sent', qr/"lost" is not stored/, 'lost');

# ---- who asks

for my $case ([ 'nowhere' ], [ 'stub', 'nobody' ], [ 'stub', undef, 'x' ], [ 'stub', undef, '/{' ])
{
    my (undef, undef, $error) = $node->psql('postgres', 'SELECT accord.probe(' . join(', ', map { literal($_) } @$case) . ')');
    like($error, qr/ERROR:  .*(does not exist|does not begin|malformed)/, 'refused');
}
my (undef, undef, $error) = $node->psql('postgres', q{INSERT INTO accord.channel (name, base_url, probe_path) VALUES ('p',
    'http://127.0.0.1', '/{key}')});
like($error, qr/names something of an event/, 'a probe_path over events is refused');
$stub->script([ { do => { hang => 1 } } ]);
(undef, undef, $error) = $node->psql('postgres', q{SET statement_timeout = '300ms'; SELECT accord.probe('stub', NULL, '/hang')});
like($error, qr/canceling statement due to statement timeout/, 'the asker may give up');
$stub->script([]);
is_probed('another asks', 't works', qr/200/, 'stub', undef, '/next');
sql(q{CREATE ROLE admin LOGIN; CREATE ROLE auditor LOGIN; SELECT accord.grant_admin('admin'), accord.grant_auditor('auditor')});
is($node->safe_psql('postgres', q{SELECT verdict FROM accord.probe('stub', NULL, '/')}, extra_params => [ '-U', 'admin' ]), 'works',
    'an admin may ask');
(undef, undef, $error) = $node->psql('postgres', q{SELECT accord.probe('stub')}, extra_params => [ '-U', 'auditor' ]);
like($error, qr/permission denied/, '... an auditor may not');
sql('ALTER SYSTEM SET accord.dispatch = off');
$node->reload;
$node->poll_query_until('postgres', q{SELECT current_setting('accord.dispatch') = 'off'});
is_probed('with nobody to ask', 'f no dispatcher', qr/accord\.dispatch is off/, 'stub');

$node->stop;
done_testing();
