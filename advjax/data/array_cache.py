"""On-disk cache of decoded images, so that each dataset is decoded only once.

Files are stored in ``$ADVJAX_CACHE``, by default ``~/.cache/advjax``; set the variable to the empty string to disable
the cache. They may be deleted at any time.
"""

import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from advjax.runtime.files import write_atomically

Arrays = dict[str, np.ndarray]


def cache_directory() -> pathlib.Path | None:
    """``$ADVJAX_CACHE``, by default ``~/.cache/advjax``; None if the variable is empty."""
    folder = os.environ.get("ADVJAX_CACHE", "~/.cache/advjax")
    return pathlib.Path(folder).expanduser() if folder else None


def get(name: str, *, source_files: Sequence[Any], compute: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays of ``compute``, from the cache if they were computed from the same source files before.

    All arrays are stored in one uncompressed npz file, whose checksums are verified on reading. It is written
    atomically, so several processes may share a cache. A damaged file is reported and recomputed; if the folder is not
    writable, this is reported and nothing is cached.

    Args:
      name: human-readable part of the file name.
      source_files: the files that ``compute`` reads, as epath; any change of name, size, or modification time
        invalidates the entry.
      compute: computes the arrays.

    Returns:
      Arrays by name.
    """
    folder = cache_directory()
    if folder is None:
        return compute()
    signature = repr([_signature(file) for file in source_files])
    path = folder / f"{name}-{hashlib.sha256(signature.encode()).hexdigest()[:16]}.npz"
    if path.exists():
        try:
            return _read(path)
        # Damage shows in many ways (zip structure, checksum, array header), and the remedy is always the same.
        except Exception as error:
            logging.warning("%s is damaged (%s); decoding again", path, error)
    arrays = compute()
    try:
        write_atomically(path, lambda file: np.savez(file, **arrays))  # pyright: ignore[reportArgumentType]
    except OSError as error:
        logging.warning("decoded images are not cached: %s (set ADVJAX_CACHE to a writable folder)", error)
    return arrays


def _signature(file: Any) -> tuple[str, int, int]:
    local = pathlib.Path(os.fspath(file))
    if local.exists():
        # Record files are padded to equal sizes, so the time must be exact; epath returns whole seconds.
        return file.name, local.stat().st_size, local.stat().st_mtime_ns
    return file.name, file.stat().length, file.stat().mtime


def _read(path: pathlib.Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
