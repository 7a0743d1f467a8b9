"""Helpers for arrays and states with one entry per image."""

from typing import Any

import jax
import jax.numpy as jnp

from advjax.types import Array


def broadcast(flags: Array, like: Array) -> Array:
    """Flags [n] in the shape [n, 1, ...], to broadcast against ``like``."""
    return flags.reshape(flags.shape + (1,) * (like.ndim - flags.ndim))


def select(flags: Array, if_true: Any, if_false: Any) -> Any:
    """For each image, the entries of one of two pytrees of arrays [n, ...]."""
    return jax.tree.map(lambda a, b: jnp.where(broadcast(flags, a), a, b), if_true, if_false)


def varying_like(known: Any, tree: Any) -> Any:
    """``tree``, varying over the devices of a surrounding ``shard_map`` wherever the arrays [n, ...] in ``known`` do.

    Loops require the types of their carry to stay the same, and a state that starts as a constant does not vary.
    """
    leaves = [_key_data(leaf) for leaf in jax.tree.leaves(known)]
    zeros = (jnp.zeros_like(leaf[(slice(None), *[0] * (leaf.ndim - 1))], jnp.int32) for leaf in leaves)
    never = sum(zeros, start=jnp.int32(0))
    return select(never > 0, tree, tree)


def _key_data(leaf: Array) -> Array:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
