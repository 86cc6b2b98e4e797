#!/usr/bin/env bash
# Runs the microbenchmarks of the hot paths and prints a table. The modules in bench/micro/ say what an iteration is.
#
#   scripts/micro.sh [--quick] [--save NAME | --baseline NAME] [--core N] [FILTER]
#
#   --quick          take a sixth of the time, for a rough look
#   --save NAME      save the figures under this name in the target directory, to compare with later
#   --baseline NAME  compare with saved figures; a benchmark that has none runs without a comparison
#   --core N         pin to this core
#   FILTER           run only benchmarks whose name contains it: encode, fanout/100, ...
#
# To measure a change: --save before, change the code, --baseline before. Without either option, the change is relative to
# the last run. Figures are comparable only between consecutive runs on an otherwise idle machine.
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
        [[ ${2-} =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "$1 needs a NAME of letters, digits, ., - and _, beginning with a letter or digit"
        if [[ $1 == --save ]]; then options+=(--save-baseline "$2"); else options+=(--baseline-lenient "$2") baseline=$2; fi
        shift
        ;;
    --core)
        [[ ${2-} =~ ^[0-9]+$ ]] || fail "--core needs the number of a core"
        pinned=(taskset -c "$2")
        shift
        ;;
    *) fail "unknown option $1: the options are listed at the top of this script" ;;
    esac
    shift
done
(($# <= 1)) || fail "expected at most one FILTER, got $#"

if [[ -n $baseline ]]; then
    kept=$(find "${CARGO_TARGET_DIR:-target}/criterion" -type d -name "$baseline" -print -quit 2>/dev/null || true)
    [[ -n $kept ]] || fail "no figures are saved as $baseline: run with --save $baseline first"
fi

# Build first, so that --core does not confine the compiler to one core.
cargo build --locked --quiet --profile bench --bench micro
"${pinned[@]}" cargo bench --locked --quiet --bench micro -- "${options[@]}" "${effort[@]}" "$@" 2> >(grep -v '^Benchmarking ' >&2) | awk '
    # criterion prints NAME (on a line of its own if long), then "time: [LOW UNIT  MEDIAN UNIT  HIGH UNIT]" and, if there is
    # a baseline, "change: [LOW% MEDIAN% HIGH%] (p = ...)" and a verdict.
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
