"""What was measured: rows for the table and the json file, and sentences that say where advjax loses."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table

SCHEMA_VERSION = 1
"""Raised whenever a field of the json file changes its meaning or goes away."""
SUBJECT = "advjax"
ENSEMBLE, CHEAP = "autoattack", "quick-check"
WIDTH = 120


class Row(NamedTuple):
    """One contender at one attack."""

    attack: str
    contender: str
    version: str
    examples: int
    seconds: list[float]
    """Wall seconds of each timed call, for all examples, without compiling."""
    cpu_seconds: list[float]
    """Processor seconds of the same calls, compiling included."""
    compile_seconds: float
    """Of the first call; an ensemble compiles in every call."""
    is_first_call: bool
    """There was no time for more than the first call, warming up included."""
    gflops: float | None
    """By the median of ``seconds``: operations of the network's passes, by direct convolution, and of nothing else."""
    ceiling_share: float | None
    """``gflops`` over those of the matrix product; a fast convolution algorithm may exceed 1."""
    remaining_accuracy: float
    """Share of the images that the network still classifies correctly, in float32."""
    median_l2: float
    """Median l2 distance of the returned images."""
    peak_memory_mib: float | None
    """Most memory while the attack ran alone in a process of its own."""
    idle_memory_mib: float | None
    """Most memory of that process before the attack was called: libraries, network and images."""

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.median_seconds

    def to_json(self) -> dict[str, Any]:
        fastest = {"examples_per_second_best": self.examples / min(self.seconds)}
        return self._asdict() | {"examples_per_second": self.examples_per_second} | fastest


def losses(rows: Sequence[Row]) -> list[str]:
    """A sentence for every contender that is faster than advjax at an attack, or that needs less memory on top."""
    sentences = []
    for mine in (row for row in rows if row.contender == SUBJECT):
        for other in rows:
            if other.attack != mine.attack or other.contender.startswith(SUBJECT):
                continue
            faster = mine.median_seconds / other.median_seconds
            if faster > 1:
                sentences.append(
                    f"{mine.attack}: {other.contender} is {faster:.2f} times as fast as advjax "
                    f"({other.examples_per_second:.4g} against {mine.examples_per_second:.4g} examples/s)."
                )
            used, others = _used(mine), _used(other)
            if used is not None and others is not None and used > others:
                sentences.append(f"{mine.attack}: {other.contender} needs {others:.0f} MiB, advjax {used:.0f} MiB.")
    return sentences


def _used(row: Row) -> float | None:
    if row.peak_memory_mib is None or row.idle_memory_mib is None:
        return None
    return row.peak_memory_mib - row.idle_memory_mib


def comparisons(
    rows: Sequence[Row], broken: dict[tuple[str, str], np.ndarray], reference_seconds: float | None, threads: int
) -> list[str]:
    """Sentences about the ensembles: against the recorded seconds of another implementation, and against each other.

    Args:
      rows: the measured rows.
      broken: (attack, contender) -> bool [n], the images that are classified wrongly after the attack.
      reference_seconds: processor seconds of one thread that the same images took another implementation.
      threads: number of threads of this run.
    """
    found = {row.attack: row for row in rows if row.contender == SUBJECT}
    sentences = []
    full, cheap = found.get(ENSEMBLE), found.get(CHEAP)
    if full is not None and reference_seconds is not None:
        cpu = statistics.median(full.cpu_seconds)
        sentences.append(
            f"{ENSEMBLE}: advjax took {full.median_seconds:.1f} s of wall time on {threads} thread(s) without "
            f"compiling and {cpu:.1f} processor seconds with it, {cpu / reference_seconds:.2f} times the recorded "
            f"{reference_seconds:.1f}. These were recorded at another time and are not interleaved."
        )
    if full is not None and cheap is not None:
        mine, theirs = (broken[attack, SUBJECT] for attack in (CHEAP, ENSEMBLE))
        sentences.append(
            f"{CHEAP}: {full.median_seconds / cheap.median_seconds:.1f} times as fast as {ENSEMBLE}; "
            f"{int(np.sum(mine != theirs))} of {len(mine)} verdicts differ."
        )
    return sentences


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows of one attack, ``WIDTH`` columns wide; ``+`` after the seconds: there was time for one call only."""
    made = Table(title=title, box=box.SIMPLE, title_justify="left")
    made.add_column("contender")
    for heading in ("examples/s", "best", "seconds", "compile", "GFLOP/s", "of ceiling", "correct", "l2", "MiB"):
        made.add_column(heading, justify="right")
    for row in rows:
        used = _used(row)
        made.add_row(
            f"{row.contender} {row.version}",
            f"{row.examples_per_second:.4g}",
            f"{row.examples / min(row.seconds):.4g}",
            f"{row.median_seconds:.3f}{'+' if row.is_first_call else ''}",
            f"{row.compile_seconds:.1f}" if row.compile_seconds else "-",
            "-" if row.gflops is None else f"{row.gflops:.1f}",
            "-" if row.ceiling_share is None else f"{row.ceiling_share:.0%}",
            f"{row.remaining_accuracy:.1%}",
            f"{row.median_l2:.3f}",
            "-" if used is None else f"{used:.0f}",
        )
    return made
