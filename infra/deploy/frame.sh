# frame.sh: what the deployment scripts share: a folder of their own and children that end with them, and how they speak.
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
