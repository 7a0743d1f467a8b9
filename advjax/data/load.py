"""Loads datasets by name, in memory (``load``) or decoded on demand (``open_source``)."""

import os
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from advjax.data import arrays, digits, image_folder, images, sampling, split_name, tfds
from advjax.data.dataset import Dataset, check
from advjax.data.source import Source, check_memory, from_dataset, joined, read_all
from advjax.runtime.named_function import named_function
from advjax.types import UserError

_Examples = TypeVar("_Examples", Dataset, Source)


def load(name: str, split: str, *, directory: str | os.PathLike | None = None, image_size: int = 0) -> Dataset:
    """Loads one split of a dataset, or several concatenated, in the original order.

    ``digits`` ships with scikit-learn. ``folder`` is the image folder at ``directory``, with one directory per class or
    a manifest, see ``image_folder``; ``npz`` is the file at ``directory``, see ``arrays.load_npz``; and
    ``cifar10_c/<corruption>_<severity>`` is read from the folder of CIFAR-10-C. ``package.module:function`` is a
    function of your own, ``split -> Dataset`` or ``split -> Source``. Everything else is read from a prepared
    TensorFlow Datasets directory, without TensorFlow. ``cifar10``, ``mnist``, and ``fashion_mnist`` are prepared on
    first use if the network or their archives are available.

    Example:
      >>> dataset = load("digits", "test")
      >>> dataset.images.shape, dataset.num_classes
      ((359, 8, 8, 1), 10)

    Args:
      name: one of ``KNOWN_NAMES``, a function, or any tfds image classification dataset prepared as array_record, such
        as ``"cifar100"``, ``"svhn_cropped"`` or, with a config, ``"imagenette/320px-v2"``.
      split: a split of the dataset, such as "train" or "test"; several, as in "train+test", in that order; or slices,
        as in "train[1024:]" and "train[:1024]+test". The index is the position in the full splits and continues from
        one split to the next.
      directory: directory of prepared data; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``. Not needed for
        ``digits``, and refused for functions.
      image_size: if positive, images are resized so that the shorter side has this length, and center-cropped to a
        square (see ``images.square``); 0 keeps the stored size, which must then be the same for all images.

    Returns:
      A validated ``Dataset``: of uint8 images, unless an npz file or a function has float32 ones. A folder, a file, and
      a function give their own name to the dataset.

    Raises:
      UserError: for an unknown dataset or split, and for data that is neither present nor obtainable.
    """

    def one(part: str) -> Dataset:
        if name == "folder":
            return image_folder.load_folder(_required(directory, name), part, image_size=image_size)
        found = _held(name, part, directory)
        if found is None:
            return tfds.load_tfds(name, part, directory=directory, image_size=image_size)
        return (
            _resized(found, image_size) if isinstance(found, Dataset) else read_all(_resized_source(found, image_size))
        )

    pieces = _pieces(split, image_size)
    datasets = [one(part) for part in split_name.whole(pieces)]
    dataset = datasets[0] if len(datasets) == 1 else sampling.concatenate(datasets)
    return check(_take(dataset, pieces, [len(part.labels) for part in datasets]))


def open_source(name: str, split: str, *, directory: str | os.PathLike | None = None, image_size: int = 0) -> Source:
    """Like ``load``, but images are decoded only when they are read."""

    def one(part: str) -> Source:
        if name == "folder":
            return image_folder.open_folder(_required(directory, name), part, image_size=image_size)
        found = _held(name, part, directory)
        if found is None:
            return tfds.open_tfds(name, part, directory=directory, image_size=image_size)
        return _resized_source(from_dataset(check(found)) if isinstance(found, Dataset) else found, image_size)

    pieces = _pieces(split, image_size)
    sources = [one(part) for part in split_name.whole(pieces)]
    return _take(joined(sources), pieces, [len(part.labels) for part in sources])


def _held(name: str, split: str, directory: str | os.PathLike | None) -> Dataset | Source | None:
    """One split of what is held in memory or opened by the user's own function; None for all other datasets."""
    if name == "digits":
        return digits.load_digits(split)
    if name == "npz":
        return arrays.load_npz(_required(directory, name), split)
    if name.partition("/")[0] == "cifar10_c":
        return arrays.load_cifar10_c(name, _required(directory, "cifar10_c"), split)
    if ":" not in name:
        return None
    if directory:
        raise UserError(f"data.dir has no effect on the function {name}, which finds its own data; leave it out")
    found = named_function(name, "data.name")(split)
    if not isinstance(found, Dataset | Source):
        raise UserError(f"{name} must return an advjax.data.Dataset or Source, and returned {type(found).__name__}")
    return found


def _resized(dataset: Dataset, image_size: int) -> Dataset:
    if not image_size:
        return dataset
    check_memory(dataset.name, len(dataset.labels), (image_size, image_size, dataset.image_shape[-1]))
    return dataset._replace(images=np.stack([images.square(image, image_size) for image in check(dataset).images]))


def _resized_source(source: Source, image_size: int) -> Source:
    if not image_size:
        return source
    shape = (image_size, image_size, source.image_shape[-1])
    return source._replace(image_shape=shape, read=lambda position: images.square(source.read(position), image_size))


_DIRECTORIES = {
    "folder": "the folder of images, with one directory per class or a manifest.csv",
    "npz": "the .npz file",
    "cifar10_c": "the folder of the .npy files",
}


def _required(directory: str | os.PathLike | None, name: str) -> str | os.PathLike:
    if not directory:
        raise UserError(f"dataset {name!r} needs {_DIRECTORIES[name]}: set --config.data.dir")
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
