"""DeepFool: walk to the nearest boundary of the linearised model (Moosavi-Dezfooli et al. 2016)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.base import Attack, Problem
from advjax.attacks.threat_model import ThreatModel, is_concrete
from advjax.types import Array

NUDGE = 1e-4
"""Added to the length of every step, in pixels, as the authors' implementation does: a step to the boundary itself
could end on the wrong side of it by a rounding, and the steps that follow would become ever smaller."""


class DeepFoolState(NamedTuple):
    """Where one image's attack stands."""

    point: Array
    perturbation: Array
    """Sum of the steps so far, before the overshoot and before any projection."""
    candidates: Array
    """Classes [k] that may take over from the label."""
    found: Array
    """Whether the model no longer predicts the label at ``point``."""


def deepfool(
    threat_model: ThreatModel,
    *,
    num_steps: int = 50,
    overshoot: float | Array = 0.02,
    num_candidates: int = 10,
) -> Attack:
    """DeepFool for linf and l2 (Moosavi-Dezfooli et al. 2016, algorithm 2 and section 2.3).

    With ``f_k = z_k - z_label`` and its gradient ``w_k``, every step goes to the boundary of the linearised model that
    is nearest, in the norm of the threat model: ``r_i = (|f_k| / ||w_k||_dual + 1e-4) ascent(w_k)`` for the k with the
    smallest ``|f_k| / ||w_k||_dual``.  The model is asked at ``project(x + (1 + overshoot) sum_i r_i)`` until it
    predicts another class than the label; that point is returned, or the last one.  A misclassified image is returned
    as it is.

    Meant for an infinite epsilon, where the projection only clips to the bounds and the distance of the result is what
    counts.  With a finite one the walk goes on along the ball that it may not leave.

    Args:
      threat_model: linf or l2.
      num_steps: most steps; the model is asked once more than that.
      overshoot: share by which the sum of the steps is lengthened, to end beyond the boundary.
      num_candidates: the label and the classes that were most likely at first, among which the nearest boundary is
        sought; one backward pass per step for each but the label.
    """
    if not threat_model.norm.dense:
        raise ValueError(f"deepfool needs linf or l2, got {threat_model.norm.name}")
    if num_candidates < 2:
        raise ValueError(f"num_candidates must be at least 2 (the label and one other class), got {num_candidates}")
    if is_concrete(overshoot) and not float(overshoot) >= 0:
        raise ValueError(f"overshoot must be 0 or more, got {overshoot}")
    ascent = threat_model.norm.ascent

    def init(problem: Problem) -> DeepFoolState:
        image = problem.image
        start = image if problem.start is None else problem.start
        return DeepFoolState(
            point=start,
            perturbation=(start - image) / (1 + overshoot),
            candidates=_other_classes(problem.clean_logits, problem.label, num_candidates - 1),
            found=jnp.asarray(False),
        )

    def cotangents(problem: Problem, state: DeepFoolState, logits: Array) -> Array:
        num_classes = logits.shape[-1]
        return jax.nn.one_hot(state.candidates, num_classes) - jax.nn.one_hot(problem.label, num_classes)

    def update(problem: Problem, state: DeepFoolState, logits: Array, gradients: Array) -> DeepFoolState:
        found = jnp.argmax(logits) != problem.label
        differences = logits[state.candidates] - logits[problem.label]
        step = nearest_boundary(differences.astype(gradients.dtype), gradients)
        perturbation = state.perturbation + jnp.where(found, 0, step)
        moved = threat_model.project(problem.image, problem.image + (1 + overshoot) * perturbation)
        return state._replace(point=jnp.where(found, state.point, moved), perturbation=perturbation, found=found)

    def nearest_boundary(differences, gradients):
        directions = jax.vmap(ascent)(gradients)
        # The unit direction of steepest ascent is where the dual norm is attained.
        slopes = jnp.sum(gradients * directions, axis=(1, 2, 3))
        distances = jnp.where(slopes > 0, jnp.abs(differences) / jnp.where(slopes > 0, slopes, 1), jnp.inf)
        nearest = jnp.argmin(distances)
        return jnp.where(slopes[nearest] > 0, (distances[nearest] + NUDGE) * directions[nearest], 0)

    return Attack(
        threat_model,
        num_steps,
        init=init,
        query=lambda state: state.point,
        cotangents=cotangents,
        update=update,
        finalize=lambda problem, state: state.point,
        done=lambda state: state.found,
    )


def _other_classes(logits: Array, label: Array, count: int) -> Array:
    """The ``count`` most likely classes other than the label, or all of them if there are fewer."""
    num_classes = logits.shape[-1]
    others = jnp.where(jnp.arange(num_classes) == label, -jnp.inf, logits)
    return jax.lax.top_k(others, min(count, num_classes - 1))[1]
