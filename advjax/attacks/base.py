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

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks import course as courses
from advjax.attacks import input_checks, model_queries
from advjax.attacks.course import Course, Seen
from advjax.attacks.eot import Expectation
from advjax.attacks.keys import AFTER, BEFORE, keys_per_image, model_keys
from advjax.attacks.model_queries import is_fooled
from advjax.attacks.per_image import broadcast, select, varying_like
from advjax.attacks.threat_model import ThreatModel
from advjax.cpu import convolution
from advjax.types import Array, AttackResult, Key, LogitsFn

_MANY_STEPS = 4
"""From so many steps on, transforming the kernels of the model once for all of them pays."""


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
    robustness.  The same goes for images on which an attack made no progress (``AttackResult.progress``).

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
    ascends: bool = False
    """Whether every step is to increase the objective, which is then a scalar: where several steps only decreased it,
    the gradients mislead."""

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
        states, steps, nonfinite, course = self._run(logits_fn, problems, invalid, until_success)
        adversarial = states.best.image
        # Clipping lets NaN through, and no threat model allows it.
        lost = jnp.any(~jnp.isfinite(adversarial), axis=(1, 2, 3))
        if until_success:
            lost |= is_fooled(problems.clean_logits, problems.label, self.targeted)
        adversarial = select(lost, problems.image, adversarial)
        input_checks.warn_of_nonfinite(nonfinite)
        result = self._result(logits_fn, problems, adversarial, steps, nonfinite, invalid)
        result = result._replace(progress=self.progress(course, result.success, steps))
        input_checks.warn_of_no_progress((result.progress == courses.NO_PROGRESS) & ~nonfinite)
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
        """The final states, the numbers of steps taken, which images had nonfinite gradients, and the courses."""
        count, stops_early = len(problems.image), until_success or self.done is not None
        nothing = jnp.zeros(count, jnp.int32)
        states, finished, steps, nonfinite, course = varying_like(
            problems, (jax.vmap(self.init)(problems), nothing > 0, nothing, nothing > 0, courses.begun(count))
        )
        if stops_early:
            finished |= invalid
        if until_success:
            finished |= is_fooled(problems.clean_logits, problems.label, self.targeted)

        def step(carry):
            states, finished, steps, nonfinite, course, index = carry
            moved, seen = self.step(logits_fn, problems, states, index)
            steps += ~finished
            nonfinite |= seen.nonfinite & ~finished
            course = courses.followed(course, seen.loss, seen.guided, index == 0, ~finished)
            if stops_early:
                moved = select(finished, states, moved)
            if until_success:
                finished |= seen.fooled
            if self.done is not None:
                finished |= jax.vmap(self.done)(moved)
            return moved, finished, steps, nonfinite, course, index + 1

        carry = (states, finished, steps, nonfinite, course, jnp.int32(0))
        if stops_early:
            # This loop must not contain a collective: each device stops when its own images are done.
            carry = jax.lax.while_loop(
                lambda carry: (carry[-1] < self.num_steps) & (jnp.sum(carry[1]) < count), step, carry
            )
        else:
            carry, _ = jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=self.num_steps)
        states, finished, steps, nonfinite, course, index = carry
        last, loss = self._last(logits_fn, problems, states, index)
        course = courses.followed(course, loss, jnp.zeros(count, bool), jnp.asarray(False), ~finished)
        return (select(finished, states, last) if stops_early else last), steps, nonfinite, course

    def step(
        self,
        logits_fn: LogitsFn | Expectation,
        problems: Problem,
        states: Any,
        index: Array,
        last: Array | None = None,
    ) -> tuple[Any, Seen]:
        """One step of a batch, for loops over steps.

        Args:
          logits_fn: the model.
          problems: of the images [n].
          states: of the images [n].
          index: number of steps before this one: of all images, or of each [n].
          last: bool [n], images that have taken all their steps: they are observed once more, and not moved.

        Returns:
          The next states, and what the step saw.
        """
        with convolution.repeated() if self.num_steps >= _MANY_STEPS else contextlib.nullcontext():
            return self._step(logits_fn, problems, states, index, last)

    def _step(self, logits_fn, problems, states, index, last) -> tuple[Any, Seen]:
        if self.observe_moves:
            states, fooled, _ = self._observe(logits_fn, problems, states, 2 * index)
            logits, gradients, nonfinite = self._differentiate(logits_fn, problems, states, 2 * index + 1)
            loss = jnp.zeros(len(logits), jnp.float32)
        else:
            logits, gradients, nonfinite = self._differentiate(logits_fn, problems, states, 2 * index + 1)
            states, fooled, loss = self._observed(logits_fn, problems, states, logits)
        guided = jnp.zeros_like(nonfinite)
        if gradients is not None:
            guided = jnp.any(gradients != 0, axis=tuple(range(1, gradients.ndim)))
        moved = jax.vmap(self.move)(problems, states, logits, gradients)
        return (moved if last is None else select(last, states, moved)), Seen(fooled, nonfinite, guided, loss)

    def progress(self, course: Course, fooled: Array, steps: Array) -> Array:
        """int8 [n]: ``AttackResult.progress`` of a course; nothing can change where epsilon is 0."""
        if self.objective is None:
            return jnp.zeros(len(steps), jnp.int8)
        return courses.progress(course, fooled, steps) * (self.threat_model.epsilon > 0)

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
        states, _, loss = self._observe(logits_fn, problems, states, 2 * index + (not self.observe_moves))
        return states, loss

    def _observe(self, logits_fn, problems, states, query):
        logits = model_queries.evaluate(logits_fn, states.point, model_keys(problems.rng, query))
        return self._observed(logits_fn, problems, states, logits)

    def _observed(self, logits_fn, problems, states, logits):
        """The states that have observed the logits of their points, where these fool the model, and their losses."""
        inside = jax.vmap(self.threat_model.contains)(problems.image, states.point)
        fooled = is_fooled(logits, problems.label, self.targeted) & inside
        loss = jnp.zeros(len(logits), jnp.float32)
        # Of a stochastic model, the loss rises and falls by chance.
        if self.objective is not None and self.ascends and not isinstance(logits_fn, Expectation):
            loss = jax.vmap(self.objective)(problems, states, logits).astype(jnp.float32)
        return jax.vmap(self.observe)(problems, states, logits), fooled, loss

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
        states, _ = attack.step(logits_fn, problems, states, index)
        return states, states

    states = varying_like(problems, jax.vmap(attack.init)(problems))
    states, history = jax.lax.scan(step, states, jnp.arange(attack.num_steps))
    last, _ = attack._last(logits_fn, problems, states, attack.num_steps)
    return jax.tree.map(lambda steps, final: jnp.concatenate([steps, final[None]]), history, last)
