"""Plots of a report as SVG text.

The text is self-contained and depends on the data alone: no date, no random identifiers.  Colors are CSS variables
with a light default, so that a page may restyle a plot for dark mode; words stay words, in the font of the page.
"""

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from advjax.evaluation.report import ALL, CurvePoint, Report, Row
from advjax.reporting import summary
from advjax.reporting.terminal import Block, blocks, sources

Svg: TypeAlias = str


class _Colors(NamedTuple):
    ink: str = "#1d2129"
    muted: str = "#6b7280"
    grid: str = "#e3e5e9"
    transfer: str = "#3b74b9"
    robust: str = "#c8442d"
    third: str = "#3d8b5f"
    fourth: str = "#8a5bb0"
    fifth: str = "#a8700c"
    sixth: str = "#178b97"


_COLORS = _Colors()
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "advjax",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _COLORS.ink,
    "axes.labelcolor": _COLORS.muted,
    "axes.edgecolor": _COLORS.muted,
    "xtick.color": _COLORS.muted,
    "ytick.color": _COLORS.muted,
    # A dollar in somebody's attack name is a dollar.
    "text.parse_math": False,
}
_INCHES = 7.2
_LINE = 11
"""Height of a line of small text, in points."""
_HUES = tuple(getattr(_COLORS, name) for name in ("robust", "transfer", "third", "fourth", "fifth", "sixth"))
_KINDS = {"transfer": ("o", "transfer"), "oblivious": ("s", "oblivious"), "": ("^", "predicted labels")}
"""Marker and name of each kind of source."""
_MARKERS = "osD^vPX"
_DASHES = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def accuracy_per_attack(report: Report) -> Svg:
    """Accuracy of each run under each attack, with 95 % Wilson intervals.

    One panel per block of the table.  Hollow markers are results of attacks made elsewhere (all images), a filled
    diamond is a robust accuracy; the thin line between them is what the other models did not see.  The dashed line is
    clean accuracy.  What a minimum-norm attack finds is a distance, and stands beside its name.
    """
    arranged = [block for block in blocks(report) if block.lines]
    if not arranged:
        raise ValueError("the report holds no attack; there is nothing to plot")
    with matplotlib.rc_context(_STYLE):
        heights = [0.27 * (len(block.lines) + 0.2) for block in arranged]
        headings = [_heading_height(block) / 72 for block in arranged]
        figure = Figure(figsize=(_INCHES, sum(heights) + sum(headings) + 0.75), layout="constrained")
        panels = figure.subplots(len(arranged), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, block in zip(panels, arranged, strict=True):
            _draw_block(axes, block)
        panels[-1].set_xlabel("accuracy on all images, %")
        _draw_legend(figure, arranged)
        return _to_svg(figure, "accuracy", "Accuracy of each run under each attack")


def epsilon_curve(points: Sequence[CurvePoint]) -> Svg:
    """Accuracy over epsilon of each model, every attack made on the model itself, with 95 % Wilson intervals.

    A run has its color and marker; dashes tell its test-time defences apart.
    """
    if not points:
        raise ValueError("no points to draw a curve of")
    series: dict[tuple[str, str], list[CurvePoint]] = {}
    for point in points:
        series.setdefault((point["run"], point["defense"]), []).append(point)
    with matplotlib.rc_context(_STYLE):
        names = [summary.model_name(*model) for model in series]
        columns = _columns(names)
        figure = Figure(figsize=(_INCHES, 2.9 + 0.18 * math.ceil(len(names) / columns)), layout="constrained")
        axes = figure.subplots()
        for name, style, found in zip(names, _styles(list(series)), series.values(), strict=True):
            found = sorted(found, key=lambda point: point["epsilon"])
            x = [point["epsilon"] for point in found]
            accuracies, low, high = ([100 * point[key] for point in found] for key in ("accuracy", "low", "high"))
            # Bands on top of each other hide more than they say.
            opacity = 0.14 if len(series) <= 4 else 0.07
            axes.fill_between(x, low, high, color=style["color"], alpha=opacity, linewidth=0)
            axes.plot(x, accuracies, linewidth=1.6, markersize=3.5, label=name, **style)
        axes.set_ylim(-2, 102)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"epsilon, {points[0]['norm']}, pixels in [0, 1]")
        axes.set_title(f"robust accuracy under {points[0]['attack']}, %", loc="left", fontsize=9, fontweight="bold")
        axes.grid(color=_COLORS.grid, linewidth=0.6, zorder=-1)
        axes.tick_params(length=0)
        figure.legend(
            loc="outside upper left", ncols=columns, frameon=False, fontsize=8, handlelength=3.2, columnspacing=1.2
        )
        _open_frame(axes)
        return _to_svg(figure, "epsilon", "Accuracy of each model over epsilon")


def training_curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Svg:
    """Losses and accuracies over training steps, a row of two panels per run.

    Args:
      metrics: run -> rows such as ``{"step": 10, "kind": "train", "loss": 0.7, "accuracy": 0.8}``.  Every numeric key
        with "loss" or "accuracy" in its name becomes a curve of its kind; other keys have other units and are left out.
        A value that is not finite is a gap.
    """
    if not metrics:
        raise ValueError("no run to draw training curves of")
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_INCHES, 2.15 * len(metrics)), layout="constrained")
        panels = figure.subplots(len(metrics), 2, squeeze=False)
        for (losses, accuracies), (run, rows) in zip(panels, metrics.items(), strict=True):
            _draw_curves(losses, f"{run}: loss", _series(rows, "loss", 1.0))
            losses.set_ylim(bottom=min(0.0, losses.get_ylim()[0]))
            _draw_curves(accuracies, f"{run}: accuracy, %", _series(rows, "accuracy", 100.0))
            accuracies.set_ylim(-2, 102)
        for axes in panels[-1]:
            axes.set_xlabel("training step")
        return _to_svg(figure, "curves", "Training curves")


def _draw_block(axes: Axes, block: Block) -> None:
    for y, line in enumerate(block.lines):
        elsewhere = [(source.kind, cell.get(ALL)) for source, cell in zip(block.sources, line.transfer, strict=True)]
        shown = [row for row in (*(row for _, row in elsewhere), line.robust) if row]
        ends = [100 * row["accuracy"] for row in shown if row["accuracy"] is not None]
        if len(ends) > 1:
            axes.plot([min(ends), max(ends)], [y, y], color=_COLORS.grid, linewidth=1.2, zorder=1)
        for kind, row in elsewhere:
            _draw_point(axes, y, row, _COLORS.transfer, marker=_KINDS[kind][0], face="none")
        _draw_point(axes, y, line.robust, _COLORS.robust, marker="D", face=_COLORS.robust)
    clean = block.clean[ALL]["accuracy"] if ALL in block.clean else None
    if clean is not None:
        axes.axvline(100 * clean, color=_COLORS.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    _draw_heading(axes, block)
    found = [f", median {line.median}" if line.minimum else "" for line in block.lines]
    names = [f"{line.attack}, {line.threat}{median}" for line, median in zip(block.lines, found, strict=True)]
    axes.set_yticks(range(len(block.lines)), names)
    axes.set_ylim(len(block.lines) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", length=0, labelcolor=_COLORS.ink)
    axes.grid(axis="x", color=_COLORS.grid, linewidth=0.6, zorder=-1)
    _open_frame(axes, "left")


def _draw_heading(axes: Axes, block: Block) -> None:
    """The model, and below it, at its left edge as well, what the hollow markers are: either may be long."""
    name, column = _heading(block)
    height = _LINE * len(column)
    axes.set_title("\n".join(name), loc="left", fontsize=10, fontweight="bold", pad=5 + height)
    axes.annotate(
        "\n".join(column),
        (0, 1),
        xytext=(0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8,
        color=_COLORS.muted,
        va="bottom",
        ha="left",
        annotation_clip=False,
    )


def _heading(block: Block) -> tuple[list[str], list[str]]:
    """Lines of the name of a model, and of what its hollow markers are."""
    return textwrap.wrap(block.name, 54), [
        line for source in block.sources for line in textwrap.wrap(source.column, 78)
    ]


def _heading_height(block: Block) -> float:
    """In points, with the space around it."""
    name, column = _heading(block)
    return _LINE * (len(name) + len(column)) + 16


def _draw_point(axes: Axes, y: float, row: Row | None, color: str, marker: str, face: str) -> None:
    if row is None or row["accuracy"] is None:
        return
    axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=color, linewidth=2.2, alpha=0.45, zorder=2)
    axes.plot(
        100 * row["accuracy"],
        y,
        marker,
        color=color,
        markerfacecolor=face,
        markersize=5.2 if marker == "D" else 6,
        markeredgewidth=1.5,
        zorder=3,
        clip_on=False,
    )


def _draw_legend(figure: Figure, arranged: Sequence[Block]) -> None:
    axes = figure.axes[0]
    handles = []
    if any(line.robust for block in arranged for line in block.lines):
        handles += axes.plot([], [], "D", color=_COLORS.robust, markersize=5.2, label="adaptive: robust accuracy")
    kinds = {source.kind for source in sources(arranged)}
    face = {"markerfacecolor": "none", "markeredgewidth": 1.5}
    for kind, (marker, label) in _KINDS.items():
        if kind in kinds:
            handles += axes.plot([], [], marker, color=_COLORS.transfer, markersize=6, label=label, **face)
    handles += axes.plot([], [], color=_COLORS.muted, linewidth=1, linestyle=(0, (4, 3)), label="clean accuracy")
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, handletextpad=0.5)


def _styles(models: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """How to draw each (run, defence); no two alike up to 42 runs with four defences each."""
    runs = list(dict.fromkeys(run for run, _ in models))
    styles = []
    for i, (run, _) in enumerate(models):
        run_number, defense_number = runs.index(run), sum(run == other for other, _ in models[:i])
        styles.append(
            {
                "color": _HUES[run_number % len(_HUES)],
                "marker": _MARKERS[run_number % len(_MARKERS)],
                "linestyle": _DASHES[defense_number % len(_DASHES)],
            }
        )
    return styles


def _columns(names: Sequence[str]) -> int:
    """Columns of a legend over the width of a figure: as many as the longest name leaves room for."""
    return max(1, min(len(names), 120 // (max(map(len, names)) + 9)))


def _series(rows: Sequence[Mapping[str, Any]], word: str, scale: float) -> dict[str, tuple[list[int], list[float]]]:
    """Name such as "train" or "validation robust" -> (steps, values), for every numeric key that contains ``word``."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for key, value in row.items():
            if word not in key or isinstance(value, bool) or not isinstance(value, int | float | None):
                continue
            name = " ".join([row["kind"], *(part for part in key.split("_") if part != word)])
            steps, values = series.setdefault(name, ([], []))
            steps.append(row["step"])
            values.append(scale * value if value is not None and math.isfinite(value) else math.nan)
    return series


def _draw_curves(axes: Axes, title: str, series: Mapping[str, tuple[list[int], list[float]]]) -> None:
    # Not the colors of the accuracy plot: there they say what an attack knew.
    palette = (_COLORS.muted, _COLORS.third, _COLORS.fourth, _COLORS.ink)
    for i, (name, (steps, values)) in enumerate(series.items()):
        marker = "o" if len(steps) <= 25 else ""
        axes.plot(
            steps, values, color=palette[i % len(palette)], linewidth=1.4, marker=marker, markersize=3, label=name
        )
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
    axes.grid(color=_COLORS.grid, linewidth=0.6, zorder=-1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(length=0)
    if series:
        axes.legend(frameon=False, fontsize=8, labelcolor=_COLORS.ink, borderpad=0)
    else:
        axes.text(0.5, 0.5, "none recorded", ha="center", va="center", color=_COLORS.muted, transform=axes.transAxes)
    _open_frame(axes)


def _open_frame(axes: Axes, *more: str) -> None:
    axes.patch.set_visible(False)
    for side in ("top", "right", *more):
        axes.spines[side].set_visible(False)


def _to_svg(figure: Figure, name: str, description: str) -> Svg:
    """The figure as one ``<svg>`` element that may stand beside others in a page."""
    figure.patch.set_visible(False)
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # Declaration and document type are for files; inside a page they are errors, and the latter names an address.
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip().replace("*{stroke", "svg{stroke")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("'DejaVu Sans'", "system-ui, 'Helvetica Neue', Arial, sans-serif")
    for color, value in _COLORS._asdict().items():
        svg = svg.replace(value, f"var(--{color}, {value})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1) + "\n"
