"""Batch transforms applied before the loss: augmentation, attacks, and soft targets (see also ``mixing``).

A transform is ``(models, batch, rng) -> batch``, where ``models`` maps "self" to the model in training and the names of
earlier runs to their models, all in inference mode. The randomness of each example is derived from its index in the
dataset, so it does not depend on how the batch is split over devices.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import flax.linen as nn
import jax

from advjax.attacks import Expectation, expectation
from advjax.attacks.keys import image_keys
from advjax.models.blocks import inference_fn
from advjax.training.augment import Augmentation, batched
from advjax.training.microbatches import from_parts, in_parts
from advjax.types import Array, AttackFn, Batch, Key, LogitsFn, UserError, Variables

Attackable: TypeAlias = LogitsFn | Expectation
"""A model as attacks take it."""
Transform: TypeAlias = Callable[[Mapping[str, Attackable], Batch, Key], Batch]


def attackable(model: nn.Module, variables: Variables, image_shape: tuple[int, ...]) -> Attackable:
    """The model in inference mode; a stochastic one answers each query with one fresh draw per image.

    The noise of a random self-ensemble is part of the model that is trained, and so of the one that is attacked.
    """
    function, stochastic = inference_fn(model, variables, image_shape)
    return expectation(function, 1) if stochastic else function


def augment(augmentation: Augmentation) -> Transform:
    """Applies an augmentation to every image."""

    def transform(models: Mapping[str, Attackable], batch: Batch, rng: Key) -> Batch:
        return batch._replace(images=batched(augmentation)(batch.images, image_keys(rng, batch.index)))

    return transform


def perturb(attack: AttackFn, model: str = "self", parts: int = 1) -> Transform:
    """Replaces the images with adversarial examples for ``model``; the originals are kept in ``batch.clean``.

    With ``parts``, see ``adversarial``.
    """

    def transform(models: Mapping[str, Attackable], batch: Batch, rng: Key) -> Batch:
        return batch._replace(images=adversarial(attack, models[model], batch, rng, parts), clean=batch.images)

    return transform


def adversarial(attack: AttackFn, model: Attackable, batch: Batch, rng: Key, parts: int = 1) -> Array:
    """Adversarial images for a batch, constant under differentiation.

    Args:
      attack: on ``model``.
      model: in inference mode.
      batch: the images, their labels, and their index, from which the randomness of each is derived.
      rng: key of the attack.
      parts: attack the rows in so many parts, one after the other, as ``gradients`` does with microbatches: with the
        same result for deterministic models, in less memory.
    """

    def attacked(rows: tuple[Array, Array, Array]) -> Array:
        images, labels, index = rows
        return attack(model, images, labels, image_keys(rng, index)).images

    rows = batch.images, batch.labels, batch.index
    images = attacked(rows) if parts == 1 else from_parts(jax.lax.map(attacked, in_parts(rows, parts)))
    return jax.lax.stop_gradient(images)


def soft_labels(off_value: float) -> Transform:
    """``t -> off_value + (1 - C off_value) t``: ``1 - (C - 1) off_value`` on the label, ``off_value`` elsewhere.

    Targets remain distributions. The map is linear, so it commutes with mixing.

    Raises:
      UserError: (when applied) ``off_value`` is outside [0, 1 / C], beyond which another class is likelier.
    """

    def transform(models: Mapping[str, Attackable], batch: Batch, rng: Key) -> Batch:
        num_classes = batch.targets.shape[-1]
        if not 0 <= off_value <= 1 / num_classes:
            raise UserError(
                f"soft_labels: off_value is {off_value!r}; for {num_classes} classes give 0 to {1 / num_classes:g}"
            )
        return batch._replace(targets=off_value + (1 - num_classes * off_value) * batch.targets)

    return transform


def label_smoothing(strength: float) -> Transform:
    """``t -> (1 - strength) t + strength / C`` (Szegedy et al., 2016): ``soft_labels(strength / C)``.

    Raises:
      UserError: ``strength`` is not in [0, 1].
    """
    if not 0 <= strength <= 1:
        raise UserError(f"label_smoothing: strength is {strength!r}; give a number from 0 to 1")

    def transform(models: Mapping[str, Attackable], batch: Batch, rng: Key) -> Batch:
        return soft_labels(strength / batch.targets.shape[-1])(models, batch, rng)

    return transform
