# shellcheck shell=sh disable=SC2034
# target.sh, to be sourced: the machine that images are for, in TARGETARCH as Docker names it (this one unless it is
# set), its Rust target in `target`, and in `compiler` what compiles C for it.
case "${TARGETARCH:-$(uname -m)}" in
  amd64 | x86_64) TARGETARCH=amd64 machine=x86_64 ;;
  arm64 | aarch64) TARGETARCH=arm64 machine=aarch64 ;;
  *)
    echo "there are images for amd64 and arm64, none for ${TARGETARCH:-$(uname -m)}" >&2
    exit 69
    ;;
esac
export TARGETARCH
target="$machine-unknown-linux-musl"
compiler="$machine-linux-musl-gcc"
