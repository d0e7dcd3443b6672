#!/bin/bash
# receive.sh: messages received, new and repeated, one at a time and a hundred in a call, beside INSERT ... ON CONFLICT DO
# NOTHING into an ordinary table. Read by test/bench/run, whose functions it uses.
# shellcheck disable=SC2154

# Calls, or rows, a second of a script with 16 clients: received NAME SECONDS ROWS-A-CALL
received() {
    pgbench -n -M prepared -c 16 -j 2 -T "$2" -f "$scratch/$1.sql" >"$scratch/pgbench.log" 2>&1 ||
        fail "$(tail "$scratch/pgbench.log")"
    awk -v rows="$3" '/^tps/ {print $3 * rows}' "$scratch/pgbench.log"
}

# What is measured against: a table of its own with the same columns, INSERT ... ON CONFLICT DO NOTHING. Both store a
# message with 60 bytes of payload under an id of 20; ours also hashes it, and appends an event.
measure_receive() {
    local rounds=${quick:+1} seconds=${quick:+2} round name known=100000
    local -A rate=()
    rounds=${ROUNDS:-${rounds:-4}} seconds=${SLICE:-${seconds:-5}}
    local changes='{"price": 120, "night": "2026-12-01", "room": "double"}'
    sql -v known=$known -v changes="$changes" <<'SQL' >"$scratch/known.log" || fail 'could not set up the messages'
INSERT INTO accord.source (name) VALUES ('bench');
CREATE TABLE message (source text, event_id text, changes jsonb, received_at timestamptz DEFAULT now(),
    PRIMARY KEY (source, event_id));
CREATE TABLE room (id bigint PRIMARY KEY, price integer, night date, room text);
INSERT INTO message SELECT 'bench', 'known-' || g, :'changes' FROM generate_series(1, :known) g;
SELECT count(*) FROM (SELECT jsonb_agg(jsonb_build_object('event_id', 'known-' || g, 'topic', 'received', 'key', 'k',
    'changes', :'changes'::jsonb)) AS b FROM generate_series(1, :known) g GROUP BY g / 1000) m, accord.receive_batch('bench', m.b)
SQL
    local insert="INSERT INTO message (source, event_id, changes) VALUES ('bench', :id::text, '$changes') ON CONFLICT DO NOTHING;"
    local receive="SELECT accord.receive('bench', :id::text, 'received', 'k', '$changes');"
    local known_id="'known-' || :id::text" object="'topic', 'received', 'key', 'k', 'changes', '$changes'::jsonb"
    printf '%s\n' '\set id random(1, 1000000000000000)' "$insert" >"$scratch/insert-new.sql"
    printf '%s\n' '\set id random(1, 1000000000000000)' "$receive" >"$scratch/receive-new.sql"
    printf '%s\n' '\set id random(1, 1000000000000000)' "SELECT accord.receive('bench', :id::text, key => :id::text,
        changes => '$changes', target => 'room');" >"$scratch/table-new.sql"
    printf '%s\n' "\\set id random(1, $known)" "${insert/:id::text/$known_id}" >"$scratch/insert-known.sql"
    printf '%s\n' "\\set id random(1, $known)" "${receive/:id::text/$known_id}" >"$scratch/receive-known.sql"
    printf '%s\n' '\set id random(1, 1000000000000)' "INSERT INTO message (source, event_id, changes)
        SELECT 'bench', g::text, '$changes' FROM generate_series(:id::bigint, :id::bigint + 99) g ON CONFLICT DO NOTHING;" >"$scratch/insert-batch.sql"
    printf '%s\n' '\set id random(1, 1000000000000)' "SELECT count(*) FROM accord.receive_batch('bench',
        (SELECT jsonb_agg(jsonb_build_object('event_id', g, $object)) FROM generate_series(:id::bigint, :id::bigint + 99) g));" >"$scratch/batch-new.sql"
    printf '%s\n' "\\set id random(1, $known - 100)" "SELECT count(*) FROM accord.receive_batch('bench',
        (SELECT jsonb_agg(jsonb_build_object('event_id', 'known-' || g, $object)) FROM generate_series(:id::bigint, :id::bigint + 99) g));" >"$scratch/batch-known.sql"
    for name in "$scratch"/*-new.sql "$scratch"/*-known.sql "$scratch"/insert-batch.sql; do
        sed -i ':a;N;$!ba;s/\n  */ /g' "$name"
    done
    sql -c CHECKPOINT
    for round in $(seq "$rounds"); do
        for name in insert-new receive-new table-new insert-known receive-known; do
            rate[$name]+=$(received "$name" "$seconds" 1)$'\n' || exit 1
        done
        for name in insert-batch batch-new batch-known; do
            rate[$name]+=$(received "$name" "$seconds" 100)$'\n' || exit 1
        done
    done
    rounds_row "new messages/s, 16 clients: INSERT ... ON CONFLICT" %d "${rate[insert-new]}"
    rounds_row "  accord.receive() under a topic" %d "${rate[receive-new]}" 15000 '>='
    rounds_row "    ratio" %.2f "$(ratios "${rate[receive-new]}" "${rate[insert-new]}")"
    rounds_row "  accord.receive() into a table" %d "${rate[table-new]}"
    rounds_row "    ratio" %.2f "$(ratios "${rate[table-new]}" "${rate[insert-new]}")"
    rounds_row "  100 in a statement: INSERT ... ON CONFLICT" %d "${rate[insert-batch]}"
    rounds_row "  100 in a call: accord.receive_batch()" %d "${rate[batch-new]}" 15000 '>='
    rounds_row "    ratio" %.2f "$(ratios "${rate[batch-new]}" "${rate[insert-batch]}")"
    rounds_row "repeated messages/s, 16 clients: INSERT ... ON CONFLICT" %d "${rate[insert-known]}"
    rounds_row "  accord.receive()" %d "${rate[receive-known]}" 100000 '>='
    rounds_row "    ratio" %.2f "$(ratios "${rate[receive-known]}" "${rate[insert-known]}")"
    rounds_row "  100 in a call: accord.receive_batch()" %d "${rate[batch-known]}" 100000 '>='
    row "WAL, bytes: a message received under a topic" "$(wal_of "${receive/:id/(:key + random() * 1e15)::bigint}")"
    row "  one that is repeated" "$(wal_of "${receive/:id::text/"'known-' || :key"}")"
}
