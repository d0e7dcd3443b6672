# Asynchronous APIs: what was accepted is asked about until it is settled, or confirmed by a callback; what nobody settles
# in time is not known. And commands in doubt that are looked up before they are repeated. All across kills.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP qw(encode_json);
use Test::More;

my $node = new_node('main', "log_statement = none\nrestart_after_crash = on\naccord.restart_interval = '100 ms'\n");
send_everything($node);
my $stub = start_stub();
my @script;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub requests { my ($path) = @_; return grep { $_->{path} =~ m{^/$path(/|\?|$)} } $stub->log; }
sub settled { my ($name) = @_; wait_for_rows($node, "SELECT count(*) FROM accord.owed() WHERE channel = '$name'", 0); return; }
sub lines { my ($path) = @_; return join ', ', map { "$_->{method} $_->{path}" } requests($path); }
sub answers { my (@rules) = @_; push @script, @rules; $stub->script(\@script); return; }
sub state_of { my ($name) = @_; return sql("SELECT string_agg(key || ' ' || state, ', ' ORDER BY key) FROM accord.backlog WHERE channel = '$name'"); }
sub outcomes { my ($name) = @_; return sql("SELECT string_agg(concat_ws(' ', outcome, status, error), ', ' ORDER BY recorded_at, attempt) FROM accord.attempt WHERE channel = '$name'"); }

sub channel_of
{
    my ($name, %route) = @_;
    my $options = delete $route{options} || {};
    channel($node, $stub, $name, base_url => $stub->url("/$name"), retry_base => '10 ms', retry_cap => '20 ms', %$options);
    route($node, $name, topic => $name, path => '/jobs', %route);
    return;
}

# ---- polled

channel_of('path', poll => encode_json({ path => '/jobs/{answer.job.id}?k={key}', every => '20 ms' }), remote => 'job', remote_id => '$.job.id');
insert_row($node, 'rule', channel => 'path', position => 1, body => '$.job.status == "pending"', outcome => 'accepted');
insert_row($node, 'rule', channel => 'path', position => 2, body => '$.job.status == "failed"', outcome => 'rejected', error => '$.job.why');
answers({ match => { path_regex => '^/path/jobs$', method => 'POST' }, do => { status => 202, body => { job => { id => 'j 1', status => 'pending' } } } },
    { match => { path_regex => '^/path/jobs/j%201\?k=ok', times => 2 }, do => { body => { job => { id => 'j 1', status => 'pending' } } } },
    { match => { path_regex => '^/path/jobs/j%201\?k=ok', times => 1 }, do => { status => 503 } },
    { match => { path_regex => '^/path/jobs/j%201\?k=bad' }, do => { body => { job => { status => 'failed', why => 'no battery' } } } });
events($node, { topic => 'path', key => 'ok' });
wait_for_delivery($node);
like(lines('path'), qr{^POST /path/jobs, (GET /path/jobs/j%201\?k=ok, ){3}GET /path/jobs/j%201\?k=ok$}, 'accepted: asked until it is done, whatever becomes of a question');
like(outcomes('path'), qr/^accepted 202, accepted 200.*, accepted 200.*, retry 503 HTTP status 503, delivered 200$/, 'as attempt_log tells');
is(sql(q{SELECT attempts || state FROM accord.backlog_log WHERE channel = 'path' ORDER BY version DESC LIMIT 1}), '1delivered', '... none of which counts as an attempt');
is(sql(q{SELECT kind || ' ' || key || ' ' || id FROM accord.remote_id}), 'job ok j 1', 'the id is known from the first answer on');
events($node, { topic => 'path', key => 'bad' });
wait_for_rows($node, q{SELECT key || ' ' || error FROM accord.dead_letter WHERE channel = 'path'}, 'bad no battery');
pass('what is said to have failed is a dead letter');

# A status address in a header, at the channel and elsewhere; the next of the key waits.
channel_of('header', poll => encode_json({ location => 'Operation-Location', every => '20 ms' }), options => { retry_base => '1 h', retry_cap => '1 h' });
answers({ match => { path_regex => '^/header/jobs', body_regex => 'here', times => 1 }, do => { status => 202, headers => { 'Operation-Location' => '/header/ops/1' } } },
    { match => { path_regex => '^/header/jobs', body_regex => 'there' }, do => { status => 202, headers => { 'Operation-Location' => 'http://127.0.0.2:9/ops/1' } } },
    { match => { path_regex => '^/header/ops/1' }, do => { gate => 'op', status => 200 } });
events($node, { topic => 'header', key => 'k', payload => '"here"' }, { topic => 'header', key => 'k', payload => '"next"' }, { topic => 'header', key => 'x', payload => '"there"' });
poll_until(sub { lines('header') =~ m{GET /header/ops/1} }, 'the question');
is(scalar(grep { $_->{body} =~ /next/ } requests('header')), 0, 'the next event of the key waits for what was accepted');
$stub->open_gate('op');
poll_until(sub { grep { $_->{body} =~ /next/ } requests('header') }, 'the next event');
wait_for_rows($node, q{SELECT outcome || ' ' || error FROM accord.attempt WHERE channel = 'header' AND key = 'x'}, 'unclear its status address is not at the channel');
pass('a status address elsewhere is not followed');

# A deadline; and the server killed in between.
channel_of('late', mode => 'command', poll => encode_json({ path => '/ops', every => '200 ms', deadline => '3 s' }), options => { idempotency_header => undef });
answers({ match => { path_regex => '^/late' }, do => { status => 202 } });
events($node, { topic => 'late', key => 'k' });
poll_until(sub { lines('late') =~ m{GET} }, 'a question');
like(state_of('late'), qr/^k (accepted|held)$/, 'it is accepted');
kill_dispatcher($node);
wait_for_rows($node, q{SELECT state || ' ' || error FROM accord.backlog WHERE channel = 'late'}, 'held the channel accepted it, and did not say in time what became of it');
is(scalar(grep { $_->{method} eq 'POST' } requests('late')), 1, 'a command that is not settled in time is held, not repeated');

# Killed while it is accepted: asked on, not sent again.
channel_of('kill', poll => encode_json({ path => '/ops', every => '50 ms' }));
answers({ match => { path_regex => '^/kill/jobs' }, do => { status => 202 } }, { match => { path_regex => '^/kill/ops', times => 2 }, do => { status => 202 } },
    { match => { path_regex => '^/kill/ops', times => 1 }, do => { gate => 'killed', status => 200 } });
events($node, { topic => 'kill', key => 'k' });
poll_until(sub { requests('kill') >= 4 }, 'three questions');
crash_server($node);
$stub->open_gate('killed');
settled('kill');
is(scalar(grep { $_->{method} eq 'POST' } requests('kill')), 1, 'after a crash what was accepted is asked about, and not sent again');

# ---- confirmed

channel_of('callback', poll => encode_json({ deadline => '1 h' }), remote => 'job', remote_id => '$.id');
answers({ match => { path_regex => '^/callback', body_regex => '"a"' }, do => { status => 202, body => { id => 'ja' } } },
    { match => { path_regex => '^/callback', body_regex => '"b"' }, do => { status => 202, body => { id => 'jb' } } },
    { match => { path_regex => '^/callback', body_regex => '"c"' }, do => { status => 202, gate => 'answer' } });
is(sql(q{SELECT accord.confirm('callback', 'ja')}), 0, 'nothing has been accepted yet');
my @ids = events($node, map { { topic => 'callback', key => $_, payload => "\"$_\"" } } 'a', 'b', 'c', 'd');
wait_for_rows($node, q{SELECT string_agg(key || ' ' || state, ', ' ORDER BY key) FROM accord.backlog WHERE channel = 'callback' AND state = 'accepted'}, 'a accepted, b accepted');
is(sql(q{SELECT accord.confirm('callback', 'ja')}), 1, 'a callback settles it by the id');
is(sql(q{SELECT accord.confirm('callback', 'jb', failed => 'out of paper')}), 1, '... or says why it failed');
wait_for_rows($node, q{SELECT key || ' ' || error FROM accord.dead_letter WHERE channel = 'callback'}, 'b out of paper');
is(sql("SELECT accord.confirm(uuid '$ids[2]', 'callback')"), 1, 'one that comes before the answer');
is(sql(q{SELECT accord.confirm('callback', 'ja')}), 0, 'and what is settled stays so');
events($node, { topic => 'callback', key => 'z' });    # read after the confirmation
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt WHERE channel = 'callback' AND key = 'z'}, 1);
$stub->open_gate('answer');
settled('callback');
is(sql(q{SELECT string_agg(outcome, ' ' ORDER BY recorded_at) FROM accord.attempt WHERE channel = 'callback' AND key = 'c'}), 'delivered', '... counts when it is there');
is(sql(q{SELECT string_agg(outcome, ' ' ORDER BY recorded_at) FROM accord.attempt WHERE channel = 'callback' AND key = 'a'}), 'accepted delivered', 'as attempt_log tells');

# A person can still give it up.
events($node, { topic => 'callback', key => 'a', payload => '"a"' });
wait_for_rows($node, q{SELECT state FROM accord.backlog WHERE channel = 'callback' AND key = 'a'}, 'accepted');
is(sql(q{SELECT accord.discard('callback', state => 'accepted')}), 1, 'what was accepted can be discarded');
settled('callback');

# ---- in doubt

channel_of('verify', mode => 'command', ambiguous => 'verify', lookup => encode_json({ method => 'POST', path => '/search', body => { ref => '{event_id}', tags => [ '{key}', 1 ] }, id => '$.hits[*] ? (@.key == $key).id' }),
    options => { idempotency_header => undef });
answers({ match => { path_regex => '^/verify/jobs', body_regex => 'done|not', times => 2 }, do => { close_before_response => 1 } },
    { match => { path_regex => '^/verify/jobs', body_regex => 'crash', times => 1 }, do => { hang => 1 } },
    { match => { path_regex => '^/verify/search', times => 1 }, do => { status => 503 } },
    { match => { path_regex => '^/verify/search' }, do => { body => { hits => [ { key => 'done', id => 1 }, { key => 'crash', id => 2 } ] } } });
my $id = events($node, { topic => 'verify', key => 'done', payload => '"done"' });
events($node, { topic => 'verify', key => 'not', payload => '"not"' });
wait_for_rows($node, q{SELECT count(*) FROM accord.attempt WHERE channel = 'verify' AND outcome = 'delivered'}, 2);
is(scalar(grep { $_->{path} =~ /jobs/ && $_->{body} =~ /done/ } requests('verify')), 1, 'a command in doubt is looked up: it had been done');
is(scalar(grep { $_->{path} =~ /jobs/ && $_->{body} =~ /not/ } requests('verify')), 2, '... it had not, and is sent again');
is((grep { $_->{path} =~ /search/ && $_->{body} =~ /done/ } requests('verify'))[0]{body}, qq({"ref": "$id", "tags": ["done", 1]}), 'by a question of the route');
like(sql(q{SELECT string_agg(concat_ws(' ', outcome, error), ', ' ORDER BY recorded_at, attempt) FROM accord.attempt WHERE channel = 'verify' AND key = 'done'}),
    qr/^cut_off .*delivered it was looked up: it had been done$/, 'as attempt_log tells');
events($node, { topic => 'verify', key => 'crash', payload => '"crash"' });
poll_until(sub { grep { $_->{body} =~ /"crash"$/ } requests('verify') }, 'the command');
kill_dispatcher($node);
wait_for_rows($node, q{SELECT string_agg(concat_ws(' ', outcome, error), ', ' ORDER BY recorded_at, attempt) FROM accord.attempt WHERE channel = 'verify' AND key = 'crash'},
    'lost the server stopped while the request was in flight, delivered it was looked up: it had been done');
is(scalar(grep { $_->{path} =~ /jobs/ && $_->{body} =~ /crash/ } requests('verify')), 1, 'one that was under way at a crash is looked up, not repeated');

# Where it cannot be looked up, a person decides.
channel_of('blind', mode => 'command', ambiguous => 'verify', lookup => encode_json({ path => '/search' }), options => { idempotency_header => undef, max_attempts => 3 });
answers({ match => { path_regex => '^/blind/jobs' }, do => { close_before_response => 1 } }, { match => { path_regex => '^/blind' }, do => { status => 500 } });
events($node, { topic => 'blind', key => 'k' });
wait_for_rows($node, q{SELECT state FROM accord.backlog WHERE channel = 'blind'}, 'held');
is(lines('blind'), 'POST /blind/jobs, GET /blind/search, GET /blind/search', 'where it cannot be looked up it is held');

done_testing();
