"""From a config to the records of an experiment: its runs in order, its evaluation, and when its data are read."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from advjax.experiment import defaults
from advjax.experiment.build_data import describe_data, load_data
from advjax.experiment.build_evaluation import build_evaluation
from advjax.experiment.build_run import build_run
from advjax.experiment.check_values import check_values
from advjax.experiment.spec import Data, DataFacts, Experiment, GivenNetwork, Run
from advjax.runtime.named_function import named_function
from advjax.types import UserError

_TABLES = {"augmentation", "before_attack", "targets", "copies", "attacks", "defenses"}
"""Keys under which names are described, besides the keys that they have by default."""


def complete(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """A config as plain data (tuples are lists), with the defaults of what it leaves out.

    This is what a workdir and a report store; completing it again changes nothing.

    Raises:
      UserError: a key that is unknown, or a part that is not described as it must be.
    """
    spec = defaults.changed(_plain(defaults.EXPERIMENT), plain(config))
    for part in ("data", "run", "evaluation"):
        if not isinstance(spec[part], Mapping):
            raise UserError(f"{part} must have keys of its own, got {spec[part]!r}")
    for name, run in spec["run"].items():
        if not isinstance(run, Mapping):
            raise UserError(f"run.{name} must describe a run, got {run!r}")
    spec["run"] = {name: defaults.changed(_plain(defaults.RUN), run) for name, run in spec["run"].items()}
    described = [("", spec, defaults.EXPERIMENT), ("data.", spec["data"], defaults.DATA)]
    described += [("evaluation.", spec["evaluation"], defaults.EVALUATION)]
    described += [(f"run.{name}.", run, defaults.RUN) for name, run in spec["run"].items()]
    for path, given, known in described:
        if unknown := sorted(given.keys() - known.keys()):
            raise UserError(f"unknown key {path}{unknown[0]}; known are {', '.join(known)}")
        for table in _TABLES & given.keys():
            _check_table(given[table], known[table], f"{path}{table}")
    check_values(spec)
    return spec


def from_config(
    config: ConfigDict | Mapping[str, Any],
    facts: DataFacts | None = None,
    *,
    given: Mapping[str, GivenNetwork] | None = None,
    data: Data | None = None,
) -> Experiment:
    """The experiment that a config describes.

    Args:
      config: complete or not.
      facts: what a workdir knows of the data; they are read for it if None.
      given: networks with their variables, by the names of the runs that they are instead of what the config describes.
      data: instead of those that the config names.

    Raises:
      UserError: something in the config is unknown or makes no sense, or the data cannot be read.
    """
    spec = complete(config)
    named = spec["runs"]
    if facts is None:
        loaded = data or load_data(spec["data"], spec["seed"])
        facts = describe_data(loaded, {name: spec["run"][name] for name in named}, spec["seed"])
    runs: dict[str, Run] = {}
    for name in named:
        runs[name] = build_run(name, spec, facts, runs, (given or {}).get(name))
    evaluation = build_evaluation(spec["evaluation"], runs, spec["run"])
    for defense in evaluation.defenses:
        defense.check(runs[defense.run].model, facts.image_shape)
    return Experiment(
        title=spec["title"],
        seed=spec["seed"],
        runs=tuple(runs.values()),
        facts=facts,
        load_data=lambda: data or load_data(spec["data"], spec["seed"]),
        evaluation=evaluation,
        mapping=spec["mapping"],
        split="train" if spec["data"]["test_on_training"] else "test",
        validates_on_test=bool(spec["data"]["validate_on_test"]),
        on_metrics=named_function(spec["on_metrics"], "on_metrics") if spec["on_metrics"] else None,
    )


def plain(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """A config as plain data, its references resolved and its tuples as lists."""
    if isinstance(config, ConfigDict):
        return json.loads(config.copy_and_resolve_references().to_json())
    return _plain(config)


def _check_table(given: Any, known: Mapping[str, Any], where: str) -> None:
    """Besides its own keys, a table holds descriptions by name, and no stray values."""
    if not isinstance(given, Mapping):
        raise UserError(f"{where} must have keys of its own, got {given!r}")
    for key, value in given.items():
        if key not in known and not isinstance(value, Mapping):
            raise UserError(f"{where}.{key} must have the arguments of {key!r}, got {value!r}")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
