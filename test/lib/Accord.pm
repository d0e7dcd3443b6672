# Accord.pm: what the TAP tests share: clusters with pg_accord in them, the stub server that plays the channels, and
# waiting for conditions (never for time to pass).
#
#   use Accord;
#   my $node = new_node('main');                        # preloaded, running, extension created in postgres
#   my $stub = start_stub('--idempotent');              # test/lib/stub.py; ends with the test
#   channel($node, $stub, 'ota', max_in_flight => 4);   # accord.channel, pointed at the stub
#   route($node, 'ota', topic => 'rate.*');             # accord.route
#   $stub->script([ { match => { times => 1 }, do => { status => 503 } } ]);
#   $stub->wait_for_count(2);
#   my ($first, $second) = $stub->log;
package Accord;

use strict;
use warnings FATAL => 'all';

use Cwd qw(abs_path);
use Exporter qw(import);
use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Tables;
use Test::More ();
use Time::HiRes qw(time usleep);

our @EXPORT = qw(new_node start_stub send_everything patient channel route insert_row insert_sql literal events poll_until workers dispatcher
  memory_below kill_dispatcher crash_server wait_for_delivery wait_for_rows timeout_default
  fullest rows_with);

# Seconds that a condition may take before the test gives up on it.
sub timeout_default
{
    return $ENV{PG_TEST_TIMEOUT_DEFAULT} || 180;
}

# What is ended at once, as clusters are when their test is over, does not say which of its lines were run.
my @counted;
END
{
    my $status = $?;
    $_->stop('fast', fail_ok => 1) for grep { defined $_->{_pid} } @counted;
    $? = $status;
}

# A running cluster with pg_accord preloaded, in which the stub may be called, and the extension in database postgres.
# Options: init (a list for init()), extension => 0 (do not create it), start => 0 (neither).
sub new_node
{
    my ($name, $extra_conf, %option) = @_;
    my $node = PostgreSQL::Test::Cluster->new($name);
    push @counted, $node if $ENV{COVERAGE};

    $node->init(@{ $option{init} || [] });
    $node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'pg_accord'
accord.allowed_networks = '127.0.0.0/8,::1/128'
max_worker_processes = 20
CONF
    $node->append_conf('postgresql.conf', $extra_conf) if defined $extra_conf;
    return $node if defined $option{start} && !$option{start};
    $node->start;
    $node->safe_psql('postgres', 'CREATE EXTENSION pg_accord')
      unless defined $option{extension} && !$option{extension};
    return $node;
}

# A value as an SQL literal: undef is NULL, \'text' is SQL as it stands.
sub literal
{
    my ($value) = @_;
    return 'NULL' unless defined $value;
    return $$value if ref $value eq 'SCALAR';
    $value =~ s/'/''/g;
    return "E'$value'" if $value =~ s/\\/\\\\/g;
    return "'$value'";
}

# INSERT INTO accord.<table>, columns by name.
sub insert_row
{
    my ($node, $table, %column) = @_;
    return $node->safe_psql('postgres', insert_sql($table, %column));
}

# The same as text, for several in one go.
sub insert_sql
{
    my ($table, %column) = @_;
    my @names = sort keys %column;
    return
        "INSERT INTO accord.$table ("
      . join(', ', @names)
      . ') VALUES ('
      . join(', ', map { literal($column{$_}) } @names) . ')';
}

# Inserts events (hashes of columns of accord.outbox), each in a transaction of its own; returns their event_ids.
sub events
{
    my ($node, @events) = @_;
    my @ids = split /\n/,
      $node->safe_psql('postgres', join "\n", map { insert_sql('outbox', %$_) . ' RETURNING event_id;' } @events);
    return wantarray ? @ids : $ids[-1];
}

# From now on routes do not coalesce, and channels have no circuit breaker, unless they say otherwise; for tests that
# are not about them.
sub send_everything
{
    my ($node, $database) = @_;
    $node->safe_psql($database || 'postgres', q{
        ALTER TABLE accord.route ALTER coalesce SET DEFAULT NULL;
        ALTER TABLE accord.channel ALTER breaker_failures SET DEFAULT NULL, ALTER breaker_ratio SET DEFAULT NULL});
    return;
}

# Columns of a channel whose requests may take as long as a test does: how long that is says nothing about the code.
sub patient { return (timeout => '1 h', stall_timeout => '1 h'); }

# A channel whose base_url is the stub, and a route that takes everything when it is asked for with route => 1 (or
# with the columns of the route as a hash).
sub channel
{
    my ($node, $stub, $name, %column) = @_;
    my $route = delete $column{route};

    insert_row($node, 'channel', name => $name, base_url => $stub->url, patient(), %column);
    route($node, $name, ref $route ? %$route : ()) if $route;
    return;
}

sub route
{
    my ($node, $channel, %column) = @_;
    return insert_row($node, 'route', channel => $channel, %column);
}

# Calls the sub until it returns true, and returns that; dies when it does not in time.
sub poll_until
{
    my ($condition, $what, $timeout) = @_;
    my $deadline = time + ($timeout || timeout_default());

    while (1)
    {
        my $result = $condition->();
        return $result if $result;
        die 'gave up waiting for ' . ($what || 'a condition') . "\n" if time > $deadline;
        usleep(20_000);
    }
}

# Process ids of the cluster's workers by what pg_stat_activity calls them: 'launcher', 'dispatcher'. With a database,
# only its own.
sub workers
{
    my ($node, $type, $database) = @_;
    my $sql = 'SELECT pid FROM pg_stat_activity WHERE backend_type LIKE ' . literal("pg_accord%$type%");
    $sql .= ' AND datname = ' . literal($database) if defined $database;
    return split /\n/, $node->safe_psql('postgres', "$sql ORDER BY pid");
}

# The process id of the only dispatcher, once there is one.
sub dispatcher
{
    my ($node, $database) = @_;
    my @pids;
    poll_until(sub { @pids = workers($node, 'dispatcher', $database || 'postgres') }, 'a dispatcher');
    die "there are several dispatchers: @pids\n" if @pids > 1;
    return $pids[0];
}

# Ends the only dispatcher by SIGKILL, upon which the server starts anew, and waits until it has: until the postmaster has
# seen to the dead process, it takes connections as if nothing had happened.
sub kill_dispatcher
{
    my ($node) = @_;
    my $pid = dispatcher($node);
    kill 'KILL', $pid;
    poll_until(sub { !kill 0, $pid }, 'the dispatcher to be gone');
    $node->poll_query_until('postgres', 'SELECT true') or die "the server did not come back\n";
    return;
}

# Whether so many kB are less than the limit; under SANITIZE nobody knows, as the sanitizer takes much more itself.
sub memory_below
{
    my ($used, $limit, $what) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return Test::More::cmp_ok($used, '<', $limit, $what) unless $ENV{SANITIZE};
    return Test::More::pass("$what (not judged: a sanitizer takes memory of its own)");
}

# Ends the postmaster by SIGKILL, waits until its children have noticed and ended, and starts the server again. The lock
# files are removed because a process that nobody reaps still looks like a running one.
sub crash_server
{
    my ($node) = @_;
    my ($postmaster) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');
    my @children = grep { (process_stat($_))[1] == $postmaster } map { m{(\d+)$} } glob '/proc/[0-9]*';

    kill 'KILL', $postmaster;
    poll_until(sub { !grep { (process_stat($_))[0] ne 'Z' } $postmaster, @children }, 'killed processes to be gone');
    unlink $node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock';
    $node->{_pid} = undef;
    $node->start;
    return;
}

# The state and the parent of a process; those of a zombie when there is none.
sub process_stat
{
    my ($pid) = @_;
    my $line;
    if (open my $stat, '<', "/proc/$pid/stat")
    {
        $line = <$stat>;
    }
    return defined $line && $line =~ /^\d+ \(.*\) (\S) (\d+)/s ? ($1, $2) : ('Z', 0);
}

# Waits until the query returns these rows (columns separated by |); dies, and says what it returned, when it does not.
sub wait_for_rows
{
    my ($node, $sql, @rows) = @_;
    my $wanted = join "\n", @rows;
    my $deadline = time + timeout_default();
    my $pause = 10_000;

    while ((my $got = $node->safe_psql('postgres', $sql)) ne $wanted)
    {
        die "gave up waiting for:\n$wanted\nof: $sql\nlast seen:\n$got\n" if time > $deadline;
        usleep($pause);
        $pause *= 1.5 if $pause < 200_000;
    }
    return;
}

# Where any of the texts is, of all tables but accord.secret: a list of "table: text".
sub rows_with
{
    my ($node, @texts) = @_;
    my @tables = split /\n/, $node->safe_psql('postgres', q{SELECT c.oid::regclass FROM pg_class c
        WHERE c.relnamespace = 'accord'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> 'secret' AND NOT c.relispartition});
    my $values = join ', ', map { '(' . literal($_) . ')' } @texts;
    return split /\n/, $node->safe_psql('postgres', join ' UNION ALL ',
        map { "SELECT '$_: ' || s FROM $_ t, (VALUES $values) v (s) WHERE strpos(t::text, s) > 0" } @tables);
}

# Waits until nothing is owed to any channel any more.
sub wait_for_delivery
{
    my ($node, $database) = @_;
    $node->poll_query_until($database || 'postgres', 'SELECT NOT EXISTS (SELECT FROM accord.outbox)')
      or die "deliveries were still owed when the time was up\n";
    return;
}

# How many requests, which arrived at these times, a bucket that runs out at $rate a second would have held at most:
# of all windows of w seconds, the most requests beyond $rate * w. A limit holds if and only if it is at most its burst;
# see Accord::Stub::slack() for how well that can be seen from outside.
sub fullest
{
    my ($rate, @times) = @_;
    my ($level, $highest, $before) = (0, 0);

    for my $time (sort { $a <=> $b } @times)
    {
        $level -= $rate * ($time - $before) if defined $before;
        $level = 0 if $level < 0;
        $level++;
        $highest = $level if $level > $highest;
        $before = $time;
    }
    return $highest;
}

# Starts a stub server; the arguments are those of stub.py.
sub start_stub
{
    return Accord::Stub->new(@_);
}

package Accord::Stub;

use strict;
use warnings FATAL => 'all';

use IO::Socket::INET;
use JSON::PP;
use POSIX ();

my $json = JSON::PP->new->utf8->canonical->allow_nonref;

# The server lives until our end of its standard input closes, which it does even if the test is killed.
sub new
{
    my ($class, @args) = @_;
    my $script = Cwd::abs_path(File::Basename::dirname(__FILE__)) . '/stub.py';

    pipe(my $stdin_read, my $stdin_write) or die "could not make a pipe: $!";
    pipe(my $stdout_read, my $stdout_write) or die "could not make a pipe: $!";
    my $pid = fork;
    die "could not fork: $!" unless defined $pid;
    if ($pid == 0)
    {
        open STDIN, '<&', $stdin_read or POSIX::_exit(126);
        open STDOUT, '>&', $stdout_write or POSIX::_exit(126);
        exec 'python3', $script, @args or POSIX::_exit(127);
    }
    close $stdin_read;
    close $stdout_write;
    my $port = readline $stdout_read;
    die "the stub server did not start\n" unless defined $port && $port =~ /^(\d+)$/;
    my $scheme = grep({ $_ eq '--cert' } @args) ? 'https' : 'http';
    return bless {
        pid => $pid,
        stdin => $stdin_write,
        stdout => $stdout_read,
        port => $1,
        scheme => $scheme,
        args => \@args,
        known => []
    }, $class;
}

sub port { my ($self) = @_; return $self->{port}; }
sub pid { my ($self) = @_; return $self->{pid}; }

sub url
{
    my ($self, $path) = @_;
    return "$self->{scheme}://127.0.0.1:$self->{port}" . (defined $path ? $path : '');
}

# One request of our own; returns status and body. Not for a stub that speaks TLS.
sub request
{
    my ($self, $method, $path, $body) = @_;
    $body = '' unless defined $body;
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port})
      or die "could not connect to the stub server: $!\n";
    print $socket "$method $path HTTP/1.1\r\nHost: stub\r\nConnection: close\r\n",
      'Content-Length: ', length $body, "\r\n\r\n", $body;
    my $answer = do { local $/ = undef; <$socket> };
    die "the stub server gave no answer to $method $path\n" unless defined $answer;
    my ($head, $content) = split /\r\n\r\n/, $answer, 2;
    my ($status) = $head =~ m{^HTTP/1\.1 (\d+)};
    return ($status, $content);
}

sub control
{
    my ($self, $method, $what, $data) = @_;
    my ($status, $content) =
      $self->request($method, "/_stub/$what", defined $data ? $json->encode($data) : undef);
    die "stub server: $method $what: $status $content\n" unless $status == 200;
    return $content;
}

# Replaces the rules (see stub.py).
sub script { my ($self, $rules) = @_; return $self->control('POST', 'script', $rules); }

# Opens or closes a gate; rules with do => { gate => name } hold their answers until it is open.
sub open_gate { my ($self, $name) = @_; return $self->gate($name, 1); }
sub close_gate { my ($self, $name) = @_; return $self->gate($name, 0); }

sub gate
{
    my ($self, $name, $open) = @_;
    return $self->control('POST', 'gate',
        { name => $name, open => $open ? JSON::PP::true : JSON::PP::false });
}

sub reset
{
    my ($self) = @_;
    $self->{known} = [];
    return $self->control('POST', 'reset');
}

# The requests received so far, as hashes, in order of arrival; those after number $after.
sub log
{
    my ($self, $after) = @_;
    my $known = $self->{known};    # the first ones, which change no more
    my @rest = map { $json->decode($_) } split /\n/, $self->control('GET', 'log?after=' . @$known);
    push @$known, shift @rest while @rest && defined $rest[0]{ended};
    my @all = (@$known, @rest);
    splice @all, 0, $after || 0;
    return @all;
}

# The counters, as a hash; and the count alone.
sub counters { my ($self, $query) = @_; return $json->decode($self->control('GET', 'count' . ($query || ''))); }
sub count { my ($self) = @_; return $self->counters->{count}; }

# Seconds by which the time of arrival may be off from that of departure: what both processes may take to run, and with
# --pulse as much as the server itself has been late by.
sub slack { my ($self) = @_; return 0.1 + $self->counters->{late}; }

# What took effect under --idempotent: { keys => { key => { replays => n } }, anonymous => n }.
sub applied { my ($self) = @_; return $json->decode($self->control('GET', 'applied')); }

# Waits until so many requests have arrived (been answered); returns how many it were. Dies when time is up.
sub wait_for_count { my ($self, $n, $timeout) = @_; return $self->wait_for('count', 'at_least', $n, $timeout); }
sub wait_for_answered { my ($self, $n, $timeout) = @_; return $self->wait_for('answered', 'answered', $n, $timeout); }

sub wait_for
{
    my ($self, $counter, $parameter, $n, $timeout) = @_;
    my $ms = 1000 * ($timeout || Accord::timeout_default());
    my $now = $self->counters("?$parameter=$n&timeout_ms=$ms")->{$counter};
    die "gave up waiting for $n requests ($counter) at the stub server; there were $now\n" if $now < $n;
    return $now;
}

# Ends the server, as a channel that goes away does. Its port may be given to the next one: start_stub('--port', ...).
sub stop
{
    my ($self) = @_;
    my $pid = delete $self->{pid} or return;
    local $?;
    kill 'TERM', $pid;
    close $self->{stdin};
    waitpid $pid, 0;
    return;
}

sub DESTROY { my ($self) = @_; $self->stop; return; }

1;
