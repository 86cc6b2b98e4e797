#!/usr/bin/env bash
# Builds the Debian package and a package of debug symbols, and prints the path of the first.
#
#   scripts/package.sh [--no-build] [--profile release|dev]
#   scripts/package.sh --tool
#
#   --no-build          use the existing binaries
#   --tool              only install cargo-deb, if it is missing
#   --profile PROFILE   release, or dev to test the packaging: it uses the binaries of the tests, compresses quickly and builds no
#                       debug symbols [default: release]
#
# The output directory is target/debian, for dev target/debian-dev; CARGO_TARGET_DIR replaces target. If cargo-deb is missing, it is
# installed there too. scripts/try-package.sh tests the package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*" >&2; }
fail() {
    printf 'scripts/package.sh: %s\n' "$*" >&2
    exit 1
}

build=yes profile=release tool_only=no
while (($# > 0)); do
    case $1 in
        --no-build) build=no ;;
        --tool) tool_only=yes ;;
        --profile)
            profile=${2:-}
            [[ $profile =~ ^(release|dev)$ ]] || fail "--profile must be release or dev"
            shift
            ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' scripts/package.sh
            exit 0
            ;;
        *) fail "unknown option $1; see --help" ;;
    esac
    shift
done

# Pinned, so that a commit always produces the same package.
cargo_deb_version=3.8.0
# Timeout of its installation in seconds; it took 55 s on two cores.
install_s_max=900

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
case $profile in
    release) built=$target/release out=$target/debian options=(--dbgsym) ;;
    dev) built=$target/debug out=$target/debian-dev options=(--no-dbgsym --strip --fast) ;;
esac

command -v cargo >/dev/null || fail "cargo not found: install Rust 1.90 or later with rustup"
command -v dpkg-shlibdeps >/dev/null || fail "dpkg-shlibdeps not found: apt-get install dpkg-dev"
command -v objcopy >/dev/null || fail "objcopy not found: apt-get install binutils"

# Use an installed cargo-deb of this version, or else a private copy.
tools=$target/tools
cargo_deb=cargo-deb
has_pinned_version() { [[ $("$1" --version 2>/dev/null) == "cargo-deb $cargo_deb_version" ]]; }
if ! has_pinned_version "$cargo_deb"; then
    cargo_deb=$tools/bin/cargo-deb
    if ! has_pinned_version "$cargo_deb"; then
        say "installing cargo-deb $cargo_deb_version into $tools"
        CARGO_TARGET_DIR=$tools/build timeout "$install_s_max" \
            cargo install --locked --quiet --force --root "$tools" "cargo-deb@=$cargo_deb_version" ||
            fail "cargo-deb was not installed: see the error above, or it took longer than $install_s_max s"
        rm -rf -- "$tools/build"
    fi
fi
[[ $tool_only == no ]] || exit 0

if [[ $build == yes ]]; then
    say "cargo build --profile $profile"
    # With librdkafka: it needs g++, make, pkg-config and libssl-dev.
    cargo build --locked --profile "$profile" --features kafka --bin tickcast --bin tickcast-c10k
fi
for program in tickcast tickcast-c10k; do
    [[ -x $built/$program ]] || fail "$built/$program not found: run without --no-build"
done

# Stage everything that the assets in Cargo.toml refer to as target/release/ in a separate target folder: the binaries and the files
# generated from them. So cargo-deb need not know the profile, and does not delete foreign files in target/debian.
stage=$target/deb-stage.$profile
rm -rf -- "$stage"
made=$stage/release/made
mkdir -p "$made/completions" "$out"
ln -- "$built/tickcast" "$built/tickcast-c10k" "$stage/release/"
for program in tickcast tickcast-c10k; do
    "$built/$program" man --out "$made/man"
done
gzip -9n "$made"/man/*
# Debian requires a changelog. It has the date of the commit, so that a commit always produces the same package.
seconds=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
version=$("$built/tickcast" --version)
gzip -9n >"$made/changelog.Debian.gz" <<TEXT
tickcast (${version#tickcast }-1) unstable; urgency=medium

  * ${version}: see README.md.

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
