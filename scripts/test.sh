#!/usr/bin/env bash
# Installs what the tests need, then runs all of them. Arguments go to `cargo test`, and then the micro benches, the Debian
# package and the models for loom (scripts/loom.sh) are left out.
#
# Debian packages are installed only where a command is missing, and only as root; the clients' own packages go into
# tests/clients/ and nowhere else. Where systemd runs, prometheus.service is masked before its package is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*" >&2; }
fail() {
    printf 'scripts/test.sh: %s\n' "$*" >&2
    exit 1
}

clients=tests/clients

missing=()
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
# Debian's python3 comes without the part of venv that installs pip.
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
# Debian's package has promtool too.
command -v promtool >/dev/null || missing+=(prometheus)
# Where the package is not tried out, that is said at its turn.
[[ $EUID -ne 0 ]] || ! command -v dpkg >/dev/null || command -v dpkg-shlibdeps >/dev/null || missing+=(dpkg-dev)
# The terminal of tickcast top.
command -v tmux >/dev/null || missing+=(tmux)
# What asks the admin listener in the walk-through.
command -v curl >/dev/null || missing+=(curl)
# They look at scripts and units. Who is not root goes without: those tests are then skipped.
if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
    command -v shellcheck >/dev/null || missing+=(shellcheck)
    command -v systemd-analyze >/dev/null || missing+=(systemd)
fi

if ((${#missing[@]} > 0)); then
    say "installing ${missing[*]}"
    command -v apt-get >/dev/null || fail "please install: ${missing[*]} (no apt-get here)"
    [[ $EUID -eq 0 ]] || fail "please install as root: apt-get install ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Debian starts what it installs: Prometheus would listen on all addresses, with no password. Only promtool is wanted.
    if [[ " ${missing[*]} " == *" prometheus "* && -d /run/systemd/system ]]; then
        systemctl mask prometheus.service
        say "prometheus.service is masked: systemctl unmask prometheus.service, if you want to run it"
    fi
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
command -v cargo >/dev/null || fail "cargo is not here: install Rust 1.90 or later (rustup)"

# Repeated runs ask no registry: each installation leaves a copy of what it was made from.
if ! cmp -s $clients/package-lock.json $clients/node_modules/.installed-from; then
    say "installing the npm clients"
    npm ci --prefix $clients --no-audit --no-fund --ignore-scripts
    cp $clients/package-lock.json $clients/node_modules/.installed-from
fi
# The page is opened in a browser: Debian's for root, else playwright's in the user's cache.
if ! node $clients/find-browser.mjs >/dev/null; then
    say "installing chromium"
    if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
    else
        node $clients/node_modules/playwright-core/cli.js install --no-shell chromium ||
            say "without Chromium (apt-get install chromium) the page is not opened in a browser"
    fi
fi
# Where one is there now, a test that finds none is wrong.
! node $clients/find-browser.mjs >/dev/null || export TICKCAST_TESTS_NEED_BROWSER=1
if ! cmp -s $clients/requirements.txt $clients/.venv/.installed-from; then
    say "installing the Python clients"
    python3 -m venv --clear $clients/.venv
    $clients/.venv/bin/pip install --quiet --disable-pip-version-check -r $clients/requirements.txt
    cp $clients/requirements.txt $clients/.venv/.installed-from
fi

# The tests open 10,000 connections: a descriptor for each, in the server and in the load client.
ulimit -n "$(ulimit -Hn)"
descriptors=$(ulimit -n)
[[ $descriptors == unlimited ]] || ((descriptors >= 11000)) ||
    fail "the tests need 11,000 descriptors a process, the limit is $descriptors (ulimit -n, LimitNOFILE)"

say "bench/suite"
python3 -m unittest discover bench/suite

say "cargo test"
cargo test --locked --workspace "$@"

# Of the binaries that the tests have used: whether the files are right does not depend on the profile.
try_package() {
    local deb trial status
    say "the Debian package"
    if [[ $EUID -ne 0 ]]; then
        say "skipped: it takes root to install a package"
        return
    elif ! command -v dpkg >/dev/null; then
        say "skipped: there is no dpkg here"
        return
    fi
    deb=$(scripts/package.sh --no-build --profile dev)
    for trial in scripts/try-package.sh scripts/walk-through.sh; do
        say "$trial"
        status=0
        "$trial" "$deb" || status=$?
        case $status in
            0) ;;
            77) say "skipped: the reason is above" ;;
            *) return "$status" ;;
        esac
    done
}

(($# > 0)) || {
    # Each once, for what they assert: some seconds, as what they stand on is compiled already.
    say "micro benches"
    cargo test --locked --bench micro
    try_package
    say "loom"
    scripts/loom.sh
}
