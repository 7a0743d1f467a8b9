"""The small networks of the intelligent-mixup paper (000, Table 1).

The table does not specify padding, and the first network is impossible without any. Our reading: convolutions keep the
size, and pools are as wide as their stride; the second network is CleverHans's basic one, which has the same filters.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from advjax.models.layers import Hidden, ImageClassifier, conv
from advjax.types import Array


class ConvLayer(nn.Module):
    """Convolution with bias, ReLU, and an optional ``pool``."""

    features: int
    size: int
    stride: int = 1
    padding: str = "SAME"
    pool: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        options: dict[str, Any] = {"padding": self.padding, "fan_in": self.size**2 * x.shape[-1]}
        x = nn.relu(conv(self.features, self.size, self.stride, use_bias=True, **options)(x))
        return x if self.pool is None else self.pool(x)


class Custom1(ImageClassifier):
    """ "custom 1": 398,986 parameters for ten classes and 28x28x1 images.

    conv1 5x5, 32, max pooling - conv2 8x8, 64, average pooling - conv3, the same - hidden 64 - head.

    Attributes:
      pool_stride: stride of the 3x3 pools; with 2 there are 411,274 parameters.
    """

    pool_stride: int = 3
    hidden_relu = True

    def make_blocks(self) -> dict[str, nn.Module]:
        window, strides = (3, 3), (self.pool_stride, self.pool_stride)
        conv1, conv2, conv3, hidden = self.channels(32, 64, 64, 64)

        def average(x: Array) -> Array:
            return nn.avg_pool(x, window, strides)

        return {
            "conv1": ConvLayer(conv1, 5, pool=lambda x: nn.max_pool(x, window, strides)),
            "conv2": ConvLayer(conv2, 8, pool=average),
            "conv3": ConvLayer(conv3, 8, pool=average),
            "hidden": Hidden(hidden, relu=self.hidden_relu),
            "head": Hidden(self.num_classes, relu=False),
        }


class CustomCifar(Custom1):
    """ "custom CIFAR": 400,586 parameters for ten classes and 32x32x3 images (433,354 with ``pool_stride=2``).

    Like custom 1, but the hidden layer is linear.
    """

    hidden_relu = False


class Custom2(ImageClassifier):
    """ "custom 2", CleverHans's basic network: 710,218 parameters for ten classes and 28x28x1 images.

    conv1 8x8, 64, stride 2 - conv2 6x6, 128, stride 2 - conv3 5x5, 128 - head.
    """

    def make_blocks(self) -> dict[str, nn.Module]:
        conv1, conv2, conv3 = self.channels(64, 128, 128)
        return {
            "conv1": ConvLayer(conv1, 8, 2),
            "conv2": ConvLayer(conv2, 6, 2, "VALID"),
            "conv3": ConvLayer(conv3, 5, 1, "VALID"),
            "head": Hidden(self.num_classes, relu=False),
        }
