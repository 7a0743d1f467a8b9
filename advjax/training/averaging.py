"""Weight averaging over training steps; the averages are evaluated instead of the latest weights.

Batch statistics are averaged by the same rule, which only approximates those of the averaged weights; ``refresh_steps``
re-estimates them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.training.optimizers import ema_update
from advjax.types import Array, PyTree, UserError


class Averaging(NamedTuple):
    """An averaging rule."""

    update: Callable[[PyTree, PyTree, Array], PyTree]
    """``(average, new values, step) -> average``, with step 0 for the first update; starts at the initial values."""
    refresh_steps: int = 0
    """Number of training batches that re-estimate the batch statistics of the averaged model before evaluation."""


def ema(decay: float, refresh_steps: int = 0) -> Averaging:
    """Exponential moving average, see ``ema_update``.

    Raises:
      UserError: ``decay`` is outside (0, 1), or ``refresh_steps`` is negative.
    """
    if not 0 < decay < 1:
        raise UserError(f"ema: decay is {decay!r}; give a number between 0 and 1")
    return Averaging(lambda average, new, step: ema_update(average, new, decay, step), _checked("ema", refresh_steps))


def swa(start: int, every: int = 1, refresh_steps: int = 50) -> Averaging:
    """Stochastic weight averaging (SWA; Izmailov et al., 2018).

    The mean of the weights after updates ``start``, ``start + every``, ``start + 2 every``, ...; before that, the
    latest weights.

    Args:
      start: the first update to include, from 0.
      every: number of updates between two included weights; a multiple of the steps per epoch in the paper.
      refresh_steps: see ``Averaging``; with a decay of 0.9, 50 steps leave 0.5% of the old running averages.

    Raises:
      UserError: ``start`` or ``refresh_steps`` is negative, or ``every`` is below 1.
    """
    if start < 0 or every < 1:
        raise UserError(f"swa: start is {start!r} and every {every!r}; start must be at least 0 and every at least 1")

    def update(average: PyTree, new: PyTree, step: Array) -> PyTree:
        since = jnp.maximum(step - start, 0)
        weight = jnp.where(since % every == 0, 1 / (since // every + 1), 0)
        # Before the start, since is 0 and hence the weight is 1: exactly the new values.
        return jax.tree.map(lambda old, latest: (1 - weight) * old + weight * latest, average, new)

    return Averaging(update, _checked("swa", refresh_steps))


def _checked(name: str, refresh_steps: int) -> int:
    if refresh_steps < 0:
        raise UserError(f"{name}: refresh_steps is {refresh_steps!r}; give an integer, 0 or more")
    return refresh_steps
