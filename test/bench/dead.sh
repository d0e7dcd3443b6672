# dead.sh: a channel that is down, and owed millions, beside ten that are not: theirs must not suffer; a part of
# test/bench/run.
#
# Two databases of one server have ten channels each. In one there is the dead channel besides, in the other not; what the
# ten deliver is compared round by round. OWED is what the dead one is owed.

# As fill_accounts() and drain_accounts() do it, in a database: in_database NAME COMMAND...
in_database() {
    local PGDATABASE=$1
    export PGDATABASE
    shift
    "$@"
}

dead_database() {
    sql -c "CREATE DATABASE $1"
    in_database "$1" sql -c 'CREATE EXTENSION pg_accord' -c 'ALTER TABLE accord.route ALTER coalesce SET DEFAULT NULL'
    in_database "$1" make_accounts 10
}

# The dispatcher has routed all that there is.
has_read_all() {
    [ "$(sql -d beside -c 'SELECT (SELECT last_value FROM accord.position_0) >= (SELECT last_value FROM accord.commit_seq)')" = t ]
}

# A port where nobody listens; keys come again every 50,000 events.
make_dead() {
    local before
    sql -d beside <<'SQL' || exit 1
INSERT INTO accord.channel (name, base_url, breaker_cap) VALUES ('dead', 'http://127.0.0.1:9', '10 s');
INSERT INTO accord.route (channel, topic, path) VALUES ('dead', 'dead.*', '/z');
SQL
    for before in $(seq 1 1000000 "$1"); do
        sql -d beside -c "INSERT INTO accord.outbox (topic, key, payload) SELECT 'dead.x', 'k' || g % 50000, jsonb_build_object('n', g)
            FROM generate_series($before, least($before + 999999, $1)) g"
    done
    wait_until has_read_all
}

# How many a second arrive in ten seconds, of a thousand that may.
limited_rate() {
    local before start
    sql -d beside -c "INSERT INTO accord.rate_limit (channel, bucket, amount, period, burst) VALUES ('dead', '', 1000, '1 s', 100)" \
        -c "UPDATE accord.channel SET base_url = '$url', max_in_flight = 64, breaker_failures = NULL, breaker_ratio = NULL
            WHERE name = 'dead'"
    before=$(arrived z)
    wait_until has_arrived z $((before + 1000))
    before=$(arrived z) start=$(seconds)
    sleep 10
    calculate %d "($(arrived z) - $before) / ($(seconds) - $start)"
    sql -d beside -c 'DELETE FROM accord.rate_limit'
}

measure_dead() {
    local owed=${OWED:-${quick:+200000}} n=${quick:+20000} rounds=${quick:+2} round name order start before
    local patience=7200 first
    local -A rate=()
    owed=${owed:-5000000} n=${n:-200000} rounds=${ROUNDS:-${rounds:-4}}
    dead_database alone
    dead_database beside
    first=$(arrived z)
    make_dead "$owed"
    watch_memory "$(in_database beside dispatcher)" 2>/dev/null &
    sampler=$!
    for round in $(seq "$rounds"); do
        order='alone beside'
        [ $((round % 2)) -eq 1 ] || order='beside alone'
        for name in $order; do
            rate[$name]+=$(in_database "$name" drain_accounts 10 "$n")$'\n'
        done
    done
    rounds_row "requests/s, ten channels" %d "${rate[alone]}"
    rounds_row "  beside one that is dead and owed $owed" %d "${rate[beside]}"
    rounds_row "  ratio" %.2f "$(ratios "${rate[beside]}" "${rate[alone]}")" 0.95 '>='
    row "  dispatcher's memory, MiB" "$(in_database beside memory_now)" "$(in_database alone memory_now) without" 256 '<='
    row "  rows written for what is owed (backlog_log)" \
        "$(sql -d beside -c "SELECT count(*) FROM accord.backlog_log WHERE channel = 'dead'")"
    row "  accord.status, ms" "$(in_database beside timed 'SELECT count(*), sum(owed) FROM accord.status')"
    row "  back, with a limit of 1,000 a second: requests/s" "$(limited_rate)"
    before=$(arrived z) start=$(seconds)
    wait_until has_arrived z $((first + owed))
    row "  ... without: requests/s until all of it is delivered" \
        "$(calculate %d "($(arrived z) - $before) / ($(seconds) - $start)")"
    wait_until in_database beside owes_nothing dead
    row "  ... delivered before an earlier event of its key" "$(sql -d beside -c "SELECT count(*) FROM (
        SELECT recorded_at - lag(recorded_at) OVER (PARTITION BY ord % 50000 ORDER BY seq, ord) AS since
        FROM accord.attempt_log WHERE channel = 'dead' AND outcome = 'delivered') x WHERE since < '0'")"
    kill "$sampler"
    wait "$sampler" 2>/dev/null
    sampler=
    row "  ... dispatcher's memory at most, MiB (RssAnon)" "$(($(cat "$scratch/memory") / 1024))" '' 256 '<='
    sql -c 'DROP DATABASE alone' -c 'DROP DATABASE beside'
}
