"""ConvSmall: the small network of certified and fast adversarial training on MNIST, without pooling."""

import flax.linen as nn

from advjax.models.layers import Hidden, ImageClassifier, conv
from advjax.types import Array


class StridedConv(nn.Module):
    """A 4x4 convolution with stride 2 and bias, padded by one pixel on every side, and ReLU."""

    features: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        fan_in = 16 * x.shape[-1]
        return nn.relu(conv(self.features, 4, 2, padding=((1, 1), (1, 1)), use_bias=True, fan_in=fan_in)(x))


class ConvSmall(ImageClassifier):
    """Two strided 4x4 convolutions and two linear layers: 166,406 parameters for 28x28x1 images.

    conv1 16 - conv2 32 - fc1 100 - head: the MNIST network of Wong & Kolter (2018) and of Wong, Rice & Kolter (2020).
    """

    def make_blocks(self) -> dict[str, nn.Module]:
        conv1, conv2, fc1 = self.channels(16, 32, 100)
        return {
            "conv1": StridedConv(conv1),
            "conv2": StridedConv(conv2),
            "fc1": Hidden(fc1),
            "head": Hidden(self.num_classes, relu=False),
        }
