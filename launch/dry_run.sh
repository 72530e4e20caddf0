# Sourced by the launchers of clouds: `run COMMAND` runs it, or prints it where the first argument is --dry-run.
# shellcheck shell=bash
DRY_RUN=
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=1
  shift
fi

quoted() { # every word in quotes, as ${*@Q} of newer shells than macOS has
  local word words=()
  for word in "$@"; do words+=("'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"); done
  printf '%s' "${words[*]-}"
}

run() {
  if [ -n "$DRY_RUN" ]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

usage() { # the comment that opens the script
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
