# Installation paths. scripts/install.sh and scripts/uninstall.sh source this from the root of the repository.
#
# Sets `destdir` and `prefix`, validated, and the lists below.
# shellcheck shell=bash disable=SC2034

script=scripts/$(basename "$0")

fail() {
    printf '%s: %s\n' "$script" "$*" >&2
    exit 1
}

# Prints the header comment of the calling script.
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$script"; }

destdir=${DESTDIR:-}
destdir=${destdir%/}
prefix=${PREFIX:-/usr/local}
prefix=${prefix%/}
[[ -z $destdir || $destdir == /* ]] || fail "DESTDIR must be an absolute path, not $destdir"
[[ $prefix =~ ^(/[A-Za-z0-9._-]+)+$ ]] || fail "PREFIX must be an absolute path of letters, digits and ._-, not $prefix"

programs=(tickcast tickcast-c10k)
# Sockets come first in the order of stopping: a socket that is still active would start the server again.
units=(tickcast.socket tickcast-http.socket tickcast.service tickcast-tune.service)
units_folder=/etc/systemd/system
tuning=$prefix/lib/tickcast/tuning
monitoring=$prefix/lib/tickcast/monitoring
tool=$prefix/sbin/tickcast-tune
man=$prefix/share/man
# Where each shell looks for completions.
declare -A completions=(
    [bash]=$prefix/share/bash-completion/completions/tickcast
    [zsh]=$prefix/share/zsh/site-functions/_tickcast
    [fish]=$prefix/share/fish/vendor_completions.d/tickcast.fish
)
