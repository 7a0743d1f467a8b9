"""Denoising blocks: non-local means inside a classifier (Xie et al., 2019); "denoise" in the fixer paper (003)."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.models.blocks import Classifier, Patched
from advjax.models.layers import batch_norm, conv
from advjax.types import Array


class DenoisingBlock(nn.Module):
    """``h + BatchNorm(conv1x1(NL(h)))`` on features h [n, height, width, c], without embedding.

    With h_i the channels at position i, "dot_product" is ``NL(h)_i = sum_j (h_i . h_j) h_j / (height * width)`` and
    "gaussian" is ``NL(h)_i = sum_j softmax_j(h_i . h_j / sqrt(c)) h_j``. BatchNorm's scale is initialized to 0, so the
    block is initially the identity.

    Attributes:
      weighting: "dot_product" or "gaussian".
      norm_decay, norm_epsilon: of BatchNorm.
      axis_name: mesh axis over which BatchNorm is synchronized.
    """

    weighting: str = "dot_product"
    norm_decay: float = 0.9
    norm_epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, h: Array, *, train: bool = False) -> Array:
        if h.ndim != 4:
            raise ValueError(f"a denoising block needs features [n, height, width, c], got shape {h.shape}")
        denoised = non_local_means(h, self.weighting)
        denoised = conv(h.shape[-1], 1)(denoised)
        norm = {"momentum": self.norm_decay, "epsilon": self.norm_epsilon, "scale_init": nn.initializers.zeros}
        return h + batch_norm("norm", train, self.axis_name, **norm)(denoised)


def non_local_means(h: Array, weighting: str) -> Array:
    """The weighted means of :class:`DenoisingBlock`, shape kept."""
    n, height, width, channels = h.shape
    positions = h.reshape(n, height * width, channels)
    if weighting == "dot_product" and channels < height * width:
        # Equal by associativity, with a [c, c] product instead of one over all pairs of positions.
        means = positions @ (positions.mT @ positions) / (height * width)
    elif weighting == "dot_product":
        means = (positions @ positions.mT) @ positions / (height * width)
    else:
        means = jax.nn.softmax(positions @ positions.mT / math.sqrt(channels), axis=-1) @ positions
    return jnp.reshape(means, h.shape)


def with_denoising(
    base: Classifier | Patched,
    after: Sequence[str] = ("res1", "res2"),
    *,
    weighting: str = "dot_product",
    train_base: bool = True,
    norm_decay: float = 0.9,
    norm_epsilon: float = 1e-5,
) -> Patched:
    """The classifier with a denoising block after each of the named blocks.

    At width 1, the two blocks of ResNet9 have 16,640 and 263,168 parameters.

    Args:
      base: the classifier.
      after: names of its blocks.
      weighting: "dot_product", the authors' only variant without embedding, or "gaussian".
      train_base: fine-tune the whole network, as in 003; otherwise the base stays in inference mode.
      norm_decay, norm_epsilon: of the blocks' BatchNorm.

    Raises:
      ValueError: ``weighting`` has another value.
    """
    if weighting not in ("dot_product", "gaussian"):
        raise ValueError(f"weighting must be 'dot_product' or 'gaussian', got {weighting!r}")
    blocks: dict[str, nn.Module] = {name: DenoisingBlock(weighting, norm_decay, norm_epsilon) for name in after}
    return Patched(base, blocks, train_base=train_base)
