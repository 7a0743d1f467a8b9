"""Keeps decoded arrays on disk, so that a data set is decoded once.

Files lie in ``$ADVJAX_CACHE``, by default ``~/.cache/advjax``; set the variable to nothing to keep none.  They may be
deleted at any time.
"""

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np
from absl import logging

Arrays = dict[str, np.ndarray]


def cache_directory() -> pathlib.Path | None:
    """``$ADVJAX_CACHE``, by default ``~/.cache/advjax``; None if the variable is set to nothing."""
    folder = os.environ.get("ADVJAX_CACHE", "~/.cache/advjax")
    return pathlib.Path(folder).expanduser() if folder else None


def get(name: str, *, source_files: Sequence[Any], compute: Callable[[], Arrays]) -> Arrays:
    """The arrays that ``compute`` returns, from disk if they were kept for the same source files.

    One uncompressed npz file holds all arrays; its checksums are verified on reading.  It is written under a temporary
    name and moved into place, so several processes may share a cache.  A damaged file is reported and made anew; a
    folder that cannot be written is reported and nothing is kept.

    Args:
      name: readable part of the file name.
      source_files: what ``compute`` reads, as epath; another name, size or time of modification makes another file.
      compute: makes the arrays.

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
        # Damage shows in many ways (zip structure, checksum, array header), and each has the same remedy.
        except Exception as error:
            logging.warning("%s is damaged (%s); decoding again", path, error)
    arrays = compute()
    try:
        _write(path, arrays)
    except OSError as error:
        logging.warning("decoded data are not kept: %s (set ADVJAX_CACHE to a folder that can be written)", error)
    return arrays


def write_whole(path: pathlib.Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file that is never seen half written: ``write`` fills a temporary one, which is moved into place.

    Raises:
      OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
        try:
            write(file)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _signature(file: Any) -> tuple[str, int, int]:
    local = pathlib.Path(os.fspath(file))
    if local.exists():
        # Record files are padded to equal sizes, so the time has to be exact; epath gives whole seconds.
        return file.name, local.stat().st_size, local.stat().st_mtime_ns
    return file.name, file.stat().length, file.stat().mtime


def _read(path: pathlib.Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _write(path: pathlib.Path, arrays: Arrays) -> None:
    write_whole(path, lambda file: np.savez(file, **arrays))  # pyright: ignore[reportArgumentType]
