"""Colors and fonts of all plots, and their conversion to SVG.

The SVG is self-contained and determined by the data: it holds no date and no random identifiers.  Colors are CSS
variables with a light default, so that a page can restyle plots for dark mode; text stays text, in the page's font.
"""

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

Svg: TypeAlias = str
"""One ``<svg>`` element, to be embedded in a page."""


class Colors(NamedTuple):
    """Light-mode values of the CSS variables."""

    ink: str = "#1d2129"
    muted: str = "#6b7280"
    grid: str = "#e3e5e9"
    transfer: str = "#3b74b9"
    robust: str = "#c8442d"
    third: str = "#3d8b5f"
    fourth: str = "#8a5bb0"
    fifth: str = "#a8700c"
    sixth: str = "#178b97"


COLORS = Colors()
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "advjax",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": COLORS.ink,
    "axes.labelcolor": COLORS.muted,
    "axes.edgecolor": COLORS.muted,
    "xtick.color": COLORS.muted,
    "ytick.color": COLORS.muted,
    # A dollar sign in the name of an attack is not TeX.
    "text.parse_math": False,
}
"""Matplotlib settings that figures are drawn with."""
WIDE, NARROW = 7.2, 3.7
"""Widths of plots in inches: for a page, and for a phone."""


class Plot(NamedTuple):
    """One plot for each width of screen, of which the page shows one."""

    wide: Svg
    narrow: Svg


def at_both_widths(draw: Callable[[float], Svg]) -> Plot:
    """Draws a plot, a function of its width, for wide and for narrow screens."""
    return Plot(draw(WIDE), draw(NARROW))


def hide_frame(axes: Axes, *more: str) -> None:
    """Hides the background, the top and right edges, and ``more`` edges."""
    axes.patch.set_visible(False)
    for side in ("top", "right", *more):
        axes.spines[side].set_visible(False)


def to_svg(figure: Figure, name: str, description: str) -> Svg:
    """Converts a figure to one ``<svg>`` element.

    Args:
      figure: what to convert.
      name: prefix of all element ids, together with the width, so that several plots can share a page.
      description: label for screen readers.
    """
    figure.patch.set_visible(False)
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # The XML declaration and doctype are invalid inside a page, and the doctype refers to an external address.
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip().replace("*{stroke", "svg{stroke")
    prefix = f"{name}-{'narrow' if figure.get_figwidth() < WIDE else 'wide'}"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = svg.replace("'DejaVu Sans'", "system-ui, 'Helvetica Neue', Arial, sans-serif")
    for color, value in COLORS._asdict().items():
        svg = svg.replace(value, f"var(--{color}, {value})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1) + "\n"
