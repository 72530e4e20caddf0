# Sourced by the other scripts: a virtual environment in the checkout with the pinned packages and this project.
# Needs Python 3.11, 3.12 or 3.13 as PYTHON (default: python3). EXTRA names an extra to add: tpu or cuda.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
  echo "glm_jax needs Python 3.11, 3.12 or 3.13; $PYTHON is $("$PYTHON" --version 2>&1)." \
    "Name another one: PYTHON=python3.12 $0" >&2
  exit 1
}
pip_install() { # names each package as pip downloads it: the first installation takes minutes
  .venv/bin/python -m pip install --disable-pip-version-check "$@" | while read -r verb name _; do
    case $verb in
      Collecting) echo "  downloading $name" ;;
      Installing) echo "  installing what was downloaded, about a minute" ;;
    esac
  done >&2
}

environment="$("$PYTHON" --version) ${EXTRA:-} $(cksum requirements.txt pyproject.toml)"
if [ "$(cat .venv/installed 2>/dev/null)" != "$environment" ]; then
  if [ -d .venv ] && [ ! -f .venv/installed ]; then
    echo "$PWD/.venv was not made by this script: move or remove it." >&2
    exit 1
  fi
  echo "installing the packages of requirements.txt into $PWD/.venv, once: about two minutes" >&2
  rm -rf .venv
  "$PYTHON" -m venv .venv
  touch .venv/installed
  pip_install -r requirements.txt
  pip_install --no-deps --editable .
  if [ -n "${EXTRA:-}" ]; then
    pip_install -c requirements.txt --editable ".[$EXTRA]"
  fi
  echo "$environment" >.venv/installed
fi
# shellcheck disable=SC1091
. .venv/bin/activate
