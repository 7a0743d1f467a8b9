"""Batches of a few sizes, so that few programs are compiled."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_PARTS = (1, 4, 16)
_PER_CPU, _PER_ACCELERATOR, _LARGE = 64, 256, 1024


def default_batch_size(devices: Sequence[Any]) -> int:
    """64 images on each CPU, 256 on each accelerator."""
    return sum(_PER_CPU if device.platform == "cpu" else _PER_ACCELERATOR for device in devices)


def filled(batch_size: int, count: int, parts: int = 1) -> int:
    """``batch_size``, or less if so many images cannot fill a large batch, or the smallest of its ``parts``."""
    return min(batch_size, parts * max(count, _LARGE // parts))


def batch_sizes(batch_size: int, num_devices: int) -> tuple[int, ...]:
    """``batch_size``, a quarter and a sixteenth of it, in multiples of the number of devices, smallest first."""
    return tuple(sorted({-(-batch_size // (part * num_devices)) * num_devices for part in _PARTS}))


def sizes_for(batch_size: int, num_devices: int, count: int) -> tuple[int, ...]:
    """``batch_sizes`` for so many images."""
    return batch_sizes(filled(batch_size, count, max(_PARTS)), num_devices)


def batches(positions: np.ndarray, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Splits ``positions`` into batches that are more than half full, except perhaps one of the smallest size."""
    begin = 0
    while begin < len(positions):
        left = len(positions) - begin
        size = next((size for size in reversed(sizes) if 2 * left > size), sizes[0])
        yield positions[begin : begin + size]
        begin += size


def padded(arrays: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Each array filled up to ``size`` rows, with copies of its last one."""
    return [array[np.minimum(np.arange(size), len(array) - 1)] for array in arrays]
