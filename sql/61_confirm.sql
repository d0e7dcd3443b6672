-- confirm: what became of a request that a channel has accepted, as its callback tells it.

CREATE FUNCTION accord.confirm_deliveries(selection jsonb[], failed text) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF selection IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM accord.control_append('accord.confirm', jsonb_build_object('deliveries', to_jsonb(selection), 'failed', failed));
    RETURN cardinality(selection);
END
$$;
COMMENT ON FUNCTION accord.confirm_deliveries(jsonb[], text) IS 'internal: writes what became of deliveries to the log';

CREATE FUNCTION accord.confirm(event_id uuid, channel text DEFAULT NULL, account text DEFAULT NULL,
                               failed text DEFAULT NULL) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT accord.confirm_deliveries(accord.select_owed(event_id, channel, account), failed)
$$;
COMMENT ON FUNCTION accord.confirm(uuid, text, text, text) IS 'says what became of an event that a channel has accepted, at commit: it was done, or it failed, with the reason. Of what is still on its way the answer is settled so. Returns how many deliveries that may concern';

-- By what the channel calls it; the keys of what was accepted are kept with it.
CREATE FUNCTION accord.confirm(channel text, id text, failed text DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    things jsonb[];
    selection jsonb[];
BEGIN
    SELECT array_agg(jsonb_build_array(b.seq, b.ord, b.event_slot, b.tx_id, b.channel, b.account) ORDER BY b.seq, b.ord),
           array_agg(jsonb_build_array(r.account, r.kind, r.key)) FILTER (WHERE e.op = 'delete')
    INTO selection, things
    FROM accord.remote_id r
    JOIN accord.backlog_log b ON b.channel = r.channel AND b.account = r.account
    LEFT JOIN accord.event_log e ON e.slot = b.event_slot AND e.tx_id = b.tx_id AND e.ord = b.ord
    WHERE r.channel = confirm.channel AND r.id = confirm.id AND b.state = 'accepted'
      AND b.request ->> 'kind' = r.kind AND b.request ->> 'key' = r.key
      AND NOT EXISTS (SELECT FROM accord.backlog_log n
                      WHERE n.channel = b.channel AND n.account = b.account AND n.seq = b.seq AND n.ord = b.ord
                        AND n.version > b.version);
    IF failed IS NULL THEN
        DELETE FROM accord.remote_id r
        WHERE r.channel = confirm.channel
          AND jsonb_build_array(r.account, r.kind, r.key) = ANY (things);
    END IF;
    RETURN accord.confirm_deliveries(selection, failed);
END
$$;
COMMENT ON FUNCTION accord.confirm(text, text, text) IS 'the same of what the channel calls by that id (accord.remote_id): every delivery about it that was accepted. Returns how many; 0: none has been, yet';
