"""The ``Source`` record: a dataset whose images are decoded only when they are read."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from advjax.data.dataset import Dataset, check
from advjax.types import UserError

_IMAGES_PER_TASK = 64
"""Passing a tiny image between threads takes longer than decoding it."""
_LARGEST_SHARE = 0.5
"""Of the memory of this machine, for the images of one split: they are copied at least once."""
_SMALL = 64 * 64
"""Up to this many pixels, reading an image is mostly Python, which only one thread can run at a time."""


class Source(NamedTuple):
    """One split of an image classification dataset, or a subset of it; like ``Dataset``, with ``read`` for images."""

    name: str
    """Name of the dataset."""
    image_shape: tuple[int, int, int]
    """[h, w, c], the same for all images."""
    read: Callable[[int], np.ndarray]
    """``position in this source -> image`` of ``image_shape``, uint8 or float32 as in ``Dataset``; thread-safe."""
    labels: np.ndarray
    """int32 [n]: the true classes."""
    index: np.ndarray
    """int32 [n]: position of each example in the original order of its split."""
    class_names: tuple[str, ...]
    """One name per class."""
    groups: np.ndarray | None = None
    """str [n]: group of each example, such as the patient; None if unknown."""

    @property
    def num_classes(self) -> int:
        """Number of classes, including those without an example in this subset."""
        return len(self.class_names)

    def take(self, positions: np.ndarray) -> "Source":
        """The examples at ``positions`` (int [m], positions in *this* source), in that order."""
        positions, read = np.asarray(positions), self.read
        return self._replace(
            read=lambda position: read(int(positions[position])),
            labels=self.labels[positions],
            index=self.index[positions],
            groups=None if self.groups is None else self.groups[positions],
        )


def from_dataset(dataset: Dataset) -> Source:
    """A source that reads from a dataset in memory."""
    return Source(
        dataset.name,
        dataset.image_shape,
        lambda position: dataset.images[position],
        dataset.labels,
        dataset.index,
        dataset.class_names,
        dataset.groups,
    )


def joined(sources: Sequence[Source]) -> Source:
    """Concatenates several splits of one dataset; the index continues from one to the next.

    Raises:
      UserError: the splits differ in image size.
    """
    if len(sources) == 1:
        return sources[0]
    first = sources[0]
    if other := next((source for source in sources if source.image_shape != first.image_shape), None):
        raise differ_in_size(first.name, first.image_shape, other.image_shape)
    starts = np.cumsum([0, *(len(source.labels) for source in sources)])

    def read(position: int) -> np.ndarray:
        number = int(np.searchsorted(starts, position, side="right")) - 1
        return sources[number].read(position - int(starts[number]))

    groups = [source.groups for source in sources if source.groups is not None]
    return first._replace(
        read=read,
        labels=np.concatenate([source.labels for source in sources]),
        index=np.arange(starts[-1], dtype=np.int32),
        groups=np.concatenate(groups) if len(groups) == len(sources) else None,
    )


def read_all(source: Source, *, num_workers: int | None = None) -> Dataset:
    """Reads all images of a source into memory.

    Args:
      source: what to read.
      num_workers: number of threads that read and decode; default: one per core, or a single one for small images.

    Raises:
      UserError: an image cannot be read (if there are several, the error names the first), or they do not fit into
        the memory of this machine.
    """
    count = len(source.labels)
    check_memory(source.name, count, source.image_shape)
    images: np.ndarray | None = None

    def read_some(start: int) -> list[np.ndarray]:
        return [read_checked(source, i) for i in range(start, min(start + _IMAGES_PER_TASK, count))]

    default = 1 if np.prod(source.image_shape[:2]) <= _SMALL else os.cpu_count()
    with ThreadPoolExecutor(num_workers or default) as pool:
        try:
            starts = range(0, count, _IMAGES_PER_TASK)
            for start, some in zip(starts, pool.map(read_some, starts), strict=True):
                if images is None:
                    images = np.empty((count, *source.image_shape), some[0].dtype)
                images[start : start + len(some)] = some
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    images = np.empty((0, *source.image_shape), np.uint8) if images is None else images
    return check(Dataset(source.name, images, source.labels, source.index, source.class_names, source.groups))


def check_memory(name: str, count: int, image_shape: tuple[int, int, int]) -> None:
    """Refuses to hold 8-bit images that would need most of the memory of this machine."""
    needed = count * int(np.prod(image_shape, dtype=np.int64))
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > _LARGEST_SHARE * there:
        size, memory = f"{image_shape[0]} x {image_shape[1]}", f"{there / 2**30:.1f} GiB"
        raise UserError(
            f"{count} images of {name} at {size} pixels need {needed / 2**30:.1f} of {memory} of memory: choose a "
            "smaller --config.data.image_size, or --config.data.stream=True"
        )


def read_checked(source: Source, position: int) -> np.ndarray:
    """``source.read(position)``; raises a UserError unless the image has the shape that the source declares."""
    image = source.read(position)
    if image.shape != source.image_shape:
        raise differ_in_size(source.name, source.image_shape, image.shape)
    return image


def differ_in_size(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> UserError:
    """The error for images of different sizes when no ``image_size`` was given."""
    return UserError(
        f"images of {name} differ in size ({list(one)} and {list(other)}): set a common side length, "
        "for example --config.data.image_size=128"
    )
