# A CalDAV calendar, of a real server (Radicale, over HTTPS, with basic authentication): bookings become entries, by
# If-None-Match and If-Match; the calendar is read as iCalendar, and reconciled.
use strict;
use warnings FATAL => 'all';

use Accord;
use Accord::Radicale;
use Test::More;

plan skip_all => 'not installed: Radicale (Debian: python3-radicale); nothing of a CalDAV calendar is tested' unless Accord::Radicale::installed();

my $radicale = Accord::Radicale->new;
my $node = new_node('main', "accord.ca_file = '" . $radicale->certificate . "'\n");
sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query); }

# The page of SQL, as it stands.
$radicale->make_calendar('stays');
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-v', 'url=' . $radicale->url('stays'), '-v', 'user=' . Accord::Radicale::USER, '-v', 'password=' . Accord::Radicale::PASSWORD, '-d', $node->connstr('postgres'),
        '-f', "$ENV{TESTDIR}/examples/caldav.sql" ], 'the example runs');

sql(q{INSERT INTO app.stay (id, guest, arrival, departure) VALUES ('b1', 'Ann, and Bob; Carol', '2026-12-24', '2026-12-27'),
                                                              ('b2', 'Dan', '2026-12-27', '2027-01-02')});
wait_for_delivery($node);
is_deeply([ sort $radicale->names('stays') ], [ 'b1.ics', 'b2.ics' ], 'bookings are entries of the calendar');
like($radicale->get('stays/b1.ics'), qr/DTEND;VALUE=DATE:20261227/, 'the last day is exclusive');
sql(q{UPDATE app.stay SET departure = '2026-12-28' WHERE id = 'b1'; DELETE FROM app.stay WHERE id = 'b2'});
wait_for_delivery($node);
is_deeply([ $radicale->names('stays') ], ['b1.ics'], 'what is cancelled is removed');
like($radicale->get('stays/b1.ics'), qr/DTEND;VALUE=DATE:20261228/, 'what is changed is replaced');
is(sql('SELECT count(*) FROM accord.dead_letter'), 0, 'nothing was refused');

# What somebody enters there comes back, and is not sent there again.
$radicale->put('stays/x1.ics', $radicale->entry('x1', '20270301', '20270304', 'Owner'));
sql(q{SELECT accord.poll_feed('calendar/stays')});
wait_for_rows($node, q{SELECT id, guest, arrival, departure, origin FROM app.stay WHERE id = 'x1'}, 'x1|Owner|2027-03-01|2027-03-04|calendar');
wait_for_delivery($node);
is(sql(q{SELECT count(*) FROM accord.timeline WHERE key = 'x1' AND step = 'delivered'}), 0, 'nothing is sent back');
$radicale->remove('stays/x1.ics');
sql(q{SELECT accord.poll_feed('calendar/stays')});
wait_for_rows($node, q{SELECT count(*) FROM app.stay WHERE id = 'x1'}, 0);
pass('what is removed there is removed here');
is(sql(q{SELECT guest FROM app.stay WHERE id = 'b1'}), 'Ann, and Bob; Carol', 'our own come back as they were');

# Drift: somebody meddles, and it is put right.
$radicale->put('stays/b1.ics', $radicale->entry('b1', '20260101', '20260102', 'Meddler'));
$radicale->put('stays/x9.ics', $radicale->entry('x9', '20260101', '20260102', 'Meddler'));
my ($job) = sql(q{SELECT accord.reconcile('calendar', repair => true, grace => '0')});
wait_for_rows($node, "SELECT state FROM accord.progress WHERE job = $job", 'done');
is(sql('SELECT key, kind FROM accord.drift ORDER BY key'), "b1|different\nx9|extra", 'drift is found');
wait_for_delivery($node);
is_deeply([ $radicale->names('stays') ], ['b1.ics'], 'and corrected');
like($radicale->get('stays/b1.ics'), qr/DTEND;VALUE=DATE:20261228/, 'entry by entry');
done_testing();
