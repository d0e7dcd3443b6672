-- token: what dispatchers were given by token endpoints, kept across restarts; each is asked for by one dispatcher at a time.
--   key            SHA-256 of the auth column that asks for it: whoever has the same shares the token
--   access_token, refresh_token   sealed where accord.secret_key_file is set; a refresh token given anew takes the place
--                  of the secret's, until somebody sets the secret again (secrets_at)
--   claimed_by     process id of the dispatcher that asks for the next one; nobody else does until claimed_until
--   failures       in a row; retry_at: nobody asks again before
CREATE TABLE accord.token (
    key text PRIMARY KEY,
    url text NOT NULL,
    access_token text,
    refresh_token text,
    secrets_at timestamptz,
    obtained_at timestamptz,
    expires_at timestamptz,
    claimed_by integer,
    claimed_until timestamptz,
    failures integer NOT NULL DEFAULT 0,
    error text,
    retry_at timestamptz
);
-- Its values are sealed, and sealed anew, as those of accord.secret are.
CREATE TRIGGER config_check BEFORE INSERT OR UPDATE ON accord.token FOR EACH ROW EXECUTE FUNCTION accord.config_check();
ALTER TABLE accord.token ENABLE ALWAYS TRIGGER config_check;
COMMENT ON TABLE accord.token IS 'access tokens that were fetched, for auth of type oauth2 and login; sealed as secrets are';
COMMENT ON COLUMN accord.token.key IS 'a digest of the auth column: channels and accounts with the same share the token';
COMMENT ON COLUMN accord.token.url IS 'where it is fetched';
COMMENT ON COLUMN accord.token.refresh_token IS 'the last one given, where the server rotates them; takes the place of the secret until that is set again';
COMMENT ON COLUMN accord.token.failures IS 'in a row; 0: the last request for it succeeded';
COMMENT ON COLUMN accord.token.retry_at IS 'after a failure: nothing is asked before';

-- What a dispatcher that wants a token is to do: "have" (somebody got one since "spent"), "elsewhere" (another asks for it just
-- now), "later" (it failed lately) or "mine" (it asks).
CREATE FUNCTION accord.claim_token(key text, url text, secrets_at timestamptz, spent timestamptz, force boolean, pid integer,
                                   OUT verdict text, OUT access_token text, OUT refresh_token text, OUT obtained_at timestamptz,
                                   OUT expires_at timestamptz, OUT failures integer, OUT error text, OUT retry_at timestamptz)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    t accord.token;
    now timestamptz := clock_timestamp();
BEGIN
    INSERT INTO accord.token (key, url, secrets_at) VALUES (claim_token.key, claim_token.url, claim_token.secrets_at)
        ON CONFLICT DO NOTHING;
    SELECT * INTO STRICT t FROM accord.token k WHERE k.key = claim_token.key FOR UPDATE;
    IF t.secrets_at IS DISTINCT FROM claim_token.secrets_at THEN
        t.access_token := NULL;
        t.refresh_token := NULL;
        t.failures := 0;
        t.error := NULL;
        t.retry_at := NULL;
    END IF;
    verdict := CASE
        WHEN t.access_token IS NOT NULL AND t.obtained_at > coalesce(spent, '-infinity')
             AND (t.expires_at IS NULL OR t.expires_at > now + interval '2 s') THEN 'have'
        WHEN t.claimed_until > now AND t.claimed_by <> pid
             AND EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = t.claimed_by AND a.backend_type LIKE 'pg_accord%') THEN 'elsewhere'
        WHEN t.retry_at > now AND NOT force THEN 'later'
        ELSE 'mine' END;
    IF verdict = 'mine' THEN
        UPDATE accord.token k SET claimed_by = pid, claimed_until = now + interval '60 s', secrets_at = claim_token.secrets_at,
               access_token = t.access_token, refresh_token = t.refresh_token, failures = t.failures, error = t.error,
               retry_at = t.retry_at
            WHERE k.key = claim_token.key;
    END IF;
    access_token := t.access_token;
    refresh_token := t.refresh_token;
    obtained_at := t.obtained_at;
    expires_at := t.expires_at;
    failures := t.failures;
    error := t.error;
    retry_at := t.retry_at;
END
$$;
COMMENT ON FUNCTION accord.claim_token(text, text, timestamptz, timestamptz, boolean, integer) IS 'internal: what a dispatcher that wants a token is to do';
