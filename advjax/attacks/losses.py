"""What attacks maximise: functions of ONE example, ``(logits [classes], label) -> scalar``, larger = more adversarial."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from advjax.types import Array

Loss: TypeAlias = Callable[[Array, Array], Array]


def cross_entropy(logits: Array, label: Array) -> Array:
    """``-log softmax(logits)[label]``."""
    # Not logsumexp - logit: for confident predictions that difference cancels, and the sign of its gradient with it.
    return -jax.nn.log_softmax(logits)[label]


def margin(logits: Array, label: Array) -> Array:
    """``max_{i != label} z_i - z_label``: positive exactly where another class wins (Carlini & Wagner 2017, f_6)."""
    return _best_other(logits, label) - logits[label]


def dlr(logits: Array, label: Array) -> Array:
    """Difference of logits ratio, ``-(z_y - max_{i != y} z_i) / (z_(1) - z_(3))`` (Croce & Hein 2020, eq. 6).

    Invariant to shifting and scaling the logits.  With two classes there is no third logit, and the ratio of the only
    difference there is to itself would be constant: the plain ``margin`` is returned instead.
    """
    difference = margin(logits, label)
    if logits.shape[-1] < 3:
        return difference
    top = jax.lax.top_k(logits, 3)[0]
    return difference / (top[0] - top[2] + 1e-12)


def _best_other(logits: Array, label: Array) -> Array:
    return jnp.max(jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits))
