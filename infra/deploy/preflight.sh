# shellcheck shell=bash disable=SC2154 # work is deploy.sh's
# Checks the prerequisites of a deployment before anything is changed, and prints how to install the missing ones.

wanting=()
# want WHAT COMMAND: records what is missing.
want() { wanting+=("$1"$'\n'"    $2"); }
need() { command -v "$1" >/dev/null || want "the program $2" "$3"; }
# has KIND NAME…: succeeds if the cluster has the object.
has() { kubectl get "$@" >/dev/null 2>&1; }

# need_crd NAME VERSION WHAT COMMAND: the cluster must serve the kind in this version.
need_crd() {
  local versions
  if ! versions=$(kubectl get crd "$1" -o 'jsonpath={.spec.versions[?(@.served==true)].name}' 2>/dev/null); then
    want "$3 (no $1)" "$4"
  elif ! grep -qw "$2" <<<"$versions"; then
    want "a newer $3 ($1 has $versions, and not $2)" "$4"
  fi
}

report() {
  [ "${#wanting[@]}" = 0 ] && return
  printf 'missing: %s\n' "${wanting[@]}" >&2
  die "${#wanting[@]} things are missing; nothing was changed"
}

KNATIVE=https://github.com/knative
need_kubectl() {
  need kubectl "kubectl" "see https://kubernetes.io/docs/tasks/tools, or: curl -LO https://dl.k8s.io/release/v1.34.0/bin/linux/amd64/kubectl"
  report
  kubectl version >"$work/version" 2>&1 || want "a cluster that kubectl reaches ($(tail -n 1 "$work/version"))" "kind create cluster"
  report
}

# Kubernetes 1.30 is the oldest version with all that the manifests use.
need_version() {
  local minor
  minor=$(sed -nE 's/^Server Version: v1\.([0-9]+).*/\1/p' "$work/version")
  [ -n "$minor" ] && [ "$minor" -ge 30 ] || want "Kubernetes 1.30 or newer (there is 1.${minor:-?})" "upgrade the cluster"
}

need_storage() {
  kubectl get storageclass -o jsonpath='{range .items[*]}{.metadata.annotations.storageclass\.kubernetes\.io/is-default-class}{"\n"}{end}' \
    >"$work/classes" 2>/dev/null || true
  grep -q true "$work/classes" ||
    want "a default storage class" "kubectl patch storageclass NAME -p '{\"metadata\":{\"annotations\":{\"storageclass.kubernetes.io/is-default-class\":\"true\"}}}'"
}

need_operators() {
  [ "$ENVIRONMENT" = prod ] || return 0
  need_crd kafkanodepools.kafka.strimzi.io v1 "Strimzi" \
    "kubectl create namespace kafka; kubectl apply -n kafka -f 'https://strimzi.io/install/latest?namespace=kafka'"
  need_crd innodbclusters.mysql.oracle.com v2 "MySQL's operator" \
    "helm install mysql-operator mysql-operator --repo https://mysql.github.io/mysql-operator --namespace mysql-operator --create-namespace"
  need_crd scyllaclusters.scylla.scylladb.com v1 "Scylla's operator (it needs cert-manager)" \
    "helm install scylla-operator scylla-operator --repo https://scylla-operator-charts.storage.googleapis.com/stable --namespace scylla-operator --create-namespace"
}

need_servers() {
  need_version
  need_storage
  need_operators
}

preflight_knative() {
  step "preflight"
  need_kubectl
  need curl "curl" "apt install curl"
  need_servers
  need_crd services.serving.knative.dev v1 "Knative Serving" \
    "kubectl apply -f $KNATIVE/serving/releases/latest/download/serving-crds.yaml -f $KNATIVE/serving/releases/latest/download/serving-core.yaml"
  gateway >/dev/null || want "a network layer of Knative (Kourier)" \
    "kubectl apply -f $KNATIVE-extensions/net-kourier/releases/latest/download/kourier.yaml && kubectl patch configmap/config-network -n knative-serving --type merge -p '{\"data\":{\"ingress-class\":\"kourier.ingress.networking.knative.dev\"}}'"
  need_crd pingsources.sources.knative.dev v1 "Knative Eventing" \
    "kubectl apply -f $KNATIVE/eventing/releases/latest/download/eventing-crds.yaml -f $KNATIVE/eventing/releases/latest/download/eventing-core.yaml"
  need_crd kafkasources.sources.knative.dev v1 "KafkaSource" \
    "kubectl apply -f $KNATIVE-extensions/eventing-kafka-broker/releases/latest/download/eventing-kafka-controller.yaml -f $KNATIVE-extensions/eventing-kafka-broker/releases/latest/download/eventing-kafka-source.yaml"
  need_crd kafkasinks.eventing.knative.dev v1alpha1 "KafkaSink" \
    "kubectl apply -f $KNATIVE-extensions/eventing-kafka-broker/releases/latest/download/eventing-kafka-controller.yaml -f $KNATIVE-extensions/eventing-kafka-broker/releases/latest/download/eventing-kafka-sink.yaml"
  if [ "$ROUTES" = gateway ]; then
    need_crd referencegrants.gateway.networking.k8s.io v1 "Gateway API, 1.5 or newer: ReferenceGrant v1 is there from 1.5 on" \
      "kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/latest/download/standard-install.yaml"
    has gateway -n gateway public || want "the Gateway \`public\` of the namespace \`gateway\`" "see docs/deploy.md, Routes"
  fi
  if [ "$ROUTES" = nginx ]; then
    has ingressclass nginx || want "ingress-nginx" \
      "helm install ingress-nginx ingress-nginx --repo https://kubernetes.github.io/ingress-nginx --namespace ingress-nginx --create-namespace"
  fi
  report
  echo "all that is needed is there"
}

# need_config: checks that CONFIG is complete for faasd; otherwise functions would fail one by one after deployment.
need_config() {
  local key value reference example="cp infra/config/config.env app.env; edit app.env; export CONFIG=app.env"
  if ! [ -r "${CONFIG:-}" ]; then
    want "CONFIG, a file with LOG_URL, MASTER_URL and VIEWS_URL" "$example"
    return
  fi
  [ -z "$(config_value EVENT_TOKEN)" ] || want "a CONFIG without EVENT_TOKEN, which is a secret of its own" "take the line out of $CONFIG"
  for key in LOG_URL MASTER_URL VIEWS_URL; do
    value=$(config_value "$key")
    case "$value" in
      '') want "$key in $CONFIG" "add a line $key='…' as in infra/config/config.env" ;;
      sqlite:*) want "a server in $key of $CONFIG; an embedded store is in nobody else's container" "see infra/config/config.env" ;;
    esac
    while read -r reference; do
      [ -n "$(config_value "$reference")" ] || want "$reference in $CONFIG, which $key names" "add a line $reference='…'"
    done < <(grep -oE '\$\([A-Za-z_0-9]+\)' <<<"$value" | tr -cd 'A-Za-z_0-9\n')
  done
}

# config_value KEY: prints the value in CONFIG without its quotes; the last line takes precedence.
config_value() { sed -nE "s/^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*=[[:space:]]*//p" "$CONFIG" | tail -n 1 | sed -E "s/^(['\"])(.*)\1[[:space:]]*$/\2/"; }

# need_gateway: the gateway must respond and accept the login.
need_gateway() {
  local advice="faas-cli login -g $OPENFAAS_URL --password PASSWORD"
  if [ "$ENVIRONMENT" = faasd ]; then
    advice="on its machine: sudo cat /var/lib/faasd/secrets/basic-auth-password; here: $advice"
  else
    advice="kubectl -n openfaas port-forward service/gateway 8080:8080 & $advice"
  fi
  faas-cli list -g "$OPENFAAS_URL" >"$work/list" 2>&1 || want "a gateway at $OPENFAAS_URL that lets you in ($(tail -n 1 "$work/list"))" "$advice"
}

preflight_openfaas() {
  step "preflight"
  need faas-cli "faas-cli" "curl -sSL https://cli.openfaas.com | sudo sh"
  need curl "curl" "apt install curl"
  [ -n "$IMAGES" ] || want "IMAGES, where the gateway pulls the images from" "export IMAGES=REGISTRY/lambda-architecture TAG=1.0.0"
  if [ "$ENVIRONMENT" = faasd ]; then
    need_config
  else
    need_kubectl
    need_servers
    for namespace in openfaas openfaas-fn; do
      has namespace "$namespace" || want "OpenFaaS (no namespace $namespace)" \
        "kubectl apply -f https://raw.githubusercontent.com/openfaas/faas-netes/master/namespaces.yml && helm install openfaas openfaas --repo https://openfaas.github.io/faas-netes --namespace openfaas --set functionNamespace=openfaas-fn"
    done
  fi
  report
  need_gateway
  report
  echo "all that is needed is there"
}
