"""Compares evaluations side by side, and tests whether two models differ on the same images by more than chance."""

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from advjax.evaluation.outcomes import CLEAN, read_outcomes
from advjax.evaluation.report import SummaryCell, read_report, rows
from advjax.evaluation.statistics import mcnemar
from advjax.evaluation.summaries import cell, robust_correct
from advjax.reporting.formatting import accuracy_text, model_name, threat_name
from advjax.reporting.plain_table import plain_table
from advjax.reporting.seeds import SEEDS_EXPLANATION, Evaluation, over_seeds, seed_table
from advjax.reporting.terminal import print_wide
from advjax.types import UserError

EXPLANATION = (
    "First only, second only: number of images that only that model classifies correctly. p: exact McNemar test on "
    "these images, without correction for multiple comparisons. It captures variability across test images, not across "
    "training seeds."
)

_IMAGES = ("name", "test_split", "image_size", "fingerprint")
"""Keys of ``data`` that say what the images are positions of; only `advjax.evaluate` stores a fingerprint."""
_AT_A_PATH = ("folder", "npz")
"""Names of data that are those of a path."""


class ModelCorrectness(NamedTuple):
    """The images that one model classifies correctly, clean or under one threat model."""

    model: str
    threat: str
    """Such as "linf 8/255", or "clean"."""
    correct: np.ndarray
    """bool [n]"""
    conditions: Mapping[str, Any]
    """Readable name -> what has to be equal for two models to be comparable."""

    @property
    def accuracy(self) -> SummaryCell:
        """The accuracy with its interval."""
        return cell(self.correct)


class ModelPair(NamedTuple):
    """Two models on the same images."""

    threat: str
    first: str
    second: str
    only_first: int
    """Number of images that only the first model classifies correctly."""
    only_second: int
    p_value: float | None
    """Of the exact McNemar test; None if the models are not comparable."""
    obstacle: str
    """Why they are not comparable, or ""."""


def read_evaluation(folder: str | os.PathLike[str]) -> Evaluation:
    """Reads the report in ``folder`` and the outcomes it summarizes.

    Raises:
      UserError: a file is missing or damaged, or the two files are from different evaluations.
    """
    folder = pathlib.Path(folder)
    report = read_report(folder / "report.json")
    try:
        outcomes = read_outcomes(folder / "outcomes.npz")
    except FileNotFoundError:
        raise UserError(f"{folder} has report.json but no outcomes.npz: evaluate again") from None
    try:
        agree = rows(outcomes) == [row for row in report.rows if row["subset"] == "all"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"report.json or outcomes.npz in {folder} is damaged ({error}): evaluate again") from error
    if not agree:
        raise UserError(f"report.json and outcomes.npz in {folder} are from different evaluations: evaluate again")
    return Evaluation(report, outcomes)


def correctness(evaluations: Mapping[str, Evaluation]) -> list[ModelCorrectness]:
    """Every model of every evaluation, clean and under the worst case of all attacks crafted on it.

    Args:
      evaluations: keyed by a prefix for the names of the models, such as the folder; "" for no prefix.
    """
    return [entry for name, evaluation in evaluations.items() for entry in _correctness(name, evaluation)]


def pairs(entries: Sequence[ModelCorrectness]) -> list[ModelPair]:
    """Every two different models that were evaluated under the same threat model."""
    return [
        _pair(first, second)
        for first, second in itertools.combinations(entries, 2)
        if first.threat == second.threat and first.model != second.model
    ]


def print_comparison(evaluations: Mapping[str, Evaluation], console: Console) -> None:
    """Prints the accuracies of all models, then the test for each pair of them."""
    entries = correctness(evaluations)
    tables = [_accuracy_table(entries), Text(), _pair_table(pairs(entries)), Text(EXPLANATION, style="dim")]
    if spreads := over_seeds(evaluations):
        tables += [Text(), seed_table(spreads), Text(SEEDS_EXPLANATION, style="dim")]
    print_wide(Group(*tables), console)


def _correctness(name: str, evaluation: Evaluation) -> list[ModelCorrectness]:
    config, found = evaluation.report.config, []
    attacks = config["evaluation"]["attacks"]
    keys = (*_IMAGES, *(("dir",) if config["data"]["name"] in _AT_A_PATH else ()))
    data = {key: config["data"].get(key) for key in keys}
    models = dict.fromkeys((entry.run, entry.defense) for entry in evaluation.outcomes)
    for run, defense in models:
        label = f"{name}: {model_name(run, defense)}" if name else model_name(run, defense)
        own = [entry for entry in evaluation.outcomes if (entry.run, entry.defense) == (run, defense)]
        (clean,) = (entry for entry in own if entry.attack == CLEAN)
        same = {"data": data, "images": clean.index.tolist(), "labels": clean.labels.tolist()}
        found.append(ModelCorrectness(label, CLEAN, clean.predictions == clean.labels, same))
        for (norm, epsilon), (names, correct) in robust_correct(own).items():
            settings = {attack: _settings(attacks.get(attack)) for attack in names}
            conditions = {**same, "attacks": settings}
            found.append(ModelCorrectness(label, threat_name(norm, epsilon), correct, conditions))
    return found


def _settings(attack: Mapping[str, Any] | None) -> Any:
    return None if attack is None else {key: str(value) for key, value in sorted(attack.items())}


def _pair(first: ModelCorrectness, second: ModelCorrectness) -> ModelPair:
    names = (first.threat, first.model, second.model)
    for name, value in first.conditions.items():
        if value != second.conditions[name]:
            return ModelPair(*names, 0, 0, None, f"different {name}")
    one, other = first.correct, second.correct
    return ModelPair(*names, int(np.sum(one & ~other)), int(np.sum(other & ~one)), mcnemar(one, other), "")


def _accuracy_table(entries: Sequence[ModelCorrectness]) -> Table:
    threats = list(dict.fromkeys(entry.threat for entry in entries))
    table = plain_table("model")
    for threat in threats:
        head = "clean accuracy (%)" if threat == CLEAN else f"robust accuracy (%)\n{threat}"
        table.add_column(Text(head), justify="right", overflow="fold")
    for model in dict.fromkeys(entry.model for entry in entries):
        found = {entry.threat: entry.accuracy for entry in entries if entry.model == model}
        table.add_row(Text(model), *(Text(accuracy_text(found.get(threat))) for threat in threats))
    return table


def _pair_table(found: Sequence[ModelPair]) -> Table:
    counts = ("first only", "second only", "p")
    table = plain_table("threat", "first", "second", *counts, numbers=counts)
    for pair in found:
        shown = ["", "", f"not comparable: {pair.obstacle}"]
        if pair.p_value is not None:
            shown = [str(pair.only_first), str(pair.only_second), f"{pair.p_value:.2g}"]
        table.add_row(*map(Text, (pair.threat, pair.first, pair.second, *shown)))
    return table
