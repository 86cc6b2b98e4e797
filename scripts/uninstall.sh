#!/usr/bin/env bash
# Removes what scripts/install.sh installed. Stops the services first and reverts the host settings.
#
#   scripts/uninstall.sh [--purge]
#
#   --purge   also remove the configuration and the state of tickcast-tune
#
# Set DESTDIR and PREFIX as for scripts/install.sh. Missing files are ignored.
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
        *) fail "unknown option $1; see --help" ;;
    esac
    shift
done

files=("${programs[@]/#/$prefix/bin/}" "$tool" "$man/man8/tickcast-tune.8.gz" "${completions[@]}" "${units[@]/#/$units_folder/}")
# One man page per subcommand, including those of earlier versions.
for page in "$destdir$man"/man1/tickcast.1.gz "$destdir$man"/man1/tickcast-*.1.gz; do
    files+=("${page#"$destdir"}")
done
[[ $purge == no ]] || files+=(/etc/default/tickcast-tune)
folders=("$tuning" "$monitoring")
[[ $purge == no ]] || folders+=(/etc/tickcast)

# Root is needed only if root owns the directories.
for path in "${files[@]}" "${folders[@]}"; do
    path=$destdir$path
    [[ ! -e $path && ! -L $path ]] || [[ -w ${path%/*} ]] || fail "${path%/*} is not writable: run as root"
done

if [[ -z $destdir ]]; then
    if [[ -d /run/systemd/system ]]; then
        for unit in "${units[@]}"; do
            [[ ! -e $units_folder/$unit ]] || systemctl disable --now "$unit"
        done
    fi
    # Revert settings that were applied on the command line while the tool still exists.
    if [[ -e /var/lib/tickcast/tune.saved && -x $tool ]]; then
        "$tool" revert || fail "the host settings could not be reverted: nothing was removed"
    fi
fi

for path in "${files[@]}"; do
    rm -f -- "$destdir$path"
done
for path in "${folders[@]}"; do
    # PREFIX is validated, so the path cannot be / even if DESTDIR is empty.
    rm -rf -- "$destdir${path:?}"
done
if [[ $purge == yes ]]; then
    saved=$destdir/var/lib/tickcast/tune.saved
    rm -f -- "$saved.earlier-boot" "$saved.partial"
    # It still exists only if tickcast-tune had already been removed.
    [[ ! -e $saved ]] || printf '%s: kept %s: it contains host settings that were not restored\n' "$script" "$saved" >&2
fi
# Remove these only if they are empty.
for path in "$prefix/lib/tickcast" /etc/tickcast /var/lib/tickcast; do
    rmdir -- "$destdir$path" 2>/dev/null || true
done
if [[ -z $destdir && -d /run/systemd/system ]]; then
    systemctl daemon-reload
fi
echo "removed from ${destdir}$prefix and ${destdir}/etc"
