#!/bin/sh
# Sets up a Debian 12 machine for Lode, and more on request. Needs rustup's toolchain, git, and root where packages are missing.
#
#   ./setup.sh          install what is missing
#   ./setup.sh train    … then build, train models/strata on the King James Bible and print a sample
#   ./setup.sh test     … then run every test
#
# Running it again changes nothing. Without a network it works if everything is there already.
set -eu
cd "$(dirname "$0")"

packages="llvm-22-dev libmlir-22-dev mlir-22-tools libpolly-22-dev libclang-22-dev clang-22 libzstd-dev zlib1g-dev g++ bible-kjv bible-kjv-text"

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

missing() {
  for p in $packages; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || printf '%s ' "$p"
  done
}

install() {
  command -v cargo >/dev/null || fail "no cargo: install Rust from https://rustup.rs first"
  command -v dpkg-query >/dev/null || fail "this is not Debian; install by hand: $packages"
  needed=$(missing)
  if [ -n "$needed" ]; then
    say "installing $needed"
    [ "$(id -u)" = 0 ] || fail "root is needed to install: $needed"
    apt-get update -qq || say "package lists could not be refreshed; going on with the old ones"
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $needed >/dev/null ||
      fail "apt-get could not install: $needed"
  fi
  version=$(/usr/lib/llvm-22/bin/llvm-config --version) || fail "LLVM 22 is not in /usr/lib/llvm-22"
  case $version in
    22.*) ;;
    *) fail "LLVM $version found, 22 needed" ;;
  esac
}

# The text of the King James Bible, one file, written once.
text() {
  [ -s build/kjv.txt ] && return
  mkdir -p build
  command -v bible >/dev/null || fail "the package bible-kjv is missing"
  bible -f Gen1:1-Rev22:21 2>/dev/null > build/kjv.txt.new || fail "the text could not be read"
  mv build/kjv.txt.new build/kjv.txt
}

case ${1:-} in
  "") install ;;
  train)
    install
    text
    say "building (the first time takes some minutes)"
    cargo build --release --quiet
    # A run that was interrupted goes on where it stopped.
    resume=
    ls build/strata/step-*.safetensors >/dev/null 2>&1 && resume=--resume
    # shellcheck disable=SC2086
    exec target/release/lode train models/strata/model.lode --data build/kjv.txt --out build/strata $resume
    ;;
  test)
    # The pages of `lode viz` are looked at in a browser.
    packages="$packages chromium"
    install
    if cargo nextest --version >/dev/null 2>&1; then
      exec cargo nextest run --workspace --no-fail-fast
    fi
    exec cargo test --workspace --no-fail-fast
    ;;
  *) fail "unknown: $1 (train or test)" ;;
esac
