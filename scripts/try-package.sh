#!/usr/bin/env bash
# Does with a package what a new user does, and checks what it leaves: scripts/try-package.sh [FILE.deb], the newest of
# target/debian unless said otherwise. Installs, looks at the files, serves with the shipped configuration on free ports,
# reads a man page, removes, purges. As root, where tickcast is not installed, with or without a running systemd.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$*"; }
fail() {
    printf 'scripts/try-package.sh: %s\n' "$*" >&2
    exit 1
}

case ${1:-} in
    -h | --help)
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' scripts/try-package.sh
        exit 0
        ;;
    -*) fail "no option $1; there is a package to be named" ;;
esac
deb=${1:-}
if [[ -z $deb ]]; then
    packages=(target/debian/tickcast_*.deb)
    [[ -e ${packages[0]} ]] || fail "no package in target/debian: scripts/package.sh makes one"
    deb=${packages[0]}
    for package in "${packages[@]}"; do [[ $deb -nt $package ]] || deb=$package; done
fi
[[ -r $deb ]] || fail "$deb cannot be read"
deb=$(realpath "$deb")
[[ $EUID -eq 0 ]] || fail "as root, please: it installs a package"
# Whatever is there of it, files of a hand-made installation too, is somebody's.
for path in /usr/bin/tickcast /usr/local/bin/tickcast /etc/tickcast /var/lib/tickcast; do
    [[ ! -e $path ]] || fail "$path is there: remove what is installed first"
done

work=$(mktemp -d)
server=""
clean_up() {
    [[ -z $server ]] || kill -KILL "$server" 2>/dev/null || true
    dpkg --purge tickcast >/dev/null 2>&1 || true
    rm -rf -- "$work"
}
trap clean_up EXIT

# Machines made of container images may leave out manuals.
install_it() { dpkg --path-include='/usr/share/*' --force-confold -i "$deb" >"$work/dpkg" 2>&1 || fail "dpkg -i: $(cat "$work/dpkg")"; }
is_there() { [[ -e $1 ]] || fail "$1 is not there"; }
is_gone() { [[ ! -e $1 && ! -L $1 ]] || fail "$1 is still there"; }
waits_for() { # what, then a command that is tried until it succeeds
    local what=$1 tries
    shift
    for ((tries = 0; tries < 200; tries++)); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.05
    done
    fail "waited in vain for $what"
}

step "dpkg -i $(basename "$deb")"
install_it
mapfile -t files < <(dpkg -L tickcast | while read -r path; do [[ -d $path ]] || echo "$path"; done)
for path in /usr/bin/tickcast /usr/bin/tickcast-c10k /usr/sbin/tickcast-tune /etc/tickcast/tickcast.toml \
    /usr/lib/systemd/system/tickcast.service /usr/lib/systemd/system/tickcast.socket \
    /usr/lib/systemd/system/tickcast-http.socket /usr/lib/systemd/system/tickcast-tune.service \
    /etc/default/tickcast-tune /usr/lib/tickcast/tuning/60-tickcast-backlog.conf /usr/share/man/man1/tickcast.1.gz \
    /usr/share/man/man1/tickcast-serve.1.gz /usr/share/bash-completion/completions/tickcast \
    /usr/share/zsh/vendor-completions/_tickcast /usr/share/fish/vendor_completions.d/tickcast.fish \
    /usr/share/doc/tickcast/copyright; do
    is_there "$path"
done
echo "${#files[@]} files; configuration: $(dpkg-query -W -f '${Conffiles}' tickcast | awk '{print $1}' | xargs)"
if command -v systemctl >/dev/null && systemctl is-enabled tickcast.service >/dev/null 2>&1; then
    fail "tickcast.service is enabled: that is the operator's to decide"
fi
if command -v systemd-analyze >/dev/null; then
    systemd-analyze verify --man=no /usr/lib/systemd/system/tickcast{.service,.socket,-http.socket,-tune.service}
    systemd-analyze security --offline=yes --no-pager --threshold=15 /usr/lib/systemd/system/tickcast.service | tail -1
fi

step "tickcast serve --config /etc/tickcast/tickcast.toml, as the unit does, on free ports"
tickcast serve --config /etc/tickcast/tickcast.toml --check-config
tickcast serve --config /etc/tickcast/tickcast.toml --tcp 127.0.0.1:0 --http 127.0.0.1:0 >"$work/said" 2>"$work/log" &
server=$!
waits_for "the server" grep -q '^listening ' "$work/said"
cat "$work/said"
tcp=$(sed -n 's/^listening tcp=\([^ ]*\) .*/\1/p' "$work/said")
http=$(sed -n 's/^listening .* http=\([^ ]*\) .*/\1/p' "$work/said")
tickcast pub demo.hello '{"hello":"world"}' --server "$tcp"
timeout 60 tickcast sub demo.hello --from latest --count 1 --server "$tcp"
if command -v curl >/dev/null; then
    echo "GET / of $http: $(curl -s -o /dev/null -w '%{http_code}' "http://$http/")"
fi
kill -TERM "$server"
wait "$server" || fail "the server did not end well: $(cat "$work/log")"
server=""
echo "SIGTERM: exit 0"

step "the tools"
status=0
tickcast-tune check >"$work/tune" || status=$?
((status <= 1)) || fail "tickcast-tune check ended with $status: $(cat "$work/tune")"
echo "tickcast-tune check: $(wc -l <"$work/tune") lines"
tickcast-c10k --help >/dev/null
bash -c 'source /usr/share/bash-completion/completions/tickcast && complete -p tickcast'
if command -v man >/dev/null; then
    MANWIDTH=100 man -l /usr/share/man/man1/tickcast-serve.1.gz 2>"$work/man" | col -b >"$work/page"
    grep -q -- '--drain-deadline-ms' "$work/page" || fail "the man page does not render: $(head -20 "$work/page")"
    [[ ! -s $work/man ]] || fail "man complains: $(cat "$work/man")"
    echo "man tickcast-serve: $(wc -l <"$work/page") lines"
fi

step "dpkg -i again: what was configured stays"
echo 'shards = 1' >>/etc/tickcast/tickcast.toml
install_it
grep -q '^shards = 1$' /etc/tickcast/tickcast.toml || fail "the configuration was replaced"

step "dpkg -r: configuration stays"
dpkg -r tickcast >"$work/dpkg" 2>&1 || fail "dpkg -r: $(cat "$work/dpkg")"
is_there /etc/tickcast/tickcast.toml
for path in "${files[@]}"; do
    [[ $path == /etc/* ]] || is_gone "$path"
done

step "dpkg -P: nothing stays"
dpkg -P tickcast >"$work/dpkg" 2>&1 || fail "dpkg -P: $(cat "$work/dpkg")"
for path in "${files[@]}" /etc/tickcast /usr/lib/tickcast /usr/share/doc/tickcast /var/lib/tickcast; do
    is_gone "$path"
done
left=$(find /etc/systemd /var/lib/systemd -name '*tickcast*' 2>/dev/null || true)
[[ -z $left ]] || fail "left behind: $left"

printf '\nthe package is good\n'
