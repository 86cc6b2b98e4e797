#!/usr/bin/env bash
# Counts the instructions per delivery in the sans-I/O state machines (no kernel, no clock) and lists the most expensive
# functions. Unlike CPU time, the counts are reproducible: runs differ by a few hundredths of a per mille (hash seeds).
#
#   scripts/callgrind.sh [SESSIONS [TICKS [TICKS_PER_TURN [ENCODING]]]]
#
# Ticks have 100 bytes. The defaults are 100 sessions, 5000 ticks, 1 tick per turn and native. ENCODING is native, rkyv, json or
# raw. FUNCTIONS=N sets the number of functions to list [default: 25]. CALLGRIND_OUT=FILE keeps the profile for
# callgrind_annotate.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'scripts/callgrind.sh: %s\n' "$*" >&2
    exit 1
}

command -v valgrind >/dev/null || fail "valgrind not found: apt-get install valgrind"
(($# <= 4)) || fail "too many arguments: SESSIONS TICKS TICKS_PER_TURN ENCODING"
sessions=${1:-100} ticks=${2:-5000} ticks_per_turn=${3:-1} encoding=${4:-native}

for number in "$sessions" "$ticks" "$ticks_per_turn"; do
    [[ $number =~ ^[1-9][0-9]{0,8}$ ]] || fail "SESSIONS, TICKS and TICKS_PER_TURN must be positive numbers, not $number"
done

cargo build --locked --quiet --release --example walk
walk=${CARGO_TARGET_DIR:-target}/release/examples/walk
profile=${CALLGRIND_OUT:-$(mktemp)}
[[ -n ${CALLGRIND_OUT-} ]] || trap 'rm -f "$profile"' EXIT

delivered=$(valgrind --tool=callgrind --callgrind-out-file="$profile" --collect-atstart=no \
    --toggle-collect='*walk::counted*' "$walk" "$sessions" "$ticks" "$ticks_per_turn" "$encoding" 2>/dev/null) ||
    fail "failed under valgrind: $walk $sessions $ticks $ticks_per_turn $encoding"
instructions=$(awk '/^(totals|summary):/ { print $2; exit }' "$profile")
deliveries=${delivered#deliveries=}
deliveries=${deliveries%% *}

printf '%s sessions, %s ticks, %s per turn, %s: %s\n' "$sessions" "$ticks" "$ticks_per_turn" "$encoding" "$delivered"
awk -v instructions="$instructions" -v deliveries="$deliveries" -v ticks="$ticks" 'BEGIN {
    printf "instructions %d: %.1f per delivery, %.0f per tick\n\n", instructions, instructions / deliveries, instructions / ticks
}'
# Self cost per function, excluding callees; inlined code counts in the function that it was inlined into. For a breakdown by
# line, run callgrind_annotate on CALLGRIND_OUT.
callgrind_annotate --auto=no --threshold=100 "$profile" 2>/dev/null | awk -v deliveries="$deliveries" '
    # "COUNT (PERCENT%)  FILE:FUNCTION [OBJECT]", one line for each source file that contributes to a function.
    /^ *[0-9,]+ \(/ && !/PROGRAM TOTALS/ {
        count = $1; gsub(",", "", count)
        function_name = $0
        sub(/^ *[0-9,]+ \( *[0-9.]+%\) */, "", function_name); sub(/ \[[^]]*\]$/, "", function_name)
        sub(/^[^:]*:/, "", function_name)
        total[function_name] += count
    }
    END { for (name in total) printf "%9.2f per delivery  %s\n", total[name] / deliveries, name }' |
    sort -rn | awk -v functions="${FUNCTIONS:-25}" 'NR <= functions'
