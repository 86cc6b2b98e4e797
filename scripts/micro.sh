#!/usr/bin/env bash
# Runs the microbenchmarks of the hot paths and prints a table. bench/micro/ documents what one iteration does.
#
#   scripts/micro.sh [--quick] [--save NAME | --baseline NAME] [--core N] [FILTER]
#
#   --quick          take a sixth of the time; not precise enough to publish
#   --save NAME      save the results under this name in the target folder
#   --baseline NAME  compare with saved results; a benchmark without any runs without comparison
#   --core N         run on this core
#   FILTER           run only benchmarks whose name contains this: encode, fanout/100, ...
#
# To measure a change, run with --save before, change the code, then run with --baseline before. Without either option, the
# change is relative to the last run. Compare only runs in direct succession on an otherwise idle machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'scripts/micro.sh: %s\n' "$*" >&2
    exit 1
}

options=(--noplot)
effort=(--warm-up-time 1 --measurement-time 3 --sample-size 50)
pinned=()
baseline=
while (($# > 0)) && [[ $1 == --* ]]; do
    case $1 in
    --quick) effort=(--warm-up-time 0.3 --measurement-time 0.4 --sample-size 20) ;;
    --save | --baseline)
        [[ ${2-} =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "$1 requires a NAME of letters, digits and ._-"
        if [[ $1 == --save ]]; then options+=(--save-baseline "$2"); else options+=(--baseline-lenient "$2") baseline=$2; fi
        shift
        ;;
    --core)
        [[ ${2-} =~ ^[0-9]+$ ]] || fail "--core requires a number"
        pinned=(taskset -c "$2")
        shift
        ;;
    *) fail "unknown option $1: see the top of this script" ;;
    esac
    shift
done
(($# <= 1)) || fail "specify one FILTER, not $#"

if [[ -n $baseline ]]; then
    kept=$(find "${CARGO_TARGET_DIR:-target}/criterion" -type d -name "$baseline" -print -quit 2>/dev/null || true)
    [[ -n $kept ]] || fail "no saved results named $baseline: run with --save $baseline first"
fi

# Build first, so that the compiler may use all cores.
cargo build --locked --quiet --profile bench --bench micro
"${pinned[@]}" cargo bench --locked --quiet --bench micro -- "${options[@]}" "${effort[@]}" "$@" 2> >(grep -v '^Benchmarking ' >&2) | awk '
    # Output of criterion: NAME (on its own line if long), "time: [LOW UNIT  MEDIAN UNIT  HIGH UNIT]", and with a baseline
    # "change: [LOW% MEDIAN% HIGH%] (p = ...)" and a line with the verdict.
    function flush_row() {
        if (name != "" && time != "") printf "%-44s %12s   %-24s %9s %s\n", name, time, range, change, verdict
        name = time = range = change = verdict = ""
        fflush()
    }
    BEGIN { printf "%-44s %12s   %-24s %9s\n", "benchmark", "per iteration", "low, high", "change" }
    /^[^ ].*time: / { flush_row(); name = $0; sub(/ *time: .*/, "", name) }
    /^[a-z][^:]*$/ && !/time: / { flush_row(); name = $0; next }
    /time: / && time == "" {
        text = $0
        sub(/.*time: *\[/, "", text); sub(/\].*/, "", text)
        split(text, part, " ")
        time = part[3] " " part[4]; range = part[1] " " part[2] ", " part[5] " " part[6]
        next
    }
    /change: / { text = $0; sub(/.*\[/, "", text); split(text, part, " "); change = part[2] }
    /Performance has (improved|regressed)/ { verdict = $NF }
    END { flush_row() }
'
