"""Checksums of checkpoints, and the description that is stored with each of them.

The storage format notices a truncated file but returns a flipped byte as a different number, hence a SHA-256 for every
array. The description (config, metrics, and these checksums) is protected by a SHA-256 of its own, the seal.
"""

import hashlib
import json
import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import tensorstore
from etils import epath

from advjax.runtime.devices import fetch
from advjax.types import PyTree

STATE, ABOUT = "state", "about"
"""The two items of a checkpoint."""


class DamagedError(Exception):
    """A part of a checkpoint is missing, unreadable, or differs from what was saved."""


def steps(directory: epath.Path) -> list[int]:
    """The steps with a checkpoint in ``directory``, whole or damaged, in ascending order."""
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir())


def describe(step: int, state: PyTree, metrics: dict[str, float], config: dict[str, Any]) -> dict[str, Any]:
    """The sealed description of a checkpoint, plain JSON."""
    about = {"step": step, "config": config, "metrics": metrics, "leaves": checksums(state)}
    about = json.loads(json.dumps(about))
    return {**about, "seal": _seal(about)}


def read_about(directory: epath.Path, step: int) -> dict[str, Any]:
    """The description of a checkpoint.

    Raises:
      DamagedError: it is missing or was modified.
    """
    try:
        about = json.loads((directory / str(step) / ABOUT / "metadata").read_text())
        seal = about.pop("seal")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedError("its description is missing or unreadable") from error
    if seal != _seal(about) or about["step"] != step:
        raise DamagedError("its description was modified")
    return about


def is_readable(directory: epath.Path, step: int) -> bool:
    """Whether the description of a checkpoint is intact."""
    try:
        return bool(read_about(directory, step))
    except DamagedError:
        return False


def scores(directory: epath.Path, metric: str | None) -> dict[int, float]:
    """``metric`` by step, for the checkpoints that have it and whose description is intact."""
    readable = [step for step in steps(directory) if is_readable(directory, step)]
    return {
        step: value for step in readable if (value := score(read_about(directory, step)["metrics"], metric)) is not None
    }


def score(metrics: dict[str, float], metric: str | None) -> float | None:
    """The value that checkpoints are compared by; None if it is absent or NaN, which is never best."""
    value = math.nan if metric is None else metrics.get(metric, math.nan)
    return None if math.isnan(value) else value


def best(scores: dict[int, float]) -> int | None:
    """The step with the highest score, the latest of equals; None if there are no scores."""
    return max(scores, key=lambda step: (scores[step], step), default=None)


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by path, as in "params/conv/kernel"."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def checksums(tree: PyTree) -> dict[str, list[Any]]:
    """dtype, shape, and SHA-256 of the bytes of every leaf, by path."""
    leaves = leaves_by_path(tree)
    arrays = fetch(list(leaves.values()))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(
            lambda array: hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data), arrays
        )
        entries = zip(leaves.items(), digests, strict=True)
        return {path: [str(leaf.dtype), list(leaf.shape), digest.hexdigest()] for (path, leaf), digest in entries}


def check_storage(folder: epath.Path, names: Collection[str]) -> None:
    """Reads the stored bytes of some fields of the state, without decoding them.

    Orbax reads all arrays concurrently; when one of them fails, the others are abandoned and print tracebacks from
    their threads. What is missing or truncated is therefore found here first.

    Args:
      folder: the folder of the state.
      names: the fields, such as "params".

    Raises:
      DamagedError: something cannot be read.
    """
    path = str(folder)
    try:
        base = path if "://" in path else f"file://{path}"
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"{base}/"}).result()
        keys = [key for key in store.list().result() if _field(key) in names]
        # A value whose file is missing is returned empty, and a store without a manifest has no keys.
        whole = {_field(key) for key in keys} == {*names}
        whole &= all([reading.result().value for reading in [store.read(key) for key in keys]])
    except (ValueError, OSError) as error:
        raise DamagedError("some of its files are damaged") from error
    if not whole:
        raise DamagedError("some of its files are missing")


def verify(state: PyTree, about: dict[str, Any]) -> None:
    """Compares arrays that were read with the checksums taken when they were saved.

    Raises:
      DamagedError: an array differs.
    """
    for path, entry in checksums(state).items():
        if entry != about["leaves"][path]:
            raise DamagedError(f"{path} differs from what was saved")


def reasons(damaged: dict[int, str]) -> str:
    """What is wrong with the checkpoints, in one line."""
    return "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())


def _field(key: bytes) -> str:
    """The field of the state that a key such as "params.conv.kernel/0.0" belongs to."""
    return key.decode().split("/")[0].split(".")[0]


def _seal(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
