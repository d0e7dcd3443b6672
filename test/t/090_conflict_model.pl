# Every small set of changes, in every order and with repetitions, comes to what the model says; for every strategy.
use strict;
use warnings FATAL => 'all';

use Accord;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use Test::More;

my $node = new_node('main', "accord.dispatch = off\n");
my $model = abs_path(dirname(__FILE__)) . '/../model';
local $ENV{PGHOST} = $node->host;
local $ENV{PGPORT} = $node->port;

open my $run, '-|', 'python3', "$model/exhaustive.py", '--database', 'postgres' or die "could not run python3: $!";
while (my $line = <$run>)
{
    chomp $line;
    ok($2 == 0, "$1: every set, in every order") if $line =~ /^(.*?) +\d+ sets, (\d+) wrong$/;
    diag($line) if $line =~ /^FAILED/;
}
ok(close($run), 'the extension and the model agree');
done_testing();
