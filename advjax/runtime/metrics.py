"""Numbers over time: one JSON line each in ``metrics.jsonl``, TensorBoard events beside it, and a line on the terminal.

``metrics.jsonl`` is the record; the events can be made from it again.  Only process 0 writes.
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from advjax.types import UserError

FILE = "metrics.jsonl"
_SECONDS_BETWEEN_LINES = 10.0


class MetricWriter:
    """Appends metrics to ``<folder>/metrics.jsonl`` and to TensorBoard event files; a context manager.

    Each line is written at once and whole, so that a killed run leaves at most its last line torn.

    Args:
      folder: a local folder, created if need be.
      resume_step: the step a run goes on from; what an interrupted run wrote after it will be computed again and is
        dropped.  None keeps everything.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resume_step: int | None = None) -> None:
        self._folder = pathlib.Path(folder)
        self._resume_step = resume_step
        self._resources = contextlib.ExitStack()
        self._file: Any = None
        self._events: Any = None

    def __enter__(self) -> "MetricWriter":
        if jax.process_index() != 0:
            return self
        from tensorboardX import SummaryWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / FILE
        _mend(path, self._resume_step)
        self._file = self._resources.enter_context(path.open("a", encoding="utf-8"))
        # Tells TensorBoard to forget the events that the mended file has lost.
        purge_step = None if self._resume_step is None else self._resume_step + 1
        self._events = self._resources.enter_context(SummaryWriter(str(self._folder), purge_step=purge_step))
        return self

    def __exit__(self, *exception: object) -> None:
        self._file = self._events = None
        self._resources.close()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line ``{"step": step, "kind": kind, **values}``; numbers that are not finite become null.

        Args:
          step: how many steps have been taken.
          kind: "train", "validation", ...; in TensorBoard the tags are ``kind/name``.
          values: scalars; ``step`` and ``kind`` are not allowed as names.
        """
        if taken := {"step", "kind"} & values.keys():
            raise ValueError(f"metrics cannot be named {', '.join(sorted(taken))}")
        if self._file is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        strict = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        self._file.write(json.dumps({"step": int(step), "kind": kind, **strict}, allow_nan=False) + "\n")
        self._file.flush()
        for name, number in numbers.items():
            self._events.add_scalar(f"{kind}/{name}", number, int(step))


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, or of the one in a folder, in the order written; null is read as None.

    A torn last line is left out.

    Raises:
      UserError: there is no such file, or another line than the last is not JSON.
    """
    path = pathlib.Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise UserError(f"no metrics at {path}; has this run been trained?") from None
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise UserError(f"line {number} of {path} is not JSON; repair or remove that line") from None
    return records


def _mend(path: pathlib.Path, resume_step: int | None) -> None:
    """Rewrites the file without a torn last line and without steps after ``resume_step``; all or nothing."""
    if not path.exists():
        return
    records = read_metrics(path)
    kept = [record for record in records if resume_step is None or record["step"] <= resume_step]
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept).encode()
    if text != path.read_bytes():
        beside = path.with_name(f"{path.name}.tmp")
        with beside.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
