#!/usr/bin/env bash
# Takes away what scripts/install.sh installed: scripts/uninstall.sh [--purge]. Stops the services first, and puts the
# machine's settings back. Configuration stays unless --purge is given, and so does what tickcast-tune kept.
#
# DESTDIR and PREFIX as for scripts/install.sh. What is not there is not missed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=SCRIPTDIR/installation.sh
source scripts/installation.sh

purge=no
while (($# > 0)); do
    case $1 in
        --purge) purge=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "no option $1; there is --purge" ;;
    esac
    shift
done

files=("${programs[@]/#/$prefix/bin/}" "$tool" "$man/man8/tickcast-tune.8.gz" "${completions[@]}" "${units[@]/#/$units_folder/}")
# A page for each subcommand that there was.
for page in "$destdir$man"/man1/tickcast.1.gz "$destdir$man"/man1/tickcast-*.1.gz; do
    files+=("${page#"$destdir"}")
done
[[ $purge == no ]] || files+=(/etc/default/tickcast-tune)
folders=("$tuning" "$monitoring")
[[ $purge == no ]] || folders+=(/etc/tickcast)

# Root is needed only where the folders are root's.
for path in "${files[@]}" "${folders[@]}"; do
    path=$destdir$path
    [[ ! -e $path && ! -L $path ]] || [[ -w ${path%/*} ]] || fail "${path%/*} cannot be written: run as root"
done

if [[ -z $destdir ]]; then
    if [[ -d /run/systemd/system ]]; then
        for unit in "${units[@]}"; do
            [[ ! -e $units_folder/$unit ]] || systemctl disable --now "$unit"
        done
    fi
    # Settings that were applied by hand: without the tool nobody could put them back.
    if [[ -e /var/lib/tickcast/tune.saved && -x $tool ]]; then
        "$tool" revert || fail "the tuning could not be put back: nothing was removed"
    fi
fi

for path in "${files[@]}"; do
    rm -f -- "$destdir$path"
done
for path in "${folders[@]}"; do
    # PREFIX is checked: the path has names in it even where DESTDIR is empty.
    rm -rf -- "$destdir${path:?}"
done
if [[ $purge == yes ]]; then
    saved=$destdir/var/lib/tickcast/tune.saved
    rm -f -- "$saved.earlier-boot" "$saved.partial"
    # Only where the tool was gone already.
    [[ ! -e $saved ]] || printf '%s: %s stays: it has the settings that were not put back\n' "$script" "$saved" >&2
fi
# Only where nothing else is in them.
for path in "$prefix/lib/tickcast" /etc/tickcast /var/lib/tickcast; do
    rmdir -- "$destdir$path" 2>/dev/null || true
done
if [[ -z $destdir && -d /run/systemd/system ]]; then
    systemctl daemon-reload
fi
echo "removed from ${destdir}$prefix and ${destdir}/etc"
