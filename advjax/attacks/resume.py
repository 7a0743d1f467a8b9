"""Resuming an interrupted run: its stored results and their verification."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from advjax.attacks.batching import batches
from advjax.attacks.programs import Programs
from advjax.attacks.result_store import ResultStore
from advjax.attacks.run_identity import Problem
from advjax.attacks.verdicts import RoundResults, joined
from advjax.types import UserError

SAVE_EVERY = 60.0
"""Seconds between two saves inside a round."""
MARGIN = 1e-4
"""Tolerance for stored successes and predictions, relative to the largest logit, since CPUs round differently."""


class Stored(NamedTuple):
    """The stored results of a run."""

    rounds: dict[tuple[int, int], RoundResults]
    """``(stage, round) -> results``."""
    misclassified: np.ndarray
    """bool [n]: clean images that were misclassified when the run began."""
    seconds: float


def load(store: ResultStore, problem: Problem, num_rounds: Sequence[int]) -> Stored | None:
    """Reads the stored results; None if there are none.

    Raises:
      UserError: the parts are not results on these images.
    """
    parts = store.parts()
    if not parts:
        return None
    try:
        misclassified = np.array(parts[0]["misclassified"])
        _require(misclassified.shape == problem.labels.shape and misclassified.dtype == bool)
        rounds: dict[tuple[int, int], list[RoundResults]] = {}
        seconds = 0.0
        for part in parts[1:]:
            stage, number, seconds = int(part["stage"]), int(part["round"]), float(part["seconds"])
            _require(0 <= stage < len(num_rounds) and 0 <= number < num_rounds[stage])
            results = RoundResults(*(np.asarray(part[field]) for field in RoundResults._fields))
            _check_results(results, problem.images)
            rounds.setdefault((stage, number), []).append(results)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{store.folder} is damaged: delete the folder to start afresh ({error})") from error
    return Stored({place: joined(results) for place, results in rounds.items()}, misclassified, seconds)


def check_stored(stored: Stored, problem: Problem, programs: Programs, keys_of: Any, store: ResultStore) -> None:
    """Verifies stored predictions and successes with this model.

    Args:
      stored: from ``load``.
      problem: of this run.
      programs: of this run.
      keys_of: ``(stage, round) -> keys`` of all images.
      store: where they come from, for messages.

    Raises:
      UserError: a prediction or success does not hold.
    """
    fooled = _wrong_by(problem.logits, problem.labels)
    if not np.all(np.where(stored.misclassified, fooled >= -MARGIN, fooled <= MARGIN)):
        raise UserError(f"{store.folder} belongs to another run (predictions differ): delete it or name another folder")
    rows, images, keys = [], [], []
    for place, results in stored.rounds.items():
        rows.append(results.rows[results.success & results.kept])
        images.append(results.images[results.success[results.kept]])
        keys.append(keys_of(*place)[rows[-1]])
    if not rows:
        return
    rows, images, keys = np.concatenate(rows), np.concatenate(images), np.concatenate(keys)
    for part in batches(np.arange(len(rows)), programs.sizes):
        here = rows[part]
        logits, allowed, _ = programs.verify(problem.images[here], images[part], keys[part])
        holds = allowed & (_wrong_by(logits, problem.labels[here]) >= -MARGIN)
        if not np.all(holds):
            raise UserError(
                f"{store.folder} holds successes that this model does not confirm, e.g. on the image with index "
                f"{problem.index[here[~holds][0]]}: delete the folder to start afresh"
            )


class Recorder:
    """Appends results to a store, at most every ``SAVE_EVERY`` seconds unless told to."""

    def __init__(self, store: ResultStore, started: float, seconds: float) -> None:
        """``started`` is when this run began (``time.monotonic``), ``seconds`` what interrupted runs took before it."""
        self._store, self._started, self._before, self._pending = store, started, seconds, []
        self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time so far, including interrupted runs."""
        return self._before + time.monotonic() - self._started

    def add(self, results: RoundResults, stage: int, number: int) -> None:
        self._pending.append(results)
        self._place = stage, number
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Stores everything added since the last save, which belongs to one round."""
        if self._pending and self._store.folder is not None:
            stage, number = self._place
            place = {"stage": np.asarray(stage), "round": np.asarray(number), "seconds": np.asarray(self.seconds)}
            # Cleared first, so that nothing is stored twice if this is interrupted.
            results, self._pending = joined(self._pending), []
            self._store.append({**results._asdict(), **place})
        self._pending, self._saved = [], time.monotonic()


def _require(condition: Any) -> None:
    if not condition:
        raise ValueError("its parts are not results of a run on these images")


def _check_results(results: RoundResults, images: np.ndarray) -> None:
    """Checks shapes, dtypes and positions of stored results."""
    rows, count = results.rows, len(results.rows)
    _require(rows.ndim == 1 and rows.dtype == np.int64 and len(np.unique(rows)) == count)
    _require(np.all((rows >= 0) & (rows < len(images))))
    _require(results.steps.shape == (count,) and results.steps.dtype == np.int32)
    for flags in (results.refused, results.nonfinite, results.success, results.kept):
        _require(flags.shape == (count,) and flags.dtype == bool)
    _require(results.progress.shape == (count,) and results.progress.dtype == np.int8)
    num_kept = int(np.sum(results.kept))
    _require(results.images.shape == (num_kept, *images.shape[1:]) and results.images.dtype == images.dtype)
    _require(results.distance.shape == (num_kept,) and results.distance.dtype == np.float32)


def _wrong_by(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[n]: the largest other logit minus that of the label, relative to the largest magnitude."""
    logits = logits.astype(float)
    of_label = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits).max(axis=1)
    scale = np.max(np.abs(logits), axis=1, where=np.isfinite(logits), initial=np.finfo(np.float32).tiny)
    # Logits with a NaN predict nothing.
    return np.where(np.isnan(logits).any(axis=1), np.inf, (others - of_label) / scale)
