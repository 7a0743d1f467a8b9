"""What a data set is: arrays in memory with stable positions, and how to get one by name."""

import hashlib
from typing import NamedTuple

import numpy as np

from advjax.types import UserError

KNOWN_NAMES = ("digits", "cifar10", "mnist", "fashion_mnist")
"""Data sets that ``load`` can produce by itself; other tfds data sets must have been prepared before."""


class Dataset(NamedTuple):
    """One split of an image classification data set, or a part of it."""

    name: str
    """Name of the data set, as given to ``load``."""
    images: np.ndarray
    """uint8 [n, h, w, c] in 0 .. 255, or float32 [n, h, w, c] in [0, 1]."""
    labels: np.ndarray
    """int32 [n]: the true classes."""
    index: np.ndarray
    """int32 [n]: position of each example in the original order of its split; a part of the split keeps it."""
    class_names: tuple[str, ...]
    """One name for each class."""

    @property
    def num_classes(self) -> int:
        """Number of classes, also of those that a subset has no example of."""
        return len(self.class_names)

    def take(self, positions: np.ndarray) -> "Dataset":
        """The examples at ``positions`` (int [m], positions in *this* data set), in that order."""
        positions = np.asarray(positions)
        return self._replace(images=self.images[positions], labels=self.labels[positions], index=self.index[positions])


def load(name: str, split: str, *, directory: str | None = None) -> Dataset:
    """One split of a data set, in its original order.

    ``digits`` comes with scikit-learn.  Everything else is read from a prepared TensorFlow Datasets directory, without
    TensorFlow; ``cifar10``, ``mnist`` and ``fashion_mnist`` are prepared at the first use, where the network or an
    archive is at hand.

    Example:
      >>> dataset = load("digits", "test")
      >>> dataset.images.shape, dataset.num_classes
      ((359, 8, 8, 1), 10)

    Args:
      name: one of ``KNOWN_NAMES``, or any image classification data set of tfds that is prepared as array_record, such
        as ``"svhn_cropped"`` or, with a configuration, ``"imagenette/320px-v2"``.
      split: "train" or "test"; for other tfds data sets any split they have.
      directory: directory of prepared data; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.  ``digits``
        needs none.

    Returns:
      A checked ``Dataset`` of uint8 images.

    Raises:
      UserError: for an unknown data set or split, and for data that are neither there nor to be had.
    """
    from advjax.data import digits, tfds_source  # both build Datasets, so they import this module

    if name == "digits":
        return check(digits.load_digits(split))
    return check(tfds_source.load_tfds(name, split, directory=directory))


def check(dataset: Dataset) -> Dataset:
    """Returns the data set unchanged if it keeps what ``Dataset`` promises.

    Raises:
      UserError: if there are no examples; if images, labels or index have the wrong number of axes, type or length; if
        images leave [0, 1]; if a label is outside ``0 .. num_classes - 1``.
    """
    name, images, labels, index, _ = dataset
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise UserError(
            f"images of {name} are {images.dtype} {list(images.shape)}; "
            "they must be uint8 in 0 .. 255 or float32 in [0, 1], with axes [n, height, width, channels]"
        )
    for field, array in (("labels", labels), ("index", index)):
        if array.ndim != 1 or array.dtype != np.int32:
            raise UserError(f"{field} of {name} are {array.dtype} {list(array.shape)}; they must be int32 [n]")
    if not len(images) == len(labels) == len(index):
        raise UserError(
            f"{name} has {len(images)} images, {len(labels)} labels and {len(index)} positions; "
            "there must be one of each for every example"
        )
    if not images.size:
        raise UserError(f"{name} has no pixels: images have shape {list(images.shape)}; at least one example is needed")
    # "not all inside" rather than "any outside": NaN is inside nothing.
    if images.dtype == np.float32 and not (images.min() >= 0 and images.max() <= 1):
        raise UserError(
            f"images of {name} reach from {images.min():g} to {images.max():g}; pixels must lie in [0, 1]: "
            "divide by 255, and leave normalization to the model"
        )
    if labels.min() < 0 or labels.max() >= dataset.num_classes:
        raise UserError(
            f"labels of {name} reach from {labels.min()} to {labels.max()}; "
            f"with {dataset.num_classes} class names they must lie in 0 .. {dataset.num_classes - 1}"
        )
    return dataset


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 (hexadecimal) of the name and of the types, shapes and bytes of images, labels and index.

    Equal for equal content, wherever it was loaded; any changed pixel, label, position or order changes it.
    """
    digest = hashlib.sha256(dataset.name.encode())
    for array in (dataset.images, dataset.labels, dataset.index):
        little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"|{little_endian.dtype.str}{little_endian.shape}|".encode())
        digest.update(little_endian.data)
    return digest.hexdigest()
