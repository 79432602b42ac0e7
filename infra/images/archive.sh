#!/usr/bin/env bash
# archive.sh NAME TREE OUT.tar REFERENCE: writes an image of the files in TREE, as an archive that docker, podman,
# containerd, kind and skopeo load as REFERENCE: an OCI layout plus the manifest.json of a docker archive.
# Reads the image's configuration (user, environment, entry point, labels) from the Dockerfile's last stage. The same
# tree gives the same bytes. The labels contain VERSION, REVISION and CREATED; TARGETARCH is the image's architecture.
set -euo pipefail
name="$1" tree="$2" out="$3" reference="$4"
# Fully qualified, as containerd stores it: a name without a registry refers to docker.io.
case "${reference%%/*}" in *.* | *:* | localhost) ;; *) reference="docker.io/$reference" ;; esac
here="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
blobs="$work/image/blobs/sha256"
mkdir -p "$blobs"

# Prints the values of an instruction of the last stage, one per line, with the build arguments substituted.
instruction() {
  sed -n '/^FROM scratch/,$p' "$here/../Dockerfile" | sed -n "s/^$1 //p" |
    sed -e "s|\${FUNCTION}|$name|g" -e "s|\${VERSION}|$VERSION|g" -e "s|\${REVISION}|$REVISION|g" -e "s|\${CREATED}|$CREATED|g"
}

# Joins lines as the items of a JSON list or object.
items() { paste -sd, -; }

digest() { sha256sum "$1" | cut -d' ' -f1; }

# Moves a file to the blobs and prints its descriptor, without the closing brace.
blob() {
  local file="$1" type="$2" digest size
  digest="$(digest "$file")"
  size="$(stat -c %s "$file")"
  mv "$file" "$blobs/$digest"
  printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s' "$type" "$digest" "$size"
}

tar --sort=name --mtime="$CREATED" --owner=0 --group=0 --numeric-owner --format=gnu -C "$tree" -cf "$work/layer" .
content="$(digest "$work/layer")"
gzip -9 --no-name "$work/layer"
layer="$(blob "$work/layer.gz" layer.v1.tar+gzip)}"

cat >"$work/config" <<CONFIG
{"created":"$CREATED","architecture":"$TARGETARCH","os":"linux","config":{"User":"$(instruction USER)",
"ExposedPorts":{$(instruction EXPOSE | sed 's|.*|"&/tcp":{}|' | items)},
"Env":[$(instruction ENV | sed 's|.*|"&"|' | items)],
"Entrypoint":$(instruction ENTRYPOINT),
"Labels":{$(instruction LABEL | sed 's|^\([^=]*\)=|"\1":|' | items)}},
"rootfs":{"type":"layers","diff_ids":["sha256:$content"]},
"history":[{"created":"$CREATED","created_by":"infra/images/archive.sh"}]}
CONFIG
config="$(blob "$work/config" config.v1+json)}"

printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
  "$config" "$layer" >"$work/manifest"
manifest="$(blob "$work/manifest" manifest.v1+json)"
# containerd reads the first annotation, other tools the second.
annotations="\"annotations\":{\"io.containerd.image.name\":\"$reference\",\"org.opencontainers.image.ref.name\":\"$reference\"}"
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s,"platform":{"architecture":"%s","os":"linux"},%s}]}' \
  "$manifest" "$TARGETARCH" "$annotations" >"$work/image/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci-layout"
path() { sed -E 's|.*"digest":"sha256:([0-9a-f]+)".*|blobs/sha256/\1|' <<<"$1"; }
printf '[{"Config":"%s","RepoTags":["%s"],"Layers":["%s"]}]' "$(path "$config")" "$reference" "$(path "$layer")" \
  >"$work/image/manifest.json"
tar --sort=name --mtime="$CREATED" --owner=0 --group=0 --numeric-owner --format=gnu -C "$work/image" -cf "$out" .
