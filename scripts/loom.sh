#!/usr/bin/env bash
# Runs the models of cooperating threads (src/core/mesh/models.rs) under loom: every order of their steps, and every stale
# value that the memory orderings allow.
#
# Each model bounds how often a thread is preempted. LOOM_MAX_PREEMPTIONS=N sets one bound for all: a higher bound finds more and
# takes longer. Arguments, such as names of models, go to the test runner. --no-run, alone, only compiles them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

words=(models:: -- "$@")
[[ ${1:-} != --no-run ]] || words=(--no-run)

# Not `--cfg loom`, which makes tokio omit many of its modules. The flag reaches every dependency, so the models have a target
# folder of their own and do not invalidate other builds.
RUSTFLAGS="--cfg tickcast_loom" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" \
    cargo test --locked -p tickcast-core --lib "${words[@]}"
