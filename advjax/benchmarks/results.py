"""Measurements as table rows, JSON and sentences, among them where advjax loses."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table

SCHEMA_VERSION = 2
"""Version of the JSON file, incremented when a field changes its meaning or is removed."""
SUBJECT = "advjax"
ENSEMBLE, CHEAP = "autoattack", "quick-check"
WIDTH = 120


class Measurement(NamedTuple):
    """One contender doing one task."""

    task: str
    contender: str
    is_ours: bool
    """Whether it is a way of using advjax."""
    version: str
    examples: int
    seconds: list[float]
    """Wall-clock seconds of each timed call, for all examples, excluding compilation."""
    cpu_seconds: list[float]
    """CPU seconds of the same calls, including compilation."""
    compile_seconds: float
    """Compilation seconds of the first call."""
    later_compile_seconds: list[float]
    """Those of each timed call."""
    is_first_call: bool
    """Whether only the first call was made, so that ``seconds`` includes warm-up."""
    gflops: float | None
    """GFLOP/s at the median of ``seconds``, counting only the network's passes, with direct convolutions."""
    ceiling_share: float | None
    """``gflops`` relative to the matrix product; fast convolution algorithms may exceed 1."""
    remaining_accuracy: float | None
    """Fraction of the images that the network still classifies correctly, in float32; None for training."""
    median_l2: float | None
    """Median l2 distance of the images that were right to begin with; None for training."""
    loss: float | None
    """Loss of the first batch of the first call; None for attacks."""
    processes: dict[str, Any] | None
    """Of ``calls.in_processes``; None if that was not measured."""

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.median_seconds

    @property
    def memory_mib(self) -> float | None:
        """What the task adds to the peak memory of a process that does nothing else, compilation included."""
        return None if self.processes is None else self.processes["cold"]["peak"] - self.processes["cold"]["idle"]

    def to_json(self) -> dict[str, Any]:
        """The fields, and the throughput derived from them."""
        fastest = {"examples_per_second_best": self.examples / min(self.seconds)}
        return self._asdict() | {"examples_per_second": self.examples_per_second} | fastest

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Measurement":
        """The inverse of ``to_json``."""
        return cls(**{name: fields[name] for name in cls._fields})


def losses(rows: Sequence[Measurement]) -> list[str]:
    """One sentence for every task that another library does faster than advjax, or with less additional memory."""
    sentences = []
    for mine, other in _pairs(rows):
        faster = mine.median_seconds / other.median_seconds
        if faster > 1:
            sentences.append(
                f"{mine.task}: {other.contender} is {faster:.2f} times as fast as advjax "
                f"({other.examples_per_second:.4g} vs. {mine.examples_per_second:.4g} examples/s)."
            )
        used, others = mine.memory_mib, other.memory_mib
        if used is not None and others is not None and used > others:
            sentences.append(f"{mine.task}: {other.contender} needs {others:.0f} MiB, advjax {used:.0f} MiB.")
    return sentences


def outcome(rows: Sequence[Measurement]) -> list[str]:
    """``losses``; or that there are none, where there was anything to lose to."""
    pairs = _pairs(rows)
    compared = list(dict.fromkeys(mine.task for mine, _ in pairs))
    if not compared:
        return ["advjax was not measured beside another library, so nothing is compared."]
    lost = [f"advjax loses: {line}" for line in losses(rows)]
    weighed = any(mine.memory_mib is not None and other.memory_mib is not None for mine, other in pairs)
    memory = ", or used less memory" if weighed else ""
    return lost or [f"No other library was faster than advjax in {', '.join(compared)}{memory}."]


def _pairs(rows: Sequence[Measurement]) -> list[tuple[Measurement, Measurement]]:
    """Each task by advjax beside the same by each other library."""
    return [
        (mine, other)
        for mine in rows
        for other in rows
        if mine.contender == SUBJECT and other.task == mine.task and not other.is_ours
    ]


def comparisons(
    rows: Sequence[Measurement],
    broken: dict[tuple[str, str], np.ndarray],
    reference_seconds: float | None,
    threads: int,
) -> list[str]:
    """Sentences that compare the ensembles with a recorded time of another implementation and with each other.

    Args:
      rows: the measured rows.
      broken: (task, contender) -> bool [n], the images that are misclassified afterward.
      reference_seconds: single-threaded CPU seconds of another implementation on the same images; None if unknown.
      threads: number of threads used here.
    """
    found = {row.task: row for row in rows if row.contender == SUBJECT}
    sentences = []
    full, cheap = found.get(ENSEMBLE), found.get(CHEAP)
    if full is not None and reference_seconds is not None:
        cpu = statistics.median(full.cpu_seconds)
        sentences.append(
            f"{ENSEMBLE}: advjax took {full.median_seconds:.1f} s of wall-clock time on {threads} thread(s) without "
            f"compilation and {cpu:.1f} CPU seconds with it, {cpu / reference_seconds:.2f} times the recorded "
            f"{reference_seconds:.1f}. The reference was recorded separately, not interleaved with this run."
        )
    if full is not None and cheap is not None:
        mine, theirs = (broken[task, SUBJECT] for task in (CHEAP, ENSEMBLE))
        sentences.append(
            f"{CHEAP}: {full.median_seconds / cheap.median_seconds:.1f} times as fast as {ENSEMBLE}; "
            f"{int(np.sum(mine != theirs))} of {len(mine)} verdicts differ."
        )
    return sentences


def table(rows: Sequence[Measurement], title: str) -> Table:
    """Table of one task, ``WIDTH`` columns wide; ``+`` after the seconds marks a single call, warm-up included."""
    made = Table(title=title, box=box.SIMPLE, title_justify="left")
    made.add_column("contender")
    for heading in (
        "examples/s",
        "best",
        "seconds",
        "compile",
        "GFLOP/s",
        "of ceiling",
        "correct",
        "l2",
        "loss",
        "MiB",
    ):
        made.add_column(heading, justify="right")
    for row in rows:
        made.add_row(
            f"{row.contender} {row.version}",
            f"{row.examples_per_second:.4g}",
            f"{row.examples / min(row.seconds):.4g}",
            f"{row.median_seconds:.3f}{'+' if row.is_first_call else ''}",
            f"{row.compile_seconds:.1f}" if row.compile_seconds else "-",
            *(
                "-" if value is None else f"{value:{form}}"
                for value, form in (
                    (row.gflops, ".1f"),
                    (row.ceiling_share, ".0%"),
                    (row.remaining_accuracy, ".1%"),
                    (row.median_l2, ".3f"),
                    (row.loss, ".3f"),
                    (row.memory_mib, ".0f"),
                )
            ),
        )
    return made


def calls_table(rows: Sequence[Measurement]) -> Table | None:
    """Wall-clock seconds of first and second calls in processes of their own; None if none were measured."""
    measured = [row for row in rows if row.processes is not None]
    if not measured:
        return None
    made = Table(title="calls in processes of their own (compilation)", box=box.SIMPLE, title_justify="left")
    for heading in ("task", "contender"):
        made.add_column(heading)
    for heading in ("first, nothing compiled", "first, cache filled", "second"):
        made.add_column(heading, justify="right")
    for row in measured:
        assert row.processes is not None
        cold, warm = row.processes["cold"]["calls"], row.processes.get("warm", {}).get("calls")
        made.add_row(row.task, row.contender, _call(cold[0]), _call(warm[0]) if warm else "-", _call(cold[1]))
    return made


def _call(call: Mapping[str, float]) -> str:
    return f"{call['seconds']:.2f} ({call['compile_seconds']:.2f})"
