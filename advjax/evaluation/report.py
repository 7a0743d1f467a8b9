"""From per-image outcomes to a report that other tools can read and that cannot flatter.

``report.json`` is a contract: an object with ``schema_version`` on top and ``rows``, each one accuracy with all that is
needed to say what it means (`Row`).  ``outcomes.npz`` holds what every image did (`write_outcomes`).  The one rule on
words lives in `is_robust_accuracy`: an accuracy under an attack made on any other model, or on predicted labels, is not
robust accuracy.
"""

import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np

from advjax.evaluation.statistics import spread_over_fifths, wilson_interval
from advjax.types import UserError

SCHEMA_VERSION = 1
CLEAN = "clean"
ALL = "all"
BASE_CORRECT = "base_correct"
EVERYTHING, SCORES, OBLIVIOUS, TRANSFER = "everything", "scores", "undefended model", "source model"
"""What an attacker knows: the model with its defence, its answers alone, it without its defence, another model."""
NOTHING = "nothing"
"""What noise knows."""
ADAPTIVE = (EVERYTHING, SCORES)


class Outcome(NamedTuple):
    """What one model did, image by image, under one attack or none."""

    run: str
    """The run whose predictions these are."""
    split: str
    attack: str
    """The attack's name in the config, or "clean"."""
    norm: str | None
    """Norm of ``distances``; None for clean images and for noise, which is measured in l2."""
    epsilon: float | None
    """Largest allowed distance; None for clean, noise and minimum-norm attacks."""
    made_on: str | None
    """The run that the attack was made on; None for clean and for noise."""
    adaptive: bool
    """The attack was made on this very model with its defence in the loop."""
    knowledge: str
    """"none" (clean), "nothing" (noise), "source model" (transfer), "undefended model" (oblivious: of the same run
    without its defence), "everything" (adaptive, white box) or "scores" (adaptive, by queries alone)."""
    defense: str
    """Test-time defence around the model, "none" without."""
    protocol: str
    """"sound" or "faithful" (a paper's own protocol, flaws included)."""
    label_use: str
    """Labels the attack was given: "true" or "predicted"."""
    seed: int
    eot_samples: int
    """Draws per gradient for a randomised model, 1 for a deterministic one."""
    seconds: float
    """Wall time of attack and predictions."""
    model_hash: str
    """Hash of the variables of ``run``."""
    index: np.ndarray
    """int [n]: positions in the split, each once, in any order."""
    labels: np.ndarray
    """int [n]: true classes."""
    predictions: np.ndarray
    """int [n]: classes predicted for the attacked images."""
    distances: np.ndarray
    """float32 [n]: sizes of the perturbations in ``norm``, pixels in [0, 1]; 0 for clean."""
    steps: np.ndarray
    """int [n]: attack steps until the image was done; 0 for clean."""


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


_ARRAYS = ("index", "labels", "predictions", "distances", "steps")
_FACTS = tuple(field for field in Outcome._fields if field not in _ARRAYS)
_IDENTITY = tuple(field for field in _FACTS if field not in ("seconds", "model_hash"))


def is_robust_accuracy(row: Row) -> bool:
    """Whether the row may be called robust accuracy: the attack was made on the very model that is scored.

    And with the true labels: an attack on the model's own predictions pushes what it gets wrong away from the wrong
    class, and can only flatter it there.
    """
    return row["attack"] != CLEAN and row["adaptive"] and row["made_on"] == row["run"] and row["labels"] == "true"


def correct_index(outcome: Outcome) -> np.ndarray:
    """Positions in the split of the images that the outcome has right, e.g. the subset "base_correct"."""
    return np.sort(outcome.index[outcome.predictions == outcome.labels])


def rows(outcomes: Iterable[Outcome], subsets: Mapping[str, np.ndarray] | None = None) -> list[Row]:
    """Summarise outcomes: one row per outcome for all its images, then one per subset.

    Args:
      outcomes: all of one split, each evaluated once.
      subsets: name -> int [m], positions in the split.  Images that an outcome did not evaluate are left out.

    Raises:
      ValueError: an outcome that contradicts itself (see `Outcome`), repeats another, or is of another split.
    """
    outcomes = list(outcomes)
    if len({outcome.split for outcome in outcomes}) > 1:
        raise ValueError("outcomes of several splits: their positions mean different images; make a report of each")
    seen = set()
    for outcome in outcomes:
        _check(outcome)
        identity = tuple(getattr(outcome, field) for field in _IDENTITY)
        if identity in seen:
            raise ValueError(f"{_name(outcome)}: the same outcome is given twice")
        seen.add(identity)
    return [
        _row(outcome, name, members)
        for outcome in outcomes
        for name, members in [(ALL, outcome.index), *(subsets or {}).items()]
    ]


def describe_environment() -> dict[str, Any]:
    """Versions and devices that a result depends on; equal on every call in one process."""
    packages = ("advjax", "jax", "jaxlib", "flax", "numpy", "optax")
    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in packages},
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
    }


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


def write_outcomes(outcomes: Sequence[Outcome], path: str | os.PathLike[str]) -> None:
    """Write per-image outcomes so that ``np.load(path, allow_pickle=False)`` reads them.

    Outcome number i has the arrays ``i/index``, ``i/labels``, ``i/predictions``, ``i/distances`` and ``i/steps``, in
    data set order.  The entry ``outcomes`` is a JSON list: element i holds the other fields of outcome i.
    """
    facts = [{field: getattr(outcome, field) for field in _FACTS} for outcome in outcomes]
    entries: dict[str, Any] = {"outcomes": np.array(json.dumps(plain(facts, "outcomes"), allow_nan=False))}
    for i, outcome in enumerate(outcomes):
        order = np.argsort(outcome.index)
        for field in _ARRAYS:
            dtype = np.float32 if field == "distances" else np.int32
            entries[f"{i}/{field}"] = np.asarray(getattr(outcome, field)).astype(dtype)[order]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **entries)
    write_atomically(path, buffer.getvalue())


def read_outcomes(path: str | os.PathLike[str]) -> list[Outcome]:
    """The outcomes that `write_outcomes` wrote, images in data set order."""
    with np.load(path, allow_pickle=False) as entries:
        facts = json.loads(entries["outcomes"].item())
        return [
            Outcome(**fact, **{field: entries[f"{i}/{field}"] for field in _ARRAYS}) for i, fact in enumerate(facts)
        ]


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
    return Report(**content)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Put ``content`` at ``path`` in one step: a reader, or a crash, never sees half a file."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def plain(value: Any, path: str) -> Any:
    """``value`` in JSON's own types: arrays and tuples become lists, numbers that are not finite become None.

    Raises:
      TypeError: something that JSON cannot say; ``path`` says where it is.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return plain(np.asarray(value).tolist(), path)
    if isinstance(value, Mapping):
        return {str(key): plain(entry, f"{path}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{path}[{i}]") for i, entry in enumerate(value)]
    raise TypeError(f"{path} is a {type(value).__name__}, which JSON cannot say; use plain data")


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
    )


def _check(outcome: Outcome) -> None:
    """Refuse an outcome whose labels would let a number pass for what it is not."""
    attacked, itself = outcome.attack != CLEAN, outcome.made_on == outcome.run
    shapes = {np.shape(getattr(outcome, field)) for field in _ARRAYS}
    rules = [
        (
            (attacked and outcome.knowledge != NOTHING) == (outcome.made_on is not None),
            "made_on must be None exactly for clean and for noisy images",
        ),
        (attacked == (outcome.knowledge != "none"), 'knowledge must be "none" exactly for clean images'),
        (itself or not outcome.adaptive, "an adaptive attack is made on the run that is scored"),
        (
            outcome.adaptive or not itself or outcome.defense != "none",
            "an attack made on the undefended run itself is adaptive",
        ),
        (
            outcome.adaptive == (outcome.knowledge in ADAPTIVE),
            'knowledge must be "everything" or "scores" exactly for adaptive attacks',
        ),
        (outcome.protocol in ("sound", "faithful"), 'protocol must be "sound" or "faithful"'),
        (outcome.label_use in ("true", "predicted"), 'label_use must be "true" or "predicted"'),
        (shapes == {(np.size(outcome.index),)}, "all arrays need one entry per image"),
        (np.unique(outcome.index).size == np.size(outcome.index), "every image may be counted only once"),
    ]
    for kept, rule in rules:
        if not kept:
            raise ValueError(f"{_name(outcome)}: {rule}")


def _name(outcome: Outcome) -> str:
    return f"outcome {outcome.run}/{outcome.attack} (made on {outcome.made_on}, adaptive={outcome.adaptive})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"
