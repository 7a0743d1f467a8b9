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
    keys = jax.random.wrap_key_data(words[..., :2], impl="threefry2x32")
    for i in range(2, words.shape[-1]):
        keys = fold_in(keys, words[..., i])
    return keys


def fold_in(rngs: Key, numbers: int | Array | np.ndarray) -> Key:
    """Folds one number into all keys, or one number into each; a single key is folded with each of the numbers."""
    folded = jax.random.fold_in
    axes = (0 if rngs.ndim else None, 0 if np.ndim(numbers) else None)
    return folded(rngs, numbers) if axes == (None, None) else jax.vmap(folded, in_axes=axes)(rngs, numbers)


def model_keys(rngs: Key, query: int | Array) -> Key:
    """Keys for the model's own randomness, independent of those that attacks derive from ``rngs``."""
    return fold_in(fold_in(rngs, 0x6D6F64), query)
