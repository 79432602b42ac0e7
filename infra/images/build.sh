#!/bin/sh
# build.sh: the static binaries of all images for TARGETARCH, in $CARGO_TARGET_DIR. One build for all, so that what they
# share is compiled once.
set -eu
here="$(dirname "$0")"
# shellcheck source=infra/images/target.sh
. "$here/target.sh"
if ! rustup target list --installed | grep -qx "$target" && ! rustup target add "$target"; then
  echo "the Rust target $target is not to be had here: rustup target add $target" >&2
  exit 69
fi
if ! command -v "$compiler" >/dev/null; then
  echo "$compiler is missing, which compiles the C libraries; on Debian, as root: TARGETARCH=$TARGETARCH infra/images/tools.sh" >&2
  exit 69
fi
# Not every C library asks for a compiler by the target; what runs while they are built is this machine's.
export CC="$compiler" HOST_CC="${HOST_CC:-cc}"
# Atomics out of line would ask glibc what the processor can.
[ "$machine" != aarch64 ] || export CC="$compiler -mno-outline-atomics"
[ "$TARGETARCH" = "$BUILDARCH" ] || export CXX="$machine-linux-gnu-g++"
# For size, beside what profile.image says: C as small as it gets, without tables to unwind it, of which only the
# functions that are used are linked; and the relocations of a position-independent program packed, which Rust's own
# linker can for each machine.
export CFLAGS="${CFLAGS:--Os -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables}"
export RUSTFLAGS="${RUSTFLAGS:--C linker=rust-lld -C link-arg=--pack-dyn-relocs=relr}"
# What SQLite's crate switches on and nothing here uses: indexes of texts and of places, and the like.
export LIBSQLITE3_FLAGS="${LIBSQLITE3_FLAGS:--USQLITE_ENABLE_FTS3 -USQLITE_ENABLE_FTS3_PARENTHESIS -USQLITE_ENABLE_FTS5 -USQLITE_ENABLE_RTREE -USQLITE_ENABLE_DBSTAT_VTAB}"
exec cargo build --profile image --locked --target "$target" --workspace --exclude lambda-architecture --bins
