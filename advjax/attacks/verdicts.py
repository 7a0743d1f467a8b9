"""Verdicts on the images of a data set, and merging the results of a round into them."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from advjax.attacks.course import NO_PROGRESS
from advjax.attacks.input_checks import MASKED, NONFINITE

ROBUST, MISCLASSIFIED = -1, -2
"""Values of ``broken_by`` without a success: the clean image is classified correctly, or it is misclassified."""


class Verdicts(NamedTuple):
    """Results of ``run_stages``, one entry per image, as numpy arrays.

    Which images are attacked, and which result is kept, depends on ``survivors_only`` of ``run_stages``.
    """

    broken_by: np.ndarray
    """int32 [n]: the number of the stage whose success is kept; otherwise ``ROBUST`` or ``MISCLASSIFIED``."""
    images: np.ndarray
    """float [n, h, w, c]: the adversarial images.  Without a success, the clean image for ``survivors_only`` and the
    result of the first round otherwise."""
    distance: np.ndarray
    """float32 [n]: size of the perturbation of ``images`` in the norm of the threat model."""
    steps: np.ndarray
    """int32 [n]: steps of all attacks on the image."""
    refused: np.ndarray
    """int32 [n]: rounds whose success verification refused, also when repeated in the precision of verdicts."""
    nonfinite: np.ndarray
    """bool [n]: gradients were NaN or infinite in some attack on the image (``AttackResult.nonfinite``)."""
    progress: np.ndarray
    """int8 [n, stages]: whether a round of the stage made progress on the image (``AttackResult.progress``); 0 also
    where the stage did not attack it."""
    seconds: float = 0.0
    """Wall time in all, compilation and the time before interruptions included."""

    def robust_after(self, stage: int) -> np.ndarray:
        """bool [n]: still classified correctly after the given stage; -1 means before the first one.

        This is about ``survivors_only=True``; otherwise ``broken_by`` also counts successes on misclassified images.
        """
        return (self.broken_by == ROBUST) | (self.broken_by > stage)

    @property
    def without_progress(self) -> np.ndarray:
        """bool [n]: robust, but no attack with gradients made progress: no evidence of robustness."""
        return (self.broken_by == ROBUST) & (np.max(self.progress, axis=1) == NO_PROGRESS)


class Progress(NamedTuple):
    """State of a run after each batch."""

    stage: str
    round: int
    num_rounds: int
    done: int
    """Images that this round has attacked."""
    total: int
    """Images that this round attacks."""
    robust: int
    """Images of the whole data set that are still robust."""
    seconds: float
    """Since the beginning of the stage (or since it was resumed)."""


class RoundResults(NamedTuple):
    """Verified results of one round of one stage on k of the images."""

    rows: np.ndarray
    """int64 [k]: positions of the images."""
    steps: np.ndarray
    """int32 [k]."""
    refused: np.ndarray
    """bool [k]: a claimed success did not hold, also when the attack was repeated in the verdict's precision."""
    nonfinite: np.ndarray
    """bool [k]."""
    progress: np.ndarray
    """int8 [k]: as in ``AttackResult``."""
    success: np.ndarray
    """bool [k]: misclassified and inside the threat model, as verified."""
    kept: np.ndarray
    """bool [k]: this result replaces the one kept so far."""
    images: np.ndarray
    """[sum(kept), h, w, c]: the results that are kept."""
    distance: np.ndarray
    """float32 [sum(kept)]: their distances."""

    def at(self, chosen: np.ndarray) -> "RoundResults":
        """Those of the images that are ``chosen``, bool [k]."""
        of_all, of_kept = self[:7], self[7:]
        return RoundResults(*(array[chosen] for array in of_all), *(array[chosen[self.kept]] for array in of_kept))


def no_verdicts(images: np.ndarray, misclassified: np.ndarray, num_stages: int) -> Verdicts:
    """Verdicts before the first attack."""
    zeros = np.zeros(len(images), np.int32)
    broken_by = np.where(misclassified, MISCLASSIFIED, ROBUST).astype(np.int32)
    progress = np.zeros((len(images), num_stages), np.int8)
    return Verdicts(broken_by, images.copy(), zeros.astype(np.float32), zeros, zeros.copy(), zeros > 0, progress)


def better(kept: Verdicts, rows: np.ndarray, success: np.ndarray, distance: np.ndarray, *, closest: bool) -> np.ndarray:
    """bool [k]: new results that are kept: the first success or, with ``closest``, the success of smallest distance."""
    had_success = kept.broken_by[rows] >= 0
    return success & (~had_success | (closest & (distance < kept.distance[rows])))


def merge(found: Verdicts, results: RoundResults, stage: int) -> None:
    """Writes the results of a round into the verdicts, in place: a data set is too large to be copied each time."""
    rows = results.rows
    found.steps[rows] += results.steps
    found.refused[rows] += results.refused
    found.nonfinite[rows] |= results.nonfinite
    found.progress[rows, stage] = np.maximum(found.progress[rows, stage], results.progress)
    found.images[rows[results.kept]] = results.images
    found.distance[rows[results.kept]] = results.distance
    found.broken_by[rows[results.kept & results.success]] = stage


def joined(parts: Sequence[RoundResults]) -> RoundResults:
    """The results of several batches as those of one."""
    return RoundResults(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def warn_of_doubtful(found: Verdicts, names: Sequence[str], *, survivors_only: bool) -> None:
    """Warns of images that may look robust only because attacks failed; called directly by ``run_stages``."""
    robust = found.broken_by == ROBUST
    images = f"{int(np.sum(robust))} robust images"
    if nonfinite := int(np.sum(found.nonfinite[robust])):
        warnings.warn(f"gradients are NaN or infinite on {nonfinite} of {images}: {NONFINITE}", stacklevel=3)
    # Where gradients are not finite, that is the cause.
    without = found.without_progress & ~found.nonfinite
    if count := int(np.sum(without)):
        counts = np.sum(found.progress[without] == NO_PROGRESS, axis=0)
        stages = ", ".join(f"{name} on {number}" for name, number in zip(names, counts, strict=True) if number)
        warnings.warn(f"attacks made no progress on {count} of {images} ({stages}): {MASKED}", stacklevel=3)
    # Attacks on other labels (predicted ones) make other claims, which occurs outside of verdicts only.
    if survivors_only and (refused := int(np.sum(found.refused[robust] > 0))):
        message = (
            f"attacks claimed successes on {refused} of {images} that did not hold when verified: search and verdict "
            "differ (in precision, randomness or threat model), so robustness may be overestimated"
        )
        warnings.warn(message, stacklevel=3)
