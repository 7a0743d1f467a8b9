"""Pre-activation ResNets (He et al., 2016, "Identity mappings in deep residual networks")."""

from collections.abc import Sequence

import flax.linen as nn

from advjax.models.layers import ImageClassifier, batch_norm, conv, dense, global_average_pool
from advjax.types import Array


class PreActBlock(nn.Module):
    """``shortcut + conv(relu(norm(conv(a))))`` where ``a = relu(norm(x))``.

    The shortcut is ``x``, or, if the shape changes, a 1x1 convolution of ``a`` without BatchNorm.
    """

    features: int
    stride: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        active = nn.relu(batch_norm("norm1", train, self.axis_name)(x))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(self.features, 1, self.stride, name="shortcut")(active)
        y = conv(self.features, 3, self.stride, name="conv1")(active)
        y = nn.relu(batch_norm("norm2", train, self.axis_name)(y))
        return x + conv(self.features, 3, name="conv2")(y)


class PreActStage(nn.Module):
    """Blocks with the same number of channels; the first has the stride."""

    features: int
    num_blocks: int
    stride: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        for i in range(self.num_blocks):
            stride = self.stride if i == 0 else 1
            x = PreActBlock(self.features, stride, axis_name=self.axis_name, name=f"block{i}")(x, train=train)
        return x


class PreActStem(nn.Module):
    """A 3x3 convolution."""

    features: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return conv(self.features)(x)


class PreActHead(nn.Module):
    """BatchNorm and ReLU if ``norm``, global average pooling, and a linear classifier."""

    num_classes: int
    norm: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if self.norm:
            x = nn.relu(batch_norm("norm", train, self.axis_name)(x))
        return dense(global_average_pool(x), self.num_classes)


class PreActResNet18(ImageClassifier):
    """PreActResNet18: 11,171,146 parameters for ten classes and 32x32x3 images.

    stem 64 - stage1 64 - stage2 128 - stage3 256 - stage4 512 - head, with two blocks per stage and strides 1, 2, 2, 2.
    As in 001 and the code it is based on, there is nothing between the last block and the pooling. Manifold mixup has
    three positions: the input and the outputs of the first two stages.

    Attributes:
      final_norm: BatchNorm and ReLU before the pooling, as in some published robust networks (11,172,170 parameters).
    """

    final_norm: bool = False

    @property
    def mixing_points(self) -> tuple[str, ...]:
        """The input and the outputs of the first two stages, as in 001."""
        return ("images", "stage1", "stage2")

    def make_blocks(self) -> dict[str, nn.Module]:
        return preact_blocks(self, self.channels(64, 64, 128, 256, 512), 2, (1, 2, 2, 2), self.final_norm)


def preact_blocks(
    model: ImageClassifier, features: Sequence[int], num_blocks: int, strides: Sequence[int], final_norm: bool
) -> dict[str, nn.Module]:
    """Stem, stages, and head; ``features`` are the channel counts of the stem and of each stage."""
    axis = model.axis_name
    stages = {
        f"stage{i}": PreActStage(number, num_blocks, stride, axis_name=axis)
        for i, (number, stride) in enumerate(zip(features[1:], strides, strict=True), 1)
    }
    return {"stem": PreActStem(features[0]), **stages, "head": PreActHead(model.num_classes, final_norm, axis)}
