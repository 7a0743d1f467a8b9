"""Measurements as table rows, JSON and sentences, among them where advjax loses."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table

SCHEMA_VERSION = 1
"""Version of the JSON file, incremented when a field changes its meaning or is removed."""
SUBJECT = "advjax"
ENSEMBLE, CHEAP = "autoattack", "quick-check"
WIDTH = 120


class Measurement(NamedTuple):
    """One contender running one attack."""

    attack: str
    contender: str
    version: str
    examples: int
    seconds: list[float]
    """Wall-clock seconds of each timed call, for all examples, excluding compilation."""
    cpu_seconds: list[float]
    """CPU seconds of the same calls, including compilation."""
    compile_seconds: float
    """Compilation seconds of the first call; ensembles compile in every call."""
    is_first_call: bool
    """Whether the budget allowed only the first call, so that ``seconds`` includes warm-up."""
    gflops: float | None
    """GFLOP/s at the median of ``seconds``, counting only the network's passes, with direct convolutions."""
    ceiling_share: float | None
    """``gflops`` relative to the matrix product; fast convolution algorithms may exceed 1."""
    remaining_accuracy: float
    """Fraction of the images that the network still classifies correctly, in float32."""
    median_l2: float
    """Median l2 distance of the returned images from the originals."""
    peak_memory_mib: float | None
    """Peak memory of a separate process that runs only this attack."""
    idle_memory_mib: float | None
    """Peak memory of that process before the attack: libraries, network and images."""

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.median_seconds

    def to_json(self) -> dict[str, Any]:
        """The fields, and the throughput derived from them."""
        fastest = {"examples_per_second_best": self.examples / min(self.seconds)}
        return self._asdict() | {"examples_per_second": self.examples_per_second} | fastest


def losses(rows: Sequence[Measurement]) -> list[str]:
    """One sentence for every attack that a contender runs faster than advjax, or with less additional memory."""
    sentences = []
    for mine in (row for row in rows if row.contender == SUBJECT):
        for other in rows:
            if other.attack != mine.attack or other.contender.startswith(SUBJECT):
                continue
            faster = mine.median_seconds / other.median_seconds
            if faster > 1:
                sentences.append(
                    f"{mine.attack}: {other.contender} is {faster:.2f} times as fast as advjax "
                    f"({other.examples_per_second:.4g} vs. {mine.examples_per_second:.4g} examples/s)."
                )
            used, others = _used(mine), _used(other)
            if used is not None and others is not None and used > others:
                sentences.append(f"{mine.attack}: {other.contender} needs {others:.0f} MiB, advjax {used:.0f} MiB.")
    return sentences


def _used(row: Measurement) -> float | None:
    if row.peak_memory_mib is None or row.idle_memory_mib is None:
        return None
    return row.peak_memory_mib - row.idle_memory_mib


def comparisons(
    rows: Sequence[Measurement],
    broken: dict[tuple[str, str], np.ndarray],
    reference_seconds: float | None,
    threads: int,
) -> list[str]:
    """Sentences that compare the ensembles with a recorded time of another implementation and with each other.

    Args:
      rows: the measured rows.
      broken: (attack, contender) -> bool [n], the images that are misclassified after the attack.
      reference_seconds: single-threaded CPU seconds of another implementation on the same images; None if unknown.
      threads: number of threads used here.
    """
    found = {row.attack: row for row in rows if row.contender == SUBJECT}
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
        mine, theirs = (broken[attack, SUBJECT] for attack in (CHEAP, ENSEMBLE))
        sentences.append(
            f"{CHEAP}: {full.median_seconds / cheap.median_seconds:.1f} times as fast as {ENSEMBLE}; "
            f"{int(np.sum(mine != theirs))} of {len(mine)} verdicts differ."
        )
    return sentences


def table(rows: Sequence[Measurement], title: str) -> Table:
    """Table of one attack, ``WIDTH`` columns wide; ``+`` after the seconds marks a single call, warm-up included."""
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
