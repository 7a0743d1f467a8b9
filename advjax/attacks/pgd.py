"""Projected gradient methods: FGSM, one step to a target class, BIM, PGD."""

from typing import NamedTuple

import jax.numpy as jnp

from advjax.attacks.base import Attack, Problem
from advjax.attacks.candidate import Candidate, keep_rule, unobserved
from advjax.attacks.input_checks import require_number
from advjax.attacks.losses import AIMS, Aim, AimedLoss, Loss
from advjax.attacks.pgd_family import goal
from advjax.attacks.threat_model import ThreatModel, require
from advjax.types import Array


class PGDState(NamedTuple):
    """The current point, and the one that would be returned."""

    point: Array
    best: Candidate


def fgsm(
    threat_model: ThreatModel,
    *,
    loss: str | Loss | AimedLoss = "ce",
    targeted: bool = False,
    aim: Aim | None = None,
) -> Attack:
    """Fast gradient sign method: one step of size epsilon (Goodfellow et al. 2015, section 4).

    ``x' = clip(x + epsilon * ascent(grad_x loss))``, where ascent is the sign for linf, the normalized gradient for l2
    and the largest entry for l1; the sign of 0 is 0.  A targeted attack descends the loss of the target class instead.

    Example::

        result = fgsm(linf(8 / 255))(logits_fn, images, labels, jax.random.key(0))
    """
    require(threat_model, "fgsm", finite_epsilon=True)
    return pgd(
        threat_model,
        num_steps=1,
        step_size=threat_model.epsilon,
        loss=loss,
        random_start=False,
        targeted=targeted,
        aim=aim,
        returns="last",
    )


def one_step_target_class(threat_model: ThreatModel, *, target: str | Aim = "least_likely") -> Attack:
    """One step of size epsilon towards another class (Kurakin et al. 2017, "Adversarial machine learning at scale").

    ``x' = clip(x - epsilon * ascent(grad_x CE(z(x), t)))``.  The labels are the true ones; any misclassification counts
    as success.  To choose the class t yourself, use ``fgsm(threat_model, targeted=True)``.

    Args:
      threat_model: the allowed images; epsilon must be finite.
      target: how t is chosen: "least_likely" on the clean image, "random" from the image's key, "next" after the label,
        or an aim such as ``next_likely_class(1)``.
    """
    if isinstance(target, str) and target not in AIMS:
        raise ValueError(f"target must be one of {', '.join(AIMS)} or an aim, got {target!r}")
    return fgsm(threat_model, aim=AIMS[target] if isinstance(target, str) else target)


def bim(
    threat_model: ThreatModel,
    *,
    num_steps: int,
    step_size: float | Array,
    loss: str | Loss | AimedLoss = "ce",
    targeted: bool = False,
    aim: Aim | None = None,
    returns: str = "last",
) -> Attack:
    """Basic iterative method, also called I-FGSM: PGD from the image itself (Kurakin et al. 2017, section 2.2)."""
    return pgd(
        threat_model,
        num_steps=num_steps,
        step_size=step_size,
        loss=loss,
        random_start=False,
        targeted=targeted,
        aim=aim,
        returns=returns,
    )


def pgd(
    threat_model: ThreatModel,
    *,
    num_steps: int,
    step_size: float | Array,
    loss: str | Loss | AimedLoss = "ce",
    random_start: bool = True,
    targeted: bool = False,
    aim: Aim | None = None,
    returns: str = "best",
) -> Attack:
    """Projected gradient descent (Madry et al. 2018, section 2.1).

    ``x_{i+1} = project(x_i + step_size * ascent(grad_x loss(x_i)))`` from a uniformly random point of the ball.

    Args:
      threat_model: the allowed images; epsilon must be finite.
      num_steps: number of gradient steps.
      step_size: length of a step in the norm of the threat model, in units of the pixels; ``2.5 * epsilon / num_steps``
        is a common choice (Madry et al. 2018).
      loss: "ce" (cross-entropy), "dlr" (difference of logits ratio), or a function of (logits, label).
      random_start: start at a random point instead of the image.
      targeted: labels are the classes to reach, and the loss is minimized.
      aim: chooses the class towards which to leave the label, e.g. ``least_likely_class``; any other class counts as
        success, too.  The loss is then the targeted version of "ce" or "dlr", or a function of (logits, label, class).
      returns: which observed point to return, see ``KEEP_RULES``: "best" returns the best so far; "last" is what the
        paper and most other libraries return.
    """
    require(threat_model, "pgd", finite_epsilon=True)
    require_number("step_size", step_size)
    keep, maximized = keep_rule(returns), goal(loss, targeted, aim)

    def init(problem: Problem) -> PGDState:
        if problem.start is not None:
            point = problem.start
        elif random_start:
            point = threat_model.sample(problem.image, problem.rng)
        else:
            point = problem.image
        return PGDState(point, unobserved(point, problem.clean_logits.dtype))

    def observe(problem: Problem, state: PGDState, logits: Array) -> PGDState:
        return state._replace(best=keep(state.best, maximized.candidate(problem, state, logits)))

    def move(problem: Problem, state: PGDState, logits: Array, gradient: Array) -> PGDState:
        moved = state.point + jnp.asarray(step_size, state.point.dtype) * threat_model.norm.ascent(gradient)
        return state._replace(point=threat_model.project(problem.image, moved))

    return Attack(threat_model, num_steps, init, maximized.objective, observe, move, targeted=targeted, ascends=True)
