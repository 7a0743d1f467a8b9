"""Convolution as matrix products: as one, for kernels with few channels or features, or as one for each tap."""

from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax

from advjax.types import Array

Strides: TypeAlias = tuple[int, ...]
Padding: TypeAlias = tuple[tuple[int, int], ...]


def matmul(images: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    """One matrix product that computes ``tile`` neighboring outputs of a row at once.

    The patch of a tile is ``span`` = (tile - 1) * stride + columns pixels wide, and the matrix contains ``tile``
    shifted copies of the kernel, padded with zeros: more multiplications than im2col (tile = 1), but, for kernels with
    few features, a matrix wide enough to use the processor, and fewer copies of every pixel.
    """
    batch, _, _, channels = images.shape
    rows, columns, _, features = kernel.shape
    height, width = output_size(images.shape, kernel.shape, strides, padding)
    num_tiles, tile = _tiling(width, features)
    span = (tile - 1) * strides[1] + columns

    patches = _patches(images, height, num_tiles, tile * strides[1], (rows, span), strides[0], padding)
    if tile > 1:
        copies = jnp.asarray(_shifted_copies(columns, tile, strides[1]), kernel.dtype)
        kernel = jnp.einsum("jpt,ijcf->ipctf", copies, kernel, precision="highest")
    # Both factors are matrices, so the transposes are plain matrix products as well.
    matrix = kernel.reshape(rows * span * channels, tile * features)
    outputs = patches.reshape(-1, len(matrix)) @ matrix
    return outputs.reshape(batch, height, num_tiles * tile, features)[:, :, :width]


def sum_over_taps(images: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    """One matrix product for each position in the kernel, with the pixels that meet it.

    The gradient with respect to the kernel needs no patches: it is a product of pixels and cotangents for each tap.
    """
    batch, *size, channels = images.shape
    rows, columns, _, features = kernel.shape
    height, width = output_size(images.shape, kernel.shape, strides, padding)
    last = (height - 1) * strides[0] + 1, (width - 1) * strides[1] + 1
    # What lies beyond the last tap is cut off by negative padding.
    ends = (last[0] + rows - 1, last[1] + columns - 1)
    pads = [(low, end - extent - low, 0) for end, extent, (low, _) in zip(ends, size, padding, strict=True)]
    padded = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    outputs = jnp.zeros((batch * height * width, features), images.dtype)
    for row in range(rows):
        for column in range(columns):
            bounds = (0, row, column, 0), (batch, row + last[0], column + last[1], channels)
            pixels = lax.slice(padded, *bounds, (1, *strides, 1)).reshape(-1, channels)
            outputs = outputs + pixels @ kernel[row, column]
    return outputs.reshape(batch, height, width, features)


def _tiling(width: int, features: int) -> tuple[int, int]:
    """(number, size) of the tiles in a row: of equal size, with at most 64 matrix columns each."""
    num_tiles = -(-width // max(1, 64 // features))
    return num_tiles, -(-width // num_tiles)


def _shifted_copies(columns: int, tile: int, stride: int) -> np.ndarray:
    """[columns, span, tile]: 1 where kernel column j meets pixel p of the patch for output t of the tile."""
    column, pixel, output = np.ogrid[:columns, : (tile - 1) * stride + columns, :tile]
    return pixel == column + output * stride


def _patches(
    images: Array, height: int, num_tiles: int, step: int, window: tuple[int, int], row_stride: int, padding: Padding
) -> Array:
    """[n, height, num_tiles, rows * span * channels]: windows of rows x span pixels, ``step`` pixels apart in a row."""
    batch, image_height, image_width, _ = images.shape
    rows, span = window
    (above, _), (left, _) = padding
    padded_height, padded_width = (height - 1) * row_stride + rows, (num_tiles - 1) * step + span
    below, right = padded_height - image_height - above, padded_width - image_width - left
    padded = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), (above, below, 0), (left, right, 0), (0, 0, 0)))
    last = (height - 1) * row_stride + 1
    bands = [lax.slice_in_dim(padded, row, row + last, row_stride, axis=1) for row in range(rows)]
    if num_tiles < span:  # Few wide tiles: slice each in one piece.
        tiles = [
            jnp.concatenate([b[:, :, i * step : i * step + span].reshape(batch, height, -1) for b in bands], axis=-1)
            for i in range(num_tiles)
        ]
        return jnp.stack(tiles, axis=2)
    last = (num_tiles - 1) * step + 1
    pixels = [lax.slice_in_dim(b, pixel, pixel + last, step, axis=2) for b in bands for pixel in range(span)]
    return jnp.concatenate(pixels, axis=-1)


def output_size(images: Sequence[int], kernel: Sequence[int], strides: Strides, padding: Padding) -> tuple[int, int]:
    """Rows and columns of the result of a convolution."""
    height, width = (
        (extent + sum(pads) - size) // stride + 1
        for extent, size, stride, pads in zip(images[1:3], kernel[:2], strides, padding, strict=True)
    )
    return height, width
