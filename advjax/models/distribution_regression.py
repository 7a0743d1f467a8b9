"""Distribution regression on the predictions for randomly resized copies (paper 003's "drn").

Kou et al. 2020, "Enhancing transformation-based defenses against adversarial attacks with a distribution classifier";
its layer is the distribution regression network of Kou, Lee & Ng 2019.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.models.blocks import Classifier
from advjax.types import Array, Key, UserError

_SMALLEST, _LARGEST = math.log(1e-15), math.log(1e15)


def resize_and_pad(image: Array, rng: Key, smallest: int, largest: int) -> Array:
    """A square image [h, h, c] shrunk bilinearly to a random side, at a random place on zeros (Xie et al. 2018).

    Raises:
      UserError: see ``check_resizing``.
    """
    check_resizing(image.shape, smallest, largest)
    side = image.shape[0]
    size_key, *place_keys = jax.random.split(rng, 3)
    size = jax.random.randint(size_key, (), smallest, largest + 1)
    offsets = jnp.stack([jax.random.randint(key, (), 0, side - size + 1) for key in place_keys])
    scale = jnp.broadcast_to(size / side, (2,)).astype(image.dtype)
    shrunk = jax.image.scale_and_translate(
        image, image.shape, (0, 1), scale, jnp.zeros(2, image.dtype), "linear", antialias=False
    )
    places = jnp.arange(side)
    inside = (places < size)[:, None, None] & (places < size)[None, :, None]
    return jnp.roll(jnp.where(inside, shrunk, 0), offsets, axis=(0, 1))


def check_resizing(image_shape: Sequence[int], smallest: int, largest: int) -> None:
    """That images [h, w, c] can be shrunk to sides from ``smallest`` to ``largest``.

    Raises:
      UserError: they are not square, or already smaller, or the sizes make no sense.
    """
    height, width = image_shape[:2]
    if height != width:
        raise UserError(f"only square images are resized at random, got {height}x{width}: crop or resize them first")
    if not 1 <= smallest <= largest <= height:
        raise UserError(
            f"images of {height}x{width} shrink to sides of 1 <= smallest <= largest <= {height}, "
            f"got smallest {smallest} and largest {largest}"
        )


def densities(probabilities: Array, num_bins: int = 100, width: float = 0.05) -> Array:
    """Kernel density estimates of numbers in [0, 1]: [copies, classes] -> [classes, bins], each summing to 1.

    ``P_c(s) ~ sum_i exp(-(s / bins - p_ic)^2 / (2 width^2))`` for s = 0 .. bins - 1.
    """
    positions = jnp.arange(num_bins) / num_bins
    kernels = jnp.exp(-((positions - probabilities[..., None]) ** 2) / (2 * width**2))
    total = jnp.sum(kernels, axis=0)
    return total / jnp.sum(total, axis=-1, keepdims=True)


class DistributionLayer(nn.Module):
    """Distributions of some nodes -> distributions of others: [nodes, bins] -> [features, bins'], each summing to 1.

    ``log P_k(t) = -b_k (t - lambda_k)^2 - a_k |t - mu_k| + sum_i log sum_s P_i(s) exp(-w_ki (s - t)^2)`` up to a
    constant, with the positions s and t of the bins in [0, 1); the inner sums are clipped to [1e-15, 1e15]. Weights
    and biases start uniform in (-0.1, 0.1), centres uniform in (0, 1); ``nodes * features + 4 * features`` parameters.
    """

    features: int
    num_bins: int

    def __call__(self, distributions: Array) -> Array:
        return jax.nn.softmax(self.energies(distributions))

    @nn.compact
    def energies(self, distributions: Array) -> Array:
        """The logarithms of the results, up to a constant for each node."""
        nodes, bins = distributions.shape
        weights = self.param("weights", _uniform(-0.1, 0.1), (self.features, nodes))
        square, straight = (
            self.param(name, _uniform(-0.1, 0.1), (self.features, 1)) for name in ("square", "straight")
        )
        centers = [self.param(f"{name}_center", _uniform(0, 1), (self.features, 1)) for name in ("square", "straight")]
        lower, upper = jnp.arange(bins) / bins, jnp.arange(self.num_bins) / self.num_bins
        apart = (lower[:, None] - upper) ** 2
        exponents = -weights[:, :, None, None] * apart
        # Of large weights the exponentials overflow, so the largest one comes out of the sum.
        largest = jax.lax.stop_gradient(jnp.max(exponents, axis=2))
        sums = jnp.einsum("is,kist->kit", distributions, jnp.exp(exponents - largest[:, :, None]))
        logs = jnp.log(jnp.maximum(sums, jnp.finfo(sums.dtype).tiny)) + largest
        energy = -square * (upper - centers[0]) ** 2 - straight * jnp.abs(upper - centers[1])
        return energy + jnp.sum(jnp.clip(logs, _SMALLEST, _LARGEST), axis=1)


class DistributionRegression(nn.Module):
    """Classifies the distributions of a frozen classifier's probabilities over randomly resized copies of an image.

    For each class the probabilities of ``num_copies`` copies become a density on 100 bins; a hidden layer with one node
    of 10 bins for each class, and one of 2 bins, follow, and the logit is ``log P(bin 0) - log P(bin 1)``: 280
    parameters for ten classes. The copies are drawn with a key of the stream "noise"; a call without one sees the
    unchanged image alone. Train it on clean images (``trainable="^drn"``).

    Attributes:
      base: the classifier, in inference mode, with parameters under ``base``.
      num_copies: N; the paper has 50.
      smallest: side of the shrunk copies, at least.
      largest: side of the shrunk copies, at most, and at most that of the images, which are square.
    """

    base: Classifier
    num_copies: int = 50
    smallest: int = 26
    largest: int = 31
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False, **kwargs: Any) -> Array:
        check_resizing(images.shape[1:], self.smallest, self.largest)
        copies = images[:, None]
        if self.has_rng("noise"):
            keys = jax.random.split(self.make_rng("noise"), (len(images), self.num_copies))

            def copy(image: Array, key: Key) -> Array:
                return resize_and_pad(image, key, self.smallest, self.largest)

            copies = jax.vmap(jax.vmap(copy, (None, 0)))(images, keys)
        logits = self.base(copies.reshape(-1, *images.shape[1:]), train=False)
        num_classes = logits.shape[-1]
        probabilities = jax.nn.softmax(logits).reshape(*copies.shape[:2], num_classes)
        hidden = DistributionLayer(num_classes, 10, name="drn_hidden")
        output = DistributionLayer(num_classes, 2, name="drn_output")
        found = jax.vmap(lambda p: output.energies(hidden(densities(p))))(probabilities)
        # Of the probabilities themselves one may underflow.
        return found[..., 0] - found[..., 1]


def _uniform(low: float, high: float):
    return lambda rng, shape: jax.random.uniform(rng, shape, minval=low, maxval=high)
