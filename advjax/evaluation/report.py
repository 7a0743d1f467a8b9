"""The report: a stable JSON schema for accuracies, each with everything needed to interpret it.

``report.json`` is an object with ``schema_version`` and ``rows``, each of them one accuracy (`Row`).  What may be
called robust accuracy is decided by `is_robust_accuracy` alone: an accuracy under an attack made on another model, with
predicted labels, or with unbounded perturbations is not.
"""

import json
import math
import os
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from advjax.evaluation.attack_facts import AttackFacts
from advjax.evaluation.outcomes import CLEAN, Outcome, check, write_outcomes
from advjax.evaluation.statistics import spread_over_fifths, wilson_interval
from advjax.runtime.files import plain, write_atomically
from advjax.types import UserError

SCHEMA_VERSION = 1
ALL = "all"
BASE_CORRECT = "base_correct"


class Row(TypedDict):
    """One accuracy of ``report.json`` with its provenance.  Fields named as in `Outcome` mean the same."""

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
    """For minimum-norm attacks: median perturbation size, in ``norm``, at which images are misclassified.  An image
    that is misclassified without a perturbation counts as 0, one on which the attack failed as infinite; null where the
    median is infinite, and for other attacks.  Absent from reports written before 2026-11-21."""
    mean_distance: NotRequired[float | None]
    """For attacks without an epsilon, minimum-norm or not: mean perturbation size, in ``norm``, over the images that
    the attack has changed, whether or not it succeeded; null if it has changed none, and for other attacks.  Absent
    from reports written before 2026-12-02."""
    no_progress: NotRequired[int]
    """How many correct predictions say nothing, since no attack with gradients made progress on the image (see
    `Outcome`).  Absent from reports written before 2026-12-01."""


class SummaryCell(TypedDict):
    """One accuracy of a summary with its 95 % Wilson interval."""

    n: int
    accuracy: float | None
    low: float
    high: float


class Summary(TypedDict):
    """One model under one threat model: clean accuracy, and the per-image worst case of each kind of attack.

    ``robust`` is the worst case over the adaptive kinds, ``white_box`` and ``queries``; None stands for not measured.
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
    """One check of the report card: a reason to trust the accuracies of a model, or to doubt them."""

    run: str
    defense: str
    name: str
    passed: bool
    finding: str
    numbers: dict[str, float]


class CurvePoint(TypedDict):
    """Accuracy under an adaptive attack with true labels at one epsilon."""

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
    # Absent from reports written before 2026-12-01; the defaults are never modified.
    verdict: list[str] = []  # noqa: RUF012
    """The result in one sentence for each model and threat model."""
    attacks: list[AttackFacts] = []  # noqa: RUF012
    data: dict[str, Any] = {}  # noqa: RUF012
    """Name, split, number of examples, and the precision of verdicts."""
    date: str = ""
    """Day on which the evaluation was finished, in UTC."""


_KINDS = {
    **dict.fromkeys(("config", "environment", "data"), dict),
    **dict.fromkeys(("rows", "notes", "summary", "checks", "curve", "verdict", "attacks"), list),
    "date": str,
}
"""JSON types of the fields of a report."""


def is_robust_accuracy(row: Row) -> bool:
    """Whether the row may be called robust accuracy: the attack ``is_on_itself``, and its perturbations are bounded.

    The accuracy under a minimum-norm attack only counts its failures; its result is the ``median_distance``.
    """
    return is_on_itself(row) and row["epsilon"] is not None


def is_on_itself(row: Row) -> bool:
    """Whether the row is about an adaptive attack with the true labels.

    An attack on the model's own predictions pushes misclassified images away from the wrong class, possibly into the
    right one, which can only increase the accuracy.
    """
    return row["attack"] != CLEAN and row["adaptive"] and row["made_on"] == row["run"] and row["labels"] == "true"


def rows(outcomes: Iterable[Outcome], subsets: Mapping[str, np.ndarray] | None = None) -> list[Row]:
    """Accuracies of outcomes: a row for all images of each outcome, then one for each subset.

    Args:
      outcomes: all of one split, each evaluated once.
      subsets: name -> int [m], positions in the split.  Images that an outcome did not evaluate are left out.

    Raises:
      ValueError: `outcomes.check` refuses the outcomes.
    """
    outcomes = list(outcomes)
    check(outcomes)
    return [
        _row(outcome, name, members)
        for outcome in outcomes
        for name, members in [(ALL, outcome.index), *(subsets or {}).items()]
    ]


def write(report: Report, outcomes: Sequence[Outcome], folder: str | os.PathLike[str]) -> None:
    """Writes ``outcomes.npz`` and then ``report.json`` into ``folder``, each atomically.

    The JSON is strict: NaN and infinities become null.  Equal reports give equal bytes.

    Raises:
      TypeError: the config or the environment holds something that JSON cannot represent.
    """
    text = json.dumps(plain(report._asdict(), "report"), indent=1, allow_nan=False, ensure_ascii=False)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_outcomes(outcomes, folder / "outcomes.npz")
    write_atomically(folder / "report.json", (text + "\n").encode())


def read_report(path: str | os.PathLike[str]) -> Report:
    """Reads a ``report.json``.

    Raises:
      UserError: there is no such file, or it is not a report of this schema version.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no report at {path}; evaluate first, or give the path of a report.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable JSON file ({error}); give the path of a report.json") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path} has schema_version {version}; this advjax reads {SCHEMA_VERSION}: evaluate again")
    try:
        found = Report(**content)
    except TypeError as error:
        raise UserError(f"{path} is not a complete report ({error}): evaluate again") from None
    for field, kind in _KINDS.items():
        value = getattr(found, field)
        is_list_of_objects = kind is list and field not in ("notes", "verdict")
        if not isinstance(value, kind) or (is_list_of_objects and not _are_objects(value)):
            raise UserError(f"{path} is not a complete report ({field} is not what it should be): evaluate again")
    return found


def _are_objects(value: Sequence[Any]) -> bool:
    return all(isinstance(entry, dict) for entry in value)


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
        mean_distance=_mean_distance(outcome, members),
        no_progress=int(np.sum(outcome.without_progress[order][inside])),
    )


def _median_distance(outcome: Outcome, members: np.ndarray) -> float | None:
    inside = np.isin(outcome.index, members)
    if not (_has_no_epsilon(outcome) and inside.any()):
        return None
    right = np.asarray(outcome.predictions) == np.asarray(outcome.labels)
    median = float(np.median(np.where(right, np.inf, outcome.distances)[inside]))
    return median if math.isfinite(median) else None


def _mean_distance(outcome: Outcome, members: np.ndarray) -> float | None:
    sizes = np.asarray(outcome.distances)[np.isin(outcome.index, members)]
    changed = sizes[sizes > 0]
    if not (_has_no_epsilon(outcome) and changed.size):
        return None
    # Exact sums do not depend on the order of the images.
    return statistics.fmean(changed.tolist())


def _has_no_epsilon(outcome: Outcome) -> bool:
    """Whether perturbations were looked for without a limit on their size."""
    return outcome.norm is not None and (outcome.epsilon is None or math.isinf(outcome.epsilon))
