#!/usr/bin/env bash
# Pretrains on GPU nodes of a SLURM cluster: one process a node, which takes all GPUs of the node. With `finetune`
# before the arguments it fine-tunes.
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --config=configs/pretrain/glm_large.py --workdir=runs/large
# Run it from the checkout, on a disk that all nodes share. What is not set here comes from sbatch: --partition, --time.
# A job that is preempted, or whose time is nearly over, saves, is queued again, and goes on. TASKS=8 starts that many
# processes a node instead; EXTRA= is for nodes without GPU.
#SBATCH --job-name=glm_jax
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -uo pipefail
if [ "${1:-}" = --dry-run ]; then
  shift
  srun() { printf '%s\n' "srun ${*@Q}"; }
  setup=:
fi
cd "${SLURM_SUBMIT_DIR:-.}" || exit
export EXTRA=${EXTRA-cuda}
# Once, before all nodes ask for it.
${setup:-bash -c '. launch/setup.sh'} || exit
srun --ntasks-per-node="${TASKS:-1}" --kill-on-bad-exit=0 launch/train.sh "$@"
code=$?
if [ "$code" = 75 ]; then # stopped and saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
