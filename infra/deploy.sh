#!/usr/bin/env bash
# deploy.sh knative|openfaas up|down: brings the whole system to a cluster, or takes it away. Looks first, says plainly
# what is missing and the command that brings it, waits until all is ready, and posts a user. Twice changes nothing.
#
#   ENVIRONMENT  dev (one small server of each, the default), prod (replicated, by operators), or with openfaas: faasd
#   IMAGES, TAG  where the images are and which (IMAGES=registry.example.com/lambda-architecture TAG=1.2.3)
#   ROUTES       gateway, nginx or none for the prefixes /ingress and /service-analytics (what the cluster has)
#   TIMEOUT      seconds to wait for each thing (600)
#   CONFIG       with faasd: a file like infra/config/config.env with the servers' URLs
#   DATA=delete  with down: takes the servers and all data away, too
set -euo pipefail
cd "$(dirname "$0")/.."
ENVIRONMENT="${ENVIRONMENT:-dev}" ROUTES="${ROUTES:-auto}" TIMEOUT="${TIMEOUT:-600}" DATA="${DATA:-keep}"
OPENFAAS_URL="${OPENFAAS_URL:-http://127.0.0.1:8080}"
servers=(kafka mysql cassandra)
work=$(mktemp -d)
children=()
clean() {
  local child
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  rm -rf "$work"
}
trap clean EXIT

step() { printf '\n== %s\n' "$*"; }
die() { printf 'deploy: %s\n' "$*" >&2 && exit 1; }

# shellcheck source=infra/deploy/preflight.sh
. infra/deploy/preflight.sh
# shellcheck source=infra/deploy/secrets.sh
. infra/deploy/secrets.sh
# shellcheck source=infra/deploy/wait.sh
. infra/deploy/wait.sh
# shellcheck source=infra/deploy/smoke.sh
. infra/deploy/smoke.sh

# images: has manifests use the images that IMAGES and TAG name, where they are set.
images() {
  if [ -z "${IMAGES:-}" ]; then cat; else
    sed -E "s#(image: )(dev\.local/)?lambda-architecture/([a-z]+)(:[^ ]+)?#\1$IMAGES/\3:${TAG:-latest}#"
  fi
}

apply() { kubectl kustomize "infra/$1" | images | kubectl apply -f -; }
# What is gone already is no fault; where lenient, neither is a kind that the cluster does not know.
remove() { kubectl kustomize "infra/$1" | kubectl delete --ignore-not-found -f - || [ "${2:-}" = lenient ]; }

infrastructure() {
  step "servers ($ENVIRONMENT)"
  local server
  for server in "${servers[@]}"; do kubectl apply -f "infra/$server/base/namespace.yaml"; done
  if [ "$ENVIRONMENT" = prod ]; then make_secrets mysql cassandra; fi
  for server in "${servers[@]}"; do apply "$server/$ENVIRONMENT"; done
  # The Jobs among them make topics, database, keyspace and users; tables are made by the functions that need them.
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
  step "smoke test"
  smoke_knative
}

knative_down() {
  need_kubectl && report
  step "routes, arrows and functions"
  remove knative/routes/gateway lenient
  remove knative/routes/nginx lenient
  remove "knative/$ENVIRONMENT"
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

openfaas_up() {
  preflight_openfaas
  if [ "$ENVIRONMENT" != faasd ]; then
    infrastructure
    if [ "$ENVIRONMENT" = prod ]; then make_secrets openfaas; fi
  fi
  step "secrets of the functions"
  openfaas_secrets
  step "functions"
  faas-cli deploy -g "$OPENFAAS_URL" -f infra/openfaas/stack.yml
  step "forwarder"
  if [ "$ENVIRONMENT" = faasd ]; then
    echo "add the service of infra/openfaas/faasd.yaml to /var/lib/faasd/docker-compose.yaml, copy $CONFIG to"
    echo "/var/lib/faasd/secrets/lambda-architecture, and: sudo systemctl restart faasd"
  else
    apply "openfaas/$ENVIRONMENT"
  fi
  step "wait for functions and forwarder"
  wait_openfaas
  step "smoke test"
  smoke "$OPENFAAS_URL/function/ingest" "$OPENFAAS_URL/function/analytics"
}

openfaas_down() {
  need faas-cli "faas-cli" "curl -sSL https://cli.openfaas.com | sudo sh"
  [ "$ENVIRONMENT" = faasd ] || need_kubectl
  report
  step "forwarder and functions"
  [ "$ENVIRONMENT" = faasd ] || remove "openfaas/$ENVIRONMENT"
  faas-cli remove -g "$OPENFAAS_URL" -f infra/openfaas/stack.yml || true
  [ "$ENVIRONMENT" = faasd ] || infrastructure_down
}

case "$ENVIRONMENT:${1:-}" in dev:* | prod:* | faasd:openfaas) ;; *) die "ENVIRONMENT is dev or prod, not $ENVIRONMENT" ;; esac
case "${1:-} ${2:-}" in
  "knative up" | "knative down" | "openfaas up" | "openfaas down") "$1_$2" ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
