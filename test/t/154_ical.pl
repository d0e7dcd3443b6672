# examples/ical.sql, as it stands: a booking site's calendar blocks nights, and frees them again; what is not a calendar,
# or only a part of one, changes nothing.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

my $node = new_node('main');
my $stub = start_stub();
sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query); }

sub calendar
{
    my (@events) = @_;
    return join "\r\n", 'BEGIN:VCALENDAR', 'VERSION:2.0', 'PRODID:-//site//EN',
      (map { ('BEGIN:VEVENT', "UID:$_->[0]", 'DTSTAMP:' . ($_->[4] || '20260101T000000Z'), "DTSTART;VALUE=DATE:$_->[1]",
                  "DTEND;VALUE=DATE:$_->[2]", "SUMMARY:$_->[3]", $_->[5] ? "STATUS:$_->[5]" : (), 'END:VEVENT') } @events),
      'END:VCALENDAR', '';
}

sub serve
{
    my ($body, %do) = @_;
    return $stub->script([ { match => { path_regex => '^/calendar/7\.ics\?s=abc$' },
                do => { body => $body, headers => { 'Content-Type' => 'text/calendar' }, %do } } ]);
}

sub blocks { return sql('SELECT uid, nights, note FROM app.block ORDER BY uid'); }

serve(calendar([ 'u1', '20261224', '20261227', 'Reserved' ], [ 'u2', '20270101', '20270105', 'Not available' ]));
my $url = $stub->url('/calendar/7.ics?s=abc');
$node->command_ok([ 'psql', '-Xq', '-v', "url=$url", '-v', 'site=site', '-v', 'listing=7', '-d', $node->connstr('postgres'),
        '-f', "$ENV{TESTDIR}/examples/ical.sql" ], 'the example runs');
wait_for_rows($node, 'SELECT count(*) FROM app.block', 2);
is(blocks(), "u1|[2026-12-24,2026-12-27)|Reserved\nu2|[2027-01-01,2027-01-05)|Not available", 'nights are blocked');

my $received = sql('SELECT received FROM accord.feed_status');
sub poll
{
    my $run = sql(q{SELECT (accord.feed_state(id, '')).run FROM accord.feed});
    sql(q{SELECT accord.poll_feed('site/7')});
    poll_until(sub { sql(q{SELECT (accord.feed_state(id, '')).run FROM accord.feed}) > $run }, 'a poll');
    return;
}
serve(calendar([ 'u1', '20261224', '20261227', 'Reserved', '20260202T000000Z' ], [ 'u2', '20270101', '20270105', 'Not available', '20260202T000000Z' ]));
poll();
is(sql('SELECT received FROM accord.feed_status'), $received, 'another DTSTAMP is no news');
serve(calendar([ 'u1', '20261224', '20261228', 'Reserved' ]));
poll();
is(blocks(), 'u1|[2026-12-24,2026-12-28)|Reserved', 'what was changed is changed, what vanished is free');
serve(calendar([ 'u1', '20261224', '20261228', 'Reserved', undef, 'CANCELLED' ]));
poll();
is(blocks(), '', 'so is what was cancelled');
serve(calendar([ 'u3', '20270301', '20270302', 'Reserved' ]));
poll();
for my $wrong ('<html>Log in</html>', substr(calendar([ 'u3', '20270301', '20270302', 'Reserved' ]), 0, 120), '')
{
    serve($wrong);
    sql(q{SELECT accord.poll_feed('site/7')});
    wait_for_rows($node, 'SELECT state, error FROM accord.feed_status', 'failing|the text is not an iCalendar, or ends early');
    is(blocks(), 'u3|[2027-03-01,2027-03-02)|Reserved', 'what is not a calendar changes nothing');
    serve(calendar([ 'u3', '20270301', '20270302', 'Reserved' ]));
    sql(q{SELECT accord.poll_feed('site/7')});
    wait_for_rows($node, 'SELECT state FROM accord.feed_status', 'idle');
}
done_testing();
