#!/usr/bin/env bash
# Counts the instructions of a tick's path through the state machines, without kernel or clock, and shows the functions that
# take most of them. Unlike CPU time, the figures are reproducible: hash seeds change them by a few thousandths of a percent.
#
#   scripts/callgrind.sh [SESSIONS [TICKS [TICKS_PER_TURN [ENCODING]]]]
#
# Defaults: 100 sessions, 5,000 ticks of 100 bytes, one tick per turn, native. ENCODING is native, rkyv, json or raw.
# FUNCTIONS=N sets how many functions are shown (default 25). CALLGRIND_OUT=FILE keeps the profile for callgrind_annotate.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'scripts/callgrind.sh: %s\n' "$*" >&2
    exit 1
}

command -v valgrind >/dev/null || fail "valgrind is not installed (Debian package valgrind)"
(($# <= 4)) || fail "expected at most SESSIONS TICKS TICKS_PER_TURN ENCODING, got $# arguments"
sessions=${1:-100} ticks=${2:-5000} ticks_per_turn=${3:-1} encoding=${4:-native}

for number in "$sessions" "$ticks" "$ticks_per_turn"; do
    [[ $number =~ ^[1-9][0-9]{0,8}$ ]] || fail "SESSIONS, TICKS and TICKS_PER_TURN must be numbers of at least 1 and at most 9 digits, not $number"
done

cargo build --locked --quiet --release --example walk
walk=${CARGO_TARGET_DIR:-target}/release/examples/walk
profile=${CALLGRIND_OUT:-$(mktemp)}
[[ -n ${CALLGRIND_OUT-} ]] || trap 'rm -f "$profile"' EXIT

delivered=$(valgrind --tool=callgrind --callgrind-out-file="$profile" --collect-atstart=no \
    --toggle-collect='*walk::counted*' "$walk" "$sessions" "$ticks" "$ticks_per_turn" "$encoding" 2>/dev/null) ||
    fail "the walk failed: $walk $sessions $ticks $ticks_per_turn $encoding"
instructions=$(awk '/^(totals|summary):/ { print $2; exit }' "$profile")
deliveries=${delivered#deliveries=}
deliveries=${deliveries%% *}

printf '%s sessions, %s ticks, %s per turn, %s: %s\n' "$sessions" "$ticks" "$ticks_per_turn" "$encoding" "$delivered"
awk -v instructions="$instructions" -v deliveries="$deliveries" -v ticks="$ticks" 'BEGIN {
    printf "instructions %d: %.1f per delivery, %.0f per tick\n\n", instructions, instructions / deliveries, instructions / ticks
}'
# Each function without its callees; inlined code counts for the function it is inlined into. For counts by line, run
# callgrind_annotate on CALLGRIND_OUT.
callgrind_annotate --auto=no --threshold=100 "$profile" 2>/dev/null | awk -v deliveries="$deliveries" '
    # "COUNT (SHARE%)  FILE:FUNCTION [OBJECT]", one line per source file of a function.
    /^ *[0-9,]+ \(/ && !/PROGRAM TOTALS/ {
        count = $1; gsub(",", "", count)
        function_name = $0
        sub(/^ *[0-9,]+ \( *[0-9.]+%\) */, "", function_name); sub(/ \[[^]]*\]$/, "", function_name)
        sub(/^[^:]*:/, "", function_name)
        total[function_name] += count
    }
    END { for (name in total) printf "%9.2f per delivery  %s\n", total[name] / deliveries, name }' |
    sort -rn | awk -v functions="${FUNCTIONS:-25}" 'NR <= functions'
