#!/bin/bash
# capture.sh: what capturing a table costs, beside the usual audit trigger in PL/pgSQL. Read by test/bench/run, whose
# functions it uses.
# shellcheck disable=SC2154

# One statement for many rows, in turn on the three tables: bulk STATEMENT ROWS COMMAND, whose %s is the table
bulk() {
    local kind ticks
    ticks=$(getconf CLK_TCK)
    for kind in plain audited captured; do
        # shellcheck disable=SC2059
        sql -c "CALL measure('$1', '$kind', $2, $ticks, \$\$$(printf "$3" "${kind}_t")\$\$)" || fail "could not $1"
    done
}

# What a kind of table costs more than a plain one, round by round: added STATEMENT KIND COLUMN
added() {
    sql -c "SELECT k.c - p.c FROM
        (SELECT $3 AS c, row_number() OVER (ORDER BY ctid) AS n FROM cost WHERE statement = '$1' AND kind = '$2') k JOIN
        (SELECT $3 AS c, row_number() OVER (ORDER BY ctid) AS n FROM cost WHERE statement = '$1' AND kind = 'plain') p USING (n)"
}

# A row's insert, update and delete, each a transaction of its own, without waiting for the disk: milliseconds of each, by
# pgbench: singles KIND
singles() {
    printf '%s\n' '\set id random(1000000, 2000000000)' \
        "INSERT INTO $1_t (aid, bid, abalance) VALUES (:id, 1, 0) ON CONFLICT DO NOTHING;" \
        "UPDATE $1_t SET abalance = abalance + 1 WHERE aid = :id;" "DELETE FROM $1_t WHERE aid = :id;" >"$scratch/single.sql"
    PGOPTIONS='-c synchronous_commit=off' pgbench -n -r -c 1 -T "$2" -f "$scratch/single.sql" >"$scratch/single.log" 2>&1 ||
        fail "$(tail "$scratch/single.log")"
    awk '$NF == ";" || /(INSERT|UPDATE|DELETE)/ { if ($0 ~ /INSERT/) i = $1; if ($0 ~ /UPDATE/) u = $1; if ($0 ~ /DELETE FROM/) d = $1 }
         END { print i, u, d }' "$scratch/single.log"
}

measure_bulk() {
    local rounds=$1 n=$2 statement kind
    for _ in $(seq "$rounds"); do
        bulk insert "$n" "INSERT INTO %s SELECT g, g / 100, 0, '', now() FROM generate_series(1, $n) g"
        bulk update "$n" "UPDATE %s SET abalance = abalance + 1, changed_at = now()"
        bulk 'update again' "$n" "UPDATE %s SET abalance = abalance + 1, changed_at = now()"
        bulk 'update of nothing' "$n" "UPDATE %s SET abalance = abalance"
        bulk delete "$n" "DELETE FROM %s"
        sql -c 'VACUUM plain_t, audited_t, captured_t'
    done
    for statement in insert update 'update again' 'update of nothing' delete; do
        for kind in captured audited; do
            if [ "$kind $statement" = 'captured update' ]; then
                rounds_row "bulk $statement, added us per row: $kind" %.1f "$(added "$statement" $kind elapsed)" 5 '<='
            else
                rounds_row "bulk $statement, added us per row: $kind" %.1f "$(added "$statement" $kind elapsed)"
            fi
            rounds_row "  CPU of the session" %.1f "$(added "$statement" $kind cpu)"
        done
        row "  added bytes of WAL per row: captured, audited" \
            "$(added "$statement" captured wal | median | cut -d. -f1), $(added "$statement" audited wal | median | cut -d. -f1)"
    done
    row "bytes of the log per event, indexes and all" "$(sql -c "SELECT sum(pg_total_relation_size(i.inhrelid)) / (SELECT count(*) FROM accord.event_log)
        FROM pg_inherits i WHERE i.inhparent = 'accord.event_log'::regclass" | cut -d. -f1)"
    row "bytes of the audit table per row, indexes and all" \
        "$(sql -c "SELECT pg_total_relation_size('audit') / count(*) FROM audit")"
}

measure_singles() {
    local rounds=$1 seconds=$2 kind i=0 statement
    local -A figures=()
    for _ in $(seq "$rounds"); do
        for kind in plain audited captured; do
            figures[$kind]+=$(singles $kind "$seconds")$'\n'
        done
    done
    for statement in insert update delete; do
        i=$((i + 1))
        for kind in captured audited; do
            rounds_row "single $statement, added us: $kind" %d "$(paste <(printf %s "${figures[$kind]}" | cut -d' ' -f$i) \
                <(printf %s "${figures[plain]}" | cut -d' ' -f$i) | awk '{print ($1 - $2) * 1000}')"
        done
    done
}

# Three copies of pgbench's tables, each in a schema of its own; accounts are audited, or captured.
prepare_tpcb() {
    local kind
    for kind in plain audited captured; do
        sql -c "CREATE SCHEMA $kind"
        PGOPTIONS="-c search_path=$kind,public" quietly initialize pgbench -i -q -s 10
    done
    sql -c 'CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON audited.pgbench_accounts FOR EACH ROW EXECUTE FUNCTION audit_row()' \
        -c "SELECT accord.capture('captured.pgbench_accounts', topic => 'accounts')" >/dev/null
    script tpcb ''
    sed -i 's/:scale/10/g' "$scratch/tpcb.sql"
}

measure_tpcb() {
    local rounds=$1 seconds=$2 clients=$3 round kind order figures
    local -A tps=() used=()
    sql -c CHECKPOINT
    for round in $(seq "$rounds"); do
        order='plain captured audited'
        [ $((round % 2)) -eq 1 ] || order='audited captured plain'
        for kind in $order; do
            export PGOPTIONS="-c search_path=$kind,public"
            figures=$(transactions tpcb "$clients" "$seconds") || exit 1
            unset PGOPTIONS
            tps[$kind]+=${figures% *}$'\n' used[$kind]+=${figures#* }$'\n'
        done
    done
    rounds_row "TPC-B, $clients clients, tps: plain" %d "${tps[plain]}"
    rounds_row "  accounts captured" %d "${tps[captured]}"
    rounds_row "  accounts audited" %d "${tps[audited]}"
    rounds_row "  ratio captured / plain" %.3f "$(ratios "${tps[captured]}" "${tps[plain]}")" 0.92 '>='
    rounds_row "  ratio audited / plain" %.3f "$(ratios "${tps[audited]}" "${tps[plain]}")"
    rounds_row "  sessions' CPU per transaction, us: plain" %d "${used[plain]}"
    rounds_row "    accounts captured" %d "${used[captured]}"
    rounds_row "    accounts audited" %d "${used[audited]}"
}

measure_capture() {
    local n=${quick:+20000} rounds=${quick:+2} seconds=${quick:+2}
    n=${n:-200000} rounds=${ROUNDS:-${rounds:-5}} seconds=${SLICE:-${seconds:-15}}
    sql -f "$top/test/bench/capture.sql" >/dev/null || fail 'could not set up the tables'
    measure_bulk "$rounds" "$n"
    measure_singles "$rounds" "$seconds"
    prepare_tpcb
    measure_tpcb "$rounds" "$seconds" 2
    measure_tpcb "$rounds" "$seconds" 8
}
