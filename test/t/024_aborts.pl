# Transactions that end otherwise than expected, and those of unusual shape: what stands is in the log, in order, once;
# what does not leaves nothing behind, and holds nobody back.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main');
send_everything($node);

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# The keys committed since the last call, in order, as transactions: "a b, c".
my $cursor = 0;

sub news
{
    my $keys = value("SELECT string_agg(keys, ', ' ORDER BY seq) FROM (SELECT seq,
        string_agg(key, ' ' ORDER BY ord) AS keys FROM accord.read($cursor, 100000) GROUP BY seq) t");
    $cursor = value('SELECT last_value FROM accord.commit_seq');
    is(value('SELECT accord.safe_seq()'), $cursor, 'no floor stands');
    return $keys;
}

# Runs a script that may fail; returns the error.
sub try_sql
{
    my ($sql) = @_;
    my (undef, undef, $error) = $node->psql('postgres', $sql,
        on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
    return $error;
}

value(<<'SQL');
CREATE FUNCTION write(key text) RETURNS void LANGUAGE sql AS
    'INSERT INTO accord.outbox (topic, key) VALUES (''t'', write.key)';
CREATE TABLE deferred (key text, explode boolean DEFAULT false);
CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS '
BEGIN
    PERFORM write(NEW.key);
    IF NEW.explode THEN
        RAISE division_by_zero;
    END IF;
    RETURN NULL;
END';
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION at_commit();
CREATE TABLE skew (id integer PRIMARY KEY, n integer);
INSERT INTO skew VALUES (1, 0), (2, 0);
SQL

# ---- deferred triggers

value(q{INSERT INTO deferred VALUES ('first')});
is(news(), 'first', 'a deferred trigger writes the only event of its transaction, at commit');
value(q{BEGIN; SELECT write('a'); INSERT INTO deferred VALUES ('c'); SELECT write('b'); COMMIT});
is(news(), 'a b c', '... or the last');
like(try_sql(q{BEGIN; SELECT write('a'); INSERT INTO deferred VALUES ('b', true); COMMIT;}), qr/ERROR:  22012/,
    'a deferred trigger fails after writing');
is(news(), '', '... and leaves nothing');
like(try_sql(q{BEGIN; INSERT INTO deferred VALUES ('b', true); SELECT write('a'); COMMIT; SELECT write('next');}),
    qr/ERROR:  22012/, 'the same as the first of its transaction');
is(news(), 'next', '... and the next transaction of the session is its own');
like(try_sql(q{BEGIN; INSERT INTO deferred VALUES ('b', true); SELECT write('a');
        SET CONSTRAINTS ALL IMMEDIATE; COMMIT;}),
    qr/ERROR:  22012/, 'SET CONSTRAINTS makes it fail before the commit');
is(news(), '', '... and leaves nothing');
value(q{BEGIN; SAVEPOINT s; INSERT INTO deferred VALUES ('gone'); ROLLBACK TO s; SELECT write('stays'); COMMIT});
is(news(), 'stays', 'a deferred trigger that was rolled back does not fire');

# ---- serialization failures

my ($one, $two) = map { open_session($node) } 1, 2;
for my $first_key ('x', 'y')
{
    $_->run('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT sum(n) FROM skew') for $one, $two;
    $one->run("UPDATE skew SET n = n + 1 WHERE id = 1; SELECT write('$first_key')");
    $two->run("UPDATE skew SET n = n + 1 WHERE id = 2; SELECT write('other')");
    $one->run('COMMIT');
    $two->send('COMMIT');
    like($two->wait_for_end, qr/ERROR:  40001/, 'a serializable transaction fails in its commit');
    is(news(), $first_key, '... with its event, but not with that of the one it collided with');
}
$two->run(q{SELECT write('after')});
is(news(), 'after', '... and its session goes on');

# ---- savepoints

my $nested = join '', map { "SAVEPOINT s$_; SELECT write('$_');" } 1 .. 100;
value("BEGIN; $nested COMMIT");
is(news(), join(' ', 1 .. 100), 'a hundred savepoints within each other');
value("BEGIN; $nested " . join('', map { "RELEASE s$_;" } reverse 51 .. 100) . 'ROLLBACK TO s50; COMMIT');
is(news(), join(' ', 1 .. 49), '... half of them released into one that is rolled back');
value("BEGIN; $nested ROLLBACK TO s1; RELEASE s1; COMMIT");
is(news(), '', '... all rolled back: no event, no commit');
is(value('SELECT count(*) FROM accord.commit_log c WHERE NOT EXISTS (SELECT FROM accord.event_log e
            WHERE e.tx_id = c.tx_id)'), 0, '... in the log neither');
value("BEGIN; SELECT write('a'); SAVEPOINT s; SELECT write('b'); ROLLBACK TO s; SELECT write('c'); RELEASE s; COMMIT");
is(news(), 'a c', 'a savepoint that is rolled back and used again');
value(<<'SQL');
DO $$
BEGIN
    FOR i IN 1 .. 200 LOOP
        BEGIN
            PERFORM write(i::text);
            IF i % 2 = 0 THEN
                RAISE division_by_zero;
            END IF;
        EXCEPTION WHEN division_by_zero THEN
            NULL;
        END;
    END LOOP;
END
$$
SQL
is(news(), join(' ', grep { $_ % 2 } 1 .. 200), 'exception blocks');
value(q{CREATE PROCEDURE commits() LANGUAGE plpgsql AS 'BEGIN
    FOR i IN 1 .. 6 LOOP
        PERFORM write(i::text);
        IF i % 3 = 0 THEN ROLLBACK; ELSIF i % 3 = 2 THEN COMMIT; END IF;
    END LOOP; END'; CALL commits()});
is(news(), '1 2, 4 5', 'a procedure that commits and rolls back');

# ---- COPY, and a transaction of many

value("COPY accord.outbox (topic, key) FROM stdin;\n" . join('', map { "t\t$_\n" } 1 .. 1000) . "\\.\n");
is(news(), join(' ', 1 .. 1000), 'COPY, in the order of its rows');
like(try_sql("COPY accord.outbox (topic, key) FROM stdin;\nt\t1\nt\t2\nt\t3\textra\n\\.\n"), qr/ERROR:  22P04/,
    'a COPY that fails in its third row');
is(news(), '', '... leaves nothing');
value(q{INSERT INTO accord.outbox (topic, key) SELECT 't', g FROM generate_series(1, 20000) g});
is(value("SELECT count(*) || ' ' || count(DISTINCT seq) FROM accord.read($cursor, 1)"), '20000 1',
    'a transaction of 20,000 is read whole, whatever max says');
$cursor = value('SELECT last_value FROM accord.commit_seq');

# ---- sessions that end

$one->run(q{BEGIN; SELECT write('never')});
value('SELECT pg_terminate_backend(' . $one->pid . ')');
poll_until(sub { value('SELECT count(*) FROM pg_stat_activity WHERE pid = ' . $one->pid) == 0 }, 'the session to end');
is(news(), '', 'a session that is terminated in its transaction leaves nothing');
$two->run(q{BEGIN; SELECT write('never')});
$two->close;
poll_until(sub { value('SELECT count(*) FROM pg_stat_activity WHERE pid = ' . $two->pid) == 0 }, 'the session to end');
is(news(), '', '... nor one that goes away');
like(try_sql(q{SET statement_timeout = 1; SELECT write('never'), pg_sleep(60);}),
    qr/ERROR:  57014/, 'a cancelled statement');
is(news(), '', '... leaves nothing');
like(try_sql(q{BEGIN READ ONLY; SELECT write('never'); COMMIT;}),
    qr/ERROR:  25006/, 'a read-only transaction is refused');
is(news(), '', '... and leaves nothing');

$node->stop;
done_testing();
