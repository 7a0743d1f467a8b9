"""Carlini and Wagner's attack within an linf ball by line search, as the Adversarial Robustness Toolbox had it.

It is weaker than ``carlini_wagner_linf``, and is here to repeat what was measured with that library.
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
from advjax.attacks.threat_model import LINF, ThreatModel
from advjax.types import Array


class LineSearchLinfState(NamedTuple):
    """Where one image's attack stands."""

    point: Array
    begun: Array
    """Whether the image itself has been answered for."""
    search: LineSearch
    step: Array
    """Number of searches that have ended."""
    smallest: Smallest


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
    bounds.  From w of the image, ``max(0, confidence - margin(x'))`` is brought down in ``num_steps`` searches along
    its gradient (``line_search``).  The first point where it is 0 is returned, and the image itself if there is none:
    what looks robust may only not have been found.

    Args:
      threat_model: linf with a finite epsilon.
      num_steps: number of line searches.  ``Attack.num_steps``, the most points that are asked for in all, is about six
        times that.
      learning_rate: first rate, in tanh space.
      max_halvings: most trials of a search before one lowers the loss.
      max_doublings: most further trials of a search whose first one lowers the loss.
      confidence: margin, in logits, by which the wrong class has to win.
      targeted: labels are the classes to reach.
    """
    if threat_model.norm is not LINF or not threat_model.is_bounded:
        raise ValueError(
            "carlini_wagner_linf_line_search needs linf with a finite epsilon, "
            f"got {threat_model.norm.name} {threat_model.epsilon}"
        )
    line_search.require_positive(num_steps=num_steps, max_halvings=max_halvings, max_doublings=max_doublings)
    low, high = threat_model.bounds
    hinge, deficit = margin_hinge(confidence, targeted), margin_deficit(confidence, targeted)
    quality = quality_of(hinge, targeted)

    def box(problem):
        epsilon = jnp.asarray(threat_model.epsilon, problem.image.dtype)
        return tanh_box((jnp.maximum(problem.image - epsilon, low), jnp.minimum(problem.image + epsilon, high)))

    def init(problem: Problem) -> LineSearchLinfState:
        image = problem.image
        point = image if problem.start is None else problem.start
        dtype = jnp.result_type(image, problem.clean_logits)
        seen = Seen(box(problem)[0](point), jnp.zeros_like(image), jnp.zeros((), dtype))
        return LineSearchLinfState(
            point=point,
            begun=jnp.asarray(False),
            search=line_search.begin(seen, jnp.asarray(learning_rate, image.dtype)),
            step=jnp.int32(0),
            smallest=Smallest(image, jnp.zeros((), image.dtype), quality(problem.clean_logits, problem.label)),
        )

    def update(problem: Problem, state: LineSearchLinfState, logits: Array, gradients: Array) -> LineSearchLinfState:
        search, to_image = state.search, box(problem)[1]
        distance = threat_model.distance(problem.image, state.point)
        smallest = smaller(state.smallest, Smallest(state.point, distance, quality(logits, problem.label)))
        variable = jnp.where(state.begun, line_search.trial(search), search.current.variable)
        loss = hinge(logits, problem.label).astype(search.current.loss.dtype)
        # The zeros of the last answer are the same on all devices under shard_map, which the variable is not.
        gradient = jax.vjp(to_image, variable)[1](gradients[0] + jnp.zeros_like(variable))[0]
        seen = Seen(variable, gradient, loss)
        advanced, ended, _ = line_search.advance(search, seen, max_halvings, max_doublings)
        search = where(state.begun, advanced, line_search.begin(seen, search.rate))
        return LineSearchLinfState(
            point=threat_model.project(problem.image, to_image(line_search.trial(search))),
            begun=jnp.ones_like(state.begun),
            search=search,
            step=state.step + (state.begun & ended),
            smallest=smallest,
        )

    return Attack(
        threat_model,
        num_steps * line_search.most_trials(max_halvings, max_doublings),
        init=init,
        query=lambda state: state.point,
        cotangents=lambda problem, state, logits: jax.grad(deficit)(logits, problem.label)[None],
        update=update,
        finalize=lambda problem, state: state.smallest.image,
        done=lambda state: (state.step >= num_steps) | (state.smallest.quality == 2),
        targeted=targeted,
    )
