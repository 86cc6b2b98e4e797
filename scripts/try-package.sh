#!/usr/bin/env bash
# Does with a package what a new user does, and checks what it leaves: scripts/try-package.sh [--force] [FILE.deb], the
# newest that scripts/package.sh has made unless said otherwise.
#
# Installs it with dpkg, looks at its files, serves with the shipped configuration on free ports, installs it again over
# a changed configuration, removes it, purges it. The machine is then as it was, but for dpkg's log. With or without a
# running systemd. Exits with 77 where this cannot be tried: not as root, without dpkg, or where tickcast is installed.
#
#   --force   try it where tickcast is installed, too: that is taken away, with its configuration
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$*"; }
fail() {
    printf 'scripts/try-package.sh: %s\n' "$*" >&2
    exit 1
}
cannot() {
    printf 'scripts/try-package.sh: not tried: %s\n' "$*" >&2
    exit 77
}

deb="" force=no
while (($# > 0)); do
    case $1 in
        --force) force=yes ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' scripts/try-package.sh
            exit 0
            ;;
        -*) fail "no option $1; there are --force and a package to be named" ;;
        *)
            [[ -z $deb ]] || fail "one package, not $deb and $1"
            deb=$1
            [[ $deb == /* ]] || deb=$called_from/$deb
            ;;
    esac
    shift
done

command -v dpkg >/dev/null || cannot "there is no dpkg here"
[[ $EUID -eq 0 ]] || cannot "it takes root to install a package"
if [[ -z $deb ]]; then
    target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
    for package in "$target"/debian/tickcast_*.deb; do [[ $deb -nt $package ]] || deb=$package; done
    [[ -e $deb ]] || fail "no package in $target/debian: scripts/package.sh makes one"
fi
[[ -r $deb ]] || fail "$deb cannot be read"
# One at a time. The folder is the lock, so that none is left behind.
exec {lock}</var/lib/dpkg
flock -w 300 "$lock" || fail "another scripts/try-package.sh has been at work for 5 minutes"

# Whatever is there of it, files of an installation by hand too, is somebody's.
if [[ $force == no ]]; then
    for path in /usr/bin/tickcast /usr/local/bin/tickcast /etc/tickcast /var/lib/tickcast /var/lib/dpkg/info/tickcast.list; do
        [[ ! -e $path ]] || cannot "$path is there: tickcast is installed; --force takes that away"
    done
fi

# Seconds for one command, and the attempts, 50 ms apart, for something to be seen.
command_s_max=120
looks_max=400

work=$(mktemp -d)
server="" installed=no
clean_up() {
    [[ -z $server ]] || kill -KILL "$server" 2>/dev/null || true
    [[ $installed == no ]] || dpkg --purge tickcast >/dev/null 2>&1 || true
    rm -rf -- "$work"
}
trap clean_up EXIT

# Without an answer to give, a question is an error. Machines made of container images may leave out manuals.
run_dpkg() {
    timeout "$command_s_max" dpkg --path-include='/usr/share/*' "$@" </dev/null >"$work/dpkg" 2>&1 ||
        fail "dpkg $*: $(cat "$work/dpkg")"
}
is_there() { [[ -e $1 ]] || fail "$1 is not there"; }
is_gone() { [[ ! -e $1 && ! -L $1 ]] || fail "$1 is still there"; }
waits_for() { # what, then a command that is tried until it succeeds
    local what=$1 looks
    shift
    for ((looks = 0; looks < looks_max; looks++)); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.05
    done
    fail "waited in vain for $what: $(tail -5 "$work/log")"
}
has_ended() { ! kill -0 "$1"; }
# All that has its name where a package may put something.
of_it() { find /etc /usr /var /run -xdev -name '*tickcast*' ! -path "$work*" 2>/dev/null | sort; }

if [[ $force == yes ]]; then
    dpkg --purge tickcast >/dev/null 2>&1 || true
fi
of_it >"$work/before"
# Folders that come with it, and are to go with it.
folders=()
while read -r folder; do
    [[ -e $folder ]] || folders+=("$folder")
done < <(dpkg-deb --contents "$deb" | awk '/^d/ { sub(/^\./, "", $NF); print $NF }')

step "dpkg -i $(basename "$deb")"
installed=yes
run_dpkg -i "$deb"
mapfile -t files < <(dpkg -L tickcast | while read -r path; do [[ -d $path ]] || echo "$path"; done)
for path in /usr/bin/tickcast /usr/bin/tickcast-c10k /usr/sbin/tickcast-tune /etc/tickcast/tickcast.toml \
    /usr/lib/systemd/system/tickcast.service /usr/lib/systemd/system/tickcast.socket \
    /usr/lib/systemd/system/tickcast-http.socket /usr/lib/systemd/system/tickcast-tune.service \
    /etc/default/tickcast-tune /usr/lib/tickcast/tuning/60-tickcast-backlog.conf \
    /usr/lib/tickcast/monitoring/tickcast-alerts.yml \
    /usr/share/man/man1/tickcast.1.gz /usr/share/man/man1/tickcast-serve.1.gz \
    /usr/share/man/man1/tickcast-c10k.1.gz /usr/share/man/man8/tickcast-tune.8.gz \
    /usr/share/bash-completion/completions/tickcast /usr/share/zsh/vendor-completions/_tickcast \
    /usr/share/fish/vendor_completions.d/tickcast.fish /usr/share/doc/tickcast/copyright \
    /usr/share/doc/tickcast/changelog.Debian.gz; do
    is_there "$path"
done
for path in "${files[@]}"; do
    [[ ! -L $path ]] || continue
    wanted=644
    case $path in /usr/bin/* | /usr/lib/tickcast/tuning/tickcast-tune) wanted=755 ;; esac
    [[ $(stat -c '%U:%G %a' "$path") == "root:root $wanted" ]] ||
        fail "$path is $(stat -c '%U:%G %a' "$path"), not root:root $wanted"
done
for path in "${folders[@]}"; do
    [[ $(stat -c '%U:%G %a' "$path") == "root:root 755" ]] || fail "$path is $(stat -c '%U:%G %a' "$path")"
done
configuration=$(dpkg-query -W -f '${Conffiles}' tickcast | awk '{ print $1 }' | sort | xargs)
[[ $configuration == "/etc/default/tickcast-tune /etc/tickcast/tickcast.toml" ]] || fail "configuration: $configuration"
echo "${#files[@]} files of root; configuration: $configuration"
if command -v systemctl >/dev/null && systemctl is-enabled tickcast.service >/dev/null 2>&1; then
    fail "tickcast.service is enabled: that is the operator's to decide"
fi
if command -v systemd-analyze >/dev/null; then
    # With man it would leave pages in man's cache.
    systemd-analyze verify --man=no /usr/lib/systemd/system/tickcast{.service,.socket,-http.socket,-tune.service}
    systemd-analyze security --offline=yes --no-pager --threshold=15 /usr/lib/systemd/system/tickcast.service | tail -1
fi

step "tickcast serve --config /etc/tickcast/tickcast.toml as nobody, on free ports"
tickcast serve --config /etc/tickcast/tickcast.toml --check-config
(
    # As the unit has it; a container may not raise it.
    ulimit -l unlimited 2>/dev/null || true
    export TICKCAST_TCP=127.0.0.1:0 TICKCAST_HTTP=127.0.0.1:0 TICKCAST_ADMIN=127.0.0.1:0
    exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs \
        tickcast serve --config /etc/tickcast/tickcast.toml
) >"$work/said" 2>"$work/log" &
server=$!
waits_for "the server" grep -q '^listening ' "$work/said"
cat "$work/said"
tcp=$(sed -n 's/^listening.* tcp=\([^ ]*\).*/\1/p' "$work/said")
http=$(sed -n 's/^listening.* http=\([^ ]*\).*/\1/p' "$work/said")
timeout "$command_s_max" tickcast pub demo.hello '{"hello":"world"}' --server "$tcp"
timeout "$command_s_max" tickcast sub demo.hello --from latest --count 1 --server "$tcp" >"$work/tick"
cat "$work/tick"
grep -qF '{"hello":"world"}' "$work/tick" || fail "the subscriber did not get the tick"
timeout "$command_s_max" tickcast-c10k --server "$http" --transport ws --connections 10 --duration-s 1 --warm-up-s 0 \
    --subscribe 'demo.>' >"$work/c10k" 2>&1 || fail "tickcast-c10k: $(cat "$work/c10k")"
if command -v curl >/dev/null; then
    echo "GET / of $http: $(curl -s --max-time 10 -o /dev/null -w '%{http_code}' "http://$http/")"
fi
kill -TERM "$server"
waits_for "the server's end" has_ended "$server"
wait "$server" || fail "the server did not end well: $(cat "$work/log")"
server=""
echo "SIGTERM: exit 0"

step "the tools"
status=0
timeout "$command_s_max" tickcast-tune check >"$work/tune" || status=$?
((status <= 1)) || fail "tickcast-tune check ended with $status: $(cat "$work/tune")"
echo "tickcast-tune check: $(wc -l <"$work/tune") lines"
timeout "$command_s_max" tickcast check >"$work/check" || fail "tickcast check ended with $?: $(cat "$work/check")"
grep -q '^net\.core\.somaxconn ' "$work/check" || fail "tickcast check does not find tickcast-tune: $(cat "$work/check")"
echo "tickcast check: $(tail -2 "$work/check" | head -1)"
bash -c 'source /usr/share/bash-completion/completions/tickcast && complete -p tickcast'
if command -v man >/dev/null; then
    for page in man1/tickcast-serve.1:--drain-deadline-ms man1/tickcast-c10k.1:--connections man8/tickcast-tune.8:--without; do
        option=${page#*:} page=${page%:*}
        MANWIDTH=100 man --warnings -l "/usr/share/man/$page.gz" 2>"$work/man" | col -b >"$work/page"
        grep -q -- "$option" "$work/page" || fail "$page does not render: $(head -20 "$work/page")"
        [[ ! -s $work/man ]] || fail "man complains of $page: $(cat "$work/man")"
        echo "$page: $(wc -l <"$work/page") lines"
    done
fi

step "dpkg -i again: what was configured stays"
echo 'shards = 1' >>/etc/tickcast/tickcast.toml
run_dpkg -i "$deb"
grep -q '^shards = 1$' /etc/tickcast/tickcast.toml || fail "the configuration was replaced"
tickcast serve --config /etc/tickcast/tickcast.toml --check-config

step "dpkg -r: configuration stays"
run_dpkg -r tickcast
grep -q '^shards = 1$' /etc/tickcast/tickcast.toml || fail "the configuration is gone"
for path in "${files[@]}"; do
    [[ $path == /etc/* ]] || is_gone "$path"
done

step "dpkg -P: nothing stays"
run_dpkg -P tickcast
for path in "${files[@]}" "${folders[@]}"; do
    is_gone "$path"
done
of_it >"$work/after"
diff "$work/before" "$work/after" || fail "the machine is not as it was"
! dpkg-query -W tickcast >/dev/null 2>&1 || fail "dpkg still knows tickcast"
installed=no

printf '\nthe package is good\n'
