# shellcheck shell=bash disable=SC2154,SC2034 # work is deploy.sh's, token_made for openfaas.sh
# Creates the Secrets of prod from the table infra/secrets.tsv: passwords are generated once and kept, other values are
# copied. Values are passed through files that only their owner can read, never on a command line.

# value NAMESPACE KIND NAME KEY: prints a value of a Secret or a ConfigMap, or nothing if it does not exist.
value() {
  local decode='{{base64decode .}}'
  [ "$2" = secret ] || decode='{{.}}'
  kubectl -n "$1" get "$2" "$3" -o "go-template={{with index .data \"$4\"}}$decode{{end}}" 2>/dev/null || true
}

# random_value: prints 32 letters and digits, which never need quoting.
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

# make_secrets NAMESPACE|NAMESPACE/NAME…: applies all Secrets of these namespaces, or single Secrets.
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

# all_config: prints the configuration of all functions with its secrets, as lines of KEY='VALUE'.
all_config() {
  local files=(infra/config/config.env) line key namespace name field quote="'"
  if [ "$ENVIRONMENT" = prod ]; then files+=(infra/config/prod/config.env); fi
  if [ "$ENVIRONMENT" = faasd ]; then cat "$CONFIG" && return; fi
  declare -A lines=()
  while read -r line; do
    case "$line" in '' | '#'*) ;; *) lines[${line%%=*}]="${line#*=}" ;; esac
  done < <(cat "${files[@]}")
  while read -r key namespace name field; do
    lines[$key]=$(value "$namespace" secret "$name" "$field")
  done < <(config_secrets)
  for key in $(printf '%s\n' "${!lines[@]}" | sort); do printf '%s=%s%s%s\n' "$key" "$quote" "${lines[$key]}" "$quote"; done
}

# config_secrets: prints the Secret of each secret key, one per line: key, namespace, name, field.
config_secrets() {
  echo MYSQL_PASSWORD mysql mysql-lambda password
  if [ "$ENVIRONMENT" = prod ]; then
    echo CASSANDRA_PASSWORD cassandra cassandra-lambda password
    echo KAFKA_PASSWORD kafka lambda password
    echo KAFKA_CA kafka kafka-cluster-ca-cert ca.crt
  fi
}

# keys_of NAME: prints the keys in the manifest of a function or of the forwarder, without those that URLs refer to.
keys_of() {
  local manifest="functions/$1/service.yaml"
  if [ "$1" = forwarder ]; then
    manifest=infra/openfaas/base/forwarder.yaml
    echo GATEWAY_USER GATEWAY_PASSWORD
  fi
  sed -nE 's/^ +(- )?name: ([A-Z][A-Z_]+)$/\2/p' "$manifest" infra/knative/base/function.yaml
}

# pick FILE KEY…: prints the lines of a file of KEY=VALUE that belong to these keys; quoted values may span lines.
pick() {
  local file="$1"
  shift
  awk -v keys=" $* " '
    open == "" && /^[ \t]*(export[ \t]+)?[A-Za-z_][A-Za-z_0-9.]*[ \t]*=/ {
      key = value = $0
      sub(/[ \t]*=.*/, "", key); sub(/^[ \t]*(export[ \t]+)?/, "", key)
      sub(/^[^=]*=[ \t]*/, "", value)
      wanted = index(keys, " " key " ")
      open = substr(value, 1, 1)
      if (open != "\"" && open != "\047") open = ""
      rest = substr(value, 2)
      if (wanted) print
      if (open != "" && closes(rest)) open = ""
      next
    }
    open != "" { if (wanted) print; if (closes($0)) open = "" }
    function closes(text) { if (open == "\"") gsub(/\\./, "", text); return index(text, open) }
  ' "$file"
}

# config_of NAME: prints the part of $work/config that this function, or the forwarder, reads.
config_of() {
  local keys references
  mapfile -t keys < <(keys_of "$1" | tr ' ' '\n')
  mapfile -t references < <(pick "$work/config" "${keys[@]}" | grep -oE '[$][(][A-Za-z_0-9]+' | cut -c3-)
  pick "$work/config" "${keys[@]}" "${references[@]}"
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
  local name
  all_config >"$work/config"
  for name in "${FUNCTIONS[@]}" forwarder; do config_of "$name" >"$work/lambda-$name"; done
  echo "not used without TLS" >"$work/ca"
  if [ "$ENVIRONMENT" = prod ]; then value cassandra configmap cassandra-local-serving-ca ca-bundle.crt >"$work/ca"; fi
  for name in "${FUNCTIONS[@]}"; do openfaas_secret "lambda-$name" "$work/lambda-$name"; done
  # On Kubernetes the forwarder is a Deployment, whose manifest names its configuration.
  if [ "$ENVIRONMENT" = faasd ]; then openfaas_secret lambda-forwarder "$work/lambda-forwarder"; fi
  openfaas_secret cassandra-ca "$work/ca"
  event_token
}

# event_token: sets the token that internal functions require and the forwarder sends. It is generated once. On
# Kubernetes the forwarder reads the Secret openfaas/event-token, and the functions get a copy. On faasd only the
# gateway has it, and never returns it. Sets token_made if running functions cannot know the token yet.
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
