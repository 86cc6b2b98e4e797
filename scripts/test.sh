#!/usr/bin/env bash
# Installs what the tests need, then runs all of them. The last line says whether they passed.
#
# Usage: scripts/test.sh [ARGUMENT...]
# Arguments go to `cargo test`; then only that runs: no micro benches, no Debian package, no loom models.
#
# It installs a Debian package only if a command is missing, and only as root. Packages of npm and PyPI go into
# tests/clients/ and src/sdk/js/ and nowhere else. Where systemd runs, it masks the services of what it installs: the tests start their own.
#
# Some tests need something that this script cannot install. `cargo test` ignores them; this script runs them where possible:
#   network_settings_of_a_namespace_are_set_and_restored, queues_of_a_real_interface_are_set_and_restored
#       need root and network namespaces
#   a_cpu_quota_of_the_group_or_of_one_above_limits_the_shards
#       needs root and the CPU controller of cgroups
#   the_server_needs_neither_sys_nor_proc
#       needs root and mount namespaces
#   those of Kafka, on a mock cluster
#       need the feature kafka: TICKCAST_KAFKA=1, which also installs what librdkafka is built with
#   record_100_*, beats_of_record_100_*
#       need record 100 of the MIT-BIH Arrhythmia Database: TICKCAST_RECORD=path/to/100.hea
#   samples_are_those_that_wfdb_python_reads
#       needs what the PyPI package wfdb reads from records: TICKCAST_WFDB=folder that tests/data/wfdb_reference.py wrote
# The last line names the tests that were left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s (at %d:%02d min)\n' "$*" $((SECONDS / 60)) $((SECONDS % 60)) >&2; }
fail() {
    printf 'scripts/test.sh: %s\n' "$*" >&2
    exit 1
}

current="looking for tools"
without=()
step() {
    current=$1
    say "$1"
}
verdict() {
    local status=$? text
    if ((status != 0)); then
        text="failed: $current"
    elif ((${#without[@]} > 0)); then
        text="passed, without$(printf ', %s' "${without[@]}" | cut -c 2-)"
    else
        text="passed"
    fi
    [[ -z $ahead ]] || stop_ahead
    printf '\nscripts/test.sh: %s\n' "$text"
}
# The process group of what began with the tests, until it has ended.
ahead=
stop_ahead() {
    kill -- "-$ahead" 2>/dev/null || true
    wait "$ahead" 2>/dev/null || true
}
trap verdict EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

clients=tests/clients
sdk_js=src/sdk/js
root=no dpkg=no
[[ $EUID -ne 0 ]] || root=yes
! command -v dpkg >/dev/null || dpkg=yes

missing=()
needs() { # a command and the Debian packages that have it
    command -v "$1" >/dev/null || missing+=("${@:2}")
}
needs node nodejs
needs npm npm
needs cc gcc libc6-dev
# libFuzzer is C++.
needs g++ g++
needs curl curl
needs openssl openssl
needs ip iproute2
# The package has both. Only promtool and a private Prometheus are used: its service is masked.
needs promtool prometheus
needs nats-server nats-server
needs redis-server redis-server
needs haproxy haproxy
# A private nginx is a proxy in front of the server: Debian's service is masked.
needs nginx nginx-light
needs shellcheck shellcheck
needs systemd-analyze systemd
needs tmux tmux
needs strace strace
needs prlimit util-linux
needs chrt util-linux
needs setpriv util-linux
[[ $root == no || $dpkg == no ]] || needs dpkg-shlibdeps dpkg-dev
if [[ -n ${TICKCAST_KAFKA:-} ]]; then
    needs make make
    needs pkg-config pkg-config
    pkg-config --exists openssl 2>/dev/null || missing+=(libssl-dev)
fi
# Debian's python3 comes without the part of venv that installs pip.
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
# The browser is found by a module that npm installs.
has_browser() { [[ -d $clients/node_modules ]] && node $clients/find-browser.mjs >/dev/null; }
has_npm_clients() { cmp -s $clients/package-lock.json $clients/node_modules/.installed-from; }
has_sdk_js_tools() { cmp -s $sdk_js/package-lock.json $sdk_js/node_modules/.installed-from; }
has_python_clients() { cmp -s $clients/requirements.txt $clients/.venv/.installed-from; }

can_unshare() { [[ $root == yes ]] && unshare -n -m true 2>/dev/null; }
can_mount() { [[ $root == yes ]] && unshare -m mount -t tmpfs none /sys 2>/dev/null; }
# A group of the CPU controller, v1 or v2.
can_limit_cpu() {
    local parent=/sys/fs/cgroup group
    [[ ! -d $parent/cpu ]] || parent=$parent/cpu
    group=$parent/tickcast-test.$$
    [[ $root == yes ]] && mkdir "$group" 2>/dev/null || return 1
    local files=("$group"/cpu.max "$group"/cpu.cfs_quota_us)
    [[ -w ${files[0]} || -w ${files[1]} ]]
    local status=$?
    rmdir "$group"
    return $status
}
# librdkafka takes minutes to build, and needs make, pkg-config and OpenSSL's headers.
features=()
[[ -z ${TICKCAST_KAFKA:-} ]] || features=(--features kafka)

can_package() { [[ $root == yes && $dpkg == yes ]]; }

announce() {
    printf 'scripts/test.sh takes about 18 minutes on two idle cores, and 10 more to compile everything the first time.\n'
    printf 'It installs:\n'
    ((${#missing[@]} == 0)) || printf '  with apt-get: %s\n' "${missing[*]}"
    has_npm_clients || printf '  with npm, into %s/node_modules: ws, socket.io-client, protobufjs, playwright-core, bun, deno\n' $clients
    has_sdk_js_tools || printf '  with npm, into %s/node_modules: typescript, esbuild, @types/ws\n' $sdk_js
    has_python_clients || printf '  with pip, into %s/.venv: websockets, python-socketio, grpcio-tools, mypy, hatchling\n' $clients
    has_browser || command -v chromium >/dev/null || printf '  Chromium\n'
    ((${#missing[@]} > 0)) || ! has_npm_clients || ! has_sdk_js_tools || ! has_python_clients || ! has_browser || printf '  nothing: everything is installed\n'
}
announce >&2

[[ $(nproc) -ge 2 ]] || fail "the tests need two cores"
command -v cargo >/dev/null || fail "cargo not found: install Rust 1.90 or later (rustup)"
# The tests open 10,000 connections: a descriptor for each, in the server and in the load client.
ulimit -n "$(ulimit -Hn)"
descriptors=$(ulimit -n)
[[ $descriptors == unlimited ]] || ((descriptors >= 11000)) ||
    fail "the tests need 11,000 descriptors per process, the limit is $descriptors (ulimit -n, LimitNOFILE)"

apt_install() {
    command -v apt-get >/dev/null || fail "apt-get not found: install $*"
    [[ $root == yes ]] || fail "not root: run sudo apt-get install $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Debian starts services when it installs them: they would listen, Prometheus on all addresses without a password.
    if [[ -d /run/systemd/system ]]; then
        local package
        for package in haproxy prometheus nats-server redis-server nginx; do
            [[ " $* " == *" $package"* ]] || continue
            systemctl mask "$package.service"
            say "$package.service is masked; to run it: systemctl unmask $package.service"
        done
    fi
    apt-get install -y -qq --no-install-recommends "$@"
}
if ((${#missing[@]} > 0)); then
    step "installing ${missing[*]}"
    apt_install "${missing[@]}"
fi
# Each installation leaves a copy of its package list, so a repeated run contacts no registry.
if ! has_npm_clients; then
    step "installing the npm clients"
    npm ci --prefix $clients --no-audit --no-fund --ignore-scripts
    cp $clients/package-lock.json $clients/node_modules/.installed-from
fi
if ! has_sdk_js_tools; then
    step "installing the tools of the JavaScript SDK"
    npm ci --prefix $sdk_js --no-audit --no-fund --ignore-scripts
    cp $sdk_js/package-lock.json $sdk_js/node_modules/.installed-from
fi
if ! has_python_clients; then
    step "installing the Python clients"
    python3 -m venv --clear $clients/.venv
    $clients/.venv/bin/pip install --quiet --disable-pip-version-check -r $clients/requirements.txt
    cp $clients/requirements.txt $clients/.venv/.installed-from
fi
# Debian's for root, else playwright's in the user's cache.
if ! has_browser; then
    step "installing Chromium"
    if [[ $root == yes ]] && command -v apt-get >/dev/null; then
        apt_install chromium fonts-dejavu-core
    else
        node $clients/node_modules/playwright-core/cli.js install --no-shell chromium
    fi
    has_browser || fail "Chromium was installed but does not run"
fi

# Most tests of the binary wait for something.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-4}

if (($# > 0)); then
    step "cargo test $*"
    cargo test --locked --workspace "${features[@]}" "$@"
    exit
fi

step "bench/suite"
python3 -m unittest discover bench/suite

step "compiling the tests"
cargo test --locked --workspace "${features[@]}" --no-run

# Most tests wait, and so do the scripts after them. What has a target folder of its own is compiled meanwhile, in a process group of
# its own and only while the cores are idle; the models of loom, which depend on no clock, run there too.
ahead_steps='scripts/loom.sh && scripts/fuzz.sh --no-run'
! can_package || ahead_steps="scripts/package.sh --tool && $ahead_steps"
mkdir -p "${CARGO_TARGET_DIR:-target}"
ahead_log=${CARGO_TARGET_DIR:-target}/ahead.log
set -m
chrt --idle 0 bash -c "$ahead_steps" >"$ahead_log" 2>&1 &
ahead=$!
set +m

step "cargo test"
cargo test --locked --workspace "${features[@]}"

if can_unshare; then
    step "tests in a network namespace"
    cargo test --locked --workspace "${features[@]}" --test tuning -- --ignored --exact \
        network_settings_of_a_namespace_are_set_and_restored queues_of_a_real_interface_are_set_and_restored
else
    without+=("the tests in a network namespace (need root and unshare -n -m)")
fi

if can_limit_cpu; then
    step "the test with a CPU quota"
    cargo test --locked --workspace "${features[@]}" --test integration -- --ignored --exact \
        machines::a_cpu_quota_of_the_group_or_of_one_above_limits_the_shards
else
    without+=("the test with a CPU quota (needs root and the CPU controller of cgroups)")
fi

if can_mount; then
    step "the test without /sys and /proc"
    cargo test --locked --workspace "${features[@]}" --test integration -- --ignored --exact \
        machines::the_server_needs_neither_sys_nor_proc
else
    without+=("the test without /sys and /proc (needs root and unshare -m)")
fi

if [[ -n ${TICKCAST_RECORD:-} ]]; then
    step "tests on record 100"
    TICKCAST_RECORD=$(realpath "$TICKCAST_RECORD") cargo test --locked --workspace "${features[@]}" --lib -- --ignored record_100
else
    without+=("record 100 (needs TICKCAST_RECORD)")
fi

if [[ -n ${TICKCAST_WFDB:-} ]]; then
    step "the test against the PyPI package wfdb"
    TICKCAST_WFDB=$(realpath "$TICKCAST_WFDB") cargo test --locked -p tickcast-ecg -- --ignored wfdb_python
else
    without+=("the records that wfdb reads (needs TICKCAST_WFDB)")
fi

[[ -n ${TICKCAST_KAFKA:-} ]] || without+=("Kafka (needs TICKCAST_KAFKA=1)")

step "the README's commands and snippets"
scripts/readme.py "${CARGO_TARGET_DIR:-target}/debug"
step "the code of the migration pages"
scripts/migration.py "${CARGO_TARGET_DIR:-target}/debug"

step "two nodes"
scripts/two-nodes.sh --binary "${CARGO_TARGET_DIR:-target}/debug/tickcast"

# Runs each benchmark once, for its assertions.
step "micro benches"
cargo test --locked --workspace "${features[@]}" --bench micro

if can_package; then
    # Packages the binaries that the tests used: the packaged files are the same for every profile.
    step "the Debian package"
    deb=$(scripts/package.sh --no-build --profile dev)
    for trial in scripts/try-package.sh scripts/walk-through.sh; do
        step "$trial"
        status=0
        "$trial" "$deb" || status=$?
        case $status in
            0) ;;
            # The script has printed the reason.
            77) without+=("$trial (tickcast is installed on this machine)") ;;
            *) exit "$status" ;;
        esac
    done
else
    without+=("the Debian package (needs root and dpkg)")
fi

step "the models of loom and the fuzz targets, which began with the tests"
wait "$ahead" || {
    tail -n 40 "$ahead_log" >&2
    fail "failed: $ahead_steps; see $ahead_log"
}
ahead=
grep '^test result' "$ahead_log" >&2

step "fuzzing"
scripts/fuzz.sh 5
