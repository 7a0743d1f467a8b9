"""Accuracy and losses over epochs, two panels for each run of a figure; hollow marks are epochs of published logs."""

import collections
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from advjax.papers.cells import epoch_of, epochs_of, specs_of
from advjax.papers.join import ACCURACY, Spec, select
from advjax.papers.panels import LEGEND, finish, hue
from advjax.papers.published import Published, read
from advjax.papers.running import Job
from advjax.reporting.plots.style import RC, WIDE, Svg, to_svg

TRAINING_LOSS = "binary_cross_entropy"
"""Metric of the loss on training images in the logs of 001: that of its networks and of ours, `bce_on_softmax`."""


class _Series(NamedTuple):
    """A curve in both panels of a run."""

    kind: str
    """Of the records."""
    accuracy: str
    """Its metric in the panel of accuracies."""
    loss: str
    """Its metric in the panel of losses."""
    dashes: Any
    label: str


_SERIES = (
    _Series("train", "accuracy", "loss", "solid", "training images"),
    _Series("validation", "accuracy", "cross_entropy", (0, (4, 2)), "clean test images"),
    _Series("validation", "attacked_accuracy", "attacked_cross_entropy", (0, (1, 1.5)), "attacked test images"),
)


class _Run(NamedTuple):
    """A run that was trained for the figure."""

    job: Job
    name: str
    published: list[tuple[int, Published]]
    """Epoch and number of the logs, as far as the run goes."""


def curves(jobs: Sequence[Job]) -> Svg | None:
    """The figure; None while none of its runs has been validated.

    Args:
      jobs: of an entry; the curves are those of the first seed.
    """
    found = list(_runs(jobs))
    if not found:
        return None
    parts_of = collections.Counter(run.name for run in found)
    shown: set[int] = set()
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDE, 2.3 * len(found) + 0.3), layout="constrained")
        for (accuracies, losses), run in zip(figure.subplots(len(found), 2, squeeze=False), found, strict=True):
            shown |= _draw(accuracies, losses, run)
            finish(accuracies, run.name if parts_of[run.name] == 1 else f"{run.job.part.name}: {run.name}")
            finish(losses, "", is_accuracy=False)
            losses.set_ylabel("training loss, cross-entropy")
            _scale_losses(losses)
            for axes in (accuracies, losses):
                axes.set_xlabel("epoch")
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        lines = {
            series.label: Line2D([], [], color=hue(number), linestyle=series.dashes)
            for number, series in enumerate(_SERIES)
            if number in shown
        }
        figure.legend(list(lines.values()), list(lines), loc="outside upper left", ncols=len(lines), **LEGEND)
        return to_svg(figure, "curves", "Accuracy and losses over epochs")


def _runs(jobs: Sequence[Job]) -> Iterator[_Run]:
    """The validated runs that there are published logs of; runs of the same name in several parts are several.

    There are none of what others start from in an entry, nor of the networks that its table repeats from another one.
    """
    for job in (job for job in jobs if job.config["seed"] == jobs[0].config["seed"]):
        logged = [(spec, epoch) for spec in specs_of(job.part) if (epoch := epoch_of(spec)) is not None]
        for run in dict.fromkeys(spec["run"] for spec, _ in logged):
            if epochs_of(job, run, "accuracy"):
                last = job.config["run"][run]["epochs"]
                epochs = {epoch: spec for spec, epoch in logged if spec["run"] == run and epoch <= last}
                yield _Run(job, run, [(epoch, row) for epoch, spec in epochs.items() for row in _logged(spec)])


def _logged(spec: Spec) -> list[Published]:
    """All numbers of the network and epoch that an entry of ``published`` is about."""
    wanted = select(spec)
    return [row for row in read(wanted.table) if (row.model, row.training) == (wanted.model, wanted.training)]


def _draw(accuracies: Axes, losses: Axes, run: _Run) -> set[int]:
    """Draws curves and marks of a run, and returns the numbers of the curves."""
    shown = set()
    for number, series in enumerate(_SERIES):
        for axes, metric, factor in ((accuracies, series.accuracy, 100), (losses, series.loss, 1)):
            if points := _points(run, metric, series.kind):
                style: dict[str, Any] = {"linestyle": series.dashes, "color": hue(number), "linewidth": 1.2}
                axes.plot([at for at, _ in points], [factor * value for _, value in points], **style)
                shown.add(number)
    for epoch, row in run.published:
        axes = accuracies if row.metric == ACCURACY else losses
        axes.plot(epoch, row.value, "o", markerfacecolor="none", color=hue(_series_of(row)), markersize=5)
    return shown


def _series_of(row: Published) -> int:
    """The number of the curve that a published number is about."""
    if row.metric == TRAINING_LOSS:
        return 0
    return 1 if row.attack == "none" else 2


def _points(run: _Run, metric: str, kind: str) -> list[tuple[float, float]]:
    """Epoch and value; on training images the means over epochs, which are what the logs hold."""
    found = epochs_of(run.job, run.name, metric, kind)
    return list(_means_of_epochs(found)) if kind == "train" else found


def _means_of_epochs(records: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The end and the mean of each epoch.

    Args:
      records: end in epochs and value of each, which is the mean since the record before.
    """
    starts = [0.0, *(at for at, _ in records)]
    lengths = [(at - start, at, value) for start, (at, value) in zip(starts, records, strict=False)]
    for _, group in itertools.groupby(lengths, lambda record: math.ceil(record[1])):
        found = list(group)
        total = sum(length for length, _, _ in found)
        yield found[-1][1], sum(length * value for length, _, value in found) / total


def _scale_losses(axes: Axes) -> None:
    """Losses differ by orders of magnitude: in the logs, from 0.0004 to 816."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 1000 * low else (1, 2, 5)))
    # Matplotlib's own labels are powers in TeX.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
