"""Gradient descent with a line search that halves or doubles its rate, one evaluation at a time.

This is the descent of the Carlini-Wagner attacks in the Adversarial Robustness Toolbox: try the rate of the last step;
if the loss does not decrease, halve the rate until it does; if it decreases immediately, double the rate while it keeps
decreasing.  The best trial becomes the next point.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from advjax.types import Array

T = TypeVar("T")


class Seen(NamedTuple):
    """A point at which the model has been evaluated."""

    variable: Array
    gradient: Array
    """Of the loss with respect to the variable.  Every trial has its own, so no point is evaluated twice."""
    loss: Array


class LineSearch(NamedTuple):
    """One search, from ``current`` down its gradient."""

    current: Seen
    """Its loss is what a trial has to get below."""
    best: Seen
    """The trial with the lowest loss so far; ``current`` before any has a lower loss."""
    rate: Array
    """Of the next trial."""
    trials: Array
    doubling: Array


def begin(current: Seen, rate: Array) -> LineSearch:
    """Starts a search from ``current``, first with ``rate``."""
    # Zeros made from the loss, so that the search also runs under shard_map.
    return LineSearch(
        current, current, rate, jnp.zeros_like(current.loss, jnp.int32), jnp.zeros_like(current.loss, bool)
    )


def trial(search: LineSearch) -> Array:
    """The variable to evaluate next."""
    return search.current.variable - search.rate * search.current.gradient


def advance(search: LineSearch, seen: Seen, max_halvings: int, max_doublings: int) -> tuple[LineSearch, Array, Array]:
    """Advances a search by the evaluation of ``trial(search)``.

    If that ends the search, the next one starts at the best trial.  If no trial had a lower loss than ``current``, it
    starts at ``current`` again but only has to get below the loss of the last trial, as in the toolbox.

    Returns:
      The search to continue with, whether the previous one has ended, and whether it then moved to a new point.
    """
    fell = seen.loss < search.current.loss
    best = where(seen.loss < search.best.loss, seen, search.best)
    moved = best.loss < search.current.loss
    trials = search.trials + 1
    halve = ~search.doubling & ~fell & (trials < max_halvings)
    # The first trial is not a doubling.
    double = (trials <= max_doublings) & jnp.where(search.doubling, seen.loss <= best.loss, fell & (trials == 1))
    ended = ~(halve | double)
    factor = jnp.where(double, 2.0, jnp.where(halve | search.doubling, 0.5, 1.0)).astype(search.rate.dtype)
    rate = search.rate * factor
    going_on = LineSearch(search.current, best, rate, trials, search.doubling | double)
    stayed = search.current._replace(loss=seen.loss)
    return where(ended, begin(where(moved, best, stayed), rate), going_on), ended, ended & moved


def most_trials(max_halvings: int, max_doublings: int) -> int:
    """Maximum number of trials of one search."""
    return max(max_halvings, 1 + max_doublings)


def require_precise(logits: Array) -> None:
    """Raises a ValueError for logits in half precision, whose rounding hides the decrease of the loss in a step."""
    if jnp.finfo(logits.dtype).bits < 32:
        raise ValueError(f"attacks by line search need logits in float32 or float64, got {logits.dtype}")


def where(condition: Array, if_true: T, if_false: T) -> T:
    """Selects one of two states."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)
