# Feeds: each mode and way of paging; conditional requests; a failing item is parked and stops nothing; resets; silence.
use strict;
use warnings FATAL => 'all';

use Accord;
use JSON::PP;
use Test::More;

my $node = new_node('main');
my $stub = start_stub();
my $json = JSON::PP->new->canonical;

sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query); }

# A rule of the stub that answers a path with a page.
sub page
{
    my ($path, $body, %do) = @_;
    return { match => { path_regex => $path }, do => { body => $body, %do } };
}

sub paths { my ($after) = @_; return map { $_->{path} } $stub->log($after); }

# Polls a feed once, and waits until that poll is over; returns the paths that were asked for.
sub poll
{
    my ($feed) = @_;
    my $before = $stub->count;
    my $run = sql(run_query($feed));
    sql("SELECT accord.poll_feed('$feed')");
    poll_until(sub { sql(run_query($feed)) > $run }, "a poll of $feed");
    return paths($before);
}

sub run_query
{
    my ($feed) = @_;
    return "SELECT coalesce(max((accord.feed_state(f.id, '')).run), 0) FROM accord.feed f WHERE f.name = '$feed'";
}

sub received
{
    my ($topic) = @_;
    return sql("SELECT string_agg(coalesce(key, '-') || ':' || op || ':' || coalesce(payload ->> 'n', ''), ' ' ORDER BY tx_id, ord)
                FROM accord.event_log WHERE topic = '$topic'");
}

channel($node, $stub, 'ota', retry_base => '10 ms', retry_cap => '50 ms', route => 1);
sub feed
{
    my ($name, %column) = @_;
    return insert_row($node, 'feed', name => $name, channel => 'ota', every => '1 day',
        mapping => qq({"topic": "$name", "key": "\$.id", "changes": "\$"}), %column);
}

# A list, by numbers of pages; only what changed is received.
$stub->script([
        page('/list\?page=1$', [ { id => 'a', n => 1 }, { id => 'b', n => 1 } ]),
        page('/list\?page=2$', [ { id => 'c', n => 1 } ]),
        page('/list\?page=3$', [])
]);
feed('list', path => '/list', query => '{"page": "{page}"}', paging => 'number', item_key => '$.id');
wait_for_rows($node, "SELECT state FROM accord.feed_status WHERE feed = 'list'", 'idle');
is_deeply([ paths() ], [ map { "/list?page=$_" } 1 .. 3 ], 'a feed is polled when it is made, page by page');
is(received('list'), 'a:event:1 b:event:1 c:event:1', 'and what it holds is received');
poll('list');
is(received('list'), 'a:event:1 b:event:1 c:event:1', 'what did not change is not received again');
$stub->script([ page('/list\?page=1$', [ { id => 'a', n => 2 } ]), page('/list\?page=2$', []) ]);
poll('list');
is(received('list'), 'a:event:1 b:event:1 c:event:1 a:event:2', 'what did is; what is gone from a list is not deleted');
is(sql(q{SELECT count(*) FROM accord.attempt_log}), 0, 'nothing is sent back to where it came from');

# Link headers, relative ones and absolute ones.
$stub->script([
        page('/link$', [ { id => 'a' } ],
            headers => { Link => '<?after=a>; rel="next", </link>; rel="first"' }),
        page('/link\?after=a$', [ { id => 'b' } ],
            headers => { Link => '<' . $stub->url('/link?after=b') . '>; rel=next' }),
        page('/link\?after=b$', [ { id => 'c' } ], headers => { Link => '</link>; rel="first"' })
]);
feed('link', path => '/link', paging => 'link', item_key => '$.id');
wait_for_rows($node, "SELECT state FROM accord.feed_status WHERE feed = 'link'", 'idle');
is(received('link'), 'a:event: b:event: c:event:', 'Link headers are followed');
$stub->script([ page('/link$', [], headers => { Link => '<http://127.0.0.1:1/x>; rel="next"' }) ]);
sql("SELECT accord.poll_feed('link')");
wait_for_rows($node, "SELECT state, error FROM accord.feed_status WHERE feed = 'link'",
    'failing|cannot go on to the next page: the link leads to another scheme, host or port');
sql("UPDATE accord.feed SET enabled = false WHERE name = 'link'");

# A change feed: goes on from its cursor; deletions.
$stub->script([
        page('/changes\?limit=2&since=0$', { results => [ { id => 'a', n => 1 }, { id => 'b', n => 1 } ], last => 'x2' }),
        page('/changes\?limit=2&since=x2$', { results => [ { id => 'a', gone => JSON::PP::true } ], last => 'x3' }),
        page('/changes\?limit=2&since=x3$', { results => [], last => 'x3' })
]);
feed('changes', path => '/changes', query => '{"limit": "2", "since": "{cursor}"}', start => '0', mode => 'cursor',
    paging => 'cursor', items => '$.results[*]', next_cursor => '$.last', deleted => '$.gone == true');
wait_for_rows($node, "SELECT state, cursor FROM accord.feed_status WHERE feed = 'changes'", 'idle|x3');
is(received('changes'), 'a:event:1 b:event:1 a:delete:', 'a cursor is followed, and deletions are deletions');
is_deeply([ poll('changes') ], ['/changes?limit=2&since=x3'], 'the next poll begins there');
$stub->script([
        { match => { path_regex => 'since=x3$' }, do => { status => 410, body => { error => 'gone' } } },
        page('since=0$', { results => [ { id => 'b', n => 1 }, { id => 'b', n => 2 } ], last => 'y1' }),
        page('since=y1$', { results => [], last => 'y1' })
]);
poll('changes');
wait_for_rows($node, "SELECT state, cursor FROM accord.feed_status WHERE feed = 'changes'", 'idle|y1');
is(received('changes'), 'a:event:1 b:event:1 a:delete: b:event:2',
    'a cursor that is gone: it begins anew, and recognises what it had');
$stub->script([ { match => { path_regex => 'since=y1$' }, do => { status => 410 } } ]);
sql("UPDATE accord.feed SET on_reset = 'stop' WHERE name = 'changes'");
sql("SELECT accord.poll_feed('changes')");
wait_for_rows($node, "SELECT state FROM accord.feed_status WHERE feed = 'changes'", 'stopped');
$stub->script([ page('since=y7$', { results => [ { id => 'z' } ], last => 'y8' }), page('since=y8$', { results => [], last => 'y8' }) ]);
sql("SELECT accord.reset_feed('changes', cursor => 'y7')");
wait_for_rows($node, "SELECT state, cursor FROM accord.feed_status WHERE feed = 'changes'", 'idle|y8');

# Two cursors: of the page, and of the next poll.
$stub->script([
        page('/sync\?pageToken=p2$', { items => [ { id => 'b' } ], nextSyncToken => 's1' }),
        page('/sync$', { items => [ { id => 'a' } ], nextPageToken => 'p2' }),
        page('/sync\?syncToken=s1$', { items => [ { id => 'c' } ], nextSyncToken => 's2' })
]);
feed('sync', path => '/sync', query => '{"pageToken": "{page_cursor}", "syncToken": "{cursor}"}', mode => 'cursor',
    paging => 'cursor', items => '$.items[*]', next_page => '$.nextPageToken', next_cursor => '$.nextSyncToken');
wait_for_rows($node, "SELECT state, cursor FROM accord.feed_status WHERE feed = 'sync'", 'idle|s1');
is_deeply([ poll('sync') ], ['/sync?syncToken=s1'], 'the cursor of the page is not that of the poll');
is(received('sync'), 'a:event: b:event: c:event:', 'both are followed');

# By time, with an overlap: what is found twice is received once.
$stub->script([
        page('/since$', [ { id => 'a', n => 1, at => '2026-11-01T10:00:00Z' }, { id => 'b', n => 1, at => '2026-11-01T10:05:00Z' } ]),
        page('since=2026-11-01T10%3A04%3A00Z$',
            [ { id => 'b', n => 1, at => '2026-11-01T10:05:00Z' }, { id => 'c', n => 1, at => '2026-11-01T10:04:30Z' } ])
]);
feed('since', path => '/since', query => '{"since": "{since}"}', mode => 'since', updated => '$.at', overlap => '1 min');
wait_for_rows($node, "SELECT state, since FROM accord.feed_status WHERE feed = 'since'", 'idle|2026-11-01 10:05:00+00');
is_deeply([ poll('since') ], ['/since?since=2026-11-01T10%3A04%3A00Z'], 'the latest change, less the overlap');
is(received('since'), 'a:event:1 b:event:1 c:event:1', 'what became visible late is found, what was found is not news');

# A snapshot: what is not in it any more is deleted; not when nearly all is gone.
my @all = map { { id => "k$_", n => 1 } } 10 .. 21;
$stub->script([ page('/snapshot', \@all, headers => { ETag => '"v1"' }) ]);
feed('snapshot', path => '/snapshot', mode => 'snapshot', item_key => '$.id');
wait_for_rows($node, "SELECT state FROM accord.feed_status WHERE feed = 'snapshot'", 'idle');
$stub->script([ { match => { path_regex => '/snapshot', header => { 'If-None-Match' => '"v1"' } }, do => { status => 304 } } ]);
poll('snapshot');
is(sql(q{SELECT error IS NULL, received FROM accord.feed_status WHERE feed = 'snapshot'}), 't|12', 'an ETag is given back');
$stub->script([ page('/dated', [ { id => 'a', n => 1 } ], headers => { 'Last-Modified' => 'Sun, 01 Nov 2026 10:00:00 GMT' }) ]);
feed('dated', path => '/dated', item_key => '$.id');
wait_for_rows($node, "SELECT state FROM accord.feed_status WHERE feed = 'dated'", 'idle');
$stub->script([ { match => { path_regex => '/dated', header => { 'If-Modified-Since' => '^Sun, 01 Nov 2026 10:00:00 GMT$' } }, do => { status => 304 } },
        { match => { path_regex => '/dated' }, do => { status => 400 } } ]);
poll('dated');
is(sql(q{SELECT error IS NULL, received FROM accord.feed_status WHERE feed = 'dated'}), 't|1', 'and so is a date');

$stub->script([ page('/snapshot', [ @all[ 2 .. 11 ] ]) ]);
poll('snapshot');
is(sql(q{SELECT string_agg(key || ':' || op || ':' || (payload ->> 'vanished'), ' ' ORDER BY ord) FROM accord.event_log
         WHERE topic = 'snapshot' AND op = 'delete'}), 'k10:delete:true k11:delete:true', 'what vanished is deleted');
$stub->script([ page('/snapshot', []) ]);
sql("SELECT accord.poll_feed('snapshot')");
wait_for_rows($node, "SELECT state, error FROM accord.feed_status WHERE feed = 'snapshot'",
    'failing|10 of 10 items vanished at once');
is(sql(q{SELECT count(*) FROM accord.feed_item i JOIN accord.feed f ON f.id = i.feed WHERE f.name = 'snapshot'}), 10,
    'what nearly all vanishes from is not believed');
$stub->script([ page('/snapshot', [ @all[ 2 .. 11 ] ]) ]);
wait_for_rows($node, "SELECT state FROM accord.feed_status WHERE feed = 'snapshot'", 'idle');

# A snapshot of several pages.
$stub->script([ page('/pages\?page=1$', [ @all[ 0 .. 4 ] ]), page('/pages\?page=2$', [ @all[ 5 .. 9 ] ]), page('/pages', []) ]);
feed('pages', path => '/pages', query => '{"page": "{page}"}', mode => 'snapshot', paging => 'number', item_key => '$.id');
wait_for_rows($node, "SELECT state FROM accord.feed_status WHERE feed = 'pages'", 'idle');
$stub->script([ page('/pages\?page=1$', [ @all[ 0 .. 3 ] ]), page('/pages\?page=2$', [ @all[ 5 .. 9 ] ]), page('/pages', []) ]);
poll('pages');
is(sql(q{SELECT string_agg(key, ' ') FROM accord.event_log WHERE topic = 'pages' AND op = 'delete'}), 'k14',
    'of a snapshot of several pages');

# A failing item is parked, with its error, and stops nothing.
sql(q{CREATE TABLE booking (id text PRIMARY KEY, nights integer CHECK (nights > 0));
      SELECT accord.capture('booking')});
$stub->script([ page('/bookings', [ { id => 'b1', nights => 2 }, { id => 'b2', nights => 0 }, { id => 'b3', nights => 3 } ]) ]);
feed('bookings', path => '/bookings', item_key => '$.id',
    mapping => '{"target": "public.booking", "key": "$.id", "changes": {"nights": "$.nights"}}');
wait_for_rows($node, "SELECT state, parked FROM accord.feed_status WHERE feed = 'bookings'", 'idle|1');
is(sql('SELECT id, nights FROM booking ORDER BY id'), "b1|2\nb3|3", 'the others are received');
is(sql('SELECT key, state, sqlstate FROM accord.feed_parked'), 'b2|parked|23514', 'one is parked');
sql(q{ALTER TABLE booking DROP CONSTRAINT booking_nights_check; SELECT accord.retry_parked('bookings')});
wait_for_rows($node, 'SELECT count(*) FROM accord.feed_parked', 0);
is(sql(q{SELECT nights FROM booking WHERE id = 'b2'}), 0, 'it can be received later');

# What may pass is tried again by itself, and later ones of its key wait behind it.
my $blocker = $node->background_psql('postgres', on_error_stop => 1);
$blocker->query_safe(q{BEGIN; SELECT * FROM booking WHERE id = 'b1' FOR UPDATE});
$stub->script([ page('/bookings', [ { id => 'b1', nights => 5 }, { id => 'b3', nights => 6 } ]) ]);
poll('bookings');
$stub->script([ page('/bookings', [ { id => 'b1', nights => 7 }, { id => 'b3', nights => 6 } ]) ]);
poll('bookings');
is(sql(q{SELECT nights FROM booking WHERE id = 'b3'}), 6, 'a locked row holds up nobody but its key');
is(sql(q{SELECT string_agg(state, ' ') FROM accord.feed_parked}), 'retrying retrying', 'which is retried, in order');
$blocker->query_safe('COMMIT');
$blocker->quit;
wait_for_rows($node, 'SELECT count(*) FROM accord.feed_parked', 0);
is(sql(q{SELECT nights FROM booking WHERE id = 'b1'}), 7, 'and the last one stands');

# Failures: retried, and told of; what is not JSON is a failure, not an empty page.
$stub->script([ { match => { path_regex => '/bookings' }, do => { body => '<html>down</html>' } } ]);
sql("SELECT accord.poll_feed('bookings')");
wait_for_rows($node, q{SELECT state, error LIKE 'the page is not JSON%', failures > 1 FROM accord.feed_status WHERE feed = 'bookings'},
    'failing|t|t');
$stub->script([ page('/bookings', []) ]);
wait_for_rows($node, q{SELECT state, failures FROM accord.feed_status WHERE feed = 'bookings'}, 'idle|0');
sql(q{UPDATE accord.feed SET max_silence = '1 us' WHERE name = 'bookings'});
is(sql(q{SELECT silent FROM accord.feed_status WHERE feed = 'bookings'}), 't', 'silence is seen');

# A webhook that only says that there is news.
sql(q{INSERT INTO accord.source (name, verify, mapping, polls)
      VALUES ('ota', '{"type": "none"}', '{"topic": "ping", "key": "$.id"}', '{bookings}')});
$stub->script([ page('/bookings', [ { id => 'b9', nights => 9 } ]) ]);
sql(q{SELECT accord.receive_webhook('ota', '{}', '{"id": 1}')});
wait_for_rows($node, q{SELECT nights FROM booking WHERE id = 'b9'}, 9);

# Every account has a place of its own.
insert_row($node, 'account', channel => 'ota', name => "h$_", vars => qq({"id": "H$_"})) for 1, 2;
$stub->script([ page('/H1/new', [ { id => 'x' } ]), page('/H2/new', [ { id => 'y' } ]) ]);
feed('accounts', path => '/{vars.id}/new', account => '*', item_key => '$.id');
wait_for_rows($node, q{SELECT account, state FROM accord.feed_status WHERE feed = 'accounts' ORDER BY 1}, 'h1|idle', 'h2|idle');
is(sql(q{SELECT key, account FROM accord.event_log WHERE topic = 'accounts' ORDER BY 1}), "x|h1\ny|h2", 'and its events are its own');

# The places of feeds outlive the turning of their ring.
# A server that echoes what it was sent echoes the credential.
my $secret = 'Feed-Secret-9';
insert_row($node, 'secret', name => 'telltale', value => $secret);
channel($node, $stub, 'telltale', auth => '{"type": "bearer", "secret": "telltale"}', retry_base => '10 ms', retry_cap => '50 ms', route => 1);
$stub->script([ { match => { path_regex => '/echo' }, do => { status => 500, body => "you are Bearer $secret" } } ]);
feed('echo', channel => 'telltale', path => '/echo', item_key => '$.id');
wait_for_rows($node, "SELECT DISTINCT error FROM accord.feed_status WHERE feed = 'echo'", 'the channel answered 500: you are Bearer ***');
is(($stub->log)[-1]{headers}{authorization}, "Bearer $secret", 'a feed is asked for with the credential of its channel');
is(join(' ', rows_with($node, $secret)), '', '... which no table shows, whatever the channel answers');
sql("UPDATE accord.feed SET enabled = false WHERE name = 'echo'");

# What no page may be; each is asked for again and again, and the good one beside it.
sub peak { my ($line) = grep { /^VmHWM/ } split /\n/, PostgreSQL::Test::Utils::slurp_file('/proc/' . dispatcher($node) . '/status');
    return $line =~ /(\d+)/ ? $1 : die; }
my $bomb = `python3 -c 'import base64, gzip, sys; sys.stdout.write(base64.b64encode(gzip.compress(bytes(100 << 20))).decode())'`;
my $peak = peak();
channel($node, $stub, 'hostile', retry_base => '100 ms', retry_cap => '100 ms', route => 1);
$stub->script([
        { match => { path_regex => '/endless' }, do => { stream_bytes => 1_000_000_000 } },
        { match => { path_regex => '/flood' }, do => { endless_headers => 1 } },
        { match => { path_regex => '/bomb' }, do => { headers => { 'Content-Encoding' => 'gzip' }, body_base64 => $bomb } },
        page('/fine', [ { id => 'a', n => 1 } ]) ]);
feed($_, channel => 'hostile', path => "/$_", item_key => '$.id', max_page => 1 << 20) for qw(endless flood bomb fine);
wait_for_rows($node, q{SELECT feed FROM accord.feed_status WHERE feed IN ('endless', 'flood', 'bomb') AND failures > 2 AND error <> '' ORDER BY 1},
    'bomb', 'endless', 'flood');
like(sql("SELECT string_agg(error, ', ') FROM accord.feed_status WHERE feed IN ('endless', 'bomb')"),
    qr/^the answer is larger than max_page allows, the answer is larger than max_page allows$/, 'a page without an end, or that bursts, is none');
like(sql("SELECT error FROM accord.feed_status WHERE feed = 'flood'"), qr/headers of the answer exceed/, '... nor are headers without an end');
wait_for_rows($node, "SELECT state, received FROM accord.feed_status WHERE feed = 'fine'", 'idle|1');
memory_below(peak() - $peak, 32 * 1024, 'the memory of the dispatcher stays');
sql("UPDATE accord.feed SET enabled = false WHERE channel = 'hostile'");

my $places = sql('SELECT array_agg((feed, account, state, received, cursor, since) ORDER BY feed, account) FROM accord.feed_status');
sql('SELECT accord.turn_rings(true)') for 1 .. 9;
is(sql('SELECT array_agg((feed, account, state, received, cursor, since) ORDER BY feed, account) FROM accord.feed_status'),
    $places, 'nothing is forgotten in housekeeping');
is(sql('SELECT count(*) < 40 FROM accord.feed_log'), 't', 'but what does not count any more');

done_testing();
