#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them; arguments go to pytest: ./launch/test.sh -m slow
set -euo pipefail
. "$(dirname "$0")/setup.sh"
if [ "$(uname -sm)" = "Linux x86_64" ] && ! python -c "import libtpu" 2>/dev/null; then
  # The compiler of TPUs, 200 MB: plans are tested with it, and skipped where there is none.
  python -m pip install --quiet --disable-pip-version-check -c requirements.txt "jax[tpu]"
fi
python -m pytest -n "${TEST_WORKERS:-2}" "$@"
