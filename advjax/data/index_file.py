"""Index files: dataset splits stored as readable JSON with a checksum, so that others can use the same examples."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from advjax.data.splits import index_hash
from advjax.runtime.files import write_atomically
from advjax.types import UserError

_FORMAT = 1


class Labeled(Protocol):
    """Anything with a name and labels, such as a ``Dataset`` or a ``Source``."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> np.ndarray: ...


def write_index(
    path: str | os.PathLike,
    dataset: Labeled,
    parts: Mapping[str, np.ndarray],
    *,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Writes the parts of a dataset to an index file.

    Args:
      path: the file, replaced atomically.
      dataset: the dataset that the positions refer to.
      parts: name -> int [m], positions in ``dataset``; their order is kept.
      meta: JSON data about how the parts were made, such as seed and fractions.

    Raises:
      UserError: a position is out of range, or the file cannot be written.
    """
    size = len(dataset.labels)
    for name, positions in parts.items():
        if len(positions) and not 0 <= np.min(positions) <= np.max(positions) < size:
            raise UserError(f"part {name!r} of {dataset.name} has positions outside 0 .. {size - 1}")
    content = {
        "format": _FORMAT,
        **_identity(dataset),
        "meta": dict(meta or {}),
        "parts": {name: np.asarray(positions).tolist() for name, positions in parts.items()},
    }
    text = json.dumps({**content, "sha256": _digest(content)}) + "\n"
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): choose a writable folder") from error


def read_index(path: str | os.PathLike, dataset: Labeled) -> dict[str, np.ndarray]:
    """Reads the parts stored by ``write_index``: name -> int32 [m].

    Raises:
      UserError: the file cannot be read, was modified, or belongs to a dataset with another name, other labels, or
        another order.
    """
    try:
        content = json.loads(pathlib.Path(path).read_bytes())
        digest = content.pop("sha256")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): give an existing index file") from error
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not an index file, or is damaged: copy it again, or write it again") from error
    if digest != _digest(content) or content.get("format") != _FORMAT:
        raise UserError(f"{path} is damaged: its content does not match its checksum; copy it again, or write it again")
    for key, value in _identity(dataset).items():
        if content[key] != value:
            raise UserError(
                f"{path} belongs to another dataset: its {key} is {content[key]!r}, that of {dataset.name} is "
                f"{value!r}; use the index file of this dataset, or write one"
            )
    return {name: np.array(positions, np.int32) for name, positions in content["parts"].items()}


def _identity(dataset: Labeled) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "num_examples": len(dataset.labels),
        "hash of the labels": index_hash(dataset.labels),
    }


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
