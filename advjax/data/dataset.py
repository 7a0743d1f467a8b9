"""What a data set is: arrays in memory with stable positions, and how to get one by name."""

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from advjax.data import split_name
from advjax.types import UserError

if TYPE_CHECKING:
    from advjax.data.source import Source

KNOWN_NAMES = ("digits", "cifar10", "mnist", "fashion_mnist", "folder")
"""Data sets that ``load`` can produce by itself; other tfds data sets must have been prepared before."""


_Examples = TypeVar("_Examples", "Dataset", "Source")


class Dataset(NamedTuple):
    """One split of an image classification data set, or a part of it."""

    name: str
    """Name of the data set, as given to ``load``; of a folder, the name of the folder."""
    images: np.ndarray
    """uint8 [n, h, w, c] in 0 .. 255, or float32 [n, h, w, c] in [0, 1]."""
    labels: np.ndarray
    """int32 [n]: the true classes."""
    index: np.ndarray
    """int32 [n]: position of each example in the original order of its split; a part of the split keeps it."""
    class_names: tuple[str, ...]
    """One name for each class."""
    groups: np.ndarray | None = None
    """str [n]: the patient, or whatever else makes examples belong together; None where that is not known."""

    @property
    def num_classes(self) -> int:
        """Number of classes, also of those that a subset has no example of."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[h, w, c]"""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def take(self, positions: np.ndarray) -> "Dataset":
        """The examples at ``positions`` (int [m], positions in *this* data set), in that order."""
        positions = np.asarray(positions)
        return self._replace(
            images=self.images[positions],
            labels=self.labels[positions],
            index=self.index[positions],
            groups=None if self.groups is None else self.groups[positions],
        )


def load(name: str, split: str, *, directory: str | os.PathLike | None = None, image_size: int = 0) -> Dataset:
    """One split of a data set, or several as one, in the original order.

    ``digits`` comes with scikit-learn.  ``folder`` is the folder of images with a manifest at ``directory``, see
    ``image_folder``.  Everything else is read from a prepared TensorFlow Datasets directory, without TensorFlow;
    ``cifar10``, ``mnist`` and ``fashion_mnist`` are prepared at the first use, where the network or an archive is at
    hand.

    Example:
      >>> dataset = load("digits", "test")
      >>> dataset.images.shape, dataset.num_classes
      ((359, 8, 8, 1), 10)

    Args:
      name: one of ``KNOWN_NAMES``, or any image classification data set of tfds that is prepared as array_record, such
        as ``"cats_vs_dogs"`` or, with a configuration, ``"imagenette/320px-v2"``.
      split: one of the splits that the data set has, such as "train" or "test"; several as in "train+test", the first,
        then the second; or pieces of them, as in "train[1024:]" and "train[:1024]+test".  The index is the position in
        the whole splits, and runs on from one to the next.
      directory: directory of prepared data; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.  ``digits``
        needs none.
      image_size: shorter sides are resized to it and the center is cut out (see ``images.square``); 0 leaves images as
        they are stored, which then must have one size.

    Returns:
      A checked ``Dataset`` of uint8 images; that of a folder has the name of the folder.

    Raises:
      UserError: for an unknown data set or split, and for data that are neither there nor to be had.
    """
    from advjax.data import digits, image_folder, images, sampling, tfds_source  # These import this module.

    def one(part: str) -> Dataset:
        if name == "digits":
            dataset = digits.load_digits(part)
            if not image_size:
                return dataset
            return dataset._replace(images=np.stack([images.square(image, image_size) for image in dataset.images]))
        if name == "folder":
            return image_folder.load_folder(_needed(directory), part, image_size=image_size)
        return tfds_source.load_tfds(name, part, directory=directory, image_size=image_size)

    pieces = _pieces(split, image_size)
    datasets = [one(part) for part in split_name.whole(pieces)]
    dataset = datasets[0] if len(datasets) == 1 else sampling.concatenate(datasets)
    return check(_taken(dataset, pieces, [len(part.labels) for part in datasets]))


def open_source(name: str, split: str, *, directory: str | os.PathLike | None = None, image_size: int = 0) -> "Source":
    """What ``load`` loads, with images that are decoded when they are asked for; arguments and errors as there."""
    from advjax.data import image_folder, source, tfds_source

    def one(part: str) -> "Source":
        if name == "digits":
            return source.from_dataset(load(name, part, image_size=image_size))
        if name == "folder":
            return image_folder.open_folder(_needed(directory), part, image_size=image_size)
        return tfds_source.open_tfds(name, part, directory=directory, image_size=image_size)

    pieces = _pieces(split, image_size)
    sources = [one(part) for part in split_name.whole(pieces)]
    return _taken(source.joined(sources), pieces, [len(part.labels) for part in sources])


def check(dataset: Dataset) -> Dataset:
    """Returns the data set unchanged if it keeps what ``Dataset`` promises.

    Raises:
      UserError: if there are no examples; if images, labels, index or groups have the wrong number of axes, type or
        length; if images leave [0, 1]; if a label is outside ``0 .. num_classes - 1``.
    """
    name, images, labels, index, _, groups = dataset
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
    if groups is not None and groups.shape != labels.shape:
        raise UserError(f"{name} has {len(labels)} examples and {list(groups.shape)} groups; each needs one")
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


def pixels(images: np.ndarray) -> np.ndarray:
    """8-bit images as float32 in [0, 1]; float images as they are.

    On the host, with IEEE division: compiled code may multiply by 1/255 instead, or never round the quotient at all,
    and a perturbation has to be measured from the very same pixels that it was added to.
    """
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images


def _needed(directory: str | os.PathLike | None) -> str | os.PathLike:
    if not directory:
        raise UserError(
            "the data set folder needs the folder that its manifest.csv is in: name it with --config.data.dir"
        )
    return directory


def _pieces(split: str, image_size: int) -> tuple[split_name.Piece, ...]:
    if image_size < 0:
        raise UserError(f"image_size is {image_size}; give the side in pixels, or 0 for images as they are stored")
    return split_name.parse(split)


def _taken(splits: _Examples, pieces: Sequence[split_name.Piece], sizes: Sequence[int]) -> _Examples:
    """The pieces of the splits that follow each other in ``splits``."""
    positions = split_name.positions(pieces, sizes)
    return splits if np.array_equal(positions, np.arange(sum(sizes))) else splits.take(positions)
