"""Attacks made from attacks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks import model_queries
from advjax.attacks.base import PREDICTION, keys_per_image, model_keys, varying_like
from advjax.attacks.losses import Aim, next_likely_class
from advjax.attacks.model_queries import Expectation
from advjax.types import Array, AttackFn, AttackResult, Key, LogitsFn

KEEP = {
    "first": lambda old, new: new.success & ~old.success,
    "closest": lambda old, new: new.success & (~old.success | (new.distance < old.distance)),
}
"""Which result of several attacks is kept for an image.

``first``: the first success; for attacks inside a ball.  ``closest``: the success at the smallest distance; for attacks
that minimise it.  Without a success it is the result of the first attack.
"""


class Stage(NamedTuple):
    """An attack in several rounds, from a fresh key or towards another class in each."""

    name: str
    attack: Callable[[Array], AttackFn]
    """``round -> AttackFn`` for the rounds 0, 1, 2, ..., which are traced integers."""
    num_rounds: Callable[[int], int]
    """``number of classes -> number of rounds``."""


def restarts(name: str, attack: AttackFn, num_restarts: int) -> Stage:
    """The same attack in every round."""
    if num_restarts < 1:
        raise ValueError(f"num_restarts must be at least 1, got {num_restarts}")
    return Stage(name, lambda number: attack, lambda num_classes: num_restarts)


def targets(name: str, make_attack: Callable[[Aim], AttackFn], num_targets: int) -> Stage:
    """One round for each of the ``num_targets`` most likely classes besides the label, or for all if they are fewer."""
    if num_targets < 1:
        raise ValueError(f"num_targets must be at least 1, got {num_targets}")
    return Stage(
        name,
        lambda number: make_attack(next_likely_class(number + 1)),
        lambda num_classes: min(num_targets, num_classes - 1),
    )


def with_restarts(attack: AttackFn, num_restarts: int, *, keep: str = "first") -> AttackFn:
    """The attack ``num_restarts`` times, with keys folded from the key of the image and the number of the restart.

    Args:
      attack: any attack; one with ``stop_on_success`` spends no steps on images for which a success is already kept
        (on the ``expectation`` of a stochastic model it does, and what it finds there is not kept).
      num_restarts: how often; the loop is compiled once.
      keep: which result to return, "first" or "closest" (see ``KEEP``).  ``steps`` counts those of all attacks.
    """
    return all_rounds(restarts("restarts", attack, num_restarts), keep=keep)


def over_targets(make_attack: Callable[[Aim], AttackFn], num_targets: int = 9, *, keep: str = "first") -> AttackFn:
    """``make_attack(aim)`` for each of the classes that the model thinks most likely on the clean image.

    The class of the label is not among them, so k classes have at most k - 1 targets.  Success is leaving the label, by
    whichever class.  Example: ``over_targets(lambda aim: auto_pgd(linf(8 / 255), loss="dlr", aim=aim))``.
    """
    return all_rounds(targets("targets", make_attack, num_targets), keep=keep)


def all_rounds(stage: Stage, *, keep: str = "first") -> AttackFn:
    """All rounds of a stage as one attack."""
    rule = _rule(keep)

    def attack(
        logits_fn: LogitsFn | Expectation, images: Array, labels: Array, rng: Key, start: Array | None = None
    ) -> AttackResult:
        rngs = keys_per_image(rng, len(images))

        def step(kept: AttackResult, number: Array) -> tuple[AttackResult, None]:
            run = _begin(stage.attack(number), start)
            new = run(logits_fn, _to_attack(keep, kept, images), labels, fold_in(rngs, number))
            return _merge(lambda old, new: rule(old, new) | (number == 0), kept, new), None

        # One loop from the first round on: the attack is compiled once.
        logits = jax.eval_shape(lambda images: model_queries.evaluate(logits_fn, images, rngs), images)
        nothing = _nothing_yet(jnp.asarray(images), jnp.zeros(logits.shape, logits.dtype))
        numbers = jnp.arange(stage.num_rounds(logits.shape[-1]))
        return jax.lax.scan(step, varying_like((images, labels, rngs), nothing), numbers)[0]

    return attack


def worst_of(*attacks: AttackFn, keep: str = "first") -> AttackFn:
    """Several attacks one after the other, each with its own keys; ``keep`` and ``steps`` as in ``with_restarts``."""
    rule = _rule(keep)
    if not attacks:
        raise ValueError("worst_of needs at least one attack")

    def attack(
        logits_fn: LogitsFn | Expectation, images: Array, labels: Array, rng: Key, start: Array | None = None
    ) -> AttackResult:
        rngs = keys_per_image(rng, len(images))
        kept = _begin(attacks[0], start)(logits_fn, images, labels, fold_in(rngs, 0))
        for number, other in enumerate(attacks[1:], 1):
            shown = _to_attack(keep, kept, images)
            kept = _merge(rule, kept, _begin(other, start)(logits_fn, shown, labels, fold_in(rngs, number)))
        return kept

    return attack


def with_predicted_labels(attack: AttackFn) -> AttackFn:
    """Attack the model's own predictions in place of the labels it is given.

    An image that the model gets wrong is then pushed away from the wrong class, perhaps into the right one: accuracy
    under such an attack can exceed what the same attack with true labels leaves.  ``success`` is about the predictions,
    those of a stochastic model from draws that the attack itself does not see.
    """

    def predicted(
        logits_fn: LogitsFn | Expectation, images: Array, labels: Array, rng: Key, start: Array | None = None
    ) -> AttackResult:
        keys = model_keys(keys_per_image(rng, len(images)), PREDICTION)
        predictions = jnp.argmax(model_queries.evaluate(logits_fn, images, keys), axis=-1)
        return attack(logits_fn, images, predictions, rng, start)

    return predicted


def fold_in(rngs: Key, number: int | Array) -> Key:
    """Keys [n] folded with one number."""
    return jax.vmap(lambda rng: jax.random.fold_in(rng, number))(rngs)


def _begin(attack: AttackFn, start: Array | None) -> AttackFn:
    """The attack from ``start``, for attacks that take one."""
    return attack if start is None else lambda *arguments: attack(*arguments, start)


def _rule(keep: str) -> Callable[[AttackResult, AttackResult], Array]:
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
    return KEEP[keep]


def _to_attack(keep: str, kept: AttackResult, images: Array) -> Array:
    """Where a success will be kept in any case, the adversarial image: attacks that stop do nothing more there."""
    return jnp.where(kept.success[:, None, None, None], kept.images, images) if keep == "first" else images


def _nothing_yet(images: Array, logits: Array) -> AttackResult:
    none = jnp.zeros(len(images), jnp.int32)
    return AttackResult(images, logits, none > 0, none.astype(jnp.float32), none, none > 0)


def _merge(rule, kept: AttackResult, new: AttackResult) -> AttackResult:
    better = rule(kept, new)

    def select(old, new):
        return jnp.where(better.reshape(better.shape + (1,) * (old.ndim - 1)), new, old)

    # Whatever is kept, these are of all attacks.
    common = {"steps": kept.steps + new.steps, "nonfinite": jnp.asarray(kept.nonfinite | new.nonfinite)}
    return jax.tree.map(select, kept._replace(**common), new._replace(**common))
