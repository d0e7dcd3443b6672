# Claims that overlap, from 32 sessions at once: never are two accepted for the same night; who is accepted is what a
# model says that knows nothing of when they came, under every isolation level, in whatever order; and everyone whose
# claim does not stand was told by an event addressed to the channel it came from.
use strict;
use warnings FATAL => 'all';

use Accord;
use List::Util qw(shuffle);
use Session;
use Test::More;

my $seed = $ENV{SEED} || 20260501;
srand $seed;
note("seed $seed");
my $node = new_node('main', "accord.dispatch = off\nmax_connections = 60\ndeadlock_timeout = 50ms\n");
sub value { return $node->safe_psql('postgres', @_); }

value(<<'SQL');
CREATE EXTENSION btree_gist;
CREATE TABLE booking (
    id integer PRIMARY KEY, room text NOT NULL, nights int4range NOT NULL, rank integer NOT NULL, channel text NOT NULL,
    status text NOT NULL DEFAULT 'booked', accepted boolean NOT NULL DEFAULT false,
    EXCLUDE USING gist (room WITH =, nights WITH &&) WHERE (accepted));
INSERT INTO accord.channel (name, base_url, enabled)
    SELECT 'c' || g, 'http://127.0.0.1:9', false FROM generate_series(0, 31) g;
SELECT accord.manage_claims('booking', '{room}', 'nights', ranking => '{"rank DESC"}', condition => 'status = ''booked''',
    source_column => 'channel');
CREATE TABLE suite (id integer PRIMARY KEY, room text NOT NULL, nights int4range NOT NULL, rank integer NOT NULL,
    channel text NOT NULL, status text NOT NULL DEFAULT 'booked', accepted boolean);
SELECT accord.manage_claims('suite', '{room}', 'nights', ranking => '{"rank DESC"}', condition => 'status = ''booked''',
    capacity => '3', source_column => 'channel');
SQL
my %capacity = (booking => 1, suite => 3);

# Claims of 4 rooms over 40 nights.
sub claims
{
    my ($n) = @_;
    return map {
        my $from = int rand 36;
        { id => $_, room => 'r' . int rand 4, from => $from, to => $from + 1 + int rand 6, rank => int rand 4, channel => 'c' . $_ % 32 }
    } 1 .. $n;
}

# What the ranking alone says.
sub model
{
    my ($capacity, @claims) = @_;
    my (%taken, @accepted);
    for my $claim (sort { $b->{rank} <=> $a->{rank} || $a->{id} <=> $b->{id} } @claims)
    {
        my @nights = map { "$claim->{room} $_" } $claim->{from} .. $claim->{to} - 1;
        next if grep { ($taken{$_} || 0) >= $capacity } @nights;
        $taken{$_}++ for @nights;
        push @accepted, $claim->{id};
    }
    return join ' ', sort { $a <=> $b } @accepted;
}

sub accepted { return value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM $_[0] WHERE accepted"); }

# Runs statements in 32 sessions, those that a serialization failure or a deadlock undid again and again.
my @sessions = map { open_session($node) } 1 .. 32;
sub run_all
{
    my ($level, @statements) = @_;
    my $again = 0;
    while (@statements)
    {
        my @failed;
        while (my @wave = splice @statements, 0, scalar @sessions)
        {
            $sessions[$_]->send("BEGIN ISOLATION LEVEL $level;\n$wave[$_];\nCOMMIT") for 0 .. $#wave;
            for my $i (0 .. $#wave)
            {
                my $output = $sessions[$i]->wait_for_end;
                next unless $output =~ /(ERROR|FATAL):/;
                die $output unless $output =~ /ERROR:  (40001|40P01)/;
                push @failed, $wave[$i];
            }
        }
        $again += @failed;
        @statements = @failed;
    }
    note("$level: $again statements were run again");
    return;
}

# What was last told of each claim, and to whom.
sub is_told
{
    my ($table, $what, @claims) = @_;
    my $rows = value(qq{SELECT string_agg(t.key || ' ' || t.verdict || ' ' || t.channels, E'\n' ORDER BY t.key::integer) FROM (
        SELECT DISTINCT ON (e.key) e.key, e.payload ->> 'verdict' AS verdict, e.channels::text AS channels
        FROM accord.read(0, 1000000) e WHERE e.topic = '$table.claim' ORDER BY e.key, e.seq DESC, e.ord DESC) t});
    my %told = map { /^(\d+) (.*)/ } split /\n/, $rows;
    my %accepted = map { $_ => 1 } split / /, accepted($table);
    my @wrong = grep {
        my $told = $told{ $_->{id} } || 'nothing';
        $told !~ ($accepted{ $_->{id} } ? qr/^(nothing|accepted \{$_->{channel}\})$/ : qr/^(rejected|displaced) \{$_->{channel}\}$/)
    } @claims;
    return is_deeply(\@wrong, [], $what);
}

for my $table ('booking', 'suite')
{
    my @claims = claims(96);
    my $expected = model($capacity{$table}, @claims);
    for my $level ('READ COMMITTED', $table eq 'booking' ? ('REPEATABLE READ', 'SERIALIZABLE') : ())
    {
        value("DELETE FROM $table");
        # new numbers for the same claims, in the same order: so that what was told before does not count
        my $first = value(q{SELECT coalesce(max(key::integer), 0) FROM accord.event_log WHERE topic LIKE '%.claim'});
        my @these = map { { %$_, id => $_->{id} + $first } } @claims;
        run_all($level, map {
            "INSERT INTO $table VALUES ($_->{id}, '$_->{room}', '[$_->{from},$_->{to})', $_->{rank}, '$_->{channel}')"
        } shuffle @these);
        my $wanted = join ' ', map { $_ + $first } split / /, $expected;
        is(accepted($table), $wanted, "$table, $level: who stands does not depend on the order");
        is_told($table, '... and everybody who does not was told', @these);
        next if $level eq 'REPEATABLE READ';

        # Every third cancels, some move, some change rank, all at once.
        my @statements;
        for my $claim (@these)
        {
            if ($claim->{id} % 3 == 0)
            {
                push @statements, "UPDATE $table SET status = 'cancelled' WHERE id = $claim->{id}";
                $claim->{cancelled} = 1;
            }
            elsif ($claim->{id} % 7 == 0)
            {
                @$claim{qw(room from to)} = ('r' . int rand 4, 3, 9);
                push @statements, "UPDATE $table SET room = '$claim->{room}', nights = '[3,9)' WHERE id = $claim->{id}";
            }
            elsif ($claim->{id} % 11 == 0)
            {
                $claim->{rank} = 9;
                push @statements, "UPDATE $table SET rank = 9 WHERE id = $claim->{id}";
            }
        }
        run_all($level, shuffle @statements);
        my @left = grep { !$_->{cancelled} } @these;
        is(accepted($table), model($capacity{$table}, @left), '... nor after they were cancelled, moved and ranked anew');
        is_told($table, '... and everybody left was told', @left);
    }
}
# The same by messages, each received twice, under whatever comes of it.
{
    value('DELETE FROM booking');
    my $first = value(q{SELECT coalesce(max(key::integer), 0) FROM accord.event_log WHERE topic LIKE '%.claim'});
    my @these = map { { %$_, id => $_->{id} + $first } } claims(96);
    my @messages = map {
        my $changes = qq{{"room": "$_->{room}", "nights": "[$_->{from},$_->{to})", "rank": $_->{rank}, "channel": "$_->{channel}"}};
        "SELECT accord.receive('$_->{channel}', 'm$_->{id}', target => 'booking', key => '$_->{id}', op => 'insert', changes => '$changes')"
    } @these;
    run_all('READ COMMITTED', shuffle @messages, @messages);
    is(value('SELECT count(*) FROM booking'), 96, 'received: each claim is there once, though each message came twice');
    is(accepted('booking'), model($capacity{booking}, @these), '... and who stands does not depend on the order');
    is_told('booking', '... and everybody who does not was told', @these);
}

is( value(q{SELECT count(*) FROM suite a, suite b, suite c, suite d WHERE a.id < b.id AND b.id < c.id AND c.id < d.id
        AND a.accepted AND b.accepted AND c.accepted AND d.accepted AND a.room = b.room AND b.room = c.room AND c.room = d.room
        AND NOT isempty(a.nights * b.nights * c.nights * d.nights)}),
    0, 'never more than there is room for');

# The verdicts come along in a dump, and go on from there.
my $file = $node->basedir . '/dump.sql';
PostgreSQL::Test::Utils::run_command([ 'pg_dump', '-f', $file, '-d', $node->connstr('postgres') ]);
value('CREATE DATABASE copy');
PostgreSQL::Test::Utils::run_command([ 'psql', '-Xqf', $file, '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('copy') ]);
is($node->safe_psql('copy', q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM booking WHERE accepted}), accepted('booking'),
    'a restored copy has the same verdicts');
is($node->safe_psql('copy', q{SELECT accord.settle_claims('booking') + accord.settle_claims('suite')}), 0,
    '... and nothing to change about them');
$node->safe_psql('copy', q{INSERT INTO booking VALUES (100000, 'r1', '[0,50)', 100, 'c1')});
is($node->safe_psql('copy', q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM booking WHERE accepted AND room = 'r1'}),
    100000, '... and decides about new ones');

$_->close for @sessions;
$node->stop;
done_testing();
