#!/bin/sh
# build.sh: the static binaries of all images for the machine that it runs on, in $CARGO_TARGET_DIR. One build for all,
# so that what they share is compiled once. Needs the musl target of rustup and Debian's musl-tools.
set -eu
target="$(uname -m)-unknown-linux-musl"
if ! rustup target list --installed | grep -qx "$target" && ! rustup target add "$target"; then
  echo "the Rust target $target is not to be had here: rustup target add $target" >&2
  exit 69
fi
if ! command -v musl-gcc >/dev/null; then
  echo "musl-gcc is missing, which compiles the C libraries: apt-get install musl-tools" >&2
  exit 69
fi
exec cargo build --profile image --locked --target "$target" --workspace --exclude lambda-architecture --bins
