"""First and second calls in processes of their own: with an empty compilation cache, with a filled one, and memory.

What somebody waits for who runs an attack once is its first call, compilation included.  The processes of one contender
share a folder of compiled programs, which the first of them finds empty.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from advjax.benchmarks import measure
from advjax.benchmarks.contenders import CONTENDERS
from advjax.benchmarks.networks import Network

NUM_CALLS = 2


def measure_here(contender: str, task: str, network: Network, batch_size: int) -> dict[str, Any]:
    """Calls a contender twice in this process, which must do nothing else.

    Returns:
      "idle" and "peak" memory in MiB, before and after the first call, and the "calls": ``CallTime`` as dictionaries.
    """
    clock, made = measure.CompileClock(), CONTENDERS[contender].prepare(task, network, batch_size)
    assert made is not None
    measure.forget_peak_memory()
    found: dict[str, Any] = {"idle": measure.peak_memory_mib(), "calls": []}
    for _ in range(NUM_CALLS):
        call, _ = measure.timed(made, clock)
        found.setdefault("peak", measure.peak_memory_mib())
        found["calls"].append(call._asdict())
    return found


def in_processes(arguments: Sequence[str], contender: str, task: str) -> dict[str, Any] | None:
    """``measure_here`` in one process after the other; None, and a line on stderr, if one of them fails.

    Args:
      arguments: of the command line of this process.
      contender: one of ``CONTENDERS``.
      task: one of ``TASKS``.

    Returns:
      "cold", with nothing compiled before, and for what advjax runs also "warm", with the compilation cache that the
      former has left.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name in ("cold", "warm") if CONTENDERS[contender].is_ours else ("cold",):
            command = [sys.executable, "-m", "advjax.benchmarks", *arguments, "--calls-of", contender, task]
            environment = os.environ | {"ADVJAX_COMPILATION_CACHE": folder}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode != 0:
                print(f"could not time the calls of {contender} for {task}:\n{done.stderr}", file=sys.stderr)
                return None
            found[name] = json.loads(done.stdout.splitlines()[-1])
        return found
