#!/usr/bin/env bash
# Installs what the tests need into .venv and runs the default tier on two cores; arguments go to pytest:
#   ./launch/test.sh -m thorough   the rest of what CI runs
#   ./launch/test.sh -m slow       proofs that take minutes each
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/setup.sh"
if [ "$(uname -sm)" = "Linux x86_64" ]; then
  # The TPU compiler, 200 MB; without it the tests of plans are skipped. It is kept outside of the environment, because
  # JAX looks for a TPU wherever it finds libtpu.
  if [ ! -d .venv/libtpu ]; then
    version=$(python -c "from glm_jax.planning.topologies import required_libtpu; print(required_libtpu())")
    echo "downloading the TPU compiler, once" >&2
    python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/libtpu.part "libtpu==$version"
    mv .venv/libtpu.part .venv/libtpu
  fi
  export PYTHONPATH="$PWD/.venv/libtpu${PYTHONPATH:+:$PYTHONPATH}" JAX_PLATFORMS=cpu
fi
python -m pytest -n "${TEST_WORKERS:-2}" "$@"
