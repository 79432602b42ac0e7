# frame.sh: shared by the deployment scripts: a temporary folder and child processes that end with the script, and the
# format of messages.
# shellcheck shell=bash
work=$(mktemp -d)
children=()
clean() {
  local child
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  rm -rf "$work"
}
trap clean EXIT

step() { printf '\n== %s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2 && exit 1; }
