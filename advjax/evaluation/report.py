"""From per-image outcomes to a report that other tools can read and that cannot flatter.

``report.json`` is a contract: an object with ``schema_version`` on top and ``rows``, each one accuracy with all that is
needed to say what it means (`Row`).  The one rule on words lives in `is_robust_accuracy`: an accuracy under an attack
made on any other model, or on predicted labels, or without any bound on the perturbation, is not robust accuracy.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from advjax.evaluation.outcomes import CLEAN, Outcome, check, write_outcomes
from advjax.evaluation.statistics import spread_over_fifths, wilson_interval
from advjax.runtime.files import plain, write_atomically
from advjax.types import UserError

SCHEMA_VERSION = 1
ALL = "all"
BASE_CORRECT = "base_correct"


class Row(TypedDict):
    """One accuracy of ``report.json``, with what it takes to read it.  Fields named as in `Outcome` mean the same."""

    run: str
    split: str
    subset: str
    """"all", or the name of a subset such as "base_correct" (images the base run classifies correctly)."""
    attack: str
    norm: str | None
    epsilon: float | None
    made_on: str | None
    adaptive: bool
    knowledge: str
    defense: str
    protocol: str
    labels: str
    """``label_use`` of the outcome."""
    seed: int
    eot_samples: int
    n: int
    accuracy: float | None
    """Fraction of correct predictions, 0..1; null for an empty subset."""
    low: float
    """95 % Wilson interval of ``accuracy`` over the test images."""
    high: float
    sd_fifths: float | None
    """Standard deviation over five contiguous parts of the images (not over training seeds); null below 5 images."""
    seconds: float
    model_hash: str
    median_distance: NotRequired[float | None]
    """Of a minimum-norm attack: size of the perturbation, in ``norm``, that is enough for half of the images.  0 for an
    image that is wrong as it is, infinite for one that stays right; null where the median is, and for other attacks.
    Reports of advjax before 2026-11-21 are without."""


class SummaryCell(TypedDict):
    """One accuracy of a summary, with its 95 % Wilson interval."""

    n: int
    accuracy: float | None
    low: float
    high: float


class Summary(TypedDict):
    """One model under one threat model, clean and attacked in four ways, each the worst of its attacks per image.

    ``robust`` is the minimum over the adaptive ways, ``white_box`` and ``queries``.  None where nothing was measured.
    """

    run: str
    defense: str
    norm: str | None
    epsilon: float | None
    clean: SummaryCell | None
    oblivious: SummaryCell | None
    transfer: SummaryCell | None
    white_box: SummaryCell | None
    queries: SummaryCell | None
    robust: SummaryCell | None


class CheckRow(TypedDict):
    """One check of the report card: a reason to trust the numbers of a model, or not to."""

    run: str
    defense: str
    name: str
    passed: bool
    finding: str
    numbers: dict[str, float]


class CurvePoint(TypedDict):
    """Accuracy of a model attacked on itself at one epsilon; always adaptive, with true labels."""

    run: str
    defense: str
    attack: str
    norm: str
    epsilon: float
    n: int
    accuracy: float
    low: float
    high: float


class Report(NamedTuple):
    """The content of ``report.json``."""

    schema_version: int
    title: str
    config: dict[str, Any]
    environment: dict[str, Any]
    rows: list[Row]
    notes: list[str]
    summary: list[Summary]
    checks: list[CheckRow]
    curve: list[CurvePoint]


def is_robust_accuracy(row: Row) -> bool:
    """Whether the row may be called robust accuracy: the attack ``is_on_itself``, and its perturbations are bounded.

    A minimum-norm attack leaves what it failed on, at whatever distance; it is its ``median_distance`` that counts.
    """
    return is_on_itself(row) and row["epsilon"] is not None


def is_on_itself(row: Row) -> bool:
    """Whether the row is about an attack on the very model that is scored, with the true labels.

    An attack on the model's own predictions pushes what it gets wrong away from the wrong class, and can only flatter
    it there.
    """
    return row["attack"] != CLEAN and row["adaptive"] and row["made_on"] == row["run"] and row["labels"] == "true"


def rows(outcomes: Iterable[Outcome], subsets: Mapping[str, np.ndarray] | None = None) -> list[Row]:
    """Summarise outcomes: one row per outcome for all its images, then one per subset.

    Args:
      outcomes: all of one split, each evaluated once.
      subsets: name -> int [m], positions in the split.  Images that an outcome did not evaluate are left out.

    Raises:
      ValueError: outcomes that `outcomes.check` refuses.
    """
    outcomes = list(outcomes)
    check(outcomes)
    return [
        _row(outcome, name, members)
        for outcome in outcomes
        for name, members in [(ALL, outcome.index), *(subsets or {}).items()]
    ]


def write(report: Report, outcomes: Sequence[Outcome], folder: str | os.PathLike[str]) -> None:
    """Write ``outcomes.npz`` and then ``report.json`` into ``folder``, each appearing complete or not at all.

    The JSON is strict: NaN and infinities become null.  Equal reports give equal bytes.

    Raises:
      TypeError: the config or the environment holds something that JSON cannot say.
    """
    text = json.dumps(plain(report._asdict(), "report"), indent=1, allow_nan=False, ensure_ascii=False)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_outcomes(outcomes, folder / "outcomes.npz")
    write_atomically(folder / "report.json", (text + "\n").encode())


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a ``report.json``.

    Raises:
      UserError: no such file, no report, or a report of another schema version.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no report at {path}; evaluate first, or give the path of a report.json") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON file ({error}); give the path of a report.json") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path} has schema_version {version}; this advjax reads {SCHEMA_VERSION}: evaluate again")
    try:
        return Report(**content)
    except TypeError as error:
        raise UserError(f"{path} is no whole report ({error}): evaluate again") from None


def _row(outcome: Outcome, subset: str, members: np.ndarray) -> Row:
    order = np.argsort(outcome.index)
    inside = np.isin(outcome.index, members)[order]
    correct = (np.asarray(outcome.predictions) == np.asarray(outcome.labels))[order][inside]
    n, successes = int(correct.size), int(correct.sum())
    low, high = wilson_interval(successes, n)
    return Row(
        run=outcome.run,
        split=outcome.split,
        subset=subset,
        attack=outcome.attack,
        norm=outcome.norm,
        epsilon=None if outcome.epsilon is None or math.isinf(outcome.epsilon) else float(outcome.epsilon),
        made_on=outcome.made_on,
        adaptive=bool(outcome.adaptive),
        knowledge=outcome.knowledge,
        defense=outcome.defense,
        protocol=outcome.protocol,
        labels=outcome.label_use,
        seed=int(outcome.seed),
        eot_samples=int(outcome.eot_samples),
        n=n,
        accuracy=successes / n if n else None,
        low=low,
        high=high,
        sd_fifths=spread_over_fifths(correct),
        seconds=round(float(outcome.seconds), 3),
        model_hash=outcome.model_hash,
        median_distance=_median_distance(outcome, members),
    )


def _median_distance(outcome: Outcome, members: np.ndarray) -> float | None:
    is_minimum_norm = outcome.norm is not None and (outcome.epsilon is None or math.isinf(outcome.epsilon))
    inside = np.isin(outcome.index, members)
    if not (is_minimum_norm and inside.any()):
        return None
    right = np.asarray(outcome.predictions) == np.asarray(outcome.labels)
    median = float(np.median(np.where(right, np.inf, outcome.distances)[inside]))
    return median if math.isfinite(median) else None
