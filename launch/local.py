"""Runs one experiment in several processes on this machine, connected like the hosts of a cluster.

    python launch/local.py --processes=2 -- --config=configs/digits_fixer.py --workdir=workdirs/digits
    python launch/local.py --processes=2 --cpu_devices=2 -- --config=...    # 2 virtual CPU devices in each process

Everything after ``--`` is passed to ``python -m advjax.main``.  NVIDIA GPUs (those in CUDA_VISIBLE_DEVICES, or all) are
divided evenly, in order.  A single process can use all GPUs of a machine equally well; this script is for trying out
multi-host runs.

SIGTERM and Ctrl-C are forwarded as SIGTERM: the run saves its state and stops.  The exit code is that of the first
process that failed (the others are then stopped, since they would wait for it forever), otherwise 42 if any process was
preempted, otherwise 0.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

PREEMPTED = 42
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.1


def main(arguments: Sequence[str]) -> int:
    """Runs all processes to completion and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s --processes=N [--cpu_devices=N] -- FLAGS",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=_positive, required=True, help="number of processes")
    parser.add_argument(
        "--cpu_devices", type=_positive, help="run on the CPU, with this many virtual devices per process"
    )
    parser.add_argument("flags", nargs="*", help="flags of advjax.main")
    given = parser.parse_args(arguments)
    try:
        environments = [device_share(index, given.processes, given.cpu_devices) for index in range(given.processes)]
    except ValueError as error:
        parser.error(str(error))
    # Signals that arrive while processes are being started are forwarded once all of them exist.
    processes: list[subprocess.Popen] = []
    stopped = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        _signal_all(processes, signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    coordinator = f"127.0.0.1:{_free_port()}"
    for index, environment in enumerate(environments):
        names = {"COORDINATOR": coordinator, "NUM_PROCESSES": given.processes, "PROCESS_ID": index}
        joined = {f"ADVJAX_{name}": str(value) for name, value in names.items()}
        command = [sys.executable, "-m", "advjax.main", *given.flags]
        # In its own session, a process receives Ctrl-C only once, from this script.
        processes.append(subprocess.Popen(command, env=os.environ | environment | joined, start_new_session=True))
    if stopped:
        _signal_all(processes, signal.SIGTERM)
    return wait(processes)


def device_share(index: int, processes: int, cpu_devices: int | None) -> dict[str, str]:
    """Environment variables that assign process ``index`` its devices.

    Raises:
      ValueError: the GPUs cannot be divided evenly, or there are none and ``cpu_devices`` is not given.
    """
    if cpu_devices:
        return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(cpu_devices)}
    gpus = _gpus()
    if not gpus:
        raise ValueError("found no NVIDIA GPU; use --cpu_devices=N to run on the CPU")
    if len(gpus) % processes:
        raise ValueError(f"{len(gpus)} GPUs cannot be divided evenly among {processes} processes")
    share = len(gpus) // processes
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[index * share : (index + 1) * share])}


def wait(processes: Sequence[subprocess.Popen]) -> int:
    """Waits for all processes, stopping the others once one has failed, and returns the overall exit code."""
    failure, deadline = 0, None
    codes = [process.poll() for process in processes]
    while None in codes:
        failed = [code for code in codes if code not in (None, 0, PREEMPTED)]
        if failed and deadline is None:
            failure, deadline = failed[0], time.monotonic() + GRACE_SECONDS
            _signal_all(processes, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _signal_all(processes, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
        codes = [process.poll() for process in processes]
    failure = failure or next((code for code in codes if code not in (0, PREEMPTED)), 0)
    if failure:
        return failure if failure > 0 else 128 - failure
    return PREEMPTED if PREEMPTED in codes else 0


def _signal_all(processes: Sequence[subprocess.Popen], number: int) -> None:
    for process in processes:
        process.send_signal(number)


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
