"""Robust accuracy of each model as a function of epsilon."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advjax.evaluation.report import CurvePoint
from advjax.reporting.formatting import model_name
from advjax.reporting.plots.style import COLORS, RC, WIDE, Svg, hide_frame, to_svg

_HUES = tuple(getattr(COLORS, name) for name in ("robust", "transfer", "third", "fourth", "fifth", "sixth"))
_MARKERS = "osD^vPX"
_DASHES = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def epsilon_curve(points: Sequence[CurvePoint], width: float = WIDE) -> Svg:
    """Plots robust accuracy over epsilon for each model, with 95% Wilson intervals.

    Each run has its own color and marker; line styles distinguish its test-time defenses.

    Raises:
      ValueError: ``points`` is empty.
    """
    if not points:
        raise ValueError("points must contain at least one point of the curve, got none")
    series: dict[tuple[str, str], list[CurvePoint]] = {}
    for point in points:
        series.setdefault((point["run"], point["defense"]), []).append(point)
    with matplotlib.rc_context(RC):
        names = [model_name(*model) for model in series]
        columns = _legend_columns(names, width)
        figure = Figure(figsize=(width, 2.9 + 0.18 * math.ceil(len(names) / columns)), layout="constrained")
        axes = figure.subplots()
        # Overlapping bands would hide the lines.
        opacity = 0.14 if len(series) <= 4 else 0.07
        for name, style, found in zip(names, _styles(list(series)), series.values(), strict=True):
            _draw_series(axes, name, style, found, opacity)
        axes.set_ylim(-2, 102)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"epsilon ({points[0]['norm']}, pixels in [0, 1]); {points[0]['n']} images")
        axes.set_title(f"robust accuracy under {points[0]['attack']} (%)", loc="left", fontsize=9, fontweight="bold")
        axes.grid(color=COLORS.grid, linewidth=0.6, zorder=-1)
        axes.tick_params(length=0)
        figure.legend(
            loc="outside upper left", ncols=columns, frameon=False, fontsize=8, handlelength=3.2, columnspacing=1.2
        )
        hide_frame(axes)
        return to_svg(figure, "epsilon", "Robust accuracy of each model over epsilon")


def _draw_series(axes: Axes, name: str, style: dict[str, Any], points: Sequence[CurvePoint], opacity: float) -> None:
    points = sorted(points, key=lambda point: point["epsilon"])
    x = [point["epsilon"] for point in points]
    accuracies, low, high = ([100 * point[key] for point in points] for key in ("accuracy", "low", "high"))
    axes.fill_between(x, low, high, color=style["color"], alpha=opacity, linewidth=0)
    axes.plot(x, accuracies, linewidth=1.6, markersize=3.5, label=name, **style)


def _styles(models: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Line style of each (run, defense); distinct for up to 42 runs with four defenses each."""
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


def _legend_columns(names: Sequence[str], width: float) -> int:
    """As many columns as fit across the figure, given the longest name."""
    return max(1, min(len(names), int(120 * width / WIDE) // (max(map(len, names)) + 9)))
