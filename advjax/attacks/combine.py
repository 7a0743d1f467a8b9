"""Attacks built from other attacks."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks import model_queries
from advjax.attacks.course import NO_PROGRESS
from advjax.attacks.eot import Expectation
from advjax.attacks.input_checks import (
    as_array,
    refuse_invalid,
    require_count,
    warn_of_no_progress,
    warn_of_nonfinite,
)
from advjax.attacks.keys import PREDICTION, fold_in, keys_per_image, model_keys
from advjax.attacks.losses import Aim, next_likely_class
from advjax.attacks.per_image import broadcast, varying_like
from advjax.types import Array, AttackFn, AttackResult, Key, LogitsFn

KEEP = {
    "first": lambda old, new: new.success & ~old.success,
    "closest": lambda old, new: new.success & (~old.success | (new.distance < old.distance)),
}
"""Which result of several attacks is kept for an image.

``first``: the first success, for attacks inside a ball.  ``closest``: the success at the smallest distance, for attacks
that minimize it.  Without any success, the result of the first attack is kept.
"""


PARTS = "advjax_parts"
"""Attribute of an attack built from others: these others."""


class Stage(NamedTuple):
    """An attack in several rounds, each with a fresh key or towards another class."""

    name: str
    attack: Callable[[Array], AttackFn]
    """``round -> AttackFn`` for the rounds 0, 1, 2, ..., which are traced integers."""
    num_rounds: Callable[[int], int]
    """``number of classes -> number of rounds``."""


def restarts(name: str, attack: AttackFn, num_restarts: int) -> Stage:
    """A stage with the same attack in every round."""
    require_count("num_restarts", num_restarts)
    return Stage(name, lambda number: attack, lambda num_classes: num_restarts)


def targets(name: str, make_attack: Callable[[Aim], AttackFn], num_targets: int) -> Stage:
    """A stage with a round for each of the ``num_targets`` most likely classes besides the label, as far as they go."""
    require_count("num_targets", num_targets)
    if is_targeted(make_attack(next_likely_class(1))):
        raise ValueError("attacks over several targets must be untargeted, and aim at the classes that they are given")
    return Stage(
        name,
        lambda number: make_attack(next_likely_class(number + 1)),
        lambda num_classes: min(num_targets, num_classes - 1),
    )


def with_restarts(attack: AttackFn, num_restarts: int, *, keep: str = "first") -> AttackFn:
    """Runs the attack ``num_restarts`` times, with keys folded from the image's key and the number of the restart.

    With ``until_success``, no steps are spent on images for which a success has already been kept (except on the
    ``expectation`` of a stochastic model).

    Args:
      attack: any attack.
      num_restarts: number of runs; the loop is compiled once.
      keep: which result to return, "first" or "closest" (see ``KEEP``).  ``steps`` counts the steps of all runs.
    """
    return all_rounds(restarts("restarts", attack, num_restarts), keep=keep)


def over_targets(make_attack: Callable[[Aim], AttackFn], num_targets: int = 9, *, keep: str = "first") -> AttackFn:
    """Runs ``make_attack(aim)`` for each of the most likely classes on the clean image, besides the label.

    With k classes there are at most k - 1 targets.  Any misclassification counts as success, so that the attacks must
    not be targeted.

    Example::

        over_targets(lambda aim: auto_pgd(linf(8 / 255), loss="dlr", aim=aim))
    """
    return all_rounds(targets("targets", make_attack, num_targets), keep=keep)


def all_rounds(stage: Stage, *, keep: str = "first") -> AttackFn:
    """All rounds of a stage as one attack."""
    rule = _rule(keep)
    # Only the builder of an attack looks at its round.
    part = stage.attack(jnp.int32(0))

    def attack(
        logits_fn: LogitsFn | Expectation,
        images: Array,
        labels: Array,
        rng: Key,
        start: Array | None = None,
        until_success: bool = False,
    ) -> AttackResult:
        logits_fn = model_queries.traced_once(logits_fn)
        images, labels = as_array("images", images), as_array("labels", labels)
        rngs = keys_per_image(rng, len(images))

        def step(kept: AttackResult, number: Array) -> tuple[AttackResult, None]:
            shown, keys = _to_attack(keep, kept, images), fold_in(rngs, number)
            new = call_attack(stage.attack(number), logits_fn, shown, labels, keys, start, until_success)
            return _merge(lambda old, new: rule(old, new) | (number == 0), kept, new), None

        # A single loop, including the first round, so that the attack is compiled once.
        logits = jax.eval_shape(lambda images: model_queries.evaluate(logits_fn, images, rngs), images)
        nothing = _nothing_yet(jnp.asarray(images), jnp.zeros(logits.shape, logits.dtype))
        numbers = jnp.arange(stage.num_rounds(logits.shape[-1]))
        result = jax.lax.scan(step, varying_like((images, labels, rngs), nothing), numbers)[0]
        refuse_invalid(result.invalid)
        nonfinite = jnp.asarray(result.nonfinite)
        warn_of_nonfinite(nonfinite)
        warn_of_no_progress((result.progress == NO_PROGRESS) & ~nonfinite)
        return result

    return made_of(attack, part)


def worst_of(*attacks: AttackFn, keep: str = "first") -> AttackFn:
    """Runs several attacks in order, each with its own keys; ``keep`` and ``steps`` are as in ``with_restarts``."""
    rule = _rule(keep)
    if not attacks:
        raise ValueError("worst_of needs at least one attack")
    if len({is_targeted(part) for part in attacks}) > 1:
        raise ValueError("worst_of needs attacks that are all targeted or all untargeted: labels mean one thing")

    def attack(
        logits_fn: LogitsFn | Expectation,
        images: Array,
        labels: Array,
        rng: Key,
        start: Array | None = None,
        until_success: bool = False,
    ) -> AttackResult:
        logits_fn = model_queries.traced_once(logits_fn)
        images, labels = as_array("images", images), as_array("labels", labels)
        rngs = keys_per_image(rng, len(images))
        kept = call_attack(attacks[0], logits_fn, images, labels, fold_in(rngs, 0), start, until_success)
        for number, other in enumerate(attacks[1:], 1):
            shown, keys = _to_attack(keep, kept, images), fold_in(rngs, number)
            kept = _merge(rule, kept, call_attack(other, logits_fn, shown, labels, keys, start, until_success))
        return kept

    return made_of(attack, *attacks)


def with_predicted_labels(attack: AttackFn) -> AttackFn:
    """Attacks the model's own predictions instead of the labels that are passed.

    A misclassified image is then pushed away from the wrong class, possibly into the right one: accuracy under such an
    attack can exceed that under the same attack with true labels.  ``success`` refers to the predictions; those of a
    stochastic model come from draws that the attack itself does not see.
    """
    if is_targeted(attack):
        raise ValueError("with_predicted_labels needs an untargeted attack: the model predicts its own classes already")

    def predicted(
        logits_fn: LogitsFn | Expectation,
        images: Array,
        labels: Array,
        rng: Key,
        start: Array | None = None,
        until_success: bool = False,
    ) -> AttackResult:
        logits_fn = model_queries.traced_once(logits_fn)
        images = as_array("images", images)
        keys = model_keys(keys_per_image(rng, len(images)), PREDICTION)
        predictions = jnp.argmax(model_queries.evaluate(logits_fn, images, keys), axis=-1)
        return call_attack(attack, logits_fn, images, predictions, rng, start, until_success)

    return made_of(predicted, attack)


def parts_of(attack: AttackFn) -> list[AttackFn]:
    """The attacks that an attack is built from; the attack itself if it is not built from others."""
    parts = getattr(attack, PARTS, None)
    return [attack] if parts is None else [inner for part in parts for inner in parts_of(part)]


def is_targeted(attack: AttackFn) -> bool:
    """Whether labels are the classes to reach."""
    return any(getattr(part, "targeted", False) for part in parts_of(attack))


def made_of(attack: AttackFn, *parts: AttackFn) -> AttackFn:
    """``attack``, which then tells what it is built from."""
    setattr(attack, PARTS, parts)
    return attack


def call_attack(
    attack: AttackFn,
    logits_fn: LogitsFn | Expectation,
    images: Array,
    labels: Array,
    rng: Key,
    start: Array | None = None,
    until_success: bool = False,
) -> AttackResult:
    """Calls any attack, including a plain function ``(logits_fn, images, labels, rng) -> AttackResult``.

    ``start`` is passed only if there is one, ``until_success`` only if it is true and ``attack`` has such a parameter.
    """
    starts = () if start is None else (start,)
    options = {"until_success": True} if until_success and _has_parameter(attack, "until_success") else {}
    return attack(logits_fn, images, labels, rng, *starts, **options)


def _has_parameter(function: Callable, name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _rule(keep: str) -> Callable[[AttackResult, AttackResult], Array]:
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
    return KEEP[keep]


def _to_attack(keep: str, kept: AttackResult, images: Array) -> Array:
    """The adversarial image where a success is final, so that ``until_success`` skips it; elsewhere the image."""
    return jnp.where(kept.success[:, None, None, None], kept.images, images) if keep == "first" else images


def _nothing_yet(images: Array, logits: Array) -> AttackResult:
    none = jnp.zeros(len(images), jnp.int32)
    return AttackResult(
        images, logits, none > 0, none.astype(jnp.float32), none, none > 0, none > 0, none.astype(jnp.int8)
    )


def _merge(rule, kept: AttackResult, new: AttackResult) -> AttackResult:
    # The marks of an invalid image stay, whatever other attacks report.
    better = (rule(kept, new) | new.invalid) & ~jnp.asarray(kept.invalid)

    def select(old, new):
        return jnp.where(broadcast(better, old), new, old)

    # These describe all attacks, whichever result is kept.
    common = {
        "steps": kept.steps + new.steps,
        "nonfinite": jnp.asarray(kept.nonfinite | new.nonfinite),
        "invalid": jnp.asarray(kept.invalid | new.invalid),
        "progress": jnp.maximum(kept.progress, new.progress).astype(jnp.int8),
    }
    return jax.tree.map(select, kept._replace(**common), new._replace(**common))
