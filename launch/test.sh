#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them; arguments go to pytest: ./launch/test.sh -m slow
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/setup.sh"
python -m pytest -n "${TEST_WORKERS:-2}" "$@"
