#!/usr/bin/env bash
# deploy.sh knative|openfaas up|down: brings the whole system to a cluster, or takes it away. Looks first, says plainly
# what is missing and the command that brings it, waits until all is ready, and posts a user. Twice changes nothing.
#
#   ENVIRONMENT  dev (one small server of each, the default), prod (replicated, by operators), or with openfaas: faasd
#   IMAGES, TAG  where the images are and which (IMAGES=registry.example.com/lambda-architecture TAG=1.2.3); OpenFaaS
#                pulls every image, so that IMAGES must be set there. A tag that was deployed is not deployed again.
#   ROUTES       gateway, nginx or none for the prefixes /ingress and /service-analytics (what the cluster has)
#   TIMEOUT      seconds that a step may wait (600)
#   CONFIG       with faasd: a file like infra/config/config.env with the servers' URLs
#   FORWARDER_URL  with faasd: where the forwarder answers (port 8085 of the gateway's host)
#   DATA=delete  with down: takes the servers, their data and the secrets of OpenFaaS away, too
set -euo pipefail
cd "$(dirname "$0")/.."
ENVIRONMENT="${ENVIRONMENT:-dev}" ROUTES="${ROUTES:-auto}" TIMEOUT="${TIMEOUT:-600}" DATA="${DATA:-keep}"
OPENFAAS_URL="${OPENFAAS_URL:-http://127.0.0.1:8080}"
IMAGES="${IMAGES:-}" TAG="${TAG:-latest}"
export IMAGES TAG
# The rendered compose file of the forwarder on faasd.
RENDERED="${RENDERED:-target/deploy/faasd.yaml}"
servers=(kafka mysql cassandra)
# shellcheck source=infra/deploy/frame.sh
. infra/deploy/frame.sh
# shellcheck source=infra/deploy/preflight.sh
. infra/deploy/preflight.sh
# shellcheck source=infra/deploy/secrets.sh
. infra/deploy/secrets.sh
# shellcheck source=infra/deploy/wait.sh
. infra/deploy/wait.sh
# shellcheck source=infra/deploy/smoke.sh
. infra/deploy/smoke.sh
# shellcheck source=infra/deploy/explain.sh
. infra/deploy/explain.sh
# shellcheck source=infra/deploy/openfaas.sh
. infra/deploy/openfaas.sh

# images: replaces the images in manifests by those that IMAGES and TAG name, if IMAGES is set.
images() {
  if [ -z "$IMAGES" ]; then cat; else
    sed -E "s#(image: )(dev\.local/)?lambda-architecture/([a-z]+)(:[^ ]+)?#\1$IMAGES/\3:$TAG#"
  fi
}

apply() { kubectl kustomize "infra/$1" | images | kubectl apply -f -; }
# remove OVERLAY [lenient]: deletes an overlay's objects and waits until they are gone. Ignores objects that do not
# exist; with `lenient`, also kinds that the cluster does not know.
remove() {
  local file="$work/remove.yaml"
  kubectl kustomize "infra/$1" >"$file"
  if ! kubectl delete --ignore-not-found --wait=false -f "$file"; then
    [ "${2:-}" = lenient ] && return
    die "not all of infra/$1 could be deleted; see above, then run this again"
  fi
  gone "infra/$1" -f "$file"
}

# prune NAMESPACE KIND JSONPATH…: deletes the hashed ConfigMaps to which no object of these kinds refers.
prune() {
  local namespace="$1" all used="" name
  shift
  all=$(kubectl -n "$namespace" get configmap -o name | sed -nE 's#^configmap/(lambda-architecture-[a-z0-9]{10})$#\1#p')
  while [ $# -gt 0 ]; do
    # If a kind cannot be listed, its objects might refer to any ConfigMap.
    used+=" $(kubectl -n "$namespace" get "$1" -o "jsonpath={$2}")" || return 0
    shift 2
  done
  for name in $all; do
    [[ " ${used//$'\n'/ } " == *" $name "* ]] || kubectl -n "$namespace" delete configmap "$name" --ignore-not-found
  done
}

infrastructure() {
  step "servers ($ENVIRONMENT)"
  local server
  for server in "${servers[@]}"; do kubectl apply -f "infra/$server/base/namespace.yaml"; done
  if [ "$ENVIRONMENT" = prod ]; then make_secrets mysql cassandra; fi
  for server in "${servers[@]}"; do apply "$server/$ENVIRONMENT"; done
  # Jobs in the overlays create topics, database, keyspace and users; the functions create the tables they need.
  step "wait for servers, topics, users"
  "wait_$ENVIRONMENT"
}

routes() {
  local kind="$ROUTES"
  if [ "$kind" = auto ]; then
    kind=none
    if has crd httproutes.gateway.networking.k8s.io && has gateway -n gateway public; then kind=gateway
    elif has ingressclass nginx; then kind=nginx; fi
  fi
  step "routes: $kind"
  if [ "$kind" = none ]; then
    echo "the prefixes /ingress and /service-analytics are left out; ROUTES=gateway or ROUTES=nginx brings them"
  else
    apply "knative/routes/$kind"
    echo "behind its address: /ingress/user takes users, /service-analytics/analytics answers"
  fi
}

knative_up() {
  preflight_knative
  infrastructure
  step "functions and arrows"
  kubectl apply -f infra/knative/base/namespace.yaml
  if [ "$ENVIRONMENT" = prod ]; then make_secrets lambda; fi
  apply "knative/$ENVIRONMENT"
  routes
  step "wait for functions and arrows"
  wait_knative
  prune lambda ksvc '.items[*].spec.template.spec.containers[*].env[*].valueFrom.configMapKeyRef.name' \
    revision '.items[*].spec.containers[*].env[*].valueFrom.configMapKeyRef.name'
  step "smoke test"
  smoke_knative
}

knative_down() {
  need_kubectl && report
  step "routes, arrows and functions"
  remove knative/routes/gateway lenient
  remove knative/routes/nginx lenient
  remove "knative/$ENVIRONMENT"
  echo "the sources' consumer groups may go with them: the next \`up\` sends the whole log again, and known users count once"
  infrastructure_down
}

infrastructure_down() {
  if [ "$DATA" != delete ]; then
    echo "the servers and all data stay; DATA=delete takes them away, too"
    return
  fi
  step "servers and data"
  local server
  for server in "${servers[@]}"; do remove "$server/$ENVIRONMENT"; done
}

case "$ENVIRONMENT:${1:-}" in dev:* | prod:* | faasd:openfaas) ;; *) die "ENVIRONMENT is dev or prod, not $ENVIRONMENT" ;; esac
case "${1:-} ${2:-}" in
  "knative up" | "knative down" | "openfaas up" | "openfaas down") "$1_$2" ;;
  *) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
