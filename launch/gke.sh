#!/usr/bin/env bash
# One run on a GKE cluster of TPUs, as an xpk workload.  Untested on a real cluster.
#
#   export CLUSTER=my-cluster IMAGE=europe-docker.pkg.dev/my-project/advjax/advjax:1 TPU_TYPE=v5litepod-16
#   launch/gke.sh cifar-fixer --config=configs/cifar_fixer.py --workdir=/mnt/runs/cifar_fixer
#
# xpk comes from `pip install xpk`.  The image holds this repository with advjax[tpu] installed, and starts in it.  The
# folder must be on a volume that all pods share.  A pod that is evicted gets SIGTERM and five minutes: the run saves its
# state and exits with 42, is restarted up to ten times and continues from there.
set -euo pipefail

if (($# < 2)) || [[ -z ${CLUSTER:-} || -z ${IMAGE:-} || -z ${TPU_TYPE:-} ]]; then
  echo "usage: CLUSTER=C IMAGE=I TPU_TYPE=T launch/gke.sh NAME_OF_WORKLOAD FLAGS OF advjax.main" >&2
  exit 2
fi

workload=$1
shift
# The shell gives way to Python, so that SIGTERM reaches it.
xpk workload create \
  --cluster="$CLUSTER" \
  --workload="$workload" \
  --tpu-type="$TPU_TYPE" \
  --num-slices="${NUM_SLICES:-1}" \
  --docker-image="$IMAGE" \
  --max-restarts=10 \
  --termination-grace-period-seconds=300 \
  --command="exec python -m advjax.main$(printf ' %q' "$@")"
