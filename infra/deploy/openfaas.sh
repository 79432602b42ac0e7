# shellcheck shell=bash disable=SC2154 # work and step are deploy.sh's
# Deploys the functions on OpenFaaS, and the forwarder that reads the log for them, on Kubernetes or on faasd
# (ENVIRONMENT=faasd).

FUNCTIONS=(ingest count store batch analytics)
# The gateway's secrets, as mounted by stack.yml.
OPENFAAS_SECRETS=("${FUNCTIONS[@]/#/lambda-}" lambda-forwarder cassandra-ca event-token)
FORWARDER_PORT=8085

openfaas_up() {
  preflight_openfaas
  if [ "$ENVIRONMENT" = faasd ]; then
    FORWARDER_URL="${FORWARDER_URL:-$(forwarder_of_faasd)}"
    render_faasd
  else
    infrastructure
    if [ "$ENVIRONMENT" = prod ]; then make_secrets openfaas; else make_secrets openfaas/event-token; fi
  fi
  step "secrets of the functions"
  openfaas_secrets
  step "functions"
  deploy_functions
  step "wait for functions"
  wait_functions
  step "forwarder"
  start_forwarder
  find_forwarder
  step "smoke test"
  smoke_openfaas
}

# describe NAME: prints the gateway's description of a function; fails if it is not deployed.
describe() { faas-cli describe "$1" -g "$OPENFAAS_URL" 2>/dev/null; }

# has_replica DESCRIPTION: succeeds if at least one replica is ready.
has_replica() { grep -Eq '^(Status: +Ready|Available [Rr]eplicas: +[1-9])' <<<"$1"; }

# fingerprint NAME: prints a hash of everything in a deployment of NAME, including the contents of secrets. It is stored
# as an annotation at the gateway, because the gateway does not return the contents of secrets.
fingerprint() {
  {
    faas-cli generate --api=openfaas.com/v1 -f infra/openfaas/stack.yml --filter "$1" || die "faas-cli cannot read infra/openfaas/stack.yml"
    # `generate` omits this field.
    grep readonly_root_filesystem infra/openfaas/stack.yml
    cat "$work/lambda-$1" "$work/ca" "$work/token"
  } | sha256sum | cut -d' ' -f1
}

# deploy_functions: deploys each function that differs from the running one, and sets `changed` if there was one. Skips
# unchanged functions, because a deployment replaces the replicas.
deploy_functions() {
  local name wanted is image
  changed=
  for name in "${FUNCTIONS[@]}"; do
    wanted=$(fingerprint "$name")
    is=$(describe "$name" || true)
    image=$(sed -nE 's/^Image: +//p' <<<"$is")
    if [ -z "$token_made" ] && has_replica "$is" && [[ "/$image" == */"$IMAGES/$name:$TAG" ]] &&
      grep -Eq "dev\.lambda-architecture\.fingerprint *: *$wanted" <<<"$is"; then
      echo "$name unchanged"
    else
      faas-cli deploy -g "$OPENFAAS_URL" -f infra/openfaas/stack.yml --filter "$name" \
        --annotation "dev.lambda-architecture.fingerprint=$wanted" ||
        die "the gateway did not take $name; see its answer above"
      changed=yes
      echo "$name deployed"
    fi
  done
}

wait_functions() {
  local name until=$((SECONDS + TIMEOUT))
  for name in "${FUNCTIONS[@]}"; do
    until has_replica "$(describe "$name" || true)"; do
      [ "$SECONDS" -lt "$until" ] || die "the function $name was not ready within $TIMEOUT s; see: faas-cli describe $name -g $OPENFAAS_URL; faas-cli logs $name -g $OPENFAAS_URL"
      sleep 1
    done
    echo "$name is ready"
  done
}

# stop_stale_forwarder: stops a forwarder that does not know the token that functions will require from now on: they
# would reject its events, which would become dead letters. On faasd, where only the operator can stop it, this fails.
stop_stale_forwarder() {
  if [ "$ENVIRONMENT" != faasd ]; then
    if has -n openfaas deployment forwarder && [ "$(forwarders_token)" != "$(hash_of "$work/token")" ]; then
      step "the forwarder stops until functions know the new token"
      kubectl -n openfaas scale deployment/forwarder --replicas=0
      gone "the forwarder" -n openfaas pod -l app=forwarder
    fi
  elif arrows >/dev/null; then
    die "the forwarder at $FORWARDER_URL cannot know the token that is to be made, and functions would refuse its events: stop it (sudo systemctl disable --now lambda-forwarder), run this again, then start it"
  fi
}

# forwarders_token: prints the hash of the token that the forwarder was started with, as annotated by start_forwarder.
forwarders_token() {
  kubectl -n openfaas get deployment forwarder -o \
    'jsonpath={.spec.template.metadata.annotations.dev\.lambda-architecture\.token}' 2>/dev/null || true
}

# start_forwarder: starts the forwarder on Kubernetes; on faasd the operator starts it.
start_forwarder() {
  if [ "$ENVIRONMENT" = faasd ]; then
    [ -z "$changed" ] || echo "if it runs already: sudo systemctl restart lambda-forwarder, so that it reads what changed"
    return
  fi
  local used='.items[*].spec.template.spec.containers[*].env[*].valueFrom.configMapKeyRef.name'
  kubectl kustomize "infra/openfaas/$ENVIRONMENT" | images |
    sed -E -e "s#(dev\.lambda-architecture\.token: ).*#\1\"$(hash_of "$work/token")\"#" \
      -e "s#(dev\.lambda-architecture\.config: ).*#\1\"$(hash_of "$work/lambda-forwarder")\"#" | kubectl apply -f -
  rolled_out openfaas deployment/forwarder
  prune openfaas deployment "$used" replicaset "$used"
}

hash_of() { sha256sum <"$1" | cut -d' ' -f1; }

# find_forwarder: fails if the forwarder does not respond, with the steps to start it.
find_forwarder() {
  if [ "$ENVIRONMENT" != faasd ]; then
    forward_port openfaas deployment/forwarder 8080 /arrows
    FORWARDER_URL="http://127.0.0.1:$forwarded"
  fi
  if ! arrows >/dev/null; then
    [ "$ENVIRONMENT" != faasd ] || forwarder_steps >&2
    die "no forwarder answers at $FORWARDER_URL/arrows ($(tail -n 1 "$work/arrows-error")): ingest takes users, and nothing counts them yet"
  fi
  echo "the forwarder answers"
}

forwarder_of_faasd() {
  local host
  host=$(host_of "$OPENFAAS_URL")
  printf 'http://%s:%s' "${host%:*}" "$FORWARDER_PORT"
}

# arrows: prints the statistics of each source of the forwarder, as JSON.
arrows() { curl -sS -m 10 -f "$FORWARDER_URL/arrows" 2>"$work/arrows-error"; }

# render_faasd: writes the forwarder's compose file with a fully qualified image name; faasd has no default registry.
render_faasd() {
  local names="$IMAGES"
  case "${IMAGES%%/*}" in *.* | *:* | localhost) ;; *) names="docker.io/$IMAGES" ;; esac
  mkdir -p "$(dirname "$RENDERED")"
  sed -E "s#(image: ).*/forwarder:.*#\1$names/forwarder:$TAG#" infra/openfaas/faasd.yaml >"$RENDERED"
}

forwarder_steps() {
  cat <<STEPS
Start the forwarder on faasd's machine. As a service of systemd, which starts it again when it dies
(the files are there after \`ENGINE=archive task images\`, built for that machine):

    sudo install -m 755 target/images/trees/forwarder/function /usr/local/bin/lambda-forwarder
    sudo cp -r target/images/trees/forwarder/etc/lambda-architecture /etc/
    sudo install -m 644 infra/openfaas/lambda-forwarder.service /etc/systemd/system/
    sudo systemctl daemon-reload && sudo systemctl enable --now lambda-forwarder

Or as a container of faasd, which never starts it again: add the service of $RENDERED
to /var/lib/faasd/docker-compose.yaml, then: sudo systemctl restart faasd

Then run this command again. FORWARDER_URL names the forwarder where it is not at $FORWARDER_URL.
STEPS
}

openfaas_down() {
  need faas-cli "faas-cli" "curl -sSL https://cli.openfaas.com | sudo sh"
  [ "$ENVIRONMENT" = faasd ] || need_kubectl
  report
  need_gateway
  report
  # The forwarder first: without functions it would send every event of the log to the dead letters.
  step "forwarder"
  remove_forwarder
  step "functions"
  remove_functions
  step "what stays"
  remove_secrets
  [ "$ENVIRONMENT" = faasd ] || infrastructure_down
}

remove_forwarder() {
  if [ "$ENVIRONMENT" != faasd ]; then
    remove "openfaas/$ENVIRONMENT"
    gone "the forwarder" -n openfaas pod -l app=forwarder
    return
  fi
  FORWARDER_URL="${FORWARDER_URL:-$(forwarder_of_faasd)}"
  if arrows >/dev/null; then
    die "the forwarder at $FORWARDER_URL still runs; stop it first, on its machine: sudo systemctl disable --now lambda-forwarder (or take it out of /var/lib/faasd/docker-compose.yaml, then: sudo systemctl restart faasd); nothing was removed"
  fi
  echo "no forwarder answers at $FORWARDER_URL"
}

# deployed: prints the names of the system's functions that the gateway still has, one per line.
deployed() {
  local list
  list=$(faas-cli list -q -g "$OPENFAAS_URL") || die "the gateway at $OPENFAAS_URL does not say which functions it has"
  grep -xFf <(printf '%s\n' "${FUNCTIONS[@]}") <<<"$list" || true
}

remove_functions() {
  local name left until=$((SECONDS + TIMEOUT))
  left=$(deployed)
  for name in $left; do
    # The list below shows whether the removal succeeded.
    faas-cli remove "$name" -g "$OPENFAAS_URL" || echo "the gateway did not remove $name"
  done
  while left=$(deployed) && [ -n "$left" ]; do
    [ "$SECONDS" -lt "$until" ] ||
      die "still deployed after $TIMEOUT s: $(paste -sd' ' <<<"$left"); see: faas-cli list -g $OPENFAAS_URL; again: faas-cli remove NAME -g $OPENFAAS_URL"
    sleep 1
  done
  echo "no function is left"
}

# remove_secrets: removes the secrets with DATA=delete; otherwise prints that they stay.
remove_secrets() {
  local name list
  list=$(faas-cli secret list -g "$OPENFAAS_URL") || die "the gateway at $OPENFAAS_URL does not say which secrets it has"
  for name in "${OPENFAAS_SECRETS[@]}"; do
    grep -qw -- "$name" <<<"$list" || continue
    if [ "$DATA" = delete ]; then
      faas-cli secret remove "$name" -g "$OPENFAAS_URL" || die "the secret $name was not removed"
    else
      echo "the secret $name stays; DATA=delete takes it away, or: faas-cli secret remove $name -g $OPENFAAS_URL"
    fi
  done
  [ "$ENVIRONMENT" = faasd ] || [ "$DATA" = delete ] || echo "the Secret openfaas/event-token stays with it"
  if [ "$ENVIRONMENT" != faasd ] && [ "$DATA" = delete ]; then
    kubectl -n openfaas delete secret event-token --ignore-not-found
  fi
}
