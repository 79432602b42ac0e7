# Cassandra (one node), from Maven's packages; for services.sh.
# shellcheck shell=bash disable=SC2034,SC2154
address="127.0.0.1:$CASSANDRA_PORT"
storage="${CASSANDRA_STORAGE_PORT:-$((CASSANDRA_PORT + 1))}"
jmx="${CASSANDRA_JMX_PORT:-$((CASSANDRA_PORT + 2))}"
exports=(jdk.internal.misc jdk.internal.ref sun.nio.ch)
opens=(java.io java.lang java.lang.module java.net java.nio java.time java.util java.util.concurrent
  java.util.concurrent.atomic jdk.internal.loader jdk.internal.math jdk.internal.module jdk.internal.ref
  jdk.internal.reflect jdk.internal.util.jar sun.nio.ch sun.nio.fs)
modules=()
for package in "${exports[@]}"; do modules+=(--add-exports "java.base/$package=ALL-UNNAMED"); done
for package in "${opens[@]}"; do modules+=(--add-opens "java.base/$package=ALL-UNNAMED"); done
modules+=(--add-exports java.management.rmi/com.sun.jmx.remote.internal.rmi=ALL-UNNAMED
  --add-exports java.rmi/sun.rmi.registry=ALL-UNNAMED --add-exports java.rmi/sun.rmi.server=ALL-UNNAMED
  --add-exports java.rmi/sun.rmi.transport=ALL-UNNAMED --add-exports java.rmi/sun.rmi.transport.tcp=ALL-UNNAMED
  --add-exports java.sql/java.sql=ALL-UNNAMED --add-exports jdk.unsupported/sun.misc=ALL-UNNAMED
  --add-opens jdk.management/com.sun.management.internal=ALL-UNNAMED)
program=("$(java17)" "-Xms${CASSANDRA_HEAP:-512m}" "-Xmx${CASSANDRA_HEAP:-512m}" -Xss256k -XX:+UseSerialGC -XX:-UsePerfData
  -XX:+ExitOnOutOfMemoryError "${modules[@]}" -Djdk.attach.allowAttachSelf=true -Djava.net.preferIPv4Stack=true
  -Dio.netty.tryReflectionSetAccessible=true "-Dcassandra.config=file://$folder/cassandra.yaml"
  "-Dcassandra.storagedir=$folder/data" "-Dlogback.configurationFile=$here/cassandra/logback.xml"
  "-Dcassandra.jmx.local.port=$jmx" -Dcassandra-foreground=yes -Dcassandra.skip_wait_for_gossip_to_settle=0
  -Dcassandra.ring_delay_ms=100 -Dcassandra.superuser_setup_delay_ms=0)

install() {
  fetch_jars
  # Cassandra measures object sizes with this agent.
  local agent
  agent="$(ls "$jars"/jamm-*.jar)"
  program+=("-javaagent:$agent" -cp "$jars/*" org.apache.cassandra.service.CassandraDaemon)
}

configure() {
  cat >"$folder/cassandra.yaml" <<CONF
cluster_name: $name
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: "127.0.0.1:$storage"
listen_address: 127.0.0.1
rpc_address: 127.0.0.1
storage_port: $storage
native_transport_port: $CASSANDRA_PORT
start_native_transport: true
endpoint_snitch: SimpleSnitch
authenticator: AllowAllAuthenticator
authorizer: AllowAllAuthorizer
# A write that was answered survives a SIGKILL of the process, not a loss of power: other replicas are for that.
commitlog_sync: periodic
commitlog_sync_period: 10000ms
commitlog_segment_size: 16MiB
commitlog_total_space: 256MiB
disk_access_mode: mmap_index_only
data_file_directories: [ $folder/data/data ]
commitlog_directory: $folder/data/commitlog
saved_caches_directory: $folder/data/saved_caches
hints_directory: $folder/data/hints
cdc_raw_directory: $folder/data/cdc_raw
concurrent_reads: 16
concurrent_writes: 16
memtable_heap_space: 128MiB
memtable_offheap_space: 64MiB
file_cache_size: 64MiB
key_cache_size: 16MiB
auto_snapshot: false
auto_bootstrap: false
cas_contention_timeout: 5000ms
write_request_timeout: 10000ms
read_request_timeout: 10000ms
request_timeout: 10000ms
CONF
}

ready() { listens "$CASSANDRA_PORT"; }
