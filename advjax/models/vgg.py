"""VGG16 (Simonyan & Zisserman, 2015, configuration D) for 32x32 and 224x224 images, also as random self-ensemble."""

from collections.abc import Sequence

import flax.linen as nn

from advjax.models.layers import AverageHead, GaussianNoise, Hidden, ImageClassifier, batch_norm, conv, he_fan_out
from advjax.types import Array

STAGE_SIZES = (2, 2, 3, 3, 3)


class VGGStage(nn.Module):
    """3x3 convolutions with bias, optionally preceded by noise and followed by BatchNorm, with ReLU; 2x2 max pooling.

    Attributes:
      features: number of channels of all convolutions.
      noises: standard deviation of the noise before each convolution.
      norm: whether to use BatchNorm.
      axis_name: mesh axis over which BatchNorm is synchronized.
    """

    features: int
    noises: Sequence[float]
    norm: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        for i, noise in enumerate(self.noises):
            x = GaussianNoise(noise)(x)
            x = conv(self.features, use_bias=True, kernel_init=he_fan_out, name=f"conv{i}")(x)
            if self.norm:
                x = batch_norm(f"norm{i}", train, self.axis_name)(x)
            x = nn.relu(x)
        return nn.max_pool(x, (2, 2), (2, 2))


class VGG16(ImageClassifier):
    """VGG16: 14,719,818 parameters for ten classes, 14,728,266 with BatchNorm, 134,301,514 with the classic head.

    stage1 64 - stage2 128 - stage3 256 - stage4 512 - stage5 512 - head, or fc1 - fc2 - head for the classic one.
    Images must be at least 32x32.

    Convolutions are initialized as in torchvision, normal with variance 2 / fan_out and bias 0: without BatchNorm, the
    signal vanishes under PyTorch's default initialization.

    Attributes:
      batch_norm: BatchNorm after every convolution.
      head: "linear", on global average pooling (of a single position for 32x32 images), or "classic", with two hidden
        layers of 4096 units, meant for 224x224 images and without their dropout in training.
      noise: standard deviation of the noise before the first and before every other convolution; (0.2, 0.1), with
        BatchNorm, is the random self-ensemble of Liu et al. (2018).
    """

    batch_norm: bool = False
    head: str = "linear"
    noise: Sequence[float] = (0.0, 0.0)

    def __post_init__(self):
        if self.head not in ("linear", "classic"):
            raise ValueError(f"head must be 'linear' or 'classic', got {self.head!r}")
        if len(self.noise) != 2 or min(self.noise) < 0:
            raise ValueError(f"noise must be two numbers of at least 0 (first, others), got {tuple(self.noise)}")
        super().__post_init__()

    def make_blocks(self) -> dict[str, nn.Module]:
        first, others = self.noise
        *features, hidden = self.channels(64, 128, 256, 512, 512, 4096)
        stages = {}
        for i, (number, size) in enumerate(zip(features, STAGE_SIZES, strict=True), 1):
            noises = (first if i == 1 else others, *(others,) * (size - 1))
            stages[f"stage{i}"] = VGGStage(number, noises, self.batch_norm, axis_name=self.axis_name)
        if self.head == "linear":
            return {**stages, "head": AverageHead(self.num_classes)}
        return {**stages, "fc1": Hidden(hidden), "fc2": Hidden(hidden), "head": Hidden(self.num_classes, relu=False)}
