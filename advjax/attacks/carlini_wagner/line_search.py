"""Gradient descent with a line search that halves or doubles its rate, as a machine that asks for one point at a time.

This is the descent of the Adversarial Robustness Toolbox in its attacks of Carlini and Wagner: try the rate of the last
step; if the loss does not fall, halve the rate until it does; if it falls at once, double the rate while it keeps
falling.  The best trial becomes the next point.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from advjax.types import Array

T = TypeVar("T")


class Seen(NamedTuple):
    """A point that the model has answered for."""

    variable: Array
    gradient: Array
    """Of the loss with respect to the variable.  Every trial brings its own, so no point is asked about twice."""
    loss: Array


class LineSearch(NamedTuple):
    """One search, from ``current`` down its gradient."""

    current: Seen
    """Its loss is what a trial has to fall below."""
    best: Seen
    """The trial with the lowest loss so far, ``current`` before one has fallen below its loss."""
    rate: Array
    """Of the trial that is asked for."""
    trials: Array
    doubling: Array


def begin(current: Seen, rate: Array) -> LineSearch:
    """The search from ``current``, first with ``rate``."""
    # Zeros made from the loss, so that the search also runs under shard_map.
    return LineSearch(
        current, current, rate, jnp.zeros_like(current.loss, jnp.int32), jnp.zeros_like(current.loss, bool)
    )


def trial(search: LineSearch) -> Array:
    """The variable to ask about."""
    return search.current.variable - search.rate * search.current.gradient


def advance(search: LineSearch, seen: Seen, max_halvings: int, max_doublings: int) -> tuple[LineSearch, Array, Array]:
    """Takes the answer to ``trial(search)``.

    If that ends the search, the next one begins at the best trial.  Without one that fell below the loss of
    ``current`` it begins at ``current`` again, but is content with less than the loss of the last trial, as the toolbox
    is.

    Returns:
      The search to go on with; whether the last one has ended; whether it has moved to a new point then.
    """
    fell = seen.loss < search.current.loss
    best = where(seen.loss < search.best.loss, seen, search.best)
    moved = best.loss < search.current.loss
    trials = search.trials + 1
    halve = ~search.doubling & ~fell & (trials < max_halvings)
    # The first trial is no doubling.
    double = (trials <= max_doublings) & jnp.where(search.doubling, seen.loss <= best.loss, fell & (trials == 1))
    ended = ~(halve | double)
    factor = jnp.where(double, 2.0, jnp.where(halve | search.doubling, 0.5, 1.0)).astype(search.rate.dtype)
    rate = search.rate * factor
    going_on = LineSearch(search.current, best, rate, trials, search.doubling | double)
    stayed = search.current._replace(loss=seen.loss)
    return where(ended, begin(where(moved, best, stayed), rate), going_on), ended, ended & moved


def most_trials(max_halvings: int, max_doublings: int) -> int:
    """Most trials of one search."""
    return max(max_halvings, 1 + max_doublings)


def where(condition: Array, if_true: T, if_false: T) -> T:
    """One of two states."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def require_positive(**counts: int) -> None:
    """Raises a ValueError for a count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
