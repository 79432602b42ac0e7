# shellcheck shell=bash disable=SC2154 # work is deploy.sh's
# Posts a user and waits until analytics knows of one. Always the same user, so that a second time changes nothing.

USER_JSON='{"id":"00000000-0000-4000-8000-000000000001","name":"Smoke test"}'

# smoke INGEST ANALYTICS [CURL…]: base URLs of the two.
smoke() {
  local ingest="$1" analytics="$2" until=$((SECONDS + TIMEOUT)) answer=""
  until answer=$(curl -sS -m 10 -f "$ingest/user" -H "Host: ${INGEST_HOST:-$(host_of "$ingest")}" -H 'Content-Type: application/json' -d "$USER_JSON" 2>&1); do
    [ "$SECONDS" -lt "$until" ] || die "ingest did not take a user within $TIMEOUT s: $answer"
    sleep 1
  done
  echo "ingest took a user"
  until answer=$(curl -sS -m 10 -f "$analytics/analytics" -H "Host: ${ANALYTICS_HOST:-$(host_of "$analytics")}" 2>&1) && grep -q '"userCount":[1-9]' <<<"$answer"; do
    [ "$SECONDS" -lt "$until" ] || die "analytics did not count a user within $TIMEOUT s: $answer"
    sleep 1
  done
  echo "analytics counts $(grep -o '"userCount":[0-9]*' <<<"$answer" | tail -n 1 | cut -d: -f2) users"
  printf '\nPOST users to  %s/user\nread           %s/analytics\n' "${INGEST_URL:-$ingest}" "${ANALYTICS_URL:-$analytics}"
}

host_of() { sed -E 's#^[a-z]+://([^/]+).*#\1#' <<<"$1"; }

# gateway: NAMESPACE SERVICE of Knative's own gateway for what is inside the cluster.
gateway() {
  local candidate
  for candidate in "kourier-system kourier-internal" "istio-system knative-local-gateway" "contour-internal envoy"; do
    # shellcheck disable=SC2086 # two words
    set -- $candidate
    if has -n "$1" service "$2"; then echo "$candidate" && return; fi
  done
  return 1
}

# Through a port of this machine, since a new cluster's names are in nobody's DNS.
smoke_knative() {
  local namespace service port tries=0
  read -r namespace service <<<"$(gateway)"
  port=$((20000 + RANDOM % 20000))
  kubectl -n "$namespace" port-forward "service/$service" "$port:80" >"$work/forward" 2>&1 &
  children+=($!)
  until curl -s -m 2 -o /dev/null "http://127.0.0.1:$port/"; do
    tries=$((tries + 1))
    kill -0 "${children[-1]}" 2>/dev/null && [ "$tries" -lt 50 ] || die "cannot reach $namespace/$service: $(cat "$work/forward")"
    sleep 0.2
  done
  INGEST_HOST=ingest.lambda.svc.cluster.local ANALYTICS_HOST=analytics.lambda.svc.cluster.local \
    INGEST_URL=$(kubectl -n lambda get ksvc ingest -o 'jsonpath={.status.url}') \
    ANALYTICS_URL=$(kubectl -n lambda get ksvc analytics -o 'jsonpath={.status.url}') \
    smoke "http://127.0.0.1:$port" "http://127.0.0.1:$port"
}
