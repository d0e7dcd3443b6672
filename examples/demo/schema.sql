-- The application: a property manager's database.
--
-- Its tables know nothing of HTTP, and the code that changes them is plain SQL. Three triggers write down what changed,
-- as rows of accord.outbox, in the transaction of the change: so an event exists exactly when its change does.

CREATE TABLE listing (
    id integer PRIMARY KEY,
    name text NOT NULL,
    units integer NOT NULL CHECK (units > 0)
);

-- version counts the changes of a night, so that what a channel received can be put beside what was committed.
CREATE TABLE rate (
    listing integer NOT NULL REFERENCES listing,
    night date NOT NULL,
    price numeric(8,2) NOT NULL CHECK (price > 0),
    available integer NOT NULL CHECK (available >= 0),
    version integer NOT NULL DEFAULT 1,
    PRIMARY KEY (listing, night)
);

CREATE TABLE booking (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    listing integer NOT NULL REFERENCES listing,
    guest text NOT NULL,
    arrives date NOT NULL,
    leaves date NOT NULL CHECK (leaves > arrives),
    status text NOT NULL DEFAULT 'confirmed' CHECK (status IN ('confirmed', 'cancelled')),
    revision integer NOT NULL DEFAULT 0
);

CREATE TABLE message (
    booking bigint NOT NULL REFERENCES booking,
    no integer NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (booking, no)
);

-- What guests booked at the booking site; only what comes from there writes it.
CREATE TABLE site_booking (
    id text PRIMARY KEY,
    listing integer NOT NULL,
    guest text NOT NULL,
    arrives date NOT NULL,
    leaves date NOT NULL CHECK (leaves > arrives),
    status text NOT NULL,
    version integer NOT NULL
);

-- ---- what the channels are told --------------------------------------------------------------------------------------

CREATE FUNCTION announce_rate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO accord.outbox (topic, key, op, payload)
    VALUES ('rate.changed', NEW.listing || '/' || NEW.night, lower(TG_OP), to_jsonb(NEW));
    RETURN NULL;
END
$$;
CREATE TRIGGER announce AFTER INSERT OR UPDATE ON rate FOR EACH ROW EXECUTE FUNCTION announce_rate();

CREATE FUNCTION announce_booking() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO accord.outbox (topic, key, op, payload)
    VALUES ('booking.' || NEW.status, NEW.id::text, lower(TG_OP), to_jsonb(NEW));
    RETURN NULL;
END
$$;
CREATE TRIGGER announce AFTER INSERT OR UPDATE ON booking FOR EACH ROW EXECUTE FUNCTION announce_booking();

-- The key is the booking: a guest reads the messages about a stay in the order in which they were written.
CREATE FUNCTION announce_message() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO accord.outbox (topic, key, op, payload)
    SELECT 'message.written', NEW.booking::text, 'insert', to_jsonb(NEW) || jsonb_build_object('guest', b.guest)
    FROM booking b WHERE b.id = NEW.booking;
    RETURN NULL;
END
$$;
CREATE TRIGGER announce AFTER INSERT ON message FOR EACH ROW EXECUTE FUNCTION announce_message();

-- ---- what reception does ---------------------------------------------------------------------------------------------

CREATE FUNCTION opening() RETURNS date IMMUTABLE RETURN date '2027-01-01';

CREATE FUNCTION reprice(listing integer, first integer, nights integer, price numeric) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM listing l WHERE l.id = reprice.listing FOR NO KEY UPDATE;
    UPDATE rate r SET price = reprice.price, version = r.version + 1
    WHERE r.listing = reprice.listing AND r.night >= opening() + first AND r.night < opening() + first + nights;
END
$$;

-- Takes a unit more (or less, when negative) of each night.
CREATE FUNCTION occupy(listing integer, arrives date, leaves date, units integer) RETURNS void
BEGIN ATOMIC
    UPDATE rate r SET available = r.available - units, version = r.version + 1
    WHERE r.listing = occupy.listing AND r.night >= arrives AND r.night < leaves;
END;

CREATE FUNCTION say(booking bigint, body text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM booking b WHERE b.id = say.booking FOR NO KEY UPDATE;
    INSERT INTO message (booking, no, body)
    SELECT b.id, (SELECT count(*) + 1 FROM message m WHERE m.booking = b.id), say.body
    FROM booking b WHERE b.id = say.booking;
END
$$;

-- Null when the house is full. The lock on the listing keeps two from taking its last unit.
CREATE FUNCTION book(listing integer, first integer, nights integer, guest text) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    arrives date := opening() + first;
    leaves date := arrives + nights;
    booked bigint;
BEGIN
    PERFORM FROM listing l WHERE l.id = book.listing FOR NO KEY UPDATE;
    IF EXISTS (SELECT FROM rate r WHERE r.listing = book.listing AND r.night >= arrives AND r.night < leaves
                                    AND r.available = 0) THEN
        RETURN NULL;
    END IF;
    PERFORM occupy(book.listing, arrives, leaves, 1);
    INSERT INTO booking (listing, guest, arrives, leaves) VALUES (book.listing, book.guest, arrives, leaves)
        RETURNING id INTO booked;
    PERFORM say(booked, format('Dear %s, we expect you on %s.', guest, arrives));
    RETURN booked;
END
$$;

CREATE FUNCTION cancel(booking bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    b booking;
BEGIN
    PERFORM FROM listing l WHERE l.id = (SELECT o.listing FROM booking o WHERE o.id = cancel.booking) FOR NO KEY UPDATE;
    UPDATE booking o SET status = 'cancelled', revision = o.revision + 1
        WHERE o.id = cancel.booking AND o.status = 'confirmed' RETURNING * INTO b;
    IF FOUND THEN
        PERFORM occupy(b.listing, b.arrives, b.leaves, -1), say(b.id, 'Your stay is cancelled, as you wished.');
    END IF;
END
$$;

-- The guest's name is corrected: the calendar's entry changes, nothing else does.
CREATE FUNCTION rename(booking bigint, guest text) RETURNS void
BEGIN ATOMIC
    UPDATE booking b SET guest = rename.guest, revision = b.revision + 1
    WHERE b.id = rename.booking AND b.status = 'confirmed';
END;

CREATE FUNCTION some_booking() RETURNS bigint
BEGIN ATOMIC
    SELECT b.id FROM booking b WHERE b.status = 'confirmed' ORDER BY random() LIMIT 1;
END;

-- Names with what APIs stumble over: commas, semicolons, quotes, backslashes, letters beyond ASCII.
CREATE FUNCTION guest(n integer) RETURNS text IMMUTABLE
RETURN (ARRAY['Ada Ruiz', 'O''Neil, Zoë', 'Müller; Söhne', 'Nguyễn Văn An', 'Jean "Jo" Luc', '李小龙', 'Back\slash',
              'Åsa Öberg', 'Ines & Tom', 'Ravi <Rao>'])[n % 10 + 1] || ' ' || n;

-- ---- what the comparison at the end needs ----------------------------------------------------------------------------

-- Every state a night ever had, kept by the application itself, so that the channels are not measured by the
-- extension's own log.
CREATE TABLE rate_history (LIKE rate, PRIMARY KEY (listing, night, version));
CREATE FUNCTION keep_rate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO rate_history SELECT NEW.*;
    RETURN NULL;
END
$$;
CREATE TRIGGER keep AFTER INSERT OR UPDATE ON rate FOR EACH ROW EXECUTE FUNCTION keep_rate();

-- Sequences do not roll back: this one counts what did.
CREATE SEQUENCE abandoned;

-- ---- who does it -----------------------------------------------------------------------------------------------------

CREATE ROLE reception LOGIN;
SELECT accord.grant_writer('reception');
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO reception;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO reception;
