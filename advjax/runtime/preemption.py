"""Stopping on request: SIGTERM, Ctrl-C, or a cluster that reclaims its machines."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

_NOTICE = b"\nstopping as soon as the state is saved; press Ctrl-C again to stop without saving\n"

PREEMPTED = 42
"""Exit code of a command that was stopped and has saved everything: the same command goes on."""


class PreemptedError(Exception):
    """The work was asked to stop and has saved its state; repeating the command continues it."""


class Preemption:
    """Notices requests to stop; a context manager around all of a job's work.

    In a single process, SIGTERM and the first SIGINT (Ctrl-C) no longer end the process but are remembered; a second
    SIGINT raises KeyboardInterrupt as usual. With several processes, JAX itself listens for SIGTERM, to which the
    first SIGINT is converted, and the processes agree: ``requested`` returns true on all of them in the same call.
    """

    def __init__(self) -> None:
        self._terminated = False
        self._calls = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            handled = (signal.SIGINT,) if jax.distributed.is_initialized() else (signal.SIGINT, signal.SIGTERM)
            self._previous = {number: signal.signal(number, self._on_signal) for number in handled}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether to save and stop now; all processes of a job must call this together, equally often."""
        self._calls += 1
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(self._calls)
        return self._terminated

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
            # Not print: the signal may have interrupted another write to stderr.
            os.write(2, _NOTICE)
            if jax.distributed.is_initialized():
                os.kill(os.getpid(), signal.SIGTERM)
        self._terminated = True
