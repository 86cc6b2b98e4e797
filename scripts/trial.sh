# What the trials of a package share: sourced by scripts/try-package.sh and scripts/walk-through.sh, from the root of the
# project. They install a package on this machine and leave it as it was.
#
# Before begin_trial: `called_from` (the folder it was called from), `force` (yes: take away what is installed) and
# name_package. Afterwards `deb`, `work` (a folder that goes with the script), and after start_server `server` (its pid),
# `tcp`, `http`, `admin` (its addresses), `log` (its file).
# shellcheck shell=bash disable=SC2034,SC2154

script=scripts/$(basename "$0")
force=no deb=""
# Seconds for one command, and the attempts, 50 ms apart, for something to be seen.
command_s_max=120
looks_max=400
configuration=/etc/tickcast/tickcast.toml

step() { printf '\n== %s\n' "$*"; }
fail() {
    printf '%s: %s\n' "$script" "$*" >&2
    exit 1
}
cannot() {
    printf '%s: not tried: %s\n' "$script" "$*" >&2
    exit 77
}
# The head of the script that sources this.
usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$script"
    exit 0
}

name_package() { # a file, seen from the folder that the script was called from
    [[ -z $deb ]] || fail "one package, not $deb and $1"
    deb=$1
    [[ $deb == /* ]] || deb=$called_from/$deb
}

begin_trial() {
    command -v dpkg >/dev/null || cannot "there is no dpkg here"
    [[ $EUID -eq 0 ]] || cannot "it takes root to install a package"
    if [[ -z $deb ]]; then
        local target package
        target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
        for package in "$target"/debian/tickcast_*.deb; do [[ $deb -nt $package ]] || deb=$package; done
        [[ -e $deb ]] || fail "no package in $target/debian: scripts/package.sh makes one"
    fi
    [[ -r $deb ]] || fail "$deb cannot be read"
    # One at a time. The folder is the lock, so that none is left behind.
    exec {lock}</var/lib/dpkg
    flock -w 300 "$lock" || fail "another trial of a package has been at work for 5 minutes"

    # Whatever is there of it is somebody's. What was installed by hand dpkg could not take away, and it would go before what
    # the package brings.
    local path
    for path in /usr/local/bin/tickcast /etc/systemd/system/tickcast.service; do
        [[ ! -e $path ]] || cannot "$path is there: tickcast is installed by hand; scripts/uninstall.sh takes that away"
    done
    if [[ $force == no ]]; then
        for path in /usr/bin/tickcast /etc/tickcast /var/lib/dpkg/info/tickcast.list; do
            [[ ! -e $path ]] || cannot "$path is there: tickcast is installed; --force takes that away"
        done
    else
        dpkg --purge tickcast >/dev/null 2>&1 || true
    fi
    # Removing the package would put that back.
    for path in /var/lib/tickcast/tune.saved*; do
        [[ ! -e $path ]] || cannot "$path is there: the machine is tuned; tickcast-tune revert undoes that"
    done
    # What the package installs, first; after it the tools of whoever runs this, as node.
    PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
    work=$(mktemp -d)
    log=$work/log
    server="" installed=no
    trap end_trial EXIT
    # To the end by way of end_trial. Only dpkg is waited for, which timeout puts into a process group of its own: it is not
    # to stop half way. The other commands have timeout --foreground, so that Ctrl-C is theirs too.
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    of_it >"$work/before"
}

end_trial() {
    # Once: whoever asks again gets no half of it.
    trap '' INT TERM HUP
    # What the script itself has started.
    ! declare -F end_own >/dev/null || end_own
    [[ -z $server ]] || kill -KILL "$server" 2>/dev/null || true
    [[ $installed == no ]] || dpkg --purge tickcast >/dev/null 2>&1 || true
    rm -rf -- "$work"
}

# Without an answer to give, a question is an error. Machines made of container images may leave out manuals.
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
    of_it >"$work/after"
    diff "$work/before" "$work/after" || fail "the machine is not as it was"
    ! dpkg-query -W tickcast >/dev/null 2>&1 || fail "dpkg still knows tickcast"
    installed=no
}
# All that has its name where a package may put something. An empty folder of the tool is nobody's, and goes with a purge.
of_it() {
    local others=(! -path "$work*" ! '(' -path /var/lib/tickcast -empty ')')
    # What vanishes under its eyes is no failure.
    { find /etc /usr /var /run -xdev -name '*tickcast*' "${others[@]}" 2>/dev/null || true; } | sort
}

waits_for() { # what, then a command that is tried until it succeeds
    local what=$1 looks
    shift
    for ((looks = 0; looks < looks_max; looks++)); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.05
    done
    fail "waited in vain for $what: $(tail -5 "$log")"
}
has_ended() { ! kill -0 "$1"; }

start_server() { # with the installed configuration, as nobody, on free ports
    # Where the server before listened is no answer.
    rm -f -- "$work/said"
    (
        # As the unit has it; a container may not raise it.
        ulimit -l unlimited 2>/dev/null || true
        export TICKCAST_TCP=127.0.0.1:0 TICKCAST_HTTP=127.0.0.1:0 TICKCAST_ADMIN=127.0.0.1:0
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs \
            tickcast serve --config "$configuration"
    ) >"$work/said" 2>>"$log" &
    server=$!
    waits_for "the server" grep -q '^listening ' "$work/said"
    cat "$work/said"
    tcp=$(sed -n 's/^listening.* tcp=\([^ ]*\).*/\1/p' "$work/said")
    http=$(sed -n 's/^listening.* http=\([^ ]*\).*/\1/p' "$work/said")
    admin=$(sed -n 's/^listening.* admin=\([^ ]*\).*/\1/p' "$work/said")
}
stop_server() {
    kill -TERM "$server"
    waits_for "the server's end" has_ended "$server"
    wait "$server" || fail "the server did not end well: $(cat "$log")"
    server=""
    echo "SIGTERM: exit 0"
}
