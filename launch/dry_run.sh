# Sourced by the launchers of clouds: `run COMMAND` runs it, or prints it where the first argument is --dry-run.
# shellcheck shell=bash
DRY_RUN=
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=1
  shift
fi

run() {
  if [ -n "$DRY_RUN" ]; then
    printf '%s\n' "${*@Q}"
  else
    "$@"
  fi
}

usage() { # the comment that opens the script
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
