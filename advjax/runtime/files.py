"""Atomic file writes and conversion to plain JSON."""

import contextlib
import math
import os
import pathlib
import secrets
from collections.abc import Callable, Mapping
from typing import IO, Any

import jax
import numpy as np

from advjax.types import UserError


def write_all(descriptor: int, content: bytes) -> None:
    """Writes to an open file without a buffer, which would keep what a full disk refuses, and fail again when closed.

    Raises:
      OSError: not everything can be written.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[IO[bytes]], Any]) -> None:
    """Writes a file in one step: neither a reader nor a crash ever sees it half written.

    The content goes to a temporary file in the same folder, is flushed to the disk, and renamed over ``path``. Missing
    parent folders are created; permissions follow the umask.

    Args:
      path: the file to create or replace.
      content: the bytes, or a function that writes them to an open binary file.

    Raises:
      OSError: it cannot be written; ``path`` is then unchanged and no temporary file is left behind.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            # A failed write, unlike a failed open, does not say of which file.
            error.filename = str(path)
        raise
    _sync_folder(path.parent)


def read_npz(path: str | os.PathLike[str], remedy: str) -> dict[str, np.ndarray]:
    """Reads all arrays of an npz file, whose checksums reveal damage.

    Args:
      path: the file.
      remedy: what to do about a damaged file, for the error message.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it cannot be read, is damaged, or is not an npz file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    # Damage shows in many ways: zip structure, checksum, compression, array header.
    except Exception as error:
        raise UserError(f"{path} is damaged or not an npz file ({type(error).__name__}: {error}): {remedy}") from error


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a rename durable. Some file systems cannot sync a folder; the new content is in place regardless."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def plain(value: Any, path: str) -> Any:
    """Converts ``value`` to JSON types: arrays and tuples become lists, non-finite numbers become None.

    Raises:
      TypeError: for anything else that JSON cannot represent; the message starts with ``path``, where it was found.
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
    raise TypeError(f"{path} is a {type(value).__name__}, which JSON cannot represent; use plain data")
