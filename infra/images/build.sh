#!/bin/sh
# build.sh: builds the static binaries of all images for TARGETARCH in $CARGO_TARGET_DIR. One build for all images, so
# that shared dependencies are compiled once.
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
# Some C libraries ignore the compiler variables of the target, so CC is set. Programs that run during the build are
# compiled for the host.
export CC="$compiler" HOST_CC="${HOST_CC:-cc}"
# Out-of-line atomics query glibc for the processor's features.
[ "$machine" != aarch64 ] || export CC="$compiler -mno-outline-atomics"
[ "$TARGETARCH" = "$BUILDARCH" ] || export CXX="$machine-linux-gnu-g++"
# Reduces the size beyond profile.image: optimises C for size, without unwind tables, and with one section per function
# so that unused functions are not linked; packs the relocations of position-independent programs, which rust-lld
# supports for both architectures.
export CFLAGS="${CFLAGS:--Os -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables}"
export RUSTFLAGS="${RUSTFLAGS:--C linker=rust-lld -C link-arg=--pack-dyn-relocs=relr}"
# Switches off unused SQLite features that its crate enables, such as full-text and spatial indexes.
export LIBSQLITE3_FLAGS="${LIBSQLITE3_FLAGS:--USQLITE_ENABLE_FTS3 -USQLITE_ENABLE_FTS3_PARENTHESIS -USQLITE_ENABLE_FTS5 -USQLITE_ENABLE_RTREE -USQLITE_ENABLE_DBSTAT_VTAB}"
exec cargo build --profile image --locked --target "$target" --workspace --exclude lambda-architecture --bins
