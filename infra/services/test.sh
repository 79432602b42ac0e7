#!/usr/bin/env bash
# test.sh [bench|outages] [ARGUMENTS]: runs the tests that need the real services, with separate services that stop with
# it. Without arguments: the contract suites of all backends, the system tests (ARGUMENTS select some of those), and
# `outages`, which kills, stops and restarts the services while the system is in use.
# Services start on free ports and in a separate folder, so that several runs of this script can overlap.
set -euo pipefail
cd "$(dirname "$0")/../.."
# Prints the first of 21 consecutive free ports.
free() {
  local base port
  while base=$((20000 + RANDOM % 20000)); do
    for port in $(seq "$base" $((base + 20))); do
      (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue 2
    done
    echo "$base"
    return
  done
}
base="$(free)"
export SERVICES=bare SERVICES_DIR="$PWD/target/services/$$" SERVICES_JARS="$PWD/target/services/jars"
export KAFKA_SECURED=1 KAFKA_PORT="$base" CASSANDRA_PORT="$((base + 10))" MYSQL_PORT="$((base + 20))"
services="$PWD/infra/services/services.sh"
trap '"$services" wipe; rm -rf "$SERVICES_DIR"' EXIT
"$services" up
export KAFKA_BROKER="127.0.0.1:$KAFKA_PORT" CASSANDRA_NODE="127.0.0.1:$CASSANDRA_PORT"
export MYSQL_SERVER="mysql://root:root@127.0.0.1:$MYSQL_PORT"
KAFKA_PID="$(cat "$SERVICES_DIR/kafka/pid")" CASSANDRA_PID="$(cat "$SERVICES_DIR/cassandra/pid")"
export KAFKA_PID CASSANDRA_PID
export KAFKA_TLS="127.0.0.1:$((KAFKA_PORT + 2))" KAFKA_SASL="127.0.0.1:$((KAFKA_PORT + 3))" KAFKA_KEYS="$SERVICES_DIR/kafka/tls"

if [ "${1:-}" = bench ]; then
  shift
  cargo bench --locked --bench figures -- services "$@"
  exit
fi
# One test at a time, because the outages would affect other tests.
outages() { cargo test --release --locked --test system -- --test-threads=1 --nocapture outages; }
if [ "${1:-}" = outages ]; then
  outages
elif [ $# = 0 ]; then
  features=backend-log/services,backend-master/services,backend-views/services
  cargo test --workspace --locked --features "$features" --test contract --test paused
  cargo test --release --locked --test system -- walkthrough bad_input repair interop chaos \
    hangups probes faulty_stores deliverable outsiders
  outages
else
  cargo test --release --locked --test system -- "$@"
fi
