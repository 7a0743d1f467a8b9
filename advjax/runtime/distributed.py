"""Initialization of multi-host jobs."""

import glob
import importlib.util
import os

import jax

from advjax.types import UserError


def initialize(distributed: str = "auto") -> None:
    """Connects the processes of a multi-host run; call it before any device is used.

    ``"auto"`` connects if ``ADVJAX_COORDINATOR`` (host:port of process 0), ``ADVJAX_NUM_PROCESSES``, and
    ``ADVJAX_PROCESS_ID`` are set, or if JAX can detect them: under SLURM's srun, Open MPI, in an indexed Kubernetes
    job, or on a Cloud TPU VM. Otherwise, and with ``"none"``, the run has a single process.

    Raises:
      UserError: ``distributed`` is unknown, only some of the variables are set, or they are not valid numbers.
    """
    if distributed not in ("auto", "none"):
        raise UserError(f"unknown value {distributed!r} for distributed; choose auto or none")
    if distributed == "none" or jax.distributed.is_initialized():
        return
    names = ("ADVJAX_COORDINATOR", "ADVJAX_NUM_PROCESSES", "ADVJAX_PROCESS_ID")
    given = [name for name in names if os.environ.get(name)]
    if given:
        if missing := [name for name in names if name not in given]:
            raise UserError(f"{', '.join(given)} set without {', '.join(missing)}; set all three or none")
        coordinator, count, index = (os.environ[name] for name in names)
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise UserError(f"{names[2]}={index} must be a whole number below {names[1]}={count}")
        jax.distributed.initialize(coordinator, int(count), int(index))
    elif _in_cluster():
        jax.distributed.initialize()


def _in_cluster() -> bool:
    """Whether the environment describes the processes of this run in a way that JAX can read."""
    present = os.environ.keys()
    slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"} <= present
    open_mpi = "OMPI_MCA_orte_hnp_uri" in present
    # Every pod has the first variable; only pods of an indexed job, the kind JAX can connect, have the second.
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= present
    tpu_devices = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    tpu = bool(tpu_devices) and importlib.util.find_spec("libtpu") is not None
    return slurm or open_mpi or kubernetes or (tpu and os.environ.get("JAX_PLATFORMS", "tpu") != "cpu")
