# Functions shared by scripts/try-package.sh and scripts/walk-through.sh, which source this from the root of the repository. Both
# install a package on this machine and restore the machine afterwards.
#
# Before begin_trial, set `called_from` (the caller's working directory) and optionally `force` (yes: remove an existing
# installation), and call select_package if a package was named. begin_trial sets `deb`, `work` (a temporary directory) and `log`
# (the server's log); start_server sets `server` (its pid) and `tcp`, `http` and `admin` (its addresses).
# shellcheck shell=bash disable=SC2034,SC2154

script=scripts/$(basename "$0")
force=no deb=""
# Timeout of one command in seconds, and number of attempts, 50 ms apart, of wait_for.
command_s_max=120
attempts_max=400
configuration=/etc/tickcast/tickcast.toml

step() { printf '\n== %s\n' "$*"; }
fail() {
    printf '%s: %s\n' "$script" "$*" >&2
    exit 1
}
skip() {
    printf '%s: skipped: %s\n' "$script" "$*" >&2
    exit 77
}
# Prints the header comment of the calling script.
usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$script"
    exit 0
}

select_package() { # path, relative to the caller's working directory
    [[ -z $deb ]] || fail "specify one package, not both $deb and $1"
    deb=$1
    [[ $deb == /* ]] || deb=$called_from/$deb
}

begin_trial() {
    command -v dpkg >/dev/null || skip "dpkg not found"
    [[ $EUID -eq 0 ]] || skip "installing a package requires root"
    if [[ -z $deb ]]; then
        local target package
        target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
        for package in "$target"/debian/tickcast_*.deb; do [[ $deb -nt $package ]] || deb=$package; done
        [[ -e $deb ]] || fail "no package in $target/debian: run scripts/package.sh first"
    fi
    [[ -r $deb ]] || fail "$deb cannot be read"
    # One trial at a time. Locks a directory, so that no lock file is left behind.
    exec {lock}</var/lib/dpkg
    flock -w 300 "$lock" || fail "another trial of a package has been running for 5 minutes"

    # An existing installation belongs to somebody. dpkg cannot remove a manual one, which would also override the package.
    local path
    for path in /usr/local/bin/tickcast /etc/systemd/system/tickcast.service; do
        [[ ! -e $path ]] || skip "$path exists: tickcast was installed manually; scripts/uninstall.sh removes it"
    done
    if [[ $force == no ]]; then
        for path in /usr/bin/tickcast /etc/tickcast /var/lib/dpkg/info/tickcast.list; do
            [[ ! -e $path ]] || skip "$path exists: tickcast is installed; --force removes it"
        done
    else
        dpkg --purge tickcast >/dev/null 2>&1 || true
    fi
    # Removing the package would revert the tuning.
    for path in /var/lib/tickcast/tune.saved*; do
        [[ ! -e $path ]] || skip "$path exists: this machine is tuned; run tickcast-tune revert first"
    done
    # Programs of the package take precedence; tools of the user, such as node, come after them.
    PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
    work=$(mktemp -d)
    log=$work/log
    server="" installed=no
    trap end_trial EXIT
    # Signals exit through end_trial. dpkg must not stop half way: timeout gives it its own process group, and the shell waits for
    # it. Other commands run with timeout --foreground, so that Ctrl-C reaches them.
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    list_paths >"$work/before"
}

end_trial() {
    # Ignore further signals, so that the cleanup completes.
    trap '' INT TERM HUP
    # Processes that the calling script has started.
    ! declare -F end_own >/dev/null || end_own
    [[ -z $server ]] || kill -KILL "$server" 2>/dev/null || true
    [[ $installed == no ]] || dpkg --purge tickcast >/dev/null 2>&1 || true
    rm -rf -- "$work"
}

# With stdin closed, a prompt of dpkg is an error. Container images may exclude man pages, so include them.
run_dpkg() {
    timeout "$command_s_max" dpkg --path-include='/usr/share/*' "$@" </dev/null >"$work/dpkg" 2>&1 ||
        fail "dpkg $*: $(cat "$work/dpkg")"
}
install_package() {
    installed=yes
    run_dpkg -i "$deb"
}
purge_package() {
    run_dpkg -P tickcast
    list_paths >"$work/after"
    diff "$work/before" "$work/after" || fail "files were left behind or removed (see the diff above)"
    ! dpkg-query -W tickcast >/dev/null 2>&1 || fail "tickcast is still in the dpkg database"
    installed=no
}
# Lists all paths named *tickcast* where a package may install files. Ignores an empty /var/lib/tickcast, which a purge removes.
list_paths() {
    local filter=(! -path "$work*" ! '(' -path /var/lib/tickcast -empty ')')
    # Files may disappear while find runs, which makes it fail.
    { find /etc /usr /var /run -xdev -name '*tickcast*' "${filter[@]}" 2>/dev/null || true; } | sort
}

wait_for() { # description, then a command to repeat until it succeeds
    local what=$1 attempts
    shift
    for ((attempts = 0; attempts < attempts_max; attempts++)); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.05
    done
    fail "timed out waiting for $what: $(tail -5 "$log")"
}
has_ended() { ! kill -0 "$1"; }

start_server() { # with the installed configuration, as nobody, on free ports
    # Remove the output of a previous server, whose addresses no longer apply.
    rm -f -- "$work/output"
    (
        # As in the unit; a container may not be allowed to raise it.
        ulimit -l unlimited 2>/dev/null || true
        export TICKCAST_TCP=127.0.0.1:0 TICKCAST_HTTP=127.0.0.1:0 TICKCAST_ADMIN=127.0.0.1:0
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs \
            tickcast serve --config "$configuration"
    ) >"$work/output" 2>>"$log" &
    server=$!
    wait_for "the server to listen" grep -q '^listening ' "$work/output"
    cat "$work/output"
    tcp=$(sed -n 's/^listening.* tcp=\([^ ]*\).*/\1/p' "$work/output")
    http=$(sed -n 's/^listening.* http=\([^ ]*\).*/\1/p' "$work/output")
    admin=$(sed -n 's/^listening.* admin=\([^ ]*\).*/\1/p' "$work/output")
}
stop_server() {
    kill -TERM "$server"
    wait_for "the server to exit" has_ended "$server"
    wait "$server" || fail "the server failed: $(cat "$log")"
    server=""
    echo "SIGTERM: exit status 0"
}
