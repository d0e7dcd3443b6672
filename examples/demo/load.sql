-- One turn of a pgbench client: what reception does, at random. Run as role reception.
\set what random(1, 100)
\set listing random(1, 12)
\set night random(0, 56)
\set nights random(1, 4)
\set price random(40, 400)
\set guest random(1, 500)

\if :what <= 35
SELECT reprice(:listing, :night, :nights, :price);

\elif :what <= 55
SELECT book(:listing, :night, :nights, guest(:guest));

\elif :what <= 75
SELECT say(some_booking(), 'Message ' || :price || ' about your stay.');

\elif :what <= 79
SELECT rename(some_booking(), guest(:guest));

\elif :what <= 84
SELECT cancel(some_booking());

\elif :what <= 92
-- A change of mind: what follows the savepoint never happened.
BEGIN;
SELECT reprice(:listing, :night, :nights, :price);
SAVEPOINT doubt;
SELECT reprice(:listing, :night, :nights, 6666);
SELECT book(:listing, :night, :nights, 'Nobody');
SELECT nextval('abandoned');
ROLLBACK TO SAVEPOINT doubt;
SELECT reprice(:listing, :night, 1, :price + 1);
COMMIT;

\else
-- All of it abandoned.
BEGIN;
SELECT book(:listing, :night, :nights, 'Nobody');
SELECT reprice(:listing, :night, :nights, 6666);
SELECT nextval('abandoned');
ROLLBACK;
\endif
