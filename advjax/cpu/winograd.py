"""Winograd's minimal filtering F(4x4, 3x3): 3x3 convolutions with a quarter of the multiplications.

For a 6x6 piece ``d`` of the image and a 3x3 kernel ``g`` the 4x4 outputs are

    Y = A^T [ (G g G^T) * (B^T d B) ] A,

an elementwise product: over all pieces and channels, 36 matrix products. The transforms are matrix products as well,
with Kronecker products of the small matrices. Rounding errors are about 1e-5 on outputs of scale 4, ten times those of
direct convolution.

The transformed pieces are nine quarters as large as the images. They are computed for a few images at a time, so that
they are multiplied while they are in the cache of the processor: for large batches, this makes half the time.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, section 4.3.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from advjax.types import Array

_OUTPUT_SIZE = 4
_PIECE_SIZE = 6
_CACHED = 2**21
"""Number of transformed values, before and after the products, that stay in the cache: 8 MiB."""

_INPUT_TRANSFORM = np.array(  # B^T
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float64,
)
_KERNEL_TRANSFORM = np.array(  # G
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    np.float64,
)
_OUTPUT_TRANSFORM = np.array(  # A^T
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float64
)


def winograd(images: Array, kernel: Array, padding: tuple[tuple[int, int], ...]) -> Array:
    """Convolution with stride 1 of ``images`` [n, h, w, channels] by ``kernel`` [3, 3, channels, features].

    ``padding`` holds the rows (above, below) and columns (left, right) of zeros to add; none may be negative.
    Returns [n, h + above + below - 2, w + left + right - 2, features] in the dtype of ``images``.
    """
    batch, *size, channels = images.shape
    features = kernel.shape[-1]
    height, width = (extent + sum(pads) - 2 for extent, pads in zip(size, padding, strict=True))
    rows, columns = -(-height // _OUTPUT_SIZE), -(-width // _OUTPUT_SIZE)
    filters = _transform(_KERNEL_TRANSFORM, kernel.reshape(9, -1)).reshape(-1, channels, features)

    def some(images: Array) -> Array:
        pieces = _transform(_INPUT_TRANSFORM, _overlapping_pieces(images, padding, rows, columns))
        products = lax.dot_general(pieces.reshape(len(filters), -1, channels), filters, (((2,), (1,)), ((0,), (0,))))
        outputs = _transform(_OUTPUT_TRANSFORM, products.reshape(len(filters), -1))
        outputs = outputs.reshape(_OUTPUT_SIZE, _OUTPUT_SIZE, len(images), rows, columns, features)
        outputs = outputs.transpose(2, 3, 0, 4, 1, 5)
        return outputs.reshape(len(images), rows * _OUTPUT_SIZE, columns * _OUTPUT_SIZE, features)[:, :height, :width]

    # The filters, or their gradient, are read once for every group of images.
    cached = max(_CACHED, 2 * filters.size) // (_PIECE_SIZE**2 * rows * columns * (channels + features))
    groups, together = _groups(batch, max(1, cached))
    if groups == 1:
        return some(images)
    padded = jnp.pad(images, [(0, groups * together - batch), (0, 0), (0, 0), (0, 0)])
    outputs = lax.map(some, padded.reshape(groups, together, *images.shape[1:]))
    return outputs.reshape(-1, height, width, features)[:batch]


def num_pieces(batch: int, height: int, width: int) -> int:
    """Number of pieces for outputs of this size."""
    return batch * -(-height // _OUTPUT_SIZE) * -(-width // _OUTPUT_SIZE)


def _groups(batch: int, most: int) -> tuple[int, int]:
    """(number of groups, images in each), at most ``most``: all images if possible, otherwise with some padding."""
    divisor = next(size for size in range(min(most, batch), 0, -1) if batch % size == 0)
    if 2 * divisor >= min(most, batch):
        return batch // divisor, divisor
    groups = -(-batch // most)
    return groups, -(-batch // groups)


def _transform(matrix: np.ndarray, pieces: Array) -> Array:
    """Applies ``matrix`` to both axes of square pieces that are flattened along the first axis of ``pieces``."""
    return jnp.asarray(np.kron(matrix, matrix), pieces.dtype) @ pieces


def _overlapping_pieces(images: Array, padding: tuple[tuple[int, int], ...], rows: int, columns: int) -> Array:
    """The 6x6 pieces with stride 4, as [36, n * rows * columns * channels]."""
    batch, height, width, channels = images.shape
    (above, _), (left, _) = padding
    padded_height, padded_width = _OUTPUT_SIZE * rows + 2, _OUTPUT_SIZE * columns + 2
    padded = lax.pad(
        images,
        jnp.zeros((), images.dtype),
        ((0, 0, 0), (above, padded_height - height - above, 0), (left, padded_width - width - left, 0), (0, 0, 0)),
    )
    step = _OUTPUT_SIZE
    pieces = [
        lax.slice(
            padded,
            (0, row, column, 0),
            (batch, row + step * (rows - 1) + 1, column + step * (columns - 1) + 1, channels),
            (1, step, step, 1),
        )
        for row in range(_PIECE_SIZE)
        for column in range(_PIECE_SIZE)
    ]
    return jnp.stack(pieces).reshape(_PIECE_SIZE**2, -1)
