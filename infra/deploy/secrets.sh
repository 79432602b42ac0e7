# shellcheck shell=bash disable=SC2154,SC2034 # work is deploy.sh's, token_made for openfaas.sh
# The Secrets of prod, by the table infra/secrets.tsv: a password is made once and kept, others are copied. Values go
# through files that nobody else may read, never through a command line.

# value NAMESPACE KIND NAME KEY: what a Secret or a ConfigMap holds; nothing where it does not.
value() {
  local decode='{{base64decode .}}'
  [ "$2" = secret ] || decode='{{.}}'
  kubectl -n "$1" get "$2" "$3" -o "go-template={{with index .data \"$4\"}}$decode{{end}}" 2>/dev/null || true
}

# random_value: 32 letters and digits, which need no quoting anywhere.
random_value() { LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom 2>/dev/null | head -c 32 || true; }

# find_value NAMESPACE NAME KEY SOURCE FILE
find_value() {
  case "$4" in
    literal:*) printf '%s' "${4#literal:}" >"$5" ;;
    random)
      value "$1" secret "$2" "$3" >"$5"
      [ -s "$5" ] || random_value >"$5"
      ;;
    copy:*)
      local namespace kind name key
      IFS=/ read -r namespace kind name key <<<"${4#copy:}"
      value "$namespace" "$kind" "$name" "$key" >"$5"
      ;;
  esac
  [ -s "$5" ] || die "the Secret $1/$2 needs $3 from ${4#copy:}, which holds nothing; see: kubectl -n ${namespace:-$1} get secret,configmap"
}

# make_secrets NAMESPACE|NAMESPACE/NAME…: all Secrets of these namespaces, or this one.
make_secrets() {
  local wanted namespace name key source folder
  for wanted in "$@"; do
    while IFS=$'\t' read -r namespace name key source; do
      case "$wanted" in "$namespace" | "$namespace/$name") ;; *) continue ;; esac
      folder="$work/secrets/$namespace/$name"
      mkdir -p "$folder"
      find_value "$namespace" "$name" "$key" "$source" "$folder/$key"
    done <infra/secrets.tsv
    for folder in "$work/secrets/${wanted%%/*}"/*; do
      kubectl -n "${wanted%%/*}" create secret generic "$(basename "$folder")" --from-file="$folder" --dry-run=client -o yaml |
        kubectl apply -f -
    done
  done
}

# config_lines: the functions' configuration as a file of KEY='VALUE' lines.
config_lines() {
  local files=(infra/config/config.env) line key quote="'"
  if [ "$ENVIRONMENT" = prod ]; then files+=(infra/config/prod/config.env); fi
  if [ "$ENVIRONMENT" = faasd ]; then cat "$CONFIG" && return; fi
  declare -A lines=()
  while read -r line; do
    case "$line" in '' | '#'*) ;; *) lines[${line%%=*}]="${line#*=}" ;; esac
  done < <(cat "${files[@]}")
  for key in MYSQL_PASSWORD CASSANDRA_PASSWORD KAFKA_PASSWORD KAFKA_CA; do
    if [ "$ENVIRONMENT" = prod ]; then lines[$key]=$(value openfaas secret lambda-architecture "$key"); fi
  done
  if [ "$ENVIRONMENT" = dev ]; then lines[MYSQL_PASSWORD]=$(value mysql secret mysql-lambda password); fi
  # OpenFaaS mounts secrets elsewhere; stack.yml says where.
  unset 'lines[CASSANDRA_CA_FILE]'
  for key in $(printf '%s\n' "${!lines[@]}" | sort); do printf '%s=%s%s%s\n' "$key" "$quote" "${lines[$key]}" "$quote"; done
}

# openfaas_secret NAME FILE
openfaas_secret() {
  local verb=create
  if has_openfaas_secret "$1"; then verb=update; fi
  faas-cli secret "$verb" "$1" -g "$OPENFAAS_URL" --from-file "$2" || die "the gateway did not take the secret $1"
}

has_openfaas_secret() {
  local list
  list=$(faas-cli secret list -g "$OPENFAAS_URL") || die "the gateway at $OPENFAAS_URL does not say which secrets it has"
  grep -qw -- "$1" <<<"$list"
}

openfaas_secrets() {
  config_lines >"$work/config"
  echo "not used without TLS" >"$work/ca"
  if [ "$ENVIRONMENT" = prod ]; then value cassandra configmap cassandra-local-serving-ca ca-bundle.crt >"$work/ca"; fi
  openfaas_secret lambda-architecture "$work/config"
  openfaas_secret cassandra-ca "$work/ca"
  event_token
}

# event_token: what the internal functions ask for and the forwarder sends, made once. On Kubernetes the forwarder reads
# the Secret openfaas/event-token, and the functions get a copy. On faasd the gateway alone has it, and never shows it.
# Sets token_made where running functions cannot know it yet.
event_token() {
  token_made=
  : >"$work/token"
  if [ "$ENVIRONMENT" != faasd ]; then
    value openfaas secret event-token EVENT_TOKEN >"$work/token"
    [ -s "$work/token" ] || die "the Secret openfaas/event-token holds nothing; see: kubectl -n openfaas get secret event-token"
    stop_stale_forwarder
    openfaas_secret event-token "$work/token"
  elif has_openfaas_secret event-token; then
    echo "the secret event-token is kept"
  else
    stop_stale_forwarder
    random_value >"$work/new-token"
    openfaas_secret event-token "$work/new-token"
    token_made=yes
  fi
}
