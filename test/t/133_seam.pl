# examples/smart-lock.sql against Seam's own fake of its API: a code for each stay is created, changed and deleted, adopted when
# it is there already, and gone without harm; asynchronous answers, and an outage.
use strict;
use warnings FATAL => 'all';

use Accord;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use IO::Socket::INET;
use JSON::PP qw(decode_json encode_json);
use POSIX ();
use PostgreSQL::Test::Cluster;
use Test::More;

my $modules = $ENV{ACCORD_NODE_MODULES};
plan skip_all => 'not installed: @seamapi/fake-seam-connect of npm (ACCORD_NODE_MODULES)' unless defined $modules && -e "$modules/.bin/fake-seam-connect";

my $port = PostgreSQL::Test::Cluster::get_free_port();
my $server = fork;
if ($server == 0)
{
    open STDOUT, '>', '/dev/null';
    open STDERR, '>', '/dev/null';
    $ENV{PORT} = $port;
    exec "$modules/.bin/fake-seam-connect", '--seed' or POSIX::_exit(127);
}
END { my $status = $?; kill 'TERM', $server if $server; $? = $status; }

# One request of our own, as a person at Seam's console.
sub seam
{
    my ($path, $body) = @_;
    my $json = encode_json($body);
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or return;
    print $socket "POST $path HTTP/1.1\r\nHost: seam\r\nConnection: close\r\nAuthorization: Bearer seam_apikey1_token\r\n",
      "Content-Type: application/json\r\nContent-Length: ", length $json, "\r\n\r\n", $json;
    my $answer = do { local $/ = undef; <$socket> };
    return unless defined $answer && $answer =~ /\r\n\r\n.*?(\{.*\})/s;
    return decode_json($1);
}

my $node = new_node('main', "log_statement = none\n");
poll_until(sub { seam('/devices/list', {}) }, 'the fake of Seam');
$node->psql('postgres', '\i ' . abs_path(dirname(__FILE__) . '/../..') . '/examples/smart-lock.sql', on_error_stop => 1, on_error_die => 1,
    extra_params => [ '-v', "url=http://127.0.0.1:$port", '-v', 'key=seam_apikey1_token' ]);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub settled { wait_for_rows($node, q{SELECT count(*) FROM accord.owed()}, 0); return; }

# The codes on a door, as Seam has them.
sub door
{
    my $codes = seam('/access_codes/list', { device_id => 'august_device_1' })->{access_codes};
    return join ', ', sort map { join ' ', $_->{code}, $_->{name}, substr($_->{ends_at} || '', 0, 10) } @$codes;
}

sql(q{ALTER TABLE stay ALTER door SET DEFAULT 'august_device_1';
    UPDATE accord.rate_limit SET amount = 1000; UPDATE accord.route SET poll = poll || '{"every": "100 ms"}';
    UPDATE accord.channel SET retry_base = '50 ms', retry_cap = '100 ms'});
sql(q{INSERT INTO stay VALUES ('s1', DEFAULT, 'Ann', '4711', '2027-01-01 15:00+00', '2027-01-03 11:00+00')});
settled();
is(door(), '4711 Ann 2027-01-03', 'a code for the stay');
sql(q{UPDATE stay SET departure = '2027-01-05 11:00+00' WHERE id = 's1'});
settled();
is(door(), '4711 Ann 2027-01-05', 'it is valid as long as the stay is');
is(sql(q{SELECT count(*) FROM accord.remote_id WHERE channel = 'lock'}), 1, '... under its one id');
like(sql(q{SELECT string_agg(outcome, ' ' ORDER BY recorded_at, attempt) FROM accord.attempt WHERE channel = 'lock' AND key = 's1'}), qr/^delivered accepted (accepted )*delivered$/,
    'an update is an action, which is asked about until it is done');
sql(q{UPDATE stay SET cancelled = true WHERE id = 's1'});
settled();
is(door(), '', 'a stay that is cancelled has none');
is(sql(q{SELECT count(*) FROM accord.remote_id}), 0, '... nor an id');

# There already: as after a create whose answer was lost.
seam('/access_codes/create', { device_id => 'august_device_1', code => '1234', name => 'by hand' });
sql(q{INSERT INTO stay VALUES ('s2', DEFAULT, 'Bob', '1234', '2027-02-01 15:00+00', '2027-02-02 11:00+00')});
settled();
is(door(), '1234 Bob 2027-02-02', 'one that is there already is adopted');
like(sql(q{SELECT string_agg(concat_ws(' ', outcome, status), ', ' ORDER BY recorded_at, attempt) FROM accord.attempt WHERE key = 's2'}), qr/^conflict 409, conflict 200, /, '... by a look-up');

# Gone: deleted by somebody else.
seam('/access_codes/delete', { access_code_id => sql(q{SELECT id FROM accord.remote_id WHERE key = 's2'}) });
sql(q{UPDATE stay SET guest = 'Bobby' WHERE id = 's2'});
settled();
is(door(), '1234 Bobby 2027-02-02', 'one that somebody has deleted is made anew');
seam('/access_codes/delete', { access_code_id => sql(q{SELECT id FROM accord.remote_id WHERE key = 's2'}) });
sql(q{DELETE FROM stay WHERE id = 's2'});
settled();
is(sql(q{SELECT outcome || ' ' || status FROM accord.attempt WHERE key = 's2' ORDER BY seq DESC, recorded_at DESC LIMIT 1}), 'delivered 404', 'a second delete has succeeded');

# An outage of Seam; what is created, changed and cancelled meanwhile.
seam('/_fake/simulate_workspace_outage', { workspace_id => 'seed_workspace_1', routes => [ '/access_codes/create' ] });
sql(q{INSERT INTO stay SELECT 'o' || g, 'august_device_1', 'Guest ' || g, 5000 + g, '2027-03-01 15:00+00', '2027-03-02 11:00+00' FROM generate_series(1, 5) g});
wait_for_rows($node, q{SELECT count(DISTINCT key) > 0 FROM accord.attempt WHERE status = 503}, 't');
sql(q{UPDATE stay SET departure = '2027-03-09 11:00+00' WHERE id = 'o1'; DELETE FROM stay WHERE id = 'o2'});
seam('/_fake/simulate_workspace_outage', { workspace_id => 'seed_workspace_1', routes => [] });
settled();
is(door(), '5001 Guest 1 2027-03-09, 5003 Guest 3 2027-03-02, 5004 Guest 4 2027-03-02, 5005 Guest 5 2027-03-02', 'after an outage the doors are as the stays');

# The whole at once, and the server killed in the middle.
sql(q{INSERT INTO stay SELECT 'm' || g, 'august_device_1', 'Many ' || g, 6000 + g, '2027-04-01 15:00+00', '2027-04-02 11:00+00' FROM generate_series(1, 60) g});
poll_until(sub { sql(q{SELECT count(*) FROM accord.attempt WHERE key LIKE 'm%'}) > 5 }, 'some of many');
crash_server($node);
settled();
is(scalar(my @many = grep { /Many/ } split /, /, door()), 60, 'each of many stays has a code, once, across a crash');
is(sql(q{SELECT count(*) FROM accord.remote_id WHERE key LIKE 'm%' AND id IS NOT NULL}), 60, '... and its id is known');
is(sql(q{SELECT count(*) FROM accord.dead_letter}), 0, 'nothing was given up');

done_testing();
