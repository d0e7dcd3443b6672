# examples/debezium.sql, as it stands: the log by logical decoding, both as it is and as the table that Debezium's outbox router
# expects. What a connector would be sent (pgoutput, read by its protocol) holds every committed event once, in order, in the
# expected columns, and nothing else, across a crash of the server and slots of the ring that are emptied.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main', "max_prepared_transactions = 10\nrestart_after_crash = on\n", init => [ allows_streaming => 'logical' ]);

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

value(q{INSERT INTO accord.outbox (topic, key) VALUES ('booking', 'before the slots')});
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f', "$ENV{TESTDIR}/examples/debezium.sql" ],
    'the example runs');

# What a slot has, up to now, as [ kind, relation, { column => value } ]: the messages of pgoutput's protocol, version 1.
my %relation;

sub decode
{
    my ($message) = @_;
    my $type = substr $message, 0, 1, '';

    if ($type eq 'R')
    {
        my ($oid, $schema, $name, undef, $n) = unpack 'N Z* Z* C n', $message;
        my @columns = unpack "x4 Z* Z* x x2 (C Z* N N)$n", $message;
        $relation{$oid} = { name => "$schema.$name", columns => [ map { $columns[ 4 * $_ + 3 ] } 0 .. $n - 1 ] };
    }
    elsif ($type eq 'I')
    {
        my ($oid, undef, $n) = unpack 'N a n', $message;
        my ($at, %row) = 7;
        for my $column (@{ $relation{$oid}{columns} }[ 0 .. $n - 1 ])
        {
            my $kind = substr $message, $at++, 1;
            die "a value of kind $kind" if $kind !~ /[nt]/;
            $row{$column} = undef;
            next if $kind eq 'n';
            $row{$column} = unpack "x$at N/a", $message;
            $at += 4 + length $row{$column};
        }
        return [ $type, $relation{$oid}{name}, \%row ];
    }
    return [$type];
}

# A slot's place is on disk as of the last checkpoint, so that after a crash it gives again what was taken since; whoever reads it knows
# up to which commit he has come, as Debezium does.
my %place;

sub sent
{
    my ($slot) = @_;
    my (@transaction, @all);
    # each connection is told of relations anew
    %relation = ();
    for (split /\n/, value("SELECT lsn - '0/0', encode(data, 'hex') FROM
        pg_logical_slot_get_binary_changes('$slot', NULL, NULL, 'proto_version', '1', 'publication_names', '$slot')"))
    {
        my ($lsn, $data) = split /\|/;
        push @transaction, decode(pack 'H*', $data);
        next unless $transaction[-1][0] eq 'C';
        push @all, @transaction if $lsn > ($place{$slot} || 0);
        $place{$slot} = $lsn if $lsn > ($place{$slot} || 0);
        @transaction = ();
    }
    return @all;
}

my %got = (accord_log => [], debezium_outbox => []);

sub drain
{
    push @{ $got{$_} }, sent($_) for sort keys %got;
    return;
}

sub rows { my ($slot) = @_; return map { $_->[2] } grep { $_->[0] eq 'I' } @{ $got{$slot} }; }

# ---- writers, some of whose transactions fail; each key's are in order, as whoever changes its row waits for the one before

value(q{CREATE TABLE room (id integer PRIMARY KEY, price integer NOT NULL); INSERT INTO room SELECT g, 0 FROM generate_series(1, 5) g;
    SELECT accord.capture('room', topic => 'room')});
my $script = $node->basedir . '/write.sql';
PostgreSQL::Test::Utils::append_to_file($script, <<'SQL');
\set id random(1, 5)
\set end random(1, 10)
BEGIN;
UPDATE room SET price = price + 1 WHERE id = :id;
SAVEPOINT s;
INSERT INTO accord.outbox (topic, key) VALUES ('never', 'undone');
ROLLBACK TO s;
INSERT INTO accord.outbox (topic, key, payload, headers) VALUES ('booking', 'b' || :id, '{"guest": "Zoë"}', '{"traceparent": "t"}');
\if :end = 1
ROLLBACK;
\else
COMMIT;
\endif
SQL
$node->safe_psql('postgres', q{BEGIN; INSERT INTO accord.outbox (topic, key) VALUES ('booking', 'prepared'); PREPARE TRANSACTION 'p';
    BEGIN; INSERT INTO accord.outbox (topic, key) VALUES ('never', 'prepared'); PREPARE TRANSACTION 'never'});

sub write_events
{
    my ($transactions) = @_;
    $node->command_ok([ 'pgbench', '-n', '-f', $script, '-c', 4, '-t', $transactions, 'postgres' ], 'four writers');
    return;
}

my $publisher = open_session($node);
$publisher->send(q{CALL debezium.run('10 ms')});
write_events(50);
drain();
poll_until(sub { value('SELECT count(*) > 0 FROM debezium.outbox') eq 't' }, 'the consumer to publish');
crash_server($node);
drain();
value(q{COMMIT PREPARED 'p'; ROLLBACK PREPARED 'never'});
write_events(25);

# The ring moves on and is emptied; so is the table, whatever its size.
sub publish_all { 1 while value('SELECT debezium.publish(100)') > 0; return; }
my $all = value(q{SELECT count(*) FROM accord.read(0, 1000000) WHERE topic NOT LIKE 'accord.%' AND key <> 'before the slots'});
my @expected = split /\n/, value(q{SELECT concat_ws(' ', event_id, topic, key, op, payload, seq) FROM accord.read(0, 1000000)
    WHERE topic NOT LIKE 'accord.%' AND key <> 'before the slots' ORDER BY seq, ord});
my @of_key = split /\n/, value(q{SELECT concat_ws(' ', key, string_agg(event_id::text, ' ' ORDER BY seq, ord)) FROM accord.read(0, 1000000)
    WHERE topic NOT LIKE 'accord.%' AND key <> 'before the slots' GROUP BY key ORDER BY key COLLATE "C"});
publish_all();
value('TRUNCATE debezium.outbox');
$node->append_conf('postgresql.conf', "accord.log_retention = '1s'\n");
$node->reload;
poll_until(sub { value('SELECT accord.turn_rings(true)'); value('SELECT count(*) = 0 FROM accord.event_log') eq 't' }, 'the log to be emptied');
drain();

# ---- what came

for my $slot (sort keys %got)
{
    is(scalar(rows($slot)), $all, "$slot: every event came once, and no other");
    is(join(' ', sort keys %{ { map { $_->[0] => 1 } @{ $got{$slot} } } }), 'B C I R', '... inserted, and nothing else was ever sent');
    is(join(' ', sort keys %{ { map { $_->[1] => 1 } grep { $_->[0] eq 'I' } @{ $got{$slot} } } }),
        $slot eq 'accord_log' ? 'accord.event_log' : 'debezium.outbox', '... of one table');
}
is(scalar(@expected), $all, 'the log had them all');
is_deeply([ map { join ' ', grep { defined } @$_{qw(id aggregatetype aggregateid type payload seq)} } rows('debezium_outbox') ], \@expected,
    "the table's: in the order of the log, under the names that the router expects");
my ($first) = grep { $_->{aggregatetype} eq 'booking' && defined $_->{headers} } rows('debezium_outbox');
is_deeply([ sort keys %$first ], [ sort qw(id aggregatetype aggregateid type payload timestamp headers seq) ], '... with these columns');
is($first->{headers}, '{"traceparent": "t"}', '... headers among them');

my %by_key;
push @{ $by_key{ $_->{key} } }, $_->{event_id} for rows('accord_log');
is_deeply([ map { join ' ', $_, @{ $by_key{$_} } } sort keys %by_key ], \@of_key, "the log's: each key's in the order of the log");
my %ends;
my $split = 0;
for my $row (rows('accord_log'))
{
    $split++ if defined $ends{last} && $ends{last} != $row->{tx_id} && $ends{ $row->{tx_id} };
    @ends{ 'last', $row->{tx_id} } = ($row->{tx_id}, 1);
}
is($split, 0, '... and each transaction in one piece');
is((grep { $_->{key} eq 'prepared' } rows('accord_log')), 1, '... and what was prepared, when it was committed');

# ---- and nothing has to be there for a slot whose position the server remembers
$node->restart;
value(q{INSERT INTO accord.outbox (topic, key) VALUES ('booking', 'last')});
publish_all();
is(join(' ', map { $_->[2]{key} } grep { $_->[0] eq 'I' } sent('accord_log')), 'last', 'after a restart: only what is new');
is(join(' ', map { $_->[2]{aggregateid} } grep { $_->[0] eq 'I' } sent('debezium_outbox')), 'last', '... of both');

# ---- a table that has grown is emptied on the way, unseen
value(q{INSERT INTO debezium.outbox SELECT gen_random_uuid(), 'filler', 'k', 'event', jsonb_build_object('f', repeat('x', 1900)), now(), NULL, 0
    FROM generate_series(1, 36000)});
sent('debezium_outbox');
value(q{INSERT INTO accord.outbox (topic, key) VALUES ('booking', 'after')});
publish_all();
is(value('SELECT count(*) FROM debezium.outbox'), 1, 'the table does not grow without end');
is(join(' ', map { join ' ', grep { defined } $_->[0], $_->[2]{aggregateid} } grep { $_->[0] !~ /[BCR]/ } sent('debezium_outbox')), 'I after',
    '... and nobody is told');

$node->stop;
done_testing();
