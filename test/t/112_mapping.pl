# Mappings of webhooks under random paths and bodies, seeded: whatever somebody writes into a mapping is refused when it is
# given, or works on what comes; a message of any shape is received, or refused with an error that says what is wrong with
# it. Never an internal error, and the session goes on. ACCORD_SEED and ACCORD_ROUNDS repeat and prolong a run.
use strict;
use utf8;
use warnings FATAL => 'all';

use Accord;
use JSON::PP;
use Test::More;

my $seed = $ENV{ACCORD_SEED} // 20261128;
my $rounds = $ENV{ACCORD_ROUNDS} // 400;
srand $seed;
note("ACCORD_SEED=$seed");
my $json = JSON::PP->new->canonical->allow_nonref;
my $node = new_node('main', "log_statement = none\n");

sub one_of { return $_[ int rand @_ ]; }

sub word { return join '', map { one_of('a', 'b', 'id', 'data', 'ä', "'", '"', '.', '\\', ' ', '$', '*', '[', '0', "\x{1F3E8}") } 1 .. 1 + int rand 3; }

# Pieces of jsonpath, most of which fit together.
sub path
{
    return one_of('', 'x', '$$', '{}', '$.') if rand() < 0.05;
    my $path = one_of('$', '$', '$', 'strict $', 'lax $', '@', '"a"');
    $path .= one_of('.a', '.b', '.id', '.data', '."ä"', '[0]', '[*]', '[last]', '[0 to 3]', '.*', '.**', '.**{2}', '.a ? (@ > 1)', ' ? (@.id == "x")',
        '.size()', '.type()', '.double()', '.datetime()', '.keyvalue()', '."' . word() . '"', '[', '.', ' ? (') for 1 .. int rand 4;
    return $path;
}

sub mapping
{
    my %mapping;
    $mapping{$_} = path() for grep { rand() < 0.5 } qw(event_id key changes account);
    $mapping{topic} = one_of('"t"', '"t"', '$.a', path());
    $mapping{$_} = path() for grep { rand() < 0.05 } qw(op occurred_at revision target base items);
    $mapping{changes} = { map { (word() => path()) } 1 .. 2 } if rand() < 0.2;
    $mapping{ word() } = path() if rand() < 0.05;
    return one_of('{', 'null', '[]', '"x"') if rand() < 0.03;
    return $json->encode(\%mapping);
}

sub value
{
    my ($depth) = @_;
    return one_of(undef, 0, -1, 1e300, 1.5, '', 'x', 'rate.set', 'insert', '2026-02-30', '2026-11-28T10:00:00Z', 'ä' x 300, JSON::PP::true, word()) if $depth > 3 || rand() < 0.4;
    return [ map { value($depth + 1) } 1 .. int rand 4 ] if rand() < 0.4;
    return { map { (one_of('a', 'b', 'id', 'data', word()) => value($depth + 1)) } 1 .. int rand 4 };
}

sub body
{
    my $text = $json->encode(value(0));
    substr($text, int rand length $text, 1, one_of('', "\0", '{', "\x{FF}", '"', '}')) if rand() < 0.1;
    utf8::encode($text);
    return $text;
}

# One that is refused leaves the one before in force.
my $script = "\\set VERBOSITY sqlstate\nINSERT INTO accord.source (name, verify) VALUES ('s', '{\"type\": \"none\"}');\n";
for my $round (1 .. $rounds)
{
    my ($mapping, $body) = (mapping(), body());
    $script .= 'UPDATE accord.source SET mapping = ' . literal($mapping) . ";\n";
    $script .= "SELECT accord.receive_webhook('s', '{\"x\": \"$round\"}', decode('" . unpack('H*', $_) . "', 'hex'));\n" for $body, $body, body();
}
utf8::encode($script);
my ($status, $out, $errors) = $node->psql('postgres', "$script SELECT 'the end';", on_error_stop => 0);
is($status, 0, 'the session goes on');
like($out, qr/the end$/, '... to the end');
my %codes;
$codes{$_}++ for $errors =~ /ERROR:  (\w+)/g;
note(join ', ', map { "$_: $codes{$_}" } sort keys %codes);
is(join(' ', grep { !/^(22|23|AC|42P01$)/ } sort keys %codes), '', 'every refusal says what is wrong with what came');
cmp_ok(scalar(() = $out =~ /"status"/g), '>', $rounds / 10, 'many messages are received');
cmp_ok(scalar keys %codes, '>', 2, 'and many are refused');
$node->stop;
done_testing();
