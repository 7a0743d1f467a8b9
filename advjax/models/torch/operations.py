"""JAX versions of PyTorch's core ATen operations, in PyTorch's layout (channels first).

Each function takes the positional and keyword arguments of its operation. Those whose operation returns several tensors
of which only the first is used in inference return a tuple of one.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from advjax.models.torch.spatial_operations import (
    adaptive_avg_pool,
    adaptive_max_pool,
    avg_pool,
    convolution,
    max_pool,
    per_channel,
    resize,
)
from advjax.types import Array, UserError


def _batch_norm(x: Array, scale: Any, bias: Any, mean: Array, var: Array, momentum: float, eps: float) -> tuple[Array]:
    mean, factor = per_channel(mean, x.ndim), per_channel(lax.rsqrt(var + eps), x.ndim)
    return (_affine((x - mean) * factor, scale, bias),)


def _group_norm(
    x: Array, scale: Any, bias: Any, n: int, channels: int, positions: int, groups: int, eps: float
) -> tuple[Array]:
    grouped = x.reshape(n, groups, -1)
    return (_affine(_standardized(grouped, (-1,), eps).reshape(x.shape), scale, bias),)


def _layer_norm(x: Array, shape: Sequence[int], scale: Any, bias: Any, eps: float) -> tuple[Array]:
    y = _standardized(x, tuple(range(-len(shape), 0)), eps)
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias,)


def _slice(x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


def _split(x: Array, sizes: Any, dim: int = 0) -> list[Array]:
    length = x.shape[dim]
    ends = np.arange(sizes, length, sizes) if isinstance(sizes, int) else np.cumsum(sizes)[:-1]
    return jnp.split(x, [int(end) for end in ends], dim)


def _index(x: Array, indices: Sequence[Array | None]) -> Array:
    return x[tuple(slice(None) if index is None else index for index in indices)]


def _squeeze(x: Array, dims: Any = None) -> Array:
    dims = range(x.ndim) if dims is None else (dims,) if isinstance(dims, int) else dims
    return jnp.squeeze(x, tuple(dim for dim in dims if x.shape[dim] == 1))


def _expand(x: Array, shape: Sequence[int], implicit: bool = False) -> Array:
    own = (1,) * (len(shape) - x.ndim) + x.shape
    return jnp.broadcast_to(x, [old if new == -1 else new for old, new in zip(own, shape, strict=True)])


def _pad(x: Array, padding: Sequence[int], value: float = 0.0) -> Array:
    pairs = [(low, high, 0) for low, high in zip(padding[::2], padding[1::2], strict=True)]
    return lax.pad(x, jnp.asarray(value, x.dtype), [(0, 0, 0)] * (x.ndim - len(pairs)) + pairs[::-1])


def _norm(x: Array, order: float = 2, dim: Any = None, keepdim: bool = False) -> Array:
    if order != 2:
        raise UserError(f"from_torch does not convert the vector norm of order {order}, only 2")
    return jnp.sqrt(jnp.sum(x * x, _axes(dim), keepdims=keepdim))


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda x, dim=None, keepdim=False, dtype=None: function(x, _axes(dim), keepdims=keepdim)


def _variance(x: Array, dim: Any = None, *, correction: float = 1, keepdim: bool = False) -> Array:
    return jnp.var(x, _axes(dim), ddof=correction, keepdims=keepdim)  # pyright: ignore[reportArgumentType]


def _cast(x: Array, dtype: str | None = None) -> Array:
    return x if dtype is None else x.astype(dtype)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _axes(dim: Any) -> Any:
    return tuple(dim) if isinstance(dim, list | tuple) and dim else None if isinstance(dim, list | tuple) else dim


def _affine(x: Array, scale: Any, bias: Any) -> Array:
    x = x if scale is None else x * per_channel(scale, x.ndim)
    return x if bias is None else x + per_channel(bias, x.ndim)


def _standardized(x: Array, axes: Sequence[int], eps: float) -> Array:
    return (x - x.mean(axes, keepdims=True)) * lax.rsqrt(x.var(axes, keepdims=True) + eps)


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "sym_size": lambda x, dim: x.shape[dim],
    **{name: getattr(operator, name) for name in ("getitem", "floordiv", "mod")},
    "convolution": convolution,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "native_group_norm": _group_norm,
    "native_layer_norm": _layer_norm,
    "max_pool2d_with_indices": max_pool,
    "avg_pool2d": avg_pool,
    "_adaptive_avg_pool2d": adaptive_avg_pool,
    "adaptive_max_pool2d": adaptive_max_pool,
    "upsample_nearest2d": resize("nearest"),
    "upsample_bilinear2d": resize("linear"),
    "addmm": lambda bias, x, kernel, beta=1, alpha=1: beta * bias + alpha * (x @ kernel),
    **dict.fromkeys(("mm", "bmm"), jnp.matmul),
    "permute": jnp.transpose,
    **dict.fromkeys(("view", "_unsafe_view", "reshape"), jnp.reshape),
    "unsqueeze": jnp.expand_dims,
    "squeeze": _squeeze,
    "expand": _expand,
    "cat": lambda arrays, dim=0: jnp.concatenate(arrays, dim),
    "slice": _slice,
    "select": lambda x, dim, index: jnp.take(x, index % x.shape[dim], dim),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "index": _index,
    "constant_pad_nd": _pad,
    **dict.fromkeys(("clone", "alias", "lift_fresh_copy"), lambda x: x),
    "_to_copy": _cast,
    "full": lambda shape, value, dtype=None: jnp.full(shape, value, dtype),
    "full_like": lambda x, value, dtype=None: jnp.full_like(x, value, dtype),
    "scalar_tensor": lambda value, dtype=None: jnp.asarray(value, dtype),
    "mean": _reduction(jnp.mean),
    "sum": _reduction(jnp.sum),
    "amax": _reduction(jnp.max),
    "amin": _reduction(jnp.min),
    "any": _reduction(jnp.any),
    "var": _variance,
    "linalg_vector_norm": _norm,
    "_softmax": lambda x, dim, half: jax.nn.softmax(x, dim),
    "_log_softmax": lambda x, dim, half: jax.nn.log_softmax(x, dim),
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "prelu": lambda x, slope: jnp.where(x > 0, x, x * per_channel(slope, x.ndim)),
    "elu": lambda x, alpha=1.0, scale=1, input_scale=1: (
        scale * jnp.where(x > 0, x, alpha * jnp.expm1(input_scale * jnp.minimum(x, 0)))
    ),
    "gelu": lambda x, approximate="none": jax.nn.gelu(x, approximate == "tanh"),
    "sigmoid": jax.nn.sigmoid,
    "hardtanh": lambda x, low=-1.0, high=1.0: jnp.clip(x, low, high),
    "clamp": lambda x, low=None, high=None, min=None, max=None: jnp.clip(
        x, low if min is None else min, high if max is None else max
    ),
    "add": lambda x, y, alpha=1: x + (y if alpha == 1 else alpha * y),
    "sub": lambda x, y, alpha=1: x - (y if alpha == 1 else alpha * y),
    "rsub": lambda x, y, alpha=1: y - (x if alpha == 1 else alpha * x),
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": jnp.power,
    "neg": operator.neg,
    "reciprocal": jnp.reciprocal,
    "rsqrt": lax.rsqrt,
    "logical_not": jnp.logical_not,
    "where": jnp.where,
    "erf": lax.erf,
    **{name: getattr(jnp, name) for name in ("abs", "cos", "exp", "expm1", "log", "log1p", "maximum", "minimum")},
    **{name: getattr(jnp, name) for name in ("sign", "sin", "sqrt", "tanh")},
    **{name: getattr(operator, name) for name in ("eq", "ne", "gt", "ge", "lt", "le")},
}
"""Operation without its overload, such as "add" for ``aten.add.Tensor`` -> the function."""
