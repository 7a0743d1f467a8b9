"""What the Carlini-Wagner attacks share: tanh space, the margin that they minimize, and the success that they keep."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.losses import margin
from advjax.types import Array

SMOOTHING = 0.999999
"""Keeps pixels at the bounds away from the ends of the tanh, where they could never move again."""


def tanh_box(
    bounds: tuple[float | Array, float | Array],
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """``(image -> w, w -> image)`` with ``image = low + (high - low) (tanh(w) + 1) / 2``: any w is inside.

    The bounds may be those of every pixel; one without room has w = 0.
    """
    low, high = bounds
    room = jnp.where(high > low, high - low, jnp.inf)

    def to_variable(image: Array) -> Array:
        # Rounding must not lift a pixel at its bound above 1.
        share = jnp.where(jnp.isinf(room), 0.5, jnp.clip((image - low) / room, 0, 1))
        return jnp.arctanh(SMOOTHING * (2 * share - 1))

    def to_image(variable: Array) -> Array:
        return low + (high - low) * (jnp.tanh(variable) + 1) / 2

    return to_variable, to_image


def margin_deficit(confidence: float | Array, targeted: bool) -> Callable[[Array, Array], Array]:
    """``(logits, label) -> confidence - m``; m is the ``margin``, with the opposite sign if targeted."""
    sign = -1.0 if targeted else 1.0
    return lambda logits, label: confidence - sign * margin(logits, label)


def margin_hinge(confidence: float | Array, targeted: bool) -> Callable[[Array, Array], Array]:
    """``(logits, label) -> max(0, confidence - m)``: the ``margin_deficit``, if there is one (f_6)."""
    deficit = margin_deficit(confidence, targeted)
    return lambda logits, label: jnp.maximum(deficit(logits, label), 0)


class Smallest(NamedTuple):
    """The most convincing point so far; among equally convincing ones, the nearest."""

    image: Array
    distance: Array
    quality: Array
    """0: not adversarial, 1: adversarial, 2: adversarial with the confidence asked for."""


def quality_of(hinge: Callable[[Array, Array], Array], targeted: bool) -> Callable[[Array, Array], Array]:
    """``(logits, label) -> quality`` of ``Smallest``."""

    def quality(logits: Array, label: Array) -> Array:
        fooled = (jnp.argmax(logits) == label) == targeted
        return fooled.astype(jnp.int32) + (fooled & (hinge(logits, label) <= 0))

    return quality


def smaller(old: Smallest, new: Smallest) -> Smallest:
    """The one to keep; ``old`` unless ``new`` is better."""
    nearer = (new.quality == old.quality) & (new.quality > 0) & (new.distance < old.distance)
    better = (new.quality > old.quality) | nearer
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)
