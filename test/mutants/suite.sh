# suite.sh: makes each mistake of the file `mutants.txt` in a copy of the built tree, and runs the tests that must notice it;
# a part of test/run. MUTANTS='lane* no-*' chooses some.
#
# Only what a mistake touches is compiled again. A mutant that does not compile is a failure: it would prove nothing. Nor
# would a test that fails anyway: first all of them must pass in the copy as it is.

suite_mutants() {
    local name tests pattern patterns chosen=() all=''
    read -ra patterns <<<"${MUTANTS:-*}"
    copy_tree "$scratch/tree" "$scratch/mutant"
    # The objects of the tested library, as old as its sources are.
    cp -p "$scratch"/assert/src/*.[cho] "$scratch/mutant/src/"
    cp -p "$scratch/assert/Makefile" "$scratch/assert"/pg_accord* "$scratch/mutant/"
    while read -r name tests; do
        for pattern in "${patterns[@]}"; do
            # shellcheck disable=SC2053
            [[ $name != $pattern ]] || { chosen+=("$name $tests"); all+=" $tests"; break; }
        done
    done < <("$scratch/tree/test/mutants/apply")
    # shellcheck disable=SC2086
    for name in $(printf '%s\n' $all | sort -u); do
        mutant_passes "$name" >"$scratch/mutant.log" 2>&1 && { echo "ok      without a mistake: $name"; continue; }
        echo "FAILED  without a mistake: $name"
        tail -n 40 "$scratch/mutant.log" | sed 's/^/        /'
        count 0 1
        return
    done
    for name in ${chosen[@]+"${chosen[@]}"}; do
        # shellcheck disable=SC2086
        kill_mutant $name
    done
    # what comes after this suite is tested as it is
    make -s -C "$scratch/assert" install PG_CONFIG="$bindir/pg_config" with_llvm=no >/dev/null
    stop_cluster
}

# kill_mutant NAME TESTS...
kill_mutant() {
    local name=$1 start=$SECONDS log=$scratch/mutant.log test
    shift
    if ! "$scratch/tree/test/mutants/apply" "$scratch/mutant" "$name" >"$log" 2>&1 || ! build_mutant >>"$log" 2>&1; then
        echo "FAILED  mutant $name"
        tail -n 20 "$log" | sed 's/^/        /'
        count 0 1
        restore_mutant
        return
    fi
    for test in "$@"; do
        if ! mutant_passes "$test" >"$log" 2>&1; then
            echo "ok      mutant $name: noticed by $test ($((SECONDS - start)) s)"
            count 1 0
            restore_mutant
            return
        fi
    done
    echo "FAILED  mutant $name: not noticed by $*"
    count 0 1
    restore_mutant
}

build_mutant() {
    make -s -C "$scratch/mutant" -j2 CC=gcc COPT="-Werror -DUSE_ASSERT_CHECKING" PG_CONFIG="$system_config" with_llvm=no &&
        make -s -C "$scratch/mutant" install PG_CONFIG="$bindir/pg_config" with_llvm=no
}

# The files that differ are as they were; what was compiled of them is to be compiled anew.
restore_mutant() {
    local file
    for file in "$scratch"/mutant/src/*.[ch] "$scratch"/mutant/sql/*.sql; do
        local original=$scratch/tree/${file#"$scratch/mutant/"}
        cmp -s "$original" "$file" || cat "$original" >"$file"
    done
}

# Whether a mutant passes a test: mutant_passes SUITE[:WHICH]
mutant_passes() {
    local suite=${1%%:*} which=${1#*:} extension=
    case $suite in
        unit)
            env PG_CONFIG="$system_config" "$scratch/mutant/test/unit/run"
            ;;
        regress)
            stop_cluster
            # some need another file to have created the extension
            [[ $which != merge && $which != conflict ]] || extension=--load-extension=pg_accord
            start_cluster && timeout -k 10 200 make -s -C "$scratch/mutant" installcheck PG_CONFIG="$bindir/pg_config" \
                REGRESS="$which" EXTRA_REGRESS_OPTS="$extension" ISOLATION= TAP_TESTS=
            ;;
        isolation)
            stop_cluster
            start_cluster && timeout -k 10 200 make -s -C "$scratch/mutant" installcheck PG_CONFIG="$bindir/pg_config" \
                ISOLATION="$which" REGRESS= TAP_TESTS=
            ;;
        tap)
            (
                export TESTDIR="$scratch/mutant" TESTDATADIR="$scratch/mutant/tmp_check"
                export TESTLOGDIR="$scratch/mutant/tmp_check/log" PG_TEST_PORT_DIR="$scratch/ports"
                export PERL5LIB="$pgxs/src/test/perl:$scratch/mutant/test/lib"
                export PG_REGRESS="$pgxs/src/test/regress/pg_regress"
                # a mutant may never come to what a test waits for
                export PG_TEST_TIMEOUT_DEFAULT=60
                mkdir -p "$TESTLOGDIR"
                cd "$scratch/mutant" && timeout -k 10 300 prove -q "test/t/$which.pl"
            )
            ;;
    esac
}

stop_cluster() {
    [ -n "$cluster" ] || return 0
    "$bindir/pg_ctl" -D "$cluster" -m immediate -w stop >/dev/null 2>&1
    rm -rf "$cluster"
    cluster=
}
