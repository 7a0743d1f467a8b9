"""Attacks advanced by one step at a time, in lanes: each image is at a step of its own.

An image whose attack has ended gives up its lane to the next one (continuous batching), so that no step is spent on
images that are done.  What happens to an image is what happens in ``Attack.__call__``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks import course as courses
from advjax.attacks import model_queries
from advjax.attacks.base import Attack, Problem
from advjax.attacks.course import Course
from advjax.attacks.eot import Expectation
from advjax.attacks.keys import BEFORE, model_keys
from advjax.attacks.per_image import select
from advjax.types import Array, Key, LogitsFn


class Lanes(NamedTuple):
    """Images under attack, one in each of n lanes."""

    problem: Problem
    state: Any
    """State of the attack."""
    steps: Array
    """int32 [n]: steps taken."""
    ended: Array
    """bool [n]: the attack has ended, or there is no image in the lane."""
    fooled: Array
    """bool [n]: an observed point fooled the model inside the threat model.  Never true of an ``expectation``, which a
    point may fool by lucky draws."""
    nonfinite: Array
    """bool [n]: some gradient was NaN or infinite."""
    course: Course
    """Whether the attack makes progress."""


def begin(
    attack: Attack,
    logits_fn: LogitsFn | Expectation,
    images: Array,
    labels: Array,
    rngs: Key,
    clean_logits: Array,
    vacant: Array,
) -> Lanes:
    """Puts images [n] into lanes.

    Args:
      attack: the attack.
      logits_fn: the model that the attack follows.
      images: [n, h, w, c].
      labels: int [n].
      rngs: keys [n] of the images.
      clean_logits: [n, classes], of a deterministic model; a stochastic one is queried.
      vacant: bool [n]: there is no image in the lane, whatever ``images`` says.
    """
    images = jnp.clip(images, *attack.threat_model.bounds)
    if isinstance(logits_fn, Expectation):
        clean_logits = model_queries.evaluate(logits_fn, images, model_keys(rngs, BEFORE))
    problem = Problem(images, labels, rngs, clean_logits, None)
    none = jnp.zeros_like(vacant)
    steps, course = none.astype(jnp.int32), courses.begun(len(images))
    return Lanes(problem, jax.vmap(attack.init)(problem), steps, vacant, none, none, course)


def advance(attack: Attack, until_success: bool, logits_fn: LogitsFn | Expectation, lanes: Lanes) -> Lanes:
    """One step in every lane: observe the point and, unless all steps have been taken, move it.

    Args:
      attack: the attack.
      until_success: end the attack on an image at its first success (has no effect on an ``expectation``).
      logits_fn: the model that the attack follows.
      lanes: the images.
    """
    live, last = ~lanes.ended, lanes.steps >= attack.num_steps
    state, seen = attack.step(logits_fn, lanes.problem, lanes.state, lanes.steps, last)
    fooled = seen.fooled & live & (not isinstance(logits_fn, Expectation))
    ended = lanes.ended | last
    if until_success:
        ended |= fooled
    if attack.done is not None:
        ended |= jax.vmap(attack.done)(state)
    moved = live & ~last
    return Lanes(
        lanes.problem,
        select(live, state, lanes.state),
        lanes.steps + moved,
        ended,
        lanes.fooled | fooled,
        lanes.nonfinite | (seen.nonfinite & moved),
        courses.followed(lanes.course, seen.loss, seen.guided & moved, lanes.steps == 0, live),
    )


def replace(fresh: Array, new: Lanes, old: Lanes) -> Lanes:
    """The ``old`` lanes, with those of ``new`` where ``fresh`` [n] is true."""
    return select(fresh, new, old)


def take(lanes: Lanes, positions: Array, vacant: Array) -> Lanes:
    """The lanes at ``positions`` [k]; those that are ``vacant`` [k] hold no image."""
    taken: Lanes = jax.tree.map(lambda leaf: leaf[positions], lanes)
    return taken._replace(ended=taken.ended | vacant)
