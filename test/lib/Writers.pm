# Writers.pm: many sessions that write events in every way a transaction can end (writers.py), the tables they write
# into, and what those tables say was committed.
#
#   use Writers;
#   prepare_writers($node, 100);                          # tables and functions for 100 keys
#   my $writers = start_writers($node, seed => 7, clients => 40, kill => 20);
#   $writers->wait_for('done', 5000);                     # so many transactions ended well
#   my $counters = $writers->finish;
package Writers;

use strict;
use warnings FATAL => 'all';

use Accord;
use Cwd qw(abs_path);
use Exporter qw(import);
use File::Basename qw(dirname);
use JSON::PP;
use Session;

our @EXPORT = qw(prepare_writers start_writers);

# counter numbers each key's events: its row stays locked until the transaction ends, so the numbers of what was
# committed have no gap and follow the commit order. truth holds what was committed, written by the same transactions.
sub prepare_writers
{
    my ($node, $keys, $database) = @_;
    $node->safe_psql($database || 'postgres', <<SQL);
CREATE TABLE counter (key text PRIMARY KEY, n integer NOT NULL) WITH (fillfactor = 20);
INSERT INTO counter SELECT 'k' || g, 0 FROM generate_series(0, $keys - 1) g;
CREATE TABLE truth (tx_id bigint, ord integer, event_id uuid, key text, n integer);
CREATE TABLE skew (id integer PRIMARY KEY, n integer NOT NULL);
INSERT INTO skew SELECT g, 0 FROM generate_series(1, 3) g;
CREATE FUNCTION write(of_key text) RETURNS void LANGUAGE sql AS '
    WITH number AS (UPDATE counter SET n = n + 1 WHERE key = of_key RETURNING n),
    event AS (INSERT INTO accord.outbox (topic, key, payload)
              SELECT ''w'', of_key, jsonb_build_object(''key'', of_key, ''n'', n) FROM number
              RETURNING tx_id, ord, event_id, key, payload)
    INSERT INTO truth SELECT tx_id, ord, event_id, key, (payload ->> ''n'')::integer FROM event';
CREATE FUNCTION write_and_fail(of_key text) RETURNS void LANGUAGE plpgsql AS '
BEGIN
    PERFORM write(of_key);
    RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
    NULL;
END';
CREATE TABLE deferred (key text, explode boolean);
CREATE FUNCTION write_at_commit() RETURNS trigger LANGUAGE plpgsql AS '
BEGIN
    PERFORM write(NEW.key);
    IF NEW.explode THEN
        RAISE division_by_zero;
    END IF;
    RETURN NULL;
END';
CREATE CONSTRAINT TRIGGER write_at_commit AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION write_at_commit();
SQL
    return;
}

# Starts the sessions; the options are those of writers.py.
sub start_writers
{
    my ($node, %option) = @_;
    my $script = abs_path(dirname(__FILE__)) . '/writers.py';
    my $self = bless { output => '' }, 'Writers';

    @$self{qw(pid in out)} = run_in_background('python3', $script, '--host', $node->host, '--port', $node->port,
        '--user', scalar getpwuid $<, map { ("--$_", $option{$_}) } sort keys %option);
    return $self;
}

# Takes in what they report; false at its end.
sub take
{
    my ($self) = @_;
    my $n;
    1 while $n = sysread $self->{out}, $self->{output}, 65536, length $self->{output};
    return !defined $n;
}

# The counters as last reported, as a hash. A writer that fails says so instead.
sub counters
{
    my ($self) = @_;
    $self->take;
    die "the writers failed:\n$self->{output}\n" if $self->{output} =~ /Traceback/;
    my ($last) = $self->{output} =~ /.*^(\{.*\})\n/ms or return {};
    return decode_json($last);
}

sub wait_for
{
    my ($self, $counter, $n) = @_;
    poll_until(sub { ($self->counters->{$counter} || 0) >= $n }, "$n of the writers' counter: $counter");
    return;
}

# Ends the writers; those that read go on until they have read everything. Returns the counters.
sub finish
{
    my ($self) = @_;
    close $self->{in};
    poll_until(sub { !$self->take }, 'the writers to end');
    waitpid delete $self->{pid}, 0;
    die "the writers failed:\n$self->{output}\n" if $?;
    return $self->counters;
}

sub DESTROY
{
    my ($self) = @_;
    my $pid = delete $self->{pid} or return;
    local $?;
    kill 'TERM', $pid;
    waitpid $pid, 0;
    return;
}

1;
