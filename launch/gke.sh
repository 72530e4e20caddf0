#!/usr/bin/env bash
# A GKE cluster of TPU slices or GPUs through xpk (pip install xpk); --dry-run as first argument prints the commands.
# CLUSTER, ZONE, PROJECT and DEVICE (v5p-128, h100-80gb-8, …) come from the environment.
#   ./launch/gke.sh image NAME                   builds the container, and pushes it as gcr.io/PROJECT/NAME
#   ./launch/gke.sh cluster                      creates CLUSTER of SLICES slices, or of NODES GPU nodes; SPOT=1
#   ./launch/gke.sh run NAME JOB ARGUMENTS       starts image NAME as JOB; ARGUMENTS as of launch/train.sh
#   ./launch/gke.sh logs JOB | stop JOB | delete
# STORAGE names an xpk storage (xpk storage attach) that all hosts mount; --workdir must lie on it.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/dry_run.sh "$@"
[ -z "$DRY_RUN" ] || shift
[ $# -ge 1 ] || { cd "$OLDPWD" && usage; }
: "${CLUSTER:?} ${ZONE:?} ${PROJECT:?} ${DEVICE:?}"
action=$1
shift

case $DEVICE in
  v[0-9]*) extra=tpu size=(--tpu-type="$DEVICE" --num-slices="${SLICES:-1}") ;;
  *) extra=cuda size=(--device-type="$DEVICE" --num-nodes="${NODES:-1}") ;;
esac
place=(--cluster="$CLUSTER" --zone="$ZONE" --project="$PROJECT")

case $action in
  image)
    image=gcr.io/$PROJECT/${1:?NAME is missing}
    run docker build --build-arg EXTRA="$extra" --file launch/Dockerfile --tag "$image" .
    run docker push "$image"
    ;;
  cluster) run xpk cluster create "${place[@]}" "${size[@]}" ${SPOT:+--spot} ;;
  run)
    image=${1:?NAME is missing} job=${2:?JOB is missing}
    shift 2
    command="launch/train.sh $(quoted "$@")"
    if [ "$extra" = cuda ]; then # xpk says there where a GPU host is in its job; TPU hosts know it themselves
      # shellcheck disable=SC2016
      command='GLM_JAX_HOSTS=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT,$NNODES,$NODE_RANK '$command
    fi
    # A pod that was preempted saves within the grace period; the job then starts again, all hosts together.
    run xpk workload create "${place[@]}" --workload="$job" "${size[@]}" \
      --docker-image="gcr.io/$PROJECT/$image" --max-restarts=100 --restart-on-exit-codes=75 \
      --termination-grace-period-seconds=300 ${STORAGE:+--storage="$STORAGE"} --command="$command"
    ;;
  logs) run kubectl logs --follow --prefix --selector="jobset.sigs.k8s.io/jobset-name=${1:?JOB is missing}" ;;
  stop) run xpk workload delete "${place[@]}" --workload="${1:?JOB is missing}" ;;
  delete) run xpk cluster delete "${place[@]}" ;;
  *) cd "$OLDPWD" && usage ;;
esac
