"""Input noise (Cohen et al. 2019). Noise inside a network is part of the model, see ``models.layers``."""

import jax

from advjax.defenses.draws import per_image
from advjax.types import Array, Key, LogitsFn, StochasticLogitsFn


def gaussian_smoothing(logits_fn: LogitsFn, std: float) -> StochasticLogitsFn:
    """``f(x + n)`` with Gaussian n of standard deviation ``std``, for pixels in [0, 1]; not clipped.

    Predict by majority vote over many draws: ``voted(gaussian_smoothing(f, 0.25), 100)``.

    Raises:
      ValueError: ``std`` is negative.
    """
    if std < 0:
        raise ValueError(f"std must be 0 or more, got {std}")

    def noisy(image: Array, rng: Key) -> Array:
        return image + std * jax.random.normal(rng, image.shape, image.dtype)

    return per_image(noisy, logits_fn)
