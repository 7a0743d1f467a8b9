"""Building blocks of stochastic models: one draw per image, and several draws of a batch."""

from collections.abc import Callable

import jax

from advjax.types import Array, Key, LogitsFn, StochasticLogitsFn


def per_image(transform: Callable[[Array, Key], Array], logits_fn: LogitsFn) -> StochasticLogitsFn:
    """The logits of randomly transformed images, each with its own key."""

    def draw(images: Array, rng: Key) -> Array:
        return logits_fn(jax.vmap(transform)(images, jax.random.split(rng, images.shape[0])))

    return draw


def draws(stochastic_fn: StochasticLogitsFn, num_draws: int) -> StochasticLogitsFn:
    """``(images [n, h, w, c], rng) -> logits [draws, n, classes]``.

    Raises:
      ValueError: ``num_draws`` is below 1.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    return lambda images, rng: jax.vmap(stochastic_fn, in_axes=(None, 0))(images, jax.random.split(rng, num_draws))
