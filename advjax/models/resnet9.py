"""ResNet9 of the fixer paper (Coppola, Lee & Guan; appendix, Tables 5-8)."""

from functools import partial

import flax.linen as nn

from advjax.models.layers import ConvNormRelu, ImageClassifier, dense, global_average_pool
from advjax.types import Array, UserError

HEADS = ("max4", "max4_average", "average")


class ConvBlock(ConvNormRelu):
    """3x3 convolution without bias, BatchNorm, ReLU, and, with ``pool``, 2x2 max pooling."""

    pool: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = super().__call__(x, train=train)
        return nn.max_pool(x, (2, 2), (2, 2)) if self.pool else x


class ResidualBlock(nn.Module):
    """``x + ConvBlock(ConvBlock(x))``."""

    features: int
    decay: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        layer = partial(ConvBlock, self.features, decay=self.decay, epsilon=self.epsilon, axis_name=self.axis_name)
        return x + layer(name="second")(layer(name="first")(x, train=train), train=train)


class Stem(nn.Module):
    """A convolution block."""

    features: int
    decay: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        # A separate module because checkpoint paths have this level.
        norm = {"decay": self.decay, "epsilon": self.epsilon, "axis_name": self.axis_name}
        return ConvBlock(self.features, **norm, name="conv_block")(x, train=train)


class Head(nn.Module):
    """Pooling and a linear classifier.

    ``pooling`` is "max4" (4x4 max pooling, then flattening), "max4_average" (4x4 max pooling, then global average
    pooling), or "average" (global average pooling).
    """

    num_classes: int
    pooling: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if self.pooling != "average":
            if min(x.shape[1:3]) < 4:
                raise UserError(
                    f"head {self.pooling!r} needs features of 4x4 or more, got {x.shape[1]}x{x.shape[2]}: use 'average'"
                )
            x = nn.max_pool(x, (4, 4), (4, 4))
        x = x.reshape(x.shape[0], -1) if self.pooling == "max4" else global_average_pool(x)
        return dense(x, self.num_classes)


class ResNet9(ImageClassifier):
    """ResNet9: 6,588,490 parameters at width 1 for ten classes and 32x32x3 images.

    conv1 64 - conv2 128, pool - res1 128 - conv3 256 (pool with ``pool3``) - conv4 512, pool - res2 512 - head. The
    paper's table has no pooling in conv3; the better-known ResNet9 has. Fixers go after ``res1`` and ``res2``.

    Attributes:
      pool3: also pool in conv3 (6,573,130 parameters, 0.38 instead of 0.83 G multiply-adds per 32x32 image).
      head: "max4" as in the table for 32x32 images; "max4_average" for the 128x128 images of HIST (6,570,052 parameters
        for 4 classes), where we read the average as replacing only the flattening; or "average", without max pooling
        and hence for images of any size, with the same number of parameters.
      norm_decay, norm_epsilon: of BatchNorm, by default as in PyTorch; Keras, with which the paper seems to have been
        made, has 0.99 and 0.001.
    """

    pool3: bool = False
    head: str = "max4"
    norm_decay: float = 0.9
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {self.head!r}")
        super().__post_init__()

    def make_blocks(self) -> dict[str, nn.Module]:
        w64, w128, w256, w512 = self.channels(64, 128, 256, 512)
        norm = {"decay": self.norm_decay, "epsilon": self.norm_epsilon, "axis_name": self.axis_name}
        return {
            "conv1": Stem(w64, **norm),
            "conv2": ConvBlock(w128, pool=True, **norm),
            "res1": ResidualBlock(w128, **norm),
            "conv3": ConvBlock(w256, pool=self.pool3, **norm),
            "conv4": ConvBlock(w512, pool=True, **norm),
            "res2": ResidualBlock(w512, **norm),
            "head": Head(self.num_classes, self.head),
        }
