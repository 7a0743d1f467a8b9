"""Accuracy of each model under each attack, with transfer results and robust accuracies in different markers."""

import textwrap
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advjax.evaluation.report import ALL, Report, Row
from advjax.reporting.layout import Block, Line, blocks, sources
from advjax.reporting.plots.style import COLORS, RC, WIDE, Svg, hide_frame, to_svg

_LINE_POINTS = 11
"""Height of a line of small text, in points."""
_KINDS = {"transfer": ("o", "transfer"), "oblivious": ("s", "oblivious"), "": ("^", "predicted labels")}
"""``AttackSource.kind`` -> marker and label."""
_CLEAN_DASHES = (0, (4, 3))


def accuracy_per_attack(report: Report, width: float = WIDE) -> Svg:
    """Plots the accuracy of each model under each attack, with 95% Wilson intervals.

    One panel per block of the layout.  Filled diamonds are robust accuracies, hollow markers the accuracies on all
    images under transfer and oblivious attacks; the thin line between them is how much the latter overstate
    robustness.  The dashed line is clean accuracy.  Minimum-norm attacks yield distances, printed beside their names.
    On a narrow plot, names stand above their lines, so that both ends of these fit.

    Raises:
      ValueError: the report contains no attack.
    """
    arranged = [block for block in blocks(report) if block.lines]
    if not arranged:
        raise ValueError("report must contain at least one attack to plot, got none")
    with matplotlib.rc_context(RC):
        is_narrow = width < WIDE
        heights = [(0.4 if is_narrow else 0.27) * (len(block.lines) + 0.2) for block in arranged]
        headings = [_heading_height(block, width) / 72 for block in arranged]
        legend = 0.75 if is_narrow else 0.0
        figure = Figure(figsize=(width, sum(heights) + sum(headings) + 0.75 + legend), layout="constrained")
        panels = figure.subplots(len(arranged), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, block in zip(panels, arranged, strict=True):
            _draw_block(axes, block, width)
        panels[-1].set_xlabel("accuracy on all images (%)")
        _draw_legend(figure, arranged, columns=1 if is_narrow else 4)
        return to_svg(figure, "accuracy", "Accuracy of each model under each attack")


def _draw_block(axes: Axes, block: Block, width: float) -> None:
    for y, line in enumerate(block.lines):
        _draw_line(axes, y, block, line)
    clean = block.clean[ALL]["accuracy"] if ALL in block.clean else None
    if clean is not None:
        axes.axvline(100 * clean, color=COLORS.muted, linewidth=1, linestyle=_CLEAN_DASHES, zorder=0)
    _draw_heading(axes, block, width)
    found = [f", median {line.median}" if line.minimum else "" for line in block.lines]
    names = [f"{line.attack}, {line.threat}{median}" for line, median in zip(block.lines, found, strict=True)]
    if width < WIDE:
        axes.set_yticks([])
        for y, name in enumerate(names):
            axes.text(0, y - 0.25, name, fontsize=8, va="bottom")
    else:
        axes.set_yticks(range(len(block.lines)), names)
    axes.set_ylim(len(block.lines) - 0.5, -0.7 if width < WIDE else -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", length=0, labelcolor=COLORS.ink)
    axes.grid(axis="x", color=COLORS.grid, linewidth=0.6, zorder=-1)
    hide_frame(axes, "left")


def _draw_line(axes: Axes, y: int, block: Block, line: Line) -> None:
    elsewhere = [(source.kind, cell.get(ALL)) for source, cell in zip(block.sources, line.transfer, strict=True)]
    shown = [row for row in (*(row for _, row in elsewhere), line.robust) if row]
    ends = [100 * row["accuracy"] for row in shown if row["accuracy"] is not None]
    if len(ends) > 1:
        axes.plot([min(ends), max(ends)], [y, y], color=COLORS.grid, linewidth=1.2, zorder=1)
    for kind, row in elsewhere:
        _draw_point(axes, y, row, COLORS.transfer, marker=_KINDS[kind][0], face="none")
    _draw_point(axes, y, line.robust, COLORS.robust, marker="D", face=COLORS.robust)


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


def _draw_heading(axes: Axes, block: Block, width: float) -> None:
    """The model's name and, on lines of their own because either may be long, what the hollow markers are."""
    name, column = _heading(block, width)
    height = _LINE_POINTS * len(column)
    axes.set_title("\n".join(name), loc="left", fontsize=10, fontweight="bold", pad=5 + height)
    axes.annotate(
        "\n".join(column),
        (0, 1),
        xytext=(0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8,
        color=COLORS.muted,
        va="bottom",
        ha="left",
        annotation_clip=False,
    )


def _heading(block: Block, width: float) -> tuple[list[str], list[str]]:
    """Wrapped lines of the model's name and of the headings of its sources."""
    share = width / WIDE
    return textwrap.wrap(block.name, int(54 * share)), [
        line for source in block.sources for line in textwrap.wrap(source.heading, int(78 * share))
    ]


def _heading_height(block: Block, width: float) -> float:
    """Height of the heading and the space around it, in points."""
    name, column = _heading(block, width)
    return _LINE_POINTS * (len(name) + len(column)) + 16


def _draw_legend(figure: Figure, arranged: Sequence[Block], columns: int) -> None:
    axes = figure.axes[0]
    handles = []
    if any(line.robust for block in arranged for line in block.lines):
        handles += axes.plot([], [], "D", color=COLORS.robust, markersize=5.2, label="adaptive: robust accuracy")
    kinds = {source.kind for source in sources(arranged)}
    face = {"markerfacecolor": "none", "markeredgewidth": 1.5}
    for kind, (marker, label) in _KINDS.items():
        if kind in kinds:
            handles += axes.plot([], [], marker, color=COLORS.transfer, markersize=6, label=label, **face)
    handles += axes.plot([], [], color=COLORS.muted, linewidth=1, linestyle=_CLEAN_DASHES, label="clean accuracy")
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, handletextpad=0.5)
