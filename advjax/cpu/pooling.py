"""Max and average pooling with windows that tile the image, with gradients that are fast on CPU."""

import functools
import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from advjax.types import Array


def is_supported(shape: Sequence[int], window: Sequence[int]) -> bool:
    """Whether nothing is empty and a window fits."""
    return min(shape) > 0 and all(1 <= size <= extent for size, extent in zip(window, shape, strict=True))


def max_pool(x: Array, window: Sequence[int]) -> Array:
    """Maximum over windows without overlap, gaps, or padding, compared elementwise: 4 to 10 times faster inside loops.

    Args:
      x: of any rank; entries that fill no whole window are ignored.
      window: size of the window along each axis, also its stride.
    """
    return functools.reduce(jnp.maximum, _positions(x, window))


def max_pool_gradient(x: Array, cotangent: Array, window: Sequence[int]) -> Array:
    """Gradient of ``max_pool``: it goes to the first maximum of the window in row-major order.

    So it does in PyTorch and ``lax.reduce_window``; on images with constant areas, such as MNIST, ties are common.
    """
    values = _positions(x, window)
    maximum = functools.reduce(jnp.maximum, values)
    first = jnp.full(maximum.shape, len(values), jnp.int32)
    for position in reversed(range(len(values))):
        first = jnp.where(values[position] == maximum, position, first)
    pooled = [axis for axis, size in enumerate(window) if size > 1]
    inserted = [axis + 1 + number for number, axis in enumerate(pooled)]
    sizes = np.ones(x.ndim + len(pooled), int)
    sizes[inserted] = [window[axis] for axis in pooled]
    positions = np.arange(len(values), dtype=np.int32).reshape(sizes)
    x_bar = jnp.where(jnp.expand_dims(first, inserted) == positions, jnp.expand_dims(cotangent, inserted), 0)
    x_bar = x_bar.reshape([extent * size for extent, size in zip(maximum.shape, window, strict=True)])
    return jnp.pad(x_bar, [(0, whole - part) for whole, part in zip(x.shape, x_bar.shape, strict=True)])


def sum_pool(x: Array, window: Sequence[int]) -> Array:
    """Sum over windows without overlap, gaps, or padding; arguments as for ``max_pool``."""
    outputs = [extent // size for extent, size in zip(x.shape, window, strict=True)]
    x = lax.slice(x, [0] * x.ndim, [extent * size for extent, size in zip(outputs, window, strict=True)])
    pairs = itertools.chain.from_iterable(zip(outputs, window, strict=True))
    return jnp.sum(x.reshape(tuple(pairs)), axis=tuple(range(1, 2 * x.ndim, 2)))


def _positions(x: Array, window: Sequence[int]) -> list[Array]:
    """For every position within a window, in row-major order, its values in all windows."""
    limits = [extent // size * size for extent, size in zip(x.shape, window, strict=True)]
    return [lax.slice(x, start, limits, window) for start in itertools.product(*map(range, window))]
