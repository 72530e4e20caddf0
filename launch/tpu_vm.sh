#!/usr/bin/env bash
# A Cloud TPU slice of any number of hosts; --dry-run as first argument prints the commands instead.
#   ./launch/tpu_vm.sh create NAME ZONE TYPE     TYPE such as v5litepod-16, v5p-128, v6e-64; SPOT=1 takes spot capacity
#   ./launch/tpu_vm.sh install NAME ZONE         this commit, on all hosts; SHARE=10.0.0.2:/share is mounted at /mnt/share
#   ./launch/tpu_vm.sh run NAME ZONE ARGUMENTS   as of launch/train.sh; --workdir must lie on a disk that all hosts share
#   ./launch/tpu_vm.sh logs NAME ZONE            follows the log of the first host
#   ./launch/tpu_vm.sh stop NAME ZONE            saves and stops; `run` goes on from there
#   ./launch/tpu_vm.sh delete NAME ZONE
# After a preemption: delete, create, install, run.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/dry_run.sh "$@"
[ -z "$DRY_RUN" ] || shift
[ $# -ge 3 ] || { cd "$OLDPWD" && usage; }
action=$1 name=$2 zone=$3
shift 3

tpu() { run gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" "${@:2}"; }
on() { tpu ssh --worker="$1" --command="$2"; }

case $action in
  create)
    type=${1:?TYPE is missing, such as v5p-128}
    case $type in # the runtime that Google names for each generation
      v5litepod-*) image=v2-alpha-tpuv5-lite ;;
      v5p-*) image=v2-alpha-tpuv5 ;;
      v6e-*) image=v2-alpha-tpuv6e ;;
      *) image=tpu-ubuntu2204-base ;;
    esac
    tpu create --accelerator-type="$type" --version="${IMAGE:-$image}" ${SPOT:+--spot}
    ;;
  install)
    archive=${TMPDIR:-/tmp}/glm_jax.tar.gz
    run git archive --output="$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$name:glm_jax.tar.gz" --zone="$zone" --worker=all
    if [ -n "${SHARE:-}" ]; then
      on all "sudo apt-get -o DPkg::Lock::Timeout=300 install -y nfs-common && sudo mkdir -p /mnt/share && \
{ mountpoint -q /mnt/share || sudo mount $SHARE /mnt/share; }"
    fi
    # The image's own Python is older than this project needs; uv brings one.
    on all "mkdir -p glm_jax && tar -xzf glm_jax.tar.gz -C glm_jax && python3 -m pip install --user --quiet uv && \
~/.local/bin/uv python install 3.12 && cd glm_jax && \
EXTRA=tpu PYTHON=\$(~/.local/bin/uv python find 3.12) bash -c '. launch/setup.sh'"
    ;;
  run)
    # systemd keeps it when the connection ends, and starts it again after exit code 75.
    on all "sudo systemd-run --unit=glm_jax --collect --uid=\$(id -u) --working-directory=\$HOME/glm_jax \
--setenv=HOME=\$HOME --setenv=EXTRA=tpu --setenv=PYTHON=\$(~/.local/bin/uv python find 3.12) \
--property=RestartForceExitStatus=75 --property=TimeoutStopSec=900 bash launch/train.sh $(quoted "$@")"
    ;;
  logs) on 0 'journalctl --unit=glm_jax --follow --lines=100 --output=cat' ;;
  stop) on all 'sudo systemctl stop glm_jax' ;;
  delete) tpu delete --quiet ;;
  *) cd "$OLDPWD" && usage ;;
esac
