#!/usr/bin/env bash
# Builds the Debian package into target/debian: scripts/package.sh [--no-build]. --no-build takes the release binaries as
# they are there. Installs cargo-deb with cargo if it is missing. scripts/try-package.sh tries the package out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*" >&2; }
fail() {
    printf 'scripts/package.sh: %s\n' "$*" >&2
    exit 1
}

build=yes
while (($# > 0)); do
    case $1 in
        --no-build) build=no ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' scripts/package.sh
            exit 0
            ;;
        *) fail "no option $1; there is --no-build" ;;
    esac
    shift
done

cargo_deb=3.8
release=${CARGO_TARGET_DIR:-target}/release

command -v cargo >/dev/null || fail "cargo is not here: install Rust 1.90 or later (rustup)"
command -v dpkg-shlibdeps >/dev/null || fail "dpkg-shlibdeps is not here: apt-get install dpkg-dev"
if ! cargo deb --version >/dev/null 2>&1; then
    say "installing cargo-deb $cargo_deb"
    cargo install --locked "cargo-deb@~$cargo_deb"
fi

if [[ $build == yes ]]; then
    say "cargo build --release"
    cargo build --locked --release --bin tickcast --bin tickcast-c10k
fi
for program in tickcast tickcast-c10k; do
    [[ -x $release/$program ]] || fail "$release/$program is not there: leave out --no-build"
done

# What is made of the program, and the link from sbin to where the tool finds its files.
made=target/package
rm -rf -- "$made"
mkdir -p "$made/completions" "$made/sbin" "$made/lib/tickcast/tuning"
"$release/tickcast" man --out "$made/man"
for shell in bash zsh fish; do
    "$release/tickcast" completions "$shell" >"$made/completions/tickcast.$shell"
done
# The tool itself beside it, as a link to nothing would not be packed.
cp tuning/tickcast-tune "$made/lib/tickcast/tuning/"
ln -s ../lib/tickcast/tuning/tickcast-tune "$made/sbin/tickcast-tune"

say "cargo deb"
mkdir -p target/debian
cargo deb --locked --no-build --output target/debian
