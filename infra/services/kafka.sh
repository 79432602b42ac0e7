# Kafka (KRaft, one node), from Maven's packages; for services.sh.
# shellcheck shell=bash disable=SC2034,SC2154
address="127.0.0.1:$KAFKA_PORT"
controller="127.0.0.1:${KAFKA_CONTROLLER_PORT:-$((KAFKA_PORT + 1))}"
java="$(java17)"
options=(-XX:+UseSerialGC -Djava.net.preferIPv4Stack=true -Dorg.slf4j.simpleLogger.defaultLogLevel=warn)
program=("$java" -Xms128m "-Xmx${KAFKA_HEAP:-512m}" "${options[@]}" -cp "$jars/*" kafka.Kafka "$folder/server.properties")

install() { fetch_jars; }

# With KAFKA_SECURED, the next two ports have listeners for tests of authentication: KAFKA_PORT+2 requires a client
# certificate, KAFKA_PORT+3 a user name (alice with PLAIN, bob with SCRAM) and a password. Keys and certificates are in
# $folder/tls.
secured() { [ -n "${KAFKA_SECURED:-}" ]; }
tls="127.0.0.1:$((KAFKA_PORT + 2))" sasl="127.0.0.1:$((KAFKA_PORT + 3))"

# certify NAME SUBJECT [EXTENSION]: creates a key and a certificate signed by the authority.
certify() {
  openssl req -newkey rsa:2048 -nodes -subj "/CN=$2" -keyout "$1.key" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile <(echo "${3:-}") -out "$1.pem"
}

certificates() (
  mkdir -p "$folder/tls"
  cd "$folder/tls" || return 1
  openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=authority -keyout ca.key -out ca.pem
  certify broker localhost subjectAltName=IP:127.0.0.1
  certify client client
)

# Prints a file as one line of Java properties.
line() { awk '{ printf "%s\\n", $0 }' "$folder/tls/$1"; }

secure() {
  local scram=org.apache.kafka.common.security.scram.ScramLoginModule number
  [ -f "$folder/tls/client.pem" ] || certificates >>"$folder/log" 2>&1
  cat <<CONF
ssl.keystore.type=PEM
ssl.keystore.certificate.chain=$(line broker.pem)
ssl.keystore.key=$(line broker.key)
ssl.truststore.type=PEM
ssl.truststore.certificates=$(line ca.pem)
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
  user_alice="in + out";
CONF
  for number in 256 512; do
    echo "listener.name.sasl_ssl.scram-sha-$number.sasl.jaas.config=$scram required;"
  done
}

configure() {
  local listeners="" format=()
  if secured; then
    listeners=",SSL://$tls,SASL_SSL://$sasl"
    format=(--add-scram "SCRAM-SHA-256=[name=bob,password=in + out]" --add-scram "SCRAM-SHA-512=[name=bob,password=in + out]")
  fi
  # An ordered source has one event of each partition in flight, so there are 64 partitions, as in the embedded log.
  cat >"$folder/server.properties" <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@$controller
listeners=PLAINTEXT://$address,CONTROLLER://$controller$listeners
advertised.listeners=PLAINTEXT://$address$listeners
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
inter.broker.listener.name=PLAINTEXT
log.dirs=$folder/data
num.partitions=64
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=16777216
CONF
  if secured; then secure >>"$folder/server.properties"; fi
  [ -f "$folder/data/meta.properties" ] ||
    "$java" -Xmx128m "${options[@]}" -cp "$jars/*" kafka.tools.StorageTool format \
      --cluster-id MkU3OEVBNTcwNTJENDM2Qk --config "$folder/server.properties" --ignore-formatted \
      "${format[@]}" >>"$folder/log" 2>&1
}

# Kafka listens before it serves requests, so kcat requests its metadata if it is installed.
ready() { listens "$KAFKA_PORT" && { ! command -v kcat || kcat -b "$address" -L -m 1; }; }
