"""Noise: what a model must withstand before anybody attacks it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.base import Attack, Kept, Problem, first_kept, keep_rule
from advjax.attacks.losses import margin
from advjax.attacks.threat_model import ThreatModel, is_concrete, l2
from advjax.types import Array

READINGS = ("std", "variance")


def gaussian_noise(level: float | Array, *, reading: str = "std", bounds: tuple[float, float] = (0.0, 1.0)) -> Attack:
    """``x' = clip(x + n)`` with independent Gaussian n of mean 0 for every pixel and channel.

    The model is not asked before the noise is drawn, so this is no search, but it is judged like an attack: ``success``
    is a wrong answer, ``distance`` the l2 size of what is left of the noise after clipping.

    Args:
      level: size of the noise, pixels in [0, 1].
      reading: what ``level`` is: the "std" of a pixel, or its "variance", as some image tools have it.  Noise of level
        0.01 has standard deviation 0.01 in the first case and 0.1 in the second.
      bounds: of the pixels.
    """
    if reading not in READINGS:
        raise ValueError(f"reading must be one of {', '.join(READINGS)}, got {reading!r}")
    if is_concrete(level) and not float(level) >= 0:
        raise ValueError(f"level must be 0 or more, got {level}")
    threat_model = l2(math.inf, bounds)

    def init(problem: Problem) -> Array:
        image = problem.image
        scale = jnp.asarray(level, image.dtype)
        if reading == "variance":
            scale = jnp.sqrt(scale)
        noise = scale * jax.random.normal(problem.rng, image.shape, image.dtype)
        return threat_model.project(image, image + noise)

    return Attack(
        threat_model,
        num_steps=1,
        init=init,
        query=lambda noisy: noisy,
        cotangents=None,
        update=lambda problem, noisy, logits, gradients: noisy,
        finalize=lambda problem, noisy: noisy,
    )


class RandomPointsState(NamedTuple):
    """The point to look at, how many there have been, and the best of them."""

    point: Array
    number: Array
    kept: Kept


def random_points(threat_model: ThreatModel, *, num_points: int = 20) -> Attack:
    """The best of some points drawn uniformly from the ball: what every search has to beat.

    Args:
      threat_model: the allowed images; epsilon must be finite.
      num_points: how many points are looked at.
    """
    keep = keep_rule("best")

    def draw(problem: Problem, number: Array) -> Array:
        return threat_model.sample(problem.image, jax.random.fold_in(problem.rng, number))

    def init(problem: Problem) -> RandomPointsState:
        first = jnp.int32(0)
        return RandomPointsState(draw(problem, first), first, first_kept(problem.image, problem.clean_logits.dtype))

    def update(problem: Problem, state: RandomPointsState, logits: Array, gradients: Array) -> RandomPointsState:
        seen = Kept(state.point, margin(logits, problem.label), jnp.argmax(logits) != problem.label)
        number = state.number + 1
        return RandomPointsState(draw(problem, number), number, keep(state.kept, seen))

    # The driver asks once more than it makes steps.
    return Attack(
        threat_model,
        num_steps=max(num_points - 1, 1),
        init=init,
        query=lambda state: state.point,
        cotangents=None,
        update=update,
        finalize=lambda problem, state: state.kept.image,
    )
