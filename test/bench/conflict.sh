# conflict.sh: what a managed table costs. Sourced by test/bench/run, whose functions it uses; measures part "conflict".

conflict_tables() {
    sql <<'SQL' >/dev/null
CREATE TABLE unmanaged (id integer PRIMARY KEY, price integer, note text);
INSERT INTO unmanaged SELECT n, n, 'a note of some length' FROM generate_series(1, 100000) n;
CREATE TABLE managed (LIKE unmanaged INCLUDING ALL);
CREATE TABLE ranked (LIKE unmanaged INCLUDING ALL);
INSERT INTO accord.source (name) VALUES ('bench_source');
SELECT accord.manage('managed');
SELECT accord.set_policy('ranked', 'price', 'priority', '{"order": ["application", "bench_source"]}');
INSERT INTO managed SELECT * FROM unmanaged;
INSERT INTO ranked SELECT * FROM unmanaged;
CREATE TABLE received (event_id text PRIMARY KEY);
VACUUM ANALYZE;
SQL
}

# A transaction of one statement about a random row: one_statement NAME STATEMENT
one_statement() {
    printf '%s\n' '\set id random(1, 100000)' '\set n random(1, 1000000000000)' "$2" >"$scratch/$1.sql"
}

# The scripts in turn, there and back; the first is what the others are compared with: turns CLIENTS NAME...
turns() {
    local clients=$1 rounds=${quick:+2} seconds=${quick:+2} round name order figures
    local -A tps=() used=()
    shift
    rounds=${ROUNDS:-${rounds:-4}} seconds=${SLICE:-${seconds:-10}}
    sql -c CHECKPOINT
    for round in $(seq "$rounds"); do
        order="$*"
        [ $((round % 2)) -eq 1 ] || order=$(printf '%s\n' "$@" | tac | tr '\n' ' ')
        for name in $order; do
            figures=$(transactions "$name" "$clients" "$seconds") || exit 1
            tps[$name]+=${figures% *}$'\n' used[$name]+=${figures#* }$'\n'
        done
    done
    for name in "$@"; do
        rounds_row "$clients clients, tps: ${name//_/ }" %d "${tps[$name]}"
        rounds_row "  session's CPU per transaction, us" %d "${used[$name]}"
        [ "$name" = "$1" ] || rounds_row "  ratio to ${1//_/ }" %.3f "$(ratios "${tps[$name]}" "${tps[$1]}")"
    done
}

measure_conflict() {
    local receive="SELECT accord.receive('bench_source', :n::text, key => :id::text, changes => '{\"price\": 7}'"
    conflict_tables
    one_statement update_unmanaged 'UPDATE unmanaged SET price = price + 1 WHERE id = :id;'
    one_statement update_managed 'UPDATE managed SET price = price + 1 WHERE id = :id;'
    one_statement update_ranked 'UPDATE ranked SET price = price + 1 WHERE id = :id;'
    turns 2 update_unmanaged update_managed update_ranked
    row 'WAL, bytes: a transaction of one update, unmanaged' "$(wal_of 'UPDATE unmanaged SET price = price + 1 WHERE id = :key;')"
    row '  managed' "$(wal_of 'UPDATE managed SET price = price + 1 WHERE id = :key;')"
    one_statement insert_on_conflict "WITH r AS (INSERT INTO received VALUES (:n) ON CONFLICT DO NOTHING) INSERT INTO unmanaged (id, price) VALUES (:id, 7) ON CONFLICT (id) DO UPDATE SET price = excluded.price;"
    one_statement receive_unmanaged "$receive, target => 'unmanaged');"
    one_statement receive_managed "$receive, target => 'managed');"
    turns 16 insert_on_conflict receive_unmanaged receive_managed
}
