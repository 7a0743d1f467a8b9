"""Resumable results on disk: a folder to which finished parts are only ever added.

    <folder>/identity.json        the facts that results belong to, as readable JSON
    <folder>/fingerprint/*.npy    arrays that must be reproduced, up to rounding, before results are used again
    <folder>/00000/*.npy          the first part; contents.json has dtype, shape and SHA-256 of each array
    <folder>/00001/*.npy          the second part, ...

A part is written into a temporary folder, synchronized with the disk and renamed, so it is either complete or absent.
One process writes; any number may read.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from advjax.types import UserError

TOLERANCE = 1e-4
"""Largest difference between two equal fingerprints, relative to the largest finite entry of the array."""
AGREEING_ROWS = 0.75
"""Share of an array's rows that have to be equal.

Gradients jump where a ReLU is near 0, so rounding, which differs between CPUs, can change those of single images.
"""
_IDENTITY, _FINGERPRINT, _CONTENTS, _INCOMPLETE = "identity.json", "fingerprint", "contents.json", ".incomplete."
_KINDS = "biufc"


@dataclasses.dataclass(frozen=True, eq=False)
class ResultStore:
    """The results of one computation, kept in a folder.

    Attributes:
      folder: created by the first ``append``; None stores nothing.
      identity: facts that decide the results, in JSON's types, each under a name in plain words.
      fingerprint: arrays that decide them up to rounding (``TOLERANCE``, ``AGREEING_ROWS``).
      tolerances: those of arrays that need another one than ``TOLERANCE``.

    Raises:
      UserError: the folder holds results of another computation, is damaged, or is a file.
    """

    folder: str | os.PathLike[str] | None
    identity: Mapping[str, Any]
    fingerprint: Mapping[str, np.ndarray] | None = None
    tolerances: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if (folder := self._existing()) is None:
            return
        facts, identity = _read_json(folder, folder / _IDENTITY), _as_read(self.identity)
        expected, path = self.fingerprint or {}, folder / _FINGERPRINT
        stored = _read_arrays(folder, path) if path.exists() else {}
        if unknown := [name for name in identity if name not in facts] or (not stored and [*expected]):
            raise UserError(
                f"{folder} was written by an earlier version of advjax, which did not record "
                f"{_listed(unknown).replace('_', ' ')}: delete it or name another folder"
            )
        differing = _differing(facts, identity)
        for name in dict.fromkeys([*stored, *expected]):
            tolerance = self.tolerances.get(name, TOLERANCE)
            if name not in stored or name not in expected or not _reproduced(stored[name], expected[name], tolerance):
                differing.append(name.replace("_", " "))
        if differing:
            raise UserError(
                f"{folder} belongs to another run ({_listed(differing)} differ): delete it or name another folder"
            )

    def parts(self) -> list[Mapping[str, np.ndarray]]:
        """The finished parts in order, with arrays that stay on disk until they are used.

        Raises:
          UserError: a file is missing, truncated or altered.
        """
        folder = self._existing()
        if folder is None:
            return []
        numbers = _numbers(folder)
        for number in range(len(numbers)):
            if number not in numbers:
                raise _damaged(folder, f"part {number:05} is missing")
        return [_read_arrays(folder, folder / f"{number:05}") for number in range(len(numbers))]

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds the next part atomically.

        Args:
          arrays: numbers or bools, under names made of letters, digits and underscores.

        Raises:
          UserError: the part cannot be written, e.g. because the disk is full; nothing of it is left behind.
        """
        if self.folder is None:
            return
        folder = pathlib.Path(self.folder)
        if self._existing() is None:
            with _written_whole(folder, folder) as temporary:
                text = json.dumps(self.identity, indent=1, allow_nan=False)
                (temporary / _IDENTITY).write_text(text + "\n")
                if self.fingerprint:
                    _write_arrays(temporary / _FINGERPRINT, self.fingerprint)
        for leftover in folder.glob(f"{_INCOMPLETE}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with _written_whole(folder, folder / f"{len(_numbers(folder)):05}") as temporary:
            _write_arrays(temporary, arrays)

    def _existing(self) -> pathlib.Path | None:
        """The folder, if there is one with anything in it."""
        if self.folder is None:
            return None
        folder = pathlib.Path(self.folder)
        if not folder.name:
            raise UserError(f"results cannot be saved in {str(self.folder)!r}: name a folder of their own")
        if not os.path.lexists(folder):
            return None
        if not folder.is_dir():
            raise UserError(
                f"{folder} is a file, not a folder of results (older versions wrote such files): "
                "delete it or name another folder"
            )
        names = {path.name for path in folder.iterdir()}
        if names and _IDENTITY not in names and not re.fullmatch(r"\d{5,}", max(names)) and _FINGERPRINT not in names:
            raise UserError(f"{folder} holds other files, e.g. {min(names)}: name another folder")
        return folder if names else None


def _differing(stored: Any, expected: dict[str, Any]) -> list[str]:
    """Names of the facts that differ."""
    absent = object()
    names = dict.fromkeys([*expected, *stored])
    return [name for name in names if stored.get(name, absent) != expected.get(name, absent)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _as_read(identity: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(identity, allow_nan=False))


def _reproduced(stored: np.ndarray, here: np.ndarray, tolerance: float) -> bool:
    """Whether most rows of two arrays are equal up to rounding."""
    here = np.asarray(here)
    if stored.shape != here.shape or stored.dtype != here.dtype:
        return False
    num_rows = stored.shape[0] if stored.ndim else 1
    old, new = (np.reshape(array, (num_rows, -1)).astype(float) for array in (stored, here))
    scale = np.max(np.abs(old), initial=0.0, where=np.isfinite(old))
    equal = np.all(np.isclose(old, new, rtol=0, atol=tolerance * scale, equal_nan=True), axis=1)
    return bool(np.mean(equal) >= AGREEING_ROWS) if num_rows else True


def _numbers(folder: pathlib.Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir() if re.fullmatch(r"\d{5,}", path.name)}


def _damaged(folder: pathlib.Path, reason: object) -> UserError:
    return UserError(f"{folder} is damaged: delete the folder to start afresh ({' '.join(str(reason).split())})")


def _read_json(folder: pathlib.Path, path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{path.name}: {error}") from error
    if not isinstance(content, dict):
        raise _damaged(folder, f"{path.name} is not a JSON object")
    return content


def _read_arrays(folder: pathlib.Path, part: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays listed in ``contents.json``, with the dtypes and shapes given there."""
    arrays = {}
    for name, (dtype, shape, digest) in _checked_contents(folder, part).items():
        path = part / f"{name}.npy"
        try:
            # Empty arrays cannot be mapped.
            array = np.load(path, mmap_mode="r" if 0 not in shape else None, allow_pickle=False)
        except Exception as error:
            # numpy raises many kinds of errors for files that are truncated or not its own.
            raise _damaged(folder, f"{part.name}/{path.name}: {error}") from error
        if not isinstance(array, np.ndarray) or array.dtype.str != dtype or list(array.shape) != shape:
            raise _damaged(folder, f"{part.name}/{path.name} does not hold {dtype} {shape}")
        if _digest(array) != digest:
            raise _damaged(folder, f"{part.name}/{path.name} has been altered")
        arrays[name] = array
    return arrays


def _digest(array: np.ndarray) -> str:
    """Of the content of an array: a flipped bit could turn a success of the attack into one of the defense."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _checked_contents(folder: pathlib.Path, part: pathlib.Path) -> dict[str, list[Any]]:
    contents = _read_json(folder, part / _CONTENTS)
    for entry in contents.values():
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[1], list):
            raise _damaged(folder, f"{part.name}/{_CONTENTS} has been altered")
    return contents


def _write_arrays(part: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    part.mkdir(exist_ok=True)
    contents = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.kind not in _KINDS or not re.fullmatch(r"\w+", name):
            raise ValueError(f"a result store takes arrays of numbers under plain names, got {array.dtype} {name!r}")
        np.save(part / f"{name}.npy", array, allow_pickle=False)
        contents[name] = [array.dtype.str, list(array.shape), _digest(array)]
    (part / _CONTENTS).write_text(json.dumps(contents) + "\n")


@contextlib.contextmanager
def _written_whole(folder: pathlib.Path, target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder to fill, which becomes ``target`` in one step; after an error it is removed."""
    temporary = target.with_name(_INCOMPLETE + target.name)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _synchronize(path)
        os.rename(temporary, target)
        _synchronize(target.parent)
    except OSError as error:
        raise UserError(f"results cannot be saved in {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _synchronize(path: pathlib.Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
