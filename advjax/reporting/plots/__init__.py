"""Plots of a report as SVG text: accuracy per attack, accuracy over epsilon, training curves."""

from advjax.reporting.plots.accuracy import accuracy_per_attack
from advjax.reporting.plots.curve import epsilon_curve
from advjax.reporting.plots.style import Plot, Svg, at_both_widths
from advjax.reporting.plots.training import training_curves

__all__ = ["Plot", "Svg", "accuracy_per_attack", "at_both_widths", "epsilon_curve", "training_curves"]
