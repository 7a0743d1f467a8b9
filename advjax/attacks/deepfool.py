"""DeepFool: steps to the nearest decision boundary of the linearized model (Moosavi-Dezfooli et al. 2016)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.base import Attack, Problem
from advjax.attacks.candidate import Observed
from advjax.attacks.input_checks import require_count, require_number
from advjax.attacks.losses import entry, other_classes
from advjax.attacks.model_queries import is_fooled
from advjax.attacks.threat_model import ThreatModel, require
from advjax.types import Array

NUDGE = 1e-4
"""Added to the length of every step, as a fraction of the pixel range, as in the authors' implementation.

A step that ends exactly at the boundary could be on the wrong side of it by rounding, and the following steps would
become ever smaller.
"""


class DeepFoolState(NamedTuple):
    """State of the attack on one image."""

    point: Array
    perturbation: Array
    """Sum of the steps so far, before the overshoot and any projection."""
    candidates: Array
    """The classes [k] whose boundaries are considered."""
    found: Array
    """Whether the model no longer predicts the label at ``point``."""
    best: Observed


def deepfool(
    threat_model: ThreatModel,
    *,
    num_steps: int = 50,
    overshoot: float | Array = 0.02,
    num_candidates: int = 10,
) -> Attack:
    """DeepFool for linf and l2 (Moosavi-Dezfooli et al. 2016, algorithm 2 and section 2.3).

    With ``f_k = z_k - z_label`` and its gradient ``w_k``, every step goes to the boundary of the linearized model that
    is nearest in the norm of the threat model: ``r_i = (|f_k| / ||w_k||_dual + 1e-4) ascent(w_k)`` for the k with the
    smallest ``|f_k| / ||w_k||_dual``.  The model is evaluated at ``project(x + (1 + overshoot) sum_i r_i)`` until it
    predicts another class than the label; that point is returned, or else the last one.  A misclassified image is
    returned unchanged.

    Meant for an infinite epsilon, where the projection only clips to the bounds and the distance of the result is what
    counts.  With a finite epsilon, the search continues along the surface of the ball.

    Args:
      threat_model: linf or l2.
      num_steps: maximum number of steps, with one forward pass each and one more at the end.
      overshoot: fraction by which the sum of the steps is extended, to end beyond the boundary.
      num_candidates: number of classes considered: the label, and the other classes with the largest logits on the
        clean image.  Each step takes one backward pass for each of the latter.
    """
    require(threat_model, "deepfool", "linf", "l2")
    require_count("num_candidates", num_candidates, 2)
    require_number("overshoot", overshoot)
    ascent, nudge = threat_model.norm.ascent, NUDGE * threat_model.pixel_range

    def init(problem: Problem) -> DeepFoolState:
        image = problem.image
        start = image if problem.start is None else problem.start
        return DeepFoolState(
            point=start,
            perturbation=(start - image) / (1 + overshoot),
            candidates=other_classes(problem.clean_logits, problem.label)[: num_candidates - 1],
            found=jnp.asarray(False),
            best=Observed(start),
        )

    def differences(problem: Problem, state: DeepFoolState, logits: Array) -> Array:
        return jax.vmap(entry, in_axes=(None, 0))(logits, state.candidates) - entry(logits, problem.label)

    def observe(problem: Problem, state: DeepFoolState, logits: Array) -> DeepFoolState:
        return state._replace(found=is_fooled(logits, problem.label), best=Observed(state.point))

    def move(problem: Problem, state: DeepFoolState, logits: Array, gradients: Array) -> DeepFoolState:
        step = nearest_boundary(differences(problem, state, logits).astype(gradients.dtype), gradients)
        perturbation = state.perturbation + jnp.where(state.found, 0, step)
        moved = threat_model.project(problem.image, problem.image + (1 + overshoot) * perturbation)
        return state._replace(point=jnp.where(state.found, state.point, moved), perturbation=perturbation)

    def nearest_boundary(differences, gradients):
        directions = jax.vmap(ascent)(gradients)
        # The dual norm is attained by the unit direction of steepest ascent.
        slopes = jnp.sum(gradients * directions, axis=(1, 2, 3))
        distances = jnp.where(slopes > 0, jnp.abs(differences) / jnp.where(slopes > 0, slopes, 1), jnp.inf)
        nearest = jnp.argmin(distances)
        return jnp.where(slopes[nearest] > 0, (distances[nearest] + nudge) * directions[nearest], 0)

    return Attack(threat_model, num_steps, init, differences, observe, move, done=lambda state: state.found)
