"""FAB, the fast adaptive boundary attack: small perturbations by staying near the boundary and near the image."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.base import Attack, Problem
from advjax.attacks.losses import Aim
from advjax.attacks.threat_model import ThreatModel, is_concrete
from advjax.types import Array


class FABState(NamedTuple):
    """Where one image's attack stands."""

    point: Array
    closest: Array
    """The closest adversarial image so far; the image itself before there is one."""
    distance: Array
    """Distance of ``closest``; infinite before there is one."""


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

    The model is linearised at x_i.  With d_1 and d_2 the smallest perturbations that take x_i and the image x onto the
    nearest boundary inside the bounds, and ``alpha = min(||d_1|| / (||d_1|| + ||d_2||), alpha_max)``,
    ``x_{i+1} = clip((1 - alpha) (x_i + eta d_1) + alpha (x + eta d_2))``.  If that is adversarial, it is remembered if
    it is the closest to x so far, and the next step begins at ``x + beta (x_{i+1} - x)``.

    A finite epsilon does not hold the search back, it only says what counts: the closest adversarial image is returned,
    projected into the threat model, and the image itself if none was found.  One backward pass per step with ``aim`` or
    ``targeted``, one per class but the label otherwise, and two forward passes.

    Args:
      threat_model: any norm; an infinite epsilon asks for the smallest perturbation.
      num_steps: points at which the model is linearised.
      aim: the one class whose boundary is sought, e.g. ``next_likely_class(1)``: FAB-T, a round for each class being
        ``over_targets(lambda aim: fab(threat_model, aim=aim))``.  Any other class is a success as well.
      targeted: labels are the classes to reach; the boundary is the one to the class that wins at x_i.
      alpha_max: largest weight of the pull towards the image.
      eta: how far to go, in units of the way to the boundary.
      beta: share of the perturbation that a success keeps.
      random_start: begin on the sphere of radius epsilon / 2 instead of at the image.
    """
    if targeted and aim is not None:
        raise ValueError("a targeted attack aims at its labels: pass either targeted=True or aim")
    if random_start and not threat_model.is_bounded:
        raise ValueError("the random start of fab needs a finite epsilon")
    for name, value, low, high in (("alpha_max", alpha_max, 0, 1), ("eta", eta, 1, math.inf), ("beta", beta, 0, 1)):
        if is_concrete(value) and not low <= float(value) <= high:
            raise ValueError(f"{name} must be {'1 or more' if name == 'eta' else 'in [0, 1]'}, got {value}")
    norm, bounds = threat_model.norm, threat_model.bounds
    nearby = dataclasses.replace(threat_model, epsilon=threat_model.epsilon / 2)

    def init(problem: Problem) -> FABState:
        image = problem.image
        point = nearby.surface(image, problem.rng) if random_start else image
        point = point if problem.start is None else problem.start
        return FABState(point, image, jnp.asarray(jnp.inf, image.dtype))

    def look(problem: Problem, state: FABState, logits: Array) -> FABState:
        success = (jnp.argmax(logits) == problem.label) == targeted
        distance = threat_model.distance(problem.image, state.point)
        closer = success & (distance < state.distance)
        back = problem.image + beta * (state.point - problem.image)
        return FABState(
            point=jnp.where(success, back, state.point),
            closest=jnp.where(closer, state.point, state.closest),
            distance=jnp.where(closer, distance, state.distance),
        )

    def cotangents(problem: Problem, state: FABState, logits: Array) -> Array:
        """[k, classes]: the differences of logits that are positive beyond the k boundaries."""
        classes = jnp.arange(logits.shape[-1])
        label = (classes == problem.label).astype(logits.dtype)
        likely = jnp.argsort(
            jnp.where(label > 0, -jnp.inf, logits if targeted else problem.clean_logits), descending=True
        )
        if targeted:
            return label - (classes == likely[:1, None])
        others = likely[:-1] if aim is None else aim(problem)[None]
        return (classes == others[:, None]) - label

    def update(problem: Problem, state: FABState, logits: Array, gradients: Array) -> FABState:
        image, point = problem.image, state.point
        differences = jnp.sum(cotangents(problem, state, logits) * logits, axis=-1).astype(image.dtype)
        steepness = jax.vmap(lambda gradient: jnp.sum(norm.ascent(gradient) * gradient))(gradients)
        nearest = jnp.argmin(jnp.abs(differences) / (steepness + 1e-12))
        normal, gap = gradients[nearest], -differences[nearest]
        from_point = norm.to_hyperplane(point, normal, gap, bounds)
        from_image = norm.to_hyperplane(image, normal, gap + jnp.sum(normal * (point - image)), bounds)
        sizes = jnp.maximum(norm.size(from_point), 1e-8), jnp.maximum(norm.size(from_image), 1e-8)
        alpha = jnp.minimum(sizes[0] / (sizes[0] + sizes[1]), alpha_max)
        moved = (1 - alpha) * (point + eta * from_point) + alpha * (image + eta * from_image)
        return state._replace(point=jnp.clip(moved, *bounds))

    return Attack(
        threat_model,
        num_steps,
        init=init,
        query=lambda state: state.point,
        cotangents=cotangents,
        update=update,
        look=look,
        finalize=lambda problem, state: threat_model.project(problem.image, state.closest),
        targeted=targeted,
    )
