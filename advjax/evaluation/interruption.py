"""Long attacks that can be stopped after any batch and taken up again."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from advjax.attacks.result_store import SAVE_EVERY, StateFile
from advjax.runtime.preemption import PreemptedError


class Adversarial(NamedTuple):
    """What an attack made of a data set, in its order."""

    images: np.ndarray
    """float32 [n, h, w, c]."""
    distances: np.ndarray
    """float32 [n]: sizes of the perturbations in the norm of the attack."""
    steps: np.ndarray
    """int32 [n]."""
    nonfinite: np.ndarray
    """bool [n]: gradients were NaN or infinite on the way (``AttackResult.nonfinite``)."""
    seconds: float
    """Wall time, compilation included."""


_ARRAYS = tuple(name for name in Adversarial._fields if name != "seconds")


class Interruption(NamedTuple):
    """How a long attack is stopped and taken up again."""

    path: str
    """File of what has been done, on a disk that all processes see; process 0 writes it."""
    identity: str
    """Equal for the same attack on the same model and images."""
    stop_requested: Callable[[], bool]
    """Asked after every batch, on all processes together."""

    @property
    def state_file(self) -> StateFile:
        """Where this process reads and, if it is the first, writes."""
        return StateFile(self.path, "model, images or attack")


class Done:
    """The batches of an attack that are through, of this run and of those before it."""

    def __init__(self, interruption: Interruption | None) -> None:
        self._interruption = interruption
        self._parts: list[Sequence[np.ndarray]] = []
        self._file = interruption.state_file if interruption is not None else None
        saved = self._file.load(interruption.identity) if self._file and interruption else None
        self._before = float(saved.pop("seconds")) if saved is not None else 0.0
        self._seconds = 0.0
        if saved is not None:
            self._parts.append([saved[name] for name in _ARRAYS])

    @property
    def count(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    def add(self, part: Sequence[np.ndarray], seconds: float) -> None:
        self._parts.append(part)
        self._seconds = seconds
        if self._file is not None and time.monotonic() - self._file.saved >= SAVE_EVERY:
            self._save()

    def stop_if_asked(self, message: str) -> None:
        if self._interruption is not None and self._interruption.stop_requested():
            self._save()
            raise PreemptedError(message)

    def result(self, seconds: float) -> Adversarial:
        self._seconds = seconds
        self._save()
        return Adversarial(*self._joined(), seconds=self._before + seconds)

    def _joined(self) -> Sequence[np.ndarray]:
        return [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]

    def _save(self) -> None:
        if self._file is not None and self._interruption is not None and jax.process_index() == 0:
            arrays = dict(zip(_ARRAYS, self._joined(), strict=True))
            seconds = np.asarray(self._before + self._seconds)
            self._file.save(self._interruption.identity, {**arrays, "seconds": seconds})
