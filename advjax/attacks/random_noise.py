"""Random noise: baselines that every attack has to beat."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.base import Attack, Problem
from advjax.attacks.candidate import Candidate, Observed, keep_rule, unobserved
from advjax.attacks.input_checks import require_count, require_number
from advjax.attacks.losses import margin
from advjax.attacks.model_queries import is_fooled
from advjax.attacks.threat_model import ThreatModel, l2, require
from advjax.types import Array

READINGS = ("std", "variance")


class GaussianNoiseState(NamedTuple):
    """The noisy image."""

    point: Array
    best: Observed


def gaussian_noise(level: float | Array, *, reading: str = "std", bounds: tuple[float, float] = (0.0, 1.0)) -> Attack:
    """``x' = clip(x + n)`` with independent Gaussian n of mean 0 for every pixel and channel.

    The noise does not depend on the model, so this is not a search, but its result is scored like that of an attack:
    ``success`` is a misclassification, ``distance`` the l2 norm of what is left of the noise after clipping.

    Args:
      level: magnitude of the noise, in units of the pixels.
      reading: what ``level`` is: the standard deviation of a pixel ("std"), or its "variance", as in some image
        libraries.  Noise of level 0.01 has standard deviation 0.01 in the first case and 0.1 in the second.
      bounds: of the pixels.
    """
    if reading not in READINGS:
        raise ValueError(f"reading must be one of {', '.join(READINGS)}, got {reading!r}")
    require_number("level", level)
    threat_model = l2(math.inf, bounds)

    def init(problem: Problem) -> GaussianNoiseState:
        image = problem.image
        scale = jnp.asarray(level, image.dtype)
        if reading == "variance":
            scale = jnp.sqrt(scale)
        noise = scale * jax.random.normal(problem.rng, image.shape, image.dtype)
        noisy = threat_model.project(image, image + noise)
        return GaussianNoiseState(noisy, Observed(noisy))

    def stay(problem: Problem, state: GaussianNoiseState, logits: Array, gradient: None = None) -> GaussianNoiseState:
        return state

    return Attack(threat_model, 1, init, objective=None, observe=stay, move=stay)


class RandomPointsState(NamedTuple):
    """The current point, its number, and the best point so far."""

    point: Array
    number: Array
    best: Candidate


def random_points(threat_model: ThreatModel, *, num_points: int = 20) -> Attack:
    """The best of several points drawn uniformly from the ball.

    Args:
      threat_model: the allowed images; epsilon must be finite.
      num_points: number of points.
    """
    require(threat_model, "random_points", finite_epsilon=True)
    require_count("num_points", num_points)
    keep = keep_rule("best")

    def draw(problem: Problem, number: Array) -> Array:
        return threat_model.sample(problem.image, jax.random.fold_in(problem.rng, number))

    def init(problem: Problem) -> RandomPointsState:
        first = jnp.int32(0)
        return RandomPointsState(draw(problem, first), first, unobserved(problem.image, problem.clean_logits.dtype))

    def observe(problem: Problem, state: RandomPointsState, logits: Array) -> RandomPointsState:
        seen = Candidate(state.point, margin(logits, problem.label), is_fooled(logits, problem.label))
        return state._replace(best=keep(state.best, seen))

    def move(problem: Problem, state: RandomPointsState, logits: Array, gradient: None) -> RandomPointsState:
        number = state.number + 1
        return state._replace(point=draw(problem, number), number=number)

    # There is one more observation than there are steps.
    return Attack(threat_model, max(num_points - 1, 1), init, objective=None, observe=observe, move=move)
