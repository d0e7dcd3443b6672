-- The house opens: twelve listings and their rates for sixty nights, in one transaction. Run as role reception.
BEGIN;
INSERT INTO listing SELECT n, 'Apartment ' || n, 3 FROM generate_series(1, 12) n;
INSERT INTO rate (listing, night, price, available)
    SELECT l.id, opening() + n, 80 + l.id * 5 + n % 7, l.units FROM listing l, generate_series(0, 59) n;
COMMIT;
