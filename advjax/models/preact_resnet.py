"""Pre-activation ResNets (He et al., 2016, "Identity mappings in deep residual networks")."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn

from advjax.models.layers import ImageClassifier, batch_norm, conv, dense, global_average_pool
from advjax.types import Array

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"relu": nn.relu, "silu": nn.silu}
SHORTCUT_INPUTS = ("activation", "raw")


@dataclasses.dataclass(frozen=True)
class PreActVariant:
    """What distinguishes published pre-activation blocks whose parameters have the same names.

    Attributes:
      activation: "relu" or "silu" (Swish).
      shortcut_input: a projection shortcut takes the "activation" relu(norm(x)) or the "raw" x.
      shortcut_size: side length of the projection's kernel.
      pad_end: convolutions of size 3 and stride 2 pad one row and column at the end alone, as TensorFlow's "SAME" does
        for even sizes, instead of one on every side.
    """

    activation: str = "relu"
    shortcut_input: str = "activation"
    shortcut_size: int = 1
    pad_end: bool = False

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if self.shortcut_input not in SHORTCUT_INPUTS:
            raise ValueError(f"shortcut_input must be one of {', '.join(SHORTCUT_INPUTS)}, got {self.shortcut_input!r}")

    def __call__(self, x: Array) -> Array:
        """The activation function."""
        return ACTIVATIONS[self.activation](x)

    def padding(self, size: int, stride: int) -> Any:
        """Padding of a convolution of this size and stride, as for ``layers.conv``."""
        return ((0, 1), (0, 1)) if self.pad_end and (size, stride) == (3, 2) else None


class PreActBlock(nn.Module):
    """``shortcut + conv(relu(norm(conv(a))))`` where ``a = relu(norm(x))``.

    The shortcut is ``x``, or, if the shape changes, a convolution of ``a`` (or of ``x``, see ``PreActVariant``) without
    BatchNorm.
    """

    features: int
    stride: int = 1
    variant: PreActVariant = PreActVariant()
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        activate, padding = self.variant, self.variant.padding
        active = activate(batch_norm("norm1", train, self.axis_name)(x))
        if self.stride != 1 or x.shape[-1] != self.features:
            size = self.variant.shortcut_size
            projection = conv(self.features, size, self.stride, padding=padding(size, self.stride), name="shortcut")
            x = projection(active if self.variant.shortcut_input == "activation" else x)
        y = conv(self.features, 3, self.stride, padding=padding(3, self.stride), name="conv1")(active)
        y = activate(batch_norm("norm2", train, self.axis_name)(y))
        return x + conv(self.features, 3, name="conv2")(y)


class PreActStage(nn.Module):
    """Blocks with the same number of channels; the first has the stride."""

    features: int
    num_blocks: int
    stride: int
    variant: PreActVariant = PreActVariant()
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        for i in range(self.num_blocks):
            stride = self.stride if i == 0 else 1
            x = PreActBlock(self.features, stride, self.variant, self.axis_name, name=f"block{i}")(x, train=train)
        return x


class PreActStem(nn.Module):
    """A 3x3 convolution."""

    features: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return conv(self.features)(x)


class PreActHead(nn.Module):
    """BatchNorm and the activation if ``norm``, global average pooling, and a linear classifier."""

    num_classes: int
    norm: bool
    variant: PreActVariant = PreActVariant()
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if self.norm:
            x = self.variant(batch_norm("norm", train, self.axis_name)(x))
        return dense(global_average_pool(x), self.num_classes)


class PreActResNet18(ImageClassifier):
    """PreActResNet18: 11,171,146 parameters for ten classes and 32x32x3 images.

    stem 64 - stage1 64 - stage2 128 - stage3 256 - stage4 512 - head, with two blocks per stage and strides 1, 2, 2, 2.
    As in 001 and the code it is based on, there is nothing between the last block and the pooling. Manifold mixup has
    three positions: the input and the outputs of the first two stages.

    Attributes:
      final_norm: BatchNorm and ReLU before the pooling, as in some published robust networks (11,172,170 parameters).
      shortcut_input: projection shortcuts take the "activation" relu(norm(x)), as in the code of 001 (kuangliu's
        pytorch-cifar), or the "raw" x, as in that of Wong et al. (2020, fast_adversarial) and RobustBench's models
        derived from it. None is "activation", but ``load_torch`` then asks which of them the weights belong to, because
        both have the same names and shapes.
    """

    final_norm: bool = False
    shortcut_input: str | None = None

    def __post_init__(self):
        PreActVariant(shortcut_input=self.shortcut_input or "activation")  # Refuses unknown values.
        super().__post_init__()

    @property
    def mixing_points(self) -> tuple[str, ...]:
        """The input and the outputs of the first two stages, as in 001."""
        return ("images", "stage1", "stage2")

    def make_blocks(self) -> dict[str, nn.Module]:
        features, strides = self.channels(64, 64, 128, 256, 512), (1, 2, 2, 2)
        variant = PreActVariant(shortcut_input=self.shortcut_input or "activation")
        return preact_blocks(self, features, (2,) * 4, strides, self.final_norm, variant)


def preact_blocks(
    model: ImageClassifier,
    features: Sequence[int],
    stage_sizes: Sequence[int],
    strides: Sequence[int],
    final_norm: bool,
    variant: PreActVariant = PreActVariant(),
) -> dict[str, nn.Module]:
    """Stem, stages, and head.

    Args:
      model: has the number of classes and the mesh axis.
      features: channel counts of the stem and of each stage.
      stage_sizes: number of blocks in each stage.
      strides: of each stage.
      final_norm: BatchNorm and the activation before the pooling.
      variant: of the blocks.
    """
    axis = model.axis_name
    stages = {
        f"stage{i}": PreActStage(number, size, stride, variant, axis)
        for i, (number, size, stride) in enumerate(zip(features[1:], stage_sizes, strides, strict=True), 1)
    }
    head = PreActHead(model.num_classes, final_norm, variant, axis)
    return {"stem": PreActStem(features[0]), **stages, "head": head}
