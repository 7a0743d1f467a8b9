"""Observed points, and the rules by which an attack chooses the one it returns."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.types import Array


class Observed(NamedTuple):
    """A point at which the model has been evaluated, for attacks that return the latest one."""

    image: Array


class Candidate(NamedTuple):
    """A point, its loss, and whether it fools the model."""

    image: Array
    loss: Array
    success: Array


def unobserved(image: Array, loss_dtype: jnp.dtype) -> Candidate:
    """The candidate before anything has been observed.  ``loss_dtype`` is that of the logits."""
    return Candidate(image, jnp.asarray(-jnp.inf, loss_dtype), jnp.asarray(False))


KEEP_RULES: dict[str, Callable[[Candidate, Candidate], Array]] = {
    "best": lambda old, new: (new.success & ~old.success) | ((new.success == old.success) & (new.loss > old.loss)),
    "highest_loss": lambda old, new: new.loss > old.loss,
    "latest_success": lambda old, new: new.success,
    "last": lambda old, new: jnp.asarray(True),
}
"""Which observed point an attack returns; the argument ``returns`` names one of these rules.

``best``: the highest loss among the successful points, or among all points if none succeeded.  ``highest_loss``: the
highest loss, whatever the prediction.  ``latest_success``: the latest successful point, or the starting point if none
succeeded (AutoAttack's rule).  ``last``: the last point.
"""


def keep_rule(returns: str) -> Callable[[Candidate, Candidate], Candidate]:
    """Returns the function ``(old, new) -> candidate to keep`` that ``returns`` names."""
    if returns not in KEEP_RULES:
        raise ValueError(f"returns must be one of {', '.join(KEEP_RULES)}, got {returns!r}")
    rule = KEEP_RULES[returns]
    return lambda old, new: jax.tree.map(lambda a, b: jnp.where(rule(old, new), b, a), old, new)
