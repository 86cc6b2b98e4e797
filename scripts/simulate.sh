#!/usr/bin/env bash
# Runs the simulation from many more seeds than the tests do: scripts/simulate.sh [SEEDS [FIRST]], 10,000 from 0 unless
# said otherwise. It says how far it has come, and stops at a seed that fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'scripts/simulate.sh: %s\n' "$*" >&2
    exit 1
}

seeds=${1:-10000}
first=${2:-0}
[[ $seeds =~ ^[1-9][0-9]{0,17}$ ]] || fail "SEEDS is a number from 1 on, not $seeds"
[[ $first =~ ^(0|[1-9][0-9]{0,17})$ ]] || fail "FIRST is a number, not $first"

TICKCAST_SEEDS=$seeds TICKCAST_FIRST_SEED=$first TICKCAST_PROGRESS=1 \
    cargo test --locked --test simulation -- --exact --nocapture promises_hold_for_every_seed
