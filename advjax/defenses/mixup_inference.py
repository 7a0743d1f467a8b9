"""Mixup inference (Pang, Xu & Zhu 2020): the mean prediction over mixtures with other images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.types import Array, Key, LogitsFn, StochasticLogitsFn

MODES = ("predicted", "other", "combined")


class MixingPool(NamedTuple):
    """The images to mix with."""

    images: Array
    """float [classes, m, h, w, c], the same number m of each class."""


def make_pool(images: np.ndarray, labels: np.ndarray, num_classes: int) -> MixingPool:
    """The first images of each class, as many as the rarest class has; uint8 images become floats in [0, 1].

    Use training images; the authors' script mixes test images with each other.

    Raises:
      ValueError: a class has no images.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ValueError(f"the pool has no image of class {int(np.argmin(counts))}")
    chosen = np.stack([images[labels == label][: counts.min()] for label in range(num_classes)])
    scale = np.float32(255 if images.dtype == np.uint8 else 1)
    return MixingPool(jnp.asarray(chosen.astype(np.float32) / scale))


def mixup_inference(
    logits_fn: LogitsFn, pool: MixingPool, *, mode: str = "other", num_mixes: int = 30, mix_weight: float = 0.5
) -> StochasticLogitsFn:
    """``log mean_k softmax f(weight * x + (1 - weight) * s_k)`` with random images ``s_k`` of the pool.

    In mode "predicted" (MI-PL) the ``s_k`` are from the class that f predicts for x; in mode "other" (MI-OL) each is
    from a class drawn uniformly from the other classes. "combined" first mixes 5 times with the predicted class at
    weight 0.5; if the largest probability is less than 0.2 below that of f(x), this is the answer, otherwise 15
    mixtures with other classes at weight 0.4 are. Gradients treat the predicted class as a constant and flow through
    the mixtures.

    Args:
      logits_fn: a network trained with mixup or interpolated adversarial training.
      pool: the images to mix with.
      mode: one of ``MODES``; "combined" has its own counts and weights.
      num_mixes: K; the authors use 10 for "predicted" and 30 for "other".
      mix_weight: weight of the classified image; 0.5 for networks trained with mixup, 0.6 for interpolated adversarial
        training.

    Raises:
      ValueError: ``mode`` is unknown, ``num_mixes`` is below 1, or ``mix_weight`` is outside [0, 1].
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if num_mixes < 1 or not 0 <= mix_weight <= 1:
        raise ValueError(f"needs num_mixes >= 1 and mix_weight in [0, 1], got {num_mixes} and {mix_weight}")

    def mixed(images: Array, predicted: Array, rng: Key, of_others: bool, count: int, weight: float) -> Array:
        """Log of the mean probabilities over ``count`` mixtures, [n, classes]."""
        keys = jax.random.split(rng, (images.shape[0], count))
        partners = jax.vmap(jax.vmap(lambda key, label: _partner(pool, key, label, of_others), (0, None)))(
            keys, predicted
        )
        mixtures = weight * images[:, None] + (1 - weight) * partners
        logits = logits_fn(mixtures.reshape(-1, *images.shape[1:]))
        # Probabilities themselves would underflow for a confident network, and gradients would vanish with them.
        logs = jax.nn.log_softmax(logits).reshape(images.shape[0], count, -1)
        return jax.nn.logsumexp(logs, axis=1) - jnp.log(count)

    def draw(images: Array, rng: Key) -> Array:
        clean = logits_fn(images)
        predicted = jnp.argmax(jax.lax.stop_gradient(clean), axis=-1)
        if mode != "combined":
            return mixed(images, predicted, rng, mode == "other", num_mixes, mix_weight)
        first, second = jax.random.split(rng)
        same = mixed(images, predicted, first, False, 5, 0.5)
        others = mixed(images, predicted, second, True, 15, 0.4)
        fallen = jnp.max(jax.nn.softmax(clean), axis=-1) - jnp.exp(jnp.max(same, axis=-1))
        return jnp.where((fallen < 0.2)[:, None], same, others)

    return draw


def _partner(pool: MixingPool, rng: Key, predicted: Array, of_others: bool) -> Array:
    num_classes, count = pool.images.shape[:2]
    class_key, image_key = jax.random.split(rng)
    steps = jax.random.randint(class_key, (), 1, num_classes) if of_others else 0
    return pool.images[(predicted + steps) % num_classes, jax.random.randint(image_key, (), 0, count)]
