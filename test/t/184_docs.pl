# Every block of code in README.md, the tutorial and the how-to pages of docs/ does what the page says. Each page has a database of its own, in which its blocks run
# from the top down, as a reader would type them; a channel at http://127.0.0.1:8080 is the stub server.
#
#   ```sql      runs in psql, and must not fail
#   ```text     directly after such a block: what psql has printed; "..." stands for anything
#   ```sh       runs in a shell, with psql connected to the page's database
#
# Comments, which nobody sees who reads the page, say what else there is to do, for the next block where they are about one:
#
#   <!-- run            runs these statements
#   statements -->
#   <!-- wait: query -->           until it returns t
#   <!-- stub: rules -->           of test/lib/stub.py, as JSON
#   <!-- fails: pattern -->        the block raises this error
#   <!-- as: role -->              the block runs as that role
#   <!-- not run: reason -->       the block is not run
use strict;
use warnings FATAL => 'all';

use Accord;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use JSON::PP;
use Test::More;

my $top = abs_path(dirname(__FILE__) . '/../..');
my @pages = $ENV{PAGES} ? split(' ', $ENV{PAGES}) : map { s{^\Q$top\E/}{}r } glob("$top/README.md $top/docs/tutorial.md $top/docs/howto/*.md");
my $node = new_node('main', "max_worker_processes = 40\nshared_buffers = 32MB\nlog_statement = none\n", extension => 0);
my $stub = start_stub();
my $url = $stub->url;

# The parts of a page, in order: { kind, text, line }, and what comments said of it.
sub parts_of
{
    my ($page) = @_;
    my (@parts, %said, $comment, $block);
    my $line = 0;

    for (split /\n/, PostgreSQL::Test::Utils::slurp_file("$top/$page"))
    {
        $line++;
        if (!$block && (defined $comment || /^<!--/))
        {
            $comment = defined $comment ? "$comment\n$_" : $_;
            next unless /-->\s*$/;
            my ($what, $text) = $comment =~ /^<!-- (run|wait|stub|fails|as|not run)\b:?\s*(.*?)\s*-->\s*$/s;
            $comment = undef;
            next unless defined $what;
            if ($what =~ /^(?:run|wait|stub)$/) { push @parts, { kind => $what, text => $text, line => $line }; }
            else { $said{$what} = $text; }
        }
        elsif ($block && /^```\s*$/) { push @parts, $block; $block = undef; }
        elsif ($block) { $block->{text} .= "$_\n"; }
        elsif (/^```(\w*)/) { $block = { kind => $1, text => '', line => $line, %said }; %said = (); }
    }
    die "$page: a block or comment does not end\n" if $block || defined $comment;
    return @parts;
}

sub run_psql
{
    my ($database, $text, $role) = @_;
    $text =~ s{http://127\.0\.0\.1:8080}{$url}g;
    $text =~ s/\\watch .*/;/g;
    $text = qq{SET ROLE "$role";\n$text} if $role;
    my ($out, $error);
    my $ok = PostgreSQL::Test::Utils::run_log([ 'psql', '-X', '-q', '-P', 'pager=off', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($database), '-f', '-' ],
        '<', \$text, '>', \$out, '2>', \$error);
    return ($ok, $out, $error);
}

# What was printed, as a pattern of what is expected: blanks and rules of tables may be of any length.
sub looks_like
{
    my ($got, $expected) = @_;
    for ($got, $expected)
    {
        s/[ \t]+/ /g;
        s/-{3,}/---/g;
        s/ +$//gm;
        s/^\n+|\n+$//g;
        s/\Q$url\E/http:\/\/127.0.0.1:8080/g;
    }
    my $pattern = join '.*', map { quotemeta } split /\.\.\./, $expected, -1;
    return $got =~ /^$pattern$/s;
}

sub run_part
{
    my ($page, $database, $part, $before) = @_;
    my $name = "$page:$part->{line}";

    if ($part->{'not run'}) { return; }
    if ($part->{kind} eq 'stub') { $stub->script(decode_json($part->{text})); }
    elsif ($part->{kind} eq 'wait')
    {
        my $seen = eval { $node->poll_query_until($database, $part->{text}) };
        ok($seen, "$name: has come: $part->{text}");
    }
    elsif ($part->{kind} eq 'run' || $part->{kind} eq 'sql')
    {
        my ($ok, $out, $error) = run_psql($database, $part->{text}, $part->{as});
        $part->{out} = $out;
        if (defined $part->{fails}) { ok(!$ok && $error =~ /$part->{fails}/, "$name: fails as it should") or diag($error); }
        else { ok($ok, "$name: runs") or diag("$part->{text}\n$error"); }
    }
    elsif ($part->{kind} eq 'text' && $before && defined $before->{out})
    {
        ok(looks_like($before->{out}, $part->{text}), "$name: is what is printed")
          or diag("page:\n$part->{text}\nprinted:\n$before->{out}");
    }
    elsif ($part->{kind} eq 'sh')
    {
        local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => $database, PGUSER => 'postgres');
        my $directory = PostgreSQL::Test::Utils::tempdir();
        my ($out, $error) = ('', '');
        my $ok = PostgreSQL::Test::Utils::run_log([ 'sh', '-e', '-c', "cd $directory; $part->{text}" ], '>', \$out, '2>', \$error);
        $part->{out} = $out;
        ok($ok, "$name: runs") or diag("$part->{text}\n$error");
    }
    return;
}

# The reference is what the catalogue says.
$node->safe_psql('postgres', 'CREATE EXTENSION pg_accord');
my ($reference, $complaint);
PostgreSQL::Test::Utils::run_log([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f', "$top/docs/reference.sql" ],
    '>', \$reference, '2>', \$complaint);
ok($reference eq PostgreSQL::Test::Utils::slurp_file("$top/docs/reference.md"), 'docs/reference.md is what the catalogue says; else: make reference');

# Blocks that are not run, each for the reason that its comment gives; whoever adds one has to say so here.
my %not_run = ('README.md' => 7, 'docs/tutorial.md' => 2, 'docs/howto/scaling.md' => 2);
my $number = 0;
for my $page (@pages)
{
    my $database = 'page' . ++$number;
    my $before;

    $node->safe_psql('postgres', "CREATE DATABASE $database");
    $stub->script([]);
    my @parts = parts_of($page);
    my $not_run = grep { $_->{'not run'} } @parts;
    is($not_run, $not_run{$page} || 0, "$page: blocks that are not run: as many as are known");
    for my $part (@parts)
    {
        run_part($page, $database, $part, $before);
        $before = $part;
    }
    # its workers go, and whatever it has made the cluster remember
    $node->safe_psql('postgres', "DROP DATABASE $database WITH (FORCE)");
    $node->safe_psql('postgres', q{SELECT format('DROP ROLE %I', rolname) FROM pg_roles WHERE oid >= 16384 \gexec});
}

$node->stop;
done_testing();
