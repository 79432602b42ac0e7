#!/bin/sh
# tools.sh: installs what build.sh needs to build for TARGETARCH, on Debian and as root.
set -eu
here="$(dirname "$0")"
# shellcheck source=infra/images/target.sh
. "$here/target.sh"
set -- ca-certificates "musl-dev:$TARGETARCH"
if [ "$TARGETARCH" != "$BUILDARCH" ]; then
  dpkg --add-architecture "$TARGETARCH"
  set -- "$@" "crossbuild-essential-$TARGETARCH"
fi
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
rustup target add "$target"
