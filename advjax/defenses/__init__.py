"""Test-time defences: ``LogitsFn -> StochasticLogitsFn``, pure, with their randomness in a key.

One call is one draw. ``averaged`` makes the mean of several draws out of it, as a deployed model would predict;
``attacks.expectation`` attacks it through its randomness. None of this is evidence of robustness: that is for
``evaluation`` to measure, with the defence in the loop.
"""

from advjax.defenses.draws import averaged, straight_through, voted
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
