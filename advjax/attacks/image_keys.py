"""Random keys of images, as arrays of words that numpy can hold: one key for each image, whatever its batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.types import Array, Key

KEY_TYPE = "threefry2x32"
"""Type of the keys, whatever JAX's default is: others draw other numbers in other batches."""


def root_words(seed: int | Key) -> np.ndarray:
    """uint32 [2]: the key that those of the images are folded from.

    Args:
      seed: an integer, or one key; of a key that is not of ``KEY_TYPE``, random bits are taken.
    """
    if not _is_key(seed):
        key = jax.random.wrap_key_data(jnp.asarray(seed)) if np.ndim(seed) else jax.random.key(seed, impl=KEY_TYPE)
    else:
        key = jnp.asarray(seed)
    if key.ndim:
        raise ValueError(f"seed must be an integer or one key, got keys of shape {key.shape}")
    is_usable = str(jax.random.key_impl(key)) == KEY_TYPE
    return _words(key) if is_usable else np.asarray(jax.random.bits(key, (2,), jnp.uint32))


@jax.jit
def image_keys(root: Array, index: Array) -> Array:
    """uint32 [n, 2]: the root key folded with the index [n] of each image."""
    return jax.random.key_data(jax.vmap(jax.random.fold_in, in_axes=(None, 0))(typed(root), index.astype(jnp.uint32)))


@jax.jit
def folded(keys: Array, number: Array | int) -> Array:
    """Keys [n, 2] folded with one number."""
    return jax.random.key_data(jax.vmap(jax.random.fold_in, in_axes=(0, None))(typed(keys), number))


def typed(words: Array) -> Key:
    """The keys that consist of these words."""
    return jax.random.wrap_key_data(words, impl=KEY_TYPE)


def _words(key: Key) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
