"""The attack interface, and the loop that runs every attack.

An attack is a record of pure functions of ONE image.  It never calls the model.  It keeps a state with a ``point``,
where the model is evaluated next, and a ``best``, whose image is returned.  Each step evaluates the model at the point,
lets the attack ``observe`` the logits, and lets it ``move`` the point along the gradient of its ``objective``:

    init -> (observe -> move) x num_steps -> observe

The loop vmaps these functions over the images but evaluates the model on the whole batch, in its real shape: one
forward pass per step, and one backward pass for each function that the objective returns.  That covers gradient attacks
(a scalar objective), DeepFool and FAB (one function for each class), Carlini-Wagner (with a binary search per image in
the state) and query attacks (no objective).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks import input_checks, model_queries
from advjax.attacks.eot import Expectation
from advjax.attacks.keys import AFTER, BEFORE, keys_per_image, model_keys
from advjax.attacks.model_queries import is_fooled
from advjax.attacks.per_image import broadcast, select, varying_like
from advjax.attacks.threat_model import ThreatModel
from advjax.types import Array, AttackResult, Key, LogitsFn


class Problem(NamedTuple):
    """What an attack knows about its image."""

    image: Array
    label: Array
    """The class to leave, or the class to reach if the attack is targeted."""
    rng: Key
    clean_logits: Array
    """Logits of ``image``.  A jitted attack that does not use them does not compute them."""
    start: Array | None
    """Where the caller wants the attack to start; None lets the attack choose."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack on one image, callable on a batch.

    ``attack(logits_fn, images, labels, rng, start=None, until_success=False)`` returns an ``AttackResult``.

    Gradients that are NaN or infinite are made finite before an attack sees them (``model_queries.finite``), and an
    adversarial image that is not finite is replaced by the original.  ``AttackResult.nonfinite`` marks the images whose
    gradients were affected, and outside jit there is a warning: failing to fool the model there is no evidence of
    robustness.  The same goes for images that an attack in a ball returns unchanged.

    Magnitudes (epsilon, step sizes, learning rates, constants) may be traced, so an attack can be built inside jit and
    vmapped over epsilon.  Whatever determines shapes or the structure of the program may not: ``num_steps`` and all
    other counts, the pixel bounds, the ``decrease`` of ``carlini_wagner_linf`` and the ``initial_share`` of ``square``.
    """

    threat_model: ThreatModel
    num_steps: int
    init: Callable[[Problem], Any]
    """``problem -> state`` with attributes ``point``, an image, and ``best``, a record with an ``image``."""
    objective: Callable[[Problem, Any, Array], Array] | None
    """``(problem, state, logits [classes]) -> scalar or [k]``: what is differentiated with respect to ``state.point``;
    None for an attack without gradients."""
    observe: Callable[[Problem, Any, Array], Any]
    """``(problem, state, logits [classes]) -> state``, called at each of the ``num_steps + 1`` points."""
    move: Callable[[Problem, Any, Array, Any], Any]
    """``(problem, state, logits [classes], gradient) -> state``, called ``num_steps`` times, after ``observe``.  The
    gradient has shape [h, w, c], or [k, h, w, c] for an objective of shape [k]; None without an objective."""
    done: Callable[[Any], Array] | None = None
    """``state -> bool``, checked after each step: the attack has nothing left to do on this image."""
    targeted: bool = False
    observe_moves: bool = False
    """Whether ``observe`` may change the point.  The model is then evaluated once more per step, so that the logits and
    gradients passed to ``move`` are those of the new point."""

    def __post_init__(self):
        input_checks.require_count("num_steps", self.num_steps)

    def __call__(
        self,
        logits_fn: LogitsFn | Expectation,
        images: Array,
        labels: Array,
        rng: Key,
        start: Array | None = None,
        until_success: bool = False,
    ) -> AttackResult:
        """Attacks a batch.

        Args:
          logits_fn: ``images [n, h, w, c] -> logits [n, classes]``, or the ``expectation`` of a stochastic model.
          images: float [n, h, w, c], inside the bounds of the threat model.
          labels: int [n], the true classes, or the classes to reach if the attack is targeted.
          rng: one key, folded with the position of each image, or one key per image.
          start: optional images to start from, such as the result of another attack; projected into the threat model.
          until_success: stop attacking an image at its first success inside the threat model, return images that are
            misclassified to begin with unchanged, and end the loop when no image is left.  Use it for verdicts; leave
            it off for training examples and transfer sets, where every image should get the full attack.  It has no
            effect on an ``expectation``, where the first success may be due to lucky draws.

        Raises:
          ValueError: wrong shapes; outside jit also values that the attack cannot handle.  Under jit, where values are
            not known, such images are marked instead: see ``AttackResult.invalid``.
          TypeError: not arrays, not a key, or logits that are not one floating-point array.
        """
        logits_fn = model_queries.traced_once(logits_fn)
        until_success = until_success and not isinstance(logits_fn, Expectation)
        problems, invalid = self._problems(logits_fn, images, labels, rng, start)
        states, steps, nonfinite = self._run(logits_fn, problems, invalid, until_success)
        adversarial = states.best.image
        # Clipping lets NaN through, and no threat model allows it.
        lost = jnp.any(~jnp.isfinite(adversarial), axis=(1, 2, 3))
        if until_success:
            lost |= is_fooled(problems.clean_logits, problems.label, self.targeted)
        adversarial = select(lost, problems.image, adversarial)
        input_checks.warn_of_nonfinite(nonfinite)
        result = self._result(logits_fn, problems, adversarial, steps, nonfinite, invalid)
        if self.objective is not None and self.threat_model.is_bounded:
            unchanged = jnp.all(adversarial == problems.image, axis=(1, 2, 3))
            input_checks.warn_of_unchanged(unchanged & ~result.success, self.threat_model.epsilon)
        return result

    def _problems(self, logits_fn, images, labels, rng, start) -> tuple[Problem, Array]:
        """The problems, and which of them are invalid."""
        images, labels = input_checks.as_array("images", images), input_checks.as_array("labels", labels)
        input_checks.check_inputs(images, labels, self.threat_model.bounds)
        rngs = keys_per_image(rng, len(images))
        images = jnp.asarray(images)
        allowed = jax.vmap(self.threat_model.allows)(images)
        images = jnp.clip(images, *self.threat_model.bounds)
        clean_logits = model_queries.evaluate(logits_fn, images, model_keys(rngs, BEFORE))
        input_checks.check_logits(clean_logits, images, labels)
        labels = jnp.asarray(labels, jnp.int32)
        invalid = ~allowed | jnp.any(jnp.isnan(clean_logits), axis=-1)
        invalid |= (labels < 0) | (labels >= clean_logits.shape[-1])
        if start is not None:
            start = input_checks.check_start(start, images)
            invalid |= jnp.any(~jnp.isfinite(start), axis=(1, 2, 3))
            start = jax.vmap(self.threat_model.project)(images, start)
        return Problem(images, labels, rngs, clean_logits, start), invalid

    def _run(self, logits_fn, problems, invalid, until_success):
        """The final states, the number of steps taken, and which images had nonfinite gradients."""
        count, stops_early = len(problems.image), until_success or self.done is not None
        nothing = jnp.zeros(count, jnp.int32)
        states, finished, steps, nonfinite = varying_like(
            problems, (jax.vmap(self.init)(problems), nothing > 0, nothing, nothing > 0)
        )
        if stops_early:
            finished |= invalid
        if until_success:
            finished |= is_fooled(problems.clean_logits, problems.label, self.targeted)

        def step(carry):
            states, finished, steps, nonfinite, index = carry
            moved, fooled, unusable = self.step(logits_fn, problems, states, index)
            steps += ~finished
            nonfinite |= unusable & ~finished
            if stops_early:
                moved = select(finished, states, moved)
            if until_success:
                finished |= fooled
            if self.done is not None:
                finished |= jax.vmap(self.done)(moved)
            return moved, finished, steps, nonfinite, index + 1

        carry = (states, finished, steps, nonfinite, jnp.int32(0))
        if stops_early:
            # This loop must not contain a collective: each device stops when its own images are done.
            carry = jax.lax.while_loop(
                lambda carry: (carry[-1] < self.num_steps) & (jnp.sum(carry[1]) < count), step, carry
            )
        else:
            carry, _ = jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=self.num_steps)
        states, finished, steps, nonfinite, index = carry
        last = self._last(logits_fn, problems, states, index)
        return (select(finished, states, last) if stops_early else last), steps, nonfinite

    def step(
        self,
        logits_fn: LogitsFn | Expectation,
        problems: Problem,
        states: Any,
        index: Array,
        last: Array | None = None,
    ) -> tuple[Any, Array, Array]:
        """One step of a batch, for loops over steps.

        Args:
          logits_fn: the model.
          problems: of the images [n].
          states: of the images [n].
          index: number of steps before this one: of all images, or of each [n].
          last: bool [n], images that have taken all their steps: they are observed once more, and not moved.

        Returns:
          The next states, where the observed points fool the model, and where the gradients were not finite.
        """
        if self.observe_moves:
            states, fooled = self._observe(logits_fn, problems, states, 2 * index)
            logits, gradients, nonfinite = self._differentiate(logits_fn, problems, states, 2 * index + 1)
        else:
            logits, gradients, nonfinite = self._differentiate(logits_fn, problems, states, 2 * index + 1)
            states, fooled = self._observed(problems, states, logits)
        moved = jax.vmap(self.move)(problems, states, logits, gradients)
        return (moved if last is None else select(last, states, moved)), fooled, nonfinite

    def _differentiate(self, logits_fn, problems, states, query):
        """Logits and gradients at the states' points, and where the gradients were not finite."""
        points, rngs = states.point, model_keys(problems.rng, query)
        if self.objective is None:
            return model_queries.evaluate(logits_fn, points, rngs), None, jnp.zeros(len(points), bool)
        derivatives = jax.vmap(jax.jacrev(self.objective, argnums=2))
        logits, gradients = model_queries.differentiate(
            logits_fn, points, rngs, lambda logits: derivatives(problems, states, logits)
        )
        return logits, *model_queries.finite(gradients)

    def _last(self, logits_fn, problems, states, index):
        return self._observe(logits_fn, problems, states, 2 * index + (not self.observe_moves))[0]

    def _observe(self, logits_fn, problems, states, query):
        logits = model_queries.evaluate(logits_fn, states.point, model_keys(problems.rng, query))
        return self._observed(problems, states, logits)

    def _observed(self, problems, states, logits):
        """The states that have observed the logits of their points, and where these fool the model."""
        inside = jax.vmap(self.threat_model.contains)(problems.image, states.point)
        fooled = is_fooled(logits, problems.label, self.targeted) & inside
        return jax.vmap(self.observe)(problems, states, logits), fooled

    def _result(self, logits_fn, problems, adversarial, steps, nonfinite, invalid) -> AttackResult:
        logits = model_queries.evaluate(logits_fn, adversarial, model_keys(problems.rng, AFTER))
        allowed = jax.vmap(self.threat_model.contains)(problems.image, adversarial)
        distance = jax.vmap(self.threat_model.distance)(problems.image, adversarial).astype(jnp.float32)
        success = is_fooled(logits, problems.label, self.targeted) & allowed
        adversarial, logits, distance = (
            jnp.where(broadcast(invalid, values), jnp.nan, values) for values in (adversarial, logits, distance)
        )
        return AttackResult(adversarial, logits, success | invalid, distance, steps, nonfinite, invalid)


def trajectory(
    attack: Attack,
    logits_fn: LogitsFn | Expectation,
    images: Array,
    labels: Array,
    rng: Key,
    start: Array | None = None,
) -> Any:
    """The attack's states after each of its ``num_steps`` steps and after the last observation, on a new first axis.

    For inspecting an attack (losses, step sizes, checkpoints); no image is stopped early.
    """
    logits_fn = model_queries.traced_once(logits_fn)
    problems, _ = attack._problems(logits_fn, images, labels, rng, start)

    def step(states, index):
        states, _, _ = attack.step(logits_fn, problems, states, index)
        return states, states

    states = varying_like(problems, jax.vmap(attack.init)(problems))
    states, history = jax.lax.scan(step, states, jnp.arange(attack.num_steps))
    last = attack._last(logits_fn, problems, states, attack.num_steps)
    return jax.tree.map(lambda steps, final: jnp.concatenate([steps, final[None]]), history, last)
