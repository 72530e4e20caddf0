#!/usr/bin/env bash
# Pretrains on this machine, with a cache of compiled programs. Arguments go to `python -m glm_jax pretrain`, or after
# the word finetune to `python -m glm_jax finetune`:
#   EXTRA=cuda ./launch/train.sh --config=configs/pretrain/glm_base.py --workdir=runs/base
#   EXTRA=cuda ./launch/train.sh finetune --config=configs/finetune/superglue.py:boolq --workdir=runs/boolq
# The other launchers call it on every host. Exit code 75: stopped and saved, the same command goes on.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/setup.sh"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/glm_jax/compiled}
verb=pretrain
case ${1:-} in pretrain | finetune) verb=$1 && shift ;; esac
exec python -m glm_jax "$verb" "$@"
