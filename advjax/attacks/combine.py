"""Attacks made from attacks."""

import jax.numpy as jnp

from advjax.types import Array, AttackFn, AttackResult, Key, LogitsFn


def with_predicted_labels(attack: AttackFn) -> AttackFn:
    """Attack the model's own predictions in place of the labels it is given.

    An image that the model gets wrong is then pushed away from the wrong class, perhaps into the right one: accuracy
    under such an attack can exceed what the same attack with true labels leaves.  ``success`` is about the predictions.
    """

    def predicted(
        logits_fn: LogitsFn, images: Array, labels: Array, rng: Key, start: Array | None = None
    ) -> AttackResult:
        predictions = jnp.argmax(logits_fn(images), axis=-1)
        return attack(logits_fn, images, predictions, rng, start)

    return predicted
