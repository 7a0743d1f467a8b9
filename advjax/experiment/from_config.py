"""A whole config: its keys, its data, its runs in order, and its evaluation."""

import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from advjax.experiment import defaults
from advjax.experiment.build_data import load_data
from advjax.experiment.build_evaluation import build_evaluation
from advjax.experiment.build_run import build_run
from advjax.experiment.spec import Experiment, Run
from advjax.types import UserError

_TABLES = {"augmentation", "targets", "copies", "attacks", "defenses"}


def from_config(config: ml_collections.ConfigDict) -> Experiment:
    """The experiment that a config describes; loads its data.

    Raises:
      UserError: something in it is unknown or makes no sense.
    """
    spec = _complete(plain(config.copy_and_resolve_references()))
    described = spec["runs"]
    if not described or len(set(described)) != len(described):
        raise UserError(f"runs must name one or more different runs, got {described}")
    if unknown := [name for name in described if name not in spec["run"]]:
        raise UserError(f"runs names {unknown[0]!r}, but run describes only {', '.join(spec['run'])}")
    loaded = load_data(spec["data"], spec["seed"])
    runs: dict[str, Run] = {}
    for name in described:
        runs[name] = build_run(name, spec, loaded, runs)
    evaluation = build_evaluation(spec["evaluation"], runs, spec["run"])
    for defense in evaluation.defenses:
        defense.check(runs[defense.run].model, loaded.train.image_shape)
    return Experiment(spec["title"], spec["seed"], tuple(runs.values()), loaded, evaluation, spec["mapping"], spec)


def _complete(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config with defaults for what it leaves out; a key that has no default is a mistake."""
    spec = defaults.changed(defaults.EXPERIMENT, spec)
    for name, run in spec["run"].items():
        if not isinstance(run, Mapping):
            raise UserError(f"run.{name} must describe a run, got {run!r}")
    spec["run"] = {name: defaults.changed(defaults.RUN, run) for name, run in spec["run"].items()}
    described = [("", spec, defaults.EXPERIMENT), ("data.", spec["data"], defaults.DATA)]
    described += [("evaluation.", spec["evaluation"], defaults.EVALUATION)]
    described += [(f"run.{name}.", run, defaults.RUN) for name, run in spec["run"].items()]
    for path, given, known in described:
        if unknown := sorted(given.keys() - known.keys()):
            raise UserError(f"unknown key {path}{unknown[0]}; known are {', '.join(known)}")
        for table in _TABLES & given.keys():
            _check_table(given[table], known[table], f"{path}{table}")
    return spec


def _check_table(given: Any, known: Mapping[str, Any], where: str) -> None:
    """Beside its own keys, a table holds what it describes by name, and no values that nobody would look at."""
    for key, value in given.items():
        if key not in known and not isinstance(value, Mapping):
            raise UserError(f"{where}.{key} must have the arguments of {key!r}, got {value!r}")


def plain(config: ml_collections.ConfigDict) -> Any:
    """A config as plain data, its tuples as lists."""
    return json.loads(config.to_json())
