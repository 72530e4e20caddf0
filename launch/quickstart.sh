#!/usr/bin/env bash
# Installs glm_jax into .venv, pretrains a small GLM on text that pip brings, and fills blanks with it.
# Run it again to resume. Arguments go to the training; another config needs another folder:
#   ./launch/quickstart.sh --workdir=runs/short --config.train_duration="2000 steps"
set -euo pipefail
exec "$(dirname "$0")/train.sh" --config=configs/pretrain/quickstart.py --workdir=runs/quickstart "$@"
