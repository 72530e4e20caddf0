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
wanted="$("$PYTHON" --version) ${EXTRA:-} $(cksum requirements.txt pyproject.toml)"
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  if [ -d .venv ] && [ ! -f .venv/installed ]; then
    echo "$PWD/.venv is not an environment of this script: move it away, or remove it." >&2
    exit 1
  fi
  echo "installing into $PWD/.venv (once)" >&2
  rm -rf .venv
  "$PYTHON" -m venv .venv
  touch .venv/installed
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
  if [ -n "${EXTRA:-}" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.txt --editable ".[$EXTRA]"
  fi
  echo "$wanted" >.venv/installed
fi
# shellcheck disable=SC1091
. .venv/bin/activate
