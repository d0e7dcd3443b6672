# Session.pm: a psql that stays open, for transactions that are to last and for statements that are to block.
#
#   use Session;
#   my $session = open_session($node, 'postgres');
#   my $output = $session->run('BEGIN; INSERT ...; SELECT 1');    # dies when the server reports an error
#   $session->send('COMMIT');                                     # does not wait
#   my $output = $session->wait_for_end;                          # what came of all that was sent, errors included
#   $session->close;
package Session;

use strict;
use warnings FATAL => 'all';

use Accord;
use Exporter qw(import);
use IO::Handle;
use POSIX ();

our @EXPORT = qw(open_session run_in_background);

# Starts a program with pipes for its standard input and for its output and errors; returns its pid and both ends.
sub run_in_background
{
    my (@command) = @_;
    pipe(my $in_read, my $in_write) or die "could not make a pipe: $!";
    pipe(my $out_read, my $out_write) or die "could not make a pipe: $!";
    my $pid = fork;
    die "could not fork: $!" unless defined $pid;
    if ($pid == 0)
    {
        open STDIN, '<&', $in_read or POSIX::_exit(126);
        open STDOUT, '>&', $out_write or POSIX::_exit(126);
        open STDERR, '>&', $out_write or POSIX::_exit(126);
        exec @command or POSIX::_exit(127);
    }
    CORE::close($in_read);
    CORE::close($out_write);
    $in_write->autoflush;
    $out_read->blocking(0);
    return ($pid, $in_write, $out_read);
}

sub open_session
{
    my ($node, $database) = @_;
    my $self = bless { n => 0, output => '' }, 'Session';

    @$self{qw(psql in out)} = run_in_background('psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d',
        $node->connstr($database || 'postgres'));
    $self->{pid} = $self->run('SELECT pg_backend_pid()');
    return $self;
}

# The backend's process id.
sub pid { my ($self) = @_; return $self->{pid}; }

sub send
{
    my ($self, $sql) = @_;
    local $SIG{PIPE} = 'IGNORE';
    print { $self->{in} } "$sql\n;\n";
    return;
}

# Takes in what there is; false at its end.
sub take
{
    my ($self) = @_;
    my $n;
    1 while $n = sysread $self->{out}, $self->{output}, 65536, length $self->{output};
    return !defined $n;
}

# What was sent so far is done when psql says the word after it, or has ended.
sub wait_for_end
{
    my ($self) = @_;
    my $mark = 'done ' . ++$self->{n};

    {
        local $SIG{PIPE} = 'IGNORE';
        print { $self->{in} } "\\echo $mark\n";
    }
    poll_until(sub { !$self->take || $self->{output} =~ /^\Q$mark\E$/m }, 'a session to answer');
    my $output = $self->{output};
    $self->{output} = '';
    $output =~ s/^\Q$mark\E\n//m;
    chomp $output;
    return $output;
}

sub run
{
    my ($self, $sql) = @_;
    $self->send($sql);
    my $output = $self->wait_for_end;
    die "$sql: $output\n" if $output =~ /(ERROR|FATAL):|server closed/;
    return $output;
}

sub close
{
    my ($self) = @_;
    my $pid = delete $self->{psql} or return;
    local $?;
    CORE::close $self->{in};
    kill 'TERM', $pid;
    waitpid $pid, 0;
    return;
}

sub DESTROY { my ($self) = @_; $self->close; return; }

1;
