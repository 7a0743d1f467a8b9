"""AutoPGD as the Adversarial Robustness Toolbox had it up to version 1.8: what the fixer paper attacked with.

32 images at a time share one step size, and their mean loss decides when it is halved and where the search goes on.
The result for an image therefore depends on the images around it, which is why this is not part of the library;
``advjax.attacks.auto_pgd`` follows the paper of Croce and Hein.  In a config, its name is ``ART_AUTO_PGD``.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import Expectation, ThreatModel, cross_entropy
from advjax.attacks.input_checks import require_count
from advjax.attacks.keys import AFTER, fold_in, keys_per_image, model_keys
from advjax.attacks.model_queries import differentiate, evaluate
from advjax.attacks.per_image import varying_like
from advjax.attacks.threat_model import require
from advjax.types import Array, AttackFn, AttackResult, Key, LogitsFn

ART_AUTO_PGD = "configs.papers.fixer.art_auto_pgd:art_auto_pgd"
RHO = 0.75
MOMENTUM = 0.75


class Shared(NamedTuple):
    """What the images of one batch have in common; arrays [batches]."""

    step_size: Array
    best_loss: Array
    rises: Array
    """Steps since the last checkpoint that raised the best loss."""
    step_size_at_check: Array
    best_loss_at_check: Array
    stopped: Array
    """Whether the mean loss has been 0, after which nothing moves."""


class State(NamedTuple):
    """Where a restart stands; arrays [n, ...]."""

    point: Array
    previous: Array
    gradient: Array
    best: Array
    before_best: Array
    best_gradient: Array
    shared: Shared


def checkpoints(num_steps: int) -> tuple[int, ...]:
    """Steps after which the step size is looked at, and 0: 0 6 11 15 18 20 22 24 25 of 25.

    Rounded up, where ``advjax.attacks.auto_pgd`` rounds down.  The last one comes after the last step, and is never
    looked at.
    """
    shares = [0.0, 0.22]
    while (share := shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06)) <= 1:
        shares.append(share)
    # The sums carry rounding errors that would lift a whole number to the next.
    return tuple(math.ceil(round(share * num_steps, 9)) for share in shares)


def art_auto_pgd(
    threat_model: ThreatModel,
    *,
    num_steps: int = 25,
    step_size: float = 0.005,
    num_restarts: int = 5,
    batch_size: int = 32,
) -> AttackFn:
    """AutoPGD on cross-entropy with the toolbox's rules.

    Every restart takes the images that are still classified as their labels, in order, ``batch_size`` at a time, and
    sets each to a uniformly random point of the ball.  The first step is plain, the later ones have momentum; the step
    size begins at ``step_size`` instead of at twice epsilon.  At a checkpoint it is halved, and the batch goes back to
    the points of its highest mean loss, if that loss has risen in less than 75 % of the steps since the last one, or if
    neither it nor the step size has changed since.  An image that the last point of the restart does not fool is
    returned as the random point.

    Args:
      threat_model: linf or l2 with a finite epsilon.
      num_steps: steps of each restart, each with one evaluation of the model and one more in all.
      step_size: first step size, pixels in [0, 1].
      num_restarts: most restarts.
      batch_size: number of images that share a step size.

    Returns:
      ``(logits_fn, images, labels, rng, start=None) -> AttackResult``; ``start`` must be None.
    """
    require(threat_model, "art_auto_pgd", "linf", "l2", finite_epsilon=True)
    for name, value in (("num_steps", num_steps), ("num_restarts", num_restarts), ("batch_size", batch_size)):
        require_count(name, value)
    windows = _windows(num_steps)

    def attack(
        logits_fn: LogitsFn | Expectation, images: Array, labels: Array, rng: Key, start: Array | None = None
    ) -> AttackResult:
        if start is not None:
            raise ValueError("art_auto_pgd begins at random points of its own: leave out start")
        images, labels = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
        rngs, project = keys_per_image(rng, len(images)), jax.vmap(threat_model.project)

        def holds(points, keys):
            return jnp.argmax(evaluate(logits_fn, points, model_keys(keys, AFTER)), axis=-1) == labels

        def restart(carry):
            number, adversarial, robust, steps = carry
            keys = fold_in(rngs, number)
            begin = jax.vmap(threat_model.sample)(images, keys)
            last = climb(begin, robust, keys)
            found = jnp.where(_like(images, holds(last, keys)), begin, last)
            adversarial = jnp.where(_like(images, robust), found, adversarial)
            return number + 1, adversarial, robust & holds(adversarial, keys), steps + num_steps * robust

        def climb(begin, robust, keys):
            batches = (jnp.cumsum(robust) - 1).clip(0) // batch_size
            num_batches = -(-len(images) // batch_size)
            counts = jax.ops.segment_sum(robust.astype(jnp.int32), batches, num_batches)

            def loss_and_gradient(points, query):
                """Mean loss [batches], and the gradient of each image's loss."""
                logits, gradient = differentiate(
                    logits_fn, points, model_keys(keys, query), lambda z: jax.vmap(jax.grad(cross_entropy))(z, labels)
                )
                losses = jax.vmap(cross_entropy)(logits, labels)
                total = jax.ops.segment_sum(jnp.where(robust, losses, 0), batches, num_batches)
                return total / jnp.maximum(counts, 1), gradient

            def step(state, index):
                return _checked(moved(state, index), jnp.asarray(windows)[index], batches), None

            def moved(state, index):
                rate = _like(images, state.shared.step_size[batches])
                ascent = jax.vmap(threat_model.norm.ascent)(state.gradient)
                plain = project(images, state.point + rate * ascent)
                inertia = (1 - MOMENTUM) * (state.point - state.previous)
                heavy = project(images, state.point + MOMENTUM * (plain - state.point) + inertia)
                point = jnp.where(index == 0, plain, heavy)
                loss, gradient = loss_and_gradient(point, index + 1)
                shared = state.shared
                rose = jnp.where(index == 0, loss >= shared.best_loss, loss > shared.best_loss)
                moving, is_best = (_like(images, flags[batches]) for flags in (~shared.stopped, rose & ~shared.stopped))
                before = jnp.where(index == 0, images, state.point)
                return State(
                    point=jnp.where(moving, point, state.point),
                    previous=jnp.where(moving, state.point, state.previous),
                    gradient=jnp.where(moving, gradient, state.gradient),
                    best=jnp.where(is_best, point, state.best),
                    before_best=jnp.where(is_best, before, state.before_best),
                    best_gradient=jnp.where(is_best, gradient, state.best_gradient),
                    shared=shared._replace(
                        best_loss=jnp.where(rose, loss, shared.best_loss),
                        rises=shared.rises + rose,
                        stopped=shared.stopped | ((loss == 0) & (index > 0)),
                    ),
                )

            loss, gradient = loss_and_gradient(begin, 0)
            # Not constants, which would not vary over the devices of a surrounding ``shard_map``.
            never = counts < 0
            rates = jnp.where(never, 0, jnp.asarray(step_size, loss.dtype))
            shared = Shared(rates, loss, jnp.zeros_like(counts), rates, loss, never)
            state = State(begin, begin, gradient, begin, images, gradient, shared)
            return jax.lax.scan(step, state, jnp.arange(num_steps))[0].point

        begun = varying_like((images, labels, rngs), (images, jnp.zeros(len(images), jnp.int32)))
        # A restart costs as much for one image as for all; none are made once all images are misclassified.
        _, adversarial, _, steps = jax.lax.while_loop(
            lambda carry: (carry[0] < num_restarts) & jnp.any(carry[2]),
            restart,
            (jnp.int32(0), begun[0], holds(images, rngs), begun[1]),
        )
        logits = evaluate(logits_fn, adversarial, model_keys(rngs, AFTER))
        allowed = jax.vmap(threat_model.contains)(images, adversarial)
        distance = jax.vmap(threat_model.distance)(images, adversarial).astype(jnp.float32)
        return AttackResult(adversarial, logits, (jnp.argmax(logits, axis=-1) != labels) & allowed, distance, steps)

    return attack


def _checked(state: State, window: Array, batches: Array) -> State:
    """The state after a checkpoint, if ``window``, the steps since the last one, is not 0."""
    shared = state.shared
    due = (window > 0) & ~shared.stopped
    unchanged = (shared.step_size == shared.step_size_at_check) & (shared.best_loss == shared.best_loss_at_check)
    halve = due & ((shared.rises < RHO * window) | unchanged)
    step_size = jnp.where(halve, shared.step_size / 2, shared.step_size)
    back = _like(state.point, halve[batches])
    return state._replace(
        point=jnp.where(back, state.best, state.point),
        previous=jnp.where(back, state.before_best, state.previous),
        gradient=jnp.where(back, state.best_gradient, state.gradient),
        shared=shared._replace(
            step_size=step_size,
            rises=jnp.where(due, 0, shared.rises),
            step_size_at_check=jnp.where(due, step_size, shared.step_size_at_check),
            best_loss_at_check=jnp.where(due, shared.best_loss, shared.best_loss_at_check),
        ),
    )


def _windows(num_steps: int) -> np.ndarray:
    """``windows[k]``: steps since the last checkpoint if k is one, else 0."""
    windows, found = np.zeros(num_steps, np.int32), checkpoints(num_steps)
    for previous, checkpoint in itertools.pairwise(found):
        if checkpoint < num_steps:
            windows[checkpoint] = checkpoint - previous
    return windows


def _like(images: Array, flags: Array) -> Array:
    return flags.reshape(flags.shape + (1,) * (images.ndim - 1))
