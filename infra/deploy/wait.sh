# shellcheck shell=bash
# Waits until what was applied is ready, and says what is not and where to look.

# ready NAMESPACE KIND NAME CONDITION: `condition=Ready`, or what else kubectl waits for.
ready() {
  kubectl -n "$1" wait "$2/$3" --for="$4" --timeout="${TIMEOUT}s" ||
    die "$2 $3 was not ready within $TIMEOUT s; see: kubectl -n $1 describe $2 $3"
}

rolled_out() {
  kubectl -n "$1" rollout status "$2" --timeout="${TIMEOUT}s" ||
    die "$2 was not ready within $TIMEOUT s; see: kubectl -n $1 describe $2; kubectl -n $1 get pods"
}

wait_dev() {
  rolled_out kafka statefulset/kafka
  ready kafka job topics condition=Complete
  rolled_out mysql statefulset/mysql
  rolled_out cassandra statefulset/cassandra
}

wait_prod() {
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
  for name in ingest count store batch analytics; do ready lambda ksvc "$name" condition=Ready; done
  ready lambda kafkasink dead-letter condition=Ready
  for name in log-to-count log-to-store; do ready lambda kafkasource "$name" condition=Ready; done
  ready lambda pingsource minute-to-batch condition=Ready
}

wait_openfaas() {
  local name until=$((SECONDS + TIMEOUT))
  for name in ingest count store batch analytics; do
    until faas-cli describe "$name" -g "$OPENFAAS_URL" 2>/dev/null | grep -Eq '^(Status: +Ready|Available [Rr]eplicas: +[1-9])'; do
      [ "$SECONDS" -lt "$until" ] || die "the function $name was not ready within $TIMEOUT s; see: faas-cli describe $name; faas-cli logs $name"
      sleep 1
    done
    echo "$name is ready"
  done
  [ "$ENVIRONMENT" = faasd ] || rolled_out openfaas deployment/forwarder
}
