# Answers of real servers: CouchDB's protocol (pouchdb-server), where each document of a batch has a result and a revision of its
# own and a stale one is refused; and the emulators of Resend and Twilio, with idempotency keys and error codes.
use strict;
use warnings FATAL => 'all';

use Accord;
use IO::Socket::INET;
use JSON::PP qw(decode_json encode_json);
use POSIX ();
use PostgreSQL::Test::Cluster;
use Test::More;

my $modules = $ENV{ACCORD_NODE_MODULES};
plan skip_all => 'not installed: emulate of npm (ACCORD_NODE_MODULES)' unless defined $modules && -e "$modules/.bin/emulate";
my @servers;
END { my $status = $?; kill 'TERM', @servers if @servers; $? = $status; }

sub serve
{
    my ($port, @command) = @_;
    my $pid = fork;
    if ($pid == 0)
    {
        open STDOUT, '>', '/dev/null';
        open STDERR, '>', '/dev/null';
        chdir $ENV{TMPDIR} if defined $ENV{TMPDIR};
        exec @command or POSIX::_exit(127);
    }
    push @servers, $pid;
    return;
}

# One request of our own; returns status and what the body is as JSON.
sub call
{
    my ($port, $method, $path, $body, @headers) = @_;
    my $json = defined $body ? encode_json($body) : '';
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or return;
    print $socket join "\r\n", "$method $path HTTP/1.1", 'Host: x', 'Connection: close', 'Content-Type: application/json',
      'Content-Length: ' . length $json, @headers, '', $json;
    my $answer = do { local $/ = undef; <$socket> };
    return unless defined $answer && $answer =~ m{^HTTP/1.1 (\d+).*?\r\n\r\n[^\[\{]*([\[\{].*[\]\}])}s;
    return ($1, eval { decode_json($2) });
}

my $node = new_node('main', "log_statement = none\n");
my $couch = PostgreSQL::Test::Cluster::get_free_port();
my $twilio = PostgreSQL::Test::Cluster::get_free_port();
serve($twilio, "$modules/.bin/emulate", '--service', 'twilio,resend', '--port', $twilio);
my $resend = $twilio + 1;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub settled { my ($channel) = @_; wait_for_rows($node, "SELECT count(*) FROM accord.owed() WHERE channel = '$channel'", 0); return; }

# ---- Resend: the same key once, another content under it never

poll_until(sub { call($resend, 'GET', '/emails', undef, 'Authorization: Bearer re_test') }, 'the emulator');
sql(q{INSERT INTO accord.secret (name, value) VALUES ('key', 're_test')});
insert_row($node, 'channel', name => 'resend', base_url => "http://127.0.0.1:$resend", auth => '{"type": "bearer", "secret": "key"}', retry_base => '10 ms', retry_cap => '20 ms');
route($node, 'resend', topic => 'mail', path => '/emails', mode => 'command', remote => 'email', remote_id => '$.id');
insert_row($node, 'rule', channel => 'resend', status => '409', body => '$ ? (@.name == "invalid_idempotent_request")', outcome => 'rejected', error => '$.message');
my $mail = { from => 'a@example.com', to => 'b@example.com', subject => 'Your code', html => '4711' };
my $id = events($node, { topic => 'mail', key => 'm1', payload => encode_json($mail) });
settled('resend');
my $first = sql(q{SELECT id FROM accord.remote_id WHERE key = 'm1'});
like($first, qr/^[0-9a-f-]{36}$/, 'an e-mail has an id');
sql("SELECT accord.redeliver(uuid '$id')");
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt WHERE channel = 'resend' AND outcome = 'delivered'}, 2);
is(sql(q{SELECT id FROM accord.remote_id WHERE key = 'm1'}), $first, 'a repetition under its key is the same e-mail');
my (undef, $sent) = call($resend, 'GET', '/emails', undef, 'Authorization: Bearer re_test');
is(scalar @{ $sent->{data} }, 1, '... of which there is one');
sql(q{UPDATE accord.channel SET enabled = false WHERE name = 'resend'});
my $other = events($node, { topic => 'mail', key => 'm2', payload => encode_json($mail) });
call($resend, 'POST', '/emails', { %$mail, subject => 'Something else' }, 'Authorization: Bearer re_test', "Idempotency-Key: $other");
sql(q{UPDATE accord.channel SET enabled = true WHERE name = 'resend'});
events($node, { topic => 'mail', key => 'm3', payload => encode_json({ from => 'a@example.com' }) });
wait_for_rows($node, q{SELECT string_agg(key || ' ' || error, ', ' ORDER BY key) FROM accord.dead_letter WHERE channel = 'resend'},
    'm2 The idempotency key was used with a different request, m3 HTTP status 422');
pass('a key that was used for something else is refused, as a rule says, and so is what is invalid');

# ---- Twilio: error codes in the body

insert_row($node, 'channel', name => 'twilio', base_url => "http://127.0.0.1:$twilio", retry_base => '1 h', retry_cap => '1 h', idempotency_header => undef);
route($node, 'twilio', topic => 'sms', path => '/2010-04-01/Accounts/AC00000000000000000000000000000000/Messages.json', mode => 'command', body => 'form');
insert_row($node, 'rule', channel => 'twilio', body => '$ ? (@.code == 20003)', outcome => 'unauthorized', error => '$.message');
events($node, { topic => 'sms', key => '1', payload => '{"To": "+15550001", "Body": "4711"}' });
wait_for_rows($node, q{SELECT concat_ws(' ', outcome, status, error, rule IS NOT NULL) FROM accord.attempt WHERE channel = 'twilio'}, 'unauthorized 401 Authenticate t');
pass('an error code is what a rule says, in the words of the server');

# ---- CouchDB's protocol

SKIP:
{
    skip 'not installed: pouchdb-server of npm (ACCORD_NODE_MODULES)', 6 unless -e "$modules/.bin/pouchdb-server";
    serve($couch, "$modules/.bin/pouchdb-server", '-m', '-n', '--port', $couch);
    poll_until(sub { call($couch, 'GET', '/') }, 'pouchdb-server');
    call($couch, 'PUT', '/stock');
    sql(q{CREATE FUNCTION docs(e accord.event_log[]) RETURNS accord.http_request LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
        SELECT ROW(NULL, NULL, NULL, jsonb_build_object('docs', jsonb_agg(jsonb_strip_nulls(coalesce(d.payload, '{}')
            || jsonb_build_object('_id', d.key, '_rev', (accord.remote('couch', 'doc', d.key)).version, '_deleted', nullif(d.op = 'delete', false))))))::accord.http_request
        FROM unnest(e) d $$});
    insert_row($node, 'channel', name => 'couch', base_url => "http://127.0.0.1:$couch/stock", retry_base => '10 ms', retry_cap => '20 ms', enabled => 'false');
    route($node, 'couch', topic => 'stock', path => '/_bulk_docs', batch_size => 50, batch_function => 'docs', batch_items => '', batch_item_id => 'id', batch_item_error => 'error',
        remote => 'doc', remote_version => '$.rev', lookup => '{"path": "/{key}", "version": "$._rev"}');
    insert_row($node, 'rule', channel => 'couch', item => 'true', body => '$ ? (@.error == "conflict")', outcome => 'conflict');
    sql(q{INSERT INTO accord.outbox (topic, key, payload) SELECT 'stock', 'd' || g, jsonb_build_object('n', 1) FROM generate_series(1, 40) g});
    call($couch, 'PUT', '/stock/d7', { n => 'not ours' });
    sql(q{UPDATE accord.channel SET enabled = true WHERE name = 'couch'});
    settled('couch');
    is(sql(q{SELECT count(*) FROM accord.remote_id WHERE channel = 'couch' AND version LIKE '1-%'}), 39, 'each document of a batch has its revision');
    is(sql(q{SELECT version LIKE '2-%' FROM accord.remote_id WHERE key = 'd7'}), 't', 'one in conflict was looked up, and written over');
    my (undef, $d9) = call($couch, 'GET', '/stock/d9');
    call($couch, 'PUT', '/stock/d9', { _rev => $d9->{_rev}, n => 'somebody else' });
    sql(q{INSERT INTO accord.outbox (topic, key, payload) SELECT 'stock', 'd' || g, jsonb_build_object('n', 2) FROM generate_series(1, 40) g});
    sql(q{INSERT INTO accord.outbox (topic, key, op) SELECT 'stock', 'd' || g, 'delete' FROM generate_series(31, 40) g});
    settled('couch');
    my (undef, $all) = call($couch, 'GET', '/stock/_all_docs?include_docs=true');
    is(join(' ', sort { $a <=> $b } map { $_->{doc}{_id} =~ /(\d+)/ } @{ $all->{rows} }), join(' ', 1 .. 30), 'what was deleted is gone');
    is(scalar(grep { $_->{doc}{n} eq '2' } @{ $all->{rows} }), 30, '... and all others are as they were last, also one that somebody else had changed');
    is(sql(q{SELECT count(*) FROM accord.remote_id WHERE channel = 'couch'}), 30, 'revisions of what is gone are forgotten');
    is(sql(q{SELECT count(*) FROM accord.dead_letter WHERE channel = 'couch'}), 0, 'nothing was given up');
}

done_testing();
