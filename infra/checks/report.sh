# shellcheck shell=bash
# The report of what ran and what did not. Every check appends lines to the file CHECK_REPORT, if it is set: shell with
# these functions, Python with infra/checks/report.py, Rust with tests/not_run.rs. A line is `ran NAME` or
# `not KIND WHAT`, separated by tabs. KIND is the kind of the missing prerequisite:
#   debian, crates.io, go, maven  a package; with CI=true its absence is a failure
#   services  the real services, which a later step starts
#   schemas   the folder of published schemas and features, which SCHEMAS=DIR names
#   root, images, python, kubectl  the root user, a build, a package of PyPI, a program that is in no registry
# To be sourced.

ran() { [ -z "${CHECK_REPORT:-}" ] || printf 'ran\t%s\n' "$*" >>"$CHECK_REPORT"; }

# missing KIND WHAT: prints it and adds it to the report.
missing() {
  local kind="$1"
  shift
  printf 'not run: %s\n' "$*"
  [ -z "${CHECK_REPORT:-}" ] || printf 'not\t%s\t%s\n' "$kind" "$*" >>"$CHECK_REPORT"
}

# advice KIND: prints how to provide it.
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

# print_report: prints the table. With CI=true, fails if a package is missing that a registry has.
print_report() {
  local kind what wanting=0 left
  printf '\n== what ran\n'
  sed -n 's/^ran\t/  /p' "$CHECK_REPORT" | sort -u
  left=$(grep -P '^not\t' "$CHECK_REPORT" | sort -u || true)
  # The step of the real services ran these later, against its own services.
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
