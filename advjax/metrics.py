"""Numbers over time: one JSON line each in ``metrics.jsonl``, TensorBoard events beside it, and a line on the terminal.

``metrics.jsonl`` is the record; the events can be made from it again.  Only process 0 writes.
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

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


class Progress(Protocol):
    """What ``progress`` yields."""

    def advance(self, n: int = 1, **fields: float) -> None:
        """``n`` more are done; ``fields`` (loss, accuracy, ...) are shown until they are given anew."""


@contextlib.contextmanager
def progress(description: str, total: int, *, initial: int = 0) -> Iterator[Progress]:
    """Shows on stderr how far something is: share done, rate per second, time left and a few numbers.

    A live bar on a terminal; otherwise a plain line every 10 seconds and one at the end.  Nothing from processes
    other than 0.

    Args:
      description: what is going on.
      total: how many there are.
      initial: how many were done before, by an interrupted run; they do not count for the rate.
    """
    if jax.process_index() != 0:
        yield _Silent()
    elif sys.stderr.isatty():
        with _bar(description, total, initial) as bar:
            yield bar
    else:
        lines = _Lines(description, total, initial)
        try:
            yield lines
        finally:
            lines.end()


class _Silent:
    def advance(self, n: int = 1, **fields: float) -> None:
        pass


class _Lines:
    def __init__(self, description: str, total: int, initial: int) -> None:
        self._description, self._total, self._initial, self._done = description, total, initial, initial
        self._fields: dict[str, float] = {}
        self._start = self._printed = time.monotonic()
        self._has_news = True

    def advance(self, n: int = 1, **fields: float) -> None:
        self._done += n
        self._fields.update(fields)
        self._has_news = True
        if time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self.print()

    def end(self) -> None:
        if self._has_news:
            self.print()

    def print(self) -> None:
        self._printed, self._has_news = time.monotonic(), False
        timing = _timing(self._done - self._initial, self._printed - self._start, self._total - self._done)
        text = f"{self._description} {self._done}/{self._total}  {timing}"
        print(f"{text}  {_numbers(self._fields)}".rstrip(), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bar(description: str, total: int, initial: int) -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[timing]}  {task.fields[numbers]}", markup=False),
    )
    start, done, shown = time.monotonic(), initial, {}
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(description, total=total, completed=initial, timing="", numbers="")

        class Bar:
            def advance(self, n: int = 1, **fields: float) -> None:
                nonlocal done
                done += n
                shown.update(fields)
                timing = _timing(done - initial, time.monotonic() - start, total - done)
                display.update(task, completed=done, timing=timing, numbers=_numbers(shown))

        yield Bar()


def _timing(done: int, seconds: float, remaining: int) -> str:
    if done == 0 and remaining <= 0:
        return "done before"
    rate = done / seconds if seconds > 0 else 0.0
    if remaining <= 0:
        return f"{rate:.3g}/s"
    if rate <= 0:
        return f"{rate:.3g}/s  ? left"
    minutes, rest = divmod(round(remaining / rate), 60)
    return f"{rate:.3g}/s  {minutes // 60}:{minutes % 60:02}:{rest:02} left"


def _numbers(fields: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in fields.items())
