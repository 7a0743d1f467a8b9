"""Reads prepared TensorFlow Datasets directories into memory, without TensorFlow, in the original order.

tfds stores records in the order of a hash.  The original order, on which published test subsets rest, is restored from
the ``id`` feature where there is one (CIFAR), and otherwise from the hash itself for the data sets whose keys are known
to be the positions (MNIST, Fashion-MNIST).  Other data sets keep the stored order, the same everywhere.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from advjax.data import array_cache, images
from advjax.data.dataset import KNOWN_NAMES, Dataset
from advjax.data.source import Source, read_all
from advjax.types import UserError

_NAME = re.compile(r"[a-z]\w*(/[\w.\-]+)?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_PREPARED_BY_US = ("cifar10", "mnist", "fashion_mnist")
_KEYS_ARE_POSITIONS = ("mnist", "fashion_mnist")
_RECORDS_AT_A_TIME = 4096
"""Bounds the memory that reading the labels needs."""


def load_tfds(name: str, split: str, *, directory: str | os.PathLike | None = None, image_size: int = 0) -> Dataset:
    """One split of a tfds data set as uint8 images in memory; see ``advjax.data.load``.

    Decoding 50,000 PNG records takes seconds, so decoded arrays are kept: see ``array_cache``.  What was kept is used
    only for the very files it was decoded from.

    Args:
      name: ``"<name>"`` or ``"<name>/<configuration>"``.
      split: one of the splits of the data set.
      directory: tfds data directory; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      image_size: shorter sides are resized to it and the center is cut out (see ``images.square``); 0 leaves images as
        they are stored, which then must have one size.

    Returns:
      ``Dataset`` with images uint8 [n, h, w, c].

    Raises:
      UserError: for an unknown name or split, and for data that cannot be had or read.
    """
    builder, files = _find(name, split, directory)
    arrays = array_cache.get(
        f"{name}-{builder.version}-{split}{f'-{image_size}' if image_size else ''}".replace("/", "-"),
        source_files=files,
        compute=lambda: _read(builder, name, split, image_size),
    )
    index = np.arange(len(arrays["labels"]), dtype=np.int32)
    return Dataset(name, arrays["images"], arrays["labels"], index, tuple(builder.info.features["label"].names))


def open_tfds(name: str, split: str, *, directory: str | os.PathLike | None = None, image_size: int = 0) -> Source:
    """``load_tfds`` with images that are decoded when they are asked for; reading one raises UserError too."""
    return _source(_find(name, split, directory)[0], name, split, image_size)


def data_directory(directory: str | os.PathLike | None = None) -> Any:
    """The tfds data directory: the argument, else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``, as epath."""
    from etils import epath  # Like tfds, accepts buckets (gs://...) beside local folders.

    return epath.Path(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(name: str, root: Any) -> Any | None:
    """Folder of the newest prepared version of a data set, or None.

    Raises:
      UserError: if the name is malformed, or lacks a configuration that the prepared data set has.
    """
    if not _NAME.fullmatch(name):
        raise _unknown(name, root)
    folder = root / name
    versions = _versions(folder)
    if versions:
        return max(versions, key=lambda path: tuple(int(number) for number in path.name.split(".")))
    configurations = sorted(path.name for path in _folders(folder) if _versions(path))
    if configurations:
        raise UserError(
            f"{name} in {root} has configurations: {', '.join(configurations)}; name one, as {name}/{configurations[0]}"
        )
    return None


def original_positions(name: str, split: str, num_records: int, ids: list[str] | None) -> np.ndarray:
    """Position in the original order of each stored record.

    Args:
      name: name of the data set.
      split: name of the split; tfds salts its hash with it.
      num_records: number n of records of the split.
      ids: the ``id`` of each record, or None; used if their trailing numbers are a permutation of 0 .. n - 1.

    Returns:
      int64 [n], a permutation; the identity where the original order is not known.
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


def _find(name: str, split: str, directory: str | os.PathLike | None) -> tuple[Any, list[Any]]:
    """Builder of a prepared data set, checked, and all files that a split is made of."""
    if name in _PREPARED_BY_US and split not in ("train", "test"):
        raise _no_such_split(name, split, ["train", "test"])
    root = data_directory(directory)
    tfds = _import_tfds()
    folder = find_prepared(name, root) or _prepare(name, root)
    builder = tfds.builder_from_directory(folder)
    _check_readable(builder, name, split)
    return builder, [folder / "dataset_info.json", folder / "features.json", *_record_files(builder, name, split)]


def _read(builder: Any, name: str, split: str, image_size: int) -> dict[str, np.ndarray]:
    dataset = read_all(_source(builder, name, split, image_size))
    return {"images": dataset.images, "labels": dataset.labels}


def _source(builder: Any, name: str, split: str, image_size: int) -> Source:
    feature = builder.info.features["image"]
    encoded = isinstance(feature, _import_tfds().features.Image)
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
    """The records of a split in the stored order, images as the bytes of a file where they are stored so."""
    skip = {"image": _import_tfds().decode.SkipDecoding()} if encoded else None
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
    except (RuntimeError, ValueError, OSError) as error:  # What array_record, protobuf and PIL raise for broken files.
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{name} in {builder.data_path} cannot be read ({reason}): delete that folder, then it is prepared again, "
            "or copy it anew"
        ) from error


def _prepare(name: str, root: Any) -> Any:
    if name not in _PREPARED_BY_US:
        raise _not_prepared(name, root)
    from advjax.data import builders  # Imports tfds.

    return builders.prepare(name, root)


def _check_readable(builder: Any, name: str, split: str) -> None:
    import tensorflow_datasets as tfds

    info = builder.info
    if info.file_format.value != "array_record":
        remedy = "it is prepared there again" if name in _PREPARED_BY_US else f"prepare it there: {_command(name)}"
        raise UserError(
            f"{name} in {builder.data_path} is stored as {info.file_format.value}, which needs TensorFlow; advjax "
            f"reads array_record: name another directory with --config.data.dir or TFDS_DATA_DIR, and {remedy}"
        )
    if split not in info.splits:
        raise _no_such_split(name, split, list(info.splits))
    image, label = (dict(info.features).get(key) for key in ("image", "label"))
    is_image = isinstance(image, tfds.features.Image | tfds.features.Tensor) and image.np_dtype == np.uint8
    if not (is_image and isinstance(label, tfds.features.ClassLabel) and label.num_classes):
        found = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in info.features.items())
        raise UserError(
            f"{name} is not an image classification data set that advjax can read: it needs the features image (uint8) "
            f"and label (ClassLabel), and has {found}"
        )


def _record_files(builder: Any, name: str, split: str) -> list[Any]:
    files = builder.info.splits[split].filepaths
    missing = [file for file in files if not file.exists()]
    if missing:
        raise UserError(
            f"{name} in {builder.data_path} is incomplete, {missing[0].name} is missing: "
            "delete that folder, then it is prepared again, or copy it anew"
        )
    return files


def _import_tfds() -> Any:
    absent = [module for module in ("tensorflow_datasets", "array_record") if not importlib.util.find_spec(module)]
    if absent:
        packages = " ".join(module.replace("_", "-") for module in absent)
        raise UserError(f"reading tfds data sets needs {' and '.join(absent)}: run pip install {packages}")
    import tensorflow_datasets as tfds

    return tfds


def _folders(folder: Any) -> list[Any]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _versions(folder: Any) -> list[Any]:
    return [
        path for path in _folders(folder) if _VERSION.fullmatch(path.name) and (path / "dataset_info.json").exists()
    ]


def _command(name: str) -> str:
    return (
        f"""pip install 'advjax[tf]', then python -c "import tensorflow_datasets as tfds; tfds.builder('{name}', """
        """data_dir='<directory>', file_format='array_record').download_and_prepare()\""""
    )


def _not_prepared(name: str, root: Any) -> UserError:
    import tensorflow_datasets as tfds

    try:
        tfds.builder_cls(name.split("/")[0])
    except ValueError:  # DatasetNotFoundError
        return _unknown(name, root)
    return UserError(
        f"{name} is not prepared in {root}; advjax prepares only {', '.join(_PREPARED_BY_US)} itself: "
        f"name a directory that has it with --config.data.dir or TFDS_DATA_DIR, or prepare it: {_command(name)}"
    )


def _no_such_split(name: str, split: str, known: list[str]) -> UserError:
    return UserError(f"{name} has no split {split!r}; it has: {', '.join(known)}")


def _unknown(name: str, root: Any) -> UserError:
    prepared = sorted({path.name for path in _folders(root) if path.name != "downloads"} - set(KNOWN_NAMES))
    return UserError(
        f"unknown data set {name!r}; known: {', '.join(KNOWN_NAMES)}, and image classification data sets of tfds "
        f"prepared in {root} ({', '.join(prepared) or 'none besides these'})"
    )
