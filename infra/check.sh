#!/usr/bin/env bash
# check.sh: runs all checks of the deployments that need no cluster. Any fault is a failure. Also checks broken copies,
# each of which must be rejected. Ends with a table of what ran, and of what did not run and why; with CI=true, a
# missing tool that a package registry has is a failure.
#
#   SCHEMAS  folder of published schemas (../shared/schemas): json/{group}/{kind}_{version}.json, cloudevents/features
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/checks/tools.sh
. infra/checks/tools.sh
out="$PWD/target/check"
schemas="${SCHEMAS:-../shared/schemas}/json"
[ -d "$schemas" ] || schemas=-
passed=0 failed=0

# If CHECK_REPORT is set, the caller prints the table.
report=
if [ -z "${CHECK_REPORT:-}" ]; then
  report=$(mktemp)
  export CHECK_REPORT="$report"
  trap 'rm -f "$report"' EXIT
fi

good() { printf 'ok      %s\n' "$*" && ran "deployments, ${1%%: *}" && passed=$((passed + 1)); }
bad() { printf 'FAILED  %s\n' "$*" && failed=$((failed + 1)); }

# check NAME COMMAND…: runs the command, and prints its output if it fails or skips something. `set -e` has no effect
# inside the command, so it must return its failures as a status.
check() {
  local name="$1" said
  shift
  if said=$("$@" 2>&1); then
    good "$name: $(tail -n 1 <<<"$said")"
    grep '^not run:' <<<"$said" || true
  else
    bad "$name" && printf '%s\n' "$said" | sed 's/^/        /'
  fi
}

overlays=(kafka/dev kafka/prod mysql/dev mysql/prod cassandra/dev cassandra/prod
  knative/base knative/dev knative/prod knative/routes/gateway knative/routes/nginx openfaas/dev openfaas/prod)

rendered() { printf '%s/%s.yaml\n' "$out" "${1//\//-}"; }

render() {
  mkdir -p "$out"
  local overlay
  for overlay in "${overlays[@]}"; do
    kustomization "infra/$overlay" >"$(rendered "$overlay")" || return 1
  done
  echo "${#overlays[@]} overlays"
}

# environment NAME [OVERLAY FILE]: prints the files of an environment, with FILE in place of OVERLAY's.
environment() {
  local overlay
  for overlay in "kafka/$1" "mysql/$1" "cassandra/$1" "knative/$1" "openfaas/$1" knative/routes/gateway knative/routes/nginx; do
    if [ "$overlay" = "${2:-}" ]; then echo "$3"; else rendered "$overlay"; fi
  done
}

names() {
  local secrets=infra/secrets.tsv
  # Of these Secrets, dev has only this one.
  [ "$1" = prod ] || { secrets="$out/secrets.tsv" && grep -P '^openfaas\tevent-token\t' infra/secrets.tsv >"$secrets"; }
  # shellcheck disable=SC2046 # no file's name has a space
  python infra/checks/names.py "$secrets" $(environment "$@")
}

# The laptop's program must run with the manifests that a cluster gets.
laptop() {
  local program data port pid tries=0
  cargo build --quiet --locked || return 1
  program="$PWD/target/debug/lambda-architecture" data=$(mktemp -d) port=$((20000 + RANDOM % 20000))
  "$program" --listen "127.0.0.1:$port" --data "$data" --manifests "$(rendered knative/base)" >"$data/out" 2>&1 &
  pid=$!
  # shellcheck disable=SC2064 # as they are now
  trap "kill $pid 2>/dev/null; wait $pid 2>/dev/null; rm -rf '$data'" RETURN
  until curl -sf "127.0.0.1:$port/ingress/user" -H 'content-type: application/json' \
    -d '{"id":"fc0e2dd1-2b60-4d4b-9a10-94b5a2a4f9ad","name":"Rendered"}' >/dev/null; do
    tries=$((tries + 1))
    kill -0 "$pid" && [ "$tries" -lt 100 ] || { cat "$data/out" && return 1; }
    sleep 0.2
  done
  until curl -sf "127.0.0.1:$port/service-analytics/analytics" | grep -q '"userCount":1}'; do
    tries=$((tries + 1))
    [ "$tries" -lt 200 ] || return 1
    sleep 0.2
  done
  echo "it counted a user, started from the rendered base"
}

# broken FOLDER: the copy must be rejected with the message in its file `expect`.
broken() {
  local case="$1" overlay words file said environment
  { read -r overlay && read -r words; } <"$case/expect"
  file="$out/broken-$(basename "$case").yaml"
  environment=${overlay##*/}
  [ "$environment" = prod ] || environment=dev
  kustomization "$case" >"$file" || return 1
  if said=$(python infra/checks/schemas.py "$schemas" "$file" 2>&1) &&
    said=$(python infra/checks/defaults.py "$schemas" "$file" 2>&1) && said=$(names "$environment" "$overlay" "$file" 2>&1); then
    echo "nobody noticed $(basename "$case"): $(head -n 1 "$case/kustomization.yaml")"
    return 1
  fi
  grep -qF -- "$words" <<<"$said" || { printf '%s must say "%s", and said:\n%s\n' "$case" "$words" "$said" && return 1; }
}

all_broken() {
  local case count=0 left=0 unnoticed=0
  for case in infra/checks/broken/*/; do
    # A third line in `expect` marks a wrong field, which only a schema can detect.
    if [ "$schemas" = - ] && [ "$(wc -l <"$case/expect")" = 3 ]; then left=$((left + 1)) && continue; fi
    if broken "${case%/}"; then count=$((count + 1)); else unnoticed=$((unnoticed + 1)); fi
  done
  [ "$left" = 0 ] || missing schemas "$left broken copies that only a schema can tell"
  echo "$count broken copies were refused, each for its reason"
  [ "$unnoticed" = 0 ]
}

# Edits a file of OpenFaaS; the check must reject it with the message in `expect`.
broken_openfaas() {
  local case file words said count=0
  for case in infra/checks/broken-openfaas/*/; do
    { read -r file && read -r words; } <"$case/expect"
    sed -f "$case/edit.sed" "infra/openfaas/$file" >"$out/$file"
    if said=$(python infra/checks/stack.py "$out/$file") || ! grep -qF -- "$words" <<<"$said"; then
      printf '%s must say "%s", and said:\n%s\n' "$case" "$words" "$said" && return 1
    fi
    count=$((count + 1))
  done
  echo "$count broken copies were refused, each for its reason"
}

# Checks the forwarder's unit, also with systemd-analyze if it is available.
unit() {
  python infra/checks/stack.py infra/openfaas/lambda-forwarder.service || return 1
  if ! command -v systemd-analyze >/dev/null; then missing debian "there is no systemd-analyze" && return; fi
  local copy="$out/lambda-forwarder.service"
  # The program is not installed here; the rest of the unit stays the same.
  sed 's#^ExecStart=.*#ExecStart=/bin/true#' infra/openfaas/lambda-forwarder.service >"$copy"
  systemd-analyze verify --man=no "$copy" || return 1
  echo "the forwarder's unit is whole, and systemd takes it"
}

scripts() {
  # "A && B || C" is intended everywhere: C ends the function or the script.
  shellcheck -x --exclude=SC2015 .ci/run infra/*.sh infra/{checks,deploy,images,services}/*.sh || return 1
  echo "shellcheck finds nothing in any script"
}

workflows() {
  actionlint .github/workflows/*.yml || return 1
  echo "actionlint finds nothing in any workflow"
}

# The files from which the Dockerfile builds dependencies must form a complete workspace.
skeleton() {
  rm -rf "$out/skeleton"
  infra/images/manifests.sh "$out/skeleton" || return 1
  (cd "$out/skeleton" && cargo metadata --locked --no-deps --format-version 1 >/dev/null) || return 1
  echo "cargo reads the manifests without the code"
}

dockerfiles() {
  local files
  mapfile -t files < <(git ls-files '*Dockerfile*')
  hadolint "${files[@]}" || return 1
  echo "hadolint finds nothing in ${files[*]}"
}

printf '== tools\n'
install_tools
printf '== deployments\n'
check "render" render
[ "$failed" = 0 ] || exit 1
if [ -x "$tools/python/bin/kubernetes-validate" ]; then
  command -v kubeconform >/dev/null || schemas=-
  # shellcheck disable=SC2046
  check "schemas" python infra/checks/schemas.py "$schemas" $(for o in "${overlays[@]}"; do rendered "$o"; done)
  # shellcheck disable=SC2046
  check "defaults" python infra/checks/defaults.py "$schemas" $(for o in "${overlays[@]}"; do rendered "$o"; done)
  check "names of dev" names dev
  check "names of prod" names prod
  check "broken copies" all_broken
  check "stack.yml" python infra/checks/stack.py infra/openfaas/stack.yml
  check "faasd.yaml" python infra/checks/stack.py infra/openfaas/faasd.yaml
  check "lambda-forwarder.service" unit
  check "broken copies of OpenFaaS" broken_openfaas
  check "scripts" scripts
  check "dockerfiles" dockerfiles
  if command -v actionlint >/dev/null; then check "workflows" workflows; else missing go "the workflows need actionlint"; fi
  check "archives" python infra/checks/archive.py infra/images/archive.sh
  if command -v kn >/dev/null; then check "kn" python infra/checks/kn.py "$(rendered knative/dev)"; else missing go "kn"; fi
  # The fake kubectl runs the real one for commands that need no cluster.
  if command -v kubectl >/dev/null; then
    check "deploy.sh knative" python infra/checks/deploying.py
    if command -v faas-cli >/dev/null; then check "deploy.sh openfaas" python infra/checks/deploying_openfaas.py
    else missing go "the tests of deploy.sh openfaas need faas-cli"; fi
  else missing kubectl "the tests of deploy.sh need kubectl"; fi
else
  missing python "schemas, names, broken copies, linters and the tests of deploy.sh need the Python tools"
fi
check "report" python infra/checks/reporting.py
check "skeleton" skeleton
check "laptop" laptop
[ -z "$report" ] || print_report || failed=$((failed + 1))
printf '%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
