"""Distribution regression on the predictions for randomly resized copies ("drn" in paper 003).

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
    """Shrinks a square image [h, h, c] bilinearly to a random size and pads it with zeros (Xie et al. 2018).

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
    """Checks that images [h, w, c] can be shrunk to sizes from ``smallest`` to ``largest``.

    Raises:
      UserError: they are not square, or are smaller, or the sizes are inconsistent.
    """
    height, width = image_shape[:2]
    if height != width:
        raise UserError(f"random resizing needs square images, got {height}x{width}: crop or resize them first")
    if not 1 <= smallest <= largest <= height:
        raise UserError(
            f"random resizing of {height}x{width} images needs 1 <= smallest <= largest <= {height}, "
            f"got smallest {smallest} and largest {largest}"
        )


def densities(probabilities: Array, num_bins: int = 100, width: float = 0.05) -> Array:
    """Kernel density estimates of numbers in [0, 1]: [copies, classes] -> [classes, bins], each with sum 1.

    ``P_c(s) ~ sum_i exp(-(s / bins - p_ic)^2 / (2 width^2))`` for s = 0 .. bins - 1.
    """
    positions = jnp.arange(num_bins) / num_bins
    kernels = jnp.exp(-((positions - probabilities[..., None]) ** 2) / (2 * width**2))
    total = jnp.sum(kernels, axis=0)
    return total / jnp.sum(total, axis=-1, keepdims=True)


class DistributionLayer(nn.Module):
    """Maps distributions at nodes to distributions at features: [nodes, bins] -> [features, bins'], each with sum 1.

    ``log P_k(t) = -b_k (t - lambda_k)^2 - a_k |t - mu_k| + sum_i log sum_s P_i(s) exp(-w_ki (s - t)^2)`` up to a
    constant, with bin positions s and t in [0, 1); the inner sums are clipped to [1e-15, 1e15]. Weights and biases are
    initialized uniformly in (-0.1, 0.1), centers uniformly in (0, 1); ``nodes * features + 4 * features`` parameters.
    """

    features: int
    num_bins: int

    def __call__(self, distributions: Array) -> Array:
        return jax.nn.softmax(self.energies(distributions))

    @nn.compact
    def energies(self, distributions: Array) -> Array:
        """The logarithms of the distributions, up to a constant for each node."""
        nodes, bins = distributions.shape
        weights = self.param("weights", _uniform(-0.1, 0.1), (self.features, nodes))
        square, straight = (
            self.param(name, _uniform(-0.1, 0.1), (self.features, 1)) for name in ("square", "straight")
        )
        centers = [self.param(f"{name}_center", _uniform(0, 1), (self.features, 1)) for name in ("square", "straight")]
        lower, upper = jnp.arange(bins) / bins, jnp.arange(self.num_bins) / self.num_bins
        apart = (lower[:, None] - upper) ** 2
        exponents = -weights[:, :, None, None] * apart
        # With large weights the exponentials would overflow, so the largest is factored out of the sum.
        largest = jax.lax.stop_gradient(jnp.max(exponents, axis=2))
        sums = jnp.einsum("is,kist->kit", distributions, jnp.exp(exponents - largest[:, :, None]))
        logs = jnp.log(jnp.maximum(sums, jnp.finfo(sums.dtype).tiny)) + largest
        energy = -square * (upper - centers[0]) ** 2 - straight * jnp.abs(upper - centers[1])
        return energy + jnp.sum(jnp.clip(logs, _SMALLEST, _LARGEST), axis=1)


class DistributionRegression(nn.Module):
    """Classifies the distribution of a frozen classifier's probabilities over randomly resized copies of an image.

    For each class, the probabilities of ``num_copies`` copies are converted to a density on 100 bins; a hidden layer
    with one node of 10 bins per class and an output layer with 2 bins follow, and the logit is
    ``log P(bin 0) - log P(bin 1)``: 280 parameters for ten classes. The copies are drawn with a key of the "noise"
    stream; a call without one uses only the unchanged image. Train it on clean images (``trainable="^drn"``).

    Attributes:
      base: the classifier, in inference mode, with parameters under ``base``.
      num_copies: N; 50 in the paper.
      smallest: smallest side length of the copies.
      largest: largest side length of the copies, at most that of the images, which must be square.
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
            keys = jax.random.split(self.make_rng("noise"), (images.shape[0], self.num_copies))

            def copy(image: Array, key: Key) -> Array:
                return resize_and_pad(image, key, self.smallest, self.largest)

            copies = jax.vmap(jax.vmap(copy, (None, 0)))(images, keys)
        logits = self.base(copies.reshape(-1, *images.shape[1:]), train=False)
        num_classes = logits.shape[-1]
        probabilities = jax.nn.softmax(logits).reshape(*copies.shape[:2], num_classes)
        hidden = DistributionLayer(num_classes, 10, name="drn_hidden")
        output = DistributionLayer(num_classes, 2, name="drn_output")
        energies = jax.vmap(lambda p: output.energies(hidden(densities(p))))(probabilities)
        # The probabilities themselves may underflow.
        return energies[..., 0] - energies[..., 1]


def _uniform(low: float, high: float):
    return lambda rng, shape: jax.random.uniform(rng, shape, minval=low, maxval=high)
