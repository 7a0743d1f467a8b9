"""The figures of the papers, drawn from our numbers in one style; hollow marks are the published values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from advjax.papers.cells import Cell, epochs_of
from advjax.papers.image_rows import image_rows
from advjax.papers.join import Accuracy
from advjax.papers.recipe import FigurePlan
from advjax.papers.running import Job
from advjax.reporting.plots.style import COLORS, RC, WIDE, Svg, hide_frame, to_svg

_HUES = (COLORS.ink, COLORS.robust, COLORS.transfer, COLORS.third, COLORS.fourth, COLORS.fifth, COLORS.sixth)
_MARKERS = "osD^vPX"
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 7, "labelcolor": COLORS.ink, "borderpad": 0}
_CURVES = (
    ("train", "", "solid", "training images"),
    ("validation", "", (0, (4, 2)), "clean test images"),
    ("validation", "attacked_", (0, (1, 1.5)), "attacked test images"),
)
"""Kind of record, prefix of its metrics, dashes and label of the curves of one run."""


def draw(plan: FigurePlan, cells: Sequence[Cell], jobs: Sequence[Job]) -> Svg | None:
    """The figure of an entry; None while nothing of it has been measured.

    Args:
      plan: what it shows.
      cells: of the entry.
      jobs: of the entry; curves are those of the first seed, images those of the first job.
    """
    drawn: Mapping[str, Callable[[], Svg | None]] = {
        "points": lambda: _points(cells),
        "sweep": lambda: _sweep(cells, plan.sweep),
        "curves": lambda: _curves(cells, jobs),
        "images": lambda: image_rows(jobs[0], plan.attacks, plan.networks),
    }
    return drawn[plan.kind]()


def _points(cells: Sequence[Cell]) -> Svg | None:
    """A panel for each data set and training set; in it a column for each attack and a mark for each network."""
    panels = _grouped(cells, lambda cell: cell.published.dataset)
    if not any(cell.ours for cell in cells):
        return None
    numbers = {network: number for number, network in enumerate(_grouped(cells, _network))}
    with matplotlib.rc_context(RC):
        # The legend, which would cover marks inside of a panel, has half as many lines as there are networks.
        height = 2.9 * len(panels) + 0.08 * len(numbers) + 0.3
        figure = Figure(figsize=(WIDE, height), layout="constrained")
        for axes, (dataset, found) in zip(
            figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True
        ):
            attacks = list(dict.fromkeys(cell.published.attack for cell in found))
            networks = _grouped(found, _network)
            for place, (network, members) in enumerate(networks.items()):
                shift = 0.6 * ((place + 0.5) / len(networks) - 0.5)
                number = numbers[network]
                _marks(axes, members, lambda cell, at=attacks, by=shift: at.index(cell.published.attack) + by, number)
            axes.set_xticks(range(len(attacks)), [_in_lines(name) for name in attacks])
            axes.set_xlim(-0.5, len(attacks) - 0.5)
            _finish(axes, dataset)
        marks = [
            Line2D([], [], linestyle="", marker=_marker(number), color=_hue(number)) for number in numbers.values()
        ]
        figure.legend(marks, list(numbers), loc="outside upper left", ncols=2, **_LEGEND)
        return to_svg(figure, "points", "Accuracy of each network under each attack")


def _in_lines(attack: str) -> str:
    """The name of a published attack, "AutoPGD:8/255", as the label of a narrow column."""
    return "clean" if attack == "none" else attack.replace(":", "\n").replace(",", "\n")


def _sweep(cells: Sequence[Cell], prefix: str) -> Svg | None:
    """Accuracy over a number that the name of the training ends with, a line for each attack."""
    swept = [cell for cell in cells if cell.published.training.startswith(prefix)]
    if not any(cell.ours for cell in swept):
        return None

    def place(cell: Cell) -> float:
        return float(cell.published.training.removeprefix(prefix))

    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDE, 3.4), layout="constrained")
        axes = figure.subplots()
        for number, (attack, found) in enumerate(_grouped(swept, lambda cell: cell.published.attack).items()):
            found = sorted(found, key=place)
            _marks(axes, found, place, number)
            known = [(place(cell), cell.ours.value) for cell in found if cell.ours]
            label = "clean" if attack == "none" else attack
            axes.plot(*zip(*known, strict=True), color=_hue(number), linewidth=1.2, label=label)
        axes.set_xlabel(prefix.split(":")[-1])
        _finish(axes, "")
        return to_svg(figure, "sweep", f"Accuracy over {prefix}")


def _curves(cells: Sequence[Cell], jobs: Sequence[Job]) -> Svg | None:
    """Accuracy and cross-entropy over epochs, two panels for each run, all from that one run."""
    found = _runs_with_curves(jobs)
    if not found:
        return None
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDE, 2.3 * len(found)), layout="constrained")
        for (accuracies, losses), (run, job) in zip(
            figure.subplots(len(found), 2, squeeze=False), found.items(), strict=True
        ):
            for number, (kind, prefix, dashes, label) in enumerate(_CURVES):
                style = {"linestyle": dashes, "color": _hue(number), "linewidth": 1.2, "label": label}
                loss = "loss" if kind == "train" else f"{prefix}cross_entropy"
                for axes, metric, factor in ((accuracies, f"{prefix}accuracy", 100), (losses, loss, 1)):
                    if points := epochs_of(job, run, metric, kind):
                        axes.plot([at for at, _ in points], [factor * value for _, value in points], **style)
            for cell in cells:
                if cell.model == run and cell.theirs and (epoch := _epoch_of(cell)) is not None:
                    color = _hue(1 if cell.published.attack == "none" else 2)
                    accuracies.plot(epoch, cell.theirs.value, "o", markerfacecolor="none", color=color, markersize=5)
            _finish(accuracies, run)
            _finish(losses, f"{run}: training loss, cross-entropy", is_accuracy=False)
            for axes in (accuracies, losses):
                axes.set_xlabel("epoch")
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return to_svg(figure, "curves", "Accuracy and cross-entropy over epochs")


def _runs_with_curves(jobs: Sequence[Job]) -> dict[str, Job]:
    """The runs of the first seed that were validated, each with the job that knows it."""
    first = [job for job in jobs if job.config["seed"] == jobs[0].config["seed"]]
    return {run: job for job in reversed(first) for run in job.config["runs"] if epochs_of(job, run, "accuracy")}


def _epoch_of(cell: Cell) -> int | None:
    last = cell.published.training.rpartition(":")[2]
    return int(last[:-2]) if last.endswith("ep") and last[:-2].isdigit() else None


def _marks(axes: Axes, cells: Sequence[Cell], place: Callable[[Cell], float], number: int) -> None:
    """Filled marks with their intervals for ours, hollow ones for the published values."""
    style: dict[str, Any] = {"marker": _marker(number), "color": _hue(number), "linestyle": ""}
    for cell in cells:
        at = place(cell)
        if cell.theirs is not None:
            axes.plot(at, cell.theirs.value, **style, markersize=7, markerfacecolor="none")
        if cell.ours is not None:
            axes.errorbar(at, cell.ours.value, yerr=_bars(cell.ours), **style, markersize=4, elinewidth=1)


def _bars(accuracy: Accuracy) -> list[list[float]] | None:
    if accuracy.interval is None:
        return None
    low, high = accuracy.interval
    return [[max(0.0, accuracy.value - low)], [max(0.0, high - accuracy.value)]]


def _finish(axes: Axes, heading: str, is_accuracy: bool = True) -> None:
    if is_accuracy:
        axes.set_ylim(-2, 102)
        axes.set_ylabel("accuracy (%)")
    axes.grid(axis="y", color=COLORS.grid, linewidth=0.6, zorder=-1)
    axes.tick_params(length=0)
    if heading:
        axes.set_title(heading, loc="left", fontsize=9, fontweight="bold")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(ncols=2, **_LEGEND)
    hide_frame(axes)


def _network(cell: Cell) -> str:
    return f"{cell.published.model}, {cell.published.training}"


def _marker(number: int) -> str:
    """Another one for the same hue, when all hues have been used."""
    return _MARKERS[(number + number // len(_HUES)) % len(_MARKERS)]


def _hue(number: int) -> str:
    return _HUES[number % len(_HUES)]


def _grouped(cells: Sequence[Cell], key: Callable[[Cell], str]) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups
