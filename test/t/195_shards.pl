# examples/shards, as they stand: an application on two clusters, each with pg_accord. A property's rows are on one node, and its
# events are sent by that node, in order; both nodes together keep the service's limit; a transaction of both nodes is delivered by
# each after it was committed, and by none when it was not, also when whoever runs it dies, or a server crashes, in between.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $stub = start_stub();
my @node = map { new_node($_, "max_prepared_transactions = 10\nrestart_after_crash = on\n") } 'zero', 'one';
my $shards = "$ENV{TESTDIR}/examples/shards/shards";
$ENV{SHARDS} = join "\n", map { $_->connstr('postgres') } @node;
my $per_second = 40;

# What it prints, its complaints, and how it ends.
sub shards
{
    my (@arguments) = @_;
    my ($out, $error) = ('', '');
    PostgreSQL::Test::Utils::run_log([ $shards, @arguments ], '>', \$out, '2>', \$error);
    chomp $out;
    return wantarray ? ($out, $error, $? >> 8) : $out;
}

sub both_settle { wait_for_delivery($_) for @node; return; }
sub value { my ($n, $sql) = @_; return $node[$n]->safe_psql('postgres', $sql); }
sub prepared { return join ' ', map { value($_, 'SELECT count(*) FROM pg_prepared_xacts') } 0, 1; }

# Requests so far: [ node, property, free ]; those since the last call.
my $seen = 0;

sub arrived
{
    my @new = $stub->log($seen);
    $seen += @new;
    return map { [ $_->{headers}{'x-node'}, $_->{path} =~ m{/properties/([^/]+)/}, $_->{body} =~ /"free": ?(\d+)/ ] } @new;
}
sub in_words { return join ', ', map { join ' ', @$_ } sort { "@$a" cmp "@$b" } @_; }

my (undef, $error, $status) = shards('set-up', $stub->url, $per_second, 8);
is($status, 0, 'the nodes are made') or diag($error);
is(value(0, 'SELECT count(DISTINCT app.node_of(g::text, 2)), max(app.node_of(g::text, 2)) FROM generate_series(1, 100) g'), '2|1',
    'both nodes have properties');
my @property = map { my $n = $_; [ grep { value(0, "SELECT app.node_of('$_', 2)") == $n } map { "hotel-$_" } 1 .. 12 ] } 0, 1;
is(join(' ', map { scalar shards('node', $_) } map { @$_[ 0, 1 ] } @property), '0 0 1 1', 'the router says the same as the database');
my ($a, $b) = map { $_->[0] } @property;

# ---- each node's own

value(0, 'UPDATE accord.channel SET enabled = false');
shards('run', $_, "INSERT INTO app.room VALUES ('$_', 'r1', 5)") for $a, $b;
is(shards('owed', $a), 1, 'what is not sent is owed');
value(0, 'UPDATE accord.channel SET enabled = true');
shards('run', $_, "UPDATE app.room SET free = 4 WHERE property = '$_'; UPDATE app.room SET free = 3 WHERE property = '$_'") for $a, $b;
both_settle();
my @requests = arrived();
for my $n (0, 1)
{
    is(in_words(grep { $_->[1] eq ($a, $b)[$n] } @requests), join(', ', map { join ' ', $n, ($a, $b)[$n], $_ } 3, 4, 5),
        "node $n sends what concerns its property");
    is(join(' ', map { $_->[2] } grep { $_->[1] eq ($a, $b)[$n] } @requests), '5 4 3', '... in order');
}
is(shards('owed', $a), 0, 'nothing is owed any more');
my (undef, undef, $complaint) = $node[0]->psql('postgres', "INSERT INTO app.room VALUES ('$b', 'r2', 1)");
like($complaint, qr/lives_here/, 'a row on the wrong node is refused');

# ---- the limit of the service is kept by both together

is(join(' ', map { value($_, q{SELECT amount || '/' || extract(seconds FROM period) || ' ' || burst || ' ' || max_in_flight
    FROM accord.rate_limit l JOIN accord.channel c ON c.name = l.channel}) } 0, 1), '40/2.000000 20 4 40/2.000000 20 4', 'each node has half of it');
for my $n (0, 1)
{
    my @names = grep { value($n, "SELECT app.node_of('$_', 2) = $n") eq 't' } map { "load-$_" } 1 .. 8;
    value($n, "INSERT INTO app.room SELECT p, 'r' || g, 1 FROM unnest('{" . join(',', @names) . "}'::text[]) p, generate_series(1, 15) g");
}
both_settle();
my @load = $stub->log($seen);
is(scalar(arrived()), 120, 'all of it arrives');
cmp_ok(fullest($per_second, map { $_->{time} } @load), '<=', $per_second + 2 + $per_second * $stub->slack, '... within the limit of the service');

# ---- both or neither

sub move
{
    my ($from, $to, $n) = @_;
    return shards('both', $from, "UPDATE app.room SET free = free - $n WHERE property = '$from'",
        $to, "UPDATE app.room SET free = free + $n WHERE property = '$to'");
}

(undef, $error, $status) = move($a, $b, 1);
is($status, 0, 'a transaction of both nodes') or diag($error);
both_settle();
is(in_words(arrived()), "0 $a 2, 1 $b 4", '... is sent by each after it was committed');
(undef, $error, $status) = move($b, $a, 9);
isnt($status, 0, 'one that fails on one of them');
like($error, qr/violates check constraint.*neither/s, '... says so');
is(prepared(), '0 0', '... leaves nothing');
(undef, $error, $status) = move($a, $property[0][1], 1);
is($status, 0, 'of one node alone: an ordinary transaction');
both_settle();
is(in_words(arrived()), "0 $a 1", '... is sent, and what failed is not');

{
    local $ENV{SHARDS_DIE} = 'prepared';
    move($a, $b, 1);
}
is(prepared(), '1 1', 'who dies before the decision leaves it prepared');
crash_server($node[1]);
is(prepared(), '1 1', '... also after a crash of one node');
shards('run', $_, "INSERT INTO app.room VALUES ('$_', 'r3', 7)") for $a, $b;
both_settle();
is(in_words(arrived()), "0 $a 7, 1 $b 7", '... and what is prepared is not sent, and holds up no others');
is(shards('recover', 5), '', 'what is younger is left alone');
like(shards('recover', 0), qr/node 0: rolled back\n.*node 1: rolled back$/, 'recovery without a decision rolls both back');
{
    local $ENV{SHARDS_DIE} = 'decided';
    shards('both', $a, "UPDATE app.room SET free = 0 WHERE property = '$a' AND room = 'r1'",
        $b, "UPDATE app.room SET free = 9 WHERE property = '$b' AND room = 'r1'");
}
is(prepared(), '1 1', 'who dies after the decision leaves it prepared, too');
crash_server($node[0]);
both_settle();
is(in_words(arrived()), '', '... and nothing was sent of either');
like(shards('recover', 0), qr/node 0: committed\n.*node 1: committed$/, 'recovery does what was decided');
is(prepared(), '0 0', '... on both');
both_settle();
is(in_words(arrived()), "0 $a 0, 1 $b 9", '... and each node sends its part');
is(value($_, 'SELECT count(*) FROM accord.verify()'), 0, "node $_: the log is sound") for 0, 1;

$_->stop for @node;
done_testing();
