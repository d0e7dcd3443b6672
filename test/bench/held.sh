# held.sh: what a snapshot that another session holds does to us; a part of test/bench/run.
#
# Two databases of one server do the same at the same time: events as they come, hundreds of deliveries that are refused
# and retried without end, and now and then a backlog to be drained. In one of them a session holds a snapshot (the
# rows that a snapshot keeps are those of its own database), in the other nobody does; the two are compared round by
# round. HELD is how long it is held, in seconds. A table that is updated as often as something is retried shows that
# the snapshot does keep dead rows.

holder=                         # the session that holds the snapshot
loads=()                        # ... those that write

held_database() {
    sql -c "CREATE DATABASE $1"
    sql -d "$1" -v url="$url" <<'SQL' || fail 'could not set up a database'
CREATE EXTENSION pg_accord;
CREATE EXTENSION pgstattuple;
INSERT INTO accord.channel (name, base_url, max_in_flight, retry_base, retry_cap, max_attempts, breaker_failures,
    breaker_ratio) VALUES
    ('burst', :'url', 64, '1 s', '1 s', 100, NULL, NULL), ('live', :'url', 64, '1 s', '1 s', 100, NULL, NULL),
    ('refused', :'url', 64, '1 s', '1 s', 10000, NULL, NULL);
ALTER TABLE accord.route ALTER coalesce SET DEFAULT NULL;
INSERT INTO accord.route (channel, topic, path) VALUES ('burst', 'burst.*', '/b'), ('live', 'live.*', '/f'),
    ('refused', 'refused.*', '/s');
INSERT INTO accord.outbox (topic, key) SELECT 'refused.x', g FROM generate_series(1, 300) g;
CREATE TABLE bystander AS SELECT g AS id, 0 AS n FROM generate_series(1, 300) g;
CREATE UNIQUE INDEX ON bystander (id);
SQL
}

# Some hundred events a second, in transactions of four; and the table that decays.
start_load() {
    cat >"$scratch/live.sql" <<'SQL'
\set k random(1, 5000)
\set i random(1, 300)
BEGIN;
INSERT INTO accord.outbox (topic, key, payload) SELECT 'live.x', :k + g, '{"rate": 1}' FROM generate_series(1, 4) g;
UPDATE bystander SET n = n + 1 WHERE id = :i;
END;
SQL
    pgbench -n -c 1 -R 50 -T 36000 -f "$scratch/live.sql" "$1" >"$scratch/load.$1.log" 2>&1 &
    loads+=($!)
}

burst_drained() { [ "$(sql -d "$1" -c "SELECT NOT EXISTS (SELECT FROM accord.owed() WHERE channel = 'burst')")" = t ]; }

# Deliveries a second of a backlog: burst DATABASE EVENTS
burst() {
    local start
    sql -d "$1" -c "UPDATE accord.channel SET enabled = false WHERE name = 'burst'"
    sql -d "$1" -c "INSERT INTO accord.outbox (topic, key, payload) SELECT 'burst.x', 'k' || g % 5000,
        jsonb_build_object('n', g, 'filler', repeat('x', 270)) FROM generate_series(1, $2) g"
    start=$(sql -d "$1" -c "UPDATE accord.channel SET enabled = true WHERE name = 'burst'" \
        -c 'SELECT extract(epoch FROM clock_timestamp())')
    wait_until burst_drained "$1"
    sql -d "$1" -c "SELECT $2 / (extract(epoch FROM max(recorded_at)) - $start) FROM accord.attempt_log
        WHERE channel = 'burst'"
}

# Both in turn; appends to the arrays of the caller: burst_both EVENTS ROUND
burst_both() {
    local order='held_yes held_no' name
    [ $(($2 % 2)) -eq 1 ] || order='held_no held_yes'
    for name in $order; do
        rate[$name]+=$(burst "$name" "$1")$'\n'
    done
}

# The most dead rows that a table of ours has, counted, not estimated: most_dead DATABASE
most_dead() {
    sql -d "$1" -c "SELECT max((pgstattuple(c.oid)).dead_tuple_count) FROM pg_class c
        WHERE c.relnamespace = 'accord'::regnamespace AND c.relkind = 'r'"
}

held_memory() {
    awk '/^RssAnon/ {printf "%d", $2 / 1024}' "/proc/$(sql -c "SELECT pid FROM pg_stat_activity
        WHERE backend_type = 'pg_accord dispatcher' AND datname = '$1'")/status"
}

measure_held() {
    local seconds=${HELD:-${quick:+10}} n=${quick:+10000} rounds=${quick:+2} round end tried before
    local -A rate=()
    seconds=${seconds:-120} n=${n:-50000} rounds=${ROUNDS:-${rounds:-6}}
    held_database held_yes
    held_database held_no
    start_load held_yes
    start_load held_no
    for round in $(seq $((rounds < 6 ? rounds : 6))); do
        burst_both "$n" "$round"
    done
    before=$(ratios "${rate[held_yes]}" "${rate[held_no]}")
    rate=()
    # ends with the session that it reads from
    mkfifo "$scratch/holder"
    sql -d held_yes <"$scratch/holder" >"$scratch/holder.log" 2>&1 &
    holder=$!
    exec 9>"$scratch/holder"
    echo 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM bystander;' >&9
    wait_until grep -q 300 "$scratch/holder.log"
    tried=$(sql -d held_yes -c "SELECT count(*) FROM accord.attempt_log WHERE channel = 'refused'")
    end=$((SECONDS + seconds))
    for round in $(seq "$rounds"); do
        while [ $SECONDS -lt $((end - seconds * (rounds - round) / rounds)) ]; do sleep 1; done
        burst_both "$n" "$round"
    done
    rounds_row "requests/s of a backlog, while another session holds a snapshot" %d "${rate[held_yes]}"
    rounds_row "  in another database, where nobody does" %d "${rate[held_no]}"
    rounds_row "  ratio before there was the snapshot" %.2f "$before"
    rounds_row "  ratio while it is held" %.2f "$(ratios "${rate[held_yes]}" "${rate[held_no]}")" 0.95 '>='
    row "  seconds that it was held" "$((SECONDS - end + seconds))"
    row "  attempts that were refused meanwhile" "$(($(sql -d held_yes \
        -c "SELECT count(*) FROM accord.attempt_log WHERE channel = 'refused'") - tried))"
    row "  dead rows at most in a table of ours" "$(most_dead held_yes)" '' 1000 '<='
    row "  dead rows in a table updated 50 times a second" \
        "$(sql -d held_yes -c "SELECT dead_tuple_count FROM pgstattuple('bystander')")"
    row "  dispatcher's memory, MiB" "$(held_memory held_yes)" "$(held_memory held_no) without"
    exec 9>&-
    wait "$holder"
    holder=
    kill "${loads[@]}"
    wait "${loads[@]}" 2>/dev/null
    loads=()
    sql -c 'DROP DATABASE held_yes' -c 'DROP DATABASE held_no'
}
