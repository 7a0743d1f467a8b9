#!/usr/bin/env bash
# Runs one experiment on a GKE cluster with TPUs, as an xpk workload.  Not tested on a real cluster.
#
#   export CLUSTER=my-cluster IMAGE=europe-docker.pkg.dev/my-project/advjax/advjax:1 TPU_TYPE=v5litepod-16
#   launch/gke.sh cifar-fixer --config=configs/cifar_fixer.py --workdir=/mnt/runs/cifar_fixer
#
# Install xpk with `pip install xpk`, and build and push the image with
#   docker build -f launch/Dockerfile --build-arg EXTRAS=digits,tpu,k8s -t "$IMAGE" . && docker push "$IMAGE"
# The workdir must be on a volume shared by all pods.  An evicted pod gets SIGTERM and five minutes, in
# which the run saves its state and exits with 42; it is restarted up to ten times and resumes from there.
set -euo pipefail

if (($# < 2)) || [[ -z ${CLUSTER:-} || -z ${IMAGE:-} || -z ${TPU_TYPE:-} ]]; then
  echo "usage: CLUSTER=C IMAGE=I TPU_TYPE=T launch/gke.sh WORKLOAD FLAGS (of advjax.main)" >&2
  exit 2
fi

workload=$1
shift
# exec replaces the shell, so that SIGTERM reaches Python.
xpk workload create \
  --cluster="$CLUSTER" \
  --workload="$workload" \
  --tpu-type="$TPU_TYPE" \
  --num-slices="${NUM_SLICES:-1}" \
  --docker-image="$IMAGE" \
  --max-restarts=10 \
  --termination-grace-period-seconds=300 \
  --command="exec python -m advjax.main$(printf ' %q' "$@")"
