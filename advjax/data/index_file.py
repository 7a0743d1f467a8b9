"""Splits in files, so that others can use the very same examples: readable JSON with a hash over all of it."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from advjax.data import array_cache
from advjax.data.splits import index_hash
from advjax.types import UserError

_FORMAT = 1


class Labeled(Protocol):
    """What is divided: a ``Dataset``, a ``Source``, or anything else with a name and labels."""

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
    """Stores parts of a data set.

    Args:
      path: the file, replaced as a whole.
      dataset: what the positions are positions in.
      parts: name -> int [m], positions in ``dataset``, order kept.
      meta: JSON data about how the parts were made, such as seed and fractions.

    Raises:
      UserError: positions are outside the data set, or the file cannot be written.
    """
    size = len(dataset.labels)
    for name, positions in parts.items():
        if len(positions) and not 0 <= np.min(positions) <= np.max(positions) < size:
            raise UserError(f"part {name!r} of {dataset.name} leaves 0 .. {size - 1}, the positions of its examples")
    content = {
        "format": _FORMAT,
        **_identity(dataset),
        "meta": dict(meta or {}),
        "parts": {name: np.asarray(positions).tolist() for name, positions in parts.items()},
    }
    text = json.dumps({**content, "sha256": _digest(content)}) + "\n"
    try:
        array_cache.write_whole(pathlib.Path(path), lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): choose a folder that can") from error


def read_index(path: str | os.PathLike, dataset: Labeled) -> dict[str, np.ndarray]:
    """Parts of a data set as ``write_index`` stored them: name -> int32 [m].

    Raises:
      UserError: the file cannot be read, has been changed since, or is of a data set with another name, other labels or
        another order.
    """
    try:
        content = json.loads(pathlib.Path(path).read_bytes())
        digest = content.pop("sha256")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): name an index file that exists") from error
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not an index file, or is damaged: copy it anew, or write it again") from error
    if digest != _digest(content) or content.get("format") != _FORMAT:
        raise UserError(f"{path} is damaged, its content does not match its hash: copy it anew, or write it again")
    for key, value in _identity(dataset).items():
        if content[key] != value:
            raise UserError(
                f"{path} is of another data set: its {key} is {content[key]!r}, and that of {dataset.name} is "
                f"{value!r}; use the index file of this data set, or write one"
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
