#!/usr/bin/env bash
# Shows two servers that read the same log: HAProxy in front, clients behind it, and each server taken away in turn under load, once by
# SIGTERM and once by SIGKILL; then each is cut off from the engine for a while. At the end, every client must have every tick exactly once.
#
# Usage: scripts/two-nodes.sh [jetstream|redis|both] [--clients N] [--rate TICKS_PER_S] [--binary FILE]
# Needs haproxy, and nats-server or redis-server. Everything lies in a temporary folder and on loopback addresses.
set -euo pipefail

engine=both
case ${1:-} in
jetstream | redis | both)
    engine=$1
    shift
    ;;
-h | --help)
    sed -n '2,6s/^# //p' "$0"
    exit 0
    ;;
esac
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
engines=("$engine")
[[ $engine != both ]] || engines=(jetstream redis)
for engine in "${engines[@]}"; do
    case $engine in
    jetstream) needed=(haproxy nats-server) ;;
    redis) needed=(haproxy redis-server) ;;
    esac
    for tool in "${needed[@]}"; do
        command -v "$tool" >/dev/null || {
            printf 'scripts/two-nodes.sh: %s not found: apt-get install %s\n' "$tool" "$tool" >&2
            exit 1
        }
    done
    python3 "$folder/two_nodes.py" "$engine" "$@"
done
