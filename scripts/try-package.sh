#!/usr/bin/env bash
# Tests the Debian package: installation, upgrade, removal and purge.
#
#   scripts/try-package.sh [--force] [FILE.deb]
#
#   --force    remove an existing installation, including its configuration, instead of skipping
#   FILE.deb   package to test [default: the latest from scripts/package.sh]
#
# Installs the package with dpkg, checks its files, runs the server with the default configuration on free ports, reinstalls the
# package over a modified configuration, upgrades to a version with another default configuration, removes it and purges it.
# Afterwards the machine is as before, except for dpkg's log. Works with and without systemd. Exits with 77 if the test is not
# possible: without root or dpkg, or if tickcast is installed.
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=scripts/trial.sh
source scripts/trial.sh

while (($# > 0)); do
    case $1 in
        --force) force=yes ;;
        -h | --help) usage ;;
        -*) fail "unknown option $1; see --help" ;;
        *) select_package "$1" ;;
    esac
    shift
done
begin_trial

assert_exists() { [[ -e $1 ]] || fail "$1 does not exist"; }
assert_removed() { [[ ! -e $1 && ! -L $1 ]] || fail "$1 still exists"; }

# Directories that the package creates and has to remove.
folders=()
while read -r folder; do
    [[ -e $folder ]] || folders+=("$folder")
done < <(dpkg-deb --contents "$deb" | awk '/^d/ { sub(/^\./, "", $NF); print $NF }')

step "dpkg -i $(basename "$deb")"
install_package
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
    /usr/share/doc/tickcast/changelog.Debian.gz /usr/share/doc/tickcast/README.md \
    /usr/share/doc/tickcast/PROTOCOL.md /usr/share/doc/tickcast/tickcast.proto /usr/share/doc/tickcast/examples/tickcast.toml; do
    assert_exists "$path"
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
conffiles=$(dpkg-query -W -f '${Conffiles}' tickcast | awk '{ print $1 }' | sort | xargs)
[[ $conffiles == "/etc/default/tickcast-tune /etc/tickcast/tickcast.toml" ]] || fail "unexpected conffiles: $conffiles"
echo "${#files[@]} files owned by root; conffiles: $conffiles"
if command -v systemctl >/dev/null && systemctl is-enabled tickcast.service >/dev/null 2>&1; then
    fail "the package enabled tickcast.service, which must be left to the operator"
fi
if command -v systemd-analyze >/dev/null; then
    # --man=no: checking man pages would create files in man's cache.
    systemd-analyze verify --man=no /usr/lib/systemd/system/tickcast{.service,.socket,-http.socket,-tune.service}
    systemd-analyze security --offline=yes --no-pager --threshold=12 /usr/lib/systemd/system/tickcast.service | tail -1
fi

step "tickcast serve --config $configuration as nobody, on free ports"
tickcast serve --config "$configuration" --check-config
start_server
timeout --foreground "$command_s_max" tickcast pub demo.hello '{"hello":"world"}' --server "$tcp"
timeout --foreground "$command_s_max" tickcast sub demo.hello --from latest --count 1 --server "$tcp" >"$work/tick"
cat "$work/tick"
grep -qF '{"hello":"world"}' "$work/tick" || fail "the subscriber did not get the tick"
timeout --foreground "$command_s_max" tickcast-c10k --server "$http" --transport ws --connections 10 --duration-s 1 --warm-up-s 0 \
    --subscribe 'demo.>' >"$work/c10k" 2>&1 || fail "tickcast-c10k: $(cat "$work/c10k")"
if command -v curl >/dev/null; then
    echo "GET http://$http/: $(curl -s --max-time 10 -o /dev/null -w '%{http_code}' "http://$http/")"
fi
stop_server

step "the tools"
status=0
timeout --foreground "$command_s_max" tickcast-tune check >"$work/tune" || status=$?
((status <= 1)) || fail "tickcast-tune check exited with $status: $(cat "$work/tune")"
echo "tickcast-tune check: $(wc -l <"$work/tune") lines"
timeout --foreground "$command_s_max" tickcast check >"$work/check" || fail "tickcast check exited with $?: $(cat "$work/check")"
grep -q '^net\.core\.somaxconn ' "$work/check" || fail "tickcast check does not find tickcast-tune: $(cat "$work/check")"
echo "tickcast check: $(tail -2 "$work/check" | head -1)"
bash -c 'source /usr/share/bash-completion/completions/tickcast && complete -p tickcast'
if command -v man >/dev/null; then
    for page in man1/tickcast-serve.1:--drain-deadline man1/tickcast-c10k.1:--connections man8/tickcast-tune.8:--without; do
        option=${page#*:} page=${page%:*}
        MANWIDTH=100 man --warnings -l "/usr/share/man/$page.gz" 2>"$work/man" | col -b >"$work/page"
        grep -q -- "$option" "$work/page" || fail "$page does not render: $(head -20 "$work/page")"
        [[ ! -s $work/man ]] || fail "man warns about $page: $(cat "$work/man")"
        echo "$page: $(wc -l <"$work/page") lines"
    done
fi

step "dpkg -i again: the configuration is kept"
sed -i 's/^\[server\]$/&\nshards = 1/' "$configuration"
run_dpkg -i "$deb"
grep -q '^shards = 1$' "$configuration" || fail "the configuration was replaced"
tickcast serve --config "$configuration" --check-config

step "upgrade with a new default configuration, without a terminal: the operator's configuration is kept"
dpkg-deb -R "$deb" "$work/next"
sed -i 's/^Version: .*/&+next/' "$work/next/DEBIAN/control"
echo '# changed' >>"$work/next/etc/tickcast/tickcast.toml"
dpkg-deb -z1 -b "$work/next" "$work/next.deb" >/dev/null
run_dpkg --force-confold -i "$work/next.deb"
dpkg-query -W tickcast
[[ $(dpkg-query -W -f '${Version}' tickcast) == *+next ]] || fail "the upgrade did not install the next version"
grep -q '^shards = 1$' "$configuration" || fail "the configuration was replaced"
! grep -q rejects "$work/dpkg" || fail "the configuration is rejected: $(cat "$work/dpkg")"
echo 'behind_mss = 1' >>"$configuration"
run_dpkg --force-confold -i "$work/next.deb"
grep -A 4 "this version rejects $configuration" "$work/dpkg" || fail "the upgrade does not report a rejected configuration"
sed -i '$d' "$configuration"

step "dpkg -r: the configuration is kept"
run_dpkg -r tickcast
grep -q '^shards = 1$' "$configuration" || fail "the configuration was removed"
for path in "${files[@]}"; do
    [[ $path == /etc/* ]] || assert_removed "$path"
done

step "dpkg -P: everything is removed"
purge_package
for path in "${files[@]}" "${folders[@]}"; do
    assert_removed "$path"
done

printf '\npackage passed\n'
