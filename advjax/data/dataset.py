"""The ``Dataset`` record: one split of an image classification dataset in memory, and its validation."""

import hashlib
from typing import NamedTuple

import numpy as np

from advjax.types import UserError

KNOWN_NAMES = ("digits", "cifar10", "mnist", "fashion_mnist", "folder", "npz", "cifar10_c")
"""Datasets that ``load`` knows by itself; other tfds datasets must be prepared first."""


class Dataset(NamedTuple):
    """One split of an image classification dataset, or a subset of it."""

    name: str
    """Name of the dataset, as passed to ``load``; for an image folder, the name of the folder."""
    images: np.ndarray
    """uint8 [n, h, w, c] in 0 .. 255, or float32 [n, h, w, c] in [0, 1]."""
    labels: np.ndarray
    """int32 [n]: the true classes."""
    index: np.ndarray
    """int32 [n]: position of each example in the original order of its split; kept when a subset is taken."""
    class_names: tuple[str, ...]
    """One name per class."""
    groups: np.ndarray | None = None
    """str [n]: group of each example, such as the patient; None if unknown."""

    @property
    def num_classes(self) -> int:
        """Number of classes, including those without an example in this subset."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[h, w, c]"""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def take(self, positions: np.ndarray) -> "Dataset":
        """The examples at ``positions`` (int [m], positions in *this* dataset), in that order."""
        positions = np.asarray(positions)
        return self._replace(
            images=self.images[positions],
            labels=self.labels[positions],
            index=self.index[positions],
            groups=None if self.groups is None else self.groups[positions],
        )


def check(dataset: Dataset) -> Dataset:
    """Validates a dataset and returns it unchanged.

    Raises:
      UserError: if there are no examples; if images, labels, index, or groups have the wrong rank, dtype, or length; if
        pixels are outside [0, 1]; if a label is outside ``0 .. num_classes - 1``.
    """
    name, images, labels, index, _, groups = dataset
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise UserError(
            f"images of {name} are {images.dtype} {list(images.shape)}; "
            "they must be uint8 in 0 .. 255 or float32 in [0, 1], with shape [n, height, width, channels]"
        )
    for field, array in (("labels", labels), ("index", index)):
        if array.ndim != 1 or array.dtype != np.int32:
            raise UserError(f"{field} of {name} are {array.dtype} {list(array.shape)}; they must be int32 [n]")
    if not len(images) == len(labels) == len(index):
        raise UserError(
            f"{name} has {len(images)} images, {len(labels)} labels, and {len(index)} positions; "
            "every example needs one of each"
        )
    if groups is not None and groups.shape != labels.shape:
        raise UserError(f"{name} has {len(labels)} examples and {list(groups.shape)} groups; every example needs one")
    if not images.size:
        raise UserError(f"{name} has no pixels: images have shape {list(images.shape)}; at least one example is needed")
    # "not all inside" rather than "any outside", because comparisons with NaN are false.
    if images.dtype == np.float32 and not (images.min() >= 0 and images.max() <= 1):
        raise UserError(
            f"images of {name} have values in [{images.min():g}, {images.max():g}]; pixels must lie in [0, 1]: "
            "divide by 255, and put normalization inside the model"
        )
    if labels.min() < 0 or labels.max() >= dataset.num_classes:
        raise UserError(
            f"labels of {name} range from {labels.min()} to {labels.max()}; "
            f"with {dataset.num_classes} class names they must lie in 0 .. {dataset.num_classes - 1}"
        )
    return dataset


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 (hexadecimal) of the name and of the dtypes, shapes, and bytes of images, labels, and index.

    It depends on the content only, not on where it was loaded; changing any pixel, label, position, or the order
    changes it.
    """
    digest = hashlib.sha256(dataset.name.encode())
    for array in (dataset.images, dataset.labels, dataset.index):
        little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"|{little_endian.dtype.str}{little_endian.shape}|".encode())
        digest.update(little_endian.data)
    return digest.hexdigest()


def pixels(images: np.ndarray) -> np.ndarray:
    """Converts 8-bit images to float32 in [0, 1]; float images are returned unchanged.

    Runs on the host with IEEE division. Compiled code may multiply by 1/255 instead or keep the quotient in higher
    precision, but a perturbation must be measured from exactly the pixels it was added to.
    """
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images
