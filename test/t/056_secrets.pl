# Secrets are sealed at rest by keys that are not in the database: set, used, carried over to a new key, dumped and
# restored; and nothing on the server's disk, in a dump or in pg_stat_activity shows them. Without a key they are stored
# as they are, with a warning; with a key that cannot be read, not at all.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main', "accord.function_timeout = 5s\n");
send_everything($node);
my $stub = start_stub();
my $key_file = $node->basedir . '/keys';
my @keys = map { $_ x 64 } 'a', 'b', 'c';

sub value { return $node->safe_psql('postgres', @_); }

sub write_keys
{
    my ($mode, @lines) = @_;
    unlink $key_file;
    open my $file, '>', $key_file or die "$key_file: $!";
    chmod $mode, $key_file or die "$key_file: $!";
    print $file map { "$_\n" } @lines;
    return close $file;
}

sub set
{
    my ($name, $value) = @_;
    value("ALTER SYSTEM SET $name = " . literal($value));
    $node->reload;
    $node->poll_query_until('postgres', "SELECT current_setting('$name') = " . literal($value)) or die;
    return;
}

# Stores a secret; returns what was said.
sub store
{
    my ($name, $text) = @_;
    my (undef, undef, $said) = $node->psql('postgres',
        'SET log_statement = none; ' . insert_sql('secret', name => $name, value => $text)
          . ' ON CONFLICT (name) DO UPDATE SET value = excluded.value', extra_params => [ '-v', 'VERBOSITY=verbose' ]);
    return $said;
}

sub stored { return value("SELECT value FROM accord.secret WHERE name = '$_[0]'"); }

# Sends an event to a channel; returns the credential that came with it.
my $sent = 0;
sub credential
{
    my ($channel) = @_;
    my $count = $stub->count;
    events($node, { topic => $channel, key => 'k' . ++$sent });
    $stub->wait_for_count($count + 1);
    return ($stub->log($count))[0]{headers}{authorization};
}

for my $name ('ota', 'pms')
{
    channel($node, $stub, $name, auth => qq({"type": "bearer", "secret": "$name"}), retry_base => '10 ms',
        retry_cap => '20 ms', max_attempts => 10000);
    route($node, $name, topic => $name);
}

# ---- without a key

like(store('ota', 'Plain-1'), qr/WARNING: .*secret "ota" is stored in plain text\nHINT:  Set accord\.secret_key_file/,
    'without a key a secret is stored with a warning');
is(stored('ota'), 'Plain-1', '... as it is');
is(credential('ota'), 'Bearer Plain-1', '... and used');
my (undef, undef, $error) = $node->psql('postgres', 'SELECT accord.reseal()');
like($error, qr/no key is configured/, 'nothing can be sealed');

# ---- keys that are none

set('accord.secret_key_file', $key_file);
my %broken = (
    'no such file' => [ qr/could not open file/ ],
    'a file others may read' => [ qr/others may read it/, 0644, $keys[0] ],
    'an empty file' => [ qr/it holds no key/, 0600, '# nothing here' ],
    'a short key' => [ qr/line 2 is not 64 hexadecimal digits/, 0600, $keys[0], substr($keys[0], 1) ],
    'a key with other characters' => [ qr/line 1 is not 64/, 0600, 'x' x 64 ],
    'too many keys' => [ qr/line 17 is not 64/, 0600, ($keys[0]) x 17 ]);
for my $what (sort keys %broken)
{
    my ($expected, @file) = @{ $broken{$what} };
    @file ? write_keys(@file) : unlink $key_file;
    my $said = store('pms', 'Never-Stored');
    like($said, qr/ERROR:  F0000: secret "pms" cannot be sealed: .*$expected.*\nHINT: /, "$what: refused");
    unlike($said, qr/Never-Stored.*HINT/s, '... without showing the secret');
}
is(stored('pms'), '', '... and nothing is stored in plain text instead');
my (undef, undef, $refusals) = $node->psql('postgres', 'SET log_statement = none;' . join(';',
        insert_sql('secret', name => 'no name', value => 'Never-Stored'), insert_sql('secret', name => 'two', value => "Never-Stored\nlines"),
        q{UPDATE accord.secret SET name = NULL, value = 'Never-Stored'}), on_error_stop => 0);
is(scalar(() = $refusals =~ /ERROR:/g), 3, 'bad names and values are refused');

# ---- sealed

write_keys(0600, '# the first one', "$keys[0]  # of May");
is(value('SELECT accord.reseal()'), 1, 'what was in plain text is sealed');
like(stored('ota'), qr/^sealed:1:[0-9a-f]{16}:[A-Za-z0-9+\/=]+$/, '... and looks like it');
is(value('SELECT accord.reseal()'), 0, '... once');
is(credential('ota'), 'Bearer Plain-1', '... and is used as before');
my $session = open_session($node);
$session->run(insert_sql('secret', name => 'pms', value => 'Sealed-2'));
is(value('SELECT query FROM pg_stat_activity WHERE pid = ' . $session->pid), '<a statement that sets accord.secret>',
    'pg_stat_activity does not show the statement');
$session->close;
is(credential('pms'), 'Bearer Sealed-2', 'a secret that was sealed at once is used');
my $before = stored('pms');
value(q{UPDATE accord.secret SET value = 'Sealed-2' WHERE name = 'pms'});
isnt(stored('pms'), $before, 'the same value sealed again looks different');

# ---- in its row only

my $foreign = stored('pms');
like(store('other', $foreign), qr/ERROR:  22023: secret "other" cannot be opened: it was changed, or sealed for another/,
    'a sealed value is of no use under another name');
like(store('pms', substr($foreign, 0, -6) . 'AAAA=='), qr/ERROR:  22023: secret "pms" cannot be opened/,
    '... nor when it was changed');
like(store('pms', 'sealed:1:' . substr($foreign, 9, 17)), qr/ERROR:  22023/, '... nor when it is cut off');
value(q{UPDATE accord.secret SET name = 'pms2' WHERE name = 'pms'});
value(q{UPDATE accord.channel SET auth = '{"type": "bearer", "secret": "pms2"}' WHERE name = 'pms'});
is(credential('pms'), 'Bearer Sealed-2', 'a row that is renamed is sealed for its new name');

# ---- another key

write_keys(0600, @keys[1, 0]);
$node->reload;
is(credential('ota'), 'Bearer Plain-1', 'an older key opens');
is(value('SELECT accord.reseal()'), 2, 'all are sealed with the key that was put in front');
write_keys(0600, $keys[1]);
$node->reload;
is(credential('pms'), 'Bearer Sealed-2', 'the older key can go');

# ---- the keys are gone for a while

unlink $key_file;
$node->reload;
value(q{UPDATE accord.channel SET description = 'read anew' WHERE name = 'ota'});
my $count = $stub->count;
events($node, { topic => 'ota', key => 'locked' });
wait_for_rows($node, q{SELECT DISTINCT outcome, sent, error FROM accord.attempt WHERE key = 'locked'},
    qq{retry||secret "ota" cannot be opened: could not open file "$key_file": No such file or directory});
is($stub->count, $count, 'without its key nothing is sent');
write_keys(0600, $keys[1]);
$node->reload;
$stub->wait_for_count($count + 1);
is(($stub->log($count))[0]{headers}{authorization}, 'Bearer Plain-1', '... and it goes once the key is back');

# ---- a command instead of a file

set('accord.secret_key_command', "cat $key_file");
set('accord.secret_key_file', '');
value(q{UPDATE accord.channel SET description = 'by command' WHERE name = 'pms'});
is(credential('pms'), 'Bearer Sealed-2', 'a command can give the keys');
set('accord.secret_key_command', 'false');
like(store('x', 'y'), qr/ERROR:  F0000: secret "x" cannot be sealed: accord\.secret_key_command gives no keys/,
    'one that fails is refused');
set('accord.secret_key_file', $key_file);

# ---- dumped and restored

my ($dump) = PostgreSQL::Test::Utils::run_command([ 'pg_dump', '-d', $node->connstr('postgres') ]);
like($dump, qr/sealed:1:/, 'sealed secrets are dumped');
unlike($dump, qr/Plain-1|Sealed-2/, '... as such');
value('CREATE DATABASE copy');
my $file = $node->basedir . '/dump.sql';
PostgreSQL::Test::Utils::run_command([ 'pg_dump', '-f', $file, '-d', $node->connstr('postgres') ]);
my (undef, $restored) =
  PostgreSQL::Test::Utils::run_command([ 'psql', '-Xqf', $file, '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('copy') ]);
unlike($restored, qr/ERROR|plain text|key/, 'the dump is restored');
is($node->safe_psql('copy', q{SELECT value FROM accord.secret WHERE name = 'pms2'}), stored('pms2'), '... as it was');
write_keys(0600, $keys[2]);
my ($status, undef, $said) =
  $node->psql('copy', q{INSERT INTO accord.secret (name, value) VALUES ('far', '} . stored('pms2') . q{')});
is($status, 0, 'where its key is not at hand, a sealed value is stored');
like($said, qr/WARNING:  secret "far" was sealed by a key that is not at hand\nHINT: /, '... with a warning');

# ---- nothing on disk

$node->stop;
my ($found) = PostgreSQL::Test::Utils::run_command([ 'grep', '-rl', 'Sealed-2', $node->data_dir ]);
is($found, '', 'no file of the cluster holds a secret that was set with a key');
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
ok($log !~ /[abc]{64}/, 'the log shows no key');
ok($log !~ /Never-Stored/, 'nor the statements that failed to set a secret');
ok($log =~ /STATEMENT:  <a statement that sets accord.secret>/, '... but that there were such');
done_testing();
