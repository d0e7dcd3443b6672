-- grant: who may do what; and what pg_dump takes along.

REVOKE ALL ON ALL TABLES IN SCHEMA accord FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA accord FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA accord FROM PUBLIC;
REVOKE ALL ON SCHEMA accord FROM PUBLIC;
GRANT USAGE ON SCHEMA accord TO PUBLIC;

-- What PostgreSQL's own monitors may look at.
GRANT SELECT ON accord.status, accord.progress, accord.pg_stat_accord, accord.pg_stat_accord_database, accord.ring,
    accord.consumer_status TO pg_monitor;
GRANT EXECUTE ON FUNCTION accord.endpoint_state(text, text), accord.endpoint_counters(text, text),
    accord.database_counters(), accord.latency_bounds(), accord.ring_slots(), accord.consumer_position(bigint),
    accord.silence(), accord.safe_seq(), accord.watch(text, integer),
    accord.bar(double precision, double precision, integer) TO pg_monitor;

-- Helpers instead of roles of our own: the application's roles get what a writer, auditor or admin needs.
CREATE FUNCTION accord.check_role(role regrole) RETURNS void
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF role IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'no role is given to grant to',
            HINT = 'Give the name of a role, such as ''app''.';
    END IF;
END
$$;
COMMENT ON FUNCTION accord.check_role(regrole) IS 'internal: raises unless a role is given';

CREATE FUNCTION accord.grant_writer(role regrole) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM accord.check_role(role);
    EXECUTE format('GRANT INSERT, SELECT ON accord.outbox TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.owed(), accord.expand(text, jsonb), accord.encode_form(jsonb, text), accord.encode_xml(jsonb, text), '
                   'accord.receive(text, text, text, text, jsonb, timestamptz, numeric, text, regclass, text, jsonb), '
                   'accord.receive_batch(text, jsonb) TO %s', role);
    -- a channel's callback arrives at the application
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.confirm(uuid, text, text, text), accord.confirm(text, text, text), '
                   'accord.remote(text, text, text, text) TO %s', role);
    -- those two look at the table's owner; what accord.once() runs is run as the caller
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.idempotent(regclass, text[], interval, text, text[]), '
                   'accord.not_idempotent(regclass), accord.once(text, text, jsonb, text, boolean) TO %s', role);
    -- each of these looks at the consumer's owner
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.poll(text, integer, boolean), accord.advance(text, bigint), '
                   'accord.rewind(text, bigint), accord.rewind(text, timestamptz), accord.seq_at(timestamptz) TO %s', role);
    -- these look at the table's owner
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.row_key(text[]), '
                   'accord.capture(regclass, text, text[], text[], text[], text, text, text), accord.release(regclass), accord.baseline(regclass, bigint) TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.manage_claims(regclass, text[], text, text, text[], text, text, text, text, text, text), '
                   'accord.unmanage_claims(regclass), accord.settle_claims(regclass) TO %s', role);
END
$$;
COMMENT ON FUNCTION accord.grant_writer(regrole) IS 'grants what an application needs: INSERT into accord.outbox, to see what is still owed, to receive, and to have tables captured, and claims managed, that it owns';

CREATE FUNCTION accord.grant_auditor(role regrole) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM accord.check_role(role);
    EXECUTE format('GRANT SELECT ON accord.event_log, accord.commit_log, accord.prepared, accord.attempt_log, accord.backlog_log, '
                   'accord.cursor_log, accord.endpoint_log, accord.rate_limit, accord.paused, accord.outbox, accord.backlog, accord.dead_letter, accord.attempt, '
                   'accord.timeline, accord.status, accord.pg_stat_accord, accord.pg_stat_accord_database, accord.consumer, accord.consumer_log, accord.consumer_status, accord.retirement, accord.archive, accord.ring, accord.seal, accord.seal_node, accord.seal_gap, accord.channel, accord.account, accord.route, accord.identity, '
                   'accord.idempotency_key TO %s', role);
    EXECUTE format('GRANT SELECT ON accord.idempotency_scope, accord.inbox, accord.source TO %s', role);
    EXECUTE format('GRANT SELECT ON accord.reconciliation, accord.reconcile_job, accord.reconcile_item, accord.drift TO %s', role);
    EXECUTE format('GRANT SELECT ON accord.feed, accord.feed_log, accord.feed_item, accord.feed_parked, accord.feed_status TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.feed_state(bigint, text), accord.feed_places() TO %s', role);
    EXECUTE format('GRANT SELECT (name, updated_at) ON accord.secret TO %s', role);
    EXECUTE format('GRANT SELECT (key, url, secrets_at, obtained_at, expires_at, claimed_until, failures, error, retry_at) ON accord.token TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.owed(), accord.endpoint_state(text, text), accord.silence(), accord.safe_seq(), accord.consumer_position(bigint), accord.ring_slots(), '
                   'accord.verify(bigint, bigint), accord.proof(bigint, bigint), accord.consistency(bigint, bigint), '
                   'accord.check_proof(bigint, bigint, bytea, bytea[], bytea), '
                   'accord.check_consistency(bigint, bytea, bigint, bytea, bytea[]), '
                   'accord.read(bigint, integer), '
                   'accord.expand(text, jsonb), accord.encode_form(jsonb, text), accord.encode_xml(jsonb, text), '
                   'accord.preview(uuid, text, text) TO %s', role);
    EXECUTE format('GRANT SELECT ON accord.rule, accord.remote_id TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.remote(text, text, text, text) TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.endpoint_counters(text, text), accord.database_counters(), '
                   'accord.latency_bounds() TO %s', role);
    EXECUTE (SELECT format('GRANT EXECUTE ON FUNCTION %s TO %s', string_agg(p.oid::regprocedure::text, ', '), role)
             FROM pg_proc p WHERE p.pronamespace = 'accord'::regnamespace
               AND p.proname IN ('watch', 'bar', 'report', 'report_text', 'report_number', 'report_table', 'report_ceiling',
                                 'report_plot', 'report_span', 'report_style', 'report_attempts', 'report_waiting', 'report_conflicts', 'report_tables'));
    EXECUTE format('GRANT SELECT ON accord.claims, accord.claim_resource TO %s', role);
    EXECUTE format('GRANT SELECT ON accord.captured, accord.captured_shape, accord.captured_baseline TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.row_key(text[]), accord.captured_id(regclass), '
                   'accord.captured_relation(integer), accord.reshape(jsonb, integer, bigint, integer), '
                   'accord.capture_holder(integer), accord.citus_kind(regclass), accord.citus_check_past(regclass) TO %s', role);
    EXECUTE format('GRANT SELECT ON accord.mark_log, accord.marks TO %s', role);
    EXECUTE format('GRANT SELECT ON accord.progress, accord.replay_job, accord.replay_log TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.as_of(anyelement, text), accord.as_of(anyelement, timestamptz), '
                   'accord.as_of(anyelement, bigint), accord.row_as_of(anyelement, anycompatible, text), '
                   'accord.row_as_of(anyelement, anycompatible, timestamptz), '
                   'accord.row_as_of(anyelement, anycompatible, bigint), accord.history(regclass, anycompatible), '
                   'accord.blame(regclass, anycompatible), accord.diff(regclass, anycompatible, text, text), '
                   'accord.diff(regclass, anycompatible, timestamptz, timestamptz), '
                   'accord.diff(regclass, anycompatible, bigint, bigint), accord.point_seq(text), '
                   'accord.seq_at(timestamptz), accord.oldest_seq(), accord.row_of(anyelement, jsonb) TO %s', role);
    -- what those are made of
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.history_table(regclass, bigint), accord.history_shapes(integer), '
                   'accord.shaped_events(integer, boolean, text), accord.key_of(anycompatible), '
                   'accord.image_of(anyelement), accord.row_events(integer, text), accord.commit_events(bigint[]), '
                   'accord.changes(text, jsonb, jsonb), accord.state_before(text, jsonb, jsonb), '
                   'accord.state_after(text, jsonb), accord.diff_seq(regclass, text, bigint, bigint), '
                   'accord.seq_of(smallint, bigint), accord.equality(regtype) TO %s', role);
    EXECUTE format('GRANT SELECT ON accord.managed, accord.policy, accord.row_state, accord.conflict_log, accord.change_log, '
                   'accord.conflict TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.explain(regclass, text, text), accord.row_now(regclass, text), '
                   'accord.clock_time(bigint) TO %s', role);
END
$$;
COMMENT ON FUNCTION accord.grant_auditor(regrole) IS 'grants reading of everything but the values of secrets';

CREATE FUNCTION accord.grant_admin(role regrole) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM accord.grant_writer(role);
    PERFORM accord.grant_auditor(role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.probe(text, text, text) TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.cancel_replay(bigint, text), '
                   'accord.backfill(text, text, text, double precision, text), '
                   'accord.replay(text, text, text, text, text, text, text, text[], uuid[], regclass, double precision, text), '
                   'accord.replay(text, timestamptz, timestamptz, text, text, text, text, text[], regclass, double precision, text), '
                   'accord.replay(text, bigint, bigint, text, text, text, text, text[], regclass, double precision, text) TO %s', role);
    EXECUTE format('GRANT INSERT, UPDATE, DELETE ON accord.channel, accord.account, accord.route, accord.rate_limit, accord.consumer TO %s', role);
    EXECUTE format('GRANT INSERT, UPDATE, DELETE ON accord.rule, accord.remote_id TO %s', role);
    EXECUTE format('GRANT USAGE ON SEQUENCE accord.rule_id_seq TO %s', role);
    EXECUTE format('GRANT INSERT (log, function, owner, enabled, description), UPDATE (log, function, owner, enabled, '
                   'description), DELETE ON accord.archive TO %s', role);
    EXECUTE format('GRANT INSERT, UPDATE, DELETE ON accord.secret TO %s', role);
    EXECUTE format('GRANT INSERT, UPDATE, DELETE ON accord.source, accord.idempotency_scope TO %s', role);
    EXECUTE format('GRANT INSERT, UPDATE, DELETE ON accord.feed, accord.reconciliation TO %s', role);
    EXECUTE format('GRANT USAGE ON SEQUENCE accord.feed_id_seq, accord.reconciliation_id_seq TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.reconcile(text, text, text, text[], boolean, interval), '
                   'accord.cancel_reconcile(bigint, text) TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.check_template(text, text), accord.poll_feed(text, text), '
                   'accord.reset_feed(text, text, text, timestamptz), accord.retry_parked(text, bigint), '
                   'accord.drop_parked(text, bigint), accord.ical_events(text, timestamptz, timestamptz) TO %s', role);
    EXECUTE format('GRANT USAGE ON SEQUENCE accord.route_id_seq, accord.rate_limit_id_seq, accord.consumer_id_seq TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION '
                   'accord.redeliver(text, text, text, text, text, text, timestamptz, timestamptz, text), '
                   'accord.redeliver(uuid, text, text, text), '
                   'accord.discard(text, text, text, text, text, text, timestamptz, timestamptz, text), '
                   'accord.discard(uuid, text, text, text), accord.pause(text, text, text, timestamptz), '
                   'accord.resume(text, text, text), accord.stat_reset(text, text), accord.reset_counters(text, text), accord.erase(uuid, text), accord.adopt(), accord.launch(), accord.reseal(), accord.verify_options(text), '
                   'accord.check_verify(jsonb), accord.check_mapping(jsonb, text), accord.check_path(text, text), accord.is_relation(text), accord.check_mapping_function(text, text, text), '
                   'accord.receive_webhook(text, jsonb, bytea), accord.expose_webhook(text, regnamespace, text) TO %s', role);
    -- all but override() look at the table's owner
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.manage(regclass, text[]), accord.unmanage(regclass), '
                   'accord.set_policy(regclass, text, text, jsonb, text), accord.drop_policy(regclass, text, text), '
                   'accord.what_if(regclass, text, text, jsonb, timestamptz), '
                   'accord.check_policy(regclass, text, text, jsonb, integer, timestamptz, bigint), '
                   'accord.override(bigint, text) TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION accord.mark(text, text), '
                   'accord.revert(bigint, bigint[], text, text, text, text, timestamptz, timestamptz, text, text, regclass, text, boolean, text, text), '
                   'accord.undelete(regclass, text, boolean, text, text), accord.undelete(regclass, anyelement, boolean, text, text), '
                   'accord.undelete(regclass, jsonb, timestamptz, timestamptz, boolean, text, text) TO %s', role);
    -- what those are made of; the tables they change are changed with the caller's own rights
    EXECUTE (SELECT format('GRANT EXECUTE ON FUNCTION %s TO %s', string_agg(p.oid::regprocedure::text, ', '), role)
             FROM pg_proc p WHERE p.pronamespace = 'accord'::regnamespace
               AND p.proname IN ('revert_commits', 'revert_net', 'revert_steps', 'revert_decide', 'key_image', 'key_condition',
                   'from_name', 'type_name', 'revert_current', 'revert_since', 'revert_plan_table', 'revert_statement',
                   'revert_referrers', 'revert_try', 'revert_levels', 'revert_apply', 'loose_columns',
                   'deferrable_constraints', 'set_constraints', 'revert_apply_circle', 'revert_moved', 'revert_execute',
                   'revert_note', 'revert_run', 'revert_check_mode', 'undelete_row'));
END
$$;
COMMENT ON FUNCTION accord.grant_admin(regrole) IS 'grants configuration, secrets (to set, not to read), redeliver(), discard(), replay(), revert(), erase() and adopt(), besides what writers and auditors may';
REVOKE ALL ON FUNCTION accord.grant_writer(regrole), accord.grant_auditor(regrole), accord.grant_admin(regrole), accord.check_role(regrole)
    FROM PUBLIC;

-- Everything that holds users' data is dumped; of secrets only sealed ones are, the others must be given again after a restore.
DO $$
DECLARE
    t text;
BEGIN
    FOR t IN SELECT c.oid::pg_catalog.regclass::text FROM pg_catalog.pg_class c
             WHERE c.relnamespace = 'accord'::pg_catalog.regnamespace AND c.relkind IN ('r', 'p', 'S')
               AND c.relname NOT IN ('secret', 'token')
             ORDER BY c.oid LOOP
        PERFORM pg_catalog.pg_extension_config_dump(t::pg_catalog.regclass, '');
    END LOOP;
    PERFORM pg_catalog.pg_extension_config_dump('accord.secret', $w$WHERE value LIKE 'sealed:1:%'$w$);
    PERFORM pg_catalog.pg_extension_config_dump('accord.token', $w$WHERE access_token LIKE 'sealed:1:%'$w$);
END
$$;

-- Whatever an earlier extension of this database has counted is not ours.
SELECT accord.stat_reset();
SELECT accord.launch();
