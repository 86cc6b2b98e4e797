#!/usr/bin/env bash
# Runs the micro benches of the hot pieces and prints a table; what one iteration is stands in bench/micro/.
#
#   scripts/micro.sh [--quick] [--save NAME | --baseline NAME] [--core N] [FILTER]
#
#   --quick          a sixth of the time: for a look, not for a figure
#   --save NAME      keep the figures under this name (in the target folder), to compare with later
#   --baseline NAME  compare with figures that were kept; a bench that has none is run alone
#   --core N         run on this core
#   FILTER           only benches whose name holds it: encode, mark/100, ...
#
# Before and after: --save before, change the code, --baseline before. Without either the change is since the last run.
# It means something only for runs in a row on a machine with nothing else to do.
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
        [[ ${2-} =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "$1 needs a NAME of letters, digits, dots, - and _"
        if [[ $1 == --save ]]; then options+=(--save-baseline "$2"); else options+=(--baseline-lenient "$2") baseline=$2; fi
        shift
        ;;
    --core)
        [[ ${2-} =~ ^[0-9]+$ ]] || fail "--core needs a number"
        pinned=(taskset -c "$2")
        shift
        ;;
    *) fail "unknown option $1: see the head of this script" ;;
    esac
    shift
done
(($# <= 1)) || fail "one FILTER, not $#"

if [[ -n $baseline ]]; then
    kept=$(find "${CARGO_TARGET_DIR:-target}/criterion" -type d -name "$baseline" -print -quit 2>/dev/null || true)
    [[ -n $kept ]] || fail "no figures were kept as $baseline: first run it with --save $baseline"
fi

# Built first, so that the compiler is not on the core of --core only.
cargo build --locked --quiet --profile bench --bench micro
"${pinned[@]}" cargo bench --locked --quiet --bench micro -- "${options[@]}" "${effort[@]}" "$@" 2> >(grep -v '^Benchmarking ' >&2) | awk '
    # criterion: NAME (on a line of its own if long), then "time: [LOW UNIT  MEDIAN UNIT  HIGH UNIT]", and where there is
    # something to compare with "change: [LOW% MEDIAN% HIGH%] (p = ...)" and a line that judges it.
    function flush_row() {
        if (name != "" && time != "") printf "%-44s %12s   %-24s %9s %s\n", name, time, range, change, verdict
        name = time = range = change = verdict = ""
        fflush()
    }
    BEGIN { printf "%-44s %12s   %-24s %9s\n", "bench", "an iteration", "from, to", "change" }
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
