"""Carlini and Wagner's linf attack (2017, section VI.C)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from advjax.attacks.base import Attack, Problem
from advjax.attacks.carlini_wagner.tanh_space import Smallest, margin_hinge, quality_of, smaller, tanh_box
from advjax.attacks.input_checks import require_count, require_number
from advjax.attacks.threat_model import ThreatModel, require
from advjax.types import Array

INITIAL_CONST, LARGEST_CONST, CONST_GROWTH = 1e-5, 20.0, 2.0
SMALLEST_TAU = 1 / 256
"""Fraction of the pixel range; the search does not go below half an 8-bit step."""
SMALL_LOSS = 1e-4
"""The loss counts as 0 below this fraction of c."""


class CarliniWagnerLinfState(NamedTuple):
    """State of the search on one image."""

    point: Array
    """The image of ``variable``, projected into the threat model."""
    variable: Array
    """The image in tanh space."""
    optimizer: optax.OptState
    const: Array
    tau: Array
    """Change of a pixel that is not penalized."""
    step: Array
    """Number of steps with this const."""
    finished: Array
    best: Smallest


def carlini_wagner_linf(
    threat_model: ThreatModel,
    *,
    num_steps: int = 1000,
    learning_rate: float | Array = 5e-3,
    decrease: float = 0.9,
    confidence: float | Array = 0.0,
    targeted: bool = False,
) -> Attack:
    """Carlini & Wagner's linf attack (2017, section VI.C; semantics of the authors' implementation).

    Adam minimizes ``c max(0, confidence - margin(x')) + sum_i max(0, |x'_i - x_i| - tau)`` over w, with ``x'`` as in
    ``carlini_wagner_l2``, until it is practically 0 and x' is adversarial.  Then tau becomes 0.9 times the largest
    change of x', and the search continues from x' with the same c and a new Adam.  After ``num_steps`` without success,
    c is doubled, starting from 1e-5.  The search ends when c has reached 20, or tau 1/256 of the pixel range.  The
    smallest successful perturbation ever seen is returned, or the image itself if there was none or if it is
    misclassified to begin with.

    Meant for an infinite epsilon.  With a finite one, the model is evaluated at ``project(x')``, and its gradient there
    is used as the gradient at x'.

    Args:
      threat_model: linf.
      num_steps: Adam steps for each c.  ``Attack.num_steps``, the maximum number of steps overall, is more than 70
        times that; most images need less than a tenth of them.
      learning_rate: of Adam, in tanh space.
      decrease: factor from the largest change to the next tau.  Values closer to 1 are slower and find smaller changes.
      confidence: margin, in logits, by which the wrong class has to win.
      targeted: labels are the classes to reach.
    """
    require(threat_model, "carlini_wagner_linf", "linf", finite_bounds=True)
    require_count("num_steps", num_steps)
    require_number("learning_rate", learning_rate, open_low=True)
    require_number("confidence", confidence, -math.inf)
    if not 0 < decrease < 1:
        raise ValueError(f"decrease must be between 0 and 1, got {decrease}")
    pixel_range, (to_variable, to_image) = threat_model.pixel_range, tanh_box(threat_model.bounds)
    hinge = margin_hinge(confidence, targeted)
    quality = quality_of(hinge, targeted)
    adam = optax.adam(learning_rate)

    def init(problem: Problem) -> CarliniWagnerLinfState:
        image = problem.image
        start = image if problem.start is None else problem.start
        variable = to_variable(start)
        best = Smallest(image, jnp.zeros((), image.dtype), quality(problem.clean_logits, problem.label))
        return CarliniWagnerLinfState(
            point=threat_model.project(image, to_image(variable)),
            variable=variable,
            optimizer=adam.init(variable),
            const=jnp.asarray(INITIAL_CONST, image.dtype),
            tau=jnp.asarray(pixel_range, image.dtype),
            step=jnp.int32(0),
            finished=best.quality == 2,
            best=best,
        )

    def objective(problem: Problem, state: CarliniWagnerLinfState, logits: Array) -> Array:
        return hinge(logits, problem.label)

    def observe(problem: Problem, state: CarliniWagnerLinfState, logits: Array) -> CarliniWagnerLinfState:
        return state._replace(best=smaller(state.best, seen(problem, state, logits)))

    def seen(problem, state, logits):
        distance = threat_model.distance(problem.image, state.point)
        return Smallest(state.point, distance, quality(logits, problem.label))

    def move(problem: Problem, state: CarliniWagnerLinfState, logits: Array, gradient: Array) -> CarliniWagnerLinfState:
        found = seen(problem, state, logits)
        loss, gradient = total_loss(problem, state, logits, gradient)
        succeeded = (found.quality == 2) & (loss < SMALL_LOSS * state.const)
        shrunk, descended = shrink(problem, state, found.distance), descend(problem, state, gradient)
        return jax.tree.map(lambda a, b: jnp.where(succeeded, a, b), shrunk, descended)

    def total_loss(problem, state, logits, hinge_gradient):
        """Loss at w, and its gradient."""

        def excess(variable):
            # Both images come from tanh space, so the change is 0 at the start.
            change = to_image(variable) - to_image(to_variable(problem.image))
            return jnp.sum(jnp.maximum(jnp.abs(change) - state.tau, 0)) / pixel_range

        loss, gradient = jax.value_and_grad(excess)(state.variable)
        pullback = jax.vjp(to_image, state.variable)[1]
        loss += (state.const * hinge(logits, problem.label)).astype(loss.dtype)
        return loss, gradient + pullback(state.const * hinge_gradient)[0]

    def shrink(problem, state, largest_change):
        """After a success at ``state.point``: asks for a smaller change."""
        variable = to_variable(state.point)
        tau = decrease * jnp.minimum(state.tau, largest_change)
        return state._replace(
            point=threat_model.project(problem.image, to_image(variable)),
            variable=variable,
            optimizer=adam.init(variable),
            tau=tau,
            step=jnp.zeros_like(state.step),
            finished=tau <= SMALLEST_TAU * pixel_range,
        )

    def descend(problem, state, gradient):
        """Without success: one step of Adam, which keeps its momentum when c grows."""
        updates, optimizer = adam.update(gradient, state.optimizer)
        variable = state.variable + updates
        exhausted = state.step + 1 >= num_steps
        const = jnp.where(exhausted, CONST_GROWTH * state.const, state.const)
        return state._replace(
            point=threat_model.project(problem.image, to_image(variable)),
            variable=variable,
            optimizer=optimizer,
            const=const,
            step=jnp.where(exhausted, 0, state.step + 1),
            finished=const >= LARGEST_CONST,
        )

    return Attack(
        threat_model,
        num_steps * (_num_consts() + _num_taus(decrease)),
        init,
        objective,
        observe,
        move,
        done=lambda state: state.finished,
        targeted=targeted,
    )


def _num_consts() -> int:
    return math.ceil(math.log(LARGEST_CONST / INITIAL_CONST, CONST_GROWTH))


def _num_taus(decrease: float) -> int:
    return math.ceil(math.log(SMALLEST_TAU, decrease))
