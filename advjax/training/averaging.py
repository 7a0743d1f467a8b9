"""Averages of the weights over the steps of training, evaluated in place of the last weights.

Batch statistics are averaged by the same rule. They are then near those of the averaged weights, but not the same;
``refresh_steps`` estimates them anew.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.training.optimizers import ema_update
from advjax.types import Array, PyTree, UserError


class Averaging(NamedTuple):
    """A rule for averaging."""

    update: Callable[[PyTree, PyTree, Array], PyTree]
    """``(average, new values, step) -> average``, step 0 for the first update; the average starts at the values."""
    refresh_steps: int = 0
    """Batches of training data that go through the averaged network before it is evaluated, for its batch statistics
    alone."""


def ema(decay: float, refresh_steps: int = 0) -> Averaging:
    """Exponential moving average, see ``ema_update``.

    Raises:
      UserError: ``decay`` is not in (0, 1), or ``refresh_steps`` is negative.
    """
    if not 0 < decay < 1:
        raise UserError(f"ema: decay is {decay!r}; give a number between 0 and 1")
    return Averaging(lambda average, new, step: ema_update(average, new, decay, step), _checked("ema", refresh_steps))


def swa(start: int, every: int = 1, refresh_steps: int = 50) -> Averaging:
    """Stochastic weight averaging (Izmailov et al., 2018): the mean of the weights after updates ``start``,
    ``start + every``, ``start + 2 every``, ...; before that, the latest weights.

    Args:
      start: the first update to count, from 0.
      every: updates between two weights that count; a multiple of the steps of an epoch in the paper.
      refresh_steps: see ``Averaging``; with running averages of decay 0.9, 50 leave half a percent of the old ones.

    Raises:
      UserError: a negative number, or ``every`` below 1.
    """
    if start < 0 or every < 1:
        raise UserError(f"swa: start is {start!r} and every {every!r}; give start 0 or more and every 1 or more")

    def update(average: PyTree, new: PyTree, step: Array) -> PyTree:
        since = jnp.maximum(step - start, 0)
        weight = jnp.where(since % every == 0, 1 / (since // every + 1), 0)
        # Before the start since is 0, so the weight is 1: exactly the new values.
        return jax.tree.map(lambda old, latest: (1 - weight) * old + weight * latest, average, new)

    return Averaging(update, _checked("swa", refresh_steps))


def _checked(name: str, refresh_steps: int) -> int:
    if refresh_steps < 0:
        raise UserError(f"{name}: refresh_steps is {refresh_steps!r}; give a whole number, 0 or more")
    return refresh_steps
