"""Finds the settings in which an experiment differs from the one that a published number is for.

Only settings that the number depends on count: the data, the attack, the defense, and the runs involved.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.report import ALL
from advjax.experiment import defaults

IGNORED = ("data.dir", "data.stream", "data.num_workers", "checkpoint", "log_every", "validate_loss")
"""Keys that do not affect results; those without the prefix "data." belong to a run."""


def differences(reference: Mapping[str, Any], config: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value in ``config``, for every key that an entry depends on and whose value differs; None if absent.

    Args:
      reference: the experiment that the entry was written for, as plain data.
      config: the experiment as it was run, as plain data.
      spec: an entry of ``published``.
    """
    wanted, found = (leaves(_parts(one, spec)) for one in (reference, config))
    paths = dict.fromkeys((*wanted, *found))
    # An absent key counts as different from one that is None.
    return {path: found.get(path) for path in paths if wanted.get(path, wanted) != found.get(path, wanted)}


def _parts(config: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a config that the row of an entry depends on, by key."""
    evaluation, attack = config["evaluation"], spec["our_attack"]
    sources: Sequence[str] = ()
    parts = {f"data.{key}": value for key, value in config["data"].items() if f"data.{key}" not in IGNORED}
    if attack != CLEAN:
        parts[f"evaluation.attacks.{attack}"] = evaluation["attacks"].get(attack)
        if not spec.get("adaptive", False):
            parts["evaluation.transfer_labels"] = evaluation["transfer_labels"]
            sources = _as_names(spec.get("made_on", evaluation["made_on"]))
    if (defense := spec.get("defense", "none")) != "none":
        parts[f"evaluation.defenses.{defense}"] = evaluation["defenses"].get(defense)
    if (subset := spec.get("subset", ALL)) != ALL:
        sources = (*sources, subset.removesuffix("_correct"))
    # A defended model is described by its run and its defense.
    undefended = [source.partition("+")[0] for source in sources]
    for name in with_dependencies(config["run"], (spec["run"], *undefended)):
        parts[f"run.{name}"] = _recipe(name, config)
    return parts


def _recipe(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """How a run was trained: as the config says, or as its checkpoint does.

    A checkpoint whose recipe cannot be read, or was for other data or with other earlier runs, is itself a difference.
    """
    run = config["run"][name]
    described, folder = _without_ignored(run), run.get("checkpoint")
    if not folder:
        return described
    stored = _stored_identity(folder)
    if stored is None:
        return {**described, "checkpoint": folder}
    data = [{f"data.{key}": value for key, value in part.items()} for part in (stored["data"], config["data"])]
    same = _without_ignored(data[0]) == _without_ignored(data[1]) and all(
        other in config["run"] and _without_ignored(needed["run"]) == _without_ignored(config["run"][other])
        for other, needed in stored["needs"].items()
    )
    return {**_without_ignored(stored["run"]), **({} if same else {"checkpoint": folder})}


def _stored_identity(folder: str) -> Mapping[str, Any] | None:
    """What ``run.json`` in the folder of a run says of its training, with the defaults of keys that it lacks."""
    try:
        found = json.loads(pathlib.Path(folder, "run.json").read_text(encoding="utf-8"))
        known = json.loads(json.dumps({"data": defaults.DATA, "run": defaults.RUN}))
        filled = {part: defaults.changed(known[part], found[part]) for part in known}
        needs = {name: {"run": defaults.changed(known["run"], run["run"])} for name, run in found["needs"].items()}
        return {**filled, "needs": needs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _without_ignored(described: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in described.items() if key not in IGNORED}


def with_dependencies(runs: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The named runs and every run that they start from, are attacked through, or take targets from."""
    found, waiting = [], list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name not in runs:
            continue
        found.append(name)
        run = runs[name]
        tables = (run["before_attack"], run["targets"])
        twins = (table.get(kind, {}).get("model") for table in tables for kind in table["order"])
        waiting += [other for other in (run["model"].get("base"), run["start"], *twins) if other]
        waiting += [part["made_on"] for part in (run["attack"], run["copies"]) if part and part.get("made_on")]
    return found


def _as_names(given: str | Sequence[str]) -> Sequence[str]:
    return (given,) if isinstance(given, str) else given


def leaves(node: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a nested mapping by their dotted paths."""
    return dict(_leaves("", node))


def _leaves(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(f"{path}.{key}" if path else key, value)
    else:
        yield path, node
