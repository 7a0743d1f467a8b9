"""Metrics of the training steps: fetched a few calls late, checked, averaged, and written."""

import collections
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from advjax.runtime.devices import fetch
from advjax.runtime.metrics import MetricWriter
from advjax.runtime.progress import Progress
from advjax.training.objectives import Metrics
from advjax.types import UserError

# More calls in flight gain nothing, and on several CPU devices they can starve a collective of threads until it aborts.
_CALLS_IN_FLIGHT = 2
_COUNT, _SUM = "unlogged_steps", "unlogged_sum/"


class Window(NamedTuple):
    """Sums of the metrics since the last "train" record; stored in checkpoints, so that no record loses a step."""

    count: int = 0
    sums: Mapping[str, float] = {}

    def add(self, values: Mapping[str, float]) -> "Window":
        """The window with one more step."""
        return Window(self.count + 1, {key: self.sums.get(key, 0.0) + float(value) for key, value in values.items()})

    def means(self) -> dict[str, float]:
        """The metrics averaged over the steps."""
        return {key: total / self.count for key, total in self.sums.items()}

    def to_metrics(self) -> dict[str, float]:
        """As metrics of a checkpoint; {} if it is empty."""
        sums = {f"{_SUM}{key}": total for key, total in self.sums.items()}
        return {_COUNT: self.count, **sums} if self.count else {}

    @staticmethod
    def from_metrics(metrics: Mapping[str, float]) -> "Window":
        """The inverse of ``to_metrics``."""
        sums = {key.removeprefix(_SUM): total for key, total in metrics.items() if key.startswith(_SUM)}
        return Window(int(metrics.get(_COUNT, 0)), sums)


class TrainLog:
    """Receives the metrics of every step; they may still be being computed.

    Args:
      writer: for a record "train" every ``log_every`` steps and after the last one.
      bar: for the progress.
      window: what an interrupted run had not written yet.
      log_every: number of steps between two records.
      num_steps: number of steps of the run.
      failure: ``(loss, step) -> error`` for a loss that is not finite.
    """

    def __init__(
        self,
        writer: MetricWriter,
        bar: Progress,
        window: Window,
        *,
        log_every: int,
        num_steps: int,
        failure: Callable[[float, int], UserError],
    ) -> None:
        self.window = window
        self._writer, self._bar = writer, bar
        self._log_every, self._num_steps, self._failure = log_every, num_steps, failure
        self._in_flight: collections.deque[tuple[int, Metrics]] = collections.deque()

    def add(self, step: int, values: Metrics) -> None:
        """Adds a call of one or several steps, and takes in those that are older than the few in flight.

        Args:
          step: the last step of the call.
          values: of the metrics: scalars, or [steps].

        Raises:
          UserError: the loss of an older step is not finite.
        """
        self._in_flight.append((step, values))
        self._take_in(_CALLS_IN_FLIGHT)

    def flush(self) -> None:
        """Takes in all steps; raises as ``add`` does."""
        self._take_in(0)

    def _take_in(self, limit: int) -> None:
        while len(self._in_flight) > limit:
            last, metrics = self._in_flight.popleft()
            columns = {key: np.atleast_1d(values) for key, values in fetch(metrics).items()}
            rows = [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]
            for step, values in enumerate(rows, last + 1 - len(rows)):
                self._take_in_step(step, values)

    def _take_in_step(self, step: int, values: Mapping[str, float]) -> None:
        losses = [value for key, value in values.items() if key == "loss" or key.endswith("_loss")]
        if broken := [loss for loss in losses if not math.isfinite(loss)]:
            raise self._failure(broken[0], step)
        self.window = self.window.add(values)
        means = self.window.means()
        self._bar.advance(1, **{key: means[key] for key in ("loss", "accuracy") if key in means})
        if step % self._log_every == 0 or step == self._num_steps:
            self._writer.write(step, "train", means)
            self.window = Window()
