"""Training metrics: one JSON line per record in ``metrics.jsonl``, and TensorBoard events.

``metrics.jsonl`` is the source of truth; the events can be regenerated from it. Only process 0 writes.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from advjax.runtime.devices import is_main_process
from advjax.runtime.files import plain, write_all, write_atomically
from advjax.runtime.tensorboard_events import EventFile
from advjax.types import UserError

FILE = "metrics.jsonl"

OnMetrics: TypeAlias = Callable[[str, int, str, Mapping[str, float]], None]
"""``(run, step, kind, values)``: a function of the user's for other trackers, such as Weights & Biases or MLflow."""


class MetricWriter:
    """Appends metrics to ``<folder>/metrics.jsonl`` and to TensorBoard event files; a context manager.

    Each record is written as a whole, without a buffer, so a killed run leaves at most a torn last line.

    Args:
      folder: a local folder, created if necessary.
      resume_step: the step from which a run resumes; later records of the interrupted run are dropped, because they
        will be computed again. None keeps everything.
      notify: receives one line if the file has unreadable lines, which are dropped.
      on_metrics: is called with every record, too, after it has been written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        resume_step: int | None = None,
        notify: Callable[[str], None] = print,
        on_metrics: OnMetrics | None = None,
    ) -> None:
        self._folder, self._on_metrics = pathlib.Path(folder), on_metrics
        self._resume_step = resume_step
        self._notify = notify
        self._resources = contextlib.ExitStack()
        self._file: Any = None
        self._events: Any = None

    def __enter__(self) -> "MetricWriter":
        if not is_main_process():
            return self
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / FILE
        _repair(path, self._resume_step, self._notify)
        self._file = self._resources.enter_context(path.open("ab", buffering=0))
        # Tells TensorBoard to discard the events whose records were dropped.
        purge_step = None if self._resume_step is None else self._resume_step + 1
        with self._write_errors():
            self._events = self._resources.enter_context(EventFile(self._folder, purge_step))
        return self

    def __exit__(self, *exception: object) -> None:
        self._file = self._events = None
        self._resources.close()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Appends the record ``{"step": step, "kind": kind, **values}``; non-finite numbers become null.

        Args:
          step: number of steps taken.
          kind: "train", "validation", ...; TensorBoard tags are ``kind/name``.
          values: scalars; their names must not be ``step`` or ``kind``.

        Raises:
          UserError: the record cannot be written, for example because the disk is full.
        """
        if taken := {"step", "kind"} & values.keys():
            raise ValueError(f"metrics cannot be named {', '.join(sorted(taken))}")
        if self._file is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        record = plain({"step": int(step), "kind": kind, **numbers}, "metrics")
        with self._write_errors():
            write_all(self._file.fileno(), (json.dumps(record, allow_nan=False) + "\n").encode())
            for name, number in numbers.items():
                self._events.scalar(f"{kind}/{name}", number, int(step))
        if self._on_metrics is not None:
            self._on_metrics(self._folder.name, int(step), kind, numbers)

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"metrics cannot be written in {self._folder} ({error.strerror or error}): free some disk space; the "
                "same command continues from the last checkpoint"
            ) from error


def read_metrics(path: str | os.PathLike[str], *, notify: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, or of the one in a folder, in the order written; null is read as None.

    Lines that are not records, as a crash or a failing disk leaves them, are skipped. A torn last line is normal while
    a run is writing; any other is reported.

    Args:
      path: the file or its folder.
      notify: receives one line if lines were skipped.

    Raises:
      UserError: there is no such file.
    """
    path = pathlib.Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise UserError(f"no metrics at {path}; has this run been trained?") from None
    records = [_record(line) for line in lines[:-1]]
    if torn := [str(number) for number, record in enumerate(records, start=1) if record is None]:
        notify(f"{path}: skipped {len(torn)} unreadable of {len(records)} lines (line {', '.join(torn[:5])})")
    return [record for record in records if record is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None if it is not one."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        record = json.loads(line, parse_constant=refuse)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and type(record.get("step")) is int and isinstance(record.get("kind"), str)
    return record if is_record else None


def _repair(path: pathlib.Path, resume_step: int | None, notify: Callable[[str], None]) -> None:
    """Rewrites the file atomically without unreadable lines and without steps after ``resume_step``."""
    if not path.exists():
        return
    records = read_metrics(path, notify=notify)
    kept = [record for record in records if resume_step is None or record["step"] <= resume_step]
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept).encode()
    if text != path.read_bytes():
        write_atomically(path, text)
