"""Published numbers, and the rows of a report that measure the same.

Which ones those are is said in ``published`` of the config, a sequence of mappings with

  ``table``: one of `published.TABLES`.
  ``model``, ``dataset``, ``training``, ``attack``: as published, as many as select one accuracy of the table.
  ``run``, ``our_attack``: of the row; the attack by its name in the config, or "clean".
  ``defense``, ``subset``, ``adaptive``: of the row; without them "none", "all" and False.
  ``made_on``, ``labels``, ``protocol``, ``eot_samples``: of the row, where several are left without.
  ``when``: keys of the config and the values that they must have, as in ``{"run.mixed.epochs": 10}``, where the number
    is for other values than those of the config.

No override puts a number beside one that it is no longer about: `publish` writes down what the experiment was when the
entries were made, in ``published_for``, and an entry holds only while all that its row depends on is the same, or as
``when`` says: the data, the run, the runs that it starts from, attacks or asks, the attack and the defence.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ml_collections import ConfigDict

from advjax.evaluation.attacker_knowledge import EVERYTHING, NOTHING, OBLIVIOUS, SCORES, TRANSFER
from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.report import ALL, Row
from advjax.evaluation.statistics import wilson_interval
from advjax.papers.described import differences
from advjax.papers.published import Published, read
from advjax.reporting.summary import model_name
from advjax.types import UserError

__all__ = ["KEYS", "Accuracy", "Pair", "applicable", "join", "publish", "select"]

Spec: TypeAlias = Mapping[str, Any]
"""An entry of ``published`` in a config."""

ACCURACY = "accuracy"
"""The one metric that a report has as well."""
_AS_PUBLISHED = ("model", "dataset", "training", "attack")
_NEEDED = ("table", "run", "our_attack")
_OF_THE_ROW = {"defense": "none", "subset": ALL, "adaptive": False}
_OF_SEVERAL_ROWS = ("made_on", "labels", "protocol", "eot_samples")
KEYS = (*_NEEDED, *_AS_PUBLISHED, *_OF_THE_ROW, *_OF_SEVERAL_ROWS, "when")
"""Keys of an entry."""
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
    """95 % Wilson interval over the test images, in percent; None where their number is not known."""
    n: int | None


class Pair(NamedTuple):
    """A published accuracy and ours."""

    published: Published
    theirs: Accuracy
    model: str
    """Our run, and its defence."""
    attack: str
    """Its name in our config, or "clean"."""
    subset: str
    kind: str
    """"clean", "noise", "transfer", "oblivious" or "adaptive", as the report has it.  An adaptive attack that was given
    other labels than the true ones is "adaptive, predicted labels"."""
    ours: Accuracy | None
    """None if the report has no such row."""

    @property
    def difference(self) -> float | None:
        """Ours less theirs, in points."""
        return self.ours.value - self.theirs.value if self.ours else None

    @property
    def overlap(self) -> bool | None:
        """Whether the intervals have a number in common; None unless both are known."""
        if self.ours is None or self.ours.interval is None or self.theirs.interval is None:
            return None
        (low, high), (other_low, other_high) = self.ours.interval, self.theirs.interval
        return max(low, other_low) <= min(high, other_high)


def join(rows: Sequence[Row], specs: Sequence[Spec]) -> list[Pair]:
    """Ours beside theirs, in the order of ``specs``.

    Args:
      rows: of a report.
      specs: ``published`` of its config.

    Raises:
      UserError: an entry has unknown keys or lacks one, selects no or several accuracies of its table, or selects
        several rows.
    """
    return [_pair(rows, spec) for spec in specs]


def select(spec: Spec) -> Published:
    """The one published accuracy that an entry of ``published`` is about.

    Raises:
      UserError: as for `join`.
    """
    where = _checked(spec)
    left = [entry for entry in read(spec["table"]) if entry.metric == ACCURACY]
    for field in _AS_PUBLISHED:
        if field in spec:
            there = list(dict.fromkeys(getattr(entry, field) for entry in left))
            left = [entry for entry in left if getattr(entry, field) == spec[field]]
            if not left:
                raise UserError(f"{where}: no accuracy with {field} {spec[field]!r}; there are {_listed(there)}")
    if len(left) > 1:
        values = {field: dict.fromkeys(getattr(entry, field) for entry in left) for field in _AS_PUBLISHED}
        raise UserError(f"{where}: {len(left)} accuracies; name {_choices(values)}")
    return left[0]


def publish(config: ConfigDict, entries: Iterable[Spec]) -> None:
    """Gives a config its ``published`` entries, which are about the experiment that it describes at this moment."""
    plain = json.loads(config.to_json())
    evaluation = {key: plain["evaluation"][key] for key in ("attacks", "made_on", "transfer_labels", "defenses")}
    config.published = tuple(entries)
    config.published_for = {"data": plain["data"], "run": plain["run"], "evaluation": evaluation}


def applicable(
    specs: Sequence[Spec], config: Mapping[str, Any], described: Mapping[str, Any] | None = None
) -> tuple[list[Spec], list[str]]:
    """The entries that are about the experiment, and for each of the others why not, as in "run.base.num_steps is 200".

    Args:
      specs: ``published`` of a config.
      config: the experiment as it was run, in plain data.
      described: ``published_for`` of the config that ``specs`` are from; default: that of ``config``.  Where it is
        empty, ``when`` alone decides.

    Raises:
      UserError: a mistake in an entry, or ``when`` names a key that the config does not have.
    """
    described = config.get("published_for") if described is None else described
    held, reasons = [], []
    for spec in specs:
        where, when = _checked(spec), spec.get("when", {})
        found = {path: _value(config, path, where) for path in when}
        unmet = {path: value for path, value in found.items() if value != when[path]}
        if described:
            others = differences(described, config, spec)
            unmet |= {path: value for path, value in others.items() if path not in when}
        if unmet:
            first, *more = (f"{path} is {value}" for path, value in unmet.items())
            reasons.append(", ".join([first, *more[:2], *([f"and {len(more) - 2} more"] if more[2:] else [])]))
        else:
            held.append(spec)
    return held, reasons


def _pair(rows: Sequence[Row], spec: Spec) -> Pair:
    published, row = select(spec), _row(rows, spec)
    interval = None
    if published.n is not None:
        interval = _percent(*wilson_interval(round(published.value / 100 * published.n), published.n))
    asked = {**_OF_THE_ROW, **spec}
    return Pair(
        published=published,
        theirs=Accuracy(published.value, interval, published.n),
        model=model_name(asked["run"], asked["defense"]),
        attack=asked["our_attack"],
        subset=asked["subset"],
        kind=_kind(row) if row else _kind_asked(asked),
        ours=_accuracy(row),
    )


def _accuracy(row: Row | None) -> Accuracy | None:
    if row is None or row["accuracy"] is None:
        return None
    return Accuracy(100 * row["accuracy"], _percent(row["low"], row["high"]), row["n"])


def _row(rows: Sequence[Row], spec: Spec) -> Row | None:
    asked = {**_OF_THE_ROW, **{key: spec[key] for key in ("run", *_OF_THE_ROW, *_OF_SEVERAL_ROWS) if key in spec}}
    asked["attack"] = spec["our_attack"]
    found = [row for row in rows if all(row[key] == value for key, value in asked.items())]
    if len(found) > 1:
        values = {field: dict.fromkeys(row[field] for row in found) for field in _OF_SEVERAL_ROWS}
        raise UserError(f"{_checked(spec)}: {len(found)} rows of the report; name {_choices(values)}")
    return found[0] if found else None


def _kind(row: Row) -> str:
    kind = _KINDS[row["knowledge"]]
    return f"{kind}, predicted labels" if kind == "adaptive" and row["labels"] == "predicted" else kind


def _kind_asked(asked: Mapping[str, Any]) -> str:
    """What the row would have been."""
    if asked["our_attack"] == CLEAN:
        return "clean"
    if not asked["adaptive"]:
        return "transfer"
    return "adaptive, predicted labels" if asked.get("labels") == "predicted" else "adaptive"


def _checked(spec: Any) -> str:
    """What to call an entry in an error; refuses one that is no entry."""
    if not isinstance(spec, Mapping):
        raise UserError(f"published: {spec!r} is no mapping; it needs {', '.join(_NEEDED)}")
    if unknown := [key for key in spec if key not in KEYS]:
        raise UserError(f"published: unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
    if missing := [key for key in _NEEDED if key not in spec]:
        raise UserError(f"published: {dict(spec)} has no {missing[0]}; it needs {', '.join(_NEEDED)}")
    return f"published, {spec['table']} for {spec['run']} under {spec['our_attack']}"


def _value(config: Mapping[str, Any], path: str, where: str) -> Any:
    node: Any = config
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            raise UserError(f"{where}: when: the config has no key {path}")
        node = node[key]
    return node


def _choices(values: Mapping[str, Mapping[Any, None]]) -> str:
    """The fields that tell some things apart, with their values."""
    return " or ".join(f"{field} ({_listed(found)})" for field, found in values.items() if len(found) > 1)


def _listed(values: Any) -> str:
    return ", ".join(map(repr, values))


def _percent(low: float, high: float) -> tuple[float, float]:
    return 100 * low, 100 * high
