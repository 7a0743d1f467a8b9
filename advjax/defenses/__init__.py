"""Test-time defenses: ``LogitsFn -> StochasticLogitsFn``, pure functions with all randomness in a key.

One call is one draw. ``averaged`` and ``voted`` combine several draws into one prediction; ``attacks.expectation``
attacks the draws (EOT). A defense is no evidence of robustness by itself: evaluate it with ``advjax.evaluation``, with
the defense in the loop.
"""

from advjax.defenses.bpda import straight_through
from advjax.defenses.majority_vote import voted
from advjax.defenses.mean_prediction import averaged
from advjax.defenses.mixup_inference import MixingPool, make_pool, mixup_inference
from advjax.defenses.noise import gaussian_smoothing
from advjax.defenses.resizing import random_resize_pad

__all__ = [
    "MixingPool",
    "averaged",
    "gaussian_smoothing",
    "make_pool",
    "mixup_inference",
    "random_resize_pad",
    "straight_through",
    "voted",
]
