"""AutoPGD: PGD with momentum that chooses its own step sizes (Croce & Hein 2020)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from advjax.attacks.base import Attack, Kept, Problem, first_kept, keep_rule
from advjax.attacks.losses import Aim, AimedLoss, Loss
from advjax.attacks.pgd_family import climb, goal
from advjax.attacks.threat_model import ThreatModel, is_concrete
from advjax.types import Array

MOMENTUM = 0.75


class AutoPGDState(NamedTuple):
    """State of one image's attack."""

    index: Array
    """Number of points observed so far; the start is the first."""
    point: Array
    previous_point: Array
    loss: Array
    """Loss of the latest observed point (0 before the first step: see ``auto_pgd`` on the first window)."""
    best: Kept
    """The point with the highest loss, from which a halved step continues."""
    best_gradient: Array
    step_size: Array
    increases: Array
    """Steps since the last checkpoint that raised the loss."""
    best_loss_at_check: Array
    halved_at_check: Array
    kept: Kept


def checkpoints(num_steps: int) -> tuple[int, ...]:
    """Numbers of steps after which the step size is looked at: 22 41 57 70 80 87 93 99 of 100.

    The first window has 22 % of the steps, each later one is 3 % of the steps shorter, but never below 6 %; each
    rounded down to at least one step, as in the reference implementation.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    window = max(int(0.22 * num_steps), 1)
    shortest, decrease = max(int(0.06 * num_steps), 1), max(int(0.03 * num_steps), 1)
    found = [window]
    while True:
        window = max(window - decrease, shortest)
        if found[-1] + window > num_steps:
            return tuple(found)
        found.append(found[-1] + window)


def auto_pgd(
    threat_model: ThreatModel,
    *,
    num_steps: int = 100,
    loss: str | Loss | AimedLoss = "ce",
    rho: float | Array = 0.75,
    step_size: float | Array | None = None,
    targeted: bool = False,
    aim: Aim | None = None,
    returns: str = "latest_success",
) -> Attack:
    """AutoPGD for linf and l2 (Croce & Hein 2020, algorithm 1; semantics of the authors' implementation).

    ``z = project(x_i + eta d(x_i))``, ``x_{i+1} = project(x_i + 0.75 (z - x_i) + 0.25 (x_i - x_{i-1}))`` with d the
    steepest direction of the norm, from a random point on the surface of the ball.  At each of the ``checkpoints`` the
    step size eta is halved, and the search goes back to the best point, if at most ``rho`` of the steps of the window
    raised the loss, or if eta was not halved at the last checkpoint and the best loss has not risen since.  Three
    details that the paper does not print but the implementation has: the first step counts as a rise if its loss is
    positive, ``x_{i-1}`` stays where it was when ``x_i`` goes back to the best point, and the last case cannot happen
    at the first checkpoint.

    Args:
      threat_model: linf or l2 with a finite epsilon.
      num_steps: gradient steps; the model is asked once more than that.
      loss: "ce" (cross-entropy), "dlr" (difference of logits ratio), or a function of (logits, label).
      rho: share of rising steps at or below which the step size is halved.
      step_size: first step size in pixels; None for ``2 * epsilon``.
      targeted: labels are the classes to reach, and the loss is minimised.
      aim: the class by which to leave the label, e.g. ``next_likely_class(1)``; any other class is a success as well.
        The loss then is the targeted version of "ce" or "dlr", or a function of (logits, label, class); "dlr" makes
        this the APGD-T of AutoAttack.
      returns: which observed point to return, see ``KEEP_RULES``; "latest_success" is the authors' rule, "best" and
        "highest_loss" suit the making of training examples.
    """
    if not (threat_model.norm.dense and threat_model.is_bounded):
        raise ValueError(
            f"auto_pgd needs linf or l2 with a finite epsilon, got {threat_model.norm.name} {threat_model.epsilon}"
        )
    if is_concrete(rho) and not 0 < float(rho) <= 1:
        raise ValueError(f"rho must be in (0, 1], got {rho}")
    keep, keep_best = keep_rule(returns), keep_rule("highest_loss")
    climbed, windows = goal(loss, targeted, aim), _windows(num_steps)

    def init(problem: Problem) -> AutoPGDState:
        image, loss_dtype = problem.image, problem.clean_logits.dtype
        point = threat_model.surface(image, problem.rng) if problem.start is None else problem.start
        first = 2 * threat_model.epsilon if step_size is None else step_size
        return AutoPGDState(
            index=jnp.int32(0),
            point=point,
            previous_point=point,
            loss=jnp.zeros((), loss_dtype),
            best=first_kept(point, loss_dtype),
            best_gradient=jnp.zeros_like(image),
            step_size=jnp.asarray(first, image.dtype),
            increases=jnp.int32(0),
            best_loss_at_check=jnp.zeros((), loss_dtype),
            halved_at_check=jnp.asarray(True),
            kept=first_kept(point, loss_dtype),
        )

    def update(problem: Problem, state: AutoPGDState, logits: Array, gradients: Array) -> AutoPGDState:
        state = observe(problem, state, logits, gradients[0])
        state, gradient = check(state, gradients[0])
        return move(problem, state, gradient)

    def observe(problem, state, logits, gradient):
        seen = climbed.seen(problem, state.point, logits)
        is_start = state.index == 0
        state = state._replace(
            loss=jnp.where(is_start, 0, seen.loss),
            increases=state.increases + (~is_start & (seen.loss > state.loss)),
            best=keep_best(state.best, seen),
            best_gradient=jnp.where(seen.loss > state.best.loss, gradient, state.best_gradient),
            kept=keep(state.kept, seen),
        )
        return state._replace(best_loss_at_check=jnp.where(is_start, state.best.loss, state.best_loss_at_check))

    def check(state, gradient):
        window = jnp.asarray(windows)[state.index]
        due = window > 0
        stuck = ~state.halved_at_check & (state.best_loss_at_check >= state.best.loss)
        halve = due & ((state.increases <= rho * window) | stuck)
        state = state._replace(
            point=jnp.where(halve, state.best.image, state.point),
            step_size=jnp.where(halve, state.step_size / 2, state.step_size),
            increases=jnp.where(due, 0, state.increases),
            best_loss_at_check=jnp.where(due, state.best.loss, state.best_loss_at_check),
            halved_at_check=jnp.where(due, halve, state.halved_at_check),
        )
        return state, jnp.where(halve, state.best_gradient, gradient)

    def move(problem, state, gradient):
        point, ascent = state.point, threat_model.norm.ascent(gradient)
        momentum = jnp.where(state.index == 0, 1.0, MOMENTUM).astype(point.dtype)
        aimed = threat_model.project(problem.image, point + state.step_size * ascent)
        inertia = point - state.previous_point
        moved = point + momentum * (aimed - point) + (1 - momentum) * inertia
        return state._replace(
            index=state.index + 1, point=threat_model.project(problem.image, moved), previous_point=point
        )

    return climb(threat_model, num_steps, climbed, init=init, update=update, planned=True)


def _windows(num_steps: int) -> np.ndarray:
    """``windows[i]``: steps since the last checkpoint if there is one after step i, else 0."""
    windows = np.zeros(num_steps + 1, np.int32)
    previous = 0
    for checkpoint in checkpoints(num_steps):
        windows[checkpoint] = checkpoint - previous
        previous = checkpoint
    return windows
