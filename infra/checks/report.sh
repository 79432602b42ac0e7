# shellcheck shell=bash
# The report of what ran and what did not. Everybody adds lines to the file CHECK_REPORT, where it is set: shell by
# these functions, Python by infra/checks/report.py, Rust by tests/not_run.rs. A line is `ran NAME` or
# `not KIND WHAT`, separated by tabs. KIND says who could provide what is missing:
#   debian, crates.io, go, maven  a package; with CI=true its absence is a failure
#   services  the real services, which a later step starts
#   schemas   the folder of published schemas and features, which SCHEMAS=DIR names
#   root, images, python, kubectl  a user, a build, a package of PyPI, a program that no registry has
# To be sourced.

ran() { [ -z "${CHECK_REPORT:-}" ] || printf 'ran\t%s\n' "$*" >>"$CHECK_REPORT"; }

# missing KIND WHAT: says it and adds it to the report.
missing() {
  local kind="$1"
  shift
  printf 'not run: %s\n' "$*"
  [ -z "${CHECK_REPORT:-}" ] || printf 'not\t%s\t%s\n' "$kind" "$*" >>"$CHECK_REPORT"
}

# advice KIND: how to get it.
advice() {
  case "$1" in
    debian) echo "a package of Debian: run this as root, or with sudo" ;;
    crates.io | go | maven) echo "comes from $1: run this with a network" ;;
    services) echo "infra/services/test.sh runs it" ;;
    schemas) echo "SCHEMAS=DIR names a folder with json/ and cloudevents/features/" ;;
    root) echo "run this as root" ;;
    images) echo "task test:images" ;;
    kubectl) echo "see https://kubernetes.io/docs/tasks/tools" ;;
    python) echo "a package of PyPI: run this with a network" ;;
  esac
}

# print_report: the table. Fails with CI=true where a package is missing that could be had.
print_report() {
  local kind what wanting=0 left
  printf '\n== what ran\n'
  sed -n 's/^ran\t/  /p' "$CHECK_REPORT" | sort -u
  left=$(grep -P '^not\t' "$CHECK_REPORT" | sort -u || true)
  # These ran later, against services of their own.
  if grep -qxP 'ran\tthe real services' "$CHECK_REPORT"; then left=$(grep -vP '^not\tservices\t' <<<"$left" || true); fi
  printf '== what did not run\n'
  [ -n "$left" ] || echo "  nothing was left out"
  while IFS=$'\t' read -r _ kind what; do
    [ -n "$kind" ] || continue
    printf '  %s (%s)\n' "$what" "$(advice "$kind")"
    case "$kind" in debian | crates.io | go | maven) wanting=$((wanting + 1)) ;; esac
  done <<<"$left"
  if [ "$wanting" != 0 ] && [ "${CI:-}" = true ]; then
    printf '%s of these could be had, which is a failure with CI=true\n' "$wanting"
    return 1
  fi
}
