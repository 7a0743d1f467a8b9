"""Convolution with algorithms that are fast on CPU.

XLA's CPU backend is slow exactly where attacks spend their time: inside ``scan``, ``fori_loop`` and ``while_loop`` its
gradients of a convolution fall off their fast path (the input gradient by 2 to 20 times, the filter gradient by 50 to
200), and kernels with few channels run far below the speed of a matrix product. The functions of this module compute
the convolution and both of its gradients with algorithms that :func:`_plan` selects from the static shapes.
``fast_on_cpu`` binds them in place of ``lax.conv_general_dilated``.

The results equal those of ``lax`` up to rounding: 1e-6 relative, 1e-5 where Winograd's algorithm is used (3x3 kernels
with at least 64 channels). ``with exact():`` around the tracing, or the
environment variable ADVJAX_EXACT_CONVOLUTIONS=1, switches ``fast_on_cpu`` off: the results are those of ``lax``, bit
for bit.
"""

import contextlib
import contextvars
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
from jax import lax

from advjax.cpu.matmul import Padding, Strides, matmul, output_size, sum_over_taps
from advjax.cpu.winograd import num_pieces, winograd
from advjax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_exact = contextvars.ContextVar("exact_convolutions", default=False)
_repeated = contextvars.ContextVar("repeated_convolutions", default=False)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Within this context ``fast_on_cpu`` leaves functions as they are.

    The choice is made when a function is traced: a jitted function that was called before keeps its compiled version,
    so create and call a fresh ``jax.jit`` inside the context.
    """
    token = _exact.set(True)
    try:
        yield
    finally:
        _exact.reset(token)


def uses_exact_convolutions() -> bool:
    """Whether ``fast_on_cpu`` is switched off: within :func:`exact`, or by the environment."""
    forced = os.environ.get("ADVJAX_EXACT_CONVOLUTIONS", "0") not in ("", "0")
    return forced or _exact.get()


@contextlib.contextmanager
def repeated() -> Iterator[None]:
    """What is traced within this context is the body of a loop in which kernels stay the same, as those of an attack.

    XLA transforms them once, before the loop, and so Winograd's algorithm pays for small maps, too.
    """
    token = _repeated.set(True)
    try:
        yield
    finally:
        _repeated.reset(token)


def are_repeated() -> bool:
    """Whether this is traced within :func:`repeated`."""
    return _repeated.get()


def convolve(images: Array, kernel: Array, strides: Strides, padding: Padding, repeated: bool = False) -> Array:
    """Convolution of [n, h, w, channels] by [rows, columns, channels, features], where ``is_supported``.

    Not to be differentiated: its gradients are ``input_gradient`` and ``filter_gradient``.
    """
    plan = _plan(images.shape, kernel.shape, strides, padding, repeated)
    return _ALGORITHMS[plan.forward](images, kernel, strides, padding)


def input_gradient(
    images: Array, kernel: Array, cotangent: Array, strides: Strides, padding: Padding, repeated: bool = False
) -> Array:
    """Gradient of ``convolve`` with respect to the images."""
    name = _plan(images.shape, kernel.shape, strides, padding, repeated).input_gradient
    if name == "flip":
        opposite = tuple((n - 1 - low, n - 1 - high) for n, (low, high) in zip(kernel.shape[:2], padding, strict=True))
        return convolve(cotangent, kernel[::-1, ::-1].swapaxes(2, 3), strides, opposite, repeated)
    algorithm = _ALGORITHMS[name]
    return jax.linear_transpose(lambda x: algorithm(x, kernel, strides, padding), images)(cotangent)[0]


def filter_gradient(
    images: Array, kernel: Array, cotangent: Array, strides: Strides, padding: Padding, repeated: bool = False
) -> Array:
    """Gradient of ``convolve`` with respect to the kernel."""
    name = _plan(images.shape, kernel.shape, strides, padding, repeated).filter_gradient
    if name == "swap":
        return _correlate(images, cotangent, kernel.shape, strides, padding)
    algorithm = _ALGORITHMS[name]
    return jax.linear_transpose(lambda k: algorithm(images, k, strides, padding), kernel)(cotangent)[0]


def is_supported(images: Sequence[int], kernel: Sequence[int], strides: Strides, padding: Padding) -> bool:
    """Whether nothing is empty, channels match, and the padding is no wider than the flipped kernel can undo."""
    not_empty = min(*images, *kernel, *output_size(images, kernel, strides, padding)) > 0
    pads_fit = all(0 <= pad < size for pads, size in zip(padding, kernel[:2], strict=True) for pad in pads)
    return not_empty and pads_fit and images[3] == kernel[2]


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
_UNDIVIDED = 2**13  # Pixels in a batch up to which a filter gradient is computed at once,
_PIECE = 2**18  # and entries in the patches of each of its pieces otherwise: 1 MiB,
_SMALLEST_PIECE = 8  # but of so many images at least.
_LARGEST_KERNEL = 2**12  # Channels times features, for each of Winograd's pieces: transforming the kernel has to pay.
_FEWEST_PIECES = 16  # Where the kernel has been transformed before: reading it has to pay.


def _plan(
    images: Sequence[int], kernel: Sequence[int], strides: Strides, padding: Padding, repeated: bool = False
) -> _Plan:
    """Selects by shape; the thresholds are the crossover points on x86 CPUs (AVX2 and AVX-512)."""
    *window, channels, features = kernel
    pointwise, wide = window == [1, 1], min(channels, features) >= 64
    height, width = output_size(images, kernel, strides, padding)
    affordable = images[0] * height * width * math.prod(kernel[:3]) <= _MAX_PATCHES
    minimal = window == [3, 3] and strides == (1, 1) and wide
    pieces = num_pieces(images[0], height, width)
    half_full = 2 * images[0] * height * width >= 16 * pieces
    heavy = channels * features > _LARGEST_KERNEL * pieces and not (repeated and pieces >= _FEWEST_PIECES and half_full)

    forward = input_gradient = "lax"
    if minimal and not heavy:
        forward = "winograd"
    elif affordable and (pointwise or (channels <= 8 and features <= 16)):
        forward = "matmul"

    if affordable and (channels <= 8 or strides != (1, 1) or (minimal and heavy)):
        input_gradient = "matmul"
    elif strides == (1, 1):
        input_gradient = "flip"

    if minimal and not heavy:
        filter_gradient = "winograd"
    elif affordable and pointwise:
        filter_gradient = "matmul"
    elif wide and strides != (1, 1):
        filter_gradient = "taps"
    else:
        filter_gradient = "swap"
    return _Plan(forward, input_gradient, filter_gradient)


# --- the algorithms: linear in the images and in the kernel ----------------------------------------------------------


def _lax(images: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _correlate(images: Array, cotangent: Array, kernel: Sequence[int], strides: Strides, padding: Padding) -> Array:
    """The filter gradient as a convolution of [channels, h, w, n] by [height, width, n, features].

    Of a large batch it is the sum over pieces of the batch: XLA builds the patches, and they have to fit the cache.
    """
    positions, batch = math.prod(cotangent.shape[1:3]), len(images)
    size = max(_SMALLEST_PIECE, _PIECE // (math.prod(kernel[:3]) * positions))
    if batch <= size or batch * positions <= _UNDIVIDED:
        return _correlate_at_once(images, cotangent, kernel, strides, padding)
    first = batch % size or size

    def rest(x: Array) -> Array:
        return x[first:].reshape(-1, size, *x.shape[1:])

    def add(total: Array, piece: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _correlate_at_once(*piece, kernel, strides, padding), None

    total = _correlate_at_once(images[:first], cotangent[:first], kernel, strides, padding)
    return lax.scan(add, total, (rest(images), rest(cotangent)))[0]


def _correlate_at_once(
    images: Array, cotangent: Array, kernel: Sequence[int], strides: Strides, padding: Padding
) -> Array:
    sizes = zip(images.shape[1:3], cotangent.shape[1:3], kernel[:2], strides, padding, strict=True)
    pads = tuple((low, (outs - 1) * stride + size - extent - low) for extent, outs, size, stride, (low, _) in sizes)
    swapped, window = images.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)
    result = lax.conv_general_dilated(swapped, window, (1, 1), pads, rhs_dilation=strides, dimension_numbers=_LAYOUT)
    return result.transpose(1, 2, 0, 3)


def _winograd(images: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    del strides  # Only selected for stride 1.
    return winograd(images, kernel, padding)


_ALGORITHMS: dict[str, Callable[[Array, Array, Strides, Padding], Array]] = {
    "lax": _lax,
    "matmul": matmul,
    "taps": sum_over_taps,
    "winograd": _winograd,
}
