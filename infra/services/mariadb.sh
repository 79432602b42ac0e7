#!/usr/bin/env bash
# mariadb.sh start|stop|status|wipe: a MariaDB of its own for this checkout, without Docker, on 127.0.0.1:$MYSQL_PORT.
# Its data lies in $SERVICES_DIR (.services). Needs Debian's mariadb-server; user root, password root.
set -euo pipefail
folder="${SERVICES_DIR:-$PWD/.services}/mariadb"
port="${MYSQL_PORT:-3307}"
socket="$folder/socket"
mkdir -p "$folder"

running() { mariadb-admin --no-defaults --socket="$socket" ping >/dev/null 2>&1; }

start() {
  running && return
  if [ ! -d "$folder/data/mysql" ]; then
    mariadb-install-db --no-defaults --user="$(id -un)" --datadir="$folder/data" \
      --auth-root-authentication-method=normal --skip-test-db >"$folder/install.log" 2>&1
  fi
  cat >"$folder/init.sql" <<SQL
CREATE OR REPLACE USER 'root'@'127.0.0.1' IDENTIFIED BY 'root';
GRANT ALL ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;
SQL
  setsid nohup mariadbd --no-defaults --user="$(id -un)" --datadir="$folder/data" --socket="$socket" \
    --port="$port" --bind-address=127.0.0.1 --pid-file="$folder/pid" --skip-name-resolve --skip-log-bin \
    --innodb-buffer-pool-size=256M --innodb-flush-log-at-trx-commit=1 --character-set-server=utf8mb4 \
    --init-file="$folder/init.sql" --max-connections=200 >"$folder/log" 2>&1 </dev/null &
  for _ in $(seq 1 300); do
    running && return
    kill -0 $! 2>/dev/null || break
    sleep 0.1
  done
  tail -20 "$folder/log" >&2
  return 1
}

stop() {
  [ -f "$folder/pid" ] || return 0
  local pid
  pid=$(cat "$folder/pid")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 1 300); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
}

case "${1:-}" in
  start) start && echo "MariaDB is ready: mysql://root:root@127.0.0.1:$port" ;;
  stop) stop && echo "MariaDB is stopped" ;;
  status) if running; then echo "MariaDB runs"; else echo "MariaDB does not run"; fi ;;
  wipe) stop && rm -rf "$folder" ;;
  *) echo "usage: $0 start|stop|status|wipe" >&2; exit 2 ;;
esac
