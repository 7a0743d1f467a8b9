"""How reports write models, threat models, accuracies and distances."""

import math
import re

from markupsafe import Markup, escape

from advjax.evaluation.report import ALL, Row, SummaryCell

MISSING = "–"
"""Printed where there is no value."""


def model_name(run: str, defense: str) -> str:
    """The run, followed by its defense if it has one: ``fixer``, ``fixer with random_resize_pad``."""
    return run if defense == "none" else f"{run} with {defense}"


def breakable(name: str) -> Markup:
    """A name for HTML, with line-break opportunities after its punctuation, for narrow columns."""
    return Markup(re.sub(r"([_+]|[:,](?=\S))", r"\1<wbr>", str(escape(name))))


def threat_name(norm: str | None, epsilon: float | None) -> str:
    """Norm and epsilon: ``linf 8/255``, ``l2 0.5``, or ``l2 minimum`` for a minimum-norm attack."""
    if norm is None:
        return ""
    if epsilon is None:
        return f"{norm} minimum"
    levels = epsilon * 255
    is_decimal = math.isclose(epsilon, round(epsilon, 2), rel_tol=1e-6)
    if not is_decimal and math.isclose(levels, round(levels), rel_tol=1e-5):
        return f"{norm} {round(levels)}/255"
    return f"{norm} {epsilon:.6g}"


def subset_name(subset: str) -> str:
    """A word to follow the number of images in a subset: ``images``, ``base-correct``."""
    return "images" if subset == ALL else subset.replace("_", "-")


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with one decimal and no sign: ``97.5``."""
    return MISSING if fraction is None else f"{100 * fraction:.1f}"


def accuracy_text(cell: Row | SummaryCell | None) -> str:
    """Accuracy and its interval, in percent: ``97.5 [96.1, 98.4]``."""
    if cell is None or cell["accuracy"] is None:
        return MISSING
    return f"{percent(cell['accuracy'])} [{percent(cell['low'])}, {percent(cell['high'])}]"


def distance_text(row: Row | None) -> str:
    """Median distance to three significant digits.

    Empty without a minimum-norm attack; a dash if most images withstand it, so that the median is infinite.
    """
    if row is None:
        return ""
    median = row.get("median_distance")
    return MISSING if median is None else f"{median:.3g}"
