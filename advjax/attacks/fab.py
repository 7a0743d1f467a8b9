"""FAB, the fast adaptive boundary attack: minimum-norm perturbations by staying close to the boundary and the image."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.base import Attack, Problem
from advjax.attacks.input_checks import require_number
from advjax.attacks.losses import Aim, entry, other_classes
from advjax.attacks.model_queries import is_fooled
from advjax.attacks.threat_model import ThreatModel, require
from advjax.types import Array


class Closest(NamedTuple):
    """The closest adversarial image so far."""

    image: Array
    """Projected into the threat model; the original image before there is one."""
    distance: Array
    """Distance before the projection; infinite before there is an adversarial image."""


class FABState(NamedTuple):
    """State of the attack on one image."""

    point: Array
    best: Closest


def fab(
    threat_model: ThreatModel,
    *,
    num_steps: int = 100,
    aim: Aim | None = None,
    targeted: bool = False,
    alpha_max: float | Array = 0.1,
    eta: float | Array = 1.05,
    beta: float | Array = 0.9,
    random_start: bool = False,
) -> Attack:
    """FAB for linf, l2 and l1 (Croce & Hein 2020b, algorithm 1; semantics of the authors' implementation).

    The model is linearized at x_i.  With d_1 and d_2 the smallest perturbations that take x_i and the image x to the
    nearest boundary inside the bounds, and ``alpha = min(||d_1|| / (||d_1|| + ||d_2||), alpha_max)``,
    ``x_{i+1} = clip((1 - alpha) (x_i + eta d_1) + alpha (x + eta d_2))``.  If x_{i+1} is adversarial, it is kept if it
    is the closest to x so far, and the next step starts at ``x + beta (x_{i+1} - x)``.

    A finite epsilon does not constrain the search, it only determines success: the closest adversarial image is
    returned, projected into the threat model, and the image itself if none was found.  Each step takes two forward
    passes, and one backward pass with ``aim`` or ``targeted``, otherwise one for each class but the label.

    Args:
      threat_model: any norm; with an infinite epsilon, FAB looks for the smallest perturbation.
      num_steps: number of points at which the model is linearized.
      aim: chooses the one class whose boundary is sought, e.g. ``next_likely_class(1)``.  FAB-T, with one round for
        each class, is ``over_targets(lambda aim: fab(threat_model, aim=aim))``.  Any other class is a success, too.
      targeted: labels are the classes to reach; the boundary is the one to the class predicted at x_i.
      alpha_max: maximum weight of the pull towards the image.
      eta: how far to go, as a multiple of the way to the boundary.
      beta: fraction of the perturbation that is left after a success.
      random_start: start on the sphere of radius epsilon / 2 instead of at the image.
    """
    if targeted and aim is not None:
        raise ValueError("a targeted attack aims at its labels: pass either targeted=True or aim")
    require(threat_model, "fab", finite_bounds=True)
    if random_start:
        require(threat_model, "the random start of fab", finite_epsilon=True)
    require_number("alpha_max", alpha_max, 0, 1)
    require_number("eta", eta, 1)
    require_number("beta", beta, 0, 1)
    norm, bounds = threat_model.norm, threat_model.bounds
    nearby = dataclasses.replace(threat_model, epsilon=threat_model.epsilon / 2)

    def init(problem: Problem) -> FABState:
        image = problem.image
        point = nearby.surface(image, problem.rng) if random_start else image
        point = point if problem.start is None else problem.start
        return FABState(point, Closest(threat_model.project(image, image), jnp.asarray(jnp.inf, image.dtype)))

    def observe(problem: Problem, state: FABState, logits: Array) -> FABState:
        """Keeps the point if it is the closest success, and steps back from any success."""
        success = is_fooled(logits, problem.label, targeted)
        distance = threat_model.distance(problem.image, state.point)
        closer = success & (distance < state.best.distance)
        best = Closest(threat_model.project(problem.image, state.point), distance)
        back = problem.image + beta * (state.point - problem.image)
        return FABState(
            point=jnp.where(success, back, state.point),
            best=jax.tree.map(lambda new, old: jnp.where(closer, new, old), best, state.best),
        )

    def differences(problem: Problem, state: FABState, logits: Array) -> Array:
        """[k]: the differences of logits that are positive beyond the k boundaries."""
        label = problem.label
        if targeted:
            predicted = other_classes(jax.lax.stop_gradient(logits), label)[0]
            return (entry(logits, label) - entry(logits, predicted))[None]
        others = other_classes(problem.clean_logits, label) if aim is None else aim(problem)[None]
        return jax.vmap(entry, in_axes=(None, 0))(logits, others) - entry(logits, label)

    def move(problem: Problem, state: FABState, logits: Array, gradients: Array) -> FABState:
        image, point = problem.image, state.point
        gaps = -differences(problem, state, logits).astype(image.dtype)
        steepness = jax.vmap(lambda gradient: jnp.sum(norm.ascent(gradient) * gradient))(gradients)
        nearest = jnp.argmin(jnp.abs(gaps) / (steepness + 1e-12))
        normal, gap = gradients[nearest], gaps[nearest]
        from_point = norm.to_hyperplane(point, normal, gap, bounds)
        from_image = norm.to_hyperplane(image, normal, gap + jnp.sum(normal * (point - image)), bounds)
        sizes = jnp.maximum(norm.size(from_point), 1e-8), jnp.maximum(norm.size(from_image), 1e-8)
        alpha = jnp.minimum(sizes[0] / (sizes[0] + sizes[1]), alpha_max)
        moved = (1 - alpha) * (point + eta * from_point) + alpha * (image + eta * from_image)
        return state._replace(point=jnp.clip(moved, *bounds))

    return Attack(threat_model, num_steps, init, differences, observe, move, targeted=targeted, observe_moves=True)
