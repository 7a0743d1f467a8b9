"""What an attack is, and the one loop that drives them all.

An attack is a record of pure functions about ONE image.  It never calls the model: it names the point it wants to know
about (``query``), says which combinations of the logits it wants differentiated there (``cotangents``) and takes the
answer in (``update``).  The driver vmaps these functions, but evaluates the model on the whole batch in its real shape:
one forward pass, and one backward pass per cotangent, per step.  Gradient attacks (one cotangent), DeepFool (one per
candidate class), Carlini-Wagner (per-image binary searches in the state) and query attacks (no cotangent) all fit.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import checks
from advjax.attacks.threat_model import ThreatModel
from advjax.types import Array, AttackResult, Key, LogitsFn


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

    With ``stop_on_success`` an image is left alone from its first success on, an image that is misclassified to begin
    with is returned as it is, and the loop ends when no image is left.  This is for verdicts; leave it off to make
    training examples or transfer sets, where every image deserves the whole attack.

    Everything but ``num_steps`` and the functions themselves may be traced, so an attack can be built inside jit and
    vmapped over epsilon.
    """

    threat_model: ThreatModel
    num_steps: int
    init: Callable[[Problem], Any]
    """``problem -> state``"""
    query: Callable[[Any], Array]
    """``state -> image`` to evaluate the model at; always allowed by the threat model."""
    cotangents: Callable[[Problem, Any, Array], Array] | None
    """``(problem, state, logits [classes]) -> [k, classes]``; None for an attack without gradients."""
    update: Callable[[Problem, Any, Array, Array], Any]
    """``(problem, state, logits [classes], gradients [k, h, w, c]) -> state``"""
    finalize: Callable[[Problem, Any], Array]
    """``(problem, state) -> adversarial image``"""
    done: Callable[[Any], Array] | None = None
    """``state -> bool``: the attack has nothing left to do on this image."""
    targeted: bool = False
    stop_on_success: bool = False

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")

    def __call__(
        self, logits_fn: LogitsFn, images: Array, labels: Array, rng: Key, start: Array | None = None
    ) -> AttackResult:
        """Attack a batch.

        Args:
          logits_fn: ``images [n, h, w, c] -> logits [n, classes]``.
          images: float [n, h, w, c], inside the bounds of the threat model.
          labels: int [n]: the true classes, or the classes to reach if the attack is targeted.
          rng: one key, folded with the position of each image, or one key per image.
          start: optional images to begin from (e.g. an earlier attack's); projected into the threat model.

        Raises:
          ValueError: shapes, dtypes or values make no sense (values are only looked at outside jit).
        """
        problems = self._problems(logits_fn, images, labels, rng, start)
        states, steps = self._run(logits_fn, problems)
        adversarial = jax.vmap(self.finalize)(problems, states)
        if self.stop_on_success:
            wrong = self._fooled(problems.clean_logits, labels)
            adversarial = jnp.where(_per_image(wrong, adversarial), images, adversarial)
        return self._result(logits_fn, problems, adversarial, steps)

    def _problems(self, logits_fn, images, labels, rng, start) -> Problem:
        checks.check_inputs(images, labels, self.threat_model.bounds)
        labels = jnp.asarray(labels, jnp.int32)
        clean_logits = logits_fn(images)
        checks.check_logits(clean_logits, images, labels)
        if start is not None:
            start = jax.vmap(self.threat_model.project)(images, start)
        return Problem(images, labels, keys_per_image(rng, len(images)), clean_logits, start)

    def _run(self, logits_fn, problems):
        count = len(problems.image)
        states, finished, zeros = _varying_like(
            problems, (jax.vmap(self.init)(problems), jnp.zeros(count, bool), jnp.zeros(count, jnp.int32))
        )
        if self.stop_on_success:
            finished = self._fooled(problems.clean_logits, problems.label)

        def step(carry):
            states, finished, steps, index = carry
            logits, gradients = self._ask(logits_fn, problems, states)
            updated = self._update(problems, states, logits, gradients)
            if self._stops_early:
                updated = _where(finished, states, updated)
            return updated, self._finished(finished, problems, updated, logits), steps + ~finished, index + 1

        carry = (states, finished, zeros, jnp.int32(0))
        if self._stops_early:
            # No collective may stand in this loop: each device stops when its own images are done.
            carry = jax.lax.while_loop(
                lambda carry: (carry[3] < self.num_steps) & (jnp.sum(carry[1]) < count), step, carry
            )
        else:
            carry, _ = jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=self.num_steps)
        states, finished, steps, _ = carry
        last = self._look(logits_fn, problems, states)
        return (_where(finished, states, last) if self._stops_early else last), steps

    @property
    def _stops_early(self) -> bool:
        return self.stop_on_success or self.done is not None

    def _ask(self, logits_fn, problems, states):
        points = jax.vmap(self.query)(states)
        if self.cotangents is None:
            return logits_fn(points), jnp.zeros((len(points), 0, *points.shape[1:]), points.dtype)
        logits, pullback = jax.vjp(logits_fn, points)
        cotangents = jax.vmap(self.cotangents)(problems, states, logits).astype(logits.dtype)
        if cotangents.shape[1] == 1:
            return logits, pullback(cotangents[:, 0])[0][:, None]
        return logits, jax.vmap(pullback, in_axes=1, out_axes=1)(cotangents)[0]

    def _look(self, logits_fn, problems, states):
        """The last answer: the model's logits, and zeros in place of gradients that nobody would use."""
        points = jax.vmap(self.query)(states)
        logits = logits_fn(points)
        count = 0
        if self.cotangents is not None:
            count = jax.eval_shape(jax.vmap(self.cotangents), problems, states, logits).shape[1]
        gradients = jnp.zeros((len(points), count, *points.shape[1:]), points.dtype)
        return self._update(problems, states, logits, gradients)

    def _update(self, problems, states, logits, gradients):
        return jax.vmap(self.update)(problems, states, logits, gradients)

    def _finished(self, finished, problems, states, logits):
        if self.stop_on_success:
            finished |= self._fooled(logits, problems.label)
        if self.done is not None:
            finished |= jax.vmap(self.done)(states)
        return finished

    def _fooled(self, logits, labels):
        return (jnp.argmax(logits, axis=-1) == labels) == self.targeted

    def _result(self, logits_fn, problems, adversarial, steps) -> AttackResult:
        logits = logits_fn(adversarial)
        allowed = jax.vmap(self.threat_model.contains)(problems.image, adversarial)
        distance = jax.vmap(self.threat_model.distance)(problems.image, adversarial)
        success = self._fooled(logits, problems.label) & allowed
        return AttackResult(adversarial, logits, success, distance.astype(jnp.float32), steps)


def trajectory(
    attack: Attack, logits_fn: LogitsFn, images: Array, labels: Array, rng: Key, start: Array | None = None
) -> Any:
    """The attack's states after each of its ``num_steps + 1`` updates, stacked on a new first axis.

    For looking inside an attack (losses, step sizes, checkpoints); no image is stopped early.
    """
    problems = attack._problems(logits_fn, images, labels, rng, start)

    def step(states, _):
        states = attack._update(problems, states, *attack._ask(logits_fn, problems, states))
        return states, states

    states = _varying_like(problems, jax.vmap(attack.init)(problems))
    return jax.lax.scan(step, states, length=attack.num_steps + 1)[1]


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
prediction.  ``latest_success``: the latest successful point, else the start (AutoAttack's rule).  ``last``: the last one.
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


def _per_image(flags: Array, like: Array) -> Array:
    return flags.reshape(flags.shape + (1,) * (like.ndim - flags.ndim))


def _where(flags: Array, if_true: Any, if_false: Any) -> Any:
    def select(a, b):
        return jnp.where(_per_image(flags, a), a, b)

    return jax.tree.map(select, if_true, if_false)


def _varying_like(problems: Problem, tree: Any) -> Any:
    """``tree``, varying over the devices of a surrounding ``shard_map`` wherever the problems do.

    Loops want the types of their carry unchanged, and a state that starts as a constant is the same on all devices.
    """
    known = jax.tree.leaves(problems._replace(rng=jax.random.key_data(problems.rng)))
    never = sum(jnp.zeros_like(leaf[(slice(None), *[0] * (leaf.ndim - 1))], jnp.int32) for leaf in known)
    return _where(never > 0, tree, tree)
