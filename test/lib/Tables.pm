# Tables.pm: with ACCORD_TABLES, a directory, what the tables of the tests' clusters hold when they are stopped is written there
# (test/lib/tables), and which statements set secrets, for test/lib/secrets. Accord.pm uses it; without that variable it
# does nothing.
#
# A cluster is looked at when it is stopped in order, and when its test ends. Not by an immediate stop of the test's, which is to come as
# a surprise: what is there then is there at the next stop. DIR/CLUSTER.began tells that there was something to look at.
package Tables;

use strict;
use warnings FATAL => 'all';

use File::Basename qw(basename dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

my $directory = $ENV{ACCORD_TABLES};
my $program = dirname(__FILE__) . '/tables';
my %stops;

# The name under which a cluster's log is known, too.
sub name_of { my ($node) = @_; return basename($node->logfile) =~ s/\.log$//r; }

sub note
{
    my ($file, $text) = @_;
    return PostgreSQL::Test::Utils::append_to_file("$directory/$file", "$text\n");
}

sub look
{
    my ($node) = @_;
    return unless defined $node->{_pid};
    local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port);
    local $?;
    my $name = name_of($node) . '-' . ++$stops{ name_of($node) };
    system($program, $directory, $name) == 0 or note("$name.failed", 'test/lib/tables failed');
    return;
}

# Puts a sub before a method of PostgreSQL::Test::Cluster; it gets the method's arguments.
sub before
{
    my ($method, $sub) = @_;
    no strict 'refs';
    no warnings 'redefine';
    my $original = \&{"PostgreSQL::Test::Cluster::$method"};
    *{"PostgreSQL::Test::Cluster::$method"} = sub { $sub->(@_); return $original->(@_); };
    return;
}

if (defined $directory)
{
    before(stop => sub { my ($node, $mode) = @_; look($node) unless ($mode || '') eq 'immediate' });
    before(teardown_node => \&look);
    before(start => sub { my ($node) = @_; note(name_of($node) . '.began', 'a server') });
    before(psql => sub {
        my ($node, undef, $sql) = @_;
        note(name_of($node) . '.said', $sql) if defined $sql && $sql =~ /accord\.secret\b/;
    });
}

1;
