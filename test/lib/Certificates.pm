# Certificates.pm: authorities and what they sign, for the TAP tests: NAME.pem and NAME.key in a directory.
#
#   my $dir = PostgreSQL::Test::Utils::tempdir();
#   authority($dir, 'ours');
#   certificate($dir, 'server', 'ours', 'IP:127.0.0.1', 'DNS:server.test');
package Certificates;

use strict;
use warnings FATAL => 'all';

use Exporter qw(import);
use PostgreSQL::Test::Utils;

our @EXPORT = qw(authority certificate);

my @curve = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes');

sub openssl { PostgreSQL::Test::Utils::run_log([ 'openssl', @_ ], '2>', '/dev/null') or die "openssl @_\n"; return; }

sub authority
{
    my ($dir, $name) = @_;
    openssl('req', '-x509', @curve, '-days', 30, '-subj', "/CN=$name", '-keyout', "$dir/$name.key", '-out', "$dir/$name.pem");
    return;
}

# One for whoever is reached by these names: 'IP:127.0.0.1', 'DNS:server.test'.
sub certificate
{
    my ($dir, $name, $authority, @names) = @_;
    openssl('req', @curve, '-subj', "/CN=$name", '-keyout', "$dir/$name.key", '-out', "$dir/$name.csr");
    PostgreSQL::Test::Utils::append_to_file("$dir/$name.ext", 'subjectAltName=' . join(',', @names) . "\n");
    openssl('x509', '-req', '-in', "$dir/$name.csr", '-CA', "$dir/$authority.pem", '-CAkey', "$dir/$authority.key", '-CAcreateserial',
        '-days', 30, '-extfile', "$dir/$name.ext", '-out', "$dir/$name.pem");
    return;
}

1;
