"""Convolution with algorithms that are fast on CPU.

XLA's CPU backend is slow exactly where attacks spend their time: inside ``scan``, ``fori_loop`` and ``while_loop`` its
gradients of a convolution fall off their fast path (the input gradient by 2 to 20 times, the filter gradient by 50 to
200), and kernels with few channels run far below the speed of a matrix product. On CPU, :func:`conv_general_dilated`
therefore replaces the convolution and both of its gradients with algorithms that :func:`_plan` selects from the static
shapes. On other backends, and in unsupported cases (dilation, groups, explicit precision, dtypes other than float32,
layouts other than NHWC), it is ``lax.conv_general_dilated``.

The results equal those of ``lax`` up to rounding: 1e-6 relative, 1e-5 where Winograd's algorithm is used (3x3 kernels
with at least 64 channels in the filter gradient, 128 elsewhere). ``with exact():`` around the tracing, or the
environment variable ADVJAX_EXACT_CONVOLUTIONS=1, gives ``lax`` itself, bit for bit. The replacement is a reverse-mode
rule, which can itself be differentiated; ``jax.jvp`` and ``jax.hessian`` (forward mode) need the exact mode on CPU.
"""

import contextlib
import contextvars
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from advjax.cpu.matmul import Padding, Strides, matmul, output_size
from advjax.cpu.winograd import winograd
from advjax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_exact = contextvars.ContextVar("exact_convolutions", default=False)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Within this context convolutions are traced as ``lax.conv_general_dilated``.

    The choice is made when a function is traced: a jitted function that was called before keeps its compiled version,
    so create and call a fresh ``jax.jit`` inside the context.
    """
    token = _exact.set(True)
    try:
        yield
    finally:
        _exact.reset(token)


def uses_exact_convolutions() -> bool:
    """Whether a convolution traced now would be ``lax``'s: not on CPU, within :func:`exact`, or by the environment."""
    forced = os.environ.get("ADVJAX_EXACT_CONVOLUTIONS", "0") not in ("", "0")
    return forced or _exact.get() or jax.default_backend() != "cpu"


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Drop-in replacement for ``jax.lax.conv_general_dilated``, to be passed to ``flax.linen.Conv``.

    ``lhs`` are images [n, h, w, channels] and ``rhs`` is a kernel [rows, columns, channels, features] if
    ``dimension_numbers`` say so, as in linen. Works under ``jit``, ``grad``, ``vmap``, ``scan`` and ``shard_map``.
    """
    exact_convolution = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    is_plain = (
        jnp.ndim(lhs) == 4
        and lhs.dtype == rhs.dtype == jnp.float32
        and set(lhs_dilation or (1,)) == set(rhs_dilation or (1,)) == {1}
        and feature_group_count == batch_group_count == 1
        and precision is None
        and preferred_element_type is None
        and _is_channels_last(lhs.shape, rhs.shape, dimension_numbers)
    )
    if not is_plain or uses_exact_convolutions():
        return exact_convolution(lhs, rhs)

    strides = tuple(window_strides)
    pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding) if isinstance(padding, str) else padding
    pads = tuple((int(low), int(high)) for low, high in pads)
    if not _is_supported(lhs.shape, rhs.shape, strides, pads):
        return exact_convolution(lhs, rhs)
    return _convolve(*_equally_varying(lhs, rhs), strides, pads)


# --- which algorithm -------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """The algorithm for each direction: a name in ``_ALGORITHMS``, whose transpose gives a gradient.

    Two gradients can be computed as forward convolutions, which stay fast inside loops: ``input_gradient`` may be
    "flip" (the cotangent convolved with the flipped kernel, planned in turn), ``filter_gradient`` may be "swap"
    (channels as the batch, the cotangent as the kernel).
    """

    forward: str
    input_gradient: str
    filter_gradient: str


_MAX_PATCHES = 2**26  # Number of entries in the patches of one matrix product: 256 MiB.


def _plan(images: Sequence[int], kernel: Sequence[int], strides: Strides, padding: Padding) -> _Plan:
    """Selects by shape; the thresholds are the crossover points on x86 CPUs (AVX2 and AVX-512)."""
    *window, channels, features = kernel
    pointwise, minimal = window == [1, 1], window == [3, 3] and strides == (1, 1)
    height, width = output_size(images, kernel, strides, padding)
    affordable = images[0] * height * width * math.prod(kernel[:3]) <= _MAX_PATCHES

    forward = input_gradient = "lax"
    if minimal and min(channels, features) >= 128:
        forward = "winograd"
    elif affordable and (pointwise or (channels <= 8 and features <= 16)):
        forward = "matmul"

    if affordable and (channels <= 8 or strides != (1, 1)):
        input_gradient = "matmul"
    elif strides == (1, 1):
        input_gradient = "flip"

    if minimal and min(channels, features) >= 64:
        filter_gradient = "winograd"
    elif affordable and pointwise:
        filter_gradient = "matmul"
    else:
        filter_gradient = "swap"
    return _Plan(forward, input_gradient, filter_gradient)


def _is_channels_last(images: Sequence[int], kernel: Sequence[int], dimension_numbers: Any) -> bool:
    given = lax.conv_dimension_numbers(images, kernel, dimension_numbers)
    return given == lax.conv_dimension_numbers(images, kernel, _LAYOUT)


def _is_supported(images: Sequence[int], kernel: Sequence[int], strides: Strides, padding: Padding) -> bool:
    """Whether nothing is empty, channels match, and the padding is no wider than the flipped kernel can undo."""
    not_empty = min(*images, *kernel, *output_size(images, kernel, strides, padding)) > 0
    pads_fit = all(0 <= pad < size for pads, size in zip(padding, kernel[:2], strict=True) for pad in pads)
    return not_empty and pads_fit and images[3] == kernel[2]


# --- the differentiable convolution ----------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    plan = _plan(images.shape, kernel.shape, strides, padding)
    return _ALGORITHMS[plan.forward](images, kernel, strides, padding)


def _convolve_forward(images: Array, kernel: Array, strides: Strides, padding: Padding) -> tuple[Array, Any]:
    return _convolve(images, kernel, strides, padding), (images, kernel)


def _convolve_backward(strides: Strides, padding: Padding, residuals: Any, cotangent: Array) -> tuple[Any, Array]:
    images, kernel = residuals
    plan = _plan(images.shape, kernel.shape, strides, padding)
    if plan.input_gradient == "flip":
        opposite = tuple((n - 1 - low, n - 1 - high) for n, (low, high) in zip(kernel.shape[:2], padding, strict=True))
        images_bar = _convolve(cotangent, kernel[::-1, ::-1].swapaxes(2, 3), strides, opposite)
    else:
        algorithm = _ALGORITHMS[plan.input_gradient]
        (images_bar,) = jax.linear_transpose(lambda x: algorithm(x, kernel, strides, padding), images)(cotangent)
    if plan.filter_gradient == "swap":
        kernel_bar = _correlate(images, cotangent, kernel.shape, strides, padding)
    else:
        algorithm = _ALGORITHMS[plan.filter_gradient]
        (kernel_bar,) = jax.linear_transpose(lambda k: algorithm(images, k, strides, padding), kernel)(cotangent)
    return images_bar, kernel_bar


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _correlate(images: Array, cotangent: Array, kernel: Sequence[int], strides: Strides, padding: Padding) -> Array:
    """The filter gradient as a convolution of [channels, h, w, n] by [height, width, n, features]."""
    sizes = zip(images.shape[1:3], cotangent.shape[1:3], kernel[:2], strides, padding, strict=True)
    pads = tuple((low, (outs - 1) * stride + size - extent - low) for extent, outs, size, stride, (low, _) in sizes)
    swapped, window = images.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)
    result = lax.conv_general_dilated(swapped, window, (1, 1), pads, rhs_dilation=strides, dimension_numbers=_LAYOUT)
    return result.transpose(1, 2, 0, 3)


def _equally_varying(*arrays: Array) -> tuple[Array, ...]:
    """Marks all arrays as varying over the mesh axes that any of them varies over (a no-op outside ``shard_map``).

    Outside the custom rule, because the transpose of the cast sums the gradient of a replicated kernel over devices.
    """
    axes = frozenset().union(*(jax.typeof(array).manual_axis_type.varying for array in arrays))
    missing = [tuple(sorted(axes - jax.typeof(array).manual_axis_type.varying)) for array in arrays]
    return tuple(lax.pcast(array, names, to="varying") for array, names in zip(arrays, missing, strict=True))


# --- the algorithms: linear in the images and in the kernel ----------------------------------------------------------


def _lax(images: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _winograd(images: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    del strides  # Only selected for stride 1.
    return winograd(images, kernel, padding)


_ALGORITHMS: dict[str, Callable[[Array, Array, Strides, Padding], Array]] = {
    "lax": _lax,
    "matmul": matmul,
    "winograd": _winograd,
}
