"""Plots of a report as SVG text: accuracy per attack, accuracy over epsilon, training curves."""

from advjax.reporting.plots.accuracy import accuracy_per_attack
from advjax.reporting.plots.curve import epsilon_curve
from advjax.reporting.plots.style import Svg
from advjax.reporting.plots.training import training_curves

__all__ = ["Svg", "accuracy_per_attack", "epsilon_curve", "training_curves"]
