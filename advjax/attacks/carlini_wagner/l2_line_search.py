"""Carlini and Wagner's l2 attack by line search, as the Adversarial Robustness Toolbox has it.

It is weaker than ``carlini_wagner_l2``, and is here to repeat what was measured with that library.
"""

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
from advjax.attacks.threat_model import L2, ThreatModel
from advjax.types import Array

LARGEST_CONST = 1e11
"""Where the search for a constant is given up."""


class LineSearchL2State(NamedTuple):
    """Where one image's attack stands."""

    point: Array
    begun: Array
    """Whether the image itself has been answered for."""
    start: Seen
    """The image in tanh space, with the hinge as its loss and the gradient of the deficit."""
    search: LineSearch
    step: Array
    """Number of searches that have ended with this const."""
    const: Array
    lower: Array
    doubling: Array
    """Whether no const has worked yet."""
    worked: Array
    """Whether this const has led to an adversarial point."""
    found: Array
    """Whether the trials of this search include the point that would be kept as adversarial."""
    num_consts: Array
    """Number of values of const that are done with."""
    smallest: Smallest


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

    For each of ``binary_search_steps`` values of c, ``num_steps`` searches along the gradient (``line_search``) bring
    down ``||x' - x||_2^2 + c max(0, confidence - margin(x'))`` over w, with x' as in ``carlini_wagner_l2``, from w of
    the image.  After a c that failed comes twice that c, or once another has worked c plus half its distance to the
    lower bound; after one that worked, the middle between c and the lower bound.  The smallest successful perturbation
    ever seen is returned (the toolbox does not look at trials that are not the best of their search), and the image
    itself if there was none or if it is misclassified to begin with.

    As in the toolbox, the lower bound becomes the c that comes after a failure instead of the one that failed, so c
    stays where it is after the next success, and the margin goes into the gradient even where it no longer counts in
    the loss.

    Meant for an infinite epsilon.  With a finite one the model is asked at ``project(x')``, and the gradient there is
    taken for that at x'.

    Args:
      threat_model: l2.
      num_steps: line searches for each c.  ``Attack.num_steps``, the most points that are asked for in all, is about
        six times that for each c.
      binary_search_steps: number of values of c.
      learning_rate: first rate for each c, in tanh space.
      initial_const: first c.
      max_halvings: most trials of a search before one lowers the loss.
      max_doublings: most further trials of a search whose first one lowers the loss.
      confidence: margin, in logits, by which the wrong class has to win.
      targeted: labels are the classes to reach.
    """
    if threat_model.norm is not L2:
        raise ValueError(f"carlini_wagner_l2_line_search needs an l2 threat model, got {threat_model.norm.name}")
    line_search.require_positive(
        num_steps=num_steps,
        binary_search_steps=binary_search_steps,
        max_halvings=max_halvings,
        max_doublings=max_doublings,
    )
    to_variable, to_image = tanh_box(threat_model.bounds)
    hinge, deficit = margin_hinge(confidence, targeted), margin_deficit(confidence, targeted)
    quality = quality_of(hinge, targeted)

    def init(problem: Problem) -> LineSearchL2State:
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
            worked=jnp.asarray(False),
            found=jnp.asarray(False),
            num_consts=jnp.int32(0),
            smallest=Smallest(image, jnp.zeros((), image.dtype), quality(problem.clean_logits, problem.label)),
        )

    def update(problem: Problem, state: LineSearchL2State, logits: Array, gradients: Array) -> LineSearchL2State:
        distance = threat_model.distance(problem.image, state.point)
        seen = Smallest(state.point, distance, quality(logits, problem.label))
        state = state._replace(smallest=smaller(state.smallest, seen))
        missing = hinge(logits, problem.label).astype(state.start.loss.dtype)
        first = begin(problem, state._replace(start=Seen(state.start.variable, gradients[0], missing)))
        state = where(state.begun, searched(problem, state, missing, gradients[0]), first)
        point = threat_model.project(problem.image, to_image(line_search.trial(state.search)))
        return state._replace(point=point, begun=jnp.ones_like(state.begun))

    def begin(problem, state):
        """The state before the first search with ``state.const``."""
        at_start = evaluated(problem, state, *state.start)
        return state._replace(
            search=line_search.begin(at_start, jnp.full_like(state.const, learning_rate)),
            step=jnp.zeros_like(state.step),
            worked=state.start.loss <= 0,
            found=jnp.zeros_like(state.found),
        )

    def evaluated(problem, state, variable, gradient, missing):
        """The point with the whole loss and its gradient in tanh space, given those of the margin at its image."""
        image, pullback = jax.vjp(to_image, variable)
        perturbation = image - problem.image
        loss = jnp.sum(perturbation**2) + state.const * missing
        return Seen(variable, pullback(2 * perturbation + state.const * gradient)[0], loss.astype(missing.dtype))

    def searched(problem, state, missing, gradient):
        """The state after a trial, perhaps with the next const."""
        seen = evaluated(problem, state, line_search.trial(state.search), gradient, missing)
        is_best = seen.loss < state.search.best.loss
        found = jnp.where(is_best, missing <= 0, state.found)
        search, ended, moved = line_search.advance(state.search, seen, max_halvings, max_doublings)
        state = state._replace(
            search=search,
            step=state.step + ended,
            worked=state.worked | (moved & found),
            found=found & ~ended,
        )
        return where(state.step >= num_steps, begin(problem, next_const(state)), state)

    def next_const(state):
        const, lower = state.const, state.lower
        grown = jnp.where(state.doubling, 2 * const, const + (const - lower) / 2)
        const = jnp.where(state.worked, (lower + const) / 2, grown)
        return state._replace(
            const=const,
            lower=jnp.where(state.worked, lower, const),
            doubling=state.doubling & ~state.worked,
            num_consts=state.num_consts + 1,
        )

    def done(state):
        # Nothing is smaller than no perturbation at all.
        unneeded = (state.smallest.quality == 2) & (state.smallest.distance == 0)
        return (state.num_consts >= binary_search_steps) | (state.const >= LARGEST_CONST) | unneeded

    return Attack(
        threat_model,
        binary_search_steps * num_steps * line_search.most_trials(max_halvings, max_doublings),
        init=init,
        query=lambda state: state.point,
        cotangents=lambda problem, state, logits: jax.grad(deficit)(logits, problem.label)[None],
        update=update,
        finalize=lambda problem, state: state.smallest.image,
        done=done,
        targeted=targeted,
    )
