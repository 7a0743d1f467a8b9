"""What an entry, one published table or figure, is reproduced with: configs, their variants, and their sizes."""

import copy
import functools
import json
import runpy
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from advjax.experiment.from_config import complete, plain
from advjax.papers.join import Spec
from advjax.runtime.named_function import INSTALLED_CONFIGS, make_configs_importable
from advjax.types import UserError

__all__ = ["TINY", "Entry", "FigurePlan", "Lead", "Part", "Scale", "build", "full_config"]


_FEW = 100


class Part(NamedTuple):
    """One experiment of an entry; entries that have the same part share it."""

    name: str
    config: str
    """Path below the folder of configs, without the suffix."""
    argument: str = ""
    """Of its ``get_config``."""
    changes: Mapping[str, Any] = {}
    """Config key -> value; ``*`` stands for every key, as in ``run.*.epochs``.  They make the variant that published
    numbers are for, and do not say how large it is run."""
    specs: tuple[Spec, ...] | None = None
    """What its results are compared with, as in `advjax.papers.join`; None for ``published`` of the config."""
    unpublished: tuple[Spec, ...] = ()
    """What is shown besides: results that a figure has without numbers, or ours alone."""
    auto_attack: bool = True
    """Whether its networks are put under AutoAttack, too; not if another part of the entry does so."""


class Scale(NamedTuple):
    """How large the experiments of an entry are run; the defaults are the paper's size."""

    width: float = 1.0
    """Factor on the width of every network that has one."""
    share: float = 1.0
    """Factor on the training images of every run."""
    epochs: float = 1.0
    """Factor on the epochs of every run, rounded, at least one."""
    changes: Mapping[str, Any] = {}
    """As in `Part`, after those of the part; keys that a config does not have are left out."""
    of_config: Mapping[str, Mapping[str, Any]] = {}
    """Config -> further changes of the parts that are made with it."""
    num_examples: int | None = None
    """Test images under the attacks of the config; None for what the config says."""
    num_stochastic: int | None = None
    """The same where an attack goes through many draws of a defense."""
    num_auto_attack: int = 1000
    """Test images under AutoAttack; 0 for none."""
    most_steps: int | None = None
    """Upper limit on the steps, restarts and queries of every attack, with few validation images; for tests."""


class FigurePlan(NamedTuple):
    """How a figure is drawn from the cells and curves of its entry."""

    kind: str
    """"points": a column for each attack, a mark for each network; "sweep": accuracy over a number in the name of the
    training; "curves": accuracy and losses over epochs; "images": a row of images for each attack."""
    caption: str
    sweep: str = ""
    """For "sweep": what comes before the number in the name of the training, as in ``fixed_mix:lam``."""
    attacks: tuple[str, ...] = ()
    """For "images": our attacks, which each network of the entry is shown under."""
    networks: Mapping[str, str] = {}
    """For "images" and "points": run -> what to call it, where its name, or that of the published network, would
    mislead."""
    columns: tuple[str, ...] = ()
    """For "points": published attacks in the order of their columns, where it is not that of the cells."""
    reference: str = ""
    """For "points": the run that is drawn as a dashed line in each column."""


class Lead(NamedTuple):
    """A difference between two networks that the text of a paper names, where it prints no numbers of either."""

    dataset: str
    """Their images, as in `advjax.papers.published.Published`; so are the names below."""
    attack: str
    leader: str
    behind: str
    points: float
    """Accuracy of the first minus that of the second, in percentage points."""


class Entry(NamedTuple):
    """A table or figure of a paper."""

    name: str
    title: str
    tables: tuple[str, ...]
    """The published tables that it is compared with, by their names in `advjax.papers.published`."""
    parts: tuple[Part, ...]
    scales: Mapping[str, Scale]
    """"full" is the paper's size."""
    hours: Mapping[str, float]
    """Scale -> estimated hours of one core for one seed; not a measurement."""
    figure: FigurePlan | None = None
    note: str = ""
    """What a reader must know, such as that the data are a stand-in."""
    leads: tuple[Lead, ...] = ()
    """What the text says of its networks instead of numbers."""


TINY = Scale(
    width=1 / 16,
    share=0.01,
    changes={
        "run.*.num_steps": 2,
        "run.*.batch_size": 8,
        "evaluation.batch_size": 64,
        "evaluation.defenses.*.num_draws": 2,
        "evaluation.defenses.*.num_samples": 1,
        "run.*.model.num_copies": 2,
        "run.*.model.stage_sizes": (1, 1, 1, 1),
    },
    num_examples=16,
    num_auto_attack=0,
    most_steps=1,
)
"""The smallest size: it shows that an entry runs, and nothing else."""


def full_config(part: Part) -> dict[str, Any]:
    """The complete config of a part at the paper's size.

    Raises:
      UserError: there is no such config, or a key of ``changes`` is unknown.
    """
    return copy.deepcopy(_full_config(part.name, part.config, part.argument, json.dumps(part.changes)))


@functools.lru_cache(maxsize=256)
def _full_config(name: str, config: str, argument: str, changes: str) -> dict[str, Any]:
    changed = plain(_shipped(name, config, argument))
    if missed := _apply(changed, json.loads(changes)):
        raise UserError(f"part {name}: unknown config key {missed[0]}")
    return complete(changed)


def build(part: Part, scale: Scale, seed: int, directories: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The complete config of a part at a scale.

    Args:
      part: of an entry.
      scale: one of its scales.
      seed: of the experiment.
      directories: name of a data set, such as "folder" -> where it lies.

    Raises:
      UserError: as `full_config`, or something in it makes no sense.
    """
    config = full_config(part)
    config["seed"] = seed
    config["data"]["dir"] = (directories or {}).get(config["data"]["name"], config["data"]["dir"])
    for run in config["run"].values():
        if "width" in run["model"]:
            run["model"]["width"] *= scale.width
        run["train_fraction"] = float(run["train_fraction"]) * scale.share
        run["epochs"] = max(1, round(run["epochs"] * scale.epochs))
    _apply(config, {**scale.changes, **scale.of_config.get(part.config, {})}, lenient=True)
    evaluation = config["evaluation"]
    most = scale.num_stochastic if evaluation["defenses"]["order"] else None
    if (count := scale.num_examples if most is None else most) is not None:
        evaluation["num_examples"] = min(evaluation["num_examples"] or count, count)
    if scale != Scale():
        # Report cards are about whether attacks were run well, not about the paper.
        evaluation["num_checked"] = 0
        evaluation["curve"] = None
    if scale.most_steps is not None:
        _limit(config, scale.most_steps)
        config["data"]["num_validation"] = min(config["data"]["num_validation"], _FEW)
    return complete(config)


def _shipped(name: str, config: str, argument: str) -> ConfigDict:
    make_configs_importable()
    path = INSTALLED_CONFIGS / f"{config}.py"
    if not path.is_file():
        raise UserError(f"part {name}: no installed config {config}")
    get_config = runpy.run_path(str(path))["get_config"]
    return get_config(argument) if argument else get_config()


def _apply(config: dict[str, Any], changes: Mapping[str, Any], lenient: bool = False) -> list[str]:
    """Sets keys in place; returns those that are not there.  Lenient: only keys that exist are set."""
    missed = []
    for path, value in changes.items():
        *parents, last = path.split(".")
        nodes = [config]
        for key in parents:
            children = [node.values() if key == "*" else (node.get(key),) for node in nodes]
            nodes = [child for found in children for child in found if isinstance(child, dict)]
        nodes = [node for node in nodes if last in node] if lenient else nodes
        for node in nodes:
            node[last] = copy.deepcopy(value)
        if not nodes:
            missed.append(path)
    return missed


def _limit(node: Any, most: int) -> None:
    """Limits the steps of every attack in a config, which is known by its threat model."""
    for value in node.values() if isinstance(node, Mapping) else ():
        if isinstance(value, dict) and "epsilon" in value:
            for key in ("num_steps", "num_restarts", "num_queries", "binary_search_steps"):
                if key in value:
                    value[key] = min(value[key], most)
        if isinstance(value, dict) and "radius" in value and "num_steps" in value:
            value["num_steps"] = min(value["num_steps"], most)
        _limit(value, most)
