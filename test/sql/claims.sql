-- claims: overlapping claims of a resource are all kept, and so many are accepted as there is room for, in an order that
-- does not depend on when they came.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
CREATE EXTENSION IF NOT EXISTS btree_gist;
RESET client_min_messages;
CREATE SCHEMA cl;
SET search_path = cl, public;
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
\pset fieldsep ' | '

CREATE TABLE booking (
    id text PRIMARY KEY,
    room text,
    nights daterange,
    status text NOT NULL DEFAULT 'booked',
    vip boolean NOT NULL DEFAULT false,
    booked_at timestamptz NOT NULL DEFAULT '2026-01-01',
    channel text,
    accepted boolean NOT NULL DEFAULT false,
    EXCLUDE USING gist (room WITH =, nights WITH &&) WHERE (accepted)
);
CREATE VIEW standing AS SELECT string_agg(id, ' ' ORDER BY id) FROM booking WHERE accepted;
-- What was told since the last look.
CREATE TABLE seen (seq bigint);
INSERT INTO seen SELECT accord.safe_seq();
CREATE FUNCTION told() RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT format('%s %s%s%s', e.payload ->> 'verdict', e.key,
                               coalesce(' against ' || (e.payload ->> 'against'), ''), ' to ' || e.channels::text)
        FROM seen s, accord.read(s.seq) e WHERE e.topic LIKE 'booking.%' ORDER BY e.seq, e.ord;
    UPDATE seen SET seq = accord.safe_seq();
END
$$;

-- mistakes are refused
SELECT accord.manage_claims(NULL, '{room}', 'nights');
SELECT accord.manage_claims('standing', '{room}', 'nights');
SELECT accord.manage_claims('booking', '{}', 'nights');
SELECT accord.manage_claims('booking', NULL, 'nights');
SELECT accord.manage_claims('booking', '{house}', 'nights');
SELECT accord.manage_claims('booking', '{room}', 'room');
SELECT accord.manage_claims('booking', '{room}', 'nights', accepted => 'status');
SELECT accord.manage_claims('booking', '{room}', 'nights', ranking => '{"rank DESC"}');
SELECT accord.manage_claims('booking', '{room}', 'nights', ranking => '{"vip; DROP TABLE booking"}');
SELECT accord.manage_claims('booking', '{room}', 'nights', condition => 'stat = 1');
SELECT accord.manage_claims('booking', '{room}', 'nights', capacity => 'status');
SELECT accord.manage_claims('booking', '{room}', 'nights', capacity => '(SELECT count(*) FROM cl.booking)');
SELECT accord.unmanage_claims('booking');
SELECT accord.manage_claims('booking', '{room}', 'nights', topic => 'a b');
SELECT accord.manage_claims('accord.claims', '{topic}', 'during');
SELECT accord.settle_claims('booking');
SELECT accord.unmanage_claims('booking');
CREATE TABLE keyless (room text, nights daterange, accepted boolean);
SELECT accord.manage_claims('keyless', '{room}', 'nights');

-- what is there is decided
INSERT INTO booking (id, room, nights) VALUES ('a', '1', '[2026-05-01,2026-05-04)'), ('b', '1', '[2026-05-03,2026-05-06)'),
    ('c', '1', '[2026-05-05,2026-05-08)'), ('d', '2', '[2026-05-01,2026-05-09)');
SELECT accord.manage_claims('booking', '{room}', 'nights', ranking => '{"vip DESC", booked_at}',
    condition => 'status <> ''cancelled''', frozen => 'status = ''checked in''', source_column => 'channel');
TABLE standing;
SELECT * FROM told();

-- nobody else decides
INSERT INTO booking (id, room, nights, accepted) VALUES ('e', '2', '[2026-05-08,2026-05-10)', true) RETURNING id, accepted;
UPDATE booking SET accepted = true WHERE id = 'e';
UPDATE booking SET accepted = false WHERE id = 'd';
UPDATE booking SET booked_at = booked_at, accepted = accepted;
TABLE standing;
SELECT * FROM told();

-- who comes first displaces; adjacent nights do not overlap; what does not overlap is left alone
INSERT INTO booking (id, room, nights, vip) VALUES ('v', '1', '[2026-05-04,2026-05-07)', true);
TABLE standing;
SELECT * FROM told();
-- who cancels makes room
UPDATE booking SET status = 'cancelled' WHERE id = 'v';
TABLE standing;
SELECT * FROM told();
UPDATE booking SET status = 'booked' WHERE id = 'v';
TABLE standing;
SELECT * FROM told();
DELETE FROM booking WHERE id = 'v';
TABLE standing;
SELECT * FROM told();
-- who moves is decided anew, at both places
UPDATE booking SET room = '2', nights = '[2026-05-09,2026-05-12)' WHERE id = 'a';
TABLE standing;
SELECT * FROM told();
-- a change that makes no difference decides nothing
SELECT sum(decisions) AS decisions FROM accord.claim_resource \gset
UPDATE booking SET channel = NULL;
SELECT sum(decisions) = :decisions FROM accord.claim_resource;
-- the earlier one, by time, then by its name in bytes
INSERT INTO booking (id, room, nights, booked_at) VALUES ('B', '3', '[2026-05-01,2026-05-03)', '2026-03-01');
INSERT INTO booking (id, room, nights, booked_at) VALUES ('a1', '3', '[2026-05-02,2026-05-03)', '2026-03-01');
INSERT INTO booking (id, room, nights, booked_at) VALUES ('z', '3', '[2026-05-01,2026-05-02)', '2026-02-01');
TABLE standing;
SELECT * FROM told();
-- who has moved in stays, whoever comes
UPDATE booking SET status = 'checked in' WHERE id = 'a1';
INSERT INTO booking (id, room, nights, vip) VALUES ('king', '3', '[2026-05-01,2026-05-05)', true);
TABLE standing;
SELECT * FROM told();
-- empty and missing ranges, a missing resource
INSERT INTO booking (id, room, nights) VALUES ('n1', NULL, '[2026-05-01,2026-05-05)'), ('n2', '9', NULL), ('n3', '9', 'empty'),
    ('n4', '9', '[2026-05-01,2026-05-05)');
UPDATE booking SET nights = 'empty' WHERE id = 'n4';
SELECT id, accepted FROM booking WHERE id LIKE 'n_' ORDER BY id;
SELECT * FROM told();
-- many at once: COPY, ON CONFLICT, and a savepoint that is rolled back
COPY booking (id, room, nights) FROM stdin;
k1	4	[2026-05-01,2026-05-03)
k2	4	[2026-05-02,2026-05-04)
k3	4	[2026-05-03,2026-05-05)
\.
INSERT INTO booking (id, room, nights, vip) VALUES ('k2', '4', '[2026-05-02,2026-05-04)', true)
    ON CONFLICT (id) DO UPDATE SET vip = excluded.vip;
INSERT INTO booking (id, room, nights, vip) VALUES ('k2', '4', '(,)', true) ON CONFLICT (id) DO NOTHING;
BEGIN;
SAVEPOINT s;
INSERT INTO booking (id, room, nights, vip, booked_at) VALUES ('k0', '4', '(,)', true, '2020-01-01');
SELECT string_agg(id, ' ' ORDER BY id) FROM booking WHERE accepted AND room = '4';
ROLLBACK TO s;
COMMIT;
SELECT string_agg(id, ' ' ORDER BY id) FROM booking WHERE accepted AND room = '4';
SELECT * FROM told();

-- its own channel is told, also of what a message from there was captured
INSERT INTO accord.channel (name, base_url) VALUES ('cl_ota', 'https://ota.example');
SELECT accord.capture('booking') IS NOT NULL;
SET accord.source = 'cl_ota';
INSERT INTO booking (id, room, nights, channel) VALUES ('o1', '5', '[2026-05-01,2026-05-05)', 'cl_ota');
INSERT INTO booking (id, room, nights, channel, vip) VALUES ('o2', '5', '[2026-05-01,2026-05-05)', 'cl_ota', true);
INSERT INTO booking (id, room, nights, channel) VALUES ('o3', '5', '[2026-05-01,2026-05-05)', 'unknown');
RESET accord.source;
SELECT * FROM told();
SELECT e.op, e.key, e.payload ->> 'accepted', coalesce(e.source, 'null') FROM accord.event_log e JOIN accord.commit_log c USING (tx_id)
WHERE e.topic IN ('booking', 'booking.claim') AND e.key LIKE 'o_' ORDER BY c.seq, e.ord;
SELECT accord.release('booking');

-- who lost is on record, with both rows
SELECT relation::text, key, rule, state, winner ->> 'id', winner_source, loser ->> 'id', loser_source FROM accord.conflict
WHERE key LIKE 'o_' ORDER BY conflict_id;
SELECT key, winner ->> 'id' FROM accord.conflict WHERE key IN ('king', 'B') ORDER BY conflict_id;
DO $$
BEGIN
    PERFORM accord.override(conflict_id, 'he asked') FROM accord.conflict WHERE key = 'o3';
EXCEPTION WHEN invalid_parameter_value THEN
    RAISE NOTICE '%', regexp_replace(SQLERRM, '[0-9]+', 'N');
END
$$;

-- room for several: capacity by an expression, and one that changes elsewhere
CREATE TABLE room_type (name text PRIMARY KEY, rooms integer);
CREATE TABLE stay (hotel text, type text, id integer, nights int4range, accepted boolean, PRIMARY KEY (hotel, id));
INSERT INTO room_type VALUES ('double', 2);
SELECT accord.manage_claims('stay', '{hotel,type}', 'nights',
    capacity => '(SELECT r.rooms FROM cl.room_type r WHERE r.name = stay.type)', topic => 'booking.stay');
INSERT INTO stay VALUES ('h', 'double', 1, '[1,5)'), ('h', 'double', 2, '[3,8)'), ('h', 'double', 3, '[4,5]'), ('h', 'double', 4, '[5,9)'),
    ('h', 'single', 5, '[1,2)'), ('g', 'double', 1, '[1,9)');
SELECT hotel, id, accepted FROM stay ORDER BY 1, 2;
UPDATE room_type SET rooms = 3;
SELECT accord.settle_claims('stay');
SELECT accord.settle_claims('stay');
SELECT hotel, id, accepted FROM stay ORDER BY 1, 2;
UPDATE room_type SET rooms = 0;
SELECT accord.settle_claims('stay'), count(*) FILTER (WHERE accepted) FROM stay;

-- bounds: what is shared by both is an overlap, what only one has is not
CREATE TABLE slot (id integer PRIMARY KEY, lock text, valid numrange, accepted boolean);
SELECT accord.manage_claims('slot', '{lock}', 'valid');
INSERT INTO slot VALUES (1, 'l', '[1,2]'), (2, 'l', '[2,3]'), (3, 'l', '(2,3)'), (4, 'l', '[3,)'), (5, 'l', '(,1)'), (6, 'l', '(,)');
SELECT string_agg(id::text, ' ' ORDER BY id) FROM slot WHERE accepted;

-- partitioned, quoted, and not the owner's to see
CREATE TABLE "Übernachtung" ("Nr." integer, "Haus" text, "von, bis" tstzrange, "gilt?" boolean, PRIMARY KEY ("Nr.", "Haus"))
    PARTITION BY LIST ("Haus");
CREATE TABLE nord PARTITION OF "Übernachtung" FOR VALUES IN ('nord');
CREATE TABLE rest PARTITION OF "Übernachtung" DEFAULT;
ALTER TABLE "Übernachtung" ENABLE ROW LEVEL SECURITY;
CREATE ROLE regress_accord_guest;
CREATE POLICY own ON "Übernachtung" TO regress_accord_guest USING ("Nr." < 10);
GRANT USAGE ON SCHEMA cl TO regress_accord_guest;
GRANT SELECT, INSERT ON "Übernachtung" TO regress_accord_guest;
SELECT accord.manage_claims('"Übernachtung"', '{Haus}', 'von, bis', accepted => 'gilt?');
INSERT INTO "Übernachtung" VALUES (11, 'nord', '[2026-05-01,2026-05-03)');
SET ROLE regress_accord_guest;
INSERT INTO "Übernachtung" VALUES (2, 'nord', '[2026-05-02,2026-05-04)'), (3, 'nord', '[2026-05-03,2026-05-05)'), (4, 'süd', '[2026-05-03,2026-05-05)');
SELECT * FROM "Übernachtung" ORDER BY 1;
SELECT accord.manage_claims('booking', '{room}', 'nights');
SELECT accord.unmanage_claims('booking');
RESET ROLE;
SELECT "Nr.", "gilt?" FROM "Übernachtung" ORDER BY 1;

-- partitions are written to directly, emptied, taken out and put in; one that comes later as well
CREATE TABLE part (id integer, house text, room text, nights int4range, accepted boolean NOT NULL DEFAULT false, PRIMARY KEY (id, house))
    PARTITION BY LIST (house);
CREATE TABLE part_n PARTITION OF part FOR VALUES IN ('n');
SELECT accord.manage_claims('part', '{room}', 'nights');
CREATE TABLE part_s PARTITION OF part FOR VALUES IN ('s');
CREATE VIEW parts AS SELECT string_agg(id || house, ' ' ORDER BY id) FROM part WHERE accepted;
INSERT INTO part_n VALUES (2, 'n', '1', '[1,5)');
INSERT INTO part_s VALUES (1, 's', '1', '[4,8)'), (3, 's', '1', '[7,9)');
TABLE parts;
UPDATE part_s SET nights = '[5,8)' WHERE id = 1;
TABLE parts;
DELETE FROM part_s WHERE id = 1;
TABLE parts;
UPDATE part SET house = 's', nights = '[8,9)' WHERE id = 2;
TABLE parts;
INSERT INTO part VALUES (4, 'n', '1', '[8,9)');
TRUNCATE part_s;
TABLE parts;
ALTER TABLE part DETACH PARTITION part_n;
INSERT INTO part_n VALUES (5, 'n', '1', '[8,9)');
UPDATE part_n SET accepted = true;
SELECT tgname FROM pg_trigger WHERE tgrelid = 'part_n'::regclass;
ALTER TABLE part ATTACH PARTITION part_n FOR VALUES IN ('n');
SELECT accord.settle_claims('part');
TABLE parts;
SELECT accord.unmanage_claims('part');
SELECT count(*) FROM pg_trigger WHERE tgrelid IN (SELECT relid FROM pg_partition_tree('part'));

-- what several parts of one statement decide is told once
CREATE TABLE merged (id integer PRIMARY KEY, room integer, d int4range, rank integer, accepted boolean);
SELECT accord.manage_claims('merged', '{room}', 'd', ranking => '{rank DESC}', topic => 'booking.merged');
INSERT INTO merged VALUES (1, 1, '[1,5)', 1), (2, 1, '[1,5)', 0);
SELECT count(*) FROM told();
MERGE INTO merged m USING (VALUES (1, 2), (3, 7)) v (id, rank) ON m.id = v.id
    WHEN MATCHED THEN UPDATE SET rank = v.rank
    WHEN NOT MATCHED THEN INSERT VALUES (v.id, 1, '[1,5)', v.rank);
SELECT id, accepted FROM merged ORDER BY id;
SELECT t FROM told() t WHERE t LIKE 'displaced%';

-- a trigger that moves claims in answer to what becomes of others
CREATE TABLE moving (id integer PRIMARY KEY, room integer, d int4range, rank integer, accepted boolean NOT NULL DEFAULT false,
    EXCLUDE USING gist (room WITH =, d WITH &&) WHERE (accepted));
SELECT accord.manage_claims('moving', '{room}', 'd', ranking => '{rank}');
INSERT INTO moving VALUES (1, 1, '[1,5)', 1), (2, 2, '[1,5)', 1), (3, 3, '[1,5)', 0), (5, 2, '[5,9)', 3), (6, 4, '[1,5)', 3);
CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF old.accepted AND NOT new.accepted AND new.id = 2 THEN
        UPDATE cl.moving SET room = 1 WHERE id = 3;
        UPDATE cl.moving SET room = 2, d = '[4,7)', rank = 2 WHERE id = 6;
    ELSIF old.accepted AND NOT new.accepted THEN
        UPDATE cl.moving SET room = 9 + id WHERE id = new.id;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER move AFTER UPDATE ON moving FOR EACH ROW EXECUTE FUNCTION move();
INSERT INTO moving VALUES (4, 2, '[1,5)', 0);
SELECT id, room, accepted FROM moving ORDER BY id;
SELECT accord.settle_claims('moving');

-- the end
SELECT accord.unmanage_claims('booking');
UPDATE booking SET accepted = false;
SELECT count(*) FROM accord.claims WHERE table_name = 'booking';
DELETE FROM accord.channel WHERE name = 'cl_ota';
SET client_min_messages = warning;
DROP SCHEMA cl CASCADE;
DROP ROLE regress_accord_guest;
DROP EXTENSION btree_gist;
SET search_path = public;
SELECT count(*) FROM accord.claims;
