#!/usr/bin/env bash
# scripts/fuzz.sh [--no-run] [SECONDS] [TARGET...]: runs each fuzz target (tests/fuzz) for SECONDS, 10 by default, from the corpus in
# the repository; `token`, which takes minutes to build, only if it is named. A crash ends it with the input's path;
# `scripts/fuzz.sh 10 TARGET` repeats it, as the input is kept in target/fuzz/TARGET. Needs g++ for libFuzzer. --no-run only builds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"; }
runs=yes
case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
--no-run)
    runs=no
    shift
    ;;
esac
seconds=${1:-10}
shift || true
[[ $seconds =~ ^[0-9]+$ ]] || {
    usage >&2
    exit 2
}
targets=("$@")
((${#targets[@]} > 0)) || mapfile -t targets < <(cd tests/fuzz/targets && printf '%s\n' *.rs | sed 's/\.rs$//' | grep -vx token)
features=()
for target in "${targets[@]}"; do
    [[ $target == token ]] && features=(--features server)
done

# The coverage that libFuzzer is guided by.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage+=" -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
# The target is named, so that build scripts are built without.
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS=$coverage cargo build --release --locked --manifest-path tests/fuzz/Cargo.toml --target "$host" \
    --target-dir target/fuzz-build "${features[@]}"
[[ $runs == yes ]] || exit 0

for target in "${targets[@]}"; do
    printf '\n== fuzzing %s for %s s\n' "$target" "$seconds" >&2
    kept=target/fuzz/$target
    mkdir -p "$kept"
    corpus=("$kept")
    [[ -d tests/fuzz/corpus/$target ]] && corpus+=("tests/fuzz/corpus/$target")
    log=$kept.log
    if ! "target/fuzz-build/$host/release/$target" -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="$kept/" "${corpus[@]}" 2>"$log"; then
        tail -n 40 "$log" >&2
        printf 'scripts/fuzz.sh: %s failed; the input is in %s\n' "$target" "$kept" >&2
        exit 1
    fi
    tail -n 1 "$log" >&2
done
