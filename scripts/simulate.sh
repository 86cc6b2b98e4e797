#!/usr/bin/env bash
# Runs the simulation with many more seeds than the tests do, and stops at the first seed that fails.
#
# Usage: scripts/simulate.sh [SEEDS [FIRST]], by default 10,000 seeds from 0 on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'scripts/simulate.sh: %s\n' "$*" >&2
    exit 1
}

seeds=${1:-10000}
first=${2:-0}
[[ $seeds =~ ^[1-9][0-9]{0,17}$ ]] || fail "SEEDS must be a number from 1, not $seeds"
[[ $first =~ ^(0|[1-9][0-9]{0,17})$ ]] || fail "FIRST must be a number, not $first"

TICKCAST_SEEDS=$seeds TICKCAST_FIRST_SEED=$first TICKCAST_PROGRESS=1 \
    cargo test --locked --workspace --test simulation -- --exact --nocapture promises_hold_for_every_seed \
        nodes_that_read_one_log_serve_every_tick_exactly_once_for_every_seed
