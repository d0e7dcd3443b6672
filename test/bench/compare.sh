# test/bench/compare.sh: the part "compare" of test/bench/run, which reads this file: beside what one would pick instead.
#
# graphile-worker and pg-boss come from npm, of the versions below, with a Node.js of their own; each posts by
# test/bench/compare/post.mjs. pg_net is measured when the PostgreSQL that is used has it installed. What is missing is left
# out with a word. All post the same JSON to the same sink, in turn, and only one of them delivers at a time.

# Their newest versions need a newer Node.js than Debian 12 has.
worker_packages=(graphile-worker@0.18.0 pg-boss@12.38.0 undici@8.13.1)
node_version=24.22.3
worker=                         # process of the worker that runs
tools=(accord)                  # those that can be measured

# By whoever may use npm: root, when root runs this.
install_workers() {
    local machine
    mkdir -p "$scratch/node"
    case $(uname -m) in aarch64) machine=arm64 ;; *) machine=x64 ;; esac
    if ! command -v npm >/dev/null; then
        echo 'npm is not installed' >"$scratch/node/why"
    elif ! npm install --silent --ignore-scripts --no-audit --no-fund --prefix "$scratch/node" "${worker_packages[@]}" \
        "node-linux-$machine@$node_version" >"$scratch/node/npm.log" 2>&1; then
        echo 'npm could not install them' >"$scratch/node/why"
    else
        cp "$top"/test/bench/compare/*.mjs "$scratch/node/"
        ln -s "node_modules/node-linux-$machine/bin/node" "$scratch/node/node"
    fi
}

# Finds out which there are, and gives each what it needs.
prepare_tools() {
    local preload=
    [ -d "$scratch/node" ] || install_workers
    if [ -e "$scratch/node/why" ]; then
        echo "graphile-worker and pg-boss: left out, $(cat "$scratch/node/why")"
    else
        quietly graphile "$scratch/node/node" "$scratch/node/graphile_worker.mjs" setup
        quietly boss "$scratch/node/node" "$scratch/node/pg_boss.mjs" setup
        boss_statement=$(cat "$scratch/boss.log")
        tools+=(graphile boss)
    fi
    if [ "$(sql -c "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_net'")" = 0 ]; then
        echo 'pg_net: left out, it is not installed'
    else
        # it sends one batch a second; larger ones, and as many connections, were not tried
        printf '%s\n' "shared_preload_libraries = 'pg_accord,pg_net'" 'pg_net.batch_size = 2000' >>"$scratch/data/postgresql.conf"
        quietly restart pg_ctl -D "$scratch/data" -l "$scratch/server.log" -w restart
        server=$(head -n 1 "$scratch/data/postmaster.pid")
        sql -c 'CREATE EXTENSION pg_net'
        tools+=(pg_net)
    fi
    sql -v url="$url" <<'SQL' || fail 'could not configure the channel'
INSERT INTO accord.channel (name, base_url, max_in_flight, enabled) VALUES ('compare', :'url', 64, false);
INSERT INTO accord.route (channel, topic, path) VALUES ('compare', 'compare.*', '/y');
SQL
}

tool_name() {
    case $1 in accord) echo pg_accord ;; graphile) echo graphile-worker ;; boss) echo pg-boss ;; *) echo "$1" ;; esac
}

# The statement that enqueues one: enqueue TOOL LETTER PAYLOAD KEY, the last two of them expressions
enqueue() {
    local jobs="json_build_array(json_build_object('data', $3))"
    case $1 in
        accord) echo "INSERT INTO accord.outbox (topic, key, payload) VALUES ('compare.x', $4, $3)" ;;
        graphile) echo "SELECT graphile_worker.add_job('post', ($3)::json)" ;;
        boss) echo "${boss_statement/\$1/"$jobs"}" ;;
        pg_net) echo "SELECT net.http_post('$url/$2', $3)" ;;
    esac
}

# Many by one statement: enqueue_many TOOL LETTER FIRST LAST
enqueue_many() {
    local payload="jsonb_build_object('n', g, 'filler', repeat('x', 270))" from="FROM generate_series($3, $4) g" jobs
    jobs="(SELECT json_agg(json_build_object('data', $payload)) $from)"
    case $1 in
        accord) sql -c "INSERT INTO accord.outbox (topic, key, payload) SELECT 'compare.x', 'k' || g % 50000, $payload $from" ;;
        graphile) sql -c "SELECT count(*) FROM graphile_worker.add_jobs((SELECT array_agg(
            ROW('post', $payload, NULL, NULL, NULL, NULL, NULL, NULL)::graphile_worker.job_spec) $from))" ;;
        boss) sql -c "${boss_statement/\$1/"$jobs"}" ;;
        pg_net) sql -c "SELECT count(net.http_post('$url/$2', $payload)) $from" ;;
    esac >/dev/null || fail "could not enqueue: $1"
}

# Lets it deliver to a lane of the sink: start_tool TOOL LETTER. pg_net always does.
start_tool() {
    local program=graphile_worker
    case $1 in
        accord)
            sql -c "UPDATE accord.route SET path = '/$2' WHERE channel = 'compare'" \
                -c "UPDATE accord.channel SET enabled = true WHERE name = 'compare'" ;;
        graphile | boss)
            [ "$1" = graphile ] || program=pg_boss
            rm -f "$scratch/worker.log"
            NODE_ENV=production "$scratch/node/node" "$scratch/node/$program.mjs" work "$url/$2" >"$scratch/worker.log" 2>&1 &
            worker=$!
            loads[0]=$worker
            wait_until grep -qs ready "$scratch/worker.log" ;;
    esac
}

stop_tool() {
    case $1 in
        accord) sql -c "UPDATE accord.channel SET enabled = false WHERE name = 'compare'" ;;
        graphile | boss)
            kill "$worker"
            wait "$worker" 2>/dev/null
            loads=() worker= ;;
    esac
}

tool_owes_nothing() {
    case $1 in
        accord) owes_nothing compare ;;
        graphile) [ "$(sql -c 'SELECT count(*) FROM graphile_worker._private_jobs')" = 0 ] ;;
        boss) [ "$(sql -c "SELECT count(*) FROM pgboss.job WHERE name = 'post' AND state < 'completed'")" = 0 ] ;;
        pg_net) [ "$(sql -c 'SELECT count(*) FROM net.http_request_queue')" = 0 ] ;;
    esac
}

# Of the sink's file (see sink.h): a lane begins anew.
forget_lane() {
    dd if=/dev/zero of="$scratch/arrivals" bs=1 seek=$(($(printf '%d' "'$1") * 24)) count=24 conv=notrunc 2>/dev/null
}

# Requests a second of a lane, between the first and the last.
lane_rate() {
    od -An -w24 -t d8 -j $(($(printf '%d' "'$1") * 24)) -N 24 "$scratch/arrivals" | awk '{print ($1 - 1) / (($3 - $2) / 1e9)}'
}

# Microseconds of CPU of the server, all its processes ever, and of the worker.
all_cpu() {
    local process used total
    total=$(ended_cpu)
    for process in "$server" $(<"/proc/$server/task/$server/children") $worker; do
        # one that has ended meanwhile is among those
        used=$(cpu "$process" 2>/dev/null) && total=$((total + used))
    done
    echo "$total"
}

# A backlog: requests a second, CPU of each in microseconds, and bytes of WAL of each, enqueueing included.
compare_backlog() {
    local n=$2 before used
    before=$(wal)
    if [ "$1" = pg_net ]; then
        forget_lane y
        enqueue_many "$1" y 1 "$n"
        used=$(all_cpu)
    else
        enqueue_many "$1" y 1 "$n"
        forget_lane y
        used=$(all_cpu)
        start_tool "$1" y
    fi
    wait_until has_arrived y "$n"
    wait_until tool_owes_nothing "$1"
    rate[$1]+=$(lane_rate y)$'\n' cpu_each[$1]+=$(calculate %f "($(all_cpu) - $used) / $n")$'\n'
    stop_tool "$1"
    wal_each[$1]+=$((($(wal) - before) / n))$'\n'
}

# Commit to arrival: compare_latency TOOL SITUATION COUNT INTERVAL-US
compare_latency() {
    "$scratch/latency" "host=$scratch port=54329 user=postgres" "$scratch/arrivals" $next "$3" "$4" \
        "$(enqueue "$1" l "jsonb_build_object('n', \$1::int)" "'probe' || \$1::int")" >"$scratch/probe" || fail "could not measure: $1"
    next=$((next + $3))
    cat "$scratch/probe" >>"$scratch/compared.$1.$2"
}

# TPC-B with one enqueued, nobody delivering where that can be had, and delivered meanwhile.
compare_pgbench() {
    local figures
    script compared "$(enqueue "$1" y "jsonb_build_object('delta', :delta, 'aid', :aid)" ':aid::text');"
    if [ "$1" != pg_net ]; then
        figures=$(transactions compared 2 "$2") || exit 1
        written[$1]+=${figures% *}$'\n'
        start_tool "$1" y
    fi
    wait_until tool_owes_nothing "$1"
    figures=$(transactions_beside compared 2 "$2") || exit 1
    delivered[$1]+=$figures$'\n'
    wait_until tool_owes_nothing "$1"
    stop_tool "$1"
}

deliverer() {
    case $1 in
        accord) dispatcher ;;
        pg_net) sql -c "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'pg_net%'" ;;
        *) echo "$worker" ;;
    esac
}

server_is_back() { sql -c 'SELECT 1' >/dev/null 2>&1; }

# The process that delivers is killed amid 5,000, by kill -9; a worker is started again at once. What became of them, when
# nothing has arrived for ten seconds.
compare_kill() {
    local n=5000 first=$next before victim now last=-1 still=0 distinct
    next=$((next + n))
    before=$(arrived l)
    victim=$(deliverer "$1")
    enqueue_many "$1" l "$first" $((first + n - 1))
    if [ "$1" != pg_net ]; then
        start_tool "$1" l
        [ "$1" = accord ] || victim=$worker
    fi
    until has_arrived l $((before + n / 3)); do :; done
    kill -9 "$victim"
    now=$(arrived l)
    echo "  $(tool_name "$1"): killed when $((now - before)) of $n had arrived" >>"$scratch/killed"
    case $1 in graphile | boss) wait "$worker" 2>/dev/null; start_tool "$1" l ;; esac
    while [ $still -lt 10 ]; do
        sleep 1
        now=$(arrived l)
        if [ "$now" = "$last" ]; then still=$((still + 1)); else still=0 last=$now; fi
    done
    wait_until server_is_back
    distinct=$(od -An -v -w8 -t d8 -j $((128 * 24 + first * 8)) -N $((n * 8)) "$scratch/arrivals" | awk '$1 != 0' | wc -l)
    row "$(tool_name "$1"), killed amid $n: delivered twice" "$((now - before - distinct))"
    row '  not delivered ten seconds after the last' "$((n - distinct))"
    row '  ... of which it still has' "$(still_has "$1")"
    stop_tool "$1"
    [ "$1" != graphile ] || sql -c 'DELETE FROM graphile_worker._private_jobs'
    [ "$1" != boss ] || sql -c "DELETE FROM pgboss.job WHERE state < 'completed'"
}

still_has() {
    case $1 in
        accord) sql -c "SELECT count(*) FROM accord.owed() WHERE channel = 'compare'" ;;
        graphile) sql -c 'SELECT count(*) FROM graphile_worker._private_jobs' ;;
        boss) sql -c "SELECT count(*) FROM pgboss.job WHERE name = 'post' AND state < 'completed'" ;;
        pg_net) sql -c 'SELECT count(*) FROM net.http_request_queue' ;;
    esac
}

# A figure of all, each against pg_accord's: compared NAME FORMAT ARRAY
compared() {
    local tool name=$1 format=$2
    local -n figures=$3
    for tool in "${tools[@]}"; do
        [ -n "${figures[$tool]:-}" ] || continue
        rounds_row "$name: $(tool_name "$tool")" "$format" "${figures[$tool]}"
        [ "$tool" = accord ] || rounds_row '  ratio to pg_accord' %.2f "$(ratios "${figures[$tool]}" "${figures[accord]}")"
    done
}

compared_latency() {
    local tool situation
    printf '\n%-50s %8s %8s %8s %8s\n' 'commit answered to arrival, ms' p50 p90 p99 max
    for situation in idle slow; do
        for tool in "${tools[@]}"; do
            show_column "$scratch/compared.$tool.$situation" 2 \
                "$(tool_name "$tool"), $situation, $(wc -l <"$scratch/compared.$tool.$situation") events"
        done
    done
    printf '\n'
}

measure_compare() {
    local n=${quick:+20000} rounds=${quick:+3} few=${quick:+6} many=${quick:+100} seconds=${quick:+3} round tool order figures plain=''
    local -A rate=() cpu_each=() wal_each=() written=() delivered=()
    n=${n:-100000} rounds=${ROUNDS:-${rounds:-4}} few=${few:-20} many=${many:-300} seconds=${SLICE:-${seconds:-10}}
    prepare_tools
    quietly initialize pgbench -i -q -s 20
    script plain ''
    for round in $(seq "$rounds"); do
        order="${tools[*]}"
        [ $((round % 2)) -eq 1 ] || order=$(printf '%s\n' "${tools[@]}" | tac | tr '\n' ' ')
        sql -c CHECKPOINT
        for tool in $order; do
            compare_backlog "$tool" "$([ "$tool" = pg_net ] && echo $((n / 4)) || echo "$n")"
        done
        for tool in $order; do
            start_tool "$tool" l
            compare_latency "$tool" slow "$many" 50000
            compare_latency "$tool" idle "$few" 1000000
            # what is killed with a job in hand keeps it
            wait_until tool_owes_nothing "$tool"
            stop_tool "$tool"
        done
        figures=$(transactions_beside plain 2 "$seconds") || exit 1
        plain+=$figures$'\n'
        for tool in $order; do
            compare_pgbench "$tool" "$seconds"
        done
    done
    compared 'deliveries/s of a backlog' %d rate
    compared 'CPU per delivery, server and worker, us' %.1f cpu_each
    compared 'WAL per event, enqueued and delivered, bytes' %d wal_each
    compared_latency
    rounds_row 'TPC-B, 2 clients, tps: plain' %d "$plain"
    for tool in "${tools[@]}"; do
        [ -z "${written[$tool]:-}" ] || rounds_row "  ratio to plain, enqueued: $(tool_name "$tool")" %.3f "$(ratios "${written[$tool]}" "$plain")"
        rounds_row "  ... delivered meanwhile: $(tool_name "$tool")" %.3f "$(ratios "${delivered[$tool]}" "$plain")"
    done
    for tool in "${tools[@]}"; do
        compare_kill "$tool"
    done
    cat "$scratch/killed"
}
