"""Carlini and Wagner's l2 attack (2017, section VI.A)."""

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

RETURNS = ("closest", "last")
CHECKS_PER_RUN = 10
ENOUGH_PROGRESS = 0.9999
CONST_GROWTH = 10.0
STEPS_FOR_A_REPEAT = 10
"""With at least this many values of c, the last one is the smallest that has succeeded."""


class CarliniWagnerL2State(NamedTuple):
    """State of the search on one image."""

    point: Array
    """The image of ``variable``, projected into the threat model."""
    variable: Array
    """The image in tanh space."""
    optimizer: optax.OptState
    const: Array
    lower: Array
    """The largest const that failed."""
    upper: Array
    """The smallest const that succeeded, inf before the first."""
    search: Array
    """Number of values of const that are done."""
    step: Array
    """Number of steps with this const."""
    succeeded: Array
    """Whether this const has led to an adversarial image."""
    loss_at_check: Array
    smallest: Smallest
    best: Smallest
    """``smallest``, or the latest point with ``returns="last"``."""


def carlini_wagner_l2(
    threat_model: ThreatModel,
    *,
    num_steps: int = 1000,
    binary_search_steps: int = 9,
    learning_rate: float | Array = 0.01,
    initial_const: float | Array = 1e-3,
    confidence: float | Array = 0.0,
    abort_early: bool = True,
    targeted: bool = False,
    returns: str = "closest",
) -> Attack:
    """Carlini & Wagner's l2 attack (2017, section VI.A; semantics of the authors' implementation).

    Adam minimizes ``||x' - x||_2^2 + c max(0, confidence - margin(x'))`` over w, with ``x' = (tanh(w) + 1) / 2``,
    starting at the w of the image; pixels are scaled to [0, 1] for that.  Every image searches its own c: it is
    multiplied by 10 until an adversarial image is found, and then bisected between the largest c that failed and the
    smallest that succeeded; Adam restarts for each c.  An image moves on to its next c early if its loss has not
    decreased by 0.01% in a tenth of the steps (the authors consider the sum over the batch).  The smallest successful
    perturbation ever seen is returned, or the image itself if there was none or if it is misclassified to begin with.

    With ``binary_search_steps=1, abort_early=False`` this is the attack with a fixed c = ``initial_const``: it returns
    the closest success among the image and the points after each of the first num_steps - 1 steps of Adam, or the point
    after num_steps steps.  The form ``max(z_label - max_i z_i, -confidence)`` of some papers differs from the loss here
    by a constant and has the same gradient.

    Meant for an infinite epsilon.  With a finite one, the model is evaluated at ``project(x')``, and its gradient there
    is used as the gradient at x'.

    Args:
      threat_model: l2.
      num_steps: Adam steps for each c.  ``Attack.num_steps``, the maximum number of steps overall, is
        ``binary_search_steps`` times that.
      binary_search_steps: number of values of c.  With 10 or more, the last is the smallest that succeeded.
      learning_rate: of Adam, in tanh space.
      initial_const: first c.
      confidence: margin, in logits, by which the wrong class has to win.
      abort_early: whether a run without progress is cut short.
      targeted: labels are the classes to reach.
      returns: "closest" for the smallest success, or "last" for the final point of Adam, success or not; the latter
        requires ``binary_search_steps=1``.
    """
    require(threat_model, "carlini_wagner_l2", "l2", finite_bounds=True)
    require_count("num_steps", num_steps)
    require_count("binary_search_steps", binary_search_steps)
    require_number("learning_rate", learning_rate, open_low=True)
    require_number("initial_const", initial_const, open_low=True)
    require_number("confidence", confidence, -math.inf)
    if returns not in RETURNS:
        raise ValueError(f"returns must be one of {', '.join(RETURNS)}, got {returns!r}")
    if returns == "last" and binary_search_steps > 1:
        raise ValueError(f"returns='last' requires binary_search_steps=1, got {binary_search_steps}")
    pixel_range, (to_variable, to_image) = threat_model.pixel_range, tanh_box(threat_model.bounds)
    hinge = margin_hinge(confidence, targeted)
    quality = quality_of(hinge, targeted)
    adam = optax.adam(learning_rate)
    steps_per_check = max(num_steps // CHECKS_PER_RUN, 1)

    def init(problem: Problem) -> CarliniWagnerL2State:
        image = problem.image
        smallest = Smallest(image, jnp.zeros((), image.dtype), quality(problem.clean_logits, problem.label))
        scalars = {name: jnp.zeros((), image.dtype) for name in ("const", "lower", "upper", "loss_at_check")}
        state = CarliniWagnerL2State(
            **scalars,
            point=image,
            variable=image,
            optimizer=adam.init(image),
            search=jnp.int32(0),
            step=jnp.int32(0),
            succeeded=jnp.asarray(False),
            smallest=smallest,
            best=smallest,
        )
        state = begin(problem, state._replace(const=jnp.asarray(initial_const, image.dtype)))
        return state._replace(upper=jnp.full((), jnp.inf, image.dtype))

    def begin(problem, state):
        """The state before the first step with ``state.const``."""
        start = problem.image if problem.start is None else problem.start
        variable = to_variable(start)
        return state._replace(
            point=threat_model.project(problem.image, to_image(variable)),
            variable=variable,
            optimizer=adam.init(variable),
            step=jnp.zeros_like(state.step),
            succeeded=jnp.zeros_like(state.succeeded),
            loss_at_check=jnp.full_like(state.loss_at_check, jnp.inf),
        )

    def objective(problem: Problem, state: CarliniWagnerL2State, logits: Array) -> Array:
        return hinge(logits, problem.label)

    def observe(problem: Problem, state: CarliniWagnerL2State, logits: Array) -> CarliniWagnerL2State:
        distance = threat_model.distance(problem.image, state.point)
        seen = Smallest(state.point, distance, quality(logits, problem.label))
        smallest = smaller(state.smallest, seen)
        return state._replace(
            smallest=smallest,
            succeeded=state.succeeded | (seen.quality == 2),
            best=smallest if returns == "closest" else state.best,
        )

    def move(problem: Problem, state: CarliniWagnerL2State, logits: Array, gradient: Array) -> CarliniWagnerL2State:
        loss, gradient = total_loss(problem, state, logits, gradient)
        checking = state.step % steps_per_check == 0
        stuck = abort_early & checking & (loss > ENOUGH_PROGRESS * state.loss_at_check)
        over = stuck | (state.step + 1 >= num_steps)
        state = state._replace(loss_at_check=jnp.where(checking, loss, state.loss_at_check))
        descended, restarted = descend(problem, state, gradient), begin(problem, next_const(state))
        moved = jax.tree.map(lambda a, b: jnp.where(over, a, b), restarted, descended)
        if returns == "last":
            last = jnp.where(unneeded(state), state.smallest.image, descended.point)
            moved = moved._replace(best=state.smallest._replace(image=last))
        return moved

    def total_loss(problem, state, logits, hinge_gradient):
        """Loss at w, and its gradient."""
        image, pullback = jax.vjp(to_image, state.variable)
        # Both images come from tanh space, so the distance is 0 at the start.
        perturbation = (image - to_image(to_variable(problem.image))) / pixel_range
        loss = jnp.sum(perturbation**2) + state.const * hinge(logits, problem.label)
        gradient = 2 * perturbation / pixel_range + state.const * hinge_gradient
        return loss.astype(image.dtype), pullback(gradient)[0]

    def descend(problem, state, gradient):
        updates, optimizer = adam.update(gradient, state.optimizer)
        variable = state.variable + updates
        point = threat_model.project(problem.image, to_image(variable))
        return state._replace(point=point, variable=variable, optimizer=optimizer, step=state.step + 1)

    def next_const(state):
        lower = jnp.where(state.succeeded, state.lower, jnp.maximum(state.lower, state.const))
        upper = jnp.where(state.succeeded, jnp.minimum(state.upper, state.const), state.upper)
        const = jnp.where(jnp.isinf(upper), CONST_GROWTH * state.const, (lower + upper) / 2)
        search = state.search + 1
        if binary_search_steps >= STEPS_FOR_A_REPEAT:
            const = jnp.where((search == binary_search_steps - 1) & jnp.isfinite(upper), upper, const)
        return state._replace(const=const, lower=lower, upper=upper, search=search)

    def unneeded(state):
        # No perturbation is smaller than none.
        return (state.smallest.quality == 2) & (state.smallest.distance == 0)

    return Attack(
        threat_model,
        num_steps * binary_search_steps,
        init,
        objective,
        observe,
        move,
        done=lambda state: (state.search >= binary_search_steps) | unneeded(state),
        targeted=targeted,
    )
