#!/usr/bin/env bash
# Runs the models of what threads do with each other (src/server/transport/models.rs) under loom: every order of their steps, and
# every stale value that the orderings allow.
#
# A model has its own bound on how often a thread is interrupted; LOOM_MAX_PREEMPTIONS=N sets it for all, and more find
# more and take longer. Arguments go to the test runner: names of models, for one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A flag of its own: tokio, for one, leaves out half of itself under `--cfg loom`. It reaches every dependency all the same, so it
# has a folder of its own and makes nothing else compile again.
RUSTFLAGS="--cfg tickcast_loom" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" \
    cargo test --locked --lib models:: -- "$@"
