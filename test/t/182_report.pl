# accord.report(): one page, well-formed, that says what the logs say, holds nothing foreign, and escapes what others wrote;
# accord.watch(): endpoints in trouble first, with bars.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main', "timezone = 'Europe/Rome'\n");
my $stub = start_stub();

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# A page, and what XPath finds in it.
my $page;
sub report { my ($arguments) = @_; $page = value("SELECT accord.report($arguments)"); return $page; }

sub found
{
    my ($path) = @_;
    $path =~ s{(/|\[)(?!s:|position|last|starts)([a-z])}{$1h:$2}g;
    return value(qq{SELECT array_to_string(xpath(\$p\$$path\$p\$, xmlparse(document \$page\$$page\$page\$),
        ARRAY[ARRAY['h', 'http://www.w3.org/1999/xhtml'], ARRAY['s', 'http://www.w3.org/2000/svg']]), '|')});
}

report('');
like($page, qr/^<!DOCTYPE html>\n<html/, 'a report of nothing is a page');
is(found('count(//figure)'), '5', '... that is well-formed, and has its plots');
is(found("string(//section[\@id='errors']//td)"), 'none', '... which say that there is nothing');

send_everything($node);
channel($node, $stub, 'ota', route => { topic => 'rate', path => '/{key}' }, retry_base => '1 ms', retry_cap => '1 ms');
channel($node, $stub, 'sms', route => { topic => 'message' });
value(q{INSERT INTO accord.account (channel, name) VALUES ('sms', '<a href="x">&''</a>')});
insert_row($node, 'channel', name => 'gone', base_url => 'http://127.0.0.1:1', breaker_failures => 1);
route($node, 'gone', topic => 'lost');
$stub->script([
    { match => { path_regex => '/never' }, do => { status => 422, body => '<script>alert(1)</script>' } },
    { match => { path_regex => '/again', times => 2 }, do => { status => 500 } } ]);
events($node, (map { { topic => 'rate', key => $_ } } 1 .. 20, 'never', 'again'),
    { topic => 'message', account => q{<a href="x">&'</a>} }, map { { topic => 'lost', key => $_ } } 1 .. 3);
wait_for_rows($node, q{SELECT (SELECT count(*) FROM accord.attempt_log WHERE outcome = 'delivered'),
    (SELECT count(*) FROM accord.dead_letter), (SELECT state FROM accord.status WHERE channel = 'gone')}, '22|1|broken');
value(q{CREATE TABLE room (id text PRIMARY KEY, price int); SELECT accord.manage('room'); SELECT accord.set_policy('room', '*', 'latest');
    INSERT INTO accord.source (name) VALUES ('x'), ('y');
    SELECT accord.receive(s, s || g, target => 'room', key => g::text, changes => jsonb_build_object('price', ascii(s)), occurred_at => t)
    FROM generate_series(1, 3) g, (VALUES ('x', now()), ('y', now() - interval '1 hour')) v (s, t)});
my $conflicts = value('SELECT count(*) FROM accord.conflict_log');
cmp_ok($conflicts, '>=', 3, 'there are conflicts');

report(q{now() - interval '10 minutes'});
is(found('count(//figure)') . found("count(//s:svg[\@role='img'][s:title][s:desc])"), '55', 'a page of all there is has titles for who does not see');
is(found('string(//dl/div[1]/dd)'), '22', 'it tells how many were delivered');
is(found('string(//dl/div[2]/dd)'), value(q{SELECT count(*) FROM accord.attempt_log WHERE outcome IN ('retry', 'unreachable')}),
    '... tried again');
is(found('string(//dl/div[3]/dd)'), '1', '... refused');
is(found('string(//dl/div[6]/dd)'), '3', '... and are owed');
is(found("sum(//figure[\@id='throughput']//tbody//td[2])"), '22', 'the numbers of the plots add up');
is(found("sum(//figure[\@id='conflicts']//td[position() > 1])"), $conflicts, '... of conflicts, too');
is(found("string(//figure[\@id='backlog']//tbody/tr[last()]/td[2])"), '3', 'what waits is what is owed');
cmp_ok(found("number(//figure[\@id='delay']//tbody/tr[td[2] != ''][last()]/td[2])"), '>', 0, 'the time from commit to delivery is there');
is(found("string(//section[\@id='endpoints']//tr[td[1] = 'sms'][td[2] != '']/td[2])"), q{&lt;a href="x"&gt;&amp;'&lt;/a&gt;},
    'names are what they are, and no markup');
like(found("string(//section[\@id='errors']//tr[td[2] = 'rejected']/td[4])"), qr/422/, 'errors are listed');
is(found("string(//section[\@id='states']//tr[td[2] = 'gone']/td[4])"), 'open', 'and what became of endpoints');
is(found("count(//script | //link | //img | //iframe | //*[\@src] | //*[\@href] | //*[starts-with(name(\@*), 'on')])"), '0',
    'nothing foreign is in it');
unlike($page, qr/url\(|\@import|<script/, '... nor in its style');
like($page, qr/prefers-color-scheme: dark/, 'it can be read at night');

report(q{now() - interval '1 hour', now(), 'sms'});
is(found('string(//dl/div[1]/dd)') . found('string(//dl/div[6]/dd)'), '10', 'of one channel');
report(q{now() - interval '20 years', now()});
is(found('string(//dl/div[1]/dd)'), '22', 'a long interval');
report(q{now() - interval '2 days', now() - interval '1 day'});
is(found('string(//dl/div[1]/dd)') . found("sum(//figure[\@id='backlog']//td[2])"), '00', 'one that is over');
isnt(($node->psql('postgres', "SELECT accord.report($_)"))[0], 0, "($_) is refused")
  for 'now(), now()', q{'-infinity', now()}, q{now() - interval '200 years'};
value(q{CREATE ROLE auditor; SELECT accord.grant_auditor('auditor'); SET ROLE auditor; SELECT accord.report(), count(*) FROM accord.watch()});
pass('an auditor may have it');

# ---- watch ----
is(value(q{SELECT endpoint || '|' || state || '|' || owed || '|' || waiting FROM accord.watch() LIMIT 1}),
    'gone|broken|3|' . "\xe2\x96\x88" x 20, 'trouble comes first, and the longest bar is 20 long');
like(value(q{SELECT note FROM accord.watch('gone')}), qr/^breaker open; /, '... with what is wrong');
is(value(q{SELECT count(*) FROM accord.watch(max => 2)}) . value(q{SELECT count(*) FROM accord.watch('sms')}), '22',
    'the others are left out');
is(value(q{SELECT accord.bar(1, 8, 1) || accord.bar(0.55, 1, 10) || accord.bar(0, 1, 9) || coalesce(accord.bar(NULL, 1, 9), '?')}),
    "\xe2\x96\x8f" . "\xe2\x96\x88" x 5 . "\xe2\x96\x8c", 'bars have parts of blocks');
value(q{CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'});
is($node->safe_psql('latin', q{CREATE EXTENSION pg_accord; SELECT accord.bar(1, 2, 10) FROM accord.pg_stat_accord_database}), '#####',
    '... where the encoding has them');

$node->stop;
done_testing();
