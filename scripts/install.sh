#!/usr/bin/env bash
# Installs the binaries, man pages, completions, the tuning, the units and the configuration: scripts/install.sh
# [--from FOLDER], the folder with the built binaries, target/release unless said otherwise.
#
# DESTDIR=DIR puts everything below DIR instead (packages, tests), PREFIX=/usr/local says where the programs go. What is
# there is replaced, configuration never. It starts nothing; scripts/uninstall.sh takes all of it away again.
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=SCRIPTDIR/installation.sh
source scripts/installation.sh

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
            usage
            exit 0
            ;;
        *) fail "no option $1; there is --from FOLDER" ;;
    esac
done

# Of two installations nobody would know which one serves: these units go before the package's.
package=/usr/lib/systemd/system/tickcast.service
[[ -n $destdir || ! -e $package ]] || fail "the package is installed ($package): dpkg --remove tickcast, or an upgrade of it"
for program in "${programs[@]}"; do
    [[ -x $from/$program ]] || fail "$from/$program is not there: cargo build --release, or --from FOLDER"
done

# Root is needed only where the folders are root's.
for folder in "$destdir$prefix" "$destdir/etc"; do
    while [[ ! -e $folder ]]; do folder=$(dirname "$folder"); done
    [[ -w $folder ]] || fail "$folder cannot be written: run as root, or set DESTDIR"
done

# What the programs say of themselves, first of all: one that does not run here is not installed.
made=$(mktemp -d)
trap 'rm -rf -- "$made"' EXIT
for program in "${programs[@]}"; do
    "$from/$program" man --out "$made/man" || fail "$from/$program cannot be run here"
done
gzip -9n "$made"/man/*
for shell in "${!completions[@]}"; do
    "$from/tickcast" completions "$shell" >"$made/$shell"
done

was_there=no
[[ ! -e $destdir$prefix/bin/tickcast ]] || was_there=yes

put() { install -D -C -m "$1" -- "$2" "$destdir$3"; }
# Configuration belongs to the operator once it is there.
put_once() { [[ -e $destdir$3 ]] || put "$@"; }

for program in "${programs[@]}"; do
    put 755 "$from/$program" "$prefix/bin/$program"
done
for page in "$made"/man/*; do
    put 644 "$page" "$man/man1/$(basename "$page")"
done
gzip -9n <tuning/tickcast-tune.8 >"$made/page"
put 644 "$made/page" "$man/man8/tickcast-tune.8.gz"
for shell in "${!completions[@]}"; do
    put 644 "$made/$shell" "${completions[$shell]}"
done
put 755 tuning/tickcast-tune "$tuning/tickcast-tune"
for file in tuning/tune-items.sh tuning/README.md tuning/*.conf; do
    put 644 "$file" "$tuning/$(basename "$file")"
done
for file in tickcast-dashboard.json tickcast-alerts.yml; do
    put 644 "systemd/$file" "$monitoring/$file"
done
install -d -m 755 "$destdir${tool%/*}"
ln -sfn ../lib/tickcast/tuning/tickcast-tune "$destdir$tool"
put_once 644 systemd/tickcast-tune.default /etc/default/tickcast-tune
put_once 644 systemd/tickcast.toml /etc/tickcast/tickcast.toml

for unit in "${units[@]}"; do
    sed -E "s,/usr/(s?bin)/,$prefix/\1/,g" "systemd/$unit" >"$made/$unit"
    put 644 "$made/$unit" "$units_folder/$unit"
done
if [[ -z $destdir && -d /run/systemd/system ]]; then
    systemctl daemon-reload
fi

echo "installed below ${destdir}$prefix and ${destdir}/etc"
[[ -z $destdir ]] || exit 0
if [[ $was_there == yes ]]; then
    cat <<TEXT
next: tickcast serve --config /etc/tickcast/tickcast.toml --check-config     whether this version takes the configuration
      systemctl restart tickcast                   what runs is still the version before
TEXT
    exit 0
fi
cat <<TEXT
next: \$EDITOR /etc/tickcast/tickcast.toml          every option with its default
      tickcast check                               whether it can serve here, and what is worth setting
      systemctl enable --now tickcast-tune         set it, now and at every start
      systemctl enable --now tickcast
TEXT
