"""Finds prepared datasets in a TensorFlow Datasets directory, prepares the known ones, and explains what is missing.

tensorflow_datasets is imported only when something is read: it is slow to import and may be absent.
"""

import importlib.util
import os
import re
from typing import Any

import numpy as np
from etils import epath

from advjax.data.dataset import KNOWN_NAMES
from advjax.types import UserError

_NAME = re.compile(r"[a-z]\w*(/[\w.\-]+)?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_PREPARED_BY_ADVJAX = ("cifar10", "mnist", "fashion_mnist")


def data_directory(directory: str | os.PathLike | None = None) -> Any:
    """The tfds data directory: the argument, else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    An epath, so that buckets (gs://...) are accepted as in tfds.
    """
    return epath.Path(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(name: str, root: Any) -> Any | None:
    """Folder of the newest prepared version of a dataset, or None.

    Raises:
      UserError: the name is malformed, or lacks the config that the prepared dataset has.
    """
    if not _NAME.fullmatch(name):
        raise _unknown(name, root)
    folder = root / name
    versions = _versions(folder)
    if versions:
        return max(versions, key=lambda path: tuple(int(number) for number in path.name.split(".")))
    configs = sorted(path.name for path in _folders(folder) if _versions(path))
    if configs:
        raise UserError(f"{name} in {root} has configs: {', '.join(configs)}; name one, as in {name}/{configs[0]}")
    return None


def find_split(name: str, split: str, directory: str | os.PathLike | None) -> tuple[Any, list[Any]]:
    """Builder of a prepared dataset, validated, and all files of a split."""
    if name in _PREPARED_BY_ADVJAX and split not in ("train", "test"):
        raise _no_such_split(name, split, ["train", "test"])
    root = data_directory(directory)
    tfds = import_tfds()
    folder = find_prepared(name, root) or _prepare(name, root)
    builder = tfds.builder_from_directory(folder)
    _check_readable(builder, name, split)
    return builder, [folder / "dataset_info.json", folder / "features.json", *_record_files(builder, name, split)]


def import_tfds() -> Any:
    """The tensorflow_datasets module.

    Raises:
      UserError: it is not installed.
    """
    absent = [module for module in ("tensorflow_datasets", "array_record") if not importlib.util.find_spec(module)]
    if absent:
        packages = " ".join(module.replace("_", "-") for module in absent)
        raise UserError(f"reading tfds datasets needs {' and '.join(absent)}: run pip install {packages}")
    import tensorflow_datasets as tfds

    return tfds


def _prepare(name: str, root: Any) -> Any:
    if name not in _PREPARED_BY_ADVJAX:
        raise _not_prepared(name, root)
    from advjax.data import builders  # Imports tensorflow_datasets.

    return builders.prepare(name, root)


def _check_readable(builder: Any, name: str, split: str) -> None:
    tfds, info = import_tfds(), builder.info
    if info.file_format.value != "array_record":
        remedy = "it will be prepared there" if name in _PREPARED_BY_ADVJAX else f"prepare it there: {_command(name)}"
        raise UserError(
            f"{name} in {builder.data_path} is stored as {info.file_format.value}, which needs TensorFlow; advjax "
            f"reads array_record: set --config.data.dir or TFDS_DATA_DIR to another directory, and {remedy}"
        )
    if split not in info.splits:
        raise _no_such_split(name, split, list(info.splits))
    features = dict(info.features)
    image: Any = features.get("image")
    label: Any = features.get("label")
    is_image = isinstance(image, tfds.features.Image | tfds.features.Tensor) and image.np_dtype == np.uint8
    if not (is_image and isinstance(label, tfds.features.ClassLabel) and label.num_classes):
        found = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in features.items())
        raise UserError(
            f"{name} is not an image classification dataset that advjax can read: it needs the features image (uint8) "
            f"and label (ClassLabel), but has {found}"
        )


def _record_files(builder: Any, name: str, split: str) -> list[Any]:
    files = builder.info.splits[split].filepaths
    missing = [file for file in files if not file.exists()]
    if missing:
        raise UserError(
            f"{name} in {builder.data_path} is incomplete, {missing[0].name} is missing: "
            "delete that folder so that it is prepared again, or copy it again"
        )
    return files


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
    try:
        import_tfds().builder_cls(name.split("/")[0])
    except ValueError:  # DatasetNotFoundError
        return _unknown(name, root)
    return UserError(
        f"{name} is not prepared in {root}; advjax itself prepares only {', '.join(_PREPARED_BY_ADVJAX)}: set "
        f"--config.data.dir or TFDS_DATA_DIR to a directory that contains it, or prepare it: {_command(name)}"
    )


def _no_such_split(name: str, split: str, known: list[str]) -> UserError:
    return UserError(f"{name} has no split {split!r}; it has: {', '.join(known)}")


def _unknown(name: str, root: Any) -> UserError:
    prepared = sorted({path.name for path in _folders(root) if path.name != "downloads"} - set(KNOWN_NAMES))
    return UserError(
        f"unknown dataset {name!r}; known: {', '.join(KNOWN_NAMES)}, and tfds image classification datasets "
        f"prepared in {root} ({', '.join(prepared) or 'none besides these'})"
    )
