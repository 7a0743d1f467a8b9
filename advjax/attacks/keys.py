"""Random keys: one per image, so that neither the batch nor the order of its images affects any of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.types import Array, Key

BEFORE, AFTER, PREDICTION = 2**32 - 1, 2**32 - 2, 2**32 - 3
"""Query numbers of a stochastic model outside the steps of an attack: before them, after them, to predict labels."""
KEY_TYPE = "threefry2x32"
"""Type of the keys that the runner derives, whatever JAX's default is: others draw other numbers in other batches."""


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


def root_words(seed: int | Key) -> np.ndarray:
    """uint32 [2]: the key from which those of the images are derived, as the words that it consists of.

    Args:
      seed: an integer, or one key; a key that is not of ``KEY_TYPE`` is replaced by random bits drawn from it.
    """
    if not _is_key(seed):
        key = jax.random.wrap_key_data(jnp.asarray(seed)) if np.ndim(seed) else jax.random.key(seed, impl=KEY_TYPE)
    else:
        key = jnp.asarray(seed)
    if key.ndim:
        raise ValueError(f"seed must be an integer or one key, got keys of shape {key.shape}")
    is_usable = str(jax.random.key_impl(key)) == KEY_TYPE
    return np.asarray(jax.random.key_data(key) if is_usable else jax.random.bits(key, (2,), jnp.uint32))


@jax.jit
def image_words(root: Array, index: Array) -> Array:
    """uint32 [n, 2]: the root key folded with the index [n] of each image."""
    return jax.random.key_data(jax.vmap(jax.random.fold_in, in_axes=(None, 0))(typed(root), index.astype(jnp.uint32)))


@jax.jit
def folded_words(words: Array, number: Array | int) -> Array:
    """Keys [n, 2] with one number folded into each."""
    return jax.random.key_data(fold_in(typed(words), number))


def typed(words: Array) -> Key:
    """The keys of ``KEY_TYPE`` that consist of these words."""
    return jax.random.wrap_key_data(words, impl=KEY_TYPE)


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
