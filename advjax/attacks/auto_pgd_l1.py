"""AutoPGD for l1: sparse steps, and exact projections onto the ball within the pixel bounds (Croce & Hein 2021)."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.base import Attack, Kept, Problem, first_kept, keep_rule
from advjax.attacks.losses import Aim, AimedLoss, Loss
from advjax.attacks.model_queries import Expectation
from advjax.attacks.pgd_family import climb, goal
from advjax.attacks.threat_model import L1, ThreatModel
from advjax.types import Array, AttackFn, AttackResult, Key, LogitsFn

FIRST_SHARE = 0.2
"""Share of the pixels that the first steps change."""
SPARSER = 1.5
"""A step changes that many times fewer pixels than the best perturbation has."""
STILL_SHRINKING = 0.95
STEP_SIZE_RANGE = 10.0
CHECK_INTERVAL = 0.04
LARGE_EPSILONS = ((3, 0.3), (2, 0.3), (1, 0.4))
"""Multiples of epsilon, and the shares of the steps spent with each."""


class AutoPGDL1State(NamedTuple):
    """State of one image's attack."""

    index: Array
    """Number of points observed so far; the start is the first."""
    point: Array
    best: Kept
    """The point with the highest loss."""
    best_gradient: Array
    step_size: Array
    num_changed: Array
    """Number of pixels (times channels) that the next step changes, before rounding."""
    sparsity: Array
    """Number of pixels that the best perturbation changed at the last check."""
    kept: Kept


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
    projection of ``x + n``, n standard Gaussian; ``project`` is ``project_l1``.  At first k is a fifth of the pixels
    and eta is epsilon.  Every 4 % of the steps k becomes the number of pixels changed at the best point, divided by
    1.5.  If that number has fallen by more than 5 % since the last check, eta goes back to epsilon and the search to
    the best point; else eta is divided by 1.5, down to a tenth of epsilon.  There is no momentum.

    Args:
      threat_model: l1 with a finite epsilon.
      num_steps: gradient steps; the model is asked once more than that.
      loss: "ce" (cross-entropy), "dlr" (difference of logits ratio), or a function of (logits, label).
      targeted: labels are the classes to reach, and the loss is minimised.
      aim: the class by which to leave the label, as in ``auto_pgd``; "dlr" then makes this the APGD-T of AutoAttack.
      returns: which observed point to return, see ``KEEP_RULES``; "latest_success" is the authors' rule.
    """
    if threat_model.norm is not L1 or not threat_model.is_bounded:
        raise ValueError(
            f"auto_pgd_l1 needs l1 with a finite epsilon, got {threat_model.norm.name} {threat_model.epsilon}"
        )
    climbed, keep, keep_best = goal(loss, targeted, aim), keep_rule(returns), keep_rule("highest_loss")
    steps_per_check = max(int(CHECK_INTERVAL * num_steps), 1)

    def init(problem: Problem) -> AutoPGDL1State:
        image, loss_dtype = problem.image, problem.clean_logits.dtype
        all_pixels = jnp.asarray(image.size, image.dtype)
        if problem.start is None:
            noise = jax.random.normal(problem.rng, image.shape, image.dtype)
            point, num_changed, sparsity = (
                project_l1(threat_model, image, image + noise),
                FIRST_SHARE * all_pixels,
                all_pixels,
            )
        else:
            point, sparsity = problem.start, count_changed(problem, problem.start)
            num_changed = sparsity / SPARSER
        return AutoPGDL1State(
            index=jnp.int32(0),
            point=point,
            best=first_kept(point, loss_dtype),
            best_gradient=jnp.zeros_like(image),
            step_size=jnp.asarray(threat_model.epsilon, image.dtype),
            num_changed=num_changed,
            sparsity=sparsity,
            kept=first_kept(point, loss_dtype),
        )

    def count_changed(problem, point):
        return jnp.sum(point != problem.image).astype(problem.image.dtype)

    def update(problem: Problem, state: AutoPGDL1State, logits: Array, gradients: Array) -> AutoPGDL1State:
        seen = climbed.seen(problem, state.point, logits)
        state = state._replace(
            best=keep_best(state.best, seen),
            best_gradient=jnp.where(seen.loss > state.best.loss, gradients[0], state.best_gradient),
            kept=keep(state.kept, seen),
        )
        state, gradient = check(problem, state, gradients[0])
        step = state.step_size * largest_signs(gradient, state.num_changed)
        return state._replace(index=state.index + 1, point=project_l1(threat_model, problem.image, state.point + step))

    def check(problem, state, gradient):
        due = (state.index > 0) & (state.index % steps_per_check == 0)
        sparsity = count_changed(problem, state.best.image)
        shrinking = sparsity < STILL_SHRINKING * state.sparsity
        largest = jnp.asarray(threat_model.epsilon, state.step_size.dtype)
        decreased = jnp.maximum(state.step_size / SPARSER, largest / STEP_SIZE_RANGE)
        back = due & shrinking
        state = state._replace(
            point=jnp.where(back, state.best.image, state.point),
            step_size=jnp.where(due, jnp.where(shrinking, largest, decreased), state.step_size),
            num_changed=jnp.where(due, sparsity / SPARSER, state.num_changed),
            sparsity=jnp.where(due, sparsity, state.sparsity),
        )
        return state, jnp.where(back, state.best_gradient, gradient)

    return climb(threat_model, num_steps, climbed, init=init, update=update)


def auto_pgd_l1_large_epsilon(
    threat_model: ThreatModel,
    *,
    num_steps: int = 100,
    loss: str | Loss | AimedLoss = "ce",
    aim: Aim | None = None,
    stop_on_success: bool = False,
) -> AttackFn:
    """``auto_pgd_l1`` that first attacks with 3 and with 2 epsilon, as AutoAttack does for l1 (Croce & Hein 2021).

    30 % of the steps are spent in each of the larger balls, the rest in the ball itself.  Each part begins at the point
    with the highest loss of the one before, projected; only what the last one finds counts, and only that one stops
    early.  ``loss`` and ``aim`` are those of ``auto_pgd_l1``.

    Returns:
      ``(logits_fn, images, labels, rng, start=None) -> AttackResult``.
    """
    steps = [math.ceil(share * num_steps) for _, share in LARGE_EPSILONS[:-1]]
    steps.append(num_steps - sum(steps))
    if steps[-1] < 1:
        raise ValueError(f"num_steps must be 3, or 5 or more, to be shared by three epsilons, got {num_steps}")
    balls = [dataclasses.replace(threat_model, epsilon=scale * threat_model.epsilon) for scale, _ in LARGE_EPSILONS]
    *wider, last = (
        auto_pgd_l1(ball, num_steps=count, loss=loss, aim=aim, returns=returns)
        for ball, count, returns in zip(balls, steps, ("highest_loss", "highest_loss", "latest_success"), strict=True)
    )
    last = dataclasses.replace(last, stop_on_success=stop_on_success)

    def attack(
        logits_fn: LogitsFn | Expectation, images: Array, labels: Array, rng: Key, start: Array | None = None
    ) -> AttackResult:
        nonfinite = jnp.zeros(len(images), bool)
        for part, next_ball in zip(wider, balls[1:], strict=True):
            found = part(logits_fn, images, labels, rng, start)
            nonfinite |= found.nonfinite
            start = jax.vmap(functools.partial(project_l1, next_ball))(images, found.images)
        result = last(logits_fn, images, labels, rng, start)
        return result._replace(steps=result.steps + sum(steps[:-1]), nonfinite=result.nonfinite | nonfinite)

    return attack


def project_l1(threat_model: ThreatModel, image: Array, candidate: Array) -> Array:
    """The nearest image to ``candidate`` in the intersection of the l1 ball and the pixel bounds.

    ``min ||x' - candidate||_2`` is solved by ``|x'_i - x_i| = clip(|candidate_i - x_i| - t, 0, room_i)`` with the
    smallest threshold t >= 0 for which these add up to at most epsilon.  The sum is piecewise linear in t, and the
    pieces end where a pixel meets its bound or returns to the image.  ``ThreatModel.project`` cuts to the ball first
    and to the bounds then, which is inside as well but further away.
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
    """Signs of the ``count`` largest entries (of more if there are ties), scaled to an l1 norm of 1."""
    size = jnp.abs(gradient)
    rank = jnp.clip(gradient.size - count, 0, gradient.size - 1).astype(jnp.int32)
    signs = jnp.sign(gradient) * (size >= jnp.sort(size.ravel())[rank])
    return signs / jnp.maximum(jnp.sum(jnp.abs(signs)), 1)
