#!/usr/bin/env bash
# Runs one experiment on a SLURM cluster, with one task per GPU as JAX expects.  Not tested on a real cluster.
#
#   sbatch --nodes=2 launch/slurm.sh --config=configs/cifar_fixer.py --workdir=/shared/runs/cifar_fixer
#
# Submit it from the repository, in an environment with advjax[cuda12] or advjax[cuda13]; launch/Dockerfile makes an image
# with one, for clusters that run containers.  Options given to sbatch
# override those below.  The workdir must be on a file system shared by all nodes.  Three minutes before the time limit,
# or when the job is preempted, the run saves its state and exits with 42; the job is then requeued and resumes from
# there.  Set PYTHON to use another interpreter.
#
#SBATCH --job-name=advjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if (($# == 0)) || [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "usage: sbatch [SBATCH OPTIONS] launch/slurm.sh --config=FILE --workdir=SHARED_FOLDER [FLAGS]" >&2
  exit 2
fi

# Tasks exit together; one still running two minutes after the first is waiting for a dead one.
code=0
srun --wait=120 "${PYTHON:-python}" -m advjax.main "$@" || code=$?
if ((code == 42)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
