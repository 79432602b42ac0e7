# shellcheck shell=bash
# Waits until applied objects are ready, or deleted objects are gone. A step waits TIMEOUT seconds in total, and then
# explains what is not ready.

# deadline: starts the timeout of a step.
deadline() { step_until=$((SECONDS + TIMEOUT)); }
# remaining: prints the seconds left to the step; at least one, so that objects that are already ready pass.
remaining() { echo $((step_until > SECONDS ? step_until - SECONDS : 1)); }

# ready NAMESPACE KIND NAME CONDITION: waits for `condition=Ready`, or another condition of `kubectl wait`.
ready() {
  kubectl -n "$1" wait "$2/$3" --for="$4" --timeout="$(remaining)s" || not_ready "$1" "$2" "$3"
}

rolled_out() {
  [ "${step_until:-0}" -gt "$SECONDS" ] || deadline
  kubectl -n "$1" rollout status "$2" --timeout="$(remaining)s" || not_ready "$1" "${2%%/*}" "${2#*/}"
}

not_ready() {
  explain "$@" >&2 || true
  die "$2 $3 was not ready within $TIMEOUT s"
}

wait_dev() {
  deadline
  rolled_out kafka statefulset/kafka
  ready kafka job topics condition=Complete
  rolled_out mysql statefulset/mysql
  rolled_out cassandra statefulset/cassandra
}

wait_prod() {
  deadline
  ready kafka kafka kafka condition=Ready
  ready kafka kafkatopic user condition=Ready
  ready kafka kafkatopic user-dead-letter condition=Ready
  ready kafka kafkauser lambda condition=Ready
  ready mysql innodbcluster mysql "jsonpath={.status.cluster.status}=ONLINE"
  ready mysql job user condition=Complete
  ready cassandra scyllacluster cassandra condition=Available
  ready cassandra job role condition=Complete
}

wait_knative() {
  local name
  deadline
  for name in ingest count store batch analytics; do ready lambda ksvc "$name" condition=Ready; done
  ready lambda kafkasink dead-letter condition=Ready
  for name in log-to-count log-to-store; do ready lambda kafkasource "$name" condition=Ready; done
  ready lambda pingsource minute-to-batch condition=Ready
}

# gone WHAT KUBECTL-GET-ARGUMENTS…: waits until no such object is left, and prints the remaining ones every 10 s.
gone() {
  local what="$1" left said=$SECONDS
  shift
  deadline
  # An error of the cluster does not mean that the objects are gone.
  until left=$(kubectl get "$@" -o name --ignore-not-found 2>&1) && [ -z "$left" ]; do
    if [ "$SECONDS" -ge "$step_until" ]; then
      die "still there after $TIMEOUT s: $(paste -sd' ' <<<"$left"); see what holds it: kubectl get namespace -o yaml shows conditions and finalizers; then run this again"
    fi
    if [ $((SECONDS - said)) -ge "${PROGRESS:-10}" ]; then
      said=$SECONDS
      echo "$((step_until - SECONDS)) s left for $(wc -l <<<"$left") of $what to go: $(head -n 3 <<<"$left" | paste -sd' ')"
    fi
    sleep 1
  done
}
