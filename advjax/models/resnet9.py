"""ResNet9 of the fixer paper (Coppola, Lee & Guan; appendix, Tables 5-8)."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from advjax.models.blocks import Classifier
from advjax.models.convolution import Conv, torch_bias_init, torch_kernel_init
from advjax.models.pooling import global_average_pool, max_pool
from advjax.types import Array


class ConvBlock(nn.Module):
    """conv 3x3 without bias, BatchNorm, ReLU and, with ``pool``, a 2x2 max pooling."""

    features: int
    pool: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = Conv(self.features, (3, 3), use_bias=False, kernel_init=torch_kernel_init, name="conv")(x)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            axis_name=self.axis_name if train else None,
            name="norm",
        )(x)
        x = nn.relu(x)
        return max_pool(x, (2, 2)) if self.pool else x


class ResidualBlock(nn.Module):
    """``x + ConvBlock(ConvBlock(x))``."""

    features: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        y = ConvBlock(self.features, axis_name=self.axis_name, name="first")(x, train=train)
        return x + ConvBlock(self.features, axis_name=self.axis_name, name="second")(y, train=train)


class Stem(nn.Module):
    """Input normalisation, then a convolution block."""

    features: int
    mean: Sequence[float]
    std: Sequence[float]
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.std, x.dtype)
        return ConvBlock(self.features, axis_name=self.axis_name, name="conv_block")(x, train=train)


class Head(nn.Module):
    """Pooling, "max4" (max pooling 4x4, then flatten) or "average" (over all positions), and the linear classifier."""

    num_classes: int
    pooling: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if self.pooling == "max4":
            if min(x.shape[1:3]) < 4:
                raise ValueError(
                    f"head 'max4' needs features of 4x4 or more, got {x.shape[1]}x{x.shape[2]}: use 'average'"
                )
            x = max_pool(x, (4, 4)).reshape(len(x), -1)
        else:
            x = global_average_pool(x)
        return nn.Dense(
            self.num_classes, kernel_init=torch_kernel_init, bias_init=torch_bias_init(x.shape[-1]), name="dense"
        )(x)


class ResNet9(Classifier):
    """ResNet9: 6,588,490 parameters at width 1 for ten classes and 32x32x3 images.

    conv1 64 - conv2 128, pool - res1 128 - conv3 256 (pool with ``pool3``) - conv4 512, pool - res2 512 - head.  The
    paper's table has no pooling in conv3; the better known ResNet9 has one.  Fixers go after ``res1`` and ``res2``.

    Attributes:
      num_classes: number of logits.
      width: factor on all numbers of channels.
      pool3: pool in conv3 as well (6,573,130 parameters, 0.38 instead of 0.83 G multiply-adds per 32x32 image).
      head: "max4" as in the table for 32x32 images, "average" as for the 128x128 ones (6,570,052 parameters for 4
        classes).
      mean, std: input normalisation per channel, in pixels of [0, 1].
    """

    num_classes: int = 10
    width: float = 1.0
    pool3: bool = False
    head: str = "max4"
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    def __post_init__(self):
        if self.head not in ("max4", "average"):
            raise ValueError(f"head must be 'max4' or 'average', got {self.head!r}")
        if not self.width > 0:
            raise ValueError(f"width must be positive, got {self.width}")
        super().__post_init__()

    def make_blocks(self) -> dict[str, nn.Module]:
        w64, w128, w256, w512 = (max(1, round(self.width * features)) for features in (64, 128, 256, 512))
        axis = self.axis_name
        return {
            "conv1": Stem(w64, self.mean, self.std, axis_name=axis),
            "conv2": ConvBlock(w128, pool=True, axis_name=axis),
            "res1": ResidualBlock(w128, axis_name=axis),
            "conv3": ConvBlock(w256, pool=self.pool3, axis_name=axis),
            "conv4": ConvBlock(w512, pool=True, axis_name=axis),
            "res2": ResidualBlock(w512, axis_name=axis),
            "head": Head(self.num_classes, self.head),
        }
