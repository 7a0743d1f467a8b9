"""Checks of the values in a complete config: types, ranges and names, before anything is built from them."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.scored_model import NO_DEFENSE
from advjax.evaluation.summaries import WORST_CASE
from advjax.experiment import defaults
from advjax.experiment.presets import PAPER, PRESETS
from advjax.experiment.registry import number
from advjax.runtime.devices import MAPPINGS
from advjax.types import UserError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,63}")
"""Names of runs, attacks and defenses become names of files and folders."""
_TAKEN = {
    "run": ("copies", "unfinished", *(name for name in PRESETS if name != PAPER)),
    "evaluation.attacks": (CLEAN, WORST_CASE),
    "evaluation.defenses": (NO_DEFENSE,),
}
"""Names that reports and workdirs use for something else."""
_WORDS = ("name", "norm", "base", "made_on", "labels", "returns")
"""Keys whose values are words wherever they occur."""
_LARGEST_SIDE = 4096
_LARGEST_BATCH = 2**16
_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda value: 0 <= value < 2**32, "between 0 and 4294967295"),
    "data.num_workers": (lambda value: value >= 1, "at least 1"),
    "data.num_validation": (lambda value: value >= 0, "0 or more"),
    "data.per_class": (lambda value: value >= 0, "0 or more"),
    "data.num_folds": (lambda value: value >= 0, "0 or more"),
    "data.fold": (lambda value: value >= 0, "0 or more"),
    "data.image_size": (lambda value: 0 <= value <= _LARGEST_SIDE, f"between 0 and {_LARGEST_SIDE}"),
    "run.batch_size": (lambda value: 1 <= value <= _LARGEST_BATCH, f"between 1 and {_LARGEST_BATCH}"),
    "run.steps_per_call": (lambda value: value >= 1, "at least 1"),
    "run.gradient_accumulation": (lambda value: value >= 1, "at least 1"),
    "run.epochs": (lambda value: value >= 0, "0 or more"),
    "run.num_steps": (lambda value: value >= 0, "0 or more"),
    "run.weight_perturbation": (lambda value: 0 <= value < math.inf, "0 or more"),
    "run.optimizer.weight_decay": (lambda value: 0 <= value < math.inf, "0 or more"),
    "run.optimizer.clip": (lambda value: 0 <= value < math.inf, "0 or more"),
    "evaluation.batch_size": (lambda value: 1 <= value <= _LARGEST_BATCH, f"between 1 and {_LARGEST_BATCH}"),
    "evaluation.num_examples": (lambda value: value >= 0, "0 or more"),
    "evaluation.num_pictures": (lambda value: value >= 0, "0 or more"),
    "evaluation.num_checked": (lambda value: value >= 0, "0 or more"),
}


def check_values(config: Mapping[str, Any]) -> None:
    """Refuses values that no experiment can have.

    Args:
      config: a complete config.

    Raises:
      UserError: a value of the wrong type or out of range, or a name that cannot be a file name.
    """
    _check_part(config, defaults.EXPERIMENT, "", "")
    if config["mapping"] not in MAPPINGS:
        raise UserError(f"mapping must be one of {', '.join(MAPPINGS)}, got {config['mapping']!r}")
    for name, run in config["run"].items():
        _check_part(run, defaults.RUN, f"run.{name}.", "run.")
        _check_names(run["copies"]["order"], f"run.{name}.copies")
    _check_names(config["run"], "run")
    _check_runs(config["runs"], config["run"])
    for table in ("attacks", "defenses"):
        _check_names(config["evaluation"][table]["order"], f"evaluation.{table}")
    _check_words({key: config[key] for key in ("run", "evaluation")}, "")


def _check_part(given: Mapping[str, Any], known: Mapping[str, Any], path: str, kind: str) -> None:
    """Checks every value that has a default; ``kind`` is the path without the name of a run."""
    for key, default in known.items():
        value, where = given.get(key, default), f"{path}{key}"
        if isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                raise UserError(f"{where} must have keys of its own, got {value!r}")
            _check_part(value, default, f"{where}.", f"{kind}{key}.")
        elif default is None:
            if value is not None and not isinstance(value, Mapping):
                raise UserError(f"{where} must be None or a description with a name, got {value!r}")
        else:
            _check_type(value, default, where)
            test, allowed = _RANGES.get(f"{kind}{key}", (None, ""))
            if test is not None and not test(number(value)):
                raise UserError(f"{where} must be {allowed}, got {value!r}")


def _check_type(value: Any, default: Any, where: str) -> None:
    """A value has the type of its default; fractions such as "8/255" count as numbers."""
    if isinstance(default, bool):
        right, wanted = isinstance(value, bool | int), "True or False"
    elif isinstance(default, int):
        right, wanted = isinstance(value, int) and abs(value) < 2**63, "a whole number"
    elif isinstance(default, float):
        right, wanted = _is_finite(value), "a finite number"
    elif isinstance(default, str):
        # Transfer attacks may have several sources.
        names = value if where == "evaluation.made_on" and isinstance(value, list) else [value]
        right, wanted = all(isinstance(name, str) for name in names), "a string"
    else:
        right, wanted = isinstance(value, list | tuple), "a list"
    if not right:
        raise UserError(f"{where} must be {wanted}, got {value!r}")


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return math.isfinite(number(value))
    except (ValueError, OverflowError):
        return False


def _check_words(value: Any, path: str) -> None:
    """Keys such as ``name`` and ``norm`` have words for values, at any depth, and an ``order`` consists of words."""
    # Runs, and what has an order, may be named like one of these keys: "base" is the usual name of a run.
    names_are_free = isinstance(value, Mapping) and (path == "run" or "order" in value)
    for key, entry in value.items() if isinstance(value, Mapping) else ():
        where = f"{path}.{key}" if path else key
        is_word = entry is None or isinstance(entry, str) or where == "evaluation.made_on"
        if key in _WORDS and not (is_word or (names_are_free and isinstance(entry, Mapping))):
            raise UserError(f"{where} must be a string, got {entry!r}")
        if key == "order" and not (isinstance(entry, list | tuple) and all(isinstance(name, str) for name in entry)):
            raise UserError(f"{where} must be a list of names, got {entry!r}")
        _check_words(entry, where)


def _check_runs(named: Any, described: Mapping[str, Any]) -> None:
    if not named or not all(isinstance(name, str) for name in named) or len(set(named)) != len(named):
        raise UserError(f"runs must name one or more different runs, got {named}")
    if unknown := [name for name in named if name not in described]:
        raise UserError(f"runs names {unknown[0]!r}, but run describes only {', '.join(described)}")


def _check_names(names: Any, where: str) -> None:
    if repeated := [name for name in names if list(names).count(name) > 1]:
        raise UserError(f"{where}: {repeated[0]!r} is named twice")
    if taken := [name for name in names if name in _TAKEN.get(where, ())]:
        raise UserError(f"{where}: {taken[0]!r} cannot be a name: advjax uses it for something else; choose another")
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(
                f"{where}: {name!r} cannot be a name: names consist of letters, digits and _ . + = -, "
                "begin with a letter, a digit or _, and have at most 64 characters"
            )
