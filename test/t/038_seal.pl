# The log under its seal: whatever was changed, removed or inserted behind its back is named, by whatever means it was done;
# what was sealed can be proven, gaps included, also when slots were emptied, after a dump and after an erasure; and a
# channel can be the witness.
use strict;
use warnings FATAL => 'all';

use Accord;
use Session;
use Test::More;

my $node = new_node('main', "accord.dispatch = off\n");
my $stub = start_stub();

sub value { return $node->safe_psql('postgres', @_); }

sub findings
{
    my ($sql) = @_;
    return value('BEGIN; ' . ($sql || '') . q{; SELECT concat_ws(' ', problem, seq || coalesce('.' || ord, '')) FROM accord.verify() ORDER BY seq, ord; ROLLBACK});
}

sub commits
{
    my ($n) = @_;
    value("DO \$\$ BEGIN FOR i IN 1 .. $n LOOP
               INSERT INTO accord.outbox (topic, key, payload) VALUES ('t', i::text, jsonb_build_object('n', i)); COMMIT;
           END LOOP; END \$\$");
    return;
}

# ---- what is written is what is verified, whatever became of savepoints

value(<<'SQL');
CREATE FUNCTION wander(depth integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 1 + (random() * 4)::integer LOOP
        CASE (random() * 5)::integer
        WHEN 0, 1, 2 THEN
            INSERT INTO accord.outbox (topic, key, payload, before, headers, channels, deliver_at)
                VALUES ('w', random()::text, jsonb_build_object('x', random(), 'é', ARRAY[1.50, 'NaN'::float8::numeric]),
                        CASE WHEN random() < 0.5 THEN '{"a": [1, null, "b"]}'::jsonb END, NULL, NULL,
                        CASE WHEN random() < 0.5 THEN now() END);
        ELSE
            IF depth < 6 THEN
                BEGIN
                    PERFORM wander(depth + 1);
                    IF random() < 0.5 THEN
                        RAISE division_by_zero;
                    END IF;
                EXCEPTION WHEN division_by_zero THEN
                    NULL;
                END;
            END IF;
        END CASE;
    END LOOP;
END
$$;
DO $$ BEGIN FOR i IN 1 .. 300 LOOP PERFORM wander(0); COMMIT; END LOOP; END $$;
SQL
cmp_ok(value('SELECT count(*) FROM accord.event_log'), '>', 500, 'events in and out of savepoints');
is(findings(), '', '... are as they were written');
is(value('SELECT count(*) FROM (SELECT tx_id FROM accord.event_log GROUP BY 1 HAVING max(ord) <> count(*)) t'), 0,
    '... and numbered without gaps');
value(q{INSERT INTO accord.outbox (topic, payload) SELECT 'bulk', jsonb_build_object('g', g) FROM generate_series(1, 3000) g});
value(q{SELECT set_config('DateStyle', 'German', false), set_config('TimeZone', 'Asia/Tokyo', false),
        set_config('extra_float_digits', '-5', false), set_config('bytea_output', 'escape', false);
        INSERT INTO accord.outbox (topic, payload) VALUES ('settings', '{"n": 1.23456789012345678}')});
is(value('SELECT accord.seal() = max(seq) FROM accord.commit_log'), 't', 'they are sealed');
is(value('SELECT accord.seal() = max(size) AND count(*) = 1 FROM accord.seal'), 't', '... once');
is(findings(), '', '... and as they were sealed');

# ---- proofs: of every number, gaps included, and between seals

value('SELECT nextval($$accord.commit_seq$$) FROM generate_series(1, 70)');
my $gap = value('SELECT last_value FROM accord.commit_seq');
my @holes = (10, 1, 100, 64, 64, 3, 200);
for my $n (@holes)
{
    commits($n);
    value('SELECT accord.seal()');
}
value(q{SELECT setval('accord.commit_seq', last_value + 1000000000) FROM accord.commit_seq});
commits(3);
value('SELECT accord.seal()');
cmp_ok(value('SELECT count(*) FROM accord.seal_node'), '<', 150, 'numbers that were passed over cost nothing');
is(findings(), '', 'gaps are no findings');
my $proofs = q{SELECT count(*), bool_and(accord.check_proof(c.seq, p.size, c.digest, p.path, p.root) AND c.digest = p.leaf)
               FROM accord.commit_log c, accord.proof(c.seq) p};
is(value($proofs), value('SELECT count(*) FROM accord.commit_log') . '|t', 'every commit is proven');
is(value("SELECT accord.check_proof($gap, p.size, p.leaf, p.path, p.root), p.leaf = sha256('\\x004701') FROM accord.proof($gap) p"), 't|t',
    'and so is a gap');
is(value("SELECT accord.check_proof($gap, p.size, c.digest, p.path, p.root) FROM accord.proof($gap) p, accord.commit_log c WHERE seq = $gap - 100"),
    'f', '... nothing else was there');
my $consistent = q{SELECT count(*), bool_and(accord.check_consistency(a.size, a.root, c.size, c.root, c.path))
                   FROM accord.seal a JOIN accord.seal b ON b.size >= a.size, accord.consistency(a.size, b.size) c};
is(value($consistent), '45|t', 'every seal is the beginning of every later one');
is(value(q{SELECT bool_or(accord.check_consistency(a.size, sha256(a.root), c.size, c.root, c.path))
           FROM accord.seal a, accord.consistency(a.size) c WHERE a.size <> c.size}), 'f', '... and of no other');
for my $wrong ('accord.proof(0)', 'accord.proof(99999999999)', 'accord.proof(1, 2)', 'accord.consistency(2)')
{
    my ($status) = $node->psql('postgres', "SELECT * FROM $wrong");
    isnt($status, 0, "no $wrong");
}

# ---- with the guard taken away

for my $table ('seal', 'seal_node', 'seal_gap')
{
    my ($status, undef, $error) = $node->psql('postgres', "DELETE FROM accord.$table");
    like($error, qr/cannot change or remove/, "accord.$table is for good");
}
value(<<'SQL');
DO $$
DECLARE t regclass;
BEGIN
    FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'accord'::regnamespace
             AND relname ~ '^(event_log|commit_log)_[0-9]$|^seal' AND relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', t);
    END LOOP;
END
$$
SQL
my ($tx, $seq) = split /\|/, value(q{SELECT tx_id, seq FROM accord.commit_log WHERE events = 1 ORDER BY seq OFFSET 5 LIMIT 1});
my $other = value(q{SELECT tx_id FROM accord.commit_log WHERE events = 1 ORDER BY seq OFFSET 9 LIMIT 1});
my ($bulk, $bulk_seq) = split /\|/, value(q{SELECT tx_id, seq FROM accord.commit_log WHERE events = 3000});
my $first = int(($seq - 1) / 64) * 64 + 1;
my $last_gap = value('SELECT max(first) FROM accord.seal_gap');
for my $case (
    [ 'a payload', "UPDATE accord.event_log SET payload = '{}' WHERE tx_id = $tx", "changed $seq.1" ],
    [ 'one key of thousands', "UPDATE accord.event_log SET key = 'x' WHERE tx_id = $bulk AND ord = 1234", "changed $bulk_seq.1234" ],
    [ 'a time', "UPDATE accord.event_log SET recorded_at = recorded_at + '1 us' WHERE tx_id = $bulk AND ord = 7", "changed $bulk_seq.7" ],
    [ 'a salt', "UPDATE accord.event_log SET salt = gen_random_uuid() WHERE tx_id = $tx", "changed $seq.1" ],
    [ 'removed events', "DELETE FROM accord.event_log WHERE tx_id = $bulk AND ord IN (1, 3000)", "removed $bulk_seq.1\nremoved $bulk_seq.3000" ],
    [ 'an inserted event', "INSERT INTO accord.event_log SELECT (jsonb_populate_record(e, '{\"ord\": 2}')).* FROM accord.event_log e WHERE tx_id = $tx", "inserted $seq.2" ],
    [ 'an inserted transaction', "INSERT INTO accord.event_log SELECT (jsonb_populate_record(e, '{\"tx_id\": 99999}')).* FROM accord.event_log e WHERE tx_id = $tx", "inserted" ],
    [ 'a removed commit', "DELETE FROM accord.commit_log WHERE seq = $seq", "removed $seq\ninserted" ],
    [ 'a removed transaction', "DELETE FROM accord.commit_log WHERE seq = $seq; DELETE FROM accord.event_log WHERE tx_id = $tx", "removed $seq" ],
    [ 'an inserted commit', "INSERT INTO accord.commit_log SELECT (jsonb_populate_record(c, jsonb_build_object('seq', $last_gap))).* FROM accord.commit_log c WHERE seq = $seq", "inserted $last_gap" ],
    [ 'an actor', "UPDATE accord.commit_log SET actor = 'somebody else' WHERE seq = $seq", "changed $seq" ],
    [ 'a digest', "UPDATE accord.commit_log SET digest = sha256(digest) WHERE seq = $seq", "changed $seq" ],
    [ 'a node', "UPDATE accord.seal_node SET hash = sha256(hash) WHERE level = 6 AND index = 0", "changed 1\nchanged 1" ],
    [ 'a root', "UPDATE accord.seal SET root = sha256(root) WHERE size = (SELECT min(size) FROM accord.seal)", 'changed ' . value('SELECT min(size) FROM accord.seal') ],
    [ 'an erasure without a word', "UPDATE accord.event_log SET payload = NULL, salt = NULL, erased = '\\x00' WHERE tx_id = $tx", "changed $seq.1" ],
    [ 'nothing', '', '' ])
{
    my ($what, $sql, $expected) = @$case;
    my $got = findings($sql);
    $got =~ s/\n?inserted \d+\.\d+\n?//g if $expected =~ /^inserted$|removed \d+\ninserted/;
    $got = findings($sql) if $got eq '';
    is(join("\n", sort split /\n/, $got), join("\n", sort split /\n/, $expected), "found: $what") if $expected !~ /^inserted$|\ninserted$/;
    like(findings($sql), qr/inserted/, "found: $what") if $expected =~ /inserted$/;
}
# Somebody who knows the digests and makes them fit: what was sealed does not.
my $forged = findings(qq{UPDATE accord.event_log e SET (key, payload, salt) = (SELECT f.key, f.payload, f.salt FROM accord.event_log f WHERE f.tx_id = $other)
    WHERE tx_id = $tx; UPDATE accord.commit_log SET digest = (SELECT digest FROM accord.commit_log WHERE tx_id = $other) WHERE tx_id = $tx});
isnt($forged, '', 'found: a transaction replaced by another');

# ---- bytes on disk

commits(1);
value(q{INSERT INTO accord.outbox (topic, key, payload) VALUES ('disk', 'k', '{"needle": "in a haystack"}')});
my $place = value(q{SELECT seq || '.' || ord FROM accord.read(0, 10000000) WHERE topic = 'disk'});
my $path = $node->data_dir . '/' . value(q{SELECT pg_relation_filepath('accord.event_log_0')});
value('SELECT accord.seal(); CHECKPOINT');
$node->stop;
sub flip
{
    open my $file, '+<:raw', $path or die "$path: $!";
    my $content = do { local $/ = undef; <$file> };
    my $at = index $content, 'haystack';
    seek $file, $at, 0;
    print $file chr(ord(substr $content, $at, 1) ^ 1);
    close $file or die;
    return $at;
}
# Checksums, the default from 18 on, would find it first, and give no row of that page.
PostgreSQL::Test::Utils::run_log([ 'pg_checksums', '--disable', '-D', $node->data_dir ]);
cmp_ok(flip(), '>', 0, 'a bit is turned in a file of the stopped server');
$node->start;
is(findings(), "changed $place", '... and found');
$node->stop;
{
    open my $file, '+<:raw', $path or die;
    my $content = do { local $/ = undef; <$file> };
    seek $file, index($content, 'iaystack'), 0;
    print $file 'h';
    close $file or die;
}
$node->start;
is(findings(), '', '... until it is turned back');

# ---- when slots were emptied

my $straggler = open_session($node);
$straggler->run(q{BEGIN; INSERT INTO accord.outbox (topic, key) VALUES ('late', '1')});
value(q{SELECT accord.turn_log_ring(true)});
commits(100);
$straggler->run('COMMIT');
$straggler->close;
commits(50);
value('SELECT accord.seal(); SELECT accord.turn_log_ring(true)');
commits(30);
value('SELECT accord.seal()');
is(value('SELECT count(DISTINCT slot) FROM accord.commit_log'), 3, 'commits in three slots, one of them late');
my $size = value('SELECT max(size) FROM accord.seal');
value('ALTER SYSTEM SET accord.log_retention = 0');
$node->reload;
$node->poll_query_until('postgres', 'SELECT setting::integer = 0 FROM pg_settings WHERE name = $$accord.log_retention$$');
value(q{SELECT setval('accord.position_0', (SELECT last_value FROM accord.commit_seq));
        UPDATE accord.checkpoint SET position = (SELECT last_value FROM accord.commit_seq)});
# a consumer that has read the first slot, late commit and all, keeps the second one
value(q{INSERT INTO accord.consumer (name) VALUES ('holder');
        SELECT accord.rewind('holder', (SELECT seq FROM accord.read(0, 10000000) WHERE topic = 'late'))});
value('SELECT accord.turn_log_ring()');
is(value('SELECT count(DISTINCT slot) FROM accord.commit_log'), 2, 'the oldest slot is emptied');
is(findings(), '', 'what remains is as it was sealed');
is(value($consistent) =~ s/^\d+\|//r, 't', 'seals are still the beginnings of later ones');
is(value($proofs), value('SELECT count(*) FROM accord.commit_log') . '|t', 'every commit that remains is proven');
my (undef, undef, $error) = $node->psql('postgres', 'SELECT accord.proof(70)');
like($error, qr/cannot be proven/, '... and what is gone is not');
is(findings('DELETE FROM accord.commit_log WHERE seq = ' . ($size - 35)) =~ /removed @{[ $size - 35 ]}/, 1, 'what is removed now is found');
value(q{DELETE FROM accord.consumer});
value('SELECT accord.turn_log_ring(true)') for 1 .. 2;
commits(5);
value('SELECT accord.seal()');
is(findings(), '', 'and so on, when the next ones have gone');
is(value($consistent) =~ s/^\d+\|//r, 't', '... with all the seals there were');
value('ALTER SYSTEM RESET accord.log_retention');
$node->reload;

# ---- erasing

my $secret = 'Mrs Smith, 4 Privet Drive';
value(qq{INSERT INTO accord.outbox (topic, key, payload, headers, idempotency_key)
         SELECT 'guest', g::text, jsonb_build_object('name', '$secret'), '{"X-Guest": "Smith"}', 'i' || g FROM generate_series(1, 3) g});
value('SELECT accord.seal()');
(undef, undef, $error) = $node->psql('postgres', q{SELECT accord.erase(event_id, '') FROM accord.event_log WHERE topic = 'guest'});
like($error, qr/without a reason/, 'nothing is erased without a reason');
is(value(q{BEGIN; SET LOCAL accord.actor = 'officer'; SELECT accord.erase(event_id, 'she asked for it') FROM accord.event_log WHERE topic = 'guest' AND key = '2'; COMMIT}),
    't', 'an event is erased');
is(value(q{SELECT key, payload, headers, salt FROM accord.event_log WHERE topic = 'guest' AND erased IS NOT NULL}), '2|||', '... its content is gone');
is(value(q{SELECT c.actor, e.payload ->> 'reason' FROM accord.event_log e JOIN accord.commit_log c USING (slot, tx_id) WHERE e.topic = 'accord.erase'}),
    'officer|she asked for it', '... and who did it, and why, is an event');
is(value(q{SELECT accord.erase(event_id, 'again') FROM accord.event_log WHERE topic = 'guest' AND key = '2'}), 'f', '... once');
is(value(q{SELECT length(fingerprint) FROM accord.idempotency_key WHERE key = 'i2'}), 0, '... its fingerprint went, too');
value('SELECT accord.seal()');
is(findings(), '', 'the log is as it was written and sealed');
is(value($proofs), value('SELECT count(*) FROM accord.commit_log') . '|t', '... which is proven');
isnt(findings(q{UPDATE accord.event_log e SET (payload, headers, salt, erased, erased_by) = (SELECT NULL::jsonb, NULL::jsonb, NULL::uuid, f.erased, f.erased_by
    FROM accord.event_log f WHERE f.topic = 'guest' AND f.key = '2') WHERE topic = 'guest' AND key = '3'}), '', 'an erasure cannot be forged by another');
isnt(findings(q{DELETE FROM accord.event_log WHERE topic = 'accord.erase'}), '', '... nor be kept secret');

# ---- a dump

$node->command_ok([ 'pg_dump', '-Fc', '-f', $node->basedir . '/dump', 'postgres' ], 'a dump');
value('CREATE DATABASE copy');
$node->command_ok([ 'pg_restore', '-d', 'copy', $node->basedir . '/dump' ], '... is restored');
is($node->safe_psql('copy', 'SELECT count(*) FROM accord.verify()'), 0, '... and verified');
is($node->safe_psql('copy', 'SELECT string_agg(encode(root, $$hex$$), $$ $$ ORDER BY size) FROM accord.seal'),
    value('SELECT string_agg(encode(root, $$hex$$), $$ $$ ORDER BY size) FROM accord.seal'), '... against the same seals');
$node->safe_psql('copy', q{SELECT accord.adopt(); INSERT INTO accord.outbox (topic) VALUES ('t')});
is($node->safe_psql('copy', 'SELECT accord.seal() > ' . value('SELECT max(size) FROM accord.seal')), 't', '... and goes on from there');
is($node->safe_psql('copy', 'SELECT count(*) FROM accord.verify()'), 0, '... as it should');
value('DROP DATABASE copy');

# ---- a witness

send_everything($node);
channel($node, $stub, 'witness');
route($node, 'witness', topic => 'accord.seal', path => '/seal');
channel($node, $stub, 'all', route => { topic => '*', path => '/all' });
(undef, undef, $error) = $node->psql('postgres', q{INSERT INTO accord.route (channel, topic) VALUES ('all', 'accord.erase')});
like($error, qr/is reserved/, 'other topics of ours cannot be sent');
value(q{INSERT INTO accord.outbox (topic) VALUES ('t')});
value('ALTER SYSTEM SET accord.dispatch = on');
$node->reload;
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM accord.attempt_log WHERE channel = 'witness' AND outcome = 'delivered'})
  or die "the witness was told nothing\n";
my ($told) = grep { $_->{path} eq '/seal' } $stub->log;
like($told->{body}, qr/"root": *"@{[ value('SELECT encode(root, $$hex$$) FROM accord.seal ORDER BY size DESC LIMIT 1') ]}"/,
    'a channel is told of the root');
is(scalar(grep { $_->{path} eq '/all' && index($_->{body}, 'previous_size') >= 0 } $stub->log), 0, '... but not one that asked for everything');
my $seals = value('SELECT count(*) FROM accord.seal');
value('SELECT accord.seal()');
is(value('SELECT count(*) FROM accord.seal'), $seals, 'what tells of a seal is not sealed by itself');

# What is erased is not sent any more.
$stub->script([ { match => { path_regex => '/all' }, do => { status => 503 } } ]);
my $id = value(qq{INSERT INTO accord.outbox (topic, key, payload) VALUES ('guest', 'x', '{"name": "$secret"}') RETURNING event_id});
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM accord.backlog WHERE channel = 'all' AND state = 'retrying'}) or die;
value("SELECT accord.erase('$id', 'gone')");
wait_for_delivery($node);
is(value("SELECT state FROM accord.backlog_log JOIN accord.commit_log USING (seq) JOIN accord.event_log e ON e.tx_id = commit_log.tx_id AND e.event_id = '$id' ORDER BY version DESC LIMIT 1"),
    'discarded', 'what is owed of an erased event is discarded');
is(value("SELECT string_agg(response, '') FROM accord.attempt WHERE event_id = '$id'"), '', '... and answers to it are gone');
value("SELECT accord.redeliver('$id'::uuid)");
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM accord.attempt WHERE event_id = '$id' AND outcome = 'invalid' AND error ~ 'erased'")
  or die "an erased event was not refused\n";
pass('... nor is it sent when it is owed again');
is(value('SELECT count(*) FROM accord.verify()'), 0, 'all of it is as it was written');
$node->stop;
done_testing();
