# Remote ids: what a channel calls a thing is mined from its answers and used by later requests; routes are chosen by
# whether it is known, children wait for their parents' ids, a conflict is looked up and adopted. All of it across kills
# of the dispatcher and of the server.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP qw(decode_json encode_json);
use Test::More;

my $node = new_node('main', "log_statement = none\nrestart_after_crash = on\naccord.restart_interval = '100 ms'\n");
my $stub = start_stub();
my @script;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub requests { my ($path) = @_; return grep { $_->{path} =~ m{^/$path(/|\?|$)} } $stub->log; }
sub lines { my ($path) = @_; return map { "$_->{method} $_->{path}" } requests($path); }

sub answers
{
    my (@rules) = @_;
    push @script, @rules;
    $stub->script(\@script);
    return;
}

# A channel with three routes: create, update, delete.
sub crud
{
    my ($name, %column) = @_;
    my $options = delete $column{options} || {};
    my %update = %{ delete $column{update} || {} };
    channel($node, $stub, $name, base_url => $stub->url("/$name"), retry_base => '10 ms', retry_cap => '20 ms', %$options);
    my %all = (topic => "$name.*", remote => 'code', %column);
    route($node, $name, %all, remote_when => 'unknown', ops => '{insert,update,event}', method => 'POST', path => '/codes');
    route($node, $name, %all, remote_when => 'known', ops => '{insert,update,event}', method => 'PUT', path => '/codes/{remote.id}', %update);
    route($node, $name, %all, remote_when => 'known', ops => '{delete}', method => 'DELETE', path => '/codes/{remote.id}');
    return;
}

sub event { my ($name, $key, $op, %column) = @_; return events($node, { topic => "$name.changed", key => $key, op => $op || 'update', %column }); }
sub outcomes
{
    my ($name, $key) = @_;
    return sql("SELECT string_agg(concat_ws(' ', outcome, status, error), ', ' ORDER BY recorded_at, attempt) FROM accord.attempt WHERE channel = '$name' AND key = '$key'");
}
sub remote { my ($name) = @_; return sql("SELECT string_agg(concat_ws(' ', kind, key, id, version, etag), ', ' ORDER BY key) FROM accord.remote_id WHERE channel = '$name'"); }

# ---- create, update, delete

crud('crud', remote_id => '$.data.id', remote_version => '$.data.version');
answers({ match => { path_regex => '^/crud', method => 'POST' }, do => { status => 201, body => { data => { id => 'c 7', version => 1 } } } },
    { match => { path_regex => '^/crud', method => 'PUT' }, do => { body => { data => { version => 2 } } } },
    { match => { path_regex => '^/crud', method => 'DELETE', times => 1 }, do => { status => 204 } },
    { match => { path_regex => '^/crud', method => 'DELETE' }, do => { status => 404 } });
event('crud', 'k', 'delete');
wait_for_delivery($node);
is(sql(q{SELECT note FROM accord.preview((SELECT event_id FROM accord.event_log WHERE topic = 'crud.changed'), 'crud')}),
    'no route takes it, by what the channel has of it', '... as a preview says');
is(outcomes('crud', 'k'), 'skipped there is nothing to send: no route takes it, by what the channel has of it',
    'a delete of what never had an id is nothing to send');
event('crud', 'k', 'insert');
wait_for_delivery($node);
is(remote('crud'), 'code k c 7 1', 'an id and a version, mined from the answer');
event('crud', 'k');
wait_for_delivery($node);
is(remote('crud'), 'code k c 7 2', '... each kept until it changes');
like(sql(q{SELECT method || ' ' || url FROM accord.preview((SELECT event_id FROM accord.event_log WHERE topic = 'crud.changed' AND op = 'update'), 'crud')}),
    qr{^PUT http://.*/crud/codes/c%207$}, 'a preview knows what the channel has');
event('crud', 'k', 'delete');
wait_for_delivery($node);
is(remote('crud'), '', 'a delete forgets them');
event('crud', 'k', 'insert');
wait_for_delivery($node);
event('crud', 'k', 'delete');
wait_for_delivery($node);
is(join(', ', lines('crud')), 'POST /crud/codes, PUT /crud/codes/c%207, DELETE /crud/codes/c%207, POST /crud/codes, DELETE /crud/codes/c%207',
    'the route by what the channel has');
like(outcomes('crud', 'k'), qr/delivered 404 it was gone already$/, 'a delete that meets 404 has succeeded');
is(remote('crud'), '', '... and forgets');
event('crud', undef, 'update');
wait_for_delivery($node);
is((lines('crud'))[-1], 'POST /crud/codes', 'what has no key has no id');
is(remote('crud'), '', '... and none is kept');

# One after another, though they come at once: the second finds what the first has made.
crud('burst', remote_id => '$.id', coalesce => undef);
answers({ match => { path_regex => '^/burst', method => 'POST' }, do => { body => { id => 'b' } } });
sql(q{INSERT INTO accord.outbox (topic, key) SELECT 'burst.changed', 'k' || g % 3 FROM generate_series(1, 30) g});
wait_for_delivery($node);
is(scalar(grep { /^POST/ } lines('burst')), 3, 'one create for each key');
is(scalar(grep { /^PUT/ } lines('burst')), 27, '... and the rest updates');

# ---- headers: Location, ETag, If-Match

crud('dav', remote_id => 'Location', remote_etag => 'ETag', headers => '{"If-Match": "{remote.etag}"}');
answers({ match => { path_regex => '^/dav', method => 'POST' }, do => { status => 201, headers => { Location => 'http://elsewhere/x/codes/a%20b/?q', ETag => '"v1"' } } },
    { match => { path_regex => '^/dav', method => 'PUT', header => { 'If-Match' => '"v1"' } }, do => { headers => { ETag => '"v2"' } } },
    { match => { path_regex => '^/dav', method => 'PUT' }, do => { status => 200 } });
event('dav', 'k', $_) && wait_for_delivery($node) for 'insert', 'update', 'update';
is(remote('dav'), 'code k a b "v2"', 'id and entity tag from headers');
is(join(', ', map { $_->{headers}{'if-match'} // '-' } requests('dav')), '-, "v1", "v2"', 'If-Match as it is known, and none where it is not');

# An answer that tells no id.
crud('mute', remote_id => '$.id');
event('mute', 'k', 'insert');
wait_for_delivery($node);
is(outcomes('mute', 'k') . '|' . remote('mute'), 'delivered 200 the answer tells no id by remote_id|', 'an answer that tells none is said so');

# ---- conflicts

crud('adopt', remote_id => '$.id', lookup => encode_json({ path => '/codes?code={payload.code}', id => '$.codes[*] ? (@.code == $payload.code).id' }));
answers({ match => { path_regex => '^/adopt/codes$', method => 'POST' }, do => { status => 409 } },
    { match => { path_regex => '^/adopt/codes\?code=4711', method => 'GET' }, do => { body => { codes => [ { code => '1', id => 'x' }, { code => '4711', id => 'y' } ] } } });
event('adopt', 'k', 'insert', payload => '{"code": "4711"}');
wait_for_delivery($node);
is(join(', ', lines('adopt')), 'POST /adopt/codes, GET /adopt/codes?code=4711, PUT /adopt/codes/y', 'a conflict is looked up, adopted, and goes on as an update');
is(remote('adopt'), 'code k y', '... under the id that was found');
like(outcomes('adopt', 'k'), qr/^conflict 409 HTTP status 409, conflict 200 it was looked up: the channel has it, delivered 200/, 'which is told');

# An update that was overtaken: it looks up the version and tries again.
crud('stale', remote_id => '$.id', remote_etag => 'ETag', headers => '{"If-Match": "{remote.etag}"}', lookup => encode_json({ path => '/codes/{remote.id}', etag => 'ETag' }));
answers({ match => { path_regex => '^/stale', method => 'POST' }, do => { body => { id => 's' }, headers => { ETag => '"1"' } } },
    { match => { path_regex => '^/stale', method => 'GET' }, do => { headers => { ETag => '"9"' } } },
    { match => { path_regex => '^/stale', method => 'PUT', header => { 'If-Match' => '"9"' } }, do => { status => 200 } },
    { match => { path_regex => '^/stale', method => 'PUT' }, do => { status => 412 } });
event('stale', 'k', $_) && wait_for_delivery($node) for 'insert', 'update';
is(join(', ', lines('stale')), 'POST /stale/codes, PUT /stale/codes/s, GET /stale/codes/s, PUT /stale/codes/s', '412: looked up, and sent under the new entity tag');

# Nothing is found: the create is sent again.
crud('ghost', remote_id => '$.id', lookup => encode_json({ path => '/find', id => '$.id' }));
answers({ match => { path_regex => '^/ghost/codes', method => 'POST', times => 1 }, do => { status => 409 } },
    { match => { path_regex => '^/ghost/codes', method => 'POST' }, do => { body => { id => 'g' } } },
    { match => { path_regex => '^/ghost/find', times => 1 }, do => { status => 503 } }, { match => { path_regex => '^/ghost/find' }, do => { status => 404 } });
event('ghost', 'k', 'insert');
wait_for_delivery($node);
is(join(', ', lines('ghost')), 'POST /ghost/codes, GET /ghost/find, GET /ghost/find, POST /ghost/codes', 'a look-up that fails is repeated; nothing found: sent again');

# Gone: what was updated is not there any more, a rule says.
crud('gone', remote_id => '$.id');
insert_row($node, 'rule', channel => 'gone', status => '404', outcome => 'gone');
answers({ match => { path_regex => '^/gone', method => 'POST' }, do => { body => { id => 'n' } } }, { match => { path_regex => '^/gone', method => 'PUT' }, do => { status => 404 } });
event('gone', 'k', $_) && wait_for_delivery($node) for 'insert', 'update';
is(join(', ', lines('gone')), 'POST /gone/codes, PUT /gone/codes/n, POST /gone/codes', 'what is gone is made anew, where a rule says so');

# Batches: each item's own id, conflict and version; a conflict is looked up by itself.
channel($node, $stub, 'bulk', base_url => $stub->url('/bulk'), retry_base => '10 ms', retry_cap => '20 ms', enabled => 'false');
route($node, 'bulk', topic => 'bulk.*', path => '/_bulk', batch_size => 10, batch_items => '', batch_item_id => 'id', batch_item_error => 'error', remote => 'doc', remote_version => '$.rev',
    lookup => encode_json({ path => '/{key}', version => '$._rev' }));
insert_row($node, 'rule', channel => 'bulk', item => 'true', body => '$ ? (@.error == "conflict")', outcome => 'conflict');
answers({ match => { path_regex => '^/bulk/_bulk', times => 1 }, do => { status => 201, body => [ { id => 'k1', rev => '1-a' }, { id => 'k2', error => 'conflict' }, { id => 'k3', error => 'forbidden' } ] } },
    { match => { path_regex => '^/bulk/_bulk' }, do => { status => 201, body => [ { id => 'k2', rev => '8-b' } ] } },
    { match => { path_regex => '^/bulk/k2' }, do => { body => { _rev => '7-c' } } });
event('bulk', "k$_") for 1 .. 3;
sql(q{UPDATE accord.channel SET enabled = true WHERE name = 'bulk'});
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt WHERE channel = 'bulk' AND outcome = 'delivered'}, 2);
is(join(', ', lines('bulk')), 'POST /bulk/_bulk, GET /bulk/k2, POST /bulk/_bulk', 'an item in conflict is looked up, and goes again');
is(remote('bulk'), 'doc k1 1-a, doc k2 8-b', '... each with its version');
is(sql(q{SELECT key || ' ' || error FROM accord.dead_letter WHERE channel = 'bulk'}), 'k3 forbidden', '... and what is refused is refused');

# ---- parents

channel($node, $stub, 'tree', base_url => $stub->url('/tree'), retry_base => '10 ms', retry_cap => '20 ms');
route($node, 'tree', topic => 'room.*', path => '/rooms', remote => 'room', remote_id => '$.id');
route($node, 'tree', topic => 'rate.*', path => '/rooms/{needs.room.id}/rates', needs => '{"room": "{payload.room}"}', coalesce => undef);
answers({ match => { path_regex => '^/tree/rooms$' }, do => { body => { id => 'r1' } } });
event("rate", "p$_", "insert", channels => "{tree}", payload => q({"room": "7"})) for 1 .. 3;
sql(q{INSERT INTO accord.outbox (topic, key, payload) SELECT 'rate.set', 'n' || g, '{"room": "7"}' FROM generate_series(1, 5) g});
events($node, { topic => 'rate.set', key => 'other', payload => '{"room": "8"}' }, { topic => 'rate.set', key => 'lost', payload => '{}' });
wait_for_rows($node, q{SELECT key || ' ' || error FROM accord.dead_letter WHERE channel = 'tree'}, 'lost the event does not say which room it needs');
wait_for_rows($node, q{SELECT count(*) FROM accord.backlog WHERE channel = 'tree' AND state = 'waiting'}, 9);
is(scalar(lines('tree')), 0, 'children wait for their parent');
kill_dispatcher($node);
events($node, { topic => 'rate.set', key => 'late', payload => '{"room": "7"}' });
events($node, { topic => 'room.made', key => '7', payload => '{}' });
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt WHERE channel = 'tree' AND outcome = 'delivered'}, 10);
is(join(' ', sort { $a cmp $b } map { my $l = $_; $l =~ s/.* //; $l } lines('tree')), '/tree/rooms ' . join(' ', ('/tree/rooms/r1/rates') x 9),
    'and go, also after a kill, once it has an id');
is((lines('tree'))[0], 'POST /tree/rooms', '... which is first');
sql(q{INSERT INTO accord.remote_id (channel, kind, key, id) VALUES ('tree', 'room', '8', 'by-hand')});
wait_for_delivery($node);
is((lines('tree'))[-1], 'POST /tree/rooms/by-hand/rates', 'an id that is given by hand lets those go that wait for it');

# A child that waits too long is given up; one that expires is not sent.
sql(q{UPDATE accord.channel SET max_age = '1 s' WHERE name = 'tree'});
events($node, { topic => 'rate.set', key => 'old', payload => '{"room": "9"}' });
wait_for_rows($node, q{SELECT key || ' ' || error FROM accord.dead_letter WHERE channel = 'tree' AND key = 'old'}, 'old it needs room "9", of which the channel has no id');
sql(q{UPDATE accord.channel SET max_age = '1 h' WHERE name = 'tree'});
events($node, { topic => 'rate.set', key => 'past', payload => '{"room": "9"}', expires_at => \q{now() + interval '300 ms'} });
wait_for_rows($node, q{SELECT outcome FROM accord.attempt WHERE channel = 'tree' AND key = 'past'}, 'expired');
my $discarded = event('rate', 'never', 'insert', channels => '{tree}', payload => '{"room": "9"}');
sql("SELECT accord.discard(uuid '$discarded')");
wait_for_rows($node, q{SELECT outcome FROM accord.attempt WHERE channel = 'tree' AND key = 'never'}, 'discarded');

# ---- kills: the answer to a create is lost with the dispatcher

crud('kill', remote_id => '$.id', lookup => encode_json({ path => '/find/{key}', id => '$.id' }), options => { timeout => '1 h' });
answers({ match => { path_regex => '^/kill/codes', method => 'POST', times => 1 }, do => { gate => 'create', status => 201, body => { id => 'z' } } },
    { match => { path_regex => '^/kill/codes', method => 'POST' }, do => { status => 409 } },
    { match => { path_regex => '^/kill/find', times => 1 }, do => { gate => 'find', body => { id => 'z' } } },
    { match => { path_regex => '^/kill/find' }, do => { body => { id => 'z' } } });
event('kill', 'k', 'insert');
poll_until(sub { lines('kill') == 1 }, 'the create');
kill_dispatcher($node);
poll_until(sub { lines('kill') == 3 }, 'the look-up');
crash_server($node);
event('kill', 'k', 'update');
$stub->open_gate($_) for 'create', 'find';
wait_for_delivery($node);
is(remote('kill'), 'code k z', 'a create whose answer was lost is adopted, through kills of dispatcher and server');
is((lines('kill'))[-1], 'PUT /kill/codes/z', '... and what came after it is an update');

done_testing();
