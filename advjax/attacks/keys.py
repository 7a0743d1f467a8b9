"""Random keys: one per image, so that neither the batch nor its order nor the devices affect what happens to an image.

The keys are always of the threefry kind, whatever ``jax_default_prng_impl`` says: with "rbg" and "unsafe_rbg", what a
vmapped function draws for one image depends on the keys of the other images.
"""

import jax
import jax.numpy as jnp
import numpy as np

from advjax.types import Array, Key

BEFORE, AFTER, PREDICTION = 2**32 - 1, 2**32 - 2, 2**32 - 3
"""Query numbers of a stochastic model outside the steps of an attack: before them, after them, to predict labels."""
KEY_TYPE = "threefry2x32"


def keys_per_image(rng: Key, count: int) -> Key:
    """One threefry key per image: ``rng`` itself if it is an array of keys, else ``rng`` folded with the position.

    Raises:
      TypeError: ``rng`` is not a key.
      ValueError: ``rng`` is neither one key nor one key per image.
    """
    keys = threefry(rng)
    if keys.ndim == 0:
        return fold_in(keys, np.arange(count))
    if keys.shape != (count,):
        raise ValueError(f"rng must be one key or one key per image ({count}), got an array of shape {keys.shape}")
    return keys


def threefry(rng: Key) -> Key:
    """Threefry keys made from keys of any implementation, and from the raw keys of ``jax.random.PRNGKey``.

    Threefry keys are returned unchanged.
    """
    is_array = isinstance(rng, jax.Array | np.ndarray)
    if is_array and jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        words = jax.random.key_data(rng)
    elif is_array and rng.dtype == np.uint32 and rng.ndim and rng.shape[-1] >= 2:
        words = jnp.asarray(rng)
    else:
        got = f"an array of {rng.dtype} with shape {rng.shape}" if is_array else repr(rng)
        raise TypeError(f"rng must be a key, such as jax.random.key(0), or one key per image, got {got}")
    keys = typed(words[..., :2])
    for i in range(2, words.shape[-1]):
        keys = fold_in(keys, words[..., i])
    return keys


def fold_in(rngs: Key, numbers: int | Array | np.ndarray) -> Key:
    """Folds one number into all keys, or one number into each; a single key is folded with each of the numbers."""
    folded = jax.random.fold_in
    axes = (0 if rngs.ndim else None, 0 if np.ndim(numbers) else None)
    return folded(rngs, numbers) if axes == (None, None) else jax.vmap(folded, in_axes=axes)(rngs, numbers)


def image_keys(rng: Key, index: Array | np.ndarray) -> Key:
    """One threefry key per image: ``rng`` folded with the index [n] of the image in its data set."""
    return fold_in(threefry(rng), index)


def model_keys(rngs: Key, query: int | Array) -> Key:
    """Keys for the model's own randomness, independent of those that attacks derive from ``rngs``."""
    return fold_in(fold_in(rngs, 0x6D6F64), query)


def root_words(seed: int | Key) -> np.ndarray:
    """uint32 [2]: the key from which those of the images are derived, as the words that it consists of.

    Args:
      seed: an integer, or one key of any kind.
    """
    if isinstance(seed, int | np.integer) and not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be an integer of 64 bits or one key, got {seed}")
    key = jax.random.key(seed, impl=KEY_TYPE) if isinstance(seed, int | np.integer) else threefry(seed)
    if key.ndim:
        raise ValueError(f"seed must be an integer or one key, got keys of shape {key.shape}")
    return np.asarray(jax.random.key_data(key))


@jax.jit
def image_words(root: Array, index: Array) -> Array:
    """uint32 [n, 2]: the root key folded with the index [n] of each image."""
    return jax.random.key_data(fold_in(typed(root), index.astype(jnp.uint32)))


@jax.jit
def folded_words(words: Array, number: Array | int) -> Array:
    """Keys [n, 2] with one number folded into each."""
    return jax.random.key_data(fold_in(typed(words), number))


def typed(words: Array) -> Key:
    """The keys of ``KEY_TYPE`` that consist of these words."""
    return jax.random.wrap_key_data(words, impl=KEY_TYPE)
