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
# For size, beside what profile.image says: C as small as it gets, without tables to unwind it, of which only the
# functions that are used are linked; and a position-independent program's relocations packed, where the linker can.
export CFLAGS="${CFLAGS:--Os -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables}"
export RUSTFLAGS="${RUSTFLAGS:--C link-arg=-Wl,-z,pack-relative-relocs}"
# What SQLite's crate switches on and nothing here uses: indexes of texts and of places, and the like.
export LIBSQLITE3_FLAGS="${LIBSQLITE3_FLAGS:--USQLITE_ENABLE_FTS3 -USQLITE_ENABLE_FTS3_PARENTHESIS -USQLITE_ENABLE_FTS5 -USQLITE_ENABLE_RTREE -USQLITE_ENABLE_DBSTAT_VTAB}"
exec cargo build --profile image --locked --target "$target" --workspace --exclude lambda-architecture --bins
