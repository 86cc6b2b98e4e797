#!/usr/bin/env bash
# Installs binaries, man pages, completions, tuning, units and configuration.
#
#   scripts/install.sh [--from FOLDER]
#
#   --from FOLDER   directory of the built binaries [default: target/release]
#
# PREFIX sets the installation prefix [default: /usr/local]. DESTDIR=DIR installs below DIR, for packages and tests. Existing files
# are replaced, except configuration. No service is started. scripts/uninstall.sh removes everything again.
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=SCRIPTDIR/installation.sh
source scripts/installation.sh

from=${CARGO_TARGET_DIR:-target}/release
while (($# > 0)); do
    case $1 in
        --from)
            [[ -n ${2:-} ]] || fail "--from requires a folder"
            from=$2
            [[ $from == /* ]] || from=$called_from/$from
            shift 2
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "unknown option $1; see --help" ;;
    esac
done

# Refuse to install beside the Debian package: these units would override the package's.
package=/usr/lib/systemd/system/tickcast.service
[[ -n $destdir || ! -e $package ]] ||
    fail "the Debian package is installed ($package): remove it first (dpkg --remove tickcast), or upgrade it instead"
for program in "${programs[@]}"; do
    [[ -x $from/$program ]] || fail "$from/$program not found: run cargo build --release, or use --from FOLDER"
done

# Root is needed only if root owns the directories.
for folder in "$destdir$prefix" "$destdir/etc"; do
    while [[ ! -e $folder ]]; do folder=$(dirname "$folder"); done
    [[ -w $folder ]] || fail "$folder is not writable: run as root, or set DESTDIR"
done

# Generate man pages and completions first: if a program does not run here, nothing is installed.
made=$(mktemp -d)
trap 'rm -rf -- "$made"' EXIT
for program in "${programs[@]}"; do
    "$from/$program" man --out "$made/man" || fail "$from/$program does not run on this machine"
done
gzip -9n "$made"/man/*
for shell in "${!completions[@]}"; do
    "$from/tickcast" completions "$shell" >"$made/$shell"
done

was_there=no
[[ ! -e $destdir$prefix/bin/tickcast ]] || was_there=yes

put() { install -D -C -m "$1" -- "$2" "$destdir$3"; }
# Existing configuration belongs to the operator.
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

echo "installed in ${destdir}$prefix and ${destdir}/etc"
[[ -z $destdir ]] || exit 0
if [[ $was_there == yes ]]; then
    cat <<TEXT
next: tickcast serve --config /etc/tickcast/tickcast.toml --check-config     check that this version accepts the configuration
      systemctl restart tickcast                   replace the running version
TEXT
    exit 0
fi
cat <<TEXT
next: \$EDITOR /etc/tickcast/tickcast.toml          edit the configuration; it lists every option with its default
      tickcast check                               check that this machine can run tickcast, and which settings to tune
      systemctl enable --now tickcast-tune         apply these settings now and at boot
      systemctl enable --now tickcast              start the server now and at boot
TEXT
