# A feed loses nothing and doubles nothing when the server is killed: while a page is asked for, while it is taken in, and
# between pages; nor when its clerk or its dispatcher is ended. Its messages have random ids, so that nothing but the
# transaction that moves the cursor on keeps them from being received twice.
use strict;
use warnings FATAL => 'all';

use Accord;
use Test::More;

use constant { PAGES => 30, PER_PAGE => 10 };

my $node = new_node('main', "accord.restart_interval = '100 ms'\naccord.function_timeout = '10 min'\n");
my $stub = start_stub();

sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query); }

my @pages;
for my $page (0 .. PAGES)
{
    my $first = $page * PER_PAGE;
    my @items = $page == PAGES ? () : map { { id => "i$_" } } $first .. $first + PER_PAGE - 1;
    push @pages,
      {
        match => { path_regex => "since=$first\$" },
        do => { body => { items => \@items, last => $page == PAGES ? $first : $first + PER_PAGE } }
      };
}
$stub->script([ { match => { path_regex => 'since=50$', times => 1 }, do => { gate => 'asked' } }, @pages ]);
channel($node, $stub, 'ota', retry_base => '10 ms', retry_cap => '50 ms');
sql(q{CREATE SCHEMA app;
      CREATE TABLE app.gate (id text PRIMARY KEY);
      INSERT INTO app.gate VALUES ('i75'), ('i135'), ('i195');
      CREATE FUNCTION app.message_of(headers jsonb, item jsonb) RETURNS SETOF accord.message LANGUAGE plpgsql AS $$
      BEGIN
          WHILE EXISTS (SELECT FROM app.gate g WHERE g.id = item ->> 'id') LOOP
              PERFORM pg_sleep(0.01);
          END LOOP;
          RETURN NEXT ROW(gen_random_uuid()::text, 'item', NULL, item ->> 'id', NULL, item, NULL, NULL, NULL, NULL)::accord.message;
      END $$});
insert_row($node, 'feed', name => 'items', channel => 'ota', every => '1 day', path => '/items', query => '{"since": "{cursor}"}',
    mode => 'cursor', paging => 'cursor', start => '0', items => '$.items[*]', next_cursor => '$.last', mapping_function => 'app.message_of');

# Waits until all items before this one are received and the clerk stands at it.
sub stand_at
{
    my ($id) = @_;
    my $before = $id - $id % PER_PAGE;
    wait_for_rows($node, q{SELECT count(*) FROM accord.event_log WHERE topic = 'item'}, $before);
    poll_until(sub { sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_accord clerk' AND state = 'active'}) },
        "a clerk at item $id");
    return;
}

poll_until(sub { grep { $_->{path} =~ /since=50$/ } $stub->log }, 'the page to be asked for');
crash_server($node);
stand_at(75);
crash_server($node);
stand_at(75);
is(sql(q{SELECT max(substr(key, 2)::integer) FROM accord.event_log WHERE topic = 'item'}), 69, 'a page is received as a whole, or not at all');
sql(q{DELETE FROM app.gate WHERE id = 'i75'});
stand_at(135);
sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_accord clerk'});
stand_at(135);
sql(q{DELETE FROM app.gate WHERE id = 'i135'});
stand_at(195);
my $dispatcher = dispatcher($node);
sql("SELECT pg_terminate_backend($dispatcher)");
poll_until(sub { my ($now) = workers($node, 'dispatcher', 'postgres'); defined $now && $now != $dispatcher }, 'another dispatcher');
stand_at(195);
is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_accord clerk'}), 1, 'a clerk ends with its dispatcher');
sql(q{DELETE FROM app.gate});
for my $received (210, 250)
{
    poll_until(sub { sql(q{SELECT count(*) FROM accord.event_log WHERE topic = 'item'}) >= $received }, "$received items");
    crash_server($node);
}
wait_for_rows($node, q{SELECT cursor, state FROM accord.feed_status}, PAGES * PER_PAGE . '|idle');
is(sql(q{SELECT count(*), count(DISTINCT key) FROM accord.event_log WHERE topic = 'item'}),
    join('|', (PAGES * PER_PAGE) x 2), 'every item was received, and once');
is(sql(q{SELECT count(*) FROM accord.feed_parked}), 0, 'none was parked');

done_testing();
