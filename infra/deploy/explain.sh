# shellcheck shell=bash
# Explains why an object is not ready: the conditions that are not True, the pod, its last log lines, the next command.

# explain NAMESPACE KIND NAME
explain() {
  local namespace="$1" kind="$2" name="$3" pod
  printf '\n%s %s in %s is not ready:\n' "$kind" "$name" "$namespace"
  conditions "$namespace" "$kind" "$name"
  if [ "$kind" = ksvc ]; then
    local revision
    revision=$(kubectl -n "$namespace" get ksvc "$name" -o 'jsonpath={.status.latestCreatedRevisionName}' 2>/dev/null)
    [ -z "$revision" ] || { echo "  revision $revision:" && conditions "$namespace" revision "$revision"; }
  fi
  pod=$(newest_pod "$namespace" "$kind" "$name")
  if [ -z "$pod" ]; then
    echo "  there is no pod of it"
    printf 'next: kubectl -n %s describe %s %s\n' "$namespace" "$kind" "$name"
    return
  fi
  explain_pod "${pod%% *}" "${pod#* }" "$kind" "$name"
}

# conditions NAMESPACE KIND NAME: prints the conditions that are not True, one per line.
conditions() {
  kubectl -n "$1" get "$2" "$3" -o \
    'jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{"\n"}{end}' 2>/dev/null |
    grep -v '=True' | sed 's/^/  condition /' || echo "  no condition is reported yet"
}

# newest_pod NAMESPACE KIND NAME: prints "NAMESPACE pod/NAME" of the newest pod that serves the object.
newest_pod() {
  local namespace="$1" selector pod
  case "$2" in
    ksvc) selector="serving.knative.dev/service=$3" ;;
    job) selector="job-name=$3" ;;
    kafkasource) namespace=knative-eventing selector="app=kafka-source-dispatcher" ;;
    kafkasink) namespace=knative-eventing selector="app=kafka-sink-receiver" ;;
    pingsource) namespace=knative-eventing selector="eventing.knative.dev/source=ping-source-controller" ;;
    kafka | kafkatopic | kafkauser) selector="strimzi.io/cluster=kafka" ;;
    innodbcluster) selector="mysql.oracle.com/cluster=$3" ;;
    scyllacluster) selector="scylla/cluster=$3" ;;
    *) selector="app=$3" ;;
  esac
  pod=$(kubectl -n "$namespace" get pods -l "$selector" --sort-by=.metadata.creationTimestamp -o name 2>/dev/null | tail -n 1)
  [ -z "$pod" ] || echo "$namespace $pod"
}

# explain_pod NAMESPACE POD KIND NAME
explain_pod() {
  local namespace="$1" pod="$2" container=() state log next
  [ "$3" != ksvc ] || container=(-c user-container)
  state=$(kubectl -n "$namespace" get "$pod" -o \
    'jsonpath={.status.phase}{"\n"}{range .status.conditions[?(@.status=="False")]}{.type}=False {.reason}: {.message}{"\n"}{end}{range .status.containerStatuses[*]}{.name}: ready={.ready} restarts={.restartCount} {.state.waiting.reason} {.state.waiting.message} {.lastState.terminated.reason} {.lastState.terminated.exitCode}{"\n"}{end}' 2>/dev/null)
  printf '  %s: %s\n' "$pod" "$(sed '2,$s/^/    /' <<<"$state")"
  log=$(kubectl -n "$namespace" logs "$pod" "${container[@]}" --tail=10 2>&1)
  # A container that has just restarted has not logged anything yet.
  [ -n "$log" ] || log=$(kubectl -n "$namespace" logs "$pod" "${container[@]}" --previous --tail=10 2>&1)
  [ -n "$log" ] || log="(none)"
  echo "  its last log lines:"
  printf '    %s\n' "${log//$'\n'/$'\n'    }"
  case "$state" in
    *ImagePull* | *ErrImage*)
      next="see that the image is where its name says (kind load docker-image, IMAGES, TAG): kubectl -n $namespace describe $pod" ;;
    *Unschedulable*) next="the cluster has no room for it: kubectl describe nodes" ;;
    *OOMKilled*) next="it needs more memory than its limit: kubectl -n $namespace describe $pod" ;;
    *' 64') next="a key of the configuration is wrong, which the log names: kubectl -n $namespace get configmap,secret" ;;
    Running*) next="kubectl -n $namespace logs $pod ${container[*]:-}${container[*]:+ }--follow" ;;
    *) next="kubectl -n $namespace describe $pod" ;;
  esac
  printf 'next: %s\n' "$next"
}
