# shellcheck shell=bash disable=SC2154 # work is deploy.sh's
# Posts a new user and waits until it is counted and stored. How storage is verified depends on the platform.

# smoke INGEST ANALYTICS STORED: base URLs of two functions, and a function of this file that prints an increasing
# number of users stored so far, or nothing if it is unknown.
smoke() {
  local ingest="$1" analytics="$2" stored="$3" until=$((SECONDS + TIMEOUT)) answer="" id counted_before stored_before now
  id=$(cat /proc/sys/kernel/random/uuid)
  until counted_before=$(counted "$analytics") && stored_before=$("$stored") && [ -n "$stored_before" ]; do
    [ "$SECONDS" -lt "$until" ] || die "nothing says within $TIMEOUT s how many users there are: $(tail -n 1 "$work/smoke-error")"
    sleep 1
  done
  until answer=$(curl -sS -m 10 -f "$ingest/user" -H "Host: ${INGEST_HOST:-$(host_of "$ingest")}" \
    -H 'Content-Type: application/json' -d "{\"id\":\"$id\",\"name\":\"Smoke test\"}" 2>&1); do
    [ "$SECONDS" -lt "$until" ] || die "ingest did not take a user within $TIMEOUT s: $answer"
    sleep 1
  done
  echo "ingest took the user $id"
  until now=$(counted "$analytics") && [ "$now" -gt "$counted_before" ]; do
    [ "$SECONDS" -lt "$until" ] || die "analytics did not count the user $id within $TIMEOUT s: it says ${now:-nothing} as before; is it in the dead letters? see docs/deploy.md, When it does not work"
    sleep 1
  done
  echo "analytics counts $now users"
  until now=$("$stored") && [ -n "$now" ] && [ "$now" -gt "$stored_before" ]; do
    [ "$SECONDS" -lt "$until" ] || die "the user $id was counted, but not stored within $TIMEOUT s; see the log of store"
    sleep 1
  done
  echo "store keeps it"
  printf '\nPOST users to  %s/user\nread           %s/analytics\n' "${INGEST_URL:-$ingest}" "${ANALYTICS_URL:-$analytics}"
}

# counted ANALYTICS: prints the current number of users at analytics.
counted() {
  local answer
  answer=$(curl -sS -m 10 -f "$1/analytics" -H "Host: ${ANALYTICS_HOST:-$(host_of "$1")}" 2>"$work/smoke-error") || return 1
  answer=$(grep -o '"userCount": *[0-9][0-9]*' <<<"$answer" | tail -n 1)
  answer="${answer##*[!0-9]}"
  echo "${answer:-0}"
}

host_of() { sed -E 's#^[a-z]+://([^/]+).*#\1#' <<<"$1"; }

# gateway: prints NAMESPACE SERVICE of Knative's cluster-local gateway.
gateway() {
  local candidate
  for candidate in "kourier-system kourier-internal" "istio-system knative-local-gateway" "contour-internal envoy"; do
    # shellcheck disable=SC2086 # two words
    set -- $candidate
    if has -n "$1" service "$2"; then echo "$candidate" && return; fi
  done
  return 1
}

# forward_port NAMESPACE TARGET PORT PATH: forwards a local port to TARGET's port, and sets `forwarded` to it.
forward_port() {
  local until=$((SECONDS + 30))
  forwarded=$((20000 + RANDOM % 20000))
  kubectl -n "$1" port-forward "$2" "$forwarded:$3" >"$work/forward" 2>&1 &
  children+=($!)
  until curl -s -m 2 -o /dev/null "http://127.0.0.1:$forwarded$4"; do
    kill -0 "${children[-1]}" 2>/dev/null && [ "$SECONDS" -lt "$until" ] || die "cannot reach $1/$2: $(cat "$work/forward")"
    sleep 0.2
  done
}

# Uses a forwarded port, because the host names of a new cluster are not in any DNS.
smoke_knative() {
  local namespace service
  read -r namespace service <<<"$(gateway)"
  forward_port "$namespace" "service/$service" 80 /
  INGEST_HOST=ingest.lambda.svc.cluster.local ANALYTICS_HOST=analytics.lambda.svc.cluster.local \
    INGEST_URL=$(kubectl -n lambda get ksvc ingest -o 'jsonpath={.status.url}') \
    ANALYTICS_URL=$(kubectl -n lambda get ksvc analytics -o 'jsonpath={.status.url}') \
    smoke "http://127.0.0.1:$forwarded" "http://127.0.0.1:$forwarded" stored_by_batch
}

# stored_by_batch: sends a tick as a PingSource does, and prints the summary's number of users in the master dataset.
stored_by_batch() {
  curl -sS -m 30 -f -X POST "http://127.0.0.1:$forwarded/" -H 'Host: batch.lambda.svc.cluster.local' \
    -H 'ce-specversion: 1.0' -H 'ce-type: smoke' -H 'ce-source: /deploy' -H "ce-id: $RANDOM" 2>"$work/smoke-error" |
    sed -nE 's/.*"users": *([0-9]+).*/\1/p'
}

smoke_openfaas() {
  arrow_dead_before=$(arrow_field dead)
  smoke "$OPENFAAS_URL/function/ingest" "$OPENFAAS_URL/function/analytics" stored_by_forwarder
}

# arrow_field FIELD: prints a field of the forwarder's statistics of the source whose sink is store.
arrow_field() { arrows | tr '{' '\n' | grep -E '"function": *"store"' | grep -oE "\"$1\": *[0-9]+" | grep -oE '[0-9]+$' || true; }

# stored_by_forwarder: prints the number of events that store accepted since the forwarder started; fails once one was
# dead-lettered.
stored_by_forwarder() {
  local dead
  dead=$(arrow_field dead)
  [ -n "$dead" ] || return 0
  [ "$dead" = "$arrow_dead_before" ] || die "an event for store became a dead letter: $dead now, $arrow_dead_before before; see the forwarder's log"
  arrow_field delivered
}
