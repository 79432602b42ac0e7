# Kafka (KRaft, one node), from Maven's packages; for services.sh.
# shellcheck shell=bash disable=SC2034,SC2154
address="127.0.0.1:$KAFKA_PORT"
controller="127.0.0.1:${KAFKA_CONTROLLER_PORT:-$((KAFKA_PORT + 1))}"
java="$(java17)"
options=(-XX:+UseSerialGC -Djava.net.preferIPv4Stack=true -Dorg.slf4j.simpleLogger.defaultLogLevel=warn)
program=("$java" -Xms128m "-Xmx${KAFKA_HEAP:-512m}" "${options[@]}" -cp "$jars/*" kafka.Kafka "$folder/server.properties")

install() { fetch_jars; }

configure() {
  # An ordered source has one event of each partition under way: 64 of them, as in the embedded log.
  cat >"$folder/server.properties" <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@$controller
listeners=PLAINTEXT://$address,CONTROLLER://$controller
advertised.listeners=PLAINTEXT://$address
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
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
  [ -f "$folder/data/meta.properties" ] ||
    "$java" -Xmx128m "${options[@]}" -cp "$jars/*" kafka.tools.StorageTool format \
      --cluster-id MkU3OEVBNTcwNTJENDM2Qk --config "$folder/server.properties" --ignore-formatted >>"$folder/log" 2>&1
}

# It listens before it serves; its log says when it does.
ready() { listens "$KAFKA_PORT" && { ! command -v kcat || kcat -b "$address" -L -m 1; }; }
