"""The course of an attack on an image: whether it made progress, so that its failure is evidence of robustness."""

from typing import NamedTuple

import jax.numpy as jnp

from advjax.types import Array

UNKNOWN, NO_PROGRESS, PROGRESS = 0, 1, 2
"""Values of ``AttackResult.progress``, of which several attacks on an image have the largest."""
MIN_STEPS = 5
"""Steps after which a loss that has only fallen is no accident: a single long one, as of FGSM, may overshoot."""

ROUNDING = 1e-4
"""Changes of a loss that are no evidence of anything, absolute, and relative to losses above 1."""


class Seen(NamedTuple):
    """What a step saw, one entry per image."""

    fooled: Array
    """bool [n]: the observed point fools the model inside the threat model."""
    nonfinite: Array
    """bool [n]: the gradients were NaN or infinite."""
    guided: Array
    """bool [n]: some entry of the gradients, made finite, is not zero."""
    loss: Array
    """float32 [n]: the objective of an attack that ascends it, else 0."""


class Course(NamedTuple):
    """All steps so far, one entry per image."""

    start: Array
    """float32 [n]: the loss at the first point, random or not."""
    rose: Array
    """bool [n]: the loss has been higher since."""
    fell: Array
    """bool [n]: it has been lower since, by more than ``ROUNDING``."""
    guided: Array
    """bool [n]: some gradient was not zero."""


def begun(count: int) -> Course:
    """The course before the first step."""
    no = jnp.zeros(count, bool)
    return Course(jnp.zeros(count, jnp.float32), no, no, no)


def followed(course: Course, loss: Array, guided: Array, is_first: Array, live: Array) -> Course:
    """The course after one more point.

    Args:
      course: so far.
      loss: [n], at the point.
      guided: bool [n], whether the gradient there was not zero.
      is_first: bool, or bool [n], whether it is the first point.
      live: bool [n], images that are still attacked.
    """
    start = jnp.where(is_first, loss, course.start)
    return Course(
        start,
        course.rose | (live & (loss > start)),
        course.fell | (live & (loss < start - ROUNDING * jnp.maximum(1, jnp.abs(start)))),
        course.guided | (live & guided),
    )


def progress(course: Course, fooled: Array, steps: Array) -> Array:
    """int8 [n]: ``PROGRESS`` or ``NO_PROGRESS`` of an attack with gradients.

    There was none where all gradients were zero (or NaN), and where ``MIN_STEPS`` or more steps that were to increase
    the loss only decreased it.  A loss that hardly changes while gradients are not zero is within its rounding error: a
    model may be that flat.
    """
    misled = course.fell & ~course.rose & (steps >= MIN_STEPS)
    # Operators alone, which also take numpy arrays of any length without compiling anything.
    return PROGRESS - (~fooled & (misled | ~course.guided)).astype(jnp.int8)
