"""Convolutions, pooling and interpolation of PyTorch in JAX, in PyTorch's layout (channels first)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from advjax.types import Array, UserError


def convolution(
    x: Array, kernel: Array, bias: Array | None, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any
) -> Array:
    """Strided, dilated or grouped convolution; ``rest`` are the output padding of transposed ones, and the groups."""
    if transposed:
        raise UserError("from_torch does not convert transposed convolutions")
    _, groups = rest
    spatial = x.ndim - 2
    y = lax.conv_general_dilated(
        x,
        kernel,
        _repeated(stride, spatial),
        [(p, p) for p in _repeated(padding, spatial)],
        rhs_dilation=_repeated(dilation, spatial),
        feature_group_count=groups,
    )
    return y if bias is None else y + per_channel(bias, y.ndim)


def max_pool(
    x: Array, size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[Array]:
    """Max pooling over rows and columns; the indices that PyTorch also returns are left out."""
    size, stride, padding, dilation = (_repeated(v, 2) for v in (size, stride or size, padding, dilation))
    ends = []
    for i, length in enumerate(x.shape[2:]):
        free = length + 2 * padding[i] - dilation[i] * (size[i] - 1) - 1
        steps = -(-free // stride[i]) if ceil_mode else free // stride[i]
        # PyTorch drops a window that would start in the padding at the end.
        steps -= steps * stride[i] >= length + padding[i]
        ends.append((padding[i], max(padding[i], padding[i] + steps * stride[i] - free)))
    pads = [(0, 0), (0, 0), *ends]
    window, strides = (1, 1, *size), (1, 1, *stride)
    return (lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads, window_dilation=(1, 1, *dilation)),)


def avg_pool(
    x: Array,
    size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Average pooling over rows and columns."""
    size, stride, padding = (_repeated(v, 2) for v in (size, stride or size, padding))
    if ceil_mode and any((x.shape[2 + i] + 2 * padding[i] - size[i]) % stride[i] for i in range(2)):
        raise UserError("from_torch does not convert average pooling with ceil_mode")
    pads = [(0, 0), (0, 0), *((p, p) for p in padding)]

    def total(values: Array) -> Array:
        return lax.reduce_window(values, 0.0, lax.add, (1, 1, *size), (1, 1, *stride), pads)

    if divisor_override or count_include_pad:
        return total(x) / (divisor_override or size[0] * size[1])
    return total(x) / total(jnp.ones_like(x))


def adaptive_avg_pool(x: Array, size: Sequence[int]) -> Array:
    """Averages over windows, which may overlap, so that the result has the given size."""
    rows, columns = (_averaging(length, number) for length, number in zip(x.shape[2:], size, strict=True))
    return jnp.einsum("nchw,ph,qw->ncpq", x, rows, columns, precision="highest")


def adaptive_max_pool(x: Array, size: Sequence[int]) -> tuple[Array]:
    """Maxima over windows that do not overlap."""
    (n, channels, height, width), (rows, columns) = x.shape, size
    if height % rows or width % columns:
        raise UserError(f"from_torch does not convert adaptive max pooling of {height}x{width} to {rows}x{columns}")
    return (x.reshape(n, channels, rows, height // rows, columns, width // columns).max((3, 5)),)


def resize(method: str) -> Callable[..., Array]:
    """``(x, size, [align_corners,] scales) -> array`` for the method "nearest" or "linear"."""

    def interpolate(x: Array, size: Any, *rest: Any) -> Array:
        if method == "linear" and rest[0]:
            raise UserError("from_torch does not convert interpolation with align_corners=True")
        sides = size or tuple(int(side * scale) for side, scale in zip(x.shape[2:], rest[-1], strict=True))
        if method == "linear":
            return jax.image.resize(x, (*x.shape[:2], *sides), method, antialias=False)
        rows, columns = (np.arange(new) * old // new for new, old in zip(sides, x.shape[2:], strict=True))
        return x[:, :, rows][:, :, :, columns]

    return interpolate


def _repeated(value: Any, number: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * number if len(values) == 1 else values


def per_channel(values: Array, ndim: int) -> Array:
    """Reshapes [channels] so that it broadcasts to [n, channels, ...] with ``ndim`` dimensions."""
    return values.reshape(-1, *(1,) * (ndim - 2))


def _averaging(length: int, number: int) -> np.ndarray:
    """Matrix [number, length] that averages the windows of adaptive pooling."""
    starts = np.arange(number) * length // number
    ends = -(-(np.arange(number) + 1) * length // number)
    positions = np.arange(length)
    inside = (positions >= starts[:, None]) & (positions < ends[:, None])
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)
