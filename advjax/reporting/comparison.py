"""Several evaluations side by side, and whether two models differ on the same images by more than chance."""

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from advjax.evaluation.outcomes import CLEAN, Outcome, read_outcomes
from advjax.evaluation.report import Report, SummaryCell, read_report, rows
from advjax.evaluation.statistics import mcnemar
from advjax.evaluation.summaries import cell, robust_correct
from advjax.reporting.plain_table import plain_table
from advjax.reporting.summary import cell_text, model_name
from advjax.reporting.terminal import WIDTH, threat_name
from advjax.types import UserError

EXPLANATION = (
    "p: exact McNemar test on the images that only one of the two has right, not corrected for the number of pairs. It "
    "is about the choice of test images, not about training seeds."
)


class Evaluation(NamedTuple):
    """What an evaluation has written."""

    report: Report
    outcomes: list[Outcome]


class Measured(NamedTuple):
    """One model under one threat model, or without any attack."""

    model: str
    threat: str
    """Such as "linf 8/255", or "clean"."""
    correct: np.ndarray
    """bool [n]"""
    conditions: Mapping[str, Any]
    """What has to be equal for a comparison, by the name that people know it by."""

    @property
    def accuracy(self) -> SummaryCell:
        """With its interval."""
        return cell(self.correct)


class Pair(NamedTuple):
    """Two models on the same images."""

    threat: str
    first: str
    second: str
    only_first: int
    """Images that only the first has right."""
    only_second: int
    p_value: float | None
    """None if they cannot be compared."""
    obstacle: str
    """Why not, or ""."""


def read_evaluation(folder: str | os.PathLike[str]) -> Evaluation:
    """The report in a folder, and what it was made of.

    Raises:
      UserError: there is none, or its two files are of different evaluations.
    """
    folder = pathlib.Path(folder)
    report = read_report(folder / "report.json")
    try:
        outcomes = read_outcomes(folder / "outcomes.npz")
    except FileNotFoundError:
        raise UserError(f"{folder} has a report but no outcomes.npz: evaluate again") from None
    if rows(outcomes) != [row for row in report.rows if row["subset"] == "all"]:
        raise UserError(f"report.json and outcomes.npz in {folder} are of different evaluations: evaluate again")
    return Evaluation(report, outcomes)


def measured(evaluations: Mapping[str, Evaluation]) -> list[Measured]:
    """All models of all evaluations, clean and under all attacks made on themselves together.

    Args:
      evaluations: by a name that models get in front of their own, such as the folder; "" for none.
    """
    return [entry for name, evaluation in evaluations.items() for entry in _measured(name, evaluation)]


def pairs(entries: Sequence[Measured]) -> list[Pair]:
    """Every two models, where both were measured in the same way."""
    return [
        _pair(first, second)
        for first, second in itertools.combinations(entries, 2)
        if first.threat == second.threat and first.model != second.model
    ]


def print_comparison(evaluations: Mapping[str, Evaluation], console: Console) -> None:
    """Accuracies of all models, then all pairs of them."""
    entries = measured(evaluations)
    width = console.width
    try:
        if not console.is_terminal:
            console.width = max(WIDTH, width)
        console.print(Group(_accuracies(entries), Text(), _pairs(pairs(entries)), Text(EXPLANATION, style="dim")))
    finally:
        console.width = width


def _measured(name: str, evaluation: Evaluation) -> list[Measured]:
    config, found = evaluation.report.config, []
    attacks = config["evaluation"]["attacks"]
    keys = ("name", "test_split", "image_size", *(("dir",) if config["data"]["name"] == "folder" else ()))
    data = {key: config["data"][key] for key in keys}
    models = dict.fromkeys((entry.run, entry.defense) for entry in evaluation.outcomes)
    for run, defense in models:
        label = f"{name}: {model_name(run, defense)}" if name else model_name(run, defense)
        own = [entry for entry in evaluation.outcomes if (entry.run, entry.defense) == (run, defense)]
        (clean,) = (entry for entry in own if entry.attack == CLEAN)
        same = {"data": data, "images": clean.index.tolist(), "labels": clean.labels.tolist()}
        found.append(Measured(label, CLEAN, clean.predictions == clean.labels, same))
        for (norm, epsilon), (names, correct) in robust_correct(own).items():
            made = {attack: _settings(attacks.get(attack)) for attack in names}
            found.append(Measured(label, threat_name(norm, epsilon), correct, {**same, "attacks": made}))
    return found


def _settings(attack: Mapping[str, Any] | None) -> Any:
    return None if attack is None else {key: str(value) for key, value in sorted(attack.items())}


def _pair(first: Measured, second: Measured) -> Pair:
    names = (first.threat, first.model, second.model)
    for name, value in first.conditions.items():
        if value != second.conditions[name]:
            return Pair(*names, 0, 0, None, f"other {name}")
    one, other = first.correct, second.correct
    return Pair(*names, int(np.sum(one & ~other)), int(np.sum(other & ~one)), mcnemar(one, other), "")


def _accuracies(entries: Sequence[Measured]) -> Table:
    threats = list(dict.fromkeys(entry.threat for entry in entries))
    table = plain_table("model, %")
    for threat in threats:
        head = threat if threat == CLEAN else f"robust accuracy\n{threat}"
        table.add_column(Text(head), justify="right", overflow="fold")
    for model in dict.fromkeys(entry.model for entry in entries):
        found = {entry.threat: entry.accuracy for entry in entries if entry.model == model}
        table.add_row(Text(model), *(Text(cell_text(found.get(threat))) for threat in threats))
    return table


def _pairs(found: Sequence[Pair]) -> Table:
    counts = ("only first right", "only second right", "p")
    table = plain_table("threat", "first", "second", *counts, numbers=counts)
    for pair in found:
        shown = ["", "", f"not comparable: {pair.obstacle}"]
        if pair.p_value is not None:
            shown = [str(pair.only_first), str(pair.only_second), f"{pair.p_value:.2g}"]
        table.add_row(*map(Text, (pair.threat, pair.first, pair.second, *shown)))
    return table
