#!/usr/bin/env bash
# images.sh build [NAME…]: an image of each function and of the forwarder, named $IMAGES/NAME:$TAG
# images.sh test: what Knative and OpenFaaS ask of a container, asked of the images' files on this machine
# Builds images from infra/Dockerfile with docker, podman or buildah. Without them, or with ENGINE=archive, compiles the
# binaries with cargo on the host and writes archives with this name to target/images (docs/deploy.md, Images). The
# images are for the host's platform or for PLATFORM (linux/amd64 or linux/arm64), which is cross-compiled on the host.
# IMAGES defaults to `lambda-architecture`, TAG to `latest`.
set -euo pipefail
cd "$(dirname "$0")/.."
names="${IMAGES:-lambda-architecture}"
tag="${TAG:-latest}"
[ -z "${PLATFORM:-}" ] || TARGETARCH="${PLATFORM#linux/}"
# shellcheck source=infra/images/target.sh
. infra/images/target.sh
# shellcheck source=infra/checks/report.sh
. infra/checks/report.sh
folder="$PWD/target/images${PLATFORM:+/$TARGETARCH}"
VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)"
REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)"
CREATED="$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ 2>/dev/null || echo 1970-01-01T00:00:00Z)"
export VERSION REVISION CREATED
# A separate target folder, so that this and other builds do not wait for each other's lock.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target/musl}"

usage() {
  sed -n '2,3s/^# //p' "$0" >&2
  exit 2
}

all() {
  for service in functions/*/service.yaml; do basename "$(dirname "$service")"; done
  echo forwarder
}

# Prints the first engine that works. podman and buildah must be able to pull the base image.
engine() {
  local base
  base="docker.io/library/rust:$(sed -n 's/^ARG RUST=//p' infra/Dockerfile)-bookworm"
  if docker info >/dev/null 2>&1; then
    echo docker
    return
  fi
  for engine in podman buildah; do
    if command -v "$engine" >/dev/null; then
      if "$engine" pull --quiet "$base" >/dev/null 2>&1; then
        echo "$engine"
        return
      fi
      echo "$engine is here, but cannot fetch $base" >&2
    fi
  done
  echo archive
}

trees() {
  infra/images/build.sh
  mkdir -p "$folder/trees"
  infra/images/trees.sh "$folder/trees"
}

with_dockerfile() {
  local engine="$1" name="$2" command=(build)
  # shellcheck disable=SC2054 # a platform is one word, comma or not
  [ "$engine" != docker ] || [ -z "${PLATFORM:-}" ] || command=(buildx build --load)
  [ -z "${PLATFORM:-}" ] || command+=(--platform "$PLATFORM")
  # BuildKit sets BUILDPLATFORM and caches layers by default; the other engines need options for both.
  export DOCKER_BUILDKIT=1
  [ "$engine" = docker ] || command+=(--layers --build-arg "BUILDPLATFORM=linux/$BUILDARCH")
  "$engine" "${command[@]}" --file infra/Dockerfile --tag "$names/$name:$tag" --build-arg "FUNCTION=$name" \
    --build-arg "VERSION=$VERSION" --build-arg "REVISION=$REVISION" --build-arg "CREATED=$CREATED" .
}

megabytes() { awk -v bytes="$1" 'BEGIN { printf "%.1f MB", bytes / 1e6 }'; }

size() {
  case "$1" in
    docker | podman) megabytes "$("$1" image inspect --format '{{.Size}}' "$names/$2:$tag")" ;;
    buildah) buildah images --format '{{.Size}}' "$names/$2:$tag" ;;
    archive)
      printf '%s, packed %s in %s' "$(megabytes "$(du -sb --apparent-size "$folder/trees/$2" | cut -f1)")" \
        "$(megabytes "$(stat -c %s "$folder/$2.tar")")" "${folder#"$PWD/"}/$2.tar"
      ;;
  esac
}

build() {
  local engine="${ENGINE:-}" wanted=("$@") known
  known="$(all | paste -sd' ')"
  [ -n "$engine" ] || engine="$(engine)"
  [ $# -gt 0 ] || mapfile -t wanted < <(all)
  echo "images by $engine"
  [ "$engine" != archive ] || trees
  for name in "${wanted[@]}"; do
    [[ " $known " == *" $name "* ]] || { echo "there is no image $name; there are $known" >&2; exit 2; }
    if [ "$engine" = archive ]; then
      infra/images/archive.sh "$name" "$folder/trees/$name" "$folder/$name.tar" "$names/$name:$tag"
    else
      with_dockerfile "$engine" "$name"
    fi
    printf '%-10s %s\n' "$name" "$(size "$engine" "$name")"
  done
  [ "$engine" != archive ] || hint
}

hint() {
  local first="${folder#"$PWD/"}/ingest.tar"
  echo "into kind: kind load image-archive $first; into a registry: skopeo copy docker-archive:$first docker://$names/ingest:$tag"
  command -v skopeo >/dev/null || echo "skopeo is a package of Debian: apt-get install skopeo"
}

check() {
  local status=0
  # A separate process, because `set -e` has no effect in a function called on the left of `||`.
  ENGINE=archive infra/images.sh build || status=$?
  if [ "$status" = 69 ]; then
    missing debian "the images' binaries cannot be built here"
    # The missing packages are in Debian, so CI could have installed them.
    [ "${CI:-}" != true ] || exit 1
    return
  fi
  [ "$status" = 0 ] || exit "$status"
  # The test is a host binary, so it is not built in the target folder of the static binaries.
  IMAGES="$folder/trees" CARGO_TARGET_DIR="$PWD/target" cargo test --locked --workspace --test container -- --nocapture
}

verb="${1:-build}"
[ $# = 0 ] || shift
case "$verb" in
  build) build "$@" ;;
  test) check ;;
  *) usage ;;
esac
