"""Sweeps over seeds: mean and standard deviation over evaluations that differ in nothing else."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from advjax.evaluation.outcomes import CLEAN, Outcome
from advjax.evaluation.report import Report
from advjax.reporting.formatting import model_name, percent, threat_name
from advjax.reporting.plain_table import plain_table

SEEDS_EXPLANATION = (
    "Mean ± standard deviation over training seeds, of evaluations whose configs differ in the seed alone. This is the "
    "variability of training; intervals are that of the choice of test images."
)


class Evaluation(NamedTuple):
    """The results that an evaluation has stored."""

    report: Report
    outcomes: list[Outcome]


class SeedSpread(NamedTuple):
    """The accuracy of one model, trained with several seeds."""

    model: str
    threat: str
    """Such as "linf 8/255", or "clean"."""
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    """One for each seed."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def std(self) -> float:
        """Sample standard deviation, with the divisor n - 1."""
        return float(np.std(self.accuracies, ddof=1))


def over_seeds(evaluations: Mapping[str, Evaluation]) -> list[SeedSpread]:
    """Accuracies over seeds, clean and robust, of each model of evaluations whose configs differ in the seed alone.

    Configs without a second seed are left out.
    """
    sweeps: dict[str, dict[int, Report]] = {}
    for evaluation in evaluations.values():
        config = dict(evaluation.report.config)
        seed = config.pop("seed", None)
        if seed is not None:
            sweeps.setdefault(_same(config), {})[seed] = evaluation.report
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for sweep, reports in sweeps.items():
        for seed, report in sorted(reports.items()) if len(reports) > 1 else ():
            for model, threat, accuracy in _accuracies(report):
                found.setdefault((sweep, model, threat), {})[seed] = accuracy
    return [
        SeedSpread(model, threat, tuple(by_seed), tuple(by_seed.values()))
        for (_, model, threat), by_seed in found.items()
        if len(by_seed) > 1
    ]


def seed_table(spreads: Sequence[SeedSpread]) -> Table:
    """One row for each model and threat model."""
    numbers = ("mean ± SD (%)", "lowest", "highest")
    table = plain_table("model", "threat model", "seeds", *numbers, numbers=numbers)
    for spread in spreads:
        mean = f"{percent(spread.mean)} ± {percent(spread.std)}"
        ends = percent(min(spread.accuracies)), percent(max(spread.accuracies))
        table.add_row(*map(Text, (spread.model, spread.threat, ", ".join(map(str, spread.seeds)), mean, *ends)))
    return table


def _same(config: Mapping) -> str:
    """What has to be equal: all but the seed, the heading, and where the data lie."""
    data = {key: value for key, value in config["data"].items() if key not in ("dir", "num_workers")}
    return json.dumps({**config, "title": "", "data": data}, sort_keys=True)


def _accuracies(report: Report) -> list[tuple[str, str, float]]:
    """``(model, threat model, accuracy)``, clean and robust."""
    found = {}
    for entry in report.summary:
        name = model_name(entry["run"], entry["defense"])
        for threat, cell in (
            (CLEAN, entry["clean"]),
            (threat_name(entry["norm"], entry["epsilon"]), entry["robust"]),
        ):
            if cell is not None and cell["accuracy"] is not None:
                found[name, threat] = cell["accuracy"]
    return [(*key, accuracy) for key, accuracy in found.items()]
