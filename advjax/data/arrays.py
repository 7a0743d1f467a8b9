"""Datasets from arrays: NumPy arrays in memory, ``.npz`` files, and the ``.npy`` files of CIFAR-10-C."""

import contextlib
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from advjax.data.dataset import Dataset, check
from advjax.types import UserError

_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SEVERITIES = 5
_WHOLE = (("images", "labels"), ("x", "y"), ("image", "label"))
"""Keys of an npz file that is not divided into splits."""


def from_arrays(
    images: Any,
    labels: Any,
    *,
    name: str = "arrays",
    class_names: Sequence[str] | None = None,
    groups: Any = None,
) -> Dataset:
    """Makes a dataset of arrays in memory.

    Example:
      >>> dataset = from_arrays(np.zeros((2, 28, 28), np.uint8), [3, 1])
      >>> dataset.images.shape, dataset.num_classes
      ((2, 28, 28, 1), 4)

    Args:
      images: [n, h, w, c], or gray [n, h, w]: uint8 in 0 .. 255, or floating point in [0, 1], which becomes float32.
      labels: integers [n] or [n, 1], from 0.
      name: name of the dataset, which also seeds its splits.
      class_names: one name per class; default: the numbers up to the largest label.
      groups: [n], the group of each example, such as the patient; None if unknown.

    Raises:
      UserError: a wrong shape, dtype, or length, pixels outside [0, 1], or labels that are not whole numbers from 0.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
    labels = as_labels(labels, name)
    names = tuple(map(str, class_names if class_names is not None else range(labels.max(initial=-1) + 1)))
    groups = None if groups is None else np.asarray(groups).astype(str)
    return check(Dataset(name, images, labels, np.arange(len(labels), dtype=np.int32), names, groups))


def as_labels(labels: Any, name: str) -> np.ndarray:
    """Labels as int32 [n].

    Raises:
      UserError: they are not one whole number for each example.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == np.bool_):
        raise UserError(
            f"labels of {name} are {labels.dtype} {list(labels.shape)}; they must be whole numbers [n], from 0: take "
            "the argmax of one-hot labels, and number the classes of names"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < 2**31:
        raise UserError(f"labels of {name} range from {labels.min()} to {labels.max()}; they must be numbers from 0")
    return labels.astype(np.int32)


def load_npz(file: str | os.PathLike, split: str) -> Dataset:
    """Loads one split of an ``.npz`` file; see ``from_arrays`` for the arrays.

    The keys are ``x_train`` and ``y_train`` (as in Keras), or ``train_images`` and ``train_labels`` (as in MedMNIST),
    and so on for other splits. A file with ``images`` and ``labels`` alone (or ``x`` and ``y``, or ``image`` and
    ``label``) is one split, "train", to be divided by ``data.fractions``. ``class_names`` is read if it is there.
    Classes are counted in all splits.

    Args:
      file: path of the file; its name without suffix is the name of the dataset.
      split: "train", "test", or another split that the file has.

    Raises:
      UserError: the file is missing, damaged, or has no such split, or its arrays are not those of a dataset.
    """
    path = pathlib.Path(file).expanduser()
    with _one_line(path), np.load(path, allow_pickle=False) as content:
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise UserError(f"{path} holds a single array; an npz file with images and labels is needed")
        splits = _splits(content.files)
        if split not in splits:
            known = ", ".join(splits) or f"none, only the arrays {', '.join(content.files)}"
            hint = "; set data.fractions to divide it" if list(splits) == ["train"] else ""
            raise UserError(f"{path} has no split {split!r}; it has: {known}{hint}")
        images, labels = (content[key] for key in splits[split])
        all_labels = [as_labels(content[key], path.name) for _, key in splits.values()]
        names = content["class_names"].tolist() if "class_names" in content.files else None
    names = range(max(part.max(initial=-1) for part in all_labels) + 1) if names is None else names
    return from_arrays(images, labels, name=path.stem, class_names=tuple(map(str, names)))


def load_cifar10_c(name: str, folder: str | os.PathLike, split: str) -> Dataset:
    """Loads CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019): one corruption of the test images at one severity.

    Args:
      name: ``"cifar10_c/<corruption>_<severity>"``, such as "cifar10_c/gaussian_noise_5"; severities are 1 to 5.
      folder: the extracted archive, with ``labels.npy`` and one file for each corruption, in which the images of the
        five severities follow each other.
      split: "test".

    Returns:
      ``Dataset`` with images uint8 [10000, 32, 32, 3], in the order of the test split of CIFAR-10.

    Raises:
      UserError: there is no such corruption, severity or split, or a file is missing or damaged.
    """
    folder = pathlib.Path(folder).expanduser()
    corruption, _, severity = name.partition("/")[2].rpartition("_")
    path = folder / f"{corruption}.npy"
    if not corruption or severity not in map(str, range(1, _SEVERITIES + 1)):
        raise UserError(f"{name}: write cifar10_c/CORRUPTION_SEVERITY with a severity from 1 to 5, as in fog_3")
    if split != "test":
        raise UserError(f"{name} has no split {split!r}; it has: test")
    if not corruption.isidentifier() or not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.npy") if file.stem != "labels")
        raise UserError(f"{name}: there is no {path}; corruptions there are {', '.join(known) or 'none'}")
    with _one_line(path):
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    with _one_line(folder / "labels.npy"):
        labels = np.load(folder / "labels.npy", allow_pickle=False)
    if images.ndim != 4 or len(images) % _SEVERITIES or len(images) != len(labels):
        raise UserError(
            f"{path} holds {list(images.shape)} images and labels.npy {list(labels.shape)} labels: five severities of "
            "the same images are needed; copy the folder again"
        )
    count = len(images) // _SEVERITIES
    part = slice((int(severity) - 1) * count, int(severity) * count)
    return from_arrays(np.array(images[part]), labels[part], name=name, class_names=_CIFAR10_CLASSES)


def _splits(keys: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Split -> keys of its images and labels."""
    found = {}
    for key in keys:
        if key.startswith("x_"):
            found[key.removeprefix("x_")] = (key, f"y_{key.removeprefix('x_')}")
        elif key.endswith("_images"):
            found[key.removesuffix("_images")] = (key, f"{key.removesuffix('_images')}_labels")
    whole = [("train", pair) for pair in _WHOLE if pair[0] in keys]
    return {split: pair for split, pair in (found.items() or whole) if pair[1] in keys}


@contextlib.contextmanager
def _one_line(path: pathlib.Path) -> Iterator[None]:
    """Says in one line what is wrong with a file."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, EOFError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        remedy = "copy it again" if path.is_file() else "set --config.data.dir to the file, or to its folder"
        raise UserError(f"{path} cannot be read ({reason}): {remedy}") from error
