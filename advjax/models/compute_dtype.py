"""Computes models in a lower precision while their variables, logits and losses stay float32."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from advjax.types import Array, PyTree

COMPUTE_DTYPES = ("float32", "bfloat16")
_active: contextvars.ContextVar[str] = contextvars.ContextVar("compute_dtype", default="float32")


@contextlib.contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """Within this context, models that are traced through ``blocks.apply`` compute in another type.

    Parameters and images are cast on their way in and outputs to float32 on their way out, so that parameters, their
    gradients, logits and losses are float32.  Batch statistics are not cast, and are computed in float32.  The context
    counts where a function is traced, as ``jax.default_matmul_precision`` does.

    Args:
      dtype: one of ``COMPUTE_DTYPES``.
    """
    if dtype not in COMPUTE_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(COMPUTE_DTYPES)}, got {dtype!r}")
    token = _active.set(dtype)
    try:
        yield
    finally:
        _active.reset(token)


def lowered(tree: PyTree) -> PyTree:
    """Parameters or images in the type to compute in."""
    return _cast(tree, jnp.float32, jnp.dtype(_active.get()))


def restored(tree: PyTree) -> PyTree:
    """Outputs in float32."""
    return _cast(tree, jnp.dtype(_active.get()), jnp.float32)


def keeping_dtype(function: Any) -> Any:
    """A hook between blocks whose result has the type of the features that it is given."""
    return lambda name, features: jnp.asarray(function(name, features), features.dtype)


def _cast(tree: PyTree, source: Any, target: Any) -> PyTree:
    def cast(leaf: Array) -> Array:
        return leaf.astype(target) if jnp.result_type(leaf) == source else leaf

    return tree if source == target else jax.tree.map(cast, tree)
