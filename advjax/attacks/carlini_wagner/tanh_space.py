"""What the Carlini-Wagner attacks share: tanh space, the loss on the margin, and the choice of the best success."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.losses import margin
from advjax.attacks.model_queries import is_fooled
from advjax.types import Array

SMOOTHING = 0.999999
"""Keeps pixels at the bounds away from the ends of the tanh, where gradients vanish."""


def tanh_box(
    bounds: tuple[float | Array, float | Array],
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Returns ``(image -> w, w -> image)`` with ``image = low + (high - low) (tanh(w) + 1) / 2``: any w is inside.

    The bounds may differ between pixels; a pixel without room has w = 0.
    """
    low, high = bounds
    room = jnp.where(high > low, high - low, jnp.inf)

    def to_variable(image: Array) -> Array:
        # Rounding must not take a pixel at its bound above 1.
        share = jnp.where(jnp.isinf(room), 0.5, jnp.clip((image - low) / room, 0, 1))
        return jnp.arctanh(SMOOTHING * (2 * share - 1))

    def to_image(variable: Array) -> Array:
        return low + (high - low) * (jnp.tanh(variable) + 1) / 2

    return to_variable, to_image


def margin_deficit(confidence: float | Array, targeted: bool) -> Callable[[Array, Array], Array]:
    """Returns ``(logits, label) -> confidence - m``; m is the ``margin``, negated if targeted."""
    sign = -1.0 if targeted else 1.0
    return lambda logits, label: confidence - sign * margin(logits, label)


def margin_hinge(confidence: float | Array, targeted: bool) -> Callable[[Array, Array], Array]:
    """Returns ``(logits, label) -> max(0, confidence - m)``: the positive part of the ``margin_deficit`` (f_6)."""
    deficit = margin_deficit(confidence, targeted)
    return lambda logits, label: jnp.maximum(deficit(logits, label), 0)


class Smallest(NamedTuple):
    """The point of the highest quality so far; among points of equal quality, the closest."""

    image: Array
    distance: Array
    quality: Array
    """0: not adversarial, 1: adversarial, 2: adversarial with the required confidence."""


def quality_of(hinge: Callable[[Array, Array], Array], targeted: bool) -> Callable[[Array, Array], Array]:
    """Returns ``(logits, label) -> quality``, as defined in ``Smallest``."""

    def quality(logits: Array, label: Array) -> Array:
        fooled = is_fooled(logits, label, targeted)
        return fooled.astype(jnp.int32) + (fooled & (hinge(logits, label) <= 0))

    return quality


def smaller(old: Smallest, new: Smallest) -> Smallest:
    """Returns ``new`` if it is better, else ``old``."""
    nearer = (new.quality == old.quality) & (new.quality > 0) & (new.distance < old.distance)
    better = (new.quality > old.quality) | nearer
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)
