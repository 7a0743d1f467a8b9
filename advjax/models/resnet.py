"""ResNets (He et al., 2016) with torchvision's topology, for the cross-architecture experiments (002).

Convolutions are initialized as in torchvision, normal with variance 2 / fan_out, the classifier as in PyTorch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from advjax.models.layers import AverageHead, ConvNormRelu, ImageClassifier, he_fan_out
from advjax.types import Array

EXPANSION = 4
"""Ratio of the output channels of a bottleneck block to those of its 3x3 convolution."""


class ResNetBlock(nn.Module):
    """``relu(shortcut + convolutions)``: two 3x3, or, with ``bottleneck``, 1x1, 3x3 (which has the stride), and 1x1.

    The shortcut is ``x``, or, if the shape changes, a 1x1 convolution with BatchNorm.
    """

    features: int
    stride: int = 1
    bottleneck: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        layer = partial(ConvNormRelu, kernel_init=he_fan_out, axis_name=self.axis_name)
        features = self.features * (EXPANSION if self.bottleneck else 1)
        if self.bottleneck:
            y = layer(self.features, 1, name="conv1")(x, train=train)
            y = layer(self.features, 3, self.stride, name="conv2")(y, train=train)
            y = layer(features, 1, relu=False, name="conv3")(y, train=train)
        else:
            y = layer(self.features, 3, self.stride, name="conv1")(x, train=train)
            y = layer(features, 3, relu=False, name="conv2")(y, train=train)
        if self.stride != 1 or x.shape[-1] != features:
            x = layer(features, 1, self.stride, relu=False, name="shortcut")(x, train=train)
        return nn.relu(x + y)


class ResNetStage(nn.Module):
    """Blocks with the same number of channels; the first has the stride."""

    features: int
    num_blocks: int
    stride: int
    bottleneck: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        for i in range(self.num_blocks):
            stride = self.stride if i == 0 else 1
            block = ResNetBlock(self.features, stride, self.bottleneck, axis_name=self.axis_name, name=f"block{i}")
            x = block(x, train=train)
        return x


class ResNetStem(nn.Module):
    """7x7 convolution with stride 2 and overlapping max pooling ("imagenet"), or a 3x3 convolution ("cifar")."""

    features: int
    kind: str
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        size, stride = {"imagenet": (7, 2), "cifar": (3, 1)}[self.kind]
        layer = ConvNormRelu(
            self.features, size, stride, kernel_init=he_fan_out, axis_name=self.axis_name, name="conv1"
        )
        x = layer(x, train=train)
        padding: Any = ((1, 1), (1, 1))
        return nn.max_pool(x, (3, 3), (2, 2), padding) if self.kind == "imagenet" else x


class ResNet18(ImageClassifier):
    """ResNet18: 11,181,642 parameters for ten classes, 11,173,962 with the cifar stem.

    stem 64 - stage1 64 - stage2 128 - stage3 256 - stage4 512 - head, for images of any size; gray images are repeated
    to three channels. With the imagenet stem, 32x32 images are reduced to 1x1 features, which costs at least ten points
    of accuracy.

    Attributes:
      stem: "imagenet" or "cifar".
      stage_sizes: number of blocks in each of the four stages.
      bottleneck: blocks of three convolutions with four times the output channels, for deeper networks.
    """

    stem: str = "imagenet"
    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False

    def __post_init__(self):
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem must be 'imagenet' or 'cifar', got {self.stem!r}")
        if len(self.stage_sizes) != 4 or min(self.stage_sizes) < 1:
            raise ValueError(f"stage_sizes must be four numbers of at least 1, got {tuple(self.stage_sizes)}")
        super().__post_init__()

    def prepare(self, images: Array) -> Array:
        return super().prepare(jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images)

    def make_blocks(self) -> dict[str, nn.Module]:
        stem, *features = self.channels(64, 64, 128, 256, 512)
        stages = {
            f"stage{i}": ResNetStage(number, size, 1 if i == 1 else 2, self.bottleneck, axis_name=self.axis_name)
            for i, (number, size) in enumerate(zip(features, self.stage_sizes, strict=True), 1)
        }
        return {
            "stem": ResNetStem(stem, self.stem, axis_name=self.axis_name),
            **stages,
            "head": AverageHead(self.num_classes),
        }


class ResNet50(ResNet18):
    """ResNet50: 23,528,522 parameters for ten classes, 23,520,842 with the cifar stem."""

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    bottleneck: bool = True


class ResNet101(ResNet50):
    """ResNet101: 42,520,650 parameters for ten classes, 42,512,970 with the cifar stem."""

    stage_sizes: Sequence[int] = (3, 4, 23, 3)
