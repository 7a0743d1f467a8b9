"""Projected gradient methods: FGSM, BIM, PGD."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.base import Attack, Kept, Problem, first_kept, keep_rule
from advjax.attacks.losses import Loss, cross_entropy
from advjax.attacks.threat_model import ThreatModel, is_concrete
from advjax.types import Array


class PGDState(NamedTuple):
    """The current iterate and the point kept so far."""

    point: Array
    kept: Kept


def fgsm(threat_model: ThreatModel, *, loss: Loss = cross_entropy, targeted: bool = False) -> Attack:
    """Fast gradient sign method: one step of size epsilon (Goodfellow et al. 2015, section 4).

    ``x' = clip(x + epsilon * ascent(grad_x loss))``, where ascent is the sign for linf, the normalised gradient for l2
    and the largest entry for l1; the sign of 0 is 0.  A targeted attack goes down the loss of the target class instead.

    Example::

        result = fgsm(linf(8 / 255))(logits_fn, images, labels, jax.random.key(0))
    """
    _require_finite(threat_model, "fgsm")
    return pgd(
        threat_model,
        num_steps=1,
        step_size=threat_model.epsilon,
        loss=loss,
        random_start=False,
        targeted=targeted,
        returns="last",
    )


def bim(
    threat_model: ThreatModel,
    *,
    num_steps: int,
    step_size: float | Array,
    loss: Loss = cross_entropy,
    targeted: bool = False,
    returns: str = "last",
) -> Attack:
    """Basic iterative method, also I-FGSM: PGD from the image itself (Kurakin et al. 2017, section 2.2)."""
    return pgd(
        threat_model,
        num_steps=num_steps,
        step_size=step_size,
        loss=loss,
        random_start=False,
        targeted=targeted,
        returns=returns,
    )


def pgd(
    threat_model: ThreatModel,
    *,
    num_steps: int,
    step_size: float | Array,
    loss: Loss = cross_entropy,
    random_start: bool = True,
    targeted: bool = False,
    returns: str = "best",
) -> Attack:
    """Projected gradient descent (Madry et al. 2018, section 2.1).

    ``x_{i+1} = project(x_i + step_size * ascent(grad_x loss(x_i)))`` from a uniformly random point of the ball.

    Args:
      threat_model: the allowed images; epsilon must be finite.
      num_steps: gradient steps.
      step_size: length of a step in the norm of the threat model, pixels in [0, 1]; ``2.5 * epsilon / num_steps`` is a
        common choice (Madry et al. 2018).
      loss: what to maximise (or to minimise, if targeted).
      random_start: begin at a random point instead of the image.
      targeted: labels are the classes to reach.
      returns: which observed point to return, see ``KEEP_RULES``: "best" keeps the best so far, "last" is what the
        paper and most other libraries return.
    """
    _require_finite(threat_model, "pgd")
    if is_concrete(step_size) and not float(step_size) >= 0:
        raise ValueError(f"step_size must be 0 or more, got {step_size}")
    keep = keep_rule(returns)
    sign = -1.0 if targeted else 1.0

    def objective(logits: Array, label: Array) -> Array:
        return sign * loss(logits, label)

    def init(problem: Problem) -> PGDState:
        if problem.start is not None:
            point = problem.start
        elif random_start:
            point = threat_model.sample(problem.image, problem.rng)
        else:
            point = problem.image
        return PGDState(point, first_kept(point, problem.clean_logits.dtype))

    def cotangents(problem: Problem, state: PGDState, logits: Array) -> Array:
        return jax.grad(objective)(logits, problem.label)[None]

    def update(problem: Problem, state: PGDState, logits: Array, gradients: Array) -> PGDState:
        success = (jnp.argmax(logits) == problem.label) == targeted
        seen = Kept(state.point, objective(logits, problem.label), success)
        moved = state.point + jnp.asarray(step_size, state.point.dtype) * threat_model.norm.ascent(gradients[0])
        return PGDState(threat_model.project(problem.image, moved), keep(state.kept, seen))

    return Attack(
        threat_model,
        num_steps,
        init=init,
        query=lambda state: state.point,
        cotangents=cotangents,
        update=update,
        finalize=lambda problem, state: state.kept.image,
        targeted=targeted,
    )


def _require_finite(threat_model: ThreatModel, name: str) -> None:
    if not threat_model.is_bounded:
        raise ValueError(f"{name} needs a finite epsilon, got {threat_model.epsilon}")
