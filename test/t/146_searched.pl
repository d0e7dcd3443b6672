# What looks for secrets after all tests (test/lib/tables and test/lib/secrets) finds one in any table, in whichever form a
# column holds it, and in a log; but not where it is kept as it is because there is no key. Here secrets are put where they must not
# be, in a database that is gone before this cluster is looked at itself.
use strict;
use warnings FATAL => 'all';

use Accord;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use IPC::Run;
use MIME::Base64;
use Session;
use Test::More;

my $lib = abs_path(dirname(__FILE__) . '/../lib');
my $node = new_node('main', "log_statement = none\n", extension => 0);
my $secret = qq(Planted "here", and/there);
my $line = 'MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgxyz';
my $key = "-----BEGIN PRIVATE KEY-----\n$line\n-----END PRIVATE KEY-----";

sub run_sql { return $node->safe_psql('planted', @_); }

# What tables holds now, and the log: whether all is well, and what was said.
my $looks = 0;
sub search
{
    my ($log, $change) = @_;
    my $found = $node->basedir . '/look' . ++$looks;
    mkdir $found or die "$found: $!\n";
    PostgreSQL::Test::Utils::append_to_file("$found.log", $log || "LOG:  nothing\n");
    local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port);
    PostgreSQL::Test::Utils::system_or_bail("$lib/tables", $found, 'main-1');
    $change->($found) if $change;
    my $fine = IPC::Run::run([ "$lib/secrets", '--tables', $found, "$found.log" ], '>', \my $said);
    return ($fine ? 'nothing' : 'something', $said);
}

# In which tables something was found.
sub tables_in { my ($said) = @_; return join ' ', sort map { m{in: ([^\t]+)\t} } split /\n/, $said; }

$node->safe_psql('postgres', 'CREATE DATABASE planted');
run_sql('CREATE EXTENSION pg_accord; CREATE SCHEMA app; CREATE TABLE app.gone (t text); CREATE TABLE app.fine (t text)');
run_sql(insert_sql('secret', name => 'plain', value => $secret) . ';' . insert_sql('secret', name => 'key', value => $key) . ';'
      . insert_sql('secret', name => 'short', value => 'a word') . q{; INSERT INTO app.fine VALUES ('a word'), ('Planted'), ('here')});
my ($verdict, $said) = search();
is($verdict, 'nothing', 'where it is kept a secret may be') or diag $said;
like($said, qr/^2 secrets in 1 logs and \d+ rows of 2 databases$/m, '... and what was searched is told');
like($said, qr/rows/, 'a word of less than eight characters is none');

# ---- in tables

my %planted = (
    t => "SELECT 'x ' || s || ' y'", j => "SELECT jsonb_build_object('a', to_jsonb(ARRAY[s]))", b => "SELECT convert_to('x' || s, 'UTF8')",
    a => "SELECT ARRAY['x', s]", n => q{SELECT replace(encode(convert_to('ann:' || s, 'UTF8'), 'base64'), E'\n', '')},
    p => "SELECT '" . 'Planted%20%22here%22%2C%20and%2Fthere' . "'::text", k => "SELECT '$line'::text");
run_sql("CREATE TABLE app.$_ AS SELECT v FROM (SELECT " . literal($secret) . '::text AS s) x, LATERAL (' . $planted{$_} . ') y (v)')
  for sort keys %planted;
run_sql('INSERT INTO accord.attempt_log (slot, recorded_at, seq, ord, account, channel, attempt, outcome, sent, response) SELECT 0, now(), 1, 1, $$$$, $$c$$, 1, $$retry$$, $$yes$$, ' . literal("echo: $secret"));
($verdict, $said) = search();
is($verdict, 'something', 'found in tables');
is(tables_in($said), 'accord.attempt_log_0 ' . join(' ', map { "app.$_" } sort keys %planted),
    '... as text, in JSON, as bytes, in an array, in base64 after a name, percent-encoded, a line of a key, an excerpt');
run_sql(join ';', map { "DROP TABLE app.$_" } sort keys %planted);

# ---- where there is a key, nowhere

(undef, $said) = search(undef, sub {
    my ($file) = "$_[0]/main-1.planted";
    my $text = PostgreSQL::Test::Utils::slurp_file($file);
    unlink $file;
    PostgreSQL::Test::Utils::append_to_file($file, "sealing\n$text");
});
is(tables_in($said), 'accord.attempt_log_0 accord.secret accord.secret', 'with a key, accord.secret must not show it either');

# ---- in a log, but not what a test has said

(undef, $said) = search(qq(LOG:  statement: SELECT '$secret';\n\tand '$secret'\nERROR:  no such thing\nSTATEMENT:  SELECT '$secret'\n));
is(tables_in($said), 'accord.attempt_log_0', 'what a test has said is no finding');
(undef, $said) = search(qq(ERROR:  no such thing\nDETAIL:  It is "$secret".\n));
like($said, qr/look\d+\.log, line 2: the secret "Planted .* in: DETAIL: /, '... a message of the server is');
(undef, $said) = search(q{LOG:  statement: INSERT INTO accord.secret (name, value)
	VALUES ('x', 'It''s another');
LOG:  hm, It's another});
like($said, qr/line 1: the secret "It's another" in: LOG:  hm/, '... also of one that only a statement of the log has set');

# ---- and what could not be searched

my $session = open_session($node, 'planted');
$session->run('BEGIN; LOCK TABLE app.fine');
($verdict, $said) = search();
like($said, qr/^could not be read: main-1\.planted: .*lock timeout/m, 'a table that could not be read is told');
$session->close;
(undef, $said) = search(undef, sub { PostgreSQL::Test::Utils::append_to_file("$_[0]/other.began", "a server\n") });
like($said, qr/^not searched: other: it was not stopped in order$/m, '... and a cluster that nobody looked at');
$node->safe_psql('postgres', 'DROP DATABASE planted WITH (FORCE)');
$node->stop;
done_testing();
