# Histories of many rows come in any order, repeated, from several sessions at once, with a crash in between, while the
# application writes the same rows: what is there in the end is what the model says. And the clock never goes back.
use strict;
use warnings FATAL => 'all';

use Accord;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use JSON::PP;
use List::Util qw(shuffle);
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = new_node('main', "accord.dispatch = off\naccord.node_name = 'here'\n");
my $model = abs_path(dirname(__FILE__)) . '/../model';
my $json = JSON::PP->new->canonical->allow_nonref;
my $seed = $ENV{ACCORD_SEED} || time % 100000;
diag("ACCORD_SEED=$seed");
srand $seed;

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

value(q{
CREATE FUNCTION say(value jsonb, change jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    $$ SELECT jsonb_build_array(value, change -> 'value') $$;
CREATE TABLE booking (k integer PRIMARY KEY, latest integer, ranked integer, highest integer, counter integer, tags text[],
    doc jsonb, state text, story jsonb, parked integer, note text);
INSERT INTO accord.source (name) VALUES ('birth'), ('guest'), ('ota'), ('engine'), ('ahead');
UPDATE accord.source SET skew = '1 year' WHERE name = 'ahead';
SELECT accord.set_policy('booking', c, s, o::jsonb || '{"horizon": "50 years"}') FROM (VALUES ('latest', 'latest', '{}'),
    ('ranked', 'priority', '{"order": ["guest", "ota"]}'), ('highest', 'max', '{}'), ('counter', 'counter', '{}'),
    ('tags', 'set', '{}'), ('doc', 'json', '{}'), ('parked', 'park', '{}'), ('story', 'custom', '{"function": "public.say"}'),
    ('state', 'state', '{"transitions": {"asked": ["confirmed", "cancelled"], "confirmed": ["in", "cancelled"]}}')) v (c, s, o)
});

my @rows = map { $json->decode($_) } split /\n/, qx{python3 $model/shuffle.py $seed 250};
# a write of the application's keeps a row that is deleted; the model knows nothing of those
my $kept = join ',', map { $_->{row} } grep { !grep { $_->{op} eq 'delete' } @{ $_->{changes} } } @rows;
my @messages = map { @{ $_->{changes} } } @rows;
push @messages, grep { rand() < 0.3 } @messages;

# Every message by itself, in files for so many sessions.
my $sessions = 4;
my @files = map { PostgreSQL::Test::Utils::tempdir() . "/$_.sql" } 1 .. $sessions;
my @texts = ('') x $sessions;
my $n = 0;
for my $message (shuffle @messages)
{
    my %message = %$message;
    my $source = delete $message{source};
    $texts[ $n++ % $sessions ] .= sprintf "SELECT accord.receive_batch('%s', %s);\n", $source,
      literal($json->encode([ \%message ]));
}
# One of them waits half way while somebody holds the gate, so that the crash finds it there.
my @lines = split /^/, $texts[0];
splice @lines, @lines / 2, 0, "DO \$\$ BEGIN PERFORM pg_advisory_lock(1); PERFORM pg_advisory_unlock(1); END \$\$;\n";
$texts[0] = join '', @lines;
append_to_file($files[$_], $texts[$_]) for 0 .. $#files;

# Runs all files at once; returns what they said.
sub run_all
{
    my @running = map { [ run_in_background('psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', $_) ] } @files;
    return @running;
}

sub finish
{
    my (@running) = @_;
    my $output = '';
    for my $session (@running)
    {
        my ($pid, $in, $out) = @$session;
        close $in;
        $out->blocking(1);
        $output .= join '', <$out>;
        waitpid $pid, 0;
    }
    return $output;
}

my $gate = open_session($node);
$gate->run('SELECT pg_advisory_lock(1)');
my @running = run_all();
my $writer = open_session($node);
$writer->send(q{UPDATE booking SET note = coalesce(note, '') || 'x' WHERE k % 7 = } . "$_ AND k IN ($kept)") for 0 .. 6;
$node->poll_query_until('postgres', 'SELECT count(*) > 20 FROM accord.inbox') or die "nothing was received\n";
crash_server($node);
$gate->close;
my $cut = finish(@running);
like($cut, qr/server closed the connection|terminating connection|could not connect|no connection|connection to server/,
    'the sessions were cut off by a crash');

# Who sends at least once sends again, until all was taken.
my $again;
for my $round (1 .. 10)
{
    my @more = run_all();
    value(qq{UPDATE booking SET note = coalesce(note, '') || 'y' WHERE k % 7 = $round % 7 AND k IN ($kept)});
    $again = finish(@more);
    last if $again !~ /ERROR/;
    like($again, qr/deadlock|could not serialize/, 'only what may be tried again failed');
}
unlike($again, qr/ERROR/, 'all was taken');
is(value('SELECT count(*) FROM accord.inbox'), scalar(map { @{ $_->{changes} } } @rows), 'each message once');

# What is there.
my %there = map { my $row = $json->decode($_); ($row->{k} => $row) }
  split /\n/, value('SELECT to_jsonb(b) FROM booking b');
my $wrong = 0;
for my $row (@rows)
{
    my $got = $there{ $row->{row} };
    my %values = map { $_ => $got ? $got->{$_} : undef } keys %{ $row->{values} };
    next if (defined $got) == !!$row->{there} && $json->encode(\%values) eq $json->encode($row->{values});
    diag('row ', $row->{row}, ': there is ', $json->encode(\%values), ', must be ', $json->encode($row->{values}),
        "\nof ", $json->encode($row->{changes}))
      if $wrong++ < 3;
}
is($wrong, 0, 'every row is what the model says');
is(value(q{SELECT count(*) FROM booking b
           WHERE (accord.fold('booking', NULL, NULL, NULL, NULL,
                              (SELECT changes FROM accord.histories((SELECT id FROM accord.managed), NULL) h
                               WHERE h.key = b.k::text)) -> 'row') - 'k' <> to_jsonb(b) - 'k'}),
    0, '... and what its changes come to when they are run again');
is(value(q{SELECT count(*) FROM accord.check_policy('booking', tries => 5)}), 0, '... in any order');
is(value(q{SELECT count(*) - count(DISTINCT (key, column_name, loser_source, loser_event)) FROM accord.conflict_log
           WHERE loser_event IS NOT NULL}),
    0, 'no loser is on record twice');

# The clock: past what was heard of, also after a crash that came before its bound was reached.
sub stamp { my ($k) = @_; return value("SELECT max((state -> 'note' ->> 0)::bigint) FROM accord.row_state WHERE key = '$k'"); }
value(q{INSERT INTO booking (k) VALUES (100001)});
value(q{SELECT accord.receive('ahead', 'future', target => 'booking', key => '100001', changes => '{"latest": 1}',
                              occurred_at => now() + interval '300 days')});
value(q{UPDATE booking SET note = '1' WHERE k = 100001});
my $before = stamp(100001);
cmp_ok($before, '>', value(q{SELECT ((extract(epoch FROM now()) - 946684800 + 299 * 86400) * 1000000)::bigint}),
    'a write is later than what was received before it');
crash_server($node);
value(q{UPDATE booking SET note = '2' WHERE k = 100001});
my $after = stamp(100001);
cmp_ok($after, '>', $before, '... also after a crash');
$node->restart;
value(q{UPDATE booking SET note = '3' WHERE k = 100001});
cmp_ok(stamp(100001), '>', $after, '... and after a restart');
cmp_ok(stamp(100001) - $after, '<', 60_000_000, '... without running away');
is(value(q{SELECT latest FROM booking WHERE k = 100001}), 1, 'what came from the future stands');
$node->stop;
done_testing();
