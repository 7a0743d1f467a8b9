"""Carlini and Wagner's l2 attack (2017, section VI.A)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from advjax.attacks.base import Attack, Problem
from advjax.attacks.carlini_wagner.tanh_space import Smallest, margin_hinge, quality_of, smaller, tanh_box
from advjax.attacks.threat_model import L2, ThreatModel
from advjax.types import Array

RETURNS = ("closest", "last")
CHECKS_PER_RUN = 10
ENOUGH_PROGRESS = 0.9999
CONST_GROWTH = 10.0
STEPS_FOR_A_REPEAT = 10
"""From that many values of c on, the last one is the smallest that has ever worked."""


class CarliniWagnerL2State(NamedTuple):
    """Where one image's search stands."""

    point: Array
    """The image of ``variable``, projected into the threat model."""
    variable: Array
    """The image in tanh space."""
    optimizer: optax.OptState
    const: Array
    lower: Array
    """The largest const that failed."""
    upper: Array
    """The smallest const that worked, inf before the first."""
    search: Array
    """Number of values of const that are done with."""
    step: Array
    """Steps taken with this const."""
    worked: Array
    """Whether this const has led to an adversarial image."""
    loss_at_check: Array
    last: Array
    """Where the latest step of Adam led."""
    smallest: Smallest


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

    Adam minimises ``||x' - x||_2^2 + c max(0, confidence - margin(x'))`` over w, with ``x' = (tanh(w) + 1) / 2`` scaled
    to the bounds, from w of the image itself.  Every image searches its own c: times 10 until an adversarial image is
    found, then halfway between the largest c that failed and the smallest that worked; Adam begins anew for each.  An
    image goes on to its next c early if its loss has not fallen by 0.01 % in a tenth of the steps (the authors look at
    the sum over the batch).  The smallest successful perturbation ever seen is returned, and the image itself if there
    was none or if it is misclassified to begin with.

    With ``binary_search_steps=1, abort_early=False`` this is the attack with one constant, c = ``initial_const``: the
    closest success among the image and the points that num_steps - 1 steps of Adam lead to, or the point that num_steps
    of them lead to.  Written with ``max(z_label - max_i z_i, -confidence)``, as some papers do, the sum is less by a
    constant and has the same gradient.

    Meant for an infinite epsilon.  With a finite one the model is asked at ``project(x')``, and the gradient there is
    taken for that at x'.

    Args:
      threat_model: l2.
      num_steps: Adam steps for each c.  ``Attack.num_steps``, the most steps in all, is ``binary_search_steps`` times
        that.
      binary_search_steps: number of values of c.  With 10 or more, the last is the smallest that worked.
      learning_rate: of Adam, in tanh space.
      initial_const: first c.
      confidence: margin, in logits, by which the wrong class has to win.
      abort_early: whether a run without progress is cut short.
      targeted: labels are the classes to reach.
      returns: "closest" for the smallest success, or "last" for where Adam ended, success or not; the latter needs
        ``binary_search_steps=1``.
    """
    if threat_model.norm is not L2:
        raise ValueError(f"carlini_wagner_l2 needs an l2 threat model, got {threat_model.norm.name}")
    if num_steps < 1 or binary_search_steps < 1:
        raise ValueError(
            f"num_steps and binary_search_steps must be at least 1, got {num_steps} and {binary_search_steps}"
        )
    if returns not in RETURNS:
        raise ValueError(f"returns must be one of {', '.join(RETURNS)}, got {returns!r}")
    if returns == "last" and binary_search_steps > 1:
        raise ValueError(f"returns='last' needs one constant: binary_search_steps=1, got {binary_search_steps}")
    to_variable, to_image = tanh_box(threat_model.bounds)
    hinge = margin_hinge(confidence, targeted)
    quality = quality_of(hinge, targeted)
    adam = optax.adam(learning_rate)
    steps_per_check = max(num_steps // CHECKS_PER_RUN, 1)

    def init(problem: Problem) -> CarliniWagnerL2State:
        image = problem.image
        scalars = {name: jnp.zeros((), image.dtype) for name in ("const", "lower", "upper", "loss_at_check")}
        state = CarliniWagnerL2State(
            **scalars,
            point=image,
            variable=image,
            optimizer=adam.init(image),
            search=jnp.int32(0),
            step=jnp.int32(0),
            worked=jnp.asarray(False),
            last=image,
            smallest=Smallest(image, jnp.zeros((), image.dtype), quality(problem.clean_logits, problem.label)),
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
            worked=jnp.zeros_like(state.worked),
            loss_at_check=jnp.full_like(state.loss_at_check, jnp.inf),
        )

    def cotangents(problem: Problem, state: CarliniWagnerL2State, logits: Array) -> Array:
        return jax.grad(hinge)(logits, problem.label)[None]

    def update(problem: Problem, state: CarliniWagnerL2State, logits: Array, gradients: Array) -> CarliniWagnerL2State:
        state = observe(problem, state, logits)
        loss, gradient = objective(problem, state, logits, gradients[0])
        checking = state.step % steps_per_check == 0
        stuck = abort_early & checking & (loss > ENOUGH_PROGRESS * state.loss_at_check)
        over = stuck | (state.step + 1 >= num_steps)
        state = state._replace(loss_at_check=jnp.where(checking, loss, state.loss_at_check))
        descended, restarted = descend(problem, state, gradient), begin(problem, next_const(state))
        state = jax.tree.map(lambda a, b: jnp.where(over, a, b), restarted, descended)
        return state._replace(last=descended.point)

    def observe(problem, state, logits):
        distance = threat_model.distance(problem.image, state.point)
        seen = Smallest(state.point, distance, quality(logits, problem.label))
        return state._replace(smallest=smaller(state.smallest, seen), worked=state.worked | (seen.quality == 2))

    def objective(problem, state, logits, hinge_gradient):
        """Loss at w, and its gradient."""
        image, pullback = jax.vjp(to_image, state.variable)
        # The image as tanh space has it: the distance is 0 at the start.
        perturbation = image - to_image(to_variable(problem.image))
        loss = jnp.sum(perturbation**2) + state.const * hinge(logits, problem.label)
        return loss.astype(image.dtype), pullback(2 * perturbation + state.const * hinge_gradient)[0]

    def descend(problem, state, gradient):
        updates, optimizer = adam.update(gradient, state.optimizer)
        variable = state.variable + updates
        point = threat_model.project(problem.image, to_image(variable))
        return state._replace(point=point, variable=variable, optimizer=optimizer, step=state.step + 1)

    def next_const(state):
        lower = jnp.where(state.worked, state.lower, jnp.maximum(state.lower, state.const))
        upper = jnp.where(state.worked, jnp.minimum(state.upper, state.const), state.upper)
        const = jnp.where(jnp.isinf(upper), CONST_GROWTH * state.const, (lower + upper) / 2)
        search = state.search + 1
        if binary_search_steps >= STEPS_FOR_A_REPEAT:
            const = jnp.where((search == binary_search_steps - 1) & jnp.isfinite(upper), upper, const)
        return state._replace(const=const, lower=lower, upper=upper, search=search)

    def unneeded(state):
        # Nothing is smaller than no perturbation at all.
        return (state.smallest.quality == 2) & (state.smallest.distance == 0)

    def finalize(problem: Problem, state: CarliniWagnerL2State) -> Array:
        if returns == "closest":
            return state.smallest.image
        return jnp.where(unneeded(state), state.smallest.image, state.last)

    return Attack(
        threat_model,
        num_steps * binary_search_steps,
        init=init,
        query=lambda state: state.point,
        cotangents=cotangents,
        update=update,
        finalize=finalize,
        done=lambda state: (state.search >= binary_search_steps) | unneeded(state),
        targeted=targeted,
    )
