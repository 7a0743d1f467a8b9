"""ResNet20 from the Keras example ``cifar10_resnet``, the "ResNet" of the intelligent-mixup paper (000)."""

from functools import partial

import flax.linen as nn

from advjax.models.layers import ConvNormRelu, ImageClassifier, conv, global_average_pool
from advjax.types import Array

# Padding (uneven for stride 2 and even size), BatchNorm, and initialization as in Keras.
_Layer = partial(
    ConvNormRelu, padding="SAME", use_bias=True, kernel_init=nn.initializers.he_normal(), decay=0.99, epsilon=1e-3
)


class KerasStem(nn.Module):
    """A 3x3 convolution with BatchNorm and ReLU."""

    features: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return _Layer(self.features, axis_name=self.axis_name, name="conv1")(x, train=train)


class KerasStage(nn.Module):
    """Three blocks ``relu(shortcut + two convolutions)``.

    The shortcut is ``x``, or, in a first block with stride, a 1x1 convolution without BatchNorm.
    """

    features: int
    stride: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        layer = partial(_Layer, self.features, axis_name=self.axis_name)
        for i in range(3):
            stride = self.stride if i == 0 else 1
            y = layer(stride=stride, name=f"block{i}_conv1")(x, train=train)
            y = layer(relu=False, name=f"block{i}_conv2")(y, train=train)
            if stride != 1:
                x = conv(
                    self.features,
                    1,
                    stride,
                    padding="SAME",
                    use_bias=True,
                    kernel_init=nn.initializers.he_normal(),
                    name=f"block{i}_shortcut",
                )(x)
            x = nn.relu(x + y)
        return x


class KerasHead(nn.Module):
    """Global average pooling and a linear classifier."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.he_normal(), name="dense")(global_average_pool(x))


class ResNet20v1(ImageClassifier):
    """ResNet20, version 1: 273,066 parameters for ten classes and 32x32x3 images.

    stem 16 - stage1 16 - stage2 32 - stage3 64 - head. The example subtracts the mean training image: pass it as
    ``mean``, one number per channel or nested like an image.
    """

    def make_blocks(self) -> dict[str, nn.Module]:
        stem, *features = self.channels(16, 16, 32, 64)
        stages = {
            f"stage{i}": KerasStage(number, 1 if i == 1 else 2, axis_name=self.axis_name)
            for i, number in enumerate(features, 1)
        }
        return {
            "stem": KerasStem(stem, axis_name=self.axis_name),
            **stages,
            "head": KerasHead(self.num_classes),
        }
