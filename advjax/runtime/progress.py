"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

from advjax.runtime.compile_time import seconds_compiling
from advjax.runtime.devices import is_main_process

_SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """The object that ``progress`` yields."""

    def advance(self, n: int = 1, **fields: float) -> None:
        """Advances by ``n``; ``fields`` (loss, accuracy, ...) are displayed until they are updated."""


@contextlib.contextmanager
def progress(description: str, total: int, *, initial: int = 0) -> Iterator[Progress]:
    """Reports progress on stderr: number done, rate per second, time left, and a few numbers.

    Rate and time left are those without compilation, which is over after the first items.

    A live bar on a terminal; otherwise a plain line every 10 seconds and one at the end. Processes other than 0 print
    nothing.

    Args:
      description: of the work.
      total: number of items.
      initial: number of items done earlier by an interrupted run; they do not count toward the rate.
    """
    if not is_main_process():
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
        self._start, self._printed = _working_time(), time.monotonic()
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
        timing = _timing(self._done - self._initial, _working_time() - self._start, self._total - self._done)
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
    start, done, shown = _working_time(), initial, {}
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(description, total=total, completed=initial, timing="", numbers="")

        class Bar:
            def advance(self, n: int = 1, **fields: float) -> None:
                nonlocal done
                done += n
                shown.update(fields)
                timing = _timing(done - initial, _working_time() - start, total - done)
                display.update(task, completed=done, timing=timing, numbers=_numbers(shown))

        yield Bar()


def _working_time() -> float:
    """Seconds from some point in time, without those spent compiling."""
    return time.monotonic() - seconds_compiling()


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
