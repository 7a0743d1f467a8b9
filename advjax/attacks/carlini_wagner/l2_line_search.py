"""Carlini and Wagner's l2 attack by line search, as in the Adversarial Robustness Toolbox.

It is weaker than ``carlini_wagner_l2``, and serves to reproduce results obtained with that library.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.base import Attack, Problem
from advjax.attacks.carlini_wagner import line_search
from advjax.attacks.carlini_wagner.line_search import LineSearch, Seen, where
from advjax.attacks.carlini_wagner.tanh_space import (
    Smallest,
    margin_deficit,
    margin_hinge,
    quality_of,
    smaller,
    tanh_box,
)
from advjax.attacks.input_checks import require_count, require_number
from advjax.attacks.threat_model import ThreatModel, require
from advjax.types import Array

LARGEST_CONST = 1e11
"""The search for a constant ends here."""


class LineSearchL2State(NamedTuple):
    """State of the attack on one image."""

    point: Array
    begun: Array
    """Whether the model has been evaluated at the image itself."""
    start: Seen
    """The image in tanh space, with the hinge as its loss and the gradient of the deficit."""
    search: LineSearch
    step: Array
    """Number of completed searches with this const."""
    const: Array
    lower: Array
    doubling: Array
    """Whether no const has succeeded yet."""
    succeeded: Array
    """Whether this const has led to an adversarial point."""
    found: Array
    """Whether the trials of this search include the point that would be kept as adversarial."""
    num_consts: Array
    """Number of values of const that are done."""
    best: Smallest


def carlini_wagner_l2_line_search(
    threat_model: ThreatModel,
    *,
    num_steps: int = 10,
    binary_search_steps: int = 10,
    learning_rate: float | Array = 0.01,
    initial_const: float | Array = 0.01,
    max_halvings: int = 5,
    max_doublings: int = 5,
    confidence: float | Array = 0.0,
    targeted: bool = False,
) -> Attack:
    """C&W's l2 attack by line search (``CarliniL2Method`` of the Adversarial Robustness Toolbox).

    For each of ``binary_search_steps`` values of c, ``num_steps`` searches along the gradient (``line_search``)
    minimize ``||x' - x||_2^2 + c max(0, confidence - margin(x'))`` over w, with x' as in ``carlini_wagner_l2``, from w
    of the image.  After a c that failed, c is doubled, or, once another c has succeeded, increased by half its distance
    to the lower bound; after one that succeeded, c becomes the midpoint of c and the lower bound.  The smallest
    successful perturbation ever seen is returned (the toolbox ignores trials that are not the best of their search), or
    the image itself if there was none or if it is misclassified to begin with.

    As in the toolbox, the lower bound becomes the c that follows a failure instead of the one that failed, so c does
    not change after the next success; and the margin contributes to the gradient even where it no longer contributes to
    the loss.

    Meant for an infinite epsilon.  With a finite one, the model is evaluated at ``project(x')``, and its gradient there
    is used as the gradient at x'.

    Args:
      threat_model: l2.
      num_steps: number of line searches for each c.  ``Attack.num_steps``, the maximum number of points evaluated, is
        about six times that for each c.
      binary_search_steps: number of values of c.
      learning_rate: first rate for each c, in tanh space.
      initial_const: first c.
      max_halvings: maximum number of trials of a search before one decreases the loss.
      max_doublings: maximum number of further trials of a search whose first trial decreases the loss.
      confidence: margin, in logits, by which the wrong class has to win.
      targeted: labels are the classes to reach.
    """
    require(threat_model, "carlini_wagner_l2_line_search", "l2", finite_bounds=True)
    for name, count in (("num_steps", num_steps), ("max_halvings", max_halvings), ("max_doublings", max_doublings)):
        require_count(name, count)
    require_count("binary_search_steps", binary_search_steps)
    require_number("learning_rate", learning_rate, open_low=True)
    require_number("initial_const", initial_const, open_low=True)
    require_number("confidence", confidence, -math.inf)
    pixel_range, (to_variable, to_image) = threat_model.pixel_range, tanh_box(threat_model.bounds)
    hinge, deficit = margin_hinge(confidence, targeted), margin_deficit(confidence, targeted)
    quality = quality_of(hinge, targeted)

    def init(problem: Problem) -> LineSearchL2State:
        line_search.require_precise(problem.clean_logits)
        image = problem.image
        point = image if problem.start is None else problem.start
        dtype = jnp.result_type(image, problem.clean_logits)
        start = Seen(to_variable(point), jnp.zeros_like(image), jnp.zeros((), dtype))
        return LineSearchL2State(
            point=point,
            begun=jnp.asarray(False),
            start=start,
            search=line_search.begin(start, jnp.asarray(learning_rate, image.dtype)),
            step=jnp.int32(0),
            const=jnp.asarray(initial_const, image.dtype),
            lower=jnp.zeros((), image.dtype),
            doubling=jnp.asarray(True),
            succeeded=jnp.asarray(False),
            found=jnp.asarray(False),
            num_consts=jnp.int32(0),
            best=Smallest(image, jnp.zeros((), image.dtype), quality(problem.clean_logits, problem.label)),
        )

    def objective(problem: Problem, state: LineSearchL2State, logits: Array) -> Array:
        return deficit(logits, problem.label)

    def observe(problem: Problem, state: LineSearchL2State, logits: Array) -> LineSearchL2State:
        distance = threat_model.distance(problem.image, state.point)
        return state._replace(best=smaller(state.best, Smallest(state.point, distance, quality(logits, problem.label))))

    def move(problem: Problem, state: LineSearchL2State, logits: Array, gradient: Array) -> LineSearchL2State:
        missing = hinge(logits, problem.label).astype(state.start.loss.dtype)
        first = begin(problem, state._replace(start=Seen(state.start.variable, gradient, missing)))
        state = where(state.begun, searched(problem, state, missing, gradient), first)
        point = threat_model.project(problem.image, to_image(line_search.trial(state.search)))
        return state._replace(point=point, begun=jnp.ones_like(state.begun))

    def begin(problem, state):
        """The state before the first search with ``state.const``."""
        at_start = evaluated(problem, state, *state.start)
        return state._replace(
            search=line_search.begin(at_start, jnp.full_like(state.const, learning_rate)),
            step=jnp.zeros_like(state.step),
            succeeded=state.start.loss <= 0,
            found=jnp.zeros_like(state.found),
        )

    def evaluated(problem, state, variable, gradient, missing):
        """The point with the total loss and its gradient in tanh space, given those of the margin at its image."""
        image, pullback = jax.vjp(to_image, variable)
        perturbation = (image - problem.image) / pixel_range
        loss = jnp.sum(perturbation**2) + state.const * missing
        gradient = 2 * perturbation / pixel_range + state.const * gradient
        return Seen(variable, pullback(gradient)[0], loss.astype(missing.dtype))

    def searched(problem, state, missing, gradient):
        """The state after a trial, which may move on to the next const."""
        seen = evaluated(problem, state, line_search.trial(state.search), gradient, missing)
        is_best = seen.loss < state.search.best.loss
        found = jnp.where(is_best, missing <= 0, state.found)
        search, ended, moved = line_search.advance(state.search, seen, max_halvings, max_doublings)
        state = state._replace(
            search=search,
            step=state.step + ended,
            succeeded=state.succeeded | (moved & found),
            found=found & ~ended,
        )
        return where(state.step >= num_steps, begin(problem, next_const(state)), state)

    def next_const(state):
        const, lower = state.const, state.lower
        grown = jnp.where(state.doubling, 2 * const, const + (const - lower) / 2)
        const = jnp.where(state.succeeded, (lower + const) / 2, grown)
        return state._replace(
            const=const,
            lower=jnp.where(state.succeeded, lower, const),
            doubling=state.doubling & ~state.succeeded,
            num_consts=state.num_consts + 1,
        )

    def done(state):
        # No perturbation is smaller than none.
        unneeded = (state.best.quality == 2) & (state.best.distance == 0)
        return (state.num_consts >= binary_search_steps) | (state.const >= LARGEST_CONST) | unneeded

    return Attack(
        threat_model,
        binary_search_steps * num_steps * line_search.most_trials(max_halvings, max_doublings),
        init,
        objective,
        observe,
        move,
        done=done,
        targeted=targeted,
    )
