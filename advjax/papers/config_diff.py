"""Finds the settings in which an experiment differs from the one that a published number is for.

Only settings that the number depends on count: the data, the attack, the defense, and the runs involved.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.report import ALL

IGNORED = ("data.dir", "data.stream", "data.num_workers", "checkpoint", "log_every")
"""Keys that do not affect results; those without the prefix "data." belong to a run."""


def differences(reference: Mapping[str, Any], config: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value in ``config``, for every key that an entry depends on and whose value differs; None if absent.

    Args:
      reference: the experiment that the entry was written for, as plain data.
      config: the experiment as it was run, as plain data.
      spec: an entry of ``published``.
    """
    wanted, found = (dict(_leaves("", _parts(one, spec))) for one in (reference, config))
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
    for name in _with_dependencies(config["run"], (spec["run"], *sources)):
        parts[f"run.{name}"] = {key: value for key, value in config["run"][name].items() if key not in IGNORED}
    return parts


def _with_dependencies(runs: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The named runs and every run that they start from, are attacked through, or take targets from."""
    found, waiting = [], list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name not in runs:
            continue
        found.append(name)
        run = runs[name]
        twins = (run["targets"].get(kind, {}).get("model") for kind in run["targets"]["order"])
        waiting += [other for other in (run["model"].get("base"), run["start"], *twins) if other]
        waiting += [part["made_on"] for part in (run["attack"], run["copies"]) if part and part.get("made_on")]
    return found


def _as_names(given: str | Sequence[str]) -> Sequence[str]:
    return (given,) if isinstance(given, str) else given


def _leaves(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(f"{path}.{key}" if path else key, value)
    else:
        yield path, node
