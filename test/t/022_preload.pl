# Without shared_preload_libraries there is no commit order: events are refused, with what to do about it, and nothing
# else of the database suffers.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', undef, start => 0);
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\nmax_prepared_transactions = 5\n");
$node->start;

sub fails
{
    my ($sql, $expected, $what) = @_;
    my ($status, $out, $error) = $node->psql('postgres', $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
    isnt($status, 0, $what);
    return like($error, $expected, '... and says why');
}

my $missing = qr/ERROR:  55000: pg_accord must be loaded via shared_preload_libraries
HINT:  Add pg_accord to shared_preload_libraries in postgresql.conf and restart the server\./;
my ($status, undef, $error) = $node->psql('postgres', 'CREATE EXTENSION pg_accord');
is($status, 0, 'the extension can be created') or diag($error);
fails(q{INSERT INTO accord.outbox (topic) VALUES ('t')}, $missing, 'an event is refused');
fails(q{COPY accord.outbox (topic) FROM stdin;
t
\.
}, $missing, '... also by COPY');
fails('SELECT accord.safe_seq()', $missing, 'there is no safe number');
fails('SELECT * FROM accord.read(0)', $missing, '... and nothing to be read in order');
is($node->safe_psql('postgres', 'SELECT count(*) FROM accord.event_log'), 0, 'nothing was written');
$node->safe_psql('postgres', q{INSERT INTO accord.channel (name, base_url) VALUES ('ota', 'http://127.0.0.1:9')});
pass('channels can be configured');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE t (id integer);
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
    INSERT INTO accord.outbox (topic) VALUES (''t'');
    RETURN NEW;
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    RETURN NEW;
END';
CREATE TRIGGER tell BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION tell();
INSERT INTO t VALUES (1);
BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'p';
COMMIT PREPARED 'p';
SQL
is($node->safe_psql('postgres', 'SELECT count(*) FROM t'), 2, 'a transaction that was refused an event goes on');

# The same database with the library: what was made without it works.
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_accord'\n");
$node->restart;
$node->safe_psql('postgres', q{INSERT INTO accord.outbox (topic) VALUES ('t')});
is($node->safe_psql('postgres', 'SELECT count(*) FROM accord.read(0)'), 1, 'once it is loaded, events are taken');
is($node->safe_psql('postgres', 'SELECT accord.safe_seq() = last_value FROM accord.commit_seq'),
    't', '... nor a floor');

$node->stop;
done_testing();
