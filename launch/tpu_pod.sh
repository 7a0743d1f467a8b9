#!/usr/bin/env bash
# Runs one experiment on all hosts of a Cloud TPU slice.  Not tested on a real cluster.
#
#   export NAME=my-slice ZONE=us-central2-b                 # and PROJECT unless it is the gcloud default
#   launch/tpu_pod.sh setup                                 # copy this repository and install it with JAX for TPU
#   launch/tpu_pod.sh run --config=configs/cifar_fixer.py --workdir=/mnt/runs/cifar_fixer
#   launch/tpu_pod.sh stop                                  # SIGTERM: the run saves its state and exits with 42
#
# The workdir must be shared by all hosts (Filestore, or a bucket mounted with gcsfuse).  The data must be shared as
# well, or be prepared on every host.  After a preemption, recreate the slice, set it up and repeat the command.
set -euo pipefail

usage() {
  echo "usage: NAME=SLICE ZONE=ZONE launch/tpu_pod.sh setup | run FLAGS | stop" >&2
  exit 2
}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

setup() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:advjax.tar.gz" "${where[@]}" --worker=all
  rm "$archive"
  on_all_hosts "mkdir -p advjax && tar -xzf advjax.tar.gz -C advjax && cd advjax &&
    python3 -m venv .venv && .venv/bin/pip install --quiet '.[tpu]'"
}

if (($# == 0)) || [[ -z ${NAME:-} || -z ${ZONE:-} ]]; then usage; fi
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
action=$1
shift
case $action in
  setup) setup ;;
  run) on_all_hosts "cd advjax && exec .venv/bin/python -m advjax.main$(printf ' %q' "$@")" ;;
  stop) on_all_hosts "pkill -TERM -f 'python -m advjax.main'" ;;
  *) usage ;;
esac
