# MariaDB, from Debian's package mariadb-server; user root, password root, database lambda. For services.sh.
# shellcheck shell=bash disable=SC2034,SC2154
address="127.0.0.1:$MYSQL_PORT"
socket="$folder/socket"
program=(mariadbd --no-defaults "--user=$(id -un)" "--datadir=$folder/data" "--socket=$socket" "--port=$MYSQL_PORT"
  --bind-address=127.0.0.1 --skip-name-resolve --skip-log-bin --innodb-buffer-pool-size=256M --innodb-log-file-size=128M
  --innodb-flush-log-at-trx-commit=1 --performance-schema=OFF --character-set-server=utf8mb4
  "--init-file=$folder/init.sql" --max-connections=400)

install() { command -v mariadbd >/dev/null || { echo "mariadb needs Debian's package: apt install mariadb-server" >&2; return 1; }; }

configure() {
  [ -d "$folder/data/mysql" ] || mariadb-install-db --no-defaults "--user=$(id -un)" "--datadir=$folder/data" \
    --auth-root-authentication-method=normal --skip-test-db >>"$folder/log" 2>&1
  cat >"$folder/init.sql" <<SQL
CREATE OR REPLACE USER 'root'@'127.0.0.1' IDENTIFIED BY 'root';
GRANT ALL ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;
CREATE DATABASE IF NOT EXISTS lambda;
SQL
}

ready() { mariadb-admin --no-defaults "--socket=$socket" ping; }
