"""Random keys: one per image, so that neither the batch nor the order of its images affects any of them."""

import jax
import jax.numpy as jnp
import numpy as np

from advjax.types import Array, Key

BEFORE, AFTER, PREDICTION = 2**32 - 1, 2**32 - 2, 2**32 - 3
"""Query numbers of a stochastic model outside the steps of an attack: before them, after them, to predict labels."""


def keys_per_image(rng: Key, count: int) -> Key:
    """Returns one key per image: ``rng`` itself if it is an array of keys, else ``rng`` folded with the position."""
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    if rng.ndim == 0:
        return jax.vmap(lambda position: jax.random.fold_in(rng, position))(np.arange(count))
    if rng.shape != (count,):
        raise ValueError(f"rng must be one key or one key per image ({count}), got an array of shape {rng.shape}")
    return rng


def image_keys(rng: Key, index: Array | np.ndarray) -> Key:
    """One key per image: ``rng`` folded with the index [n] of the image in its data set."""
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)


def fold_in(rngs: Key, number: int | Array) -> Key:
    """Folds one number into each of the keys [n]."""
    return jax.vmap(lambda rng: jax.random.fold_in(rng, number))(rngs)


def model_keys(rngs: Key, query: int | Array) -> Key:
    """Keys for the model's own randomness, independent of those that attacks derive from ``rngs``."""
    return fold_in(fold_in(rngs, 0x6D6F64), query)
