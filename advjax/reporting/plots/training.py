"""Training curves: losses and accuracies over training steps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from advjax.reporting.plots.style import COLORS, RC, WIDE, Svg, hide_frame, to_svg

# Not the colors of the accuracy plot, where they stand for what the attacker knows.
_LEGEND_POINTS = 13
"""Height of a line of a legend."""
_PALETTE = (COLORS.muted, COLORS.third, COLORS.fourth, COLORS.ink)


Metrics: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]
"""Run -> rows such as ``{"step": 10, "kind": "train", "loss": 0.7, "accuracy": 0.8}``."""


def training_curves(metrics: Metrics, width: float = WIDE) -> Svg:
    """Plots losses and accuracies over training steps, two panels per run, side by side where there is room.

    Args:
      metrics: of every run.  Every numeric key with "loss" or "accuracy" in its name becomes one curve per kind; other
        keys have other units and are not plotted.  Values that are not finite leave a gap.
      width: of the plot in inches.

    Raises:
      ValueError: ``metrics`` is empty.
    """
    if not metrics:
        raise ValueError("metrics must contain at least one run, got no run")
    with matplotlib.rc_context(RC):
        columns = 2 if width >= WIDE else 1
        rows_of_panels = len(metrics) * 2 // columns
        figure = Figure(figsize=(width, 2.4 * rows_of_panels), layout="constrained")
        panels = figure.subplots(rows_of_panels, columns, squeeze=False).reshape(-1, 2)
        for (losses, accuracies), (run, rows) in zip(panels, metrics.items(), strict=True):
            _draw_curves(losses, f"{run}: loss", _series(rows, "loss", 1.0))
            losses.set_ylim(bottom=min(0.0, losses.get_ylim()[0]))
            _draw_curves(accuracies, f"{run}: accuracy (%)", _series(rows, "accuracy", 100.0))
            accuracies.set_ylim(-2, 102)
        for axes in panels[-1][-columns:]:
            axes.set_xlabel("training step")
        return to_svg(figure, "curves", "Training curves")


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
    for i, (name, (steps, values)) in enumerate(series.items()):
        marker = "o" if len(steps) <= 25 else ""
        color = _PALETTE[i % len(_PALETTE)]
        axes.plot(steps, values, color=color, linewidth=1.4, marker=marker, markersize=3, label=name)
    axes.set_title(
        title, loc="left", fontsize=9, fontweight="bold", pad=6 + _LEGEND_POINTS * math.ceil(len(series) / 3)
    )
    axes.grid(color=COLORS.grid, linewidth=0.6, zorder=-1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(length=0)
    if series:
        # Above the panel, where it hides no curve.
        place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": 3, "columnspacing": 1.0}
        axes.legend(frameon=False, fontsize=8, labelcolor=COLORS.ink, borderpad=0.2, handlelength=1.4, **place)
    else:
        axes.text(0.5, 0.5, "none recorded", ha="center", va="center", color=COLORS.muted, transform=axes.transAxes)
    hide_frame(axes)
