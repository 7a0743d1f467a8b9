"""AutoPGD for l1: sparse steps, and exact projections onto the ball within the pixel bounds (Croce & Hein 2021)."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.base import Attack, Problem
from advjax.attacks.candidate import Candidate, keep_rule, unobserved
from advjax.attacks.eot import Expectation
from advjax.attacks.input_checks import as_array, require_count
from advjax.attacks.losses import Aim, AimedLoss, Loss
from advjax.attacks.model_queries import traced_once
from advjax.attacks.pgd_family import goal
from advjax.attacks.threat_model import ThreatModel, require
from advjax.types import Array, AttackFn, AttackResult, Key, LogitsFn

FIRST_SHARE = 0.2
"""Fraction of the pixels that the first steps change."""
SPARSER = 1.5
"""The best perturbation has this many times more pixels than the next step changes."""
STILL_SHRINKING = 0.95
STEP_SIZE_RANGE = 10.0
CHECK_INTERVAL = 0.04
LARGE_EPSILONS = ((3, 0.3), (2, 0.3), (1, 0.4))
"""Multiples of epsilon, and the fraction of the steps spent with each."""


class AutoPGDL1State(NamedTuple):
    """State of the attack on one image."""

    index: Array
    """Number of moves so far."""
    point: Array
    highest: Candidate
    """The point with the highest loss."""
    is_highest: Array
    """Whether the point has a higher loss than all points before it."""
    highest_gradient: Array
    step_size: Array
    num_changed: Array
    """Number of pixels (times channels) that the next step changes, before rounding."""
    sparsity: Array
    """Number of pixels that the best perturbation changed at the last check."""
    best: Candidate


def auto_pgd_l1(
    threat_model: ThreatModel,
    *,
    num_steps: int = 100,
    loss: str | Loss | AimedLoss = "ce",
    targeted: bool = False,
    aim: Aim | None = None,
    returns: str = "latest_success",
) -> Attack:
    """AutoPGD for l1 (Croce & Hein 2021, section 4; semantics of the authors' implementation).

    ``x_{i+1} = project(x_i + eta s / ||s||_1)`` with s the signs of the k largest entries of the gradient, from the
    projection of ``x + n``, n standard Gaussian; ``project`` is ``project_l1``.  Initially, k is a fifth of the pixels
    and eta is epsilon.  Every 4% of the steps, k becomes the number of pixels changed at the best point, divided by
    1.5.  If that number has dropped by more than 5% since the last check, eta is reset to epsilon and the search
    returns to the best point; otherwise eta is divided by 1.5, down to a tenth of epsilon.  There is no momentum.

    Args:
      threat_model: l1 with a finite epsilon.
      num_steps: number of gradient steps, with one forward pass each and one more at the end.
      loss: "ce" (cross-entropy), "dlr" (difference of logits ratio), or a function of (logits, label).
      targeted: labels are the classes to reach, and the loss is minimized.
      aim: chooses the class towards which to leave the label, as in ``auto_pgd``; with "dlr" this is the APGD-T of
        AutoAttack.
      returns: which observed point to return, see ``KEEP_RULES``; "latest_success" is the authors' rule.
    """
    require(threat_model, "auto_pgd_l1", "l1", finite_epsilon=True)
    maximized, keep, keep_highest = goal(loss, targeted, aim), keep_rule(returns), keep_rule("highest_loss")
    require_count("num_steps", num_steps)
    steps_per_check = max(int(CHECK_INTERVAL * num_steps), 1)

    def init(problem: Problem) -> AutoPGDL1State:
        image, loss_dtype = problem.image, problem.clean_logits.dtype
        all_pixels = jnp.asarray(image.size, image.dtype)
        if problem.start is None:
            noise = jax.random.normal(problem.rng, image.shape, image.dtype)
            point = project_l1(threat_model, image, image + noise)
            num_changed, sparsity = FIRST_SHARE * all_pixels, all_pixels
        else:
            point, sparsity = problem.start, count_changed(problem, problem.start)
            num_changed = sparsity / SPARSER
        return AutoPGDL1State(
            index=jnp.int32(0),
            point=point,
            highest=unobserved(point, loss_dtype),
            is_highest=jnp.asarray(False),
            highest_gradient=jnp.zeros_like(image),
            step_size=jnp.asarray(threat_model.epsilon, image.dtype),
            num_changed=num_changed,
            sparsity=sparsity,
            best=unobserved(point, loss_dtype),
        )

    def count_changed(problem, point):
        return jnp.sum(point != problem.image).astype(problem.image.dtype)

    def observe(problem: Problem, state: AutoPGDL1State, logits: Array) -> AutoPGDL1State:
        seen = maximized.candidate(problem, state, logits)
        return state._replace(
            highest=keep_highest(state.highest, seen),
            is_highest=seen.loss > state.highest.loss,
            best=keep(state.best, seen),
        )

    def move(problem: Problem, state: AutoPGDL1State, logits: Array, gradient: Array) -> AutoPGDL1State:
        state, gradient = check(
            problem,
            state._replace(highest_gradient=jnp.where(state.is_highest, gradient, state.highest_gradient)),
            gradient,
        )
        step = state.step_size * largest_signs(gradient, state.num_changed)
        return state._replace(index=state.index + 1, point=project_l1(threat_model, problem.image, state.point + step))

    def check(problem, state, gradient):
        """Adapts sparsity and step size if this is a checkpoint."""
        due = (state.index > 0) & (state.index % steps_per_check == 0)
        sparsity = count_changed(problem, state.highest.image)
        shrinking = sparsity < STILL_SHRINKING * state.sparsity
        largest = jnp.asarray(threat_model.epsilon, state.step_size.dtype)
        decreased = jnp.maximum(state.step_size / SPARSER, largest / STEP_SIZE_RANGE)
        back = due & shrinking
        state = state._replace(
            point=jnp.where(back, state.highest.image, state.point),
            step_size=jnp.where(due, jnp.where(shrinking, largest, decreased), state.step_size),
            num_changed=jnp.where(due, sparsity / SPARSER, state.num_changed),
            sparsity=jnp.where(due, sparsity, state.sparsity),
        )
        return state, jnp.where(back, state.highest_gradient, gradient)

    return Attack(threat_model, num_steps, init, maximized.objective, observe, move, targeted=targeted, ascends=True)


def auto_pgd_l1_large_epsilon(
    threat_model: ThreatModel,
    *,
    num_steps: int = 100,
    loss: str | Loss | AimedLoss = "ce",
    aim: Aim | None = None,
) -> AttackFn:
    """``auto_pgd_l1`` that first attacks with 3 and with 2 epsilon, as AutoAttack does for l1 (Croce & Hein 2021).

    Each of the larger balls gets 30% of the steps, the ball itself the rest.  Each part starts at the point with the
    highest loss of the previous one, projected.  Only what the last part finds counts, and ``until_success`` applies
    only to it.  ``loss`` and ``aim`` are those of ``auto_pgd_l1``.

    Returns:
      ``(logits_fn, images, labels, rng, start=None, until_success=False) -> AttackResult``.
    """
    require(threat_model, "auto_pgd_l1_large_epsilon", "l1", finite_epsilon=True)
    require_count("num_steps", num_steps)
    steps = [math.ceil(share * num_steps) for _, share in LARGE_EPSILONS[:-1]]
    steps.append(num_steps - sum(steps))
    if steps[-1] < 1:
        raise ValueError(f"num_steps must be 3, or 5 or more, to be split among three epsilons, got {num_steps}")
    balls = [dataclasses.replace(threat_model, epsilon=scale * threat_model.epsilon) for scale, _ in LARGE_EPSILONS]
    *wider, last = (
        auto_pgd_l1(ball, num_steps=count, loss=loss, aim=aim, returns=returns)
        for ball, count, returns in zip(balls, steps, ("highest_loss", "highest_loss", "latest_success"), strict=True)
    )

    def attack(
        logits_fn: LogitsFn | Expectation,
        images: Array,
        labels: Array,
        rng: Key,
        start: Array | None = None,
        until_success: bool = False,
    ) -> AttackResult:
        logits_fn, images = traced_once(logits_fn), as_array("images", images)
        nonfinite, progress = jnp.zeros(len(images), bool), jnp.zeros(len(images), jnp.int8)
        for part, next_ball in zip(wider, balls[1:], strict=True):
            found = part(logits_fn, images, labels, rng, start)
            nonfinite, progress = nonfinite | found.nonfinite, jnp.maximum(progress, found.progress)
            start = jax.vmap(functools.partial(project_l1, next_ball))(images, found.images)
        result = last(logits_fn, images, labels, rng, start, until_success)
        return result._replace(
            steps=result.steps + sum(steps[:-1]),
            nonfinite=result.nonfinite | nonfinite,
            progress=jnp.maximum(result.progress, progress),
        )

    return attack


def project_l1(threat_model: ThreatModel, image: Array, candidate: Array) -> Array:
    """The nearest image to ``candidate`` in the intersection of the l1 ball and the pixel bounds.

    ``min ||x' - candidate||_2`` is solved by ``|x'_i - x_i| = clip(|candidate_i - x_i| - t, 0, room_i)`` with the
    smallest threshold t >= 0 for which these add up to at most epsilon.  The sum is piecewise linear in t, with a
    breakpoint wherever a pixel reaches its bound or returns to the image.  ``ThreatModel.project`` projects onto the
    ball and then onto the bounds, which also ends inside both but further away.
    """
    low, high = threat_model.bounds
    delta = (candidate - image).ravel()
    size = jnp.abs(delta)
    room = jnp.where(delta > 0, high - image.ravel(), image.ravel() - low)
    ends = jnp.concatenate([size, size - room])
    order = jnp.argsort(ends, descending=True)
    ends = ends[order]
    # Below ends[j], the sum grows by slopes[j] per unit of t.
    slopes = jnp.cumsum(jnp.where(order < size.size, 1, -1))
    gained = jnp.concatenate([jnp.zeros(1, size.dtype), jnp.cumsum(slopes[:-1] * (ends[:-1] - ends[1:]))])
    last = jnp.sum(gained <= threat_model.epsilon) - 1
    threshold = ends[last] - (threat_model.epsilon - gained[last]) / jnp.maximum(slopes[last], 1)
    moved = jnp.sign(delta) * jnp.clip(size - jnp.maximum(threshold, 0), 0, room)
    return threat_model.project(image, image + moved.reshape(image.shape).astype(image.dtype))


def largest_signs(gradient: Array, count: Array) -> Array:
    """Signs of the ``count`` largest entries (more if there are ties), scaled to an l1 norm of 1."""
    size = jnp.abs(gradient)
    rank = jnp.clip(gradient.size - count, 0, gradient.size - 1).astype(jnp.int32)
    signs = jnp.sign(gradient) * (size >= jnp.sort(size.ravel())[rank])
    return signs / jnp.maximum(jnp.sum(jnp.abs(signs)), 1)
