"""Jobs of the command line in processes of their own, which tests kill, interrupt and starve."""

import hashlib
import json
import multiprocessing
import os
import pathlib
import resource
import runpy
import signal
import sys
import tempfile
import threading
import time
from typing import NamedTuple

import jax
import numpy as np

from support.paths import REPOSITORY

CONFIG = REPOSITORY / "tests" / "support" / "fault_experiment.py"

# Forked from one process that has imported the command line, which takes longer than all that a job here computes.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["advjax.main"])


class Finished(NamedTuple):
    """How a job has ended."""

    code: int
    """The exit code, or minus the signal that ended it."""
    said: str
    """What it wrote to its terminal, output and errors together."""

    @property
    def error(self) -> str:
        """The message of a job that has refused something: one line, the last, and no traceback."""
        lines = self.said.strip().splitlines()
        assert self.code == 2, self.said
        assert "Traceback" not in self.said, self.said
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], self.said
        return lines[-1]

    @property
    def only_line(self) -> str:
        """The message of a job that has refused something before it did anything."""
        assert self.said.strip() == self.error, self.said
        return self.error


class Job:
    """A job that runs; ``arguments`` are those of ``python -m advjax.main``, or of another module."""

    def __init__(self, *arguments, largest_file=None, umask=None, module=None):
        reader, writer = _SERVER.Pipe(duplex=False)
        given = [str(argument) for argument in arguments]
        self._process = _SERVER.Process(target=_work, args=(writer, given, largest_file, umask, module), daemon=True)
        self._process.start()
        writer.close()
        self._said = bytearray()
        self._listener = threading.Thread(target=self._listen, args=(reader,), daemon=True)
        self._listener.start()

    @property
    def is_running(self):
        return self._process.is_alive()

    def said(self):
        return self._said.decode()

    def send(self, number):
        if self.is_running:
            os.kill(self._process.pid, number)

    def wait(self) -> Finished:
        self._process.join()
        self._listener.join()
        return Finished(self._process.exitcode, self.said())

    def wait_for(self, condition):
        """Waits until ``condition()`` is true, or the job has ended."""
        while self.is_running and not condition():
            time.sleep(0.002)

    def kill_when(self, condition, delay=0.0) -> bool:
        """Kills the job a while after ``condition()`` has become true; False if it ended before."""
        return self.signal_when(signal.SIGKILL, condition, delay)

    def signal_when(self, number, condition, delay=0.0) -> bool:
        """Sends a signal a while after ``condition()`` has become true; False if the job ended before."""
        self.wait_for(condition)
        time.sleep(delay)
        came = self.is_running
        self.send(number)
        return came

    def _listen(self, reader):
        while chunk := os.read(reader.fileno(), 4096):
            self._said += chunk
        reader.close()


def run(*arguments, **options) -> Finished:
    """Runs a job to its end."""
    return Job(*arguments, **options).wait()


def arguments(workdir, *overrides):
    """Of the job of ``fault_experiment``; the programs that it compiles are shared by all tests."""
    return [f"--config={CONFIG}", f"--workdir={workdir}", *overrides]


def results(workdir):
    """All that must not depend on what has happened to a job: weights, optimizer state, metrics, verdicts, report."""
    workdir = pathlib.Path(workdir)
    found = {}
    for run_name in ("base", "robust"):
        folder = workdir / run_name
        found[f"{run_name}: metrics"] = (folder / "metrics.jsonl").read_text()
        last = max(int(step.name) for step in (folder / "checkpoints").iterdir() if step.name.isdecimal())
        about = json.loads((folder / "checkpoints" / str(last) / "about" / "metadata").read_text())
        found[f"{run_name}: state"] = {"step": last, **about["leaves"]}
    report = json.loads((workdir / "report.json").read_text())
    found["rows"] = [{key: value for key, value in row.items() if key != "seconds"} for row in report["rows"]]
    found["summary"], found["curve"] = report["summary"], report["curve"]
    with np.load(workdir / "outcomes.npz") as outcomes:
        arrays = {name: outcomes[name] for name in outcomes.files if name != "outcomes"}
    found["outcomes"] = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    return found


def leftovers(workdir):
    """Files and folders that only an interrupted write leaves behind."""
    names = (str(path.relative_to(workdir)) for path in pathlib.Path(workdir).rglob("*"))
    return [name for name in names if ".tmp" in name or ".incomplete" in name or "checkpoint-tmp" in name]


def files(workdir):
    """The content of every file, but for the lock."""
    paths = pathlib.Path(workdir).rglob("*")
    return {str(path): path.read_bytes() for path in paths if path.is_file() and path.name != ".lock"}


def _work(writer, given, largest_file, umask, module):
    """The process of a job: its output is a pipe, and the environment is a user's, not that of the tests."""
    os.dup2(writer.fileno(), 1)
    os.dup2(writer.fileno(), 2)
    writer.close()
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    jax.config.update("jax_num_cpu_devices", 1)
    if umask is not None:
        os.umask(umask)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["advjax", *given]
    if module is not None:
        runpy.run_module(module, run_name="__main__")
        return
    programs = os.path.join(tempfile.gettempdir(), f"advjax_fault_programs.{os.getuid()}")
    if not any(argument.startswith("--compilation_cache") for argument in given):
        sys.argv.append(f"--compilation_cache={programs}")
    from advjax import main

    main.run()
