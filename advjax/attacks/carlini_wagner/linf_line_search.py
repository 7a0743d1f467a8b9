"""Carlini and Wagner's attack within an linf ball by line search, as in the Adversarial Robustness Toolbox.

It is weaker than ``carlini_wagner_linf``, and serves to reproduce results obtained with that library.
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


class LineSearchLinfState(NamedTuple):
    """State of the attack on one image."""

    point: Array
    begun: Array
    """Whether the model has been evaluated at the image itself."""
    search: LineSearch
    step: Array
    """Number of completed searches."""
    best: Smallest


def carlini_wagner_linf_line_search(
    threat_model: ThreatModel,
    *,
    num_steps: int = 10,
    learning_rate: float | Array = 0.01,
    max_halvings: int = 5,
    max_doublings: int = 5,
    confidence: float | Array = 0.0,
    targeted: bool = False,
) -> Attack:
    """C&W within an linf ball, by line search (``CarliniLInfMethod`` of the Adversarial Robustness Toolbox up to 1.8).

    ``x' = low + (high - low) (tanh(w) + 1) / 2`` with low and high the ends of the ball, pixel by pixel, within the
    bounds.  From w of the image, ``max(0, confidence - margin(x'))`` is minimized in ``num_steps`` searches along its
    gradient (``line_search``).  The first point where it is 0 is returned, or the image itself if there is none: an
    image that looks robust may just not have been searched well.

    Args:
      threat_model: linf with a finite epsilon.
      num_steps: number of line searches.  ``Attack.num_steps``, the maximum number of points evaluated, is about six
        times that.
      learning_rate: first rate, in tanh space.
      max_halvings: maximum number of trials of a search before one decreases the loss.
      max_doublings: maximum number of further trials of a search whose first trial decreases the loss.
      confidence: margin, in logits, by which the wrong class has to win.
      targeted: labels are the classes to reach.
    """
    require(threat_model, "carlini_wagner_linf_line_search", "linf", finite_epsilon=True, finite_bounds=True)
    for name, count in (("num_steps", num_steps), ("max_halvings", max_halvings), ("max_doublings", max_doublings)):
        require_count(name, count)
    require_number("learning_rate", learning_rate, open_low=True)
    require_number("confidence", confidence, -math.inf)
    low, high = threat_model.bounds
    hinge, deficit = margin_hinge(confidence, targeted), margin_deficit(confidence, targeted)
    quality = quality_of(hinge, targeted)

    def box(problem):
        epsilon = jnp.asarray(threat_model.epsilon, problem.image.dtype)
        return tanh_box((jnp.maximum(problem.image - epsilon, low), jnp.minimum(problem.image + epsilon, high)))

    def init(problem: Problem) -> LineSearchLinfState:
        line_search.require_precise(problem.clean_logits)
        image = problem.image
        point = image if problem.start is None else problem.start
        dtype = jnp.result_type(image, problem.clean_logits)
        seen = Seen(box(problem)[0](point), jnp.zeros_like(image), jnp.zeros((), dtype))
        return LineSearchLinfState(
            point=point,
            begun=jnp.asarray(False),
            search=line_search.begin(seen, jnp.asarray(learning_rate, image.dtype)),
            step=jnp.int32(0),
            best=Smallest(image, jnp.zeros((), image.dtype), quality(problem.clean_logits, problem.label)),
        )

    def objective(problem: Problem, state: LineSearchLinfState, logits: Array) -> Array:
        return deficit(logits, problem.label)

    def observe(problem: Problem, state: LineSearchLinfState, logits: Array) -> LineSearchLinfState:
        distance = threat_model.distance(problem.image, state.point)
        return state._replace(best=smaller(state.best, Smallest(state.point, distance, quality(logits, problem.label))))

    def move(problem: Problem, state: LineSearchLinfState, logits: Array, gradient: Array) -> LineSearchLinfState:
        search, to_image = state.search, box(problem)[1]
        variable = jnp.where(state.begun, line_search.trial(search), search.current.variable)
        loss = hinge(logits, problem.label).astype(search.current.loss.dtype)
        seen = Seen(variable, jax.vjp(to_image, variable)[1](gradient)[0], loss)
        advanced, ended, _ = line_search.advance(search, seen, max_halvings, max_doublings)
        search = where(state.begun, advanced, line_search.begin(seen, search.rate))
        return state._replace(
            point=threat_model.project(problem.image, to_image(line_search.trial(search))),
            begun=jnp.ones_like(state.begun),
            search=search,
            step=state.step + (state.begun & ended),
        )

    return Attack(
        threat_model,
        num_steps * line_search.most_trials(max_halvings, max_doublings),
        init,
        objective,
        observe,
        move,
        done=lambda state: (state.step >= num_steps) | (state.best.quality == 2),
        targeted=targeted,
    )
