#!/usr/bin/env bash
# Runs the models of how threads work together (src/server/transport/models.rs) under loom: every order of their steps, and every
# stale value that the memory orderings allow.
#
# Each model bounds how often a thread is preempted. LOOM_MAX_PREEMPTIONS=N sets one bound for all: a higher one finds more and
# takes longer. Arguments go to the test runner, names of models for example.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Not `--cfg loom`: tokio leaves out half of itself under that. The flag reaches every dependency all the same, so the models are
# built in a folder of their own, and other builds stay warm.
RUSTFLAGS="--cfg tickcast_loom" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" \
    cargo test --locked --lib models:: -- "$@"
