-- pull: the four questions of a dispatcher that pulls (src/pull.c), about whatever it is.
--   kind   feed, and of reconciliations schedule (makes jobs) and job
--   id     accord.feed.id, and so on

CREATE FUNCTION accord.pull_list(only_kind text, only_id bigint, OUT kind text, OUT id bigint, OUT account text,
                                 OUT channel text, OUT due_at timestamptz) RETURNS SETOF record
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'feed', p.feed, p.account, p.channel, accord.feed_due(p.feed, p.account)
    FROM accord.feed_places() p
    WHERE p.enabled AND (only_kind IS NULL OR only_kind = 'feed' AND p.feed = only_id)
    UNION ALL
    SELECT 'schedule', p.reconciliation, p.account, p.channel, accord.reconcile_due(p.reconciliation, p.account)
    FROM accord.reconcile_places() p JOIN accord.reconciliation r ON r.id = p.reconciliation
    WHERE p.enabled AND r.every IS NOT NULL AND (only_kind IS NULL OR only_kind = 'schedule' AND p.reconciliation = only_id)
    UNION ALL
    SELECT 'job', j.id, j.account, p.channel, j.due_at
    FROM accord.reconcile_job j
    JOIN accord.reconcile_places() p ON p.reconciliation = j.reconciliation AND p.account = j.account
    WHERE p.enabled AND j.state IN ('queued', 'running') AND (only_kind IS NULL OR only_kind = 'job' AND j.id = only_id)
$$;
COMMENT ON FUNCTION accord.pull_list(text, bigint) IS 'internal: what is pulled, and when each is due; all, or one';

-- No row: it is gone. Without a url there is nothing to ask, but something to do.
CREATE FUNCTION accord.pull_request(kind text, id bigint, account text, OUT version bigint, OUT url text, OUT method text,
                                    OUT headers text[], OUT body text, OUT max_response integer, OUT error text)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    IF kind = 'feed' AND EXISTS (SELECT FROM accord.feed f WHERE f.id = id) THEN
        SELECT r.* INTO version, url, method, headers, body, max_response FROM accord.feed_request(id, account) r;
    ELSIF kind = 'job' AND EXISTS (SELECT FROM accord.reconcile_job j WHERE j.id = id AND j.state IN ('queued', 'running')) THEN
        SELECT r.* INTO version, url, method, headers, body, max_response FROM accord.reconcile_request(id) r;
    ELSIF kind = 'schedule' AND EXISTS (SELECT FROM accord.reconciliation r WHERE r.id = id) THEN
        version := 0;
    ELSE
        RETURN;
    END IF;
    RETURN NEXT;
EXCEPTION WHEN OTHERS THEN
    version := CASE kind WHEN 'feed' THEN coalesce((accord.feed_state(id, account)).version, 0)
                         ELSE coalesce((SELECT j.version FROM accord.reconcile_job j WHERE j.id = id), 0) END;
    error := SQLERRM;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION accord.pull_request(text, bigint, text) IS 'internal: the next request of what is pulled';

CREATE FUNCTION accord.pull_take(kind text, id bigint, account text, version bigint, status integer, headers jsonb,
                                 body text, error text) RETURNS timestamptz
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE kind WHEN 'feed' THEN accord.feed_take(id, account, version, status, headers, body, error)
                     WHEN 'job' THEN accord.reconcile_take(id, version, status, headers, body, error)
                     WHEN 'schedule' THEN accord.reconcile_schedule(id, account) END
$$;
COMMENT ON FUNCTION accord.pull_take(text, bigint, text, bigint, integer, jsonb, text, text) IS 'internal: takes in an answer (status 0: there was none); returns when there is more to do, null: never';

CREATE FUNCTION accord.pull_fail(kind text, id bigint, account text, version bigint, error text) RETURNS timestamptz
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE kind WHEN 'feed' THEN accord.feed_fail(id, account, version, error)
                     WHEN 'job' THEN accord.reconcile_fail(id, error)
                     ELSE clock_timestamp() + interval '1 min' END
$$;
COMMENT ON FUNCTION accord.pull_fail(text, bigint, text, bigint, text) IS 'internal: an answer could not be taken in; returns when to try again';
