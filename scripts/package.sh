#!/usr/bin/env bash
# Builds the Debian package and prints where it is: scripts/package.sh [--no-build] [--profile release|dev].
#
#   --no-build       take the binaries as they are there
#   --profile dev    of the binaries that the tests use, compressed quickly: to try the packaging out, not to be installed
#
# It lies in target/debian (of the profile dev in target/debian-dev), or below CARGO_TARGET_DIR, and with it a package of
# debug symbols. cargo-deb is installed below the same folder if it is missing. scripts/try-package.sh tries the package out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*" >&2; }
fail() {
    printf 'scripts/package.sh: %s\n' "$*" >&2
    exit 1
}

build=yes profile=release
while (($# > 0)); do
    case $1 in
        --no-build) build=no ;;
        --profile)
            profile=${2:-}
            [[ $profile =~ ^(release|dev)$ ]] || fail "--profile is release or dev"
            shift
            ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' scripts/package.sh
            exit 0
            ;;
        *) fail "no option $1; there are --no-build and --profile release|dev" ;;
    esac
    shift
done

# One version, so that the same commit makes the same package.
cargo_deb_version=3.8.0
# Seconds that its installation may take: it took 55 on two cores.
install_s_max=900

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
case $profile in
    release) built=$target/release out=$target/debian options=(--dbgsym) ;;
    dev) built=$target/debug out=$target/debian-dev options=(--no-dbgsym --strip --fast) ;;
esac

command -v cargo >/dev/null || fail "cargo is not here: install Rust 1.90 or later (rustup)"
command -v dpkg-shlibdeps >/dev/null || fail "dpkg-shlibdeps is not here: apt-get install dpkg-dev"
command -v objcopy >/dev/null || fail "objcopy is not here: apt-get install binutils"

# The one that is there is taken if it is of that version; otherwise one of our own, which is in nobody's way.
tools=$target/tools
cargo_deb=cargo-deb
is_it() { [[ $("$1" --version 2>/dev/null) == "cargo-deb $cargo_deb_version" ]]; }
if ! is_it "$cargo_deb"; then
    cargo_deb=$tools/bin/cargo-deb
    if ! is_it "$cargo_deb"; then
        say "installing cargo-deb $cargo_deb_version into $tools"
        CARGO_TARGET_DIR=$tools/build timeout "$install_s_max" \
            cargo install --locked --quiet --force --root "$tools" "cargo-deb@=$cargo_deb_version" ||
            fail "cargo-deb cannot be installed: the reason is above, or it took more than $install_s_max s"
        rm -rf -- "$tools/build"
    fi
fi

if [[ $build == yes ]]; then
    say "cargo build --profile $profile"
    cargo build --locked --profile "$profile" --bin tickcast --bin tickcast-c10k
fi
for program in tickcast tickcast-c10k; do
    [[ -x $built/$program ]] || fail "$built/$program is not there: leave out --no-build"
done

# A target folder of its own with all that the assets name as target/release/: the binaries and what is made of them. So
# the profile makes no difference to cargo-deb, which also clears target/debian of what it did not make. (target/package is
# where cargo package works.)
stage=$target/deb-stage.$profile
rm -rf -- "$stage"
made=$stage/release/made
mkdir -p "$made/completions" "$out"
ln -- "$built/tickcast" "$built/tickcast-c10k" "$stage/release/"
for program in tickcast tickcast-c10k; do
    "$built/$program" man --out "$made/man"
done
gzip -9n "$made"/man/*
# Packages have to have one. The commit's date, so that the same commit makes the same package.
seconds=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
version=$("$built/tickcast" --version)
gzip -9n >"$made/changelog.Debian.gz" <<TEXT
tickcast (${version#tickcast }-1) unstable; urgency=medium

  * ${version}: README.md has what it does.

 -- $(sed -n 's/^maintainer = "\(.*\)"$/\1/p' Cargo.toml)  $(LC_ALL=C date -u -R -d "@$seconds")
TEXT
for shell in bash zsh fish; do
    "$built/tickcast" completions "$shell" >"$made/completions/tickcast.$shell"
done

say "cargo-deb"
rm -f -- "$out"/tickcast_*.deb "$out"/tickcast-dbgsym_*.ddeb
SOURCE_DATE_EPOCH=$seconds CARGO_TARGET_DIR=$stage "$cargo_deb" --locked --no-build "${options[@]}" --output "$out" >&2
rm -rf -- "$stage"
ls -- "$out"/tickcast_*.deb
