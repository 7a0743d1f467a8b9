"""Per-image predictions of every model on clean and adversarial images, and the file that stores them.

Every number of a report is computed from outcomes; `check` refuses outcomes whose labels would misrepresent a number.
"""

import io
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from advjax.attacks.course import NO_PROGRESS
from advjax.evaluation.attacker_knowledge import ADAPTIVE, NOTHING
from advjax.runtime.files import plain, read_npz, write_atomically
from advjax.types import UserError

CLEAN = "clean"
"""Name of the attack in outcomes on clean images."""


class Outcome(NamedTuple):
    """The predictions of one model on every image, clean or under one attack."""

    run: str
    """The run whose predictions these are."""
    split: str
    attack: str
    """The attack's name in the config, or "clean"."""
    norm: str | None
    """Norm of ``distances``; None for clean images and for noise, whose distances are in l2."""
    epsilon: float | None
    """Largest allowed distance; None for clean, noise and minimum-norm attacks."""
    made_on: str | None
    """The run that the attack was made on; None for clean and for noise."""
    adaptive: bool
    """The attack was made on this very model, with its defense in the loop."""
    knowledge: str
    """What the attacker knew of the model: one of the constants of `attacker_knowledge`."""
    defense: str
    """Test-time defense around the model, "none" without one."""
    protocol: str
    """"sound" or "faithful" (a paper's own protocol, flaws included)."""
    label_use: str
    """Labels the attack was given: "true" or "predicted"."""
    seed: int
    eot_samples: int
    """Draws per gradient for a stochastic model, 1 for a deterministic one."""
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
    progress: np.ndarray | None = None
    """int8 [n]: ``AttackResult.progress``, of which several stages of an attack have the largest; None for clean."""

    @property
    def without_progress(self) -> np.ndarray:
        """bool [n]: correct, but no attack with gradients made progress, so that this is no evidence of robustness."""
        if self.progress is None:
            return np.zeros(np.shape(self.labels), bool)
        return (self.predictions == self.labels) & (np.asarray(self.progress) == NO_PROGRESS)


_ARRAYS = ("index", "labels", "predictions", "distances", "steps")
_FACTS = tuple(field for field in Outcome._fields if field not in (*_ARRAYS, "progress"))
_IDENTITY = tuple(field for field in _FACTS if field not in ("seconds", "model_hash"))


def check(outcomes: Sequence[Outcome]) -> None:
    """Refuses outcomes that cannot be in one report.

    Raises:
      ValueError: an outcome contradicts itself (see `Outcome`), repeats another, or is of another split.
    """
    if len({outcome.split for outcome in outcomes}) > 1:
        raise ValueError(
            "outcomes of several splits: their positions refer to different images; make one report for each split"
        )
    seen = set()
    for outcome in outcomes:
        _check_one(outcome)
        identity = tuple(getattr(outcome, field) for field in _IDENTITY)
        if identity in seen:
            raise ValueError(f"{_name(outcome)}: this outcome is given twice")
        seen.add(identity)


def correct_index(outcome: Outcome) -> np.ndarray:
    """Positions in the split of the correctly classified images, e.g. the subset "base_correct"."""
    return np.sort(outcome.index[outcome.predictions == outcome.labels])


def write_outcomes(outcomes: Sequence[Outcome], path: str | os.PathLike[str]) -> None:
    """Writes per-image outcomes that ``np.load(path, allow_pickle=False)`` can read.

    Outcome number i has the arrays ``i/index``, ``i/labels``, ``i/predictions``, ``i/distances`` and ``i/steps``, in
    data set order, and ``i/progress`` if it is of an attack.  The entry ``outcomes`` is a JSON list: element i holds
    the other fields of outcome i.
    """
    facts = [{field: getattr(outcome, field) for field in _FACTS} for outcome in outcomes]
    entries: dict[str, Any] = {"outcomes": np.array(json.dumps(plain(facts, "outcomes"), allow_nan=False))}
    for i, outcome in enumerate(outcomes):
        order = np.argsort(outcome.index)
        for field in _ARRAYS:
            dtype = np.float32 if field == "distances" else np.int32
            entries[f"{i}/{field}"] = np.asarray(getattr(outcome, field)).astype(dtype)[order]
        if outcome.progress is not None:
            entries[f"{i}/progress"] = np.asarray(outcome.progress, np.int8)[order]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **entries)
    write_atomically(path, buffer.getvalue())


def read_outcomes(path: str | os.PathLike[str]) -> list[Outcome]:
    """Reads what `write_outcomes` wrote; images are in data set order.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is damaged, or holds something else.
    """
    entries: dict[str, Any] = read_npz(path, "evaluate again")
    try:
        facts = json.loads(entries["outcomes"].item())
        return [
            Outcome(
                **fact, **{field: entries[f"{i}/{field}"] for field in _ARRAYS}, progress=entries.get(f"{i}/progress")
            )
            for i, fact in enumerate(facts)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} does not hold the outcomes of an evaluation ({error}): evaluate again") from error


def _check_one(outcome: Outcome) -> None:
    """Refuses an outcome whose labels would misrepresent its accuracy."""
    attacked, itself = outcome.attack != CLEAN, outcome.made_on == outcome.run
    fields = [field for field in (*_ARRAYS, "progress") if getattr(outcome, field) is not None]
    shapes = {np.shape(getattr(outcome, field)) for field in fields}
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
