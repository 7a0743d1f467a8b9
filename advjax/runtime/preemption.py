"""Being told to stop: by SIGTERM, or by a cluster that takes its machines back."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class PreemptedError(Exception):
    """The work was asked to stop and has saved its state: repeat the same command to go on."""


class Preemption:
    """Notices that this job is to stop; a context manager around all of its work.

    In a single process SIGTERM no longer kills but is remembered.  In a job of several, where JAX itself listens for
    it, the processes agree on one of their questions: all of them hear "stop" in answer to the same one.
    """

    def __init__(self) -> None:
        self._terminated = False
        self._questions = 0
        self._previous: object = None

    def __enter__(self) -> "Preemption":
        self._listens = not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)  # type: ignore[arg-type]

    def requested(self) -> bool:
        """Whether to save and stop now; all processes of a job must ask together, equally often."""
        self._questions += 1
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(self._questions)
        return self._terminated

    def _on_sigterm(self, signum: int, frame: object) -> None:
        self._terminated = True
