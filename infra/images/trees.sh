#!/bin/sh
# trees.sh OUT: collects the files of each image from what build.sh built, in a folder named after the image: the
# program, the CA certificates and `/tmp`. The forwarder's folder also has the manifests of the arrows and functions.
set -eu
here="$(dirname "$0")"
# shellcheck source=infra/images/target.sh
. "$here/target.sh"
binaries="${CARGO_TARGET_DIR:-target}/$target/image" out="$1"
authorities=/etc/ssl/certs/ca-certificates.crt
[ -f "$authorities" ] || { echo "$authorities is missing: apt-get install ca-certificates" >&2; exit 69; }

tree() {
  rm -rf "${out:?}/$1"
  mkdir -p "$out/$1/etc/ssl/certs" "$out/$1/tmp"
  chmod 1777 "$out/$1/tmp"
  install -m 755 "$binaries/$1" "$out/$1/function"
  install -m 644 "$authorities" "$out/$1/etc/ssl/certs/"
}

for service in functions/*/service.yaml; do
  tree "$(basename "$(dirname "$service")")"
done
tree forwarder
etc="$out/forwarder/etc/lambda-architecture"
mkdir -p "$etc/eventing" "$etc/functions"
for service in functions/*/service.yaml; do
  install -m 644 "$service" "$etc/functions/$(basename "$(dirname "$service")").yaml"
done
for arrow in eventing/*.yaml; do
  # kustomization.yaml is not a manifest.
  [ "$(basename "$arrow")" = kustomization.yaml ] || install -m 644 "$arrow" "$etc/eventing/"
done
