# Radicale.pm: a CalDAV server for the tests: Debian's Radicale, over TLS, with basic authentication, on a free port of
# 127.0.0.1; it ends with the test.
package Accord::Radicale;

use strict;
use warnings FATAL => 'all';

use Accord;
use File::Temp qw(tempdir);
use IO::Socket::INET;
use POSIX ();

use constant { USER => 'host', PASSWORD => 'radicale-password' };

sub installed { return system('/usr/bin/python3 -c "import radicale" 2>/dev/null') == 0; }

sub new
{
    my ($class) = @_;
    my $dir = tempdir(CLEANUP => 1);
    my $self = bless { dir => $dir, port => PostgreSQL::Test::Cluster::get_free_port() }, $class;

    system("openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 "
          . "-keyout $dir/key.pem -out $dir/cert.pem 2>/dev/null") == 0
      or die "could not make a certificate\n";
    write_file("$dir/users", USER . ':' . PASSWORD . "\n");
    write_file("$dir/config", <<"CONF");
[server]
hosts = 127.0.0.1:$self->{port}
ssl = True
certificate = $dir/cert.pem
key = $dir/key.pem
[auth]
type = htpasswd
htpasswd_filename = $dir/users
htpasswd_encryption = plain
delay = 0
[rights]
type = owner_only
[storage]
filesystem_folder = $dir/collections
[web]
type = none
[logging]
level = warning
CONF
    $self->{pid} = fork;
    die "could not fork: $!" unless defined $self->{pid};
    if ($self->{pid} == 0)
    {
        open STDOUT, '>>', "$dir/log" or POSIX::_exit(126);
        open STDERR, '>>', "$dir/log" or POSIX::_exit(126);
        exec '/usr/bin/python3', '-m', 'radicale', '--config', "$dir/config" or POSIX::_exit(127);
    }
    Accord::poll_until(sub { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port}) }, 'Radicale');
    return $self;
}

sub write_file
{
    my ($path, $text) = @_;
    open my $file, '>', $path or die "$path: $!";
    print $file $text;
    close $file;
    return;
}

sub certificate { my ($self) = @_; return "$self->{dir}/cert.pem"; }
sub url { my ($self, $path) = @_; return "https://127.0.0.1:$self->{port}/" . USER . '/' . (defined $path ? $path : ''); }

# One request; returns the body. Dies unless it is answered 2xx, or 404 where that is allowed.
sub request
{
    my ($self, $method, $path, $body, @headers) = @_;
    write_file("$self->{dir}/body", defined $body ? $body : '');
    my @command = (
        'curl', '-sS', '--cacert', $self->certificate, '-u', USER . ':' . PASSWORD,
        '-X', $method, '-w', '\n%{http_code}', (map { ('-H', $_) } @headers),
        defined $body ? ('--data-binary', "\@$self->{dir}/body") : (), $self->url($path));
    open my $pipe, '-|', @command or die "curl: $!";
    my $answer = do { local $/ = undef; <$pipe> };
    close $pipe;
    my ($content, $status) = $answer =~ /^(.*)\n(\d+)$/s or die "no answer to $method $path\n";
    die "$method $path: $status $content\n" unless $status =~ /^2/;
    return $content;
}

sub make_calendar { my ($self, $name) = @_; return $self->request('MKCALENDAR', "$name/"); }
sub get { my ($self, $path) = @_; return $self->request('GET', $path); }
sub remove { my ($self, $path) = @_; return $self->request('DELETE', $path); }
sub put { my ($self, $path, $entry) = @_; return $self->request('PUT', $path, $entry, 'Content-Type: text/calendar'); }

# The names of a calendar's entries.
sub names
{
    my ($self, $calendar) = @_;
    my $answer = $self->request('PROPFIND', "$calendar/", '<propfind xmlns="DAV:"><prop><getetag/></prop></propfind>', 'Depth: 1');
    return $answer =~ m{<href>[^<]*/([^/<]+\.ics)</href>}g;
}

sub entry
{
    my ($self, $uid, $start, $end, $summary) = @_;
    return join "\r\n", 'BEGIN:VCALENDAR', 'VERSION:2.0', 'PRODID:-//test//EN', 'BEGIN:VEVENT', "UID:$uid",
      'DTSTAMP:20260101T000000Z', "DTSTART;VALUE=DATE:$start", "DTEND;VALUE=DATE:$end", "SUMMARY:$summary", 'END:VEVENT',
      'END:VCALENDAR', '';
}

sub DESTROY
{
    my ($self) = @_;
    return unless $self->{pid};
    local $?;
    kill 'TERM', $self->{pid};
    waitpid $self->{pid}, 0;
    return;
}

1;
