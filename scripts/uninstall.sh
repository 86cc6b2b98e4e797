#!/usr/bin/env bash
# Takes away what scripts/install.sh installed: scripts/uninstall.sh [--purge]. Stops the services first, and puts the
# machine's settings back. Configuration stays unless --purge is given.
#
# DESTDIR and PREFIX as for scripts/install.sh. What is not there is not missed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'scripts/uninstall.sh: %s\n' "$*" >&2
    exit 1
}

purge=no
while (($# > 0)); do
    case $1 in
        --purge) purge=yes ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' scripts/uninstall.sh
            exit 0
            ;;
        *) fail "no option $1; there is --purge" ;;
    esac
    shift
done

destdir=${DESTDIR:-}
destdir=${destdir%/}
prefix=${PREFIX:-/usr/local}
prefix=${prefix%/}
[[ -z $destdir || $destdir == /* ]] || fail "DESTDIR is an absolute path, not $destdir"
[[ $prefix =~ ^(/[A-Za-z0-9._-]+)+$ ]] || fail "PREFIX is an absolute path of plain letters, not $prefix"

# The sockets first: they would start the server again.
units=(tickcast.socket tickcast-http.socket tickcast.service tickcast-tune.service)
files=("$prefix/bin/tickcast" "$prefix/bin/tickcast-c10k" "$prefix/sbin/tickcast-tune" "${units[@]/#//etc/systemd/system/}")
[[ $purge == no ]] || files+=(/etc/default/tickcast-tune)
folders=("$prefix/lib/tickcast/tuning" "$prefix/lib/tickcast/monitoring")
[[ $purge == no ]] || folders+=(/etc/tickcast)

# Root is needed only where the folders are root's.
for path in "${files[@]}" "${folders[@]}"; do
    path=$destdir$path
    [[ ! -e $path && ! -L $path ]] || [[ -w ${path%/*} ]] || fail "${path%/*} cannot be written: run as root"
done

if [[ -z $destdir ]]; then
    if [[ -d /run/systemd/system ]]; then
        for unit in "${units[@]}"; do
            [[ ! -e /etc/systemd/system/$unit ]] || systemctl disable --now "$unit"
        done
    fi
    # Settings that were applied by hand: without the tool nobody could put them back.
    if [[ -e /var/lib/tickcast/tune.saved && -x $prefix/sbin/tickcast-tune ]]; then
        "$prefix/sbin/tickcast-tune" revert || fail "the tuning could not be put back: nothing was removed"
    fi
fi

for path in "${files[@]}"; do
    rm -f -- "$destdir$path"
done
for path in "${folders[@]}"; do
    # PREFIX is checked above: the path has names in it even where DESTDIR is empty.
    rm -rf -- "$destdir${path:?}"
done
# Only where nothing else is in them.
for path in "$prefix/lib/tickcast" /etc/tickcast; do
    rmdir -- "$destdir$path" 2>/dev/null || true
done
if [[ -z $destdir && -d /run/systemd/system ]]; then
    systemctl daemon-reload
fi
echo "removed from ${destdir}$prefix and ${destdir}/etc"
