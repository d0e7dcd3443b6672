-- Stripe: payments that are asked for in SQL, sent as forms, each under an idempotency key, and never twice.
--
--   psql -v api_key=sk_... -f stripe.sql
--
-- accord.secret_key_file should be set (see "Secrets"), or the key is stored as it is.
\set ON_ERROR_STOP on
\if :{?base_url} \else
    \set base_url https://api.stripe.com
\endif
BEGIN;
INSERT INTO accord.secret (name, value) VALUES ('stripe/key', :'api_key');

-- Keys are remembered for a day: a command that could not be sent by then is held for a person, not repeated blindly.
INSERT INTO accord.channel (name, base_url, auth, headers, idempotency_window, probe_path, max_response)
    VALUES ('stripe', :'base_url', '{"type": "bearer", "secret": "stripe/key"}', '{"Stripe-Version": "2024-06-20"}', '24 h',
            '/v1/balance', 262144);
INSERT INTO accord.rate_limit (channel, amount, period, burst) VALUES ('stripe', 25, '1 s', 25);

-- Under a key Stripe gives the answer that it gave first, a 500 as well: to repeat it again would never help, so it becomes
-- a dead letter; whether it was carried out is to be seen there. A declined card (402) is an answer.
INSERT INTO accord.rule (channel, position, status, headers, outcome, error) VALUES
    ('stripe', 10, '5xx', '{"Idempotent-Replayed": "true"}', 'rejected', '$.error.message'),
    ('stripe', 20, '402', '{}', 'rejected', '$.error.message'),
    ('stripe', 30, '400', '{}', 'rejected', '$.error.message');

-- Commands: every one counts once. The body is the payload, as a form: {"metadata": {"booking": "B42"}} is metadata[booking]=B42.
INSERT INTO accord.route (channel, topic, path, body, mode) VALUES
    ('stripe', 'payment.request', '/v1/payment_intents', 'form', 'command'),
    ('stripe', 'payment.capture', '/v1/payment_intents/{payload.intent}/capture', 'form', 'command'),
    ('stripe', 'payment.refund', '/v1/refunds', 'form', 'command');
UPDATE accord.route SET body_from = 'payload.with' WHERE channel = 'stripe' AND topic = 'payment.capture';

CREATE SCHEMA shop;
CREATE TABLE shop.booking (
    id text PRIMARY KEY,
    email text NOT NULL,
    total numeric(10, 2) NOT NULL CHECK (total > 0),
    payment uuid                                        -- the event that asked for it
);
-- In the transaction that makes the booking: no booking without the request, and none without the booking.
CREATE FUNCTION shop.ask_for_payment() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO accord.outbox (topic, key, payload, idempotency_key)
        VALUES ('payment.request', NEW.id, jsonb_build_object('amount', (NEW.total * 100)::bigint, 'currency', 'eur',
                'capture_method', 'manual', 'payment_method_types', '["card"]'::jsonb, 'receipt_email', NEW.email,
                'metadata', jsonb_build_object('booking', NEW.id)), 'payment of ' || NEW.id)
        RETURNING event_id INTO NEW.payment;
    RETURN NEW;
END
$$;
CREATE TRIGGER ask_for_payment BEFORE INSERT ON shop.booking FOR EACH ROW EXECUTE FUNCTION shop.ask_for_payment();
COMMIT;

-- A booking:    INSERT INTO shop.booking (id, email, total) VALUES ('B42', 'ann@example.com', 120);
-- Its request:  SELECT p.* FROM shop.booking b, accord.preview(b.payment, 'stripe') p WHERE b.id = 'B42';
-- Captured:     INSERT INTO accord.outbox (topic, key, payload)
--                   VALUES ('payment.capture', 'B42', '{"intent": "pi_123", "with": {"amount_to_capture": 12000}}');
-- Is the key good? SELECT * FROM accord.probe('stripe');
-- What became of it: SELECT at, step, status, detail FROM accord.timeline WHERE key = 'B42';
