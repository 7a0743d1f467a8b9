"""The networks of DeepMind's robust CIFAR models (Gowal et al., 2020; Rebuffi et al., 2021) in their PyTorch form.

They are the strongest published ones (Gowal et al., 2021; Wang et al., 2023; Bartoldson et al., 2024). They are
pre-activation ResNets translated from JAX: convolutions of stride 2 pad at the end alone, and the activation is SiLU.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from advjax.models.layers import ImageClassifier
from advjax.models.preact_resnet import PreActVariant, preact_blocks
from advjax.models.wide_resnet import WideResNet
from advjax.types import Array


class DMWideResNet(WideResNet):
    """WideResNet: 36,479,194 parameters at depth 28 and width 10, for ten classes and 32x32x3 images.

    As ``WideResNet``, except for the activation and for the padding of convolutions of stride 2. The published models
    normalize their input (CIFAR-10: mean 0.4914, 0.4822, 0.4465; std 0.2471, 0.2435, 0.2616).

    Attributes:
      activation: "silu" (Swish) as in the published models, or "relu", the default of their code.
      padding: rows and columns of zeros around the images, before the normalization; 2 for 28x28 images.
    """

    activation: str = "silu"
    padding: int = 0

    def __post_init__(self):
        PreActVariant(self.activation)  # Refuses unknown values.
        super().__post_init__()

    def prepare(self, images: Array) -> Array:
        return super().prepare(_padded(images, self.padding))

    def make_blocks(self) -> dict[str, nn.Module]:
        features, stage_sizes = (16, *self.channels(16, 32, 64)), ((self.depth - 4) // 6,) * 3
        variant = PreActVariant(self.activation, pad_end=True)
        return preact_blocks(self, features, stage_sizes, (1, 2, 2), True, variant)


class DMPreActResNet18(ImageClassifier):
    """Pre-activation ResNet18 with 3x3 projection shortcuts: 12,548,426 parameters for ten classes.

    stem 64 - stage1 64 - stage2 128 - stage3 256 - stage4 512 - head, with strides 1, 2, 2, 2, and BatchNorm and the
    activation before the pooling.

    Attributes:
      stage_sizes: number of blocks in each of the four stages; (3, 4, 6, 3) is the ResNet34.
      activation: "silu" (Swish) as in the published models, or "relu", the default of their code.
      shortcut_input: projection shortcuts take the "raw" input of the block, or the "activation" of its BatchNorm.
      padding: rows and columns of zeros around the images, before the normalization; 2 for 28x28 images.
    """

    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    activation: str = "silu"
    shortcut_input: str = "raw"
    padding: int = 0

    def __post_init__(self):
        if len(self.stage_sizes) != 4 or min(self.stage_sizes) < 1:
            raise ValueError(f"stage_sizes must be four numbers of at least 1, got {tuple(self.stage_sizes)}")
        PreActVariant(self.activation, self.shortcut_input)  # Refuses unknown values.
        super().__post_init__()

    def prepare(self, images: Array) -> Array:
        return super().prepare(_padded(images, self.padding))

    def make_blocks(self) -> dict[str, nn.Module]:
        features, strides = self.channels(64, 64, 128, 256, 512), (1, 2, 2, 2)
        variant = PreActVariant(self.activation, self.shortcut_input, shortcut_size=3, pad_end=True)
        return preact_blocks(self, features, self.stage_sizes, strides, True, variant)


def _padded(images: Array, padding: int) -> Array:
    return jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
