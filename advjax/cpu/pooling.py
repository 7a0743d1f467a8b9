"""Max pooling over NHWC images, with a gradient that is fast on CPU and deterministic for ties."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from advjax.cpu.convolution import uses_exact_convolutions
from advjax.types import Array


def max_pool(
    x: Array,
    window: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """Maximum over windows of ``x`` [n, h, w, channels] or of a single image [h, w, channels].

    ``strides`` defaults to ``window``, as in PyTorch (``flax.linen.max_pool`` defaults to 1). The gradient goes to the
    first maximum of the window in row-major order, as in PyTorch and ``lax.reduce_window``; on images with constant
    areas, such as MNIST, ties are common.

    On CPU, windows without overlap, gaps, and padding are compared elementwise, which is 4 to 10 times faster inside
    loops; all other cases, and all within ``convolution.exact()``, use ``lax.reduce_window``. As for convolutions,
    forward-mode differentiation on CPU needs ``convolution.exact()``.
    """
    steps = tuple(window if strides is None else strides)
    fits = all(size <= extent for size, extent in zip(window, x.shape[-3:-1], strict=True))
    is_plain = x.ndim == 4 and tuple(window) == steps and padding == "VALID" and fits and min(x.shape) > 0
    if is_plain and not uses_exact_convolutions():
        return _max_pool(x, steps)
    return _reduce_max(x, tuple(window), steps, padding)


def _reduce_max(
    x: Array, window: tuple[int, ...], strides: tuple[int, ...], padding: str | Sequence[tuple[int, int]]
) -> Array:
    batch = (1,) * (x.ndim - 3)
    pads = padding if isinstance(padding, str) else [(0, 0)] * len(batch) + [*padding, (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, (*batch, *window, 1), (*batch, *strides, 1), pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: Array, window: tuple[int, ...]) -> Array:
    return functools.reduce(jnp.maximum, _positions(x, window))


def _max_pool_forward(x: Array, window: tuple[int, ...]) -> tuple[Any, tuple[Array, Any]]:
    y = _max_pool(x, window)
    return y, (x, y)


def _max_pool_backward(window: tuple[int, ...], residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    x, y = residuals
    values = _positions(x, window)
    first = jnp.full(y.shape, len(values), jnp.int32)
    for position in reversed(range(len(values))):
        first = jnp.where(values[position] == y, position, first)
    rows, columns = window
    positions = np.arange(rows * columns, dtype=np.int32).reshape(rows, 1, columns, 1)

    def spread(pooled: Array) -> Array:
        return pooled[:, :, None, :, None, :]

    x_bar = jnp.where(spread(first) == positions, spread(cotangent), 0)
    batch, height, width, channels = y.shape
    x_bar = x_bar.reshape(batch, height * rows, width * columns, channels)
    below, right = x.shape[1] - height * rows, x.shape[2] - width * columns
    return (jnp.pad(x_bar, ((0, 0), (0, below), (0, right), (0, 0))),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _positions(x: Array, window: tuple[int, ...]) -> list[Array]:
    """For every position within a window, in row-major order, its values in all windows."""
    rows, columns = window
    height, width = x.shape[1] // rows * rows, x.shape[2] // columns * columns
    return [
        lax.slice(x, (0, row, column, 0), (x.shape[0], height, width, x.shape[3]), (1, rows, columns, 1))
        for row in range(rows)
        for column in range(columns)
    ]
