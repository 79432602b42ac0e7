#!/usr/bin/env bash
# kind.sh [STEP…]: the whole system on a new kind cluster, as the workflow does it; without words all steps in their order:
#   cluster knative images up again burst down remove
# Needs kind, kubectl, docker and curl. `burst` posts USERS (500) users while function pods are killed, and wants each of
# them counted and stored exactly once.
set -euo pipefail
cd "$(dirname "$0")/.."
KUBERNETES="${KUBERNETES:-kindest/node:v1.34.0}" KNATIVE_RELEASE="${KNATIVE_RELEASE:-knative-v1.22.0}"
CLUSTER="${CLUSTER:-lambda}" USERS="${USERS:-500}" TIMEOUT="${TIMEOUT:-900}"
export TIMEOUT
# shellcheck source=infra/deploy/frame.sh
. infra/deploy/frame.sh
# shellcheck source=infra/deploy/preflight.sh
. infra/deploy/preflight.sh
# shellcheck source=infra/deploy/smoke.sh
. infra/deploy/smoke.sh

cluster() { kind create cluster --name "$CLUSTER" --image "$KUBERNETES" --wait 180s; }

knative() {
  local github=https://github.com file namespace
  for file in \
    knative/serving/releases/download/$KNATIVE_RELEASE/serving-crds.yaml \
    knative/serving/releases/download/$KNATIVE_RELEASE/serving-core.yaml \
    knative-extensions/net-kourier/releases/download/$KNATIVE_RELEASE/kourier.yaml \
    knative/eventing/releases/download/$KNATIVE_RELEASE/eventing-crds.yaml \
    knative/eventing/releases/download/$KNATIVE_RELEASE/eventing-core.yaml \
    knative-extensions/eventing-kafka-broker/releases/download/$KNATIVE_RELEASE/eventing-kafka-controller.yaml \
    knative-extensions/eventing-kafka-broker/releases/download/$KNATIVE_RELEASE/eventing-kafka-source.yaml \
    knative-extensions/eventing-kafka-broker/releases/download/$KNATIVE_RELEASE/eventing-kafka-sink.yaml; do
    kubectl apply -f "$github/$file"
    case "$file" in *-crds.yaml) kubectl wait crd --all --for=condition=Established --timeout="${TIMEOUT}s" ;; esac
  done
  for namespace in knative-serving kourier-system knative-eventing; do
    kubectl -n "$namespace" wait deployment --all --for=condition=Available --timeout="${TIMEOUT}s"
  done
  # After the deployments are available, because a webhook validates this change.
  kubectl patch configmap/config-network -n knative-serving --type merge \
    -p '{"data":{"ingress-class":"kourier.ingress.networking.knative.dev"}}'
}

images() {
  local name
  IMAGES=dev.local/lambda-architecture TAG=dev infra/images.sh build | tee "$work/images"
  for name in ingest count store batch analytics; do
    if grep -qx 'images by archive' "$work/images"; then
      kind load image-archive "target/images/$name.tar" --name "$CLUSTER"
    else
      kind load docker-image "dev.local/lambda-architecture/$name:dev" --name "$CLUSTER"
    fi
  done
}

up() { infra/deploy.sh knative up; }

# A second run must not change anything.
again() {
  infra/deploy.sh knative up | tee "$work/again"
  ! grep -E ' (configured|created)$' "$work/again" || die "the second run changed what is named above"
}

burst() {
  local namespace service url counted_before stored_before id until=$((SECONDS + TIMEOUT)) posting now stored
  read -r namespace service <<<"$(gateway)"
  forward_port "$namespace" "service/$service" 80 /
  url="http://127.0.0.1:$forwarded"
  export ANALYTICS_HOST=analytics.lambda.svc.cluster.local
  counted_before=$(counted "$url")
  stored_before=$(stored_by_batch)
  for id in $(seq "$USERS"); do
    printf '{"id":"%s","name":"Burst %s"}\0' "$(cat /proc/sys/kernel/random/uuid)" "$id"
  done >"$work/users"
  # Retries failed posts: the same user counts once.
  xargs -0 -a "$work/users" -P 16 -I '{}' curl -sS -f -o /dev/null -m 60 --retry 60 --retry-all-errors --retry-delay 1 \
    "$url/user" -H 'Host: ingest.lambda.svc.cluster.local' -H 'Content-Type: application/json' -d '{}' &
  posting=$!
  while kill -0 "$posting" 2>/dev/null && [ "$SECONDS" -lt "$until" ]; do
    kill_a_pod
    sleep 2
  done
  wait "$posting" || die "not all users were taken"
  echo "ingest took $USERS users"
  until now=$(counted "$url") && stored=$(stored_by_batch) &&
    [ "$now" = $((counted_before + USERS)) ] && [ "$stored" = $((stored_before + USERS)) ]; do
    [ "$SECONDS" -lt "$until" ] ||
      die "of $USERS users $((now - counted_before)) are counted and $((${stored:-0} - stored_before)) stored"
    sleep 1
  done
  echo "each of them is counted and stored once"
}

# kill_a_pod: kills a random pod of a function without a grace period.
kill_a_pod() {
  local pod
  pod=$(kubectl -n lambda get pods -l serving.knative.dev/service -o name | shuf -n 1)
  [ -z "$pod" ] || kubectl -n lambda delete "$pod" --grace-period=0 --force --wait=false 2>/dev/null || true
}

down() { DATA=delete infra/deploy.sh knative down; }

remove() { kind delete cluster --name "$CLUSTER"; }

[ $# -gt 0 ] || set -- cluster knative images up again burst down remove
for name in "$@"; do
  case "$name" in
    cluster | knative | images | up | again | burst | down | remove) step "$name" && "$name" ;;
    *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
  esac
done
