"""The figures of the papers, drawn from our numbers in one style; hollow marks are the published values."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from advjax.papers.cells import Cell
from advjax.papers.curves import curves
from advjax.papers.image_rows import image_rows
from advjax.papers.join import Accuracy
from advjax.papers.panels import LEGEND, finish, hue, marker
from advjax.papers.recipe import FigurePlan
from advjax.papers.running import Job
from advjax.reporting.plots.style import COLORS, RC, WIDE, Svg, to_svg

_DASHED = (0, (4, 2))
_LONG = 10
"""Characters that are too many for a column."""


def draw(plan: FigurePlan, cells: Sequence[Cell], jobs: Sequence[Job]) -> Svg | None:
    """The figure of an entry; None while nothing of it has been measured.

    Args:
      plan: what it shows.
      cells: of the entry.
      jobs: of the entry; curves are those of the first seed, images those of the first job.
    """
    drawn: Mapping[str, Callable[[], Svg | None]] = {
        "points": lambda: _points(cells, plan),
        "sweep": lambda: _sweep(cells, plan.sweep),
        "curves": lambda: curves(jobs),
        "images": lambda: image_rows(jobs[0], plan.attacks, plan.networks),
    }
    return drawn[plan.kind]()


def _points(cells: Sequence[Cell], plan: FigurePlan) -> Svg | None:
    """A panel for each data set and training set; in it a column for each attack and a mark for each network."""
    panels = _grouped(cells, lambda cell: cell.published.dataset)
    if not any(cell.ours for cell in cells):
        return None
    marked = [cell for cell in cells if cell.model != plan.reference]
    numbers = {name: number for number, name in enumerate(_by_network(marked, plan))}
    with matplotlib.rc_context(RC):
        # The legend, which would cover marks inside of a panel, has half as many lines as there are networks.
        height = 2.9 * len(panels) + 0.08 * len(numbers) + 0.3
        figure = Figure(figsize=(WIDE, height), layout="constrained")
        for axes, (dataset, found) in zip(
            figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True
        ):
            _panel(axes, found, plan, numbers)
            finish(axes, dataset)
        handles = {
            name: Line2D([], [], linestyle="", marker=marker(number), color=hue(number))
            for name, number in numbers.items()
        }
        handles |= {
            name: Line2D([], [], linestyle=_DASHED, color=COLORS.ink)
            for name in _by_network((cell for cell in cells if cell.model == plan.reference), plan)
        }
        figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=2, **LEGEND)
        return to_svg(figure, "points", "Accuracy of each network under each attack")


def _panel(axes: Axes, cells: Sequence[Cell], plan: FigurePlan, numbers: Mapping[str, int]) -> None:
    """Marks side by side in each column, and the line of the reference across it."""
    columns = _columns(cells, plan.columns)
    networks = _by_network((cell for cell in cells if cell.model != plan.reference), plan)
    for place, (name, members) in enumerate(networks.items()):
        shift = 0.6 * ((place + 0.5) / len(networks) - 0.5)
        _marks(axes, members, lambda cell, by=shift: columns.index(cell.published.attack) + by, numbers[name])
    for cell in cells:
        if cell.model == plan.reference and cell.ours is not None:
            at = columns.index(cell.published.attack)
            axes.hlines(cell.ours.value, at - 0.4, at + 0.4, COLORS.ink, _DASHED, linewidth=1.2)
    axes.set_xticks(range(len(columns)), [_in_lines(name) for name in columns])
    axes.set_xlim(-0.5, len(columns) - 0.5)


def _by_network(cells: Iterable[Cell], plan: FigurePlan) -> dict[str, list[Cell]]:
    """The cells of each network, by the name that it has in the legend."""

    def name(cell: Cell) -> str:
        published = ", ".join(filter(None, (cell.published.model, cell.published.training)))
        return plan.networks.get(cell.model, published)

    return _grouped(cells, name)


def _columns(cells: Iterable[Cell], first: Sequence[str]) -> list[str]:
    """The published attacks of some cells, ``first`` those of the plan."""
    found = dict.fromkeys(cell.published.attack for cell in cells)
    return [*(name for name in first if name in found), *(name for name in found if name not in first)]


def _in_lines(attack: str) -> str:
    """The name of a published attack, "AutoPGD:8/255", as the label of a narrow column."""
    if attack == "none":
        return "clean"
    lines = re.split(r"[:,] ?", attack)
    return "\n".join(line.replace("_", "\n") if len(line) > _LONG else line for line in lines)


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
            axes.plot(*zip(*known, strict=True), color=hue(number), linewidth=1.2, label=label)
        axes.set_xlabel(prefix.split(":")[-1])
        finish(axes, "")
        axes.legend(ncols=2, **LEGEND)
        return to_svg(figure, "sweep", f"Accuracy over {prefix}")


def _marks(axes: Axes, cells: Sequence[Cell], place: Callable[[Cell], float], number: int) -> None:
    """Filled marks with their intervals for ours, hollow ones for the published values."""
    style: dict[str, Any] = {"marker": marker(number), "color": hue(number), "linestyle": ""}
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


def _grouped(cells: Iterable[Cell], key: Callable[[Cell], str]) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups
