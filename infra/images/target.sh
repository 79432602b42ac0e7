# shellcheck shell=sh disable=SC2034
# target.sh, to be sourced: sets BUILDARCH to the host's architecture and TARGETARCH to that of the images (the host's
# unless it is set), both as Docker names them, `target` to the Rust target of TARGETARCH, and `compiler` to its C
# compiler.
case "$(uname -m)" in
  x86_64) BUILDARCH=amd64 ;;
  aarch64 | arm64) BUILDARCH=arm64 ;;
  *) BUILDARCH="$(uname -m)" ;;
esac
TARGETARCH="${TARGETARCH:-$BUILDARCH}"
case "$TARGETARCH" in
  amd64) machine=x86_64 ;;
  arm64) machine=aarch64 ;;
  *)
    echo "there are images for amd64 and arm64, none for $TARGETARCH" >&2
    exit 69
    ;;
esac
export TARGETARCH
target="$machine-unknown-linux-musl"
compiler="$machine-linux-musl-gcc"
