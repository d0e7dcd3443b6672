# The change feed of a real server (pouchdb-server): CouchDB's _changes, with tombstones, by its cursor.
use strict;
use warnings FATAL => 'all';

use Accord;
use File::Temp qw(tempdir);
use IO::Socket::INET;
use POSIX ();
use Test::More;

my $server = ($ENV{ACCORD_NODE_MODULES} || '') . '/pouchdb-server/bin/pouchdb-server';
plan skip_all => 'not installed: pouchdb-server of npm (ACCORD_NODE_MODULES)' unless -e $server;

my $port = PostgreSQL::Test::Cluster::get_free_port();
my $dir = tempdir(CLEANUP => 1);
my $pid = fork;
die "could not fork: $!" unless defined $pid;
if ($pid == 0)
{
    chdir $dir;
    open STDOUT, '>', "$dir/log" or POSIX::_exit(126);
    open STDERR, '>&', \*STDOUT or POSIX::_exit(126);
    exec 'node', $server, '-m', '-n', '-o', '127.0.0.1', '-p', $port, '-c', "$dir/config.json" or POSIX::_exit(127);
}
END { local $?; if ($pid) { kill 'TERM', $pid; waitpid $pid, 0; } }
poll_until(sub { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) }, 'pouchdb-server');

sub couch
{
    my ($method, $path, $body) = @_;
    open my $pipe, '-|', 'curl', '-sS', '-X', $method, '-H', 'Content-Type: application/json',
      defined $body ? ('-d', $body) : (), "http://127.0.0.1:$port$path"
      or die "curl: $!";
    my $answer = do { local $/ = undef; <$pipe> };
    return $answer;
}

my $node = new_node('main');
sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query); }
couch('PUT', '/stock');
couch('POST', '/stock/_bulk_docs', '{"docs": [' . join(',', map { qq({"_id": "p$_", "n": $_}) } 1 .. 7) . ']}');
insert_row($node, 'channel', name => 'couch', base_url => "http://127.0.0.1:$port");
sql('CREATE TABLE stock (id text PRIMARY KEY, n integer)');
insert_row($node, 'feed', name => 'stock', channel => 'couch', every => '1 day', path => '/stock/_changes',
    query => '{"include_docs": "true", "limit": "3", "since": "{cursor}"}', mode => 'cursor', paging => 'cursor', start => '0',
    items => '$.results[*]', next_cursor => '$.last_seq', deleted => '$.deleted == true',
    mapping => '{"target": "public.stock", "key": "$.id", "changes": {"n": "$.doc.n"}}');
wait_for_rows($node, 'SELECT state, cursor, parked FROM accord.feed_status', 'idle|7|0');
is(sql('SELECT count(*), sum(n) FROM stock'), '7|28', 'all documents are received, three at a time');
my ($rev) = couch('GET', '/stock/p1') =~ /"_rev":"([^"]+)"/;
couch('PUT', '/stock/p1', qq({"_id": "p1", "_rev": "$rev", "n": 100}));
($rev) = couch('GET', '/stock/p2') =~ /"_rev":"([^"]+)"/;
couch('DELETE', "/stock/p2?rev=$rev");
sql(q{SELECT accord.poll_feed('stock')});
wait_for_rows($node, 'SELECT count(*), sum(n) FROM stock', '6|125');
is(sql('SELECT cursor FROM accord.feed_status'), 9, 'changes and tombstones, from where the last poll ended');
done_testing();
