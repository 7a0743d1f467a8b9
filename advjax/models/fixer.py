"""Fixer modules: small residual corrections inside a frozen classifier.

Coppola, Lee & Guan; eq. 1, Fig. 1 and Table 7.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from advjax.models.blocks import Classifier, Patched
from advjax.types import Array

ACTIVATIONS = {"identity": lambda x: x, "tanh": jnp.tanh}


class Fixer(nn.Module):
    """``relu(h + delta * zeta(conv3x3(relu(conv1x1(h)))))`` on features h [n, height, width, c], shape kept.

    The 1x1 convolution reduces the channels by a factor of ``reduction``, the 3x3 one restores them; both have biases.
    Because h is a sum of rectified tensors, the outer ReLU does not change it: with ``delta=0`` the classifier equals
    the base, bit for bit.

    Attributes:
      delta: weight of the correction; 0.1 and 1 in the paper.
      activation: zeta, "identity" or "tanh".
      reduction: rho in the paper, 4.
      zero_last: initialize the correction to 0, that is, start at the base model; otherwise Glorot uniform like the
        first layer.
    """

    delta: float = 1.0
    activation: str = "identity"
    reduction: int = 4
    zero_last: bool = False

    @nn.compact
    def with_sum(self, h: Array) -> tuple[Array, Array]:
        """The corrected features ``h + delta * zeta(...)`` before the outer ReLU, and the output."""
        channels = h.shape[-1]
        glorot = nn.initializers.glorot_uniform()
        last = nn.initializers.zeros if self.zero_last else glorot
        squeezed = nn.Conv(max(1, channels // self.reduction), (1, 1), kernel_init=glorot, name="squeeze")(h)
        correction = nn.Conv(channels, (3, 3), kernel_init=last, name="expand")(nn.relu(squeezed))
        corrected = h + self.delta * ACTIVATIONS[self.activation](correction)
        return corrected, nn.relu(corrected)

    def __call__(self, h: Array, *, train: bool = False) -> Array:
        return self.with_sum(h)[1]


def with_fixers(base: Classifier | Patched, after: Sequence[str] = ("res1", "res2"), **fixer: object) -> Patched:
    """The classifier with a fixer after each of the named blocks; it computes the same at first only if ``zero_last``.

    By default, the fixers start from random weights, as in the paper, and change the predictions until they are
    trained. The outputs of the blocks should be rectified: where features may be negative, the fixer's outer ReLU
    changes the classifier even without a correction. At width 1, the two fixers of ResNet9 have 41,120 and 656,000
    parameters, 10.6% of the base.

    Raises:
      ValueError: the activation is unknown, or ``reduction`` is below 1.
    """
    module = Fixer(**fixer)  # type: ignore[arg-type]
    if module.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {module.activation!r}")
    if module.reduction < 1:
        raise ValueError(f"reduction must be at least 1, got {module.reduction}")
    return Patched(base, {name: module.clone() for name in after})
