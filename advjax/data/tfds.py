"""Reads prepared TensorFlow Datasets directories, without TensorFlow, in the original order.

tfds stores records in hash order. The original order, which published test subsets refer to, is restored from the
``id`` feature if there is one (CIFAR), and otherwise from the hash itself for datasets whose keys are known to be the
positions (MNIST, Fashion-MNIST). Other datasets keep the stored order, which is the same everywhere.

The directories themselves are found and validated by ``tfds_directory``.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from advjax.data import array_cache, images, tfds_directory
from advjax.data.dataset import Dataset
from advjax.data.source import Source, read_all
from advjax.types import UserError

_KEYS_ARE_POSITIONS = ("mnist", "fashion_mnist")
_RECORDS_AT_A_TIME = 4096
"""Bounds the memory needed to read the labels."""


def load_tfds(name: str, split: str, *, directory: str | os.PathLike | None = None, image_size: int = 0) -> Dataset:
    """Loads one split of a tfds dataset as uint8 images in memory; see ``advjax.data.load``.

    Decoding 50,000 PNG records takes seconds, so decoded arrays are cached, see ``array_cache``; a cache entry is valid
    for exactly the files it was decoded from.

    Args:
      name: ``"<name>"`` or ``"<name>/<config>"``.
      split: one of the splits of the dataset.
      directory: tfds data directory; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      image_size: if positive, images are resized so that the shorter side has this length, and center-cropped to a
        square (see ``images.square``); 0 keeps the stored size, which must then be the same for all images.

    Returns:
      ``Dataset`` with images uint8 [n, h, w, c].

    Raises:
      UserError: for an unknown name or split, and for data that cannot be obtained or read.
    """
    builder, files = tfds_directory.find_split(name, split, directory)
    arrays = array_cache.get(
        f"{name}-{builder.version}-{split}{f'-{image_size}' if image_size else ''}".replace("/", "-"),
        source_files=files,
        compute=lambda: _read(builder, name, split, image_size),
    )
    index = np.arange(len(arrays["labels"]), dtype=np.int32)
    return Dataset(name, arrays["images"], arrays["labels"], index, tuple(builder.info.features["label"].names))


def open_tfds(name: str, split: str, *, directory: str | os.PathLike | None = None, image_size: int = 0) -> Source:
    """Like ``load_tfds``, but images are decoded only when they are read, which may raise a UserError as well."""
    return _source(tfds_directory.find_split(name, split, directory)[0], name, split, image_size)


def original_positions(name: str, split: str, num_records: int, ids: list[str] | None) -> np.ndarray:
    """Position of each stored record in the original order.

    Args:
      name: name of the dataset.
      split: name of the split; tfds salts its hash with it.
      num_records: number n of records of the split.
      ids: the ``id`` of each record, or None; used if the trailing numbers are a permutation of 0 .. n - 1.

    Returns:
      int64 [n], a permutation; the identity if the original order is unknown.
    """
    if ids is not None:
        numbers = np.array([int(match[0]) if (match := re.search(r"\d{1,18}$", i)) else -1 for i in ids], np.int64)
        if np.array_equal(np.sort(numbers), np.arange(num_records)):
            return numbers
    if name in _KEYS_ARE_POSITIONS:
        from tensorflow_datasets.core import hashing

        hasher = hashing.Hasher(split)
        return np.array(sorted(range(num_records), key=hasher.hash_key), np.int64)
    return np.arange(num_records)


def _read(builder: Any, name: str, split: str, image_size: int) -> dict[str, np.ndarray]:
    dataset = read_all(_source(builder, name, split, image_size))
    return {"images": dataset.images, "labels": dataset.labels}


def _source(builder: Any, name: str, split: str, image_size: int) -> Source:
    feature = builder.info.features["image"]
    encoded = isinstance(feature, tfds_directory.import_tfds().features.Image)
    channels = feature.shape[-1] or 3
    with _read_errors(builder, name):
        records = _records(builder, split, encoded)
        labels, ids = _labels(records, "id" in builder.info.features)
        stored_at = np.argsort(original_positions(name, split, len(labels), ids))

    def read(position: int) -> np.ndarray:
        with _read_errors(builder, name):
            content = records[int(stored_at[position])]["image"]
            image = images.decode(content, channels) if encoded else content
            return images.square(image, image_size) if image_size else image

    shape = (image_size, image_size, channels) if image_size else read(0).shape
    index = np.arange(len(labels), dtype=np.int32)
    return Source(name, shape, read, labels[stored_at], index, tuple(builder.info.features["label"].names))


def _records(builder: Any, split: str, encoded: bool) -> Any:
    """The records of a split in the stored order; encoded images are not decoded."""
    skip = {"image": tfds_directory.import_tfds().decode.SkipDecoding()} if encoded else None
    return builder.as_data_source(split=split, decoders=skip)


def _labels(records: Any, with_ids: bool) -> tuple[np.ndarray, list[str] | None]:
    labels, ids = np.empty(len(records), np.int32), []
    for start in range(0, len(records), _RECORDS_AT_A_TIME):
        numbers = range(start, min(start + _RECORDS_AT_A_TIME, len(records)))
        for number, record in zip(numbers, records.__getitems__(list(numbers)), strict=True):
            labels[number] = record["label"]
            if with_ids:
                ids.append(str(np.asarray(record["id"]).astype(str)))
    return labels, ids if with_ids else None


@contextlib.contextmanager
def _read_errors(builder: Any, name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError) as error:  # Raised by array_record, protobuf, and PIL.
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{name} in {builder.data_path} cannot be read ({reason}): delete that folder so that it is prepared "
            "again, or copy it again"
        ) from error
