"""LeNet5 of the mixup report (001) and the 62,006-parameter network of the PyTorch tutorial (004)."""

import flax.linen as nn
import jax

from advjax.models.layers import GaussianNoise, Hidden, ImageClassifier, conv
from advjax.types import Array


class ConvPool(nn.Module):
    """Optional noise, unpadded convolution with bias, ReLU, and 2x2 max pooling."""

    features: int
    size: int = 5
    noise: float = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = GaussianNoise(self.noise)(x)
        x = conv(self.features, self.size, padding="VALID", use_bias=True, fan_in=self.size**2 * x.shape[-1])(x)
        return nn.max_pool(nn.relu(x), (2, 2), (2, 2))


class Net62k(ImageClassifier):
    """Two 5x5 convolutions with pooling and three linear layers: 62,006 parameters for 32x32x3 images.

    conv1 6 - conv2 16 - fc1 120 - fc2 84 - head. The random self-ensemble in 004 has ``noise=0.2``.

    Attributes:
      noise: standard deviation of the noise before both convolutions, in the units of their inputs.
    """

    noise: float = 0.0

    def make_blocks(self) -> dict[str, nn.Module]:
        conv1, conv2, fc1, fc2 = self.channels(6, 16, 120, 84)
        return {
            "conv1": ConvPool(conv1, noise=self.noise),
            "conv2": ConvPool(conv2, noise=self.noise),
            "fc1": Hidden(fc1),
            "fc2": Hidden(fc2),
            "head": Hidden(self.num_classes, relu=False),
        }


class LeNet5(Net62k):
    """LeNet5 with ReLU and max pooling: the same layers, 61,706 parameters for 32x32x1 images.

    28x28 images are first resized bilinearly to 32x32, as 001 does for MNIST. Manifold mixup has five positions: the
    input and the outputs of all blocks except the head.
    """

    def prepare(self, images: Array) -> Array:
        images = super().prepare(images)
        if images.shape[1:3] != (28, 28):
            return images
        return jax.image.resize(images, (images.shape[0], 32, 32, images.shape[-1]), "bilinear")
