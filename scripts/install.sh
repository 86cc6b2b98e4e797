#!/usr/bin/env bash
# Installs the binaries, the tuning, the units and the configuration: scripts/install.sh [--from FOLDER], the folder with
# the built binaries, target/release unless said otherwise.
#
# DESTDIR=DIR puts everything below DIR instead (packages, tests), PREFIX=/usr/local says where the programs go. What is
# there is replaced, configuration never. It starts nothing; scripts/uninstall.sh takes all of it away again.
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'scripts/install.sh: %s\n' "$*" >&2
    exit 1
}

from=${CARGO_TARGET_DIR:-target}/release
while (($# > 0)); do
    case $1 in
        --from)
            [[ -n ${2:-} ]] || fail "--from takes the folder with the binaries"
            from=$2
            [[ $from == /* ]] || from=$called_from/$from
            shift 2
            ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' scripts/install.sh
            exit 0
            ;;
        *) fail "no option $1; there is --from FOLDER" ;;
    esac
done

destdir=${DESTDIR:-}
destdir=${destdir%/}
prefix=${PREFIX:-/usr/local}
prefix=${prefix%/}
[[ -z $destdir || $destdir == /* ]] || fail "DESTDIR is an absolute path, not $destdir"
[[ $prefix =~ ^(/[A-Za-z0-9._-]+)+$ ]] || fail "PREFIX is an absolute path of plain letters, not $prefix"

for program in tickcast tickcast-c10k; do
    [[ -x $from/$program ]] || fail "$from/$program is not there: cargo build --release, or --from FOLDER"
done

# Root is needed only where the folders are root's.
for folder in "$destdir$prefix" "$destdir/etc"; do
    while [[ ! -e $folder ]]; do folder=$(dirname "$folder"); done
    [[ -w $folder ]] || fail "$folder cannot be written: run as root, or set DESTDIR"
done

put() { install -D -C -m "$1" -- "$2" "$destdir$3"; }
# Configuration belongs to the operator once it is there.
put_once() { [[ -e $destdir$3 ]] || put "$@"; }

for program in tickcast tickcast-c10k; do
    put 755 "$from/$program" "$prefix/bin/$program"
done
tuning=$prefix/lib/tickcast/tuning
put 755 tuning/tickcast-tune "$tuning/tickcast-tune"
for file in tuning/tune-items.sh tuning/README.md tuning/*.conf; do
    put 644 "$file" "$prefix/lib/tickcast/$file"
done
for file in tickcast-dashboard.json tickcast-alerts.yml; do
    put 644 "systemd/$file" "$prefix/lib/tickcast/monitoring/$file"
done
install -d -m 755 "$destdir$prefix/sbin"
ln -sfn ../lib/tickcast/tuning/tickcast-tune "$destdir$prefix/sbin/tickcast-tune"
put_once 644 systemd/tickcast-tune.default /etc/default/tickcast-tune
put_once 644 systemd/tickcast.toml /etc/tickcast/tickcast.toml

units=$(mktemp -d)
trap 'rm -rf -- "$units"' EXIT
for unit in tickcast.service tickcast.socket tickcast-http.socket tickcast-tune.service; do
    sed -E "s,/usr/(s?bin)/,$prefix/\1/,g" "systemd/$unit" >"$units/$unit"
    put 644 "$units/$unit" "/etc/systemd/system/$unit"
done
if [[ -z $destdir && -d /run/systemd/system ]]; then
    systemctl daemon-reload
fi

echo "installed below ${destdir}$prefix and ${destdir}/etc"
[[ -n $destdir ]] || cat <<TEXT
next: \$EDITOR /etc/tickcast/tickcast.toml          every option with its default
      tickcast-tune check                          what of this machine is worth setting
      systemctl enable --now tickcast-tune         set it, now and at every start
      systemctl enable --now tickcast
TEXT
