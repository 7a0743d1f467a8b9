"""What happens to a batch before the loss: augmentation, attacks and softer targets (and see ``mixing``).

A transform is ``(models, batch, rng) -> batch``, where ``models`` maps "self" to the model being trained and the names
of earlier runs to theirs, all in inference mode, as a ``Network``. Randomness per example is folded from its index in
the data set, so that it does not depend on how the batch is split over devices.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import flax.linen as nn
import jax

from advjax.attacks import Expectation, expectation
from advjax.models.blocks import is_stochastic, logits_fn, stochastic_logits_fn
from advjax.training.augment import Augmentation, batched
from advjax.types import Array, AttackFn, Batch, Key, LogitsFn, UserError, Variables

Network: TypeAlias = LogitsFn | Expectation
"""What an attack may ask: see ``network``."""
Transform: TypeAlias = Callable[[Mapping[str, Network], Batch, Key], Batch]


def network(model: nn.Module, variables: Variables, image_shape: tuple[int, ...]) -> Network:
    """The model in inference mode, noise included: a random one answers with one draw, fresh for every question.

    The noise of a random self-ensemble is part of the network that is trained, and so of the one that is attacked.
    Each image has a draw of its own.
    """
    if is_stochastic(model, variables, image_shape):
        return expectation(stochastic_logits_fn(model, variables), 1)
    return logits_fn(model, variables)


def example_keys(rng: Key, index: Array) -> Key:
    """One key per example, the same wherever the example stands in the batch."""
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)


def augment(augmentation: Augmentation) -> Transform:
    """Applies an augmentation of one image to every image."""

    def transform(models: Mapping[str, Network], batch: Batch, rng: Key) -> Batch:
        return batch._replace(images=batched(augmentation)(batch.images, example_keys(rng, batch.index)))

    return transform


def perturb(attack: AttackFn, model: str = "self") -> Transform:
    """Replaces the images by adversarial ones made on ``model``; the originals stay in ``batch.clean``."""

    def transform(models: Mapping[str, Network], batch: Batch, rng: Key) -> Batch:
        result = attack(models[model], batch.images, batch.labels, example_keys(rng, batch.index))
        return batch._replace(images=jax.lax.stop_gradient(result.images), clean=batch.images)

    return transform


def soft_labels(off_value: float) -> Transform:
    """``t -> off_value + (1 - C off_value) t``: ``1 - (C - 1) off_value`` on the label, ``off_value`` elsewhere.

    Targets stay distributions. Linear, so it makes no difference whether targets are mixed before or after.

    Raises:
      UserError: (when applied) ``off_value`` is not in [0, 1 / C], beyond which the label is not the likeliest class.
    """

    def transform(models: Mapping[str, Network], batch: Batch, rng: Key) -> Batch:
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

    def transform(models: Mapping[str, Network], batch: Batch, rng: Key) -> Batch:
        return soft_labels(strength / batch.targets.shape[-1])(models, batch, rng)

    return transform
