"""AutoPGD: PGD with momentum and adaptive step sizes (Croce & Hein 2020)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from advjax.attacks.base import Attack, Problem
from advjax.attacks.candidate import Candidate, keep_rule, unobserved
from advjax.attacks.input_checks import require_count, require_number
from advjax.attacks.losses import Aim, AimedLoss, Loss
from advjax.attacks.pgd_family import goal
from advjax.attacks.threat_model import ThreatModel, require
from advjax.types import Array

MOMENTUM = 0.75


class AutoPGDState(NamedTuple):
    """State of the attack on one image."""

    index: Array
    """Number of moves so far."""
    point: Array
    previous_point: Array
    loss: Array
    """Loss of the latest observed point (0 before the first step: see ``auto_pgd`` on the first window)."""
    highest: Candidate
    """The point with the highest loss, where the search continues after a halving."""
    is_highest: Array
    """Whether the point has a higher loss than all points before it."""
    highest_gradient: Array
    step_size: Array
    increases: Array
    """Steps since the last checkpoint that increased the loss."""
    highest_loss_at_check: Array
    halved_at_check: Array
    best: Candidate


def checkpoints(num_steps: int) -> tuple[int, ...]:
    """Numbers of steps after which the step size is adapted: 22 41 57 70 80 87 93 99 of 100.

    The first window has 22% of the steps; each later window is shorter by 3% of the steps, but has at least 6%.  All
    are rounded down, to at least one step, as in the reference implementation.
    """
    require_count("num_steps", num_steps)
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
    steepest direction of the norm, from a random point on the surface of the ball.  At each of the ``checkpoints``, the
    step size eta is halved and the search returns to the best point if at most ``rho`` of the steps of the window
    increased the loss, or if eta was not halved at the last checkpoint and the best loss has not increased since.
    Three details are in the implementation but not in the paper: the first step counts as an increase if its loss is
    positive; ``x_{i-1}`` stays where it was when ``x_i`` returns to the best point; and the last condition cannot hold
    at the first checkpoint.

    Args:
      threat_model: linf or l2 with a finite epsilon.
      num_steps: number of gradient steps, with one forward pass each and one more at the end.
      loss: "ce" (cross-entropy), "dlr" (difference of logits ratio), or a function of (logits, label).
      rho: the step size is halved if at most this fraction of the steps increased the loss.
      step_size: initial step size, in units of the pixels; None for ``2 * epsilon``.
      targeted: labels are the classes to reach, and the loss is minimized.
      aim: chooses the class towards which to leave the label, e.g. ``next_likely_class(1)``; any other class counts as
        success, too.  The loss is then the targeted version of "ce" or "dlr", or a function of (logits, label, class);
        with "dlr" this is the APGD-T of AutoAttack.
      returns: which observed point to return, see ``KEEP_RULES``; "latest_success" is the authors' rule, "best" and
        "highest_loss" suit training examples.
    """
    require(threat_model, "auto_pgd", "linf", "l2", finite_epsilon=True)
    require_number("rho", rho, 0, 1, open_low=True)
    if step_size is not None:
        require_number("step_size", step_size)
    keep, keep_highest = keep_rule(returns), keep_rule("highest_loss")
    maximized, windows = goal(loss, targeted, aim), _windows(num_steps)

    def init(problem: Problem) -> AutoPGDState:
        image, loss_dtype = problem.image, problem.clean_logits.dtype
        point = threat_model.surface(image, problem.rng) if problem.start is None else problem.start
        first = 2 * threat_model.epsilon if step_size is None else step_size
        return AutoPGDState(
            index=jnp.int32(0),
            point=point,
            previous_point=point,
            loss=jnp.zeros((), loss_dtype),
            highest=unobserved(point, loss_dtype),
            is_highest=jnp.asarray(False),
            highest_gradient=jnp.zeros_like(image),
            step_size=jnp.asarray(first, image.dtype),
            increases=jnp.int32(0),
            highest_loss_at_check=jnp.zeros((), loss_dtype),
            halved_at_check=jnp.asarray(True),
            best=unobserved(point, loss_dtype),
        )

    def observe(problem: Problem, state: AutoPGDState, logits: Array) -> AutoPGDState:
        seen = maximized.candidate(problem, state, logits)
        is_start = state.index == 0
        highest = keep_highest(state.highest, seen)
        return state._replace(
            loss=jnp.where(is_start, 0, seen.loss),
            increases=state.increases + (~is_start & (seen.loss > state.loss)),
            highest=highest,
            is_highest=seen.loss > state.highest.loss,
            highest_loss_at_check=jnp.where(is_start, highest.loss, state.highest_loss_at_check),
            best=keep(state.best, seen),
        )

    def move(problem: Problem, state: AutoPGDState, logits: Array, gradient: Array) -> AutoPGDState:
        state, gradient = check(
            state._replace(highest_gradient=jnp.where(state.is_highest, gradient, state.highest_gradient)), gradient
        )
        point, ascent = state.point, threat_model.norm.ascent(gradient)
        momentum = jnp.where(state.index == 0, 1.0, MOMENTUM).astype(point.dtype)
        stepped = threat_model.project(problem.image, point + state.step_size * ascent)
        inertia = point - state.previous_point
        moved = point + momentum * (stepped - point) + (1 - momentum) * inertia
        return state._replace(
            index=state.index + 1, point=threat_model.project(problem.image, moved), previous_point=point
        )

    def check(state, gradient):
        """Halves the step size and returns to the best point, if this is a checkpoint and progress was too slow."""
        window = jnp.asarray(windows)[state.index]
        due = window > 0
        stuck = ~state.halved_at_check & (state.highest_loss_at_check >= state.highest.loss)
        halve = due & ((state.increases <= rho * window) | stuck)
        state = state._replace(
            point=jnp.where(halve, state.highest.image, state.point),
            step_size=jnp.where(halve, state.step_size / 2, state.step_size),
            increases=jnp.where(due, 0, state.increases),
            highest_loss_at_check=jnp.where(due, state.highest.loss, state.highest_loss_at_check),
            halved_at_check=jnp.where(due, halve, state.halved_at_check),
        )
        return state, jnp.where(halve, state.highest_gradient, gradient)

    return Attack(threat_model, num_steps, init, maximized.objective, observe, move, targeted=targeted, ascends=True)


def _windows(num_steps: int) -> np.ndarray:
    """``windows[i]``: steps since the last checkpoint if step i is followed by one, else 0."""
    windows = np.zeros(num_steps + 1, np.int32)
    previous = 0
    for checkpoint in checkpoints(num_steps):
        windows[checkpoint] = checkpoint - previous
        previous = checkpoint
    return windows
