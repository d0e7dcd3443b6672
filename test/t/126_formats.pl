# Forms and XML documents of random values, read back by the parsers of Python's library: whatever stands in a value, they
# read what it was, and nothing more. ACCORD_SEED and ACCORD_VALUES make it another run, or a longer one.
use strict;
use warnings FATAL => 'all';

use Accord;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use Test::More;

my $node = new_node('main', "log_statement = none\naccord.dispatch = off\n");
my $script = abs_path(dirname(__FILE__) . '/../lib/formats.py');
my $directory = tempdir(CLEANUP => 1);
my $count = $ENV{ACCORD_VALUES} || 5000;
my $seed = $ENV{ACCORD_SEED} || time;

note("seed $seed");
system("python3 '$script' make $count $seed >'$directory/values'") == 0 or die 'no values';
chmod 0755, $directory;
$node->safe_psql('postgres', qq{
    CREATE TABLE line (value jsonb);
    CREATE TEMPORARY TABLE given (n serial, text text);
    \\copy given (text) FROM '$directory/values' (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02')
    INSERT INTO line SELECT text::jsonb FROM given});
is($node->safe_psql('postgres', 'SELECT count(*) FROM line'), $count, "$count values");
my $names = q{'strict $.** ? (@.type() == "object").keyvalue().key ? (!(@ like_regex "^[A-Za-z0-9]+$"))'};
my $rows = $node->safe_psql('postgres', qq{
    SELECT jsonb_build_object('value', value, 'form', accord.encode_form(value), 'repeat', accord.encode_form(value, 'repeat'),
        'xml', CASE WHEN NOT jsonb_path_exists(value, $names) THEN accord.encode_xml(value, 'root') END) FROM line});
open my $out, '>:raw', "$directory/rows" or die "rows: $!";
print $out $rows, "\n";
close $out;
my $verdict = `python3 '$script' check <'$directory/rows'`;
is($verdict, "$count right\n", '... are read as what they were');

$node->stop;
done_testing();
