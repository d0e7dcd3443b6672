-- surface: what users see of the extension is what README says, to the column and the argument; all of it is described;
-- and nobody may do more with it than the grant helpers grant.
BEGIN;
SET client_min_messages = warning;
SET search_path = pg_catalog, public;
SELECT no_plan();

-- What belongs to the extension.
CREATE TEMPORARY VIEW member AS
    SELECT d.classid, d.objid FROM pg_depend d
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
      AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_accord');
CREATE TEMPORARY VIEW relation AS
    SELECT c.oid, c.relname::text AS name, c.relkind AS kind, c.relispartition AS is_partition
    FROM member m JOIN pg_class c ON c.oid = m.objid WHERE m.classid = 'pg_class'::regclass;
CREATE TEMPORARY VIEW function AS
    SELECT p.oid, p.proname::text AS name, p.prosecdef, p.proconfig, l.lanname, p.prorettype,
           format('%s(%s) %s', p.proname, pg_get_function_identity_arguments(p.oid),
                  pg_get_function_result(p.oid)) AS signature,
           coalesce(obj_description(p.oid, 'pg_proc'), '') AS comment
    FROM member m JOIN pg_proc p ON p.oid = m.objid JOIN pg_language l ON l.oid = p.prolang
    WHERE m.classid = 'pg_proc'::regclass;

-- ---- tables, views and types ----------------------------------------------------------------------------------------

CREATE TEMPORARY TABLE expected (name text, columns text);
INSERT INTO expected VALUES
    ('account', 'channel text not null, name text not null, base_url text, enabled boolean not null default true,
        auth jsonb, tls jsonb, max_in_flight integer, weight integer not null default 1, vars jsonb not null default
        ''{}''::jsonb, description text'),
    ('archive', 'log text not null, function text not null, owner text not null default CURRENT_USER, enabled boolean not
        null default true, failures integer not null default 0, failed_at timestamptz, error text, description text'),
    ('attempt', 'recorded_at timestamptz, event_id uuid, topic text, key text, channel text, account text, attempt
        integer, outcome text, status smallint, sent text, duration_ms real, error text, response text,
        request_id text, seq bigint, ord integer, replay bigint, rule bigint'),
    ('attempt_log', 'seq bigint not null, recorded_at timestamptz not null, ord integer not null, attempt integer not
        null, duration_ms real, slot smallint not null, status smallint, channel text not null, account
        text not null, outcome text not null, sent text, error text, response text, request_id text, replay bigint, rule bigint'),
    ('backlog', 'seq bigint, ord integer, channel text, account text, key text, state text, attempts integer,
        owed_since timestamptz, attempted_at timestamptz, due_at timestamptz, since timestamptz, error
        text, route bigint, decided_by bigint, tx_id bigint, event_slot smallint, version integer, priority smallint, replay bigint'),
    ('backlog_log', 'seq bigint not null, tx_id bigint not null, recorded_at timestamptz not null, owed_since
        timestamptz not null, attempted_at timestamptz, due_at timestamptz, route bigint, decided_by
        bigint, ord integer not null, version integer not null, attempts integer not null, slot smallint
        not null, event_slot smallint not null, priority smallint not null, channel text not null, account text not
        null, key text,
        state text not null, error text, request jsonb, replay bigint'),
    ('channel', 'name text not null, base_url text not null, enabled boolean not null default true, auth jsonb not
        null default ''{"type": "none"}''::jsonb, tls jsonb, proxy jsonb, headers jsonb not null default ''{}''::jsonb, ordering
        text not null default ''key''::text, max_in_flight integer not null default 16, account_max_in_flight
        integer default 4, throttle_scope text not null default ''account''::text, heed_hints boolean not null default
        true, breaker_failures integer default 10, breaker_ratio real default 0.5, breaker_minimum integer not null
        default 20, breaker_window interval not null default ''00:01:00''::interval, breaker_cooldown interval not null
        default ''00:00:05''::interval, breaker_cap interval not null default ''00:05:00''::interval, connect_timeout
        interval not null default ''00:00:10''::interval, timeout interval not null default
        ''00:00:30''::interval, stall_timeout interval not null default ''00:00:15''::interval, retry_base
        interval not null default ''00:00:01''::interval, retry_cap interval not null default
        ''00:10:00''::interval, max_attempts integer not null default 20, max_age interval not null
        default ''1 day''::interval, idempotency_header text default ''Idempotency-Key''::text,
        idempotency_query text, idempotency_path text, idempotency_key text not null default ''{event_id}''::text,
        idempotency_max_length integer, idempotency_pattern text, idempotency_window interval, max_response integer not
        null default 65536, compress_above integer, probe_path text not null default ''''::text, description text'),
    ('captured', 'id integer not null identity, schema_name text not null, table_name text not null, topic text not null,
        key_columns text[] not null, columns text[], excluded text[], condition text, account_column text, on_truncate
        text not null default ''events''::text, captured_at timestamptz not null default now(), released_at timestamptz,
        since_slot smallint, since_tx_id bigint, since_at timestamptz'),
    ('captured_baseline', 'table_id integer not null, partition oid, file oid, block bigint not null default 0, events
        bigint not null default 0, started_at timestamptz not null default now(), finished_at timestamptz'),
    ('captured_shape', 'table_id integer not null, version integer not null, tx_id bigint not null, ord integer not null,
        relation oid not null, columns jsonb not null, recorded_at timestamptz not null default now()'),
    ('claim_resource', 'claims integer not null, resource text not null, decisions bigint not null default 1'),
    ('claims', 'id integer not null identity, schema_name text not null, table_name text not null, key_columns text[] not
        null, resource text[] not null, during text not null, accepted text not null, ranking text[] not null, condition
        text, frozen text, capacity text not null default ''1''::text, source_column text, account_column text, topic text
        not null, managed_at timestamptz not null default now()'),
    ('checkpoint', 'position bigint not null, recorded_at timestamptz not null'),
    ('commit_log', 'seq bigint not null, tx_id bigint not null, committed_at timestamptz not null, role oid not null,
        events integer not null, slot smallint not null, digest bytea not null, actor text, application_name text, client_addr
        inet, reason text, correlation_id text'),
    ('consumer', 'id bigint not null identity, name text not null, topic text not null default ''*''::text, owner text not
        null default CURRENT_USER, max_lag interval, created_at timestamptz not null default now(), description text'),
    ('consumer_log', 'version bigint not null, position bigint not null, recorded_at timestamptz not null, consumer bigint
        not null, slot smallint not null'),
    ('consumer_status', 'name text, topic text, owner text, position bigint, behind bigint, oldest_unread timestamptz,
        lost boolean'),
    ('cursor_log', 'version bigint not null, seq bigint, recorded_at timestamptz not null, behind bigint, counted
        bigint, ord integer, slot smallint
        not null, priority smallint not null, channel text not null, account text not null'),
    ('dead_letter', 'event_id uuid, channel text, account text, topic text, key text, op text, attempts integer, error
        text, died_at timestamptz, owed_since timestamptz, payload jsonb, seq bigint, ord integer'),
    ('endpoint_log', 'recorded_at timestamptz not null, until timestamptz, slot smallint not null, channel text not
        null, account text not null, state text not null, reason text'),
    ('event_log', 'tx_id bigint not null, ord integer not null, slot smallint not null, priority smallint not null,
        event_id uuid not null,
        occurred_at timestamptz not null, recorded_at timestamptz not null, deliver_at timestamptz, expires_at
        timestamptz, erased_by bigint, table_id integer, salt uuid, topic text not null, key text, op text not null, source text, account text, channels text[],
        idempotency_key text, payload jsonb, before jsonb, headers jsonb, erased bytea'),
    ('http_request', 'method text, path text, headers jsonb, body text'),
    ('idempotency_key', 'scope text not null, key text not null, slot smallint not null, created_at timestamptz not
        null, fingerprint bytea not null, tx_id bigint, event_id uuid, result jsonb'),
    ('idempotency_scope', 'scope text not null, retention interval, description text'),
    ('inbox', 'source text not null, event_id text not null, slot smallint not null, received_at timestamptz not
        null, fingerprint bytea not null, tx_id bigint, event uuid, result jsonb'),
    ('prepared', 'seq bigint not null, tx_id bigint not null, committed_at timestamptz not null, role oid not null,
        events integer not null, slot smallint not null, digest bytea not null, actor text, application_name text, client_addr
        inet, reason text, correlation_id text, gid text not null'),
    ('pruned', 'store text not null, scope text not null, until timestamptz not null'),
    ('source', 'name text not null, enabled boolean not null default true, skew interval not null default
        ''00:05:00''::interval, when_ahead text not null default ''clamp''::text, retention interval, verify jsonb,
        tolerance interval not null default ''00:05:00''::interval, mapping jsonb, mapping_function text, polls text[] not null default ''{}''::text[], owner text
        not null default CURRENT_USER, description text'),
    ('identity', 'system_identifier bigint not null, database oid not null, timeline integer not null default 0, recorded_at timestamptz not null default
        now()'),
    ('mark_log', 'name text not null, slot smallint not null, tx_id bigint not null, marked_at timestamptz not null default
        now(), actor text, comment text'),
    ('marks', 'name text, seq bigint, marked_at timestamptz, actor text, comment text'),
    ('message', 'event_id text, topic text, target regclass, key text, op text, changes jsonb, occurred_at timestamptz,
        revision numeric, account text, base jsonb'),
    ('outbox', 'event_id uuid, topic text, key text, op text, payload jsonb, before jsonb, source text, account text, channels text[],
        deliver_at timestamptz, expires_at timestamptz, priority smallint, idempotency_key text, headers jsonb, occurred_at timestamptz, recorded_at
        timestamptz, tx_id bigint, ord integer'),
    ('paused', 'channel text not null, account text, reason text, actor text, since timestamptz not null default
        now(), until timestamptz'),
    ('rate_limit', 'id bigint not null identity, channel text not null, bucket text not null default ''''::text,
        amount integer not null, period interval not null, burst integer, enabled boolean not null default true,
        description text'),
    ('retirement', 'log text not null, slot smallint not null, first_seq bigint, last_seq bigint, oldest timestamptz not
        null, newest timestamptz not null, bytes bigint not null, archived_at timestamptz, truncated_at timestamptz'),
    ('ring', 'log text, slot smallint, is_current boolean, bytes bigint, estimated_rows bigint, first_seq bigint, last_seq
        bigint, oldest timestamptz, newest timestamptz, needed_by text[], archived_at timestamptz'),
    ('remote_id', 'channel text not null, account text not null default ''''::text, kind text not null, key text not null, id
        text, version text, etag text, updated_at timestamptz not null default now()'),
    ('rule', 'id bigint not null identity, channel text not null, route bigint, position integer not null default 100,
        enabled boolean not null default true, status text, headers jsonb not null default ''{}''::jsonb, body jsonpath,
        transport text not null default ''answered''::text, item boolean not null default false, outcome text not null,
        pause interval, error jsonpath, description text'),
    ('seal', 'size bigint not null, root bytea not null, sealed_at timestamptz not null, previous bigint, witness bigint'),
    ('seal_gap', 'first bigint not null, last bigint not null'),
    ('seal_node', 'level smallint not null, index bigint not null, hash bytea not null'),
    ('pg_stat_accord', 'channel text, account text, requests bigint, answered bigint, delivered bigint, skipped bigint,
        superseded bigint, expired bigint, discarded bigint, dead bigint, held bigint, retried bigint, rejected bigint,
        invalid bigint, unauthorized bigint, unreachable bigint, timeouts bigint, cut_off bigint, throttles bigint,
        breaker_openings bigint, bytes_sent bigint, bytes_received bigint, answer_time double precision, latency bigint[],
        stats_reset timestamptz'),
    ('pg_stat_accord_database', 'transactions bigint, events bigint, captured bigint, received bigint, duplicates bigint,
        repeated bigint, conflicts bigint, dispatcher_starts bigint, stats_reset timestamptz'),
    ('progress', 'job bigint, channel text, account text, mode text, state text, done bigint, total bigint, delivered
        bigint, failed bigint, passed bigint, rate double precision, first_seq bigint, last_seq bigint, at_seq bigint,
        topic text, key text, created_at timestamptz, started_at timestamptz, finished_at timestamptz, reason text,
        actor text, ended_by text'),
    ('replay_job', 'id bigint not null identity, channel text not null, account text, mode text not null, first_seq
        bigint not null, last_seq bigint not null, topic text, key text, ops text[], events uuid[], table_id integer,
        rate double precision, salt uuid not null default gen_random_uuid(), total bigint not null, reason text, actor
        text, created_at timestamptz not null default clock_timestamp(), cancelled_at timestamptz, cancelled_by text,
        cancel_reason text'),
    ('replay_log', 'job bigint not null, version bigint not null, seq bigint not null, recorded_at timestamptz not null,
        started_at timestamptz not null, since timestamptz not null, first_seq bigint not null, done bigint not null,
        delivered bigint not null, failed bigint not null, passed bigint not null, pass_low bigint not null, pass_high
        bigint not null, ord integer not null, slot smallint not null, state text not null, reason text'),
    ('route', 'id bigint not null identity, channel text not null, topic text not null default ''*''::text, ops
        text[], position integer not null default 100, enabled boolean not null default true, method text
        not null default ''POST''::text, path text not null default ''''::text, headers jsonb not null
        default ''{}''::jsonb, body text not null default ''json''::text, body_from text not null default
        ''payload''::text, body_root text, form_arrays text not null default ''index''::text, content_type text, mode text
        not null default ''state''::text, body_function text, ambiguous text not null default
        ''hold''::text, coalesce text default ''{key}''::text, quiet interval, quiet_max interval, skip_unchanged
        boolean not null default false, batch_size integer not null default 1, batch_bytes integer, batch_wait interval,
        batch_group text, batch_function text, batch_items text, batch_id text not null default ''{key}''::text,
        batch_item_id text, batch_item_status text, batch_item_error text, when_dead text not null default ''continue''::text,
        remote text, remote_key text not null default ''{key}''::text, remote_when text not null default ''any''::text,
        remote_id text, remote_version text, remote_etag text, needs jsonb, lookup jsonb, poll jsonb, owner text not null default CURRENT_USER, description text'),
    ('secret', 'name text not null, value text not null, updated_at timestamptz not null default now()'),
    ('token', 'key text not null, url text not null, access_token text, refresh_token text, secrets_at timestamptz, obtained_at
        timestamptz, expires_at timestamptz, claimed_by integer, claimed_until timestamptz, failures integer not null default 0,
        error text, retry_at timestamptz'),
    ('status', 'channel text, account text, state text, mode text, owed bigint, oldest_owed timestamptz, queued bigint,
        scheduled bigint, sending bigint, retrying bigint, held bigint, dead bigint, in_flight integer, tokens bigint,
        breaker text, next_probe_at timestamptz, throttled_until timestamptz, paused_since timestamptz, paused_until
        timestamptz, paused_reason text, delivered_1m real, delivered_5m real, failed_1m real, failed_5m real, p50_ms
        real, p99_ms real, last_delivered_at timestamptz, last_attempt_at timestamptz, last_outcome text, last_error
        text, last_error_at timestamptz, replaying integer, why_silent text'),
    ('timeline', 'event_id uuid, topic text, key text, at timestamptz, channel text, account text, step text,
        attempt integer, status smallint, duration_ms real, detail text, seq bigint, ord integer');
INSERT INTO expected VALUES
    ('managed', 'id integer not null identity, relation regclass not null, key_columns text[] not null, managed_at
        timestamptz not null default now()'),
    ('policy', 'managed integer not null, column_name text not null, version integer not null, strategy text, options
        jsonb not null default ''{}''::jsonb, owner text not null, set_at timestamptz not null default now(), actor
        text, reason text'),
    ('row_state', 'managed integer not null, key text not null, state jsonb not null, kept jsonb'),
    ('conflict_log', 'conflict_id bigint not null, recorded_at timestamptz not null, winner_at timestamptz, loser_at
        timestamptz, managed integer not null, slot smallint not null, key text not null, column_name text, rule text
        not null, held boolean not null, winner_source text, winner_event text, loser_source text, loser_event text,
        loser_revision numeric, winner jsonb, loser jsonb, reason text'),
    ('change_log', 'recorded_at timestamptz not null, clock timestamptz not null, managed integer not null, slot
        smallint not null, key text not null, op text not null, source text, event_id text, revision numeric, changes
        jsonb, base jsonb, before jsonb, is_override boolean not null'),
    ('conflict', 'conflict_id bigint, recorded_at timestamptz, relation regclass, key text, column_name text, rule text,
        state text, winner_source text, winner_event text, winner_at timestamptz, winner jsonb, loser_source text,
        loser_event text, loser_revision numeric, loser_at timestamptz, loser jsonb, reason text');
INSERT INTO expected VALUES
    ('feed', 'id bigint not null identity, name text not null, channel text not null, account text, enabled boolean
        not null default true, every interval not null default ''00:05:00''::interval, path text not null default
        ''''::text, query jsonb not null default ''{}''::jsonb, headers jsonb not null default ''{}''::jsonb, format
        text not null default ''json''::text, mode text not null default ''list''::text, paging text not null
        default ''none''::text, items jsonpath not null default ''$[*]''::jsonpath, next_page jsonpath, next_cursor
        jsonpath, more jsonpath, start text, updated jsonpath, overlap interval not null default
        ''00:00:00''::interval, item_key jsonpath, deleted jsonpath, ignored text[] not null default ''{}''::text[],
        mapping jsonb, mapping_function text, expand interval, reset_status integer[] not null default
        ''{410}''::integer[], reset_when jsonpath, on_reset text not null default ''restart''::text, vanish_limit
        real not null default 0.5, max_silence interval, max_page integer not null default 8388608, max_pages
        integer not null default 10000, owner text not null default CURRENT_USER, description text'),
    ('feed_item', 'feed bigint not null, account text not null, key text not null, digest bytea not null, item jsonb
        not null, changed_at timestamptz not null default now()'),
    ('feed_log', 'version bigint not null, feed bigint not null, recorded_at timestamptz not null, due_at
        timestamptz, polled_at timestamptz, news_at timestamptz, run bigint not null default 0, seen bigint not null
        default 0, received bigint not null default 0, failures integer not null default 0, pages integer not null
        default 0, slot smallint not null, account text not null, what text not null, error text, keys text[], state
        jsonb not null default ''{}''::jsonb'),
    ('feed_parked', 'id bigint not null identity, feed bigint not null, account text not null, key text, event_id
        text, state text not null, attempts integer not null default 1, due_at timestamptz, deleted boolean not null
        default false, sqlstate text, error text, item jsonb not null, headers jsonb, parked_at timestamptz not null
        default now()'),
    ('feed_status', 'feed text, channel text, account text, state text, silent boolean, polled_at timestamptz,
        news_at timestamptz, due_at timestamptz, received bigint, parked bigint, failures integer, error text,
        cursor text, since timestamptz');
INSERT INTO expected VALUES
    ('drift', 'reconciliation text not null, channel text not null, account text not null, key text not null, kind
        text not null, expected jsonb, actual jsonb, first_seen timestamptz not null, last_seen timestamptz not
        null, job bigint not null, repaired_at timestamptz, repaired_by uuid'),
    ('reconcile_item', 'job bigint not null, key text not null, is_read boolean not null default false, is_pending
        boolean not null default false, is_expected boolean not null default false, changed_at timestamptz, value
        jsonb, wanted jsonb, topic text'),
    ('reconcile_job', 'id bigint not null default nextval(''accord.replay_job_id_seq''::regclass), reconciliation
        bigint not null, account text not null, keys text[], repair boolean not null, grace interval not null, state
        text not null default ''queued''::text, version bigint not null default 1, due_at timestamptz not null
        default now(), failures integer not null default 0, done bigint not null default 0, total bigint not null
        default 0, equal bigint not null default 0, drifting bigint not null default 0, repaired bigint not null
        default 0, place jsonb not null default ''{}''::jsonb, error text, actor text, created_at timestamptz not
        null default clock_timestamp(), started_at timestamptz, finished_at timestamptz, cancelled_at timestamptz,
        cancelled_by text, cancel_reason text'),
    ('reconciliation', 'id bigint not null identity, name text not null, channel text not null, account text,
        enabled boolean not null default true, every interval, read text not null default ''list''::text, path text
        not null default ''''::text, query jsonb not null default ''{}''::jsonb, headers jsonb not null default
        ''{}''::jsonb, format text not null default ''json''::text, paging text not null default ''none''::text,
        items jsonpath not null default ''$[*]''::jsonpath, next_page jsonpath, more jsonpath, item_key jsonpath,
        value jsonpath not null default ''$''::jsonpath, topic text not null default ''*''::text, expected_function
        text, compared jsonb, ignored text[] not null default ''{}''::text[], normalise_function text, grace
        interval not null default ''00:01:00''::interval, repair boolean not null default false, max_page integer
        not null default 8388608, max_pages integer not null default 10000, owner text not null default
        CURRENT_USER, description text');
-- Blanks in the list above are for the eye.
UPDATE expected
    SET columns = replace(regexp_replace(columns, '\s+', ' ', 'g'), 'timestamptz', 'timestamp with time zone');

SELECT set_eq($$SELECT name FROM relation WHERE kind IN ('r', 'p', 'v') AND NOT is_partition$$,
              $$SELECT name FROM expected WHERE name NOT IN ('http_request', 'message')$$,
              'the tables and views are those that README names');
SELECT set_eq($$SELECT name FROM relation WHERE kind = 'v'$$,
              ARRAY['outbox', 'backlog', 'dead_letter', 'attempt', 'timeline', 'status', 'consumer_status', 'ring', 'marks', 'conflict', 'progress', 'feed_status', 'pg_stat_accord', 'pg_stat_accord_database'], 'the views are views');
SELECT set_eq($$SELECT name FROM relation WHERE kind = 'p'$$,
              ARRAY['event_log', 'commit_log', 'attempt_log', 'backlog_log', 'cursor_log', 'endpoint_log', 'consumer_log',
                    'inbox', 'idempotency_key', 'conflict_log', 'change_log', 'replay_log', 'feed_log'],
              'the logs are partitioned');
SELECT set_eq($$SELECT name FROM relation WHERE is_partition$$,
              $$SELECT format('%s_%s', log, slot) FROM (VALUES ('event_log', 7), ('commit_log', 7), ('attempt_log', 7),
                ('backlog_log', 3), ('cursor_log', 3), ('endpoint_log', 7), ('consumer_log', 3), ('inbox', 3), ('idempotency_key', 3), ('conflict_log', 7), ('change_log', 7), ('replay_log', 3), ('feed_log', 3)) AS l (log, last), generate_series(0, last) slot$$,
              'their rings have as many slots as README says');
SELECT set_eq($$SELECT name FROM relation WHERE kind = 'S'$$,
              $$SELECT unnest(ARRAY['tx_seq', 'commit_seq', 'log_slot', 'attempt_slot', 'backlog_slot',
                'consumer_slot', 'key_slot', 'inbox_slot', 'consumer_id_seq', 'captured_id_seq', 'claims_id_seq',
                'managed_id_seq', 'conflict_seq', 'conflict_slot', 'clock_bound', 'clock_run',
                'consumer_slot', 'key_slot', 'inbox_slot', 'consumer_id_seq', 'captured_id_seq',
                'managed_id_seq', 'conflict_seq', 'conflict_slot', 'replay_job_id_seq', 'clock_bound', 'clock_run',
                'dispatcher_count', 'route_id_seq', 'rate_limit_id_seq', 'rule_id_seq',
                'feed_slot', 'feed_version', 'feed_id_seq', 'feed_parked_id_seq', 'reconciliation_id_seq']) UNION SELECT 'position_' || d FROM generate_series(0, 15) d$$,
              'the sequences');
SELECT is((SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
                             || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
                             || coalesce(' default ' || pg_get_expr(f.adbin, f.adrelid), '')
                             || CASE a.attidentity WHEN 'd' THEN ' identity' ELSE '' END, ', ' ORDER BY a.attnum)
           FROM pg_attribute a LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
           WHERE a.attrelid = format('accord.%I', e.name)::regclass AND a.attnum > 0 AND NOT a.attisdropped),
          e.columns, format('columns of accord.%s', e.name))
FROM expected e ORDER BY e.name;
SELECT set_eq($$SELECT typname::text FROM member m JOIN pg_type t ON t.oid = m.objid
                LEFT JOIN relation r ON r.oid = t.typrelid
                WHERE m.classid = 'pg_type'::regclass AND t.typelem = 0 AND r.oid IS NULL$$, ARRAY['http_request', 'message'],
              'the types besides those of the tables');

-- ---- functions ------------------------------------------------------------------------------------------------------

CREATE TEMPORARY TABLE expected_function (signature text);
INSERT INTO expected_function VALUES
    ('redeliver(channel text, account text, topic text, key text, state text, error text, since timestamptz, until
        timestamptz, reason text) bigint'),
    ('redeliver(event_id uuid, channel text, account text, reason text) bigint'),
    ('discard(channel text, account text, topic text, key text, state text, error text, since timestamptz, until
        timestamptz, reason text) bigint'),
    ('discard(event_id uuid, channel text, account text, reason text) bigint'),
    ('replay(channel text, account text, mode text, since text, until text, topic text, key text, ops text[], events
        uuid[], relation regclass, rate double precision, reason text) bigint'),
    ('replay(channel text, since timestamptz, until timestamptz, account text, mode text, topic text, key text, ops
        text[], relation regclass, rate double precision, reason text) bigint'),
    ('replay(channel text, since bigint, until bigint, account text, mode text, topic text, key text, ops text[],
        relation regclass, rate double precision, reason text) bigint'),
    ('backfill(channel text, account text, topic text, rate double precision, reason text) bigint'),
    ('cancel_replay(job bigint, reason text) boolean'),
    ('read(after_seq bigint, max integer, OUT seq bigint, OUT committed_at timestamptz, OUT tx_id bigint, OUT ord
        integer, OUT event_id uuid, OUT topic text, OUT key text, OUT op text, OUT payload jsonb, OUT before jsonb,
        OUT source text, OUT account text, OUT occurred_at timestamptz, OUT recorded_at timestamptz, OUT deliver_at
        timestamptz, OUT expires_at timestamptz, OUT priority smallint, OUT channels text[], OUT idempotency_key text, OUT headers jsonb, OUT table_id integer, OUT actor text, OUT reason
        text, OUT correlation_id text) SETOF record'),
    ('poll(name text, max integer, wait boolean, OUT seq bigint, OUT committed_at timestamptz, OUT tx_id bigint, OUT ord
        integer, OUT event_id uuid, OUT topic text, OUT key text, OUT op text, OUT payload jsonb, OUT before jsonb,
        OUT source text, OUT account text, OUT occurred_at timestamptz, OUT recorded_at timestamptz, OUT deliver_at
        timestamptz, OUT expires_at timestamptz, OUT priority smallint, OUT channels text[], OUT idempotency_key text, OUT headers jsonb, OUT table_id integer, OUT actor text, OUT reason
        text, OUT correlation_id text) SETOF record'),
    ('advance(name text, seq bigint) bigint'),
    ('archive_slots() integer'),
    ('seal() bigint'),
    ('verify(from_seq bigint, to_seq bigint, OUT seq bigint, OUT ord integer, OUT tx_id bigint, OUT problem text, OUT
        detail text) SETOF record'),
    ('proof(seq bigint, tree_size bigint, OUT size bigint, OUT root bytea, OUT leaf bytea, OUT path bytea[]) record'),
    ('consistency(old_size bigint, tree_size bigint, OUT size bigint, OUT root bytea, OUT path bytea[]) record'),
    ('check_proof(seq bigint, size bigint, leaf bytea, path bytea[], root bytea) boolean'),
    ('check_consistency(old_size bigint, old_root bytea, size bigint, root bytea, path bytea[]) boolean'),
    ('erase(event_id uuid, reason text) boolean'),
    ('rewind(name text, seq bigint) bigint'),
    ('rewind(name text, at timestamptz) bigint'),
    ('safe_seq() bigint'),
    ('confirm(event_id uuid, channel text, account text, failed text) bigint'),
    ('confirm(channel text, id text, failed text) bigint'),
    ('remote(channel text, kind text, key text, account text) accord.remote_id'),
    ('owed(OUT seq bigint, OUT tx_id bigint, OUT ord integer, OUT event_slot smallint, OUT committed_at
        timestamptz, OUT channel text, OUT account text, OUT state text, OUT attempts integer, OUT due_at
        timestamptz, OUT error text) SETOF record'),
    ('capture(relation regclass, topic text, key_columns text[], columns text[], excluded text[], condition text,
        account_column text, on_truncate text) integer'),
    ('baseline(relation regclass, max bigint) bigint'),
    ('release(relation regclass) boolean'),
    ('history(relation regclass, key anycompatible, OUT seq bigint, OUT committed_at timestamptz, OUT op text, OUT
        changes jsonb, OUT actor text, OUT reason text, OUT role text, OUT source text, OUT correlation_id text, OUT
        application_name text, OUT client_addr inet, OUT tx_id bigint, OUT ord integer, OUT event_id uuid) SETOF
        record'),
    ('blame(relation regclass, key anycompatible, OUT column_name text, OUT value jsonb, OUT seq bigint, OUT
        committed_at timestamptz, OUT op text, OUT actor text, OUT reason text, OUT role text, OUT source text, OUT
        correlation_id text, OUT tx_id bigint) SETOF record'),
    ('diff(relation regclass, key anycompatible, from_point text, to_point text, OUT column_name text, OUT old_value
        jsonb, OUT new_value jsonb) SETOF record'),
    ('as_of(base anyelement, point text) SETOF anyelement'),
    ('row_as_of(base anyelement, key anycompatible, point text) anyelement'),
    ('diff(relation regclass, key anycompatible, from_point timestamptz, to_point timestamptz, OUT column_name text,
        OUT old_value jsonb, OUT new_value jsonb) SETOF record'),
    ('as_of(base anyelement, point timestamptz) SETOF anyelement'),
    ('row_as_of(base anyelement, key anycompatible, point timestamptz) anyelement'),
    ('diff(relation regclass, key anycompatible, from_point bigint, to_point bigint, OUT column_name text, OUT
        old_value jsonb, OUT new_value jsonb) SETOF record'),
    ('as_of(base anyelement, point bigint) SETOF anyelement'),
    ('row_as_of(base anyelement, key anycompatible, point bigint) anyelement'),
    ('mark(name text, comment text) void'),
    ('point_seq(point text) bigint'),
    ('oldest_seq() bigint'),
    ('row_of(base anyelement, image jsonb) anyelement'),
    ('revert(seq bigint, seqs bigint[], actor text, source text, correlation_id text, matching_reason text, since
        timestamptz, until timestamptz, after text, up_to text, relation regclass, mode text, dry_run boolean, reason
        text, path text, OUT table_name text, OUT row_key text, OUT action text, OUT changes jsonb, OUT status text, OUT
        why text) SETOF record'),
    ('undelete(relation regclass, key text, dry_run boolean, reason text, path text, OUT table_name text, OUT
        row_key text, OUT action text, OUT changes jsonb, OUT status text, OUT why text) SETOF record'),
    ('undelete(relation regclass, key anyelement, dry_run boolean, reason text, path text, OUT table_name text, OUT
        row_key text, OUT action text, OUT changes jsonb, OUT status text, OUT why text) SETOF record'),
    ('undelete(relation regclass, matching jsonb, since timestamptz, until timestamptz, dry_run boolean, reason
        text, path text, OUT table_name text, OUT row_key text, OUT action text, OUT changes jsonb, OUT status text, OUT
        why text) SETOF record'),
    ('captured_id(relation regclass) integer'),
    ('captured_relation(id integer) regclass'),
    ('manage_claims(relation regclass, resource text[], during text, accepted text, ranking text[], condition text, frozen text, capacity text, source_column text, account_column text, topic text) bigint'),
    ('settle_claims(relation regclass) bigint'),
    ('unmanage_claims(relation regclass) boolean'),
    ('reshape(image jsonb, table_id integer, seq bigint, ord integer) jsonb'),
    ('row_key(VARIADIC parts text[]) text'),
    ('expand(template text, variables jsonb) text'),
    ('encode_form(value jsonb, arrays text) text'),
    ('probe(channel text, account text, path text, OUT ok boolean, OUT verdict text, OUT detail text, OUT status integer, OUT duration_ms real, OUT url text) record'),
    ('preview(event_id uuid, channel text, account text, OUT method text, OUT url text, OUT headers jsonb, OUT body text, OUT content bytea, OUT note text) record'),
    ('encode_xml(value jsonb, root text) text'),
    ('grant_writer(role regrole) void'),
    ('grant_auditor(role regrole) void'),
    ('grant_admin(role regrole) void'),
    ('pause(channel text, account text, reason text, until timestamptz) void'),
    ('reseal() bigint'),
    ('resume(channel text, account text, reason text) boolean'),
    ('latency_bounds() double precision[]'),
    ('watch(channel text, max integer) TABLE(endpoint text, state text, owed bigint, waiting text, per_second numeric, delivering text,
        failing numeric, p50_ms numeric, p99_ms numeric, oldest interval, note text)'),
    ('report(since timestamptz, until timestamptz, channel text) text'),
    ('stat_reset(channel text, account text) void'),
    ('adopt() void'),
    ('silence(OUT state text, OUT why text) record'),
    ('launch() void'),
    ('receive(source text, event_id text, topic text, key text, changes jsonb, occurred_at timestamptz, revision
        numeric, op text, target regclass, account text, base jsonb) jsonb'),
    ('receive_batch(source text, messages jsonb) SETOF jsonb'),
    ('receive_webhook(source text, headers jsonb, body bytea) jsonb'),
    ('expose_webhook(source text, schema regnamespace, name text) void'),
    ('idempotent(relation regclass, columns text[], "window" interval, on_repeat text, content text[]) text'),
    ('not_idempotent(relation regclass) boolean'),
    ('once(scope text, key text, request jsonb, statement text, wait boolean) jsonb'),
    ('turn_rings(force boolean) void');
INSERT INTO expected_function VALUES
    ('manage(relation regclass, key_columns text[]) integer'),
    ('unmanage(relation regclass) void'),
    ('set_policy(relation regclass, column_name text, strategy text, options jsonb, reason text) integer'),
    ('drop_policy(relation regclass, column_name text, reason text) integer'),
    ('explain(relation regclass, key text, "column" text) TABLE(column_name text, verdict text, value jsonb, source
        text, event_id text, occurred_at timestamptz, revision numeric, rule text, conflict_id bigint)'),
    ('what_if(relation regclass, "column" text, strategy text, options jsonb, since timestamptz) TABLE(key text,
        column_name text, value jsonb, would_be jsonb)'),
    ('check_policy(relation regclass, "column" text, strategy text, options jsonb, tries integer, since timestamptz, seed
        bigint) TABLE(key text, one_order text[], one_row jsonb, other_order text[], other_row jsonb)'),
    ('override(conflict bigint, reason text, OUT applied jsonb, OUT "row" jsonb) record');
INSERT INTO expected_function VALUES
    ('drop_parked(feed text, id bigint) bigint'),
    ('ical_events(calendar text, after timestamptz, before timestamptz) SETOF jsonb'),
    ('poll_feed(feed text, account text) integer'),
    ('reset_feed(feed text, account text, cursor text, since timestamptz) integer'),
    ('retry_parked(feed text, id bigint) bigint');
INSERT INTO expected_function VALUES
    ('cancel_reconcile(job bigint, reason text) boolean'),
    ('reconcile(channel text, account text, name text, keys text[], repair boolean, grace interval) SETOF bigint');
UPDATE expected_function
    SET signature = replace(regexp_replace(signature, '\s+', ' ', 'g'), 'timestamptz', 'timestamp with time zone');
SELECT set_eq($$SELECT signature FROM function WHERE comment !~ '^(internal|trigger): '$$,
              $$SELECT signature FROM expected_function$$, 'the functions are those that README names');
SELECT is((SELECT pg_get_function_arguments(oid) FROM function
           WHERE name = 'discard' AND signature ~ '^.......\(channel'),
          'channel text, account text DEFAULT NULL::text, topic text DEFAULT NULL::text, key text DEFAULT NULL::text, '
          'state text DEFAULT ''dead''::text, error text DEFAULT NULL::text, '
          'since timestamp with time zone DEFAULT NULL::timestamp with time zone, '
          'until timestamp with time zone DEFAULT NULL::timestamp with time zone, reason text DEFAULT NULL::text',
          'accord.discard() takes a channel''s dead letters by default');
SELECT is((SELECT pg_get_function_arguments(oid) FROM function
           WHERE name = 'discard' AND signature ~ '^.......\(event_id'),
          'event_id uuid, channel text DEFAULT NULL::text, account text DEFAULT NULL::text, '
          'reason text DEFAULT NULL::text',
          'or an event''s, wherever they are');
SELECT is(pg_get_function_arguments('accord.turn_rings'::regproc), 'force boolean DEFAULT false',
          'accord.turn_rings() does not force');
SELECT matches(pg_get_function_arguments('accord.read'::regproc), '^after_seq bigint, max integer DEFAULT 1000, OUT ',
               'accord.read() reads 1000 by default');
SELECT bag_eq($$SELECT pg_get_function_arguments(oid) FROM function WHERE name = 'redeliver'$$,
              $$SELECT pg_get_function_arguments(oid) FROM function WHERE name = 'discard'$$,
              'accord.redeliver() and accord.discard() take the same');
SELECT is_empty($$SELECT name FROM function WHERE comment ~ '^trigger: ' <> (prorettype = 'trigger'::regtype)$$,
                'what is said to be a trigger is one');

-- ---- descriptions ---------------------------------------------------------------------------------------------------

SELECT is_empty($$SELECT signature FROM function WHERE comment = ''$$, 'every function has a comment');
SELECT is_empty($$SELECT name FROM relation WHERE kind IN ('r', 'p', 'v') AND NOT is_partition
                  AND obj_description(oid, 'pg_class') IS NULL$$, 'every table and view has a comment');
SELECT is_empty($$SELECT t.typname FROM member m JOIN pg_type t ON t.oid = m.objid
                  LEFT JOIN relation r ON r.oid = t.typrelid
                  WHERE m.classid = 'pg_type'::regclass AND t.typelem = 0 AND r.oid IS NULL
                    AND obj_description(t.oid, 'pg_type') IS NULL$$, 'every type has a comment');
SELECT is_empty($$SELECT r.name, a.attname FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0
                  WHERE r.name IN ('outbox', 'channel', 'account', 'route', 'rate_limit', 'rule', 'secret', 'source', 'feed', 'reconciliation') AND a.attname NOT IN
                        ('id', 'name', 'description', 'updated_at') AND col_description(r.oid, a.attnum) IS NULL$$,
                'every column that users fill in has a comment');

-- ---- safety ---------------------------------------------------------------------------------------------------------

SELECT isnt_empty($$SELECT FROM function WHERE prosecdef$$, 'there are functions that run as their owner');
SELECT is_empty($$SELECT signature FROM function WHERE prosecdef
                  AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)$$,
                'those pin their search_path');
SELECT is_empty($$SELECT signature FROM function WHERE lanname <> 'c'
                  AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)$$,
                'and so does all that is not C');

-- What PUBLIC, and therefore anybody, may do: name things of the schema, and have the outbox's default computed.
CREATE ROLE regress_accord_nobody;
CREATE ROLE "regress_accord Writer";
CREATE ROLE regress_accord_auditor;
CREATE ROLE regress_accord_admin;
CREATE TEMPORARY VIEW may AS
    SELECT g.rolname::text AS role, r.kind, r.name, p.privilege
    FROM relation r CROSS JOIN pg_roles g
    CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'])
               AS p (privilege)
    WHERE r.kind <> 'S' AND g.rolname LIKE 'regress\_accord%'
      AND has_table_privilege(g.oid, r.oid, p.privilege)
    UNION ALL
    SELECT g.rolname, r.kind, r.name, p.privilege
    FROM relation r CROSS JOIN pg_roles g CROSS JOIN unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS p (privilege)
    WHERE r.kind = 'S' AND g.rolname LIKE 'regress\_accord%' AND has_sequence_privilege(g.oid, r.oid, p.privilege)
    UNION ALL
    SELECT g.rolname, 'f', f.name, 'EXECUTE' FROM function f CROSS JOIN pg_roles g
    WHERE g.rolname LIKE 'regress\_accord%' AND has_function_privilege(g.oid, f.oid, 'EXECUTE')
    UNION ALL
    SELECT g.rolname, 'a', r.name || '.' || a.attname, p.privilege
    FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 CROSS JOIN pg_roles g
    CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) AS p (privilege)
    WHERE g.rolname LIKE 'regress\_accord%' AND r.kind <> 'S'
      AND has_column_privilege(g.oid, r.oid, a.attnum, p.privilege)
      AND NOT has_table_privilege(g.oid, r.oid, p.privilege);
SELECT ok(has_schema_privilege('regress_accord_nobody', 'accord', 'USAGE'), 'anybody may name things of the schema');
SELECT ok(NOT has_schema_privilege('regress_accord_nobody', 'accord', 'CREATE'), 'and make none');
SELECT is_empty($$SELECT name, privilege FROM may$$,
              'without a grant nobody may do anything');

SELECT accord.grant_writer('"regress_accord Writer"'), accord.grant_auditor('regress_accord_auditor'),
       accord.grant_admin('regress_accord_admin') \g /dev/null
SELECT accord.grant_admin('regress_accord_admin') \g /dev/null
CREATE TEMPORARY VIEW writer_may (name, privilege) AS
    VALUES ('outbox', 'SELECT'), ('outbox', 'INSERT'), ('owed', 'EXECUTE'), ('expand', 'EXECUTE'), ('encode_form', 'EXECUTE'), ('encode_xml', 'EXECUTE'),
           ('poll', 'EXECUTE'), ('advance', 'EXECUTE'), ('rewind', 'EXECUTE'), ('seq_at', 'EXECUTE'),
           ('row_key', 'EXECUTE'), ('capture', 'EXECUTE'), ('release', 'EXECUTE'),
           ('baseline', 'EXECUTE'), ('manage_claims', 'EXECUTE'), ('unmanage_claims', 'EXECUTE'), ('settle_claims', 'EXECUTE'),
           ('receive', 'EXECUTE'), ('receive_batch', 'EXECUTE'), ('idempotent', 'EXECUTE'),
           ('not_idempotent', 'EXECUTE'), ('once', 'EXECUTE'), ('confirm', 'EXECUTE'), ('remote', 'EXECUTE');
CREATE TEMPORARY VIEW auditor_may (name, privilege) AS
    SELECT unnest(ARRAY['event_log', 'commit_log', 'prepared', 'attempt_log', 'backlog_log', 'cursor_log', 'endpoint_log',
                        'rate_limit', 'paused', 'outbox', 'backlog',
                        'dead_letter', 'attempt', 'timeline', 'status', 'consumer', 'consumer_log', 'consumer_status', 'retirement', 'archive', 'ring', 'channel', 'account', 'route', 'identity', 
                        'idempotency_key', 'idempotency_scope', 'inbox', 'source', 'secret.name', 'secret.updated_at']), 'SELECT'
    UNION ALL SELECT unnest(ARRAY['owed', 'endpoint_state', 'silence', 'consumer_position', 'safe_seq', 'read', 'expand', 'encode_form', 'encode_xml']), 'EXECUTE'
    UNION ALL SELECT 'preview', 'EXECUTE'
    UNION ALL SELECT unnest(ARRAY['managed', 'policy', 'row_state', 'conflict_log', 'change_log', 'conflict']), 'SELECT'
    UNION ALL SELECT unnest(ARRAY['explain', 'row_now', 'clock_time']), 'EXECUTE'
    UNION ALL SELECT unnest(ARRAY['ring_slots', 'verify', 'proof', 'consistency', 'check_proof', 'check_consistency']),
              'EXECUTE'
    UNION ALL SELECT unnest(ARRAY['seal', 'seal_node', 'seal_gap']), 'SELECT'
    UNION ALL SELECT unnest(ARRAY['rule', 'remote_id']), 'SELECT'
    UNION ALL SELECT 'remote', 'EXECUTE'
    UNION ALL SELECT 'token.' || unnest(ARRAY['key', 'url', 'secrets_at', 'obtained_at', 'expires_at', 'claimed_until', 'failures', 'error', 'retry_at']), 'SELECT'
    UNION ALL SELECT unnest(ARRAY['captured', 'captured_shape', 'captured_baseline']), 'SELECT'
    UNION ALL SELECT unnest(ARRAY['claims', 'claim_resource']), 'SELECT'
    UNION ALL SELECT unnest(ARRAY['pg_stat_accord', 'pg_stat_accord_database']), 'SELECT'
    UNION ALL SELECT unnest(ARRAY['watch', 'bar', 'report', 'report_text', 'report_number', 'report_table', 'report_ceiling', 'report_plot',
                                  'report_span', 'report_style', 'report_attempts', 'report_waiting', 'report_conflicts', 'report_tables']), 'EXECUTE'
    UNION ALL SELECT unnest(ARRAY['endpoint_counters', 'database_counters', 'latency_bounds']), 'EXECUTE'
    UNION ALL SELECT unnest(ARRAY['row_key', 'captured_id', 'captured_relation', 'capture_holder', 'reshape', 'citus_kind', 'citus_check_past']), 'EXECUTE'
    UNION ALL SELECT unnest(ARRAY['mark_log', 'marks']), 'SELECT'
    UNION ALL SELECT unnest(ARRAY['progress', 'replay_job', 'replay_log']), 'SELECT'
    UNION ALL SELECT unnest(ARRAY['reconciliation', 'reconcile_job', 'reconcile_item', 'drift']), 'SELECT'
    UNION ALL SELECT unnest(ARRAY['feed', 'feed_log', 'feed_item', 'feed_parked', 'feed_status']), 'SELECT'
    UNION ALL SELECT unnest(ARRAY['feed_state', 'feed_places']), 'EXECUTE'
    UNION ALL SELECT unnest(ARRAY['as_of', 'row_as_of', 'history', 'blame', 'diff', 'point_seq', 'seq_at', 'oldest_seq', 'row_of',
                                  'history_table', 'history_shapes', 'shaped_events', 'key_of', 'image_of', 'row_events', 'commit_events', 'changes',
                                  'state_before', 'state_after', 'diff_seq', 'seq_of', 'equality']), 'EXECUTE';
CREATE TEMPORARY VIEW admin_may (name, privilege) AS
    SELECT * FROM writer_may UNION SELECT * FROM auditor_may
    UNION SELECT t, p FROM unnest(ARRAY['channel', 'account', 'route', 'rate_limit', 'rule', 'remote_id', 'consumer', 'secret', 'source', 'idempotency_scope', 'feed']) t,
                           unnest(ARRAY['INSERT', 'UPDATE', 'DELETE']) p
    UNION VALUES ('route_id_seq', 'USAGE'), ('rate_limit_id_seq', 'USAGE'), ('consumer_id_seq', 'USAGE')
    UNION VALUES ('rule_id_seq', 'USAGE')
    UNION VALUES ('feed_id_seq', 'USAGE'), ('reconciliation_id_seq', 'USAGE')
    UNION SELECT 'reconciliation', unnest(ARRAY['INSERT', 'UPDATE', 'DELETE'])
    UNION SELECT unnest(ARRAY['reconcile', 'cancel_reconcile']), 'EXECUTE'
    UNION SELECT unnest(ARRAY['check_template', 'poll_feed', 'reset_feed', 'retry_parked', 'drop_parked', 'ical_events']), 'EXECUTE'
    UNION VALUES ('archive', 'DELETE'), ('erase', 'EXECUTE')
    UNION SELECT 'archive.' || c, p FROM unnest(ARRAY['log', 'function', 'owner', 'enabled', 'description']) c,
                                        unnest(ARRAY['INSERT', 'UPDATE']) p
    UNION SELECT unnest(ARRAY['redeliver', 'discard', 'pause', 'resume', 'adopt', 'launch']), 'EXECUTE'
    UNION SELECT unnest(ARRAY['manage', 'unmanage', 'set_policy', 'drop_policy', 'override', 'what_if', 'check_policy']), 'EXECUTE'
    UNION SELECT unnest(ARRAY['stat_reset', 'reset_counters']), 'EXECUTE'
    UNION SELECT unnest(ARRAY['replay', 'backfill', 'cancel_replay', 'probe']), 'EXECUTE'
    UNION SELECT unnest(ARRAY['reseal', 'mark', 'verify_options', 'check_verify', 'check_mapping', 'check_path', 'is_relation',
                              'check_mapping_function', 'receive_webhook', 'expose_webhook']), 'EXECUTE'
    UNION SELECT unnest(ARRAY['revert', 'undelete', 'revert_commits', 'revert_net', 'revert_steps',
                              'revert_decide', 'key_image', 'key_condition', 'from_name', 'type_name', 'revert_current',
                              'revert_since', 'revert_plan_table', 'revert_statement', 'revert_referrers', 'revert_try',
                              'revert_levels', 'revert_apply', 'loose_columns', 'deferrable_constraints',
                              'set_constraints', 'revert_apply_circle', 'revert_moved', 'revert_execute', 'revert_note',
                              'revert_run', 'revert_check_mode', 'undelete_row']), 'EXECUTE';
SELECT is_empty($$SELECT name, privilege FROM may WHERE role = 'regress_accord_nobody'$$,
              'grants to others are nobody else''s');
SELECT set_eq($$SELECT name, privilege FROM may WHERE role = 'regress_accord Writer'$$, $$SELECT * FROM writer_may$$,
              'what a writer may do');
SELECT set_eq($$SELECT name, privilege FROM may WHERE role = 'regress_accord_auditor'$$, $$SELECT * FROM auditor_may$$,
              'what an auditor may do');
SELECT set_eq($$SELECT name, privilege FROM may WHERE role = 'regress_accord_admin'$$, $$SELECT * FROM admin_may$$,
              'what an admin may do');
SELECT is_empty($$SELECT * FROM may WHERE name IN ('secret', 'secret.value')
                  AND privilege IN ('SELECT', 'REFERENCES')$$,
                'nobody reads the value of a secret');
SELECT is_empty($$SELECT grantee FROM relation r JOIN pg_class c ON c.oid = r.oid, aclexplode(c.relacl)
                  WHERE is_grantable AND grantee <> c.relowner$$, 'nobody may grant it on');

-- And as them.
INSERT INTO accord.secret (name, value) VALUES ('surface', 'the secret');
SET LOCAL ROLE "regress_accord Writer";
SELECT lives_ok($$INSERT INTO accord.outbox (topic) VALUES ('sf.writer') RETURNING event_id$$,
                'a writer inserts events');
SELECT lives_ok($$SELECT count(*) FROM accord.outbox$$, 'and sees what is owed');
SELECT throws_ok($$SELECT FROM accord.event_log$$, '42501', NULL, 'but not the log');
SELECT throws_ok($$SELECT accord.grant_writer('regress_accord_nobody')$$, '42501', NULL, 'and grants nothing');
SET LOCAL ROLE regress_accord_auditor;
SELECT lives_ok(format('SELECT count(*) FROM accord.%I', name), 'an auditor reads accord.' || name)
FROM unnest(ARRAY['event_log', 'commit_log', 'attempt_log', 'backlog_log', 'cursor_log', 'endpoint_log',
                  'rate_limit', 'paused', 'outbox', 'backlog',
                  'dead_letter', 'attempt', 'timeline', 'status', 'consumer', 'consumer_log', 'consumer_status', 'retirement', 'archive', 'ring', 'seal', 'seal_node', 'seal_gap', 'channel', 'account', 'route', 'identity',
                  'idempotency_key', 'captured', 'captured_shape', 'captured_baseline', 'mark_log', 'marks', 'progress', 'replay_job', 'replay_log',
                  'feed', 'feed_log', 'feed_item', 'feed_parked', 'feed_status', 'reconciliation', 'reconcile_job', 'drift']) name;
SELECT lives_ok($$SELECT * FROM accord.read(0)$$, 'and in commit order');
SELECT is((SELECT name FROM accord.secret WHERE name = 'surface'), 'surface', 'which secrets there are');
SELECT throws_ok($$SELECT value FROM accord.secret$$, '42501', NULL, 'not their values');
SELECT throws_ok($$INSERT INTO accord.outbox (topic) VALUES ('sf.auditor')$$, '42501', NULL, 'and writes no event');
SET LOCAL ROLE regress_accord_admin;
SELECT throws_ok($$SELECT value FROM accord.secret$$, '42501', NULL, 'an admin does not read secrets either');
SELECT throws_ok($$SELECT count(*) FROM accord.secret s WHERE s IS NOT NULL$$, '42501', NULL, 'not by the row');
SELECT throws_ok($$UPDATE accord.secret SET updated_at = now() RETURNING value$$, '42501', NULL, 'nor by RETURNING');
SELECT throws_ok($$UPDATE accord.secret SET name = value$$, '42501', NULL, 'nor by another column');
SELECT lives_ok($$UPDATE accord.secret SET value = 'another' WHERE name = 'surface'$$, 'an admin replaces them');
SELECT lives_ok($$INSERT INTO accord.channel (name, base_url) VALUES ('surface.decided', 'http://127.0.0.1:1');
                  SELECT accord.redeliver('surface.decided'), accord.discard('surface.decided'),
                         accord.redeliver(gen_random_uuid()), accord.discard(gen_random_uuid())$$, 'redelivers and discards');
SELECT throws_like($$SELECT accord.redeliver('nowhere')$$, 'channel "nowhere" does not exist', 'by a channel that there is');
SELECT throws_like($$SELECT accord.discard('01a22002-2ffd-7f37-807a-725daca0530e', 'surface.decided')$$,
                   'channel "01a22002-2ffd-7f37-807a-725daca0530e" does not exist', 'an id that is not a uuid is refused');
SELECT throws_ok($$SELECT accord.redeliver('nowhere', state => 'delivered')$$, '22023', NULL,
                 'by a state that there is');
SELECT throws_ok($$SELECT accord.turn_rings()$$, '42501', NULL, 'but housekeeping is the owner''s');
SELECT throws_ok($$SELECT accord.grant_writer('regress_accord_nobody')$$, '42501', NULL, 'and so are grants');
SELECT throws_ok($$INSERT INTO accord.event_log_0 (topic) VALUES ('sf.admin')$$, '42501', NULL, 'and the logs');
RESET ROLE;
SELECT throws_ok($$SELECT accord.grant_writer('regress_accord_missing')$$, '42704', NULL, 'a role that is not there');

-- ---- the log --------------------------------------------------------------------------------------------------------

INSERT INTO accord.outbox (topic, key) SELECT 'sf.id', g::text FROM generate_series(1, 500) g;
-- RFC 9562, section 5.7: 48 bits of Unix milliseconds, version 7, variant 10
SELECT matches(event_id::text, '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$',
               'event_id is a UUID of version 7')
FROM accord.event_log WHERE topic = 'sf.id' LIMIT 1;
SELECT is_empty($$SELECT event_id FROM accord.event_log WHERE topic = 'sf.id'
                  AND event_id::text !~ '^.{8}-.{4}-7.{3}-[89ab].{3}-.{12}$'$$, 'all of them are');
SELECT is_empty($$SELECT event_id, recorded_at FROM accord.event_log WHERE topic = 'sf.id'
                  AND ('x' || lpad(left(replace(event_id::text, '-', ''), 12), 16, '0'))::bit(64)::bigint
                      <> floor(extract(epoch FROM recorded_at) * 1000)$$, 'they carry the millisecond of recording');
SELECT is((SELECT count(DISTINCT event_id) FROM accord.event_log WHERE topic = 'sf.id'), 500::bigint,
          'no two are the same');
SELECT is((SELECT count(DISTINCT right(event_id::text, 15)) FROM accord.event_log WHERE topic = 'sf.id'), 500::bigint,
          'also without the time');

CREATE TEMPORARY TABLE log (name text);
INSERT INTO log SELECT name FROM relation WHERE name ~ '^(event|commit|attempt|backlog|cursor|endpoint|consumer)_log(_[0-9])?$';
SELECT is((SELECT count(*) FROM log), 51::bigint, 'seven logs, and their slots');
-- A row in each, as the dispatchers would write them.
INSERT INTO accord.commit_log VALUES (0, 0, now(), 10, 1, 0, '');
INSERT INTO accord.attempt_log (seq, recorded_at, ord, attempt, slot, channel, account, outcome)
    VALUES (0, now(), 1, 1, 0, 'sf', '', 'delivered');
INSERT INTO accord.backlog_log (seq, tx_id, recorded_at, owed_since, ord, version, attempts, slot, event_slot,
                                priority, channel, account, state)
    VALUES (0, 0, now(), now(), 1, 1, 1, 0, 0, 1, 'sf', '', 'dead');
INSERT INTO accord.cursor_log VALUES (1, 0, now(), 0, 0, 1, 0, 1, 'sf', '');
INSERT INTO accord.consumer_log VALUES (1, 0, now(), 0, 0);
INSERT INTO accord.endpoint_log VALUES (now(), NULL, 0, 'sf', '', 'open');
CREATE FUNCTION pg_temp.refused(replication_role text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    l record;
BEGIN
    PERFORM set_config('session_replication_role', replication_role, true);
    FOR l IN SELECT name FROM pg_temp.log ORDER BY name LOOP
        RETURN NEXT throws_ok(format('TRUNCATE accord.%I', l.name), '55000', NULL,
                              format('%s: TRUNCATE of %s is refused', replication_role, l.name));
        -- the others are empty, and these triggers are for rows
        CONTINUE WHEN l.name !~ '(log|_0)$';
        RETURN NEXT throws_ok(format('DELETE FROM accord.%I', l.name), '55000', NULL,
                              format('%s: DELETE of %s is refused', replication_role, l.name));
        RETURN NEXT throws_ok(format('UPDATE accord.%I SET slot = slot', l.name), '55000', NULL,
                              format('%s: UPDATE of %s is refused', replication_role, l.name));
    END LOOP;
    PERFORM set_config('session_replication_role', 'origin', true);
END
$$;
SELECT pg_temp.refused('origin');
SELECT pg_temp.refused('replica');
SELECT pg_temp.refused('local');
SELECT throws_ok(format('INSERT INTO accord.%I DEFAULT VALUES', name), '55000', NULL,
                 'what did not come by the outbox is refused: ' || name)
FROM log WHERE name ~ '_0$';
SELECT is_empty($$SELECT c.relname, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                  WHERE c.relnamespace = 'accord'::regnamespace AND NOT t.tgisinternal AND c.relkind <> 'v'
                    AND t.tgenabled <> 'A'$$,
                'the triggers of the tables are in force in every session');

-- ---- pg_dump --------------------------------------------------------------------------------------------------------

SELECT set_eq($$SELECT name FROM relation r, pg_extension x WHERE x.extname = 'pg_accord' AND r.kind IN ('r', 'p', 'S')
                AND r.oid <> ALL (x.extconfig)$$, ARRAY[]::text[], 'pg_dump takes everything along');
SELECT set_eq($$SELECT c.oid::regclass::text, e.condition FROM pg_extension x,
                unnest(x.extconfig, x.extcondition) AS e (oid, condition) JOIN pg_class c ON c.oid = e.oid
                WHERE x.extname = 'pg_accord' AND e.condition <> ''$$,
              $$VALUES ('accord.secret', 'WHERE value LIKE ''sealed:1:%'''), ('accord.token', 'WHERE access_token LIKE ''sealed:1:%''')$$,
              '... all of it, but secrets and tokens that are not sealed');

SELECT finish();
ROLLBACK;
