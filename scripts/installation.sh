# Where scripts/install.sh puts what, and scripts/uninstall.sh looks for it: sourced by both, from the root of the project.
#
# Leaves `destdir` and `prefix`, checked, and the lists below.
# shellcheck shell=bash disable=SC2034

script=scripts/$(basename "$0")

fail() {
    printf '%s: %s\n' "$script" "$*" >&2
    exit 1
}

# The head of the script that sources this.
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$script"; }

destdir=${DESTDIR:-}
destdir=${destdir%/}
prefix=${PREFIX:-/usr/local}
prefix=${prefix%/}
[[ -z $destdir || $destdir == /* ]] || fail "DESTDIR is an absolute path, not $destdir"
[[ $prefix =~ ^(/[A-Za-z0-9._-]+)+$ ]] || fail "PREFIX is an absolute path of plain letters, not $prefix"

programs=(tickcast tickcast-c10k)
# The sockets first: stopped last, they would start the server again.
units=(tickcast.socket tickcast-http.socket tickcast.service tickcast-tune.service)
units_folder=/etc/systemd/system
tuning=$prefix/lib/tickcast/tuning
monitoring=$prefix/lib/tickcast/monitoring
tool=$prefix/sbin/tickcast-tune
man=$prefix/share/man
# Where each shell looks.
declare -A completions=(
    [bash]=$prefix/share/bash-completion/completions/tickcast
    [zsh]=$prefix/share/zsh/site-functions/_tickcast
    [fish]=$prefix/share/fish/vendor_completions.d/tickcast.fish
)
