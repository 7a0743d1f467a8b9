"""Joins published numbers with the rows of a report that measure the same quantity.

The config key ``published`` says which rows those are.  It is a sequence of mappings with these keys:

* ``table``: one of `published.TABLES`.
* ``model``, ``dataset``, ``training``, ``attack``: in the terms of the table; as many as are needed to select one
  accuracy.
* ``run``, ``our_attack``: of the row; the attack by its name in the config, or "clean".
* ``defense``, ``subset``, ``adaptive``: of the row; the defaults are "none", "all" and False.
* ``made_on``, ``labels``, ``protocol``, ``eot_samples``: of the row; needed only if several rows match otherwise.
* ``sound_attack``: on a page of `advjax.papers.page`, the attack of the sound column, where that of the paper does not
  keep to its threat model.
* ``when``: config key -> value, as in ``{"run.mixed.epochs": 10}``, if the number is for other values than those of the
  config.

A published number never stands next to a result of a different experiment.  `publish` records in ``published_for`` the
experiment that the entries were written for, and an entry applies only while every setting that its row depends on is
unchanged or matches ``when``: the data, the run, the runs that it starts from, is attacked through or takes targets
from, the attack, and the defense.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ml_collections import ConfigDict

from advjax.evaluation.attacker_knowledge import EVERYTHING, NOTHING, OBLIVIOUS, SCORES, TRANSFER
from advjax.evaluation.report import ALL, Row
from advjax.evaluation.statistics import wilson_interval
from advjax.papers.config_diff import differences
from advjax.papers.published import Published, read
from advjax.reporting.formatting import model_name
from advjax.types import UserError

__all__ = ["KEYS", "Accuracy", "Pair", "accuracy_of", "applicable", "join", "pair", "publish", "select"]

Spec: TypeAlias = Mapping[str, Any]
"""An entry of ``published`` in a config."""

ACCURACY = "accuracy"
"""The only metric that reports contain as well."""
_SELECTING_PUBLISHED = ("model", "dataset", "training", "attack")
_REQUIRED = ("table", "run", "our_attack")
_ROW_DEFAULTS = {"defense": "none", "subset": ALL, "adaptive": False}
_SELECTING_ROW = ("made_on", "labels", "protocol", "eot_samples")
KEYS = (*_REQUIRED, *_SELECTING_PUBLISHED, *_ROW_DEFAULTS, *_SELECTING_ROW, "sound_attack", "when")
"""Valid keys of an entry."""
_KINDS = {
    "none": "clean",
    NOTHING: "noise",
    TRANSFER: "transfer",
    OBLIVIOUS: "oblivious",
    EVERYTHING: "adaptive",
    SCORES: "adaptive",
}


class Accuracy(NamedTuple):
    """An accuracy in percent."""

    value: float
    interval: tuple[float, float] | None
    """95% Wilson interval over the test images, in percent; None if their number is unknown."""
    n: int | None
    attacked: str = ""
    """The model that the attack was made on, unless it is the scored one itself, or there was no attack."""
    draws: int | None = None
    """Draws that each gradient averaged, of an attack on a random model itself; None for others."""
    distance: float | None = None
    """Mean perturbation size of an attack without an epsilon, over the images that it has changed; None for others."""
    norm: str = ""
    """Of ``distance``; "" without one."""


class Pair(NamedTuple):
    """A published accuracy and our counterpart."""

    published: Published
    theirs: Accuracy
    model: str
    """Our run, with its defense if it has one."""
    attack: str
    """Its name in our config, or "clean"."""
    subset: str
    kind: str
    """"clean", "noise", "transfer", "oblivious" or "adaptive", as in the report; "" if it does not contain the row.  An
    adaptive attack that was not given the true labels is "adaptive, predicted labels"."""
    ours: Accuracy | None
    """None if the report does not contain it."""

    @property
    def difference(self) -> float | None:
        """Ours minus theirs, in percentage points."""
        return self.ours.value - self.theirs.value if self.ours else None

    @property
    def overlap(self) -> bool | None:
        """Whether the two intervals overlap; None unless both are known."""
        if self.ours is None or self.ours.interval is None or self.theirs.interval is None:
            return None
        (low, high), (other_low, other_high) = self.ours.interval, self.theirs.interval
        return max(low, other_low) <= min(high, other_high)


def join(rows: Sequence[Row], specs: Sequence[Spec]) -> list[Pair]:
    """Pairs published accuracies with ours, in the order of ``specs``.

    Args:
      rows: rows of a report.
      specs: ``published`` of its config.

    Raises:
      UserError: an entry has an unknown key or lacks a required one, does not select exactly one accuracy of its
        table, or matches several rows.
    """
    return [pair(rows, spec, select(spec)) for spec in specs]


def select(spec: Spec) -> Published:
    """The published accuracy that an entry of ``published`` selects.

    Raises:
      UserError: as in `join`.
    """
    where = _checked(spec)
    left = [entry for entry in read(spec["table"]) if entry.metric == ACCURACY]
    for field in _SELECTING_PUBLISHED:
        if field in spec:
            there = list(dict.fromkeys(getattr(entry, field) for entry in left))
            left = [entry for entry in left if getattr(entry, field) == spec[field]]
            if not left:
                raise UserError(f"{where}: no accuracy with {field} {spec[field]!r}; available are {_listed(there)}")
    if len(left) > 1:
        values = {field: dict.fromkeys(getattr(entry, field) for entry in left) for field in _SELECTING_PUBLISHED}
        raise UserError(f"{where}: {len(left)} accuracies match; specify {_choices(values)}")
    return left[0]


def publish(config: ConfigDict, entries: Iterable[Spec]) -> None:
    """Adds ``published`` entries to a config and records the experiment they are for, which is its current state."""
    plain = json.loads(config.to_json())
    evaluation = {key: plain["evaluation"][key] for key in ("attacks", "made_on", "transfer_labels", "defenses")}
    config.published = tuple(entries)
    config.published_for = {"data": plain["data"], "run": plain["run"], "evaluation": evaluation}


def applicable(
    specs: Sequence[Spec], config: Mapping[str, Any], reference: Mapping[str, Any] | None = None
) -> tuple[list[Spec], list[str]]:
    """The entries that apply to an experiment, and a reason such as "run.base.num_steps is 200" for each other one.

    Args:
      specs: ``published`` of a config.
      config: the experiment as it was run, as plain data.
      reference: ``published_for`` of the config that ``specs`` are from, by default that of ``config``.  If empty, only
        ``when`` is checked.

    Raises:
      UserError: an entry is invalid, or ``when`` names a key that the config does not have.
    """
    reference = config.get("published_for") if reference is None else reference
    held, reasons = [], []
    for spec in specs:
        where, when = _checked(spec), spec.get("when", {})
        found = {path: _value(config, path, where) for path in when}
        unmet = {path: value for path, value in found.items() if value != when[path]}
        if reference:
            others = differences(reference, config, spec)
            unmet |= {path: value for path, value in others.items() if path not in when}
        if unmet:
            first, *more = (f"{path} is {value}" for path, value in unmet.items())
            reasons.append(", ".join([first, *more[:2], *([f"and {len(more) - 2} more"] if more[2:] else [])]))
        else:
            held.append(spec)
    return held, reasons


def pair(rows: Sequence[Row], spec: Spec, published: Published) -> Pair:
    """A published number and the row of a report that an entry of ``published`` names.

    Raises:
      UserError: several rows match.
    """
    row = _row(rows, spec)
    interval = None
    if published.n is not None:
        interval = _percent(*wilson_interval(round(published.value / 100 * published.n), published.n))
    return Pair(
        published=published,
        theirs=Accuracy(published.value, interval, published.n),
        model=model_name(spec["run"], spec.get("defense", _ROW_DEFAULTS["defense"])),
        attack=spec["our_attack"],
        subset=spec.get("subset", _ROW_DEFAULTS["subset"]),
        kind=_kind(row) if row else "",
        ours=accuracy_of(row, rows) if row else None,
    )


def accuracy_of(row: Row, rows: Sequence[Row]) -> Accuracy | None:
    """The accuracy of a row in percent, with how the attack was made and what it took; None for an empty subset.

    Args:
      row: one of a report.
      rows: all of that report, which show whether the model is random: it is also attacked through more draws.
    """
    if row["accuracy"] is None:
        return None
    is_random = any(
        other["eot_samples"] > 1 and (other["run"], other["defense"]) == (row["run"], row["defense"]) for other in rows
    )
    is_itself = row["adaptive"] and row["made_on"] == row["run"]
    distance = row.get("mean_distance")
    return Accuracy(
        100 * row["accuracy"],
        _percent(row["low"], row["high"]),
        row["n"],
        attacked="" if is_itself or row["made_on"] is None else row["made_on"],
        draws=row["eot_samples"] if is_random and is_itself else None,
        distance=distance,
        norm="" if distance is None else row["norm"] or "",
    )


def _row(rows: Sequence[Row], spec: Spec) -> Row | None:
    requested = {**_ROW_DEFAULTS, **{key: spec[key] for key in ("run", *_ROW_DEFAULTS, *_SELECTING_ROW) if key in spec}}
    requested["attack"] = spec["our_attack"]
    found = [row for row in rows if all(row[key] == value for key, value in requested.items())]
    if len(found) > 1:
        values = {field: dict.fromkeys(row[field] for row in found) for field in _SELECTING_ROW}
        raise UserError(f"{_checked(spec)}: {len(found)} rows of the report match; specify {_choices(values)}")
    return found[0] if found else None


def _kind(row: Row) -> str:
    kind = _KINDS[row["knowledge"]]
    return f"{kind}, predicted labels" if kind == "adaptive" and row["labels"] == "predicted" else kind


def _checked(spec: Any) -> str:
    """Validates an entry and returns its name for error messages."""
    if not isinstance(spec, Mapping):
        raise UserError(f"published: an entry must be a mapping with keys {', '.join(_REQUIRED)}, got {spec!r}")
    if unknown := [key for key in spec if key not in KEYS]:
        raise UserError(f"published: unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
    if missing := [key for key in _REQUIRED if key not in spec]:
        raise UserError(f"published: {dict(spec)} has no {missing[0]}; required are {', '.join(_REQUIRED)}")
    return f"published, {spec['table']} for {spec['run']} under {spec['our_attack']}"


def _value(config: Mapping[str, Any], path: str, where: str) -> Any:
    node: Any = config
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            raise UserError(f"{where}: when: unknown config key {path}")
        node = node[key]
    return node


def _choices(values: Mapping[str, Mapping[Any, None]]) -> str:
    """The fields in which several matches differ, with their values."""
    return " or ".join(f"{field} ({_listed(found)})" for field, found in values.items() if len(found) > 1)


def _listed(values: Any) -> str:
    return ", ".join(map(repr, values))


def _percent(low: float, high: float) -> tuple[float, float]:
    return 100 * low, 100 * high
