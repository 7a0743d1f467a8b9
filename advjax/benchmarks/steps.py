"""Long measurements in steps: one process each, results kept after every step, a limit on the time of all."""

import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from advjax.benchmarks import reports
from advjax.types import UserError

DONE, STOPPED, FAILED = "done", "stopped", "failed"
GRACE_SECONDS = 30.0
"""After SIGTERM, for training and evaluation to save what they have."""
RESUMABLE = 42
"""Exit code of ``advjax.main`` when it was stopped and everything is saved."""


class Step(NamedTuple):
    """One process."""

    name: str
    command: Sequence[str]
    seconds: float
    """How long it should take; it is not begun with less time left."""
    result: Callable[[], dict[str, Any]]
    """Called after the process; what is kept of it."""
    is_resumable: bool = False
    """Whether the process saves its state on SIGTERM, and goes on when it is started again: then it is begun with
    whatever time is left."""


class State:
    """The JSON file of a measurement in steps, written after every change."""

    def __init__(self, path: pathlib.Path, settings: dict[str, Any]):
        reports.check_writable(path)
        self.path = path
        self.report: dict[str, Any] = {"settings": settings, "steps": {}}
        if path.exists():
            self.report = reports.read(path)
            if self.report["settings"] != settings:
                raise UserError(f"{path} is of other settings ({self.report['settings']}): give another file")

    def is_done(self, name: str) -> bool:
        """Whether a step needs not be run again."""
        return self.report["steps"].get(name, {}).get("status") == DONE

    def results(self) -> dict[str, Any]:
        """Step -> what is kept of it, where there is anything."""
        return {name: step["result"] for name, step in self.report["steps"].items() if step["result"] is not None}

    def add(self, name: str, status: str, seconds: float, result: dict[str, Any] | None, problem: str) -> None:
        """Adds a step, whose seconds add up over all processes."""
        before = self.report["steps"].get(name, {}).get("seconds", 0.0)
        self.report["steps"][name] = {
            **{"status": status, "seconds": round(before + seconds, 1), "problem": problem},
            "result": result,
        }
        reports.write(self.path, self.report)


def run_steps(steps: Sequence[Step], state: State, limit: float, notify: Callable[[str], None]) -> None:
    """Runs the steps that are not done, in order, as long as there is time.

    A step that fails is reported and tried again by the next call; the others are run nonetheless.

    Args:
      steps: in order of their value.
      state: where results are kept.
      limit: seconds for all of them.
      notify: receives a line for every step.
    """
    end = time.monotonic() + limit
    for step in steps:
        left = end - time.monotonic()
        if state.is_done(step.name):
            notify(f"{step.name}: done before")
        elif left < (min(step.seconds, 2 * GRACE_SECONDS) if step.is_resumable else step.seconds):
            notify(f"{step.name}: not begun, {max(left, 0):.0f} s are left and it takes about {step.seconds:.0f} s")
        else:
            notify(f"{step.name}: begun, about {step.seconds:.0f} s, {left:.0f} s left")
            _run_step(step, state, left, notify)


def _run_step(step: Step, state: State, left: float, notify: Callable[[str], None]) -> None:
    began = time.monotonic()
    log = state.path.with_name(f"{state.path.stem}.{step.name}.log")
    with log.open("ab") as output:
        # In a group of its own, so that its children end with it.
        process = subprocess.Popen(
            step.command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, process_group=0
        )
        try:
            code = process.wait(timeout=left - (GRACE_SECONDS if step.is_resumable else 0))
        except subprocess.TimeoutExpired:
            code = _stop(process)
        except BaseException:
            _stop(process)
            raise
    status = {0: DONE, RESUMABLE: STOPPED, None: STOPPED}.get(code, FAILED)
    result, problem = None, ""
    if status != FAILED:
        try:
            result = step.result()
        except (OSError, UserError, KeyError) as error:
            status = FAILED if status == DONE else status
            problem = repr(error)
    if status == FAILED:
        problem = "\n".join([problem, *log.read_text(errors="replace").splitlines()[-5:]]).strip()
    state.add(step.name, status, time.monotonic() - began, result, problem)
    notify(f"{step.name}: {status} after {time.monotonic() - began:.0f} s {problem}".rstrip())
    if status != FAILED:
        log.unlink()


def reading(path: pathlib.Path) -> Callable[[], dict[str, Any]]:
    """The result of a step that writes a JSON file."""
    return lambda: json.loads(path.read_text())


def _stop(process: subprocess.Popen) -> int | None:
    """Asks a process and its children to save and end; returns its exit code, None if it had to be killed."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        code = process.wait(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None
    return RESUMABLE if code == -signal.SIGTERM else code
