# Sharing a channel: an account that is owed very much does not make the others wait, shares follow the weights, and
# what is urgent does not wait for what is not, nor starves it. Counted in requests, never in time: how many others the
# server received between a commit and the event's arrival.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $many = $ENV{FAIRNESS_EVENTS} || 100_000;
my $node = new_node('main', <<'CONF');
log_statement = none
autovacuum = off
max_wal_size = 4GB
CONF
my $stub = start_stub('--pulse');
my $dispatcher = dispatcher($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A channel whose requests' paths are /name/account/key/number, called so many times a second, when it says so.
sub named_channel
{
    my ($name, $rate, $accounts, %column) = @_;
    insert_row($node, 'channel', name => $name, base_url => $stub->url, patient(), %column);
    sql(join '', map({ insert_sql('account', channel => $name, %$_) . ';' } @$accounts));
    insert_row($node, 'rate_limit', channel => $name, amount => $rate, period => '1 s') if $rate;
    route($node, $name, topic => $name, path => '/{topic}{/account,key}/{payload}', coalesce => undef);
    return;
}

# As many events, in one statement; the columns are SQL over the number g. Returns when it was committed.
sub insert
{
    my ($topic, $n, %column) = @_;
    my %value = (key => q{'k' || g}, payload => 'to_jsonb(g)', %column);
    my @names = sort keys %value;
    my $tx = sql("WITH i AS (INSERT INTO accord.outbox (topic, @{[ join ', ', @names ]})
        SELECT '$topic', @{[ join ', ', map { $value{$_} } @names ]} FROM generate_series(1, $n) g RETURNING tx_id)
        SELECT max(tx_id) FROM i");
    return sql("SELECT extract(epoch FROM committed_at) FROM accord.commit_log WHERE tx_id = $tx");
}

sub requests { my ($path) = @_; return grep { $_->{path} =~ m{^/$path} } $stub->log; }

# Waits until the dispatcher has read everything up to now.
my $marks = 0;

sub mark
{
    $marks++;
    insert('mark', 1, payload => $marks . '::text::jsonb');
    poll_until(sub { requests("mark/k1/$marks\$") }, 'the mark');
    return;
}

# Of the requests to a channel between a commit and each of those that match: how many, the most.
sub most_before
{
    my ($channel, $committed, $pattern) = @_;
    my ($n, $most) = (0, 0);
    for my $request (requests("$channel/"))
    {
        next if $request->{time} < $committed;
        if ($request->{path} =~ $pattern)
        {
            $most = $n if $n > $most;
        }
        else
        {
            $n++;
        }
    }
    return $most;
}

named_channel('mark', 0, []);

# ---- one account with very much, ninety-nine with one event each

my $rate = 400;
named_channel('flood', $rate, [ map { { name => $_ } } 'big', map { "small$_" } 1 .. 99 ]);
insert('flood', $many, account => q{'big'});
mark();
my $committed = insert('flood', 99, account => q{'small' || g});
poll_until(sub { requests('flood/small') == 99 }, 'the small accounts');
# A round of all accounts, what was under way, and what left while they were read.
my $most = most_before('flood', $committed, qr{/small});
cmp_ok($most, '<=', 100 + 16 + $rate * $stub->slack,
    "ninety-nine events, $many of another account before them: at most $most of those go first");
cmp_ok(scalar(requests('flood/big')), '<', $many / 10, '... of so many');
my $before = requests('flood/big');
poll_until(sub { requests('flood/big') > $before }, 'the big account to go on');
pass('... which goes on');
sql(q{UPDATE accord.channel SET enabled = false WHERE name = 'flood'});

# ---- weights

# Of two accounts that have work all the time: how often the one with the greater weight had its turn for each turn of
# the other.
sub ratio
{
    my ($name) = @_;
    poll_until(sub { requests("$name/heavy") >= 300 }, 'the heavy account');
    my ($heavy, $light) = (0, 0);
    for my $request (requests("$name/"))
    {
        last if $heavy == 300;
        $request->{path} =~ /heavy/ ? $heavy++ : $light++;
    }
    return $heavy / ($light || 1);
}

$stub->script([ { match => { path_regex => '^/narrow/' }, do => { delay_ms => 1 } } ]);
my @accounts = ({ name => 'heavy', weight => 3 }, { name => 'light', weight => 1 });
named_channel('rated', 400, \@accounts);
named_channel('narrow', 0, \@accounts, max_in_flight => 2);
for my $name ('rated', 'narrow')
{
    insert($name, 1000, account => q{CASE WHEN g <= 500 THEN 'light' ELSE 'heavy' END});
    my $ratio = ratio($name);
    ok($ratio >= 2 && $ratio <= 4, sprintf '%s: weights 3 and 1 share it %.2f to 1', $name, $ratio);
}
named_channel('alone', 400, [ { name => 'light', weight => 1 }, { name => 'heavy', weight => 100 } ]);
insert('alone', 100, account => q{'light'});
poll_until(sub { requests('alone/light') == 100 }, 'an account that is alone');
pass('a weight takes nothing from who has it alone');

# ---- priority

$rate = 200;
named_channel('rush', $rate, []);
insert('rush', 20_000, key => q{'bulk' || g}, priority => '2');
mark();
$committed = insert('rush', 1, key => q{'normal'});
poll_until(sub { requests('rush/normal') }, 'a normal one');
$most = most_before('rush', $committed, qr{/normal});
cmp_ok($most, '<=', 2 * 16 + $rate * $stub->slack, "a normal event, twenty thousand of bulk before it: after $most");
insert('rush', 500, key => q{'normal' || g});
mark();
$committed = insert('rush', 1, key => q{'urgent'}, priority => '0');
poll_until(sub { requests('rush/urgent') }, 'an urgent one');
$most = most_before('rush', $committed, qr{/urgent});
cmp_ok($most, '<=', 2 * 16 + $rate * $stub->slack, "an urgent one, five hundred normal ones, too: after $most");
insert('rush', 300, key => q{'urgent' || g}, priority => '0');
poll_until(sub { requests('rush/urgent') == 301 }, 'the urgent ones');
my ($first, $last, %between);
for my $request (requests('rush/'))
{
    my ($class) = $request->{path} =~ m{^/rush/([a-z]+)};
    $first = 1 if $request->{path} =~ m{/urgent\d};
    $between{$class}++ if $first;
    last if ($between{urgent} || 0) == 300;
}
cmp_ok($between{urgent}, '>', ($between{bulk} || 0) + ($between{normal} || 0), 'urgent ones have more than half');
cmp_ok($between{$_} || 0, '>=', 3, "... but $_ ones go on") for 'normal', 'bulk';

# At another account nobody is urgent.
named_channel('apart', $rate, [ { name => 'a' }, { name => 'b' } ]);
insert('apart', 2000, account => q{'a'}, priority => '0');
mark();
$committed = insert('apart', 5, account => q{'b'}, priority => '2');
poll_until(sub { requests('apart/b') == 5 }, 'bulk of another account');
$most = most_before('apart', $committed, qr{/b/});
cmp_ok($most, '<=', 5 * 2 + 16 + $rate * $stub->slack, "urgent ones of one account leave another its share: $most");

for my $wrong (-1, 3)
{
    my (undef, undef, $stderr) = $node->psql('postgres',
        "\\set VERBOSITY verbose\n" . insert_sql('outbox', topic => 'mark', priority => $wrong));
    like($stderr, qr/22023|23514|22003/, "refused: priority $wrong");
}
is(dispatcher($node), $dispatcher, 'the dispatcher is the same process');

$node->stop;
done_testing();
