#!/usr/bin/env bash
# One run on a SLURM cluster: one task per GPU, as JAX expects it.  Untested on a real cluster.
#
#   sbatch --nodes=2 launch/slurm.sh --config=configs/cifar_fixer.py --workdir=/shared/runs/cifar_fixer
#
# Submit it from the repository, in an environment that has advjax[cuda12] or advjax[cuda13].  Options of sbatch overrule
# those below.  The folder must be on a file system that all nodes share.  Three minutes before the time is up, or when
# the job is preempted, the run saves its state and exits with 42; the job then goes back into the queue and continues
# from there.  PYTHON names another interpreter.
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
  echo "usage: sbatch [options of sbatch] launch/slurm.sh --config=FILE --workdir=SHARED_FOLDER [flags of advjax.main]" >&2
  exit 2
fi

# The tasks leave together; whoever is still there two minutes after the first waits for a dead one.
code=0
srun --wait=120 "${PYTHON:-python}" -m advjax.main "$@" || code=$?
if ((code == 42)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
