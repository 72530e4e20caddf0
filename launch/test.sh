#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them; arguments go to pytest: ./launch/test.sh -m slow
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/setup.sh"
if [ "$(uname -sm)" = "Linux x86_64" ]; then
  # The compiler of TPUs, 200 MB: plans are tested with it, and skipped where there is none. It stands beside the
  # environment, not in it, where every other start of JAX would look for a TPU.
  if [ ! -d .venv/libtpu ]; then
    version=$(python -c "from glm_jax.planning.topologies import required_libtpu; print(required_libtpu())")
    python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/libtpu.part "libtpu==$version"
    mv .venv/libtpu.part .venv/libtpu
  fi
  export PYTHONPATH="$PWD/.venv/libtpu${PYTHONPATH:+:$PYTHONPATH}" JAX_PLATFORMS=cpu
fi
python -m pytest -n "${TEST_WORKERS:-2}" "$@"
