"""What happens to a batch before the loss: augmentation and attacks.

A transform is ``(models, batch, rng) -> batch``, where ``models`` maps "self" to the model being trained and the names
of earlier runs to theirs, all in inference mode, as ``LogitsFn``.  Randomness per example is folded from its index in
the data set, so that it does not depend on how the batch is split over devices.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax

from advjax.training.augment import Augmentation, batched
from advjax.types import Array, AttackFn, Batch, Key, LogitsFn

Transform: TypeAlias = Callable[[Mapping[str, LogitsFn], Batch, Key], Batch]


def example_keys(rng: Key, index: Array) -> Key:
    """One key per example, the same wherever the example stands in the batch."""
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)


def augment(augmentation: Augmentation) -> Transform:
    """Applies an augmentation of one image to every image."""

    def transform(models: Mapping[str, LogitsFn], batch: Batch, rng: Key) -> Batch:
        return batch._replace(images=batched(augmentation)(batch.images, example_keys(rng, batch.index)))

    return transform


def perturb(attack: AttackFn, model: str = "self") -> Transform:
    """Replaces the images by adversarial ones made on ``model``; the originals stay in ``batch.clean``."""

    def transform(models: Mapping[str, LogitsFn], batch: Batch, rng: Key) -> Batch:
        result = attack(models[model], batch.images, batch.labels, example_keys(rng, batch.index))
        return batch._replace(images=jax.lax.stop_gradient(result.images), clean=batch.images)

    return transform
