"""What goes to the disk: plain data that strict JSON can say, and files that are complete or not there."""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Put ``content`` at ``path`` in one step: a reader, or a crash, never sees half a file."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def plain(value: Any, path: str) -> Any:
    """``value`` in JSON's own types: arrays and tuples become lists, numbers that are not finite become None.

    Raises:
      TypeError: something that JSON cannot say; ``path`` says where it is.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return plain(np.asarray(value).tolist(), path)
    if isinstance(value, Mapping):
        return {str(key): plain(entry, f"{path}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{path}[{i}]") for i, entry in enumerate(value)]
    raise TypeError(f"{path} is a {type(value).__name__}, which JSON cannot say; use plain data")
