"""Loads datasets by name, in memory (``load``) or decoded on demand (``open_source``)."""

import os
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from advjax.data import digits, image_folder, images, sampling, split_name, tfds
from advjax.data.dataset import Dataset, check
from advjax.data.source import Source, check_memory, from_dataset, joined
from advjax.types import UserError

_Examples = TypeVar("_Examples", Dataset, Source)


def load(name: str, split: str, *, directory: str | os.PathLike | None = None, image_size: int = 0) -> Dataset:
    """Loads one split of a dataset, or several concatenated, in the original order.

    ``digits`` ships with scikit-learn. ``folder`` is the image folder with a manifest at ``directory``, see
    ``image_folder``. Everything else is read from a prepared TensorFlow Datasets directory, without TensorFlow.
    ``cifar10``, ``mnist``, and ``fashion_mnist`` are prepared on first use if the network or their archives are
    available.

    Example:
      >>> dataset = load("digits", "test")
      >>> dataset.images.shape, dataset.num_classes
      ((359, 8, 8, 1), 10)

    Args:
      name: one of ``KNOWN_NAMES``, or any tfds image classification dataset prepared as array_record, such as
        ``"cats_vs_dogs"`` or, with a config, ``"imagenette/320px-v2"``.
      split: a split of the dataset, such as "train" or "test"; several, as in "train+test", in that order; or slices,
        as in "train[1024:]" and "train[:1024]+test". The index is the position in the full splits and continues from
        one split to the next.
      directory: directory of prepared data; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``. Not needed for
        ``digits``.
      image_size: if positive, images are resized so that the shorter side has this length, and center-cropped to a
        square (see ``images.square``); 0 keeps the stored size, which must then be the same for all images.

    Returns:
      A validated ``Dataset`` of uint8 images. An image folder gives its own name to the dataset.

    Raises:
      UserError: for an unknown dataset or split, and for data that is neither present nor obtainable.
    """

    def one(part: str) -> Dataset:
        if name == "digits":
            dataset = digits.load_digits(part)
            if not image_size:
                return dataset
            check_memory(name, len(dataset.labels), (image_size, image_size, 1))
            return dataset._replace(images=np.stack([images.square(image, image_size) for image in dataset.images]))
        if name == "folder":
            return image_folder.load_folder(_required(directory), part, image_size=image_size)
        return tfds.load_tfds(name, part, directory=directory, image_size=image_size)

    pieces = _pieces(split, image_size)
    datasets = [one(part) for part in split_name.whole(pieces)]
    dataset = datasets[0] if len(datasets) == 1 else sampling.concatenate(datasets)
    return check(_take(dataset, pieces, [len(part.labels) for part in datasets]))


def open_source(name: str, split: str, *, directory: str | os.PathLike | None = None, image_size: int = 0) -> Source:
    """Like ``load``, but images are decoded only when they are read."""

    def one(part: str) -> Source:
        if name == "digits":
            return from_dataset(load(name, part, image_size=image_size))
        if name == "folder":
            return image_folder.open_folder(_required(directory), part, image_size=image_size)
        return tfds.open_tfds(name, part, directory=directory, image_size=image_size)

    pieces = _pieces(split, image_size)
    sources = [one(part) for part in split_name.whole(pieces)]
    return _take(joined(sources), pieces, [len(part.labels) for part in sources])


def _required(directory: str | os.PathLike | None) -> str | os.PathLike:
    if not directory:
        raise UserError("dataset 'folder' needs the folder that contains manifest.csv: set --config.data.dir")
    return directory


def _pieces(split: str, image_size: int) -> tuple[split_name.Piece, ...]:
    if not 0 <= image_size <= images.MAX_SIZE:
        raise UserError(
            f"image_size is {image_size}; give a side length from 1 to {images.MAX_SIZE} pixels, "
            "or 0 to keep images as they are stored"
        )
    return split_name.parse(split)


def _take(splits: _Examples, pieces: Sequence[split_name.Piece], sizes: Sequence[int]) -> _Examples:
    """The pieces of the concatenated splits."""
    positions = split_name.positions(pieces, sizes)
    return splits if np.array_equal(positions, np.arange(sum(sizes))) else splits.take(positions)
