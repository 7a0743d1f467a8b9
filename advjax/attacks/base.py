"""What an attack is, and the one loop that drives them all.

An attack is a record of pure functions about ONE image.  It never calls the model: it names the point it wants to know
about (``query``), says which combinations of the logits it wants differentiated there (``cotangents``) and takes the
answer in (``update``).  The driver vmaps these functions, but evaluates the model on the whole batch in its real shape:
one forward pass, and one backward pass per cotangent, per step.  Gradient attacks (one cotangent), DeepFool (one per
candidate class), Carlini-Wagner (per-image binary searches in the state) and query attacks (no cotangent) all fit.  An
attack that decides by the logits where it wants the gradient (FAB) has a ``look`` before each question.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import input_checks, model_queries
from advjax.attacks.model_queries import Expectation
from advjax.attacks.threat_model import ThreatModel
from advjax.types import Array, AttackResult, Key, LogitsFn

BEFORE, AFTER, PREDICTION = 2**32 - 1, 2**32 - 2, 2**32 - 3
"""Numbers of the questions to a model that answers at random: before and after the steps, and for labels to attack."""


class Problem(NamedTuple):
    """What an attack knows about its image."""

    image: Array
    label: Array
    """The class to leave, or to reach if the attack is targeted."""
    rng: Key
    clean_logits: Array
    """Logits of ``image``.  Costs nothing in a jitted attack that does not look at them."""
    start: Array | None
    """Where the caller wants the attack to begin, instead of where it would by itself."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack on one image, callable on a batch.

    ``attack(logits_fn, images, labels, rng, start=None)`` runs ``num_steps`` steps and returns an ``AttackResult``.
    It asks the model ``num_steps + 1`` times; the last answer comes without gradients (zeros) and is only looked at.

    With ``stop_on_success`` an image is left alone from its first success inside the threat model on, an image that is
    misclassified to begin with is returned as it is, and the loop ends when no image is left.  This is for verdicts;
    leave it off to make training examples or transfer sets, where every image deserves the whole attack.  On the
    ``expectation`` of a stochastic model it has no effect: its first success may be luck of the draws, and an image on
    the edge between two classes would be judged by the next ones.

    Gradients that are NaN or infinite are made finite before an attack sees them (``asking.finite``), and an image that
    is not finite all the same is given up for the original.  ``AttackResult.nonfinite`` says on which images gradients
    were so, and outside jit there is a warning: a failure there is no sign of robustness.

    Magnitudes (epsilon, step sizes, rates, constants) may be traced, so an attack can be built inside jit and vmapped
    over epsilon.  What sizes follow from may not: ``num_steps`` and all other counts, the pixel bounds, the
    ``decrease`` of ``carlini_wagner_linf`` and the ``initial_share`` of ``square``.
    """

    threat_model: ThreatModel
    num_steps: int
    init: Callable[[Problem], Any]
    """``problem -> state``"""
    query: Callable[[Any], Array]
    """``state -> image`` to evaluate the model at."""
    cotangents: Callable[[Problem, Any, Array], Array] | None
    """``(problem, state, logits [classes]) -> [k, classes]``; None for an attack without gradients."""
    update: Callable[[Problem, Any, Array, Array], Any]
    """``(problem, state, logits [classes], gradients [k, h, w, c]) -> state``"""
    finalize: Callable[[Problem, Any], Array]
    """``(problem, state) -> adversarial image``"""
    done: Callable[[Any], Array] | None = None
    """``state -> bool``: the attack has nothing left to do on this image."""
    look: Callable[[Problem, Any, Array], Any] | None = None
    """``(problem, state, logits [classes]) -> state``: takes in the logits at the point before the gradients are asked
    for, perhaps somewhere else; one more forward pass per step.  The last answer then only is looked at."""
    targeted: bool = False
    stop_on_success: bool = False

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")

    def __call__(
        self,
        logits_fn: LogitsFn | Expectation,
        images: Array,
        labels: Array,
        rng: Key,
        start: Array | None = None,
    ) -> AttackResult:
        """Attack a batch.

        Args:
          logits_fn: ``images [n, h, w, c] -> logits [n, classes]``, or the ``expectation`` of a stochastic model.
          images: float [n, h, w, c], inside the bounds of the threat model.
          labels: int [n]: the true classes, or the classes to reach if the attack is targeted.
          rng: one key, folded with the position of each image, or one key per image.
          start: optional images to begin from (e.g. an earlier attack's); projected into the threat model.

        Raises:
          ValueError: shapes, dtypes or values make no sense (values are only looked at outside jit).
        """
        if self.stop_on_success and isinstance(logits_fn, Expectation):
            return dataclasses.replace(self, stop_on_success=False)(logits_fn, images, labels, rng, start)
        problems = self._problems(logits_fn, images, labels, rng, start)
        states, steps, nonfinite = self._run(logits_fn, problems)
        adversarial = jax.vmap(self.finalize)(problems, states)
        # Clipping lets NaN through, and no threat model allows it.
        lost = jnp.any(~jnp.isfinite(adversarial), axis=(1, 2, 3))
        adversarial = jnp.where(_per_image(lost, adversarial), images, adversarial)
        if self.stop_on_success:
            wrong = self._fooled(problems.clean_logits, labels)
            adversarial = jnp.where(_per_image(wrong, adversarial), images, adversarial)
        input_checks.warn_of_nonfinite(nonfinite)
        return self._result(logits_fn, problems, adversarial, steps, nonfinite)

    def _problems(self, logits_fn, images, labels, rng, start) -> Problem:
        input_checks.check_inputs(images, labels, self.threat_model.bounds)
        rngs = keys_per_image(rng, len(images))
        clean_logits = model_queries.evaluate(logits_fn, images, model_keys(rngs, BEFORE))
        input_checks.check_logits(clean_logits, images, labels)
        labels = jnp.asarray(labels, jnp.int32)
        if start is not None:
            start = jax.vmap(self.threat_model.project)(images, start)
        return Problem(images, labels, rngs, clean_logits, start)

    def _run(self, logits_fn, problems):
        count = len(problems.image)
        nothing = jnp.zeros(count, jnp.int32)
        states, finished, steps, nonfinite = varying_like(
            problems, (jax.vmap(self.init)(problems), nothing > 0, nothing, nothing > 0)
        )
        if self.stop_on_success:
            finished = self._fooled(problems.clean_logits, problems.label)

        def step(carry):
            states, finished, steps, nonfinite, index = carry
            updated, fooled, unusable = self._step(logits_fn, problems, states, index)
            steps += ~finished
            nonfinite |= unusable & ~finished
            if self._stops_early:
                updated = _where(finished, states, updated)
            if self.stop_on_success:
                finished |= fooled
            if self.done is not None:
                finished |= jax.vmap(self.done)(updated)
            return updated, finished, steps, nonfinite, index + 1

        carry = (states, finished, steps, nonfinite, jnp.int32(0))
        if self._stops_early:
            # No collective may stand in this loop: each device stops when its own images are done.
            carry = jax.lax.while_loop(
                lambda carry: (carry[-1] < self.num_steps) & (jnp.sum(carry[1]) < count), step, carry
            )
        else:
            carry, _ = jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=self.num_steps)
        states, finished, steps, nonfinite, index = carry
        last = self._last(logits_fn, problems, states, index)
        return (_where(finished, states, last) if self._stops_early else last), steps, nonfinite

    @property
    def _stops_early(self) -> bool:
        return self.stop_on_success or self.done is not None

    def _step(self, logits_fn, problems, states, index):
        """The next states; where the model has been fooled, at the look or else at the only point of the step; where
        its gradients were not finite.
        """
        fooled = None
        if self.look is not None:
            states, fooled = self._looked(logits_fn, problems, states, 2 * index)
        points, rngs = jax.vmap(self.query)(states), model_keys(problems.rng, 2 * index + 1)
        if self.cotangents is None:
            logits = model_queries.evaluate(logits_fn, points, rngs)
            gradients = jnp.zeros((len(points), 0, *points.shape[1:]), points.dtype)
        else:
            wanted = jax.vmap(self.cotangents)
            logits, gradients = model_queries.differentiate(
                logits_fn, points, rngs, lambda logits: wanted(problems, states, logits)
            )
        gradients, nonfinite = model_queries.finite(gradients)
        updated = jax.vmap(self.update)(problems, states, logits, gradients)
        if self.look is None:
            fooled = self._fooled_inside(problems, points, logits)
        return updated, fooled, nonfinite

    def _looked(self, logits_fn, problems, states, number):
        points = jax.vmap(self.query)(states)
        logits = model_queries.evaluate(logits_fn, points, model_keys(problems.rng, number))
        assert self.look is not None
        looked = jax.vmap(self.look)(problems, states, logits)
        return looked, self._fooled_inside(problems, points, logits)

    def _last(self, logits_fn, problems, states, index):
        """The last answer: the model's logits, and zeros in place of gradients that nobody would use."""
        if self.look is not None:
            return self._looked(logits_fn, problems, states, 2 * index)[0]
        points = jax.vmap(self.query)(states)
        logits = model_queries.evaluate(logits_fn, points, model_keys(problems.rng, 2 * index + 1))
        count = 0
        if self.cotangents is not None:
            count = jax.eval_shape(jax.vmap(self.cotangents), problems, states, logits).shape[1]
        gradients = jnp.zeros((len(points), count, *points.shape[1:]), points.dtype)
        return jax.vmap(self.update)(problems, states, logits, gradients)

    def _fooled_inside(self, problems, points, logits):
        return self._fooled(logits, problems.label) & jax.vmap(self.threat_model.contains)(problems.image, points)

    def _fooled(self, logits, labels):
        return (jnp.argmax(logits, axis=-1) == labels) == self.targeted

    def _result(self, logits_fn, problems, adversarial, steps, nonfinite) -> AttackResult:
        logits = model_queries.evaluate(logits_fn, adversarial, model_keys(problems.rng, AFTER))
        allowed = jax.vmap(self.threat_model.contains)(problems.image, adversarial)
        distance = jax.vmap(self.threat_model.distance)(problems.image, adversarial)
        success = self._fooled(logits, problems.label) & allowed
        return AttackResult(adversarial, logits, success, distance.astype(jnp.float32), steps, nonfinite)


def trajectory(
    attack: Attack,
    logits_fn: LogitsFn | Expectation,
    images: Array,
    labels: Array,
    rng: Key,
    start: Array | None = None,
) -> Any:
    """The attack's states after each of its ``num_steps + 1`` updates, stacked on a new first axis.

    For looking inside an attack (losses, step sizes, checkpoints); no image is stopped early.
    """
    problems = attack._problems(logits_fn, images, labels, rng, start)

    def step(states, index):
        states, _, _ = attack._step(logits_fn, problems, states, index)
        return states, states

    states = varying_like(problems, jax.vmap(attack.init)(problems))
    return jax.lax.scan(step, states, jnp.arange(attack.num_steps + 1))[1]


class Kept(NamedTuple):
    """The point that an attack would return if it ended now."""

    image: Array
    loss: Array
    success: Array


def first_kept(image: Array, loss_dtype: jnp.dtype) -> Kept:
    """Nothing observed yet: ``image`` is what the attack falls back on.  Losses have the dtype of the logits."""
    return Kept(image, jnp.asarray(-jnp.inf, loss_dtype), jnp.asarray(False))


KEEP_RULES: dict[str, Callable[[Kept, Kept], Array]] = {
    "best": lambda old, new: (new.success & ~old.success) | ((new.success == old.success) & (new.loss > old.loss)),
    "highest_loss": lambda old, new: new.loss > old.loss,
    "latest_success": lambda old, new: new.success,
    "last": lambda old, new: jnp.asarray(True),
}
"""Which of the observed points an attack returns: ``returns`` names one of these rules.

``best``: the highest loss among the successful points, or among all if there is none.  ``highest_loss``: whatever the
prediction.  ``latest_success``: the latest successful point, else the start (AutoAttack's rule).  ``last``: the last.
"""


def keep_rule(returns: str) -> Callable[[Kept, Kept], Kept]:
    """The function ``(old, new) -> kept`` named by ``returns``."""
    if returns not in KEEP_RULES:
        raise ValueError(f"returns must be one of {', '.join(KEEP_RULES)}, got {returns!r}")
    rule = KEEP_RULES[returns]
    return lambda old, new: jax.tree.map(lambda a, b: jnp.where(rule(old, new), b, a), old, new)


def keys_per_image(rng: Key, count: int) -> Key:
    """One key per image: ``rng`` itself if it already is an array of keys, else folded with the position."""
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    if rng.ndim == 0:
        return jax.vmap(lambda position: jax.random.fold_in(rng, position))(np.arange(count))
    if rng.shape != (count,):
        raise ValueError(f"rng must be one key or one key per image ({count}), got an array of shape {rng.shape}")
    return rng


def image_keys(rng: Key, index: Array | np.ndarray) -> Key:
    """One key per image, ``fold_in(rng, i)`` for its index i in the dataset, whatever its position in a batch."""
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)


def model_keys(rngs: Key, question: int | Array) -> Key:
    """Keys for the model's own randomness, apart from those that attacks derive from ``rngs``."""
    return jax.vmap(lambda rng: jax.random.fold_in(jax.random.fold_in(rng, 0x6D6F64), question))(rngs)


def _per_image(flags: Array, like: Array) -> Array:
    return flags.reshape(flags.shape + (1,) * (like.ndim - flags.ndim))


def _where(flags: Array, if_true: Any, if_false: Any) -> Any:
    def select(a, b):
        return jnp.where(_per_image(flags, a), a, b)

    return jax.tree.map(select, if_true, if_false)


def varying_like(known: Any, tree: Any) -> Any:
    """``tree``, varying over the devices of a surrounding ``shard_map`` wherever the arrays [n, ...] in ``known`` do.

    Loops want the types of their carry unchanged, and a state that starts as a constant is the same on all devices.
    """
    leaves = [_key_data(leaf) for leaf in jax.tree.leaves(known)]
    zeros = (jnp.zeros_like(leaf[(slice(None), *[0] * (leaf.ndim - 1))], jnp.int32) for leaf in leaves)
    never = sum(zeros, start=jnp.int32(0))
    return _where(never > 0, tree, tree)


def _key_data(leaf: Array) -> Array:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
