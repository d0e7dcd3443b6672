# An older version, updated, is what a fresh installation is: its catalogue is the same, what it held is there, and the
# dispatchers go on. Every released version is tried (test/upgrade), and one that never was: the present one without a
# column, a view and a function, so that the way itself is tested, and that a difference is found.
use strict;
use warnings FATAL => 'all';

use Accord;
use Catalogue;
use Cwd ();
use File::Basename qw(basename);
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', undef, extension => 0);
my $stub = start_stub();
my $directory = $node->config_data('--sharedir') . '/extension';
my $released = Cwd::abs_path(__FILE__) =~ s{/t/[^/]*$}{/upgrade}r;
my @made;

plan skip_all => "$directory is not writable" unless -w $directory;
END { unlink @made; }

sub value { my ($database, $sql) = @_; return $node->safe_psql($database, $sql); }

sub install_script
{
    my ($name, $text) = @_;
    die "$directory/$name is there\n" if -e "$directory/$name";
    push @made, "$directory/$name";
    return append_to_file("$directory/$name", $text);
}

# What is written into an older version: what the oldest one can hold.
sub fill
{
    my ($database) = @_;
    value($database, "INSERT INTO accord.channel (name, base_url) VALUES ('ota', '@{[ $stub->url ]}/$database');
        INSERT INTO accord.route (channel, topic, path) VALUES ('ota', 't', '/{key}');
        INSERT INTO accord.consumer (name) VALUES ('projection');
        CREATE TABLE room (id integer PRIMARY KEY, price numeric);
        SELECT accord.capture('room');
        INSERT INTO room VALUES (1, 80);
        UPDATE room SET price = 90");
    value($database, q{INSERT INTO accord.outbox (topic, key) VALUES ('t', 'before')});
    wait_for_delivery($node, $database);
    return;
}

my $contents = <<'SQL';
SELECT name, base_url FROM accord.channel;
SELECT * FROM accord.route;
SELECT id, name, topic, owner FROM accord.consumer;
SELECT * FROM accord.read(0, 100);
SELECT * FROM accord.attempt_log;
SELECT * FROM accord.history('room', 1);
SQL

sub arrived { my ($database) = @_; return join ' ', map { $_->{path} =~ m{^/$database/(.*)} ? $1 : () } $stub->log; }

# Installs a version, updates it, compares.
sub try_version
{
    my ($version, $fresh) = @_;
    my $database = 'from_' . $version =~ s/\W/_/gr;
    value('postgres', "CREATE DATABASE $database");
    value($database, "CREATE EXTENSION pg_accord VERSION '$version'");
    fill($database);
    is(arrived($database), 'before', "$version works with the present library");
    my $before = value($database, $contents);
    value($database, 'ALTER EXTENSION pg_accord UPDATE');
    is(value($database, $contents), $before, '... updated, it holds what it held');
    value($database, q{INSERT INTO accord.outbox (topic, key) VALUES ('t', 'after')});
    wait_for_delivery($node, $database);
    is(arrived($database), 'before after', '... dispatches');
    my @differences = differences(catalogue($node, $database), $fresh);
    is(join("\n", @differences), '', '... and its catalogue is that of a fresh installation');
    return;
}

# Lines that one has and the other lacks.
sub differences
{
    my ($got, $wanted) = @_;
    my %got = map { $_ => 1 } split /\n/, $got;
    my %wanted = map { $_ => 1 } split /\n/, $wanted;
    return ((map { "- $_" } grep { !$got{$_} } sort keys %wanted), map { "+ $_" } grep { !$wanted{$_} } sort keys %got);
}

value('postgres', 'CREATE EXTENSION pg_accord');
my $present = value('postgres', q{SELECT extversion FROM pg_extension WHERE extname = 'pg_accord'});
my $fresh = catalogue($node, 'postgres');
cmp_ok(scalar(split /\n/, $fresh), '>', 1000, 'the catalogue has been read');

# ---- what was released

for my $script (glob "$released/pg_accord--*.sql")
{
    my ($version) = basename($script) =~ /^pg_accord--(.+)\.sql$/;
    next if $version eq $present;
    install_script(basename($script), slurp_file($script));
    try_version($version, $fresh);
}

# ---- what never was

my $install = slurp_file("$directory/pg_accord--$present.sql");
my ($view) = $install =~ /^(CREATE VIEW accord\.consumer_status AS.*?;\nCOMMENT ON VIEW accord\.consumer_status .*?;\n)/ms;
my ($function) =
  $install =~ /^(CREATE FUNCTION accord\.grant_auditor\(role regrole\).*?;\nCOMMENT ON FUNCTION accord\.grant_auditor.*?;\n)/ms;
ok($view && $function, 'the install script has what an older one is made without');
install_script('pg_accord--0.9.sql', <<"SQL");
$install
DROP VIEW accord.consumer_status;
DROP FUNCTION accord.grant_auditor(regrole);
ALTER TABLE accord.consumer DROP COLUMN description;
SQL
my $add = <<"SQL";
ALTER TABLE accord.consumer ADD COLUMN description text;
REVOKE ALL ON accord.consumer FROM PUBLIC;
$function
REVOKE ALL ON FUNCTION accord.grant_auditor(regrole) FROM PUBLIC;
SQL
install_script("pg_accord--0.9--$present.sql", "$add\n$view\nREVOKE ALL ON accord.consumer_status FROM PUBLIC;\nGRANT SELECT ON accord.consumer_status TO pg_monitor;\n");
try_version('0.9', $fresh);

# ---- a difference is found

install_script('pg_accord--0.8.sql', slurp_file("$directory/pg_accord--0.9.sql"));
install_script("pg_accord--0.8--$present.sql", $add . $view =~ s/COMMENT ON VIEW.*//sr);
value('postgres', 'CREATE DATABASE wrong');
value('wrong', q{CREATE EXTENSION pg_accord VERSION '0.8'});
value('wrong', 'ALTER EXTENSION pg_accord UPDATE');
my @found = differences(catalogue($node, 'wrong'), $fresh);
like(join("\n", @found), qr/^- comment: view accord\.consumer_status/m, 'a comment that an update forgot is found');
$node->stop;
done_testing();
