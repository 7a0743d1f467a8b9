"""Wide ResNets (Zagoruyko & Komodakis, 2016), the most common architecture of published robust classifiers."""

import flax.linen as nn

from advjax.models.layers import ImageClassifier
from advjax.models.preact_resnet import preact_blocks


class WideResNet(ImageClassifier):
    """WideResNet: 36,479,194 parameters at depth 28 and width 10, for ten classes and 32x32x3 images.

    stem 16 - stage1 16k - stage2 32k - stage3 64k - head, with (depth - 4) / 6 blocks per stage, strides 1, 2, 2, and
    BatchNorm and ReLU before the pooling. Manifold mixup has three positions, as in its authors' code: the input and
    the outputs of the first two stages.

    Attributes:
      depth: number of convolutions, 6n + 4.
      width: the multiplier k on the channels of the stages; the stem always has 16.
    """

    depth: int = 28
    width: float = 10.0

    def __post_init__(self):
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4, such as 10, 28, or 34, got {self.depth}")
        super().__post_init__()

    @property
    def mixing_points(self) -> tuple[str, ...]:
        """The input and the outputs of the first two stages."""
        return ("images", "stage1", "stage2")

    def make_blocks(self) -> dict[str, nn.Module]:
        features, stage_sizes = (16, *self.channels(16, 32, 64)), ((self.depth - 4) // 6,) * 3
        return preact_blocks(self, features, stage_sizes, (1, 2, 2), True)
