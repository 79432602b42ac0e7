#!/usr/bin/env bash
# services.sh up|down|status|wipe|install [kafka] [cassandra] [mariadb]: manages the services of one checkout.
# With Docker, runs the services of infra/compose.yaml; without it, or with SERVICES=bare, runs processes from Debian's
# and Maven's packages, with their data in $SERVICES_DIR (.services). `down` keeps the data, `wipe` deletes it;
# `install` only downloads what `up` starts.
# Ports: KAFKA_PORT 9092, CASSANDRA_PORT 9042, MYSQL_PORT 3307. Each service is defined by a file with its name. Jars
# are downloaded once to $SERVICES_JARS ($SERVICES_DIR/jars).
# shellcheck disable=SC2030,SC2031,SC2154 # a service's variables come from its file, and live in its subshell
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export KAFKA_PORT="${KAFKA_PORT:-9092}" CASSANDRA_PORT="${CASSANDRA_PORT:-9042}" MYSQL_PORT="${MYSQL_PORT:-3307}"
root="${SERVICES_DIR:-$PWD/.services}"

usage() {
  sed -n '2s/^# //p' "$0" | cut -d: -f1 >&2
  exit 2
}

# Runs a function of this file on a service, whose file defines `install`, `configure`, `ready` and the array `program`.
on() (
  name="$1"
  folder="$root/$name"
  jars="${SERVICES_JARS:-$root/jars}/$name"
  mkdir -p "$folder"
  # shellcheck source=/dev/null
  . "$here/$name.sh"
  "$2"
)

# A zombie has exited, although `kill -0` still finds it.
alive() {
  local pid
  pid="$(cat "$folder/pid" 2>/dev/null)" && kill -0 "$pid" 2>/dev/null && ! grep -qs ') Z ' "/proc/$pid/stat"
}

start() {
  if ! alive; then
    install
    configure
    setsid nohup "${program[@]}" >>"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
  fi
  for _ in $(seq 1 900); do
    if ready >/dev/null 2>&1; then
      echo "$name is ready at $address (process $(cat "$folder/pid"))"
      return
    fi
    alive || break
    sleep 0.1
  done
  echo "$name did not start; the end of $folder/log:" >&2
  tail -20 "$folder/log" >&2
  stop
  return 1
}

stop() {
  if alive; then
    pid="$(cat "$folder/pid")"
    kill "$pid"
    for _ in $(seq 1 200); do
      alive || break
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$folder/pid"
  echo "$name is stopped"
}

status() { if alive && ready >/dev/null 2>&1; then echo "$name runs at $address"; else echo "$name does not run"; fi; }

wipe() {
  stop
  rm -rf "$folder/data" "$folder/log"
}

# Downloads the jars of a pom.xml once.
fetch_jars() {
  [ -f "$jars/complete" ] && return
  command -v mvn >/dev/null || { echo "$name needs Maven and a JDK 17: apt install maven openjdk-17-jre-headless" >&2; return 1; }
  mvn -B -q -f "$here/$name/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$jars"
  touch "$jars/complete"
}

# Prints the path of Java 17: Cassandra 5 does not run on every newer version.
java17() {
  for java in "${JAVA:-}" /usr/lib/jvm/java-17-openjdk-*/bin/java /usr/lib/jvm/*17*/bin/java "$(command -v java || true)"; do
    if [ -x "$java" ]; then
      echo "$java"
      return
    fi
  done
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

with_docker() { [ "${SERVICES:-}" != bare ] && docker info >/dev/null 2>&1; }

compose() { docker compose -f "$here/../compose.yaml" "$@"; }

verb="${1:-}"
shift || usage
services=("$@")
[ $# -gt 0 ] || services=(kafka cassandra mariadb)
for service in "${services[@]}"; do
  [ -f "$here/$service.sh" ] && [ "$service" != services ] || usage
done
case "$verb" in
  up | down | status | wipe | install) ;;
  *) usage ;;
esac
if with_docker; then
  case "$verb" in
    up) compose up --detach --wait ;;
    down) compose stop ;;
    status) compose ps ;;
    wipe) compose down --volumes ;;
    install) compose pull ;;
  esac
  exit
fi
declare -A verbs=([up]=start [down]=stop [status]=status [wipe]=wipe [install]=install)
for service in "${services[@]}"; do
  on "$service" "${verbs[$verb]}"
done
