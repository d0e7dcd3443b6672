# test/bench/history.sh: the part "history" of test/bench/run, which reads this file: looking back, and undoing.

# Milliseconds that a statement takes in a session that has read the catalogues, the best of six: warm STATEMENT
warm() {
    psql -XAtq -c '\timing on' -c "$1" -c "$1" -c "$1" -c "$1" -c "$1" -c "$1" | awk '/^Time:/ {print $2}' | sort -g | head -n 1
}

# Looking back: a table of 100,000 rows of which a million changes are known, and undoing one change of all its rows.
measure_history() {
    local rows=${quick:+10000} start one at
    rows=${rows:-100000}
    sql -v rows="$rows" <<'SQL' || exit 1
SET client_min_messages = warning;
CREATE TABLE past (id integer PRIMARY KEY, name text, price numeric(10, 2), stock integer, changed timestamptz);
INSERT INTO past SELECT i, 'name of ' || i, i % 1000, i, now() FROM generate_series(1, :rows) i;
SELECT accord.capture('past') \g /dev/null
SQL
    start=$(sql -c 'SELECT accord.safe_seq()')
    # two changes of each row by one statement each, eight by statements of a hundred rows
    sql -v rows="$rows" <<'SQL' || exit 1
UPDATE past SET price = price + 1, stock = stock + 1;
DO $$ BEGIN
    FOR i IN 1 .. 8 LOOP
        FOR j IN 0 .. (SELECT max(id) FROM past) / 100 LOOP
            UPDATE past SET stock = stock + i WHERE id BETWEEN j * 100 AND j * 100 + 99;
            COMMIT;
        END LOOP;
    END LOOP;
END $$;
UPDATE past SET price = price * 2, changed = now();
VACUUM ANALYZE past;
SQL
    one="past, $((rows / 2))"
    at=$(sql -c 'SELECT accord.safe_seq() - 100')
    row "as_of(), $rows rows, $((rows * 10)) changes since, ms" \
        "$(timed "SELECT count(*) FROM accord.as_of(NULL::past, $start)")" '' "$((rows / 200))" '<='
    row "  the last change of all rows and some before, ms" "$(timed "SELECT count(*) FROM accord.as_of(NULL::past, $at)")"
    row "  reading the table as it is, ms" "$(timed 'SELECT count(*) FROM (SELECT t FROM past t OFFSET 0) x')"
    row "row_as_of(), ten changes since, ms" "$(warm "SELECT accord.row_as_of(NULL::past, ${one#*, }, $start)")" '' 1 '<='
    row "  ... by a time, ms" "$(warm "SELECT accord.row_as_of(NULL::past, ${one#*, }, (SELECT committed_at FROM accord.commit_log WHERE seq = $start))")" '' 1 '<='
    row "history() of a row, ms" "$(warm "SELECT count(*) FROM accord.history('past', ${one#*, })")" '' 1 '<='
    row "blame() of a row, ms" "$(warm "SELECT count(*) FROM accord.blame('past', ${one#*, })")" '' 1 '<='
    row "diff() of a row, ms" "$(warm "SELECT count(*) FROM accord.diff('past', ${one#*, }, $start)")" '' 1 '<='
    row "the change of all rows, ms" "$(psql -XAtq -c '\timing on' -c 'UPDATE past SET price = price * 2' | awk '/^Time:/ {print $2}')"
    row "  revert() of it, dry run, ms" \
        "$(psql -XAtq -c '\timing on' -c 'SELECT count(*) FROM accord.revert(seq => accord.safe_seq(), dry_run => true)' | awk '/^Time:/ {print $2}')"
    row "  revert() of it, ms" \
        "$(psql -XAtq -c '\timing on' -c 'SELECT count(*) FROM accord.revert(seq => accord.safe_seq())' | awk '/^Time:/ {print $2}')"
}
