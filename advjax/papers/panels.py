"""The style of a panel in the figures of the papers."""

from typing import Any

from matplotlib.axes import Axes

from advjax.reporting.plots.style import COLORS, hide_frame

LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 7, "labelcolor": COLORS.ink, "borderpad": 0}
"""Of all legends."""
_HUES = (COLORS.ink, COLORS.robust, COLORS.transfer, COLORS.third, COLORS.fourth, COLORS.fifth, COLORS.sixth)
_MARKERS = "osD^vPX"


def hue(number: int) -> str:
    """The color of a network or curve, by its number in the legend."""
    return _HUES[number % len(_HUES)]


def marker(number: int) -> str:
    """Its mark: another one for the same hue, when all hues have been used."""
    return _MARKERS[(number + number // len(_HUES)) % len(_MARKERS)]


def finish(axes: Axes, heading: str, is_accuracy: bool = True) -> None:
    """Heading, grid, and the scale of accuracies."""
    if is_accuracy:
        axes.set_ylim(-3, 103)
        axes.set_ylabel("accuracy (%)")
    axes.grid(axis="y", color=COLORS.grid, linewidth=0.6, zorder=-1)
    axes.tick_params(length=0)
    if heading:
        axes.set_title(heading, loc="left", fontsize=9, fontweight="bold")
    hide_frame(axes)
