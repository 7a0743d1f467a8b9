"""The size of an experiment in plain words, beside the paper's."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from advjax.papers.config_diff import IGNORED, leaves
from advjax.papers.recipe import full_config
from advjax.papers.running import Job, under_auto_attack

_SAID = (".model.width", ".epochs", ".num_steps", ".train_fraction")
"""Ends of the config keys that have words of their own."""


def in_words(parts: Sequence[Sequence[Job]]) -> list[str]:
    """Network width, share of the data, epochs, images and seeds, the paper's in brackets: a line for all parts alike.

    Args:
      parts: of the entry, each as its jobs, one for each seed.
    """
    lines: dict[str, dict[str, None]] = {}
    for job, *others in parts:
        full = full_config(job.part)
        runs = [_run(name, job, full) for name in job.config["runs"]]
        evaluation, whole = job.config["evaluation"], full["evaluation"]["num_examples"]
        images = f"{_images(evaluation['num_examples'])} test images [{_images(whole)}]"
        if job.config["data"]["validate_on_test"]:
            images += " (all after single epochs)"
        standard = f", {_auto_attack(job)}" if job.has_auto_attack else ", no AutoAttack"
        said = [*runs, f"{images}{standard}", _seeds([job, *others]), *_others(job, full)]
        said += [] if others else _missing(job)
        # Several of the parts may be the same experiment.
        lines.setdefault("; ".join(said), {})[job.part.name] = None
    return [f"{', '.join(names)}: {said}" for said, names in lines.items()]


def notes(jobs: Iterable[Job]) -> list[str]:
    """What the reports of the jobs say about their images, such as that they are training images, once each."""
    found: dict[str, dict[str, None]] = {}
    for job in jobs:
        for report, under in zip(job.reports(), ("", " (AutoAttack)"), strict=True):
            for note in report.notes if report else ():
                found.setdefault(note, {})[f"{job.part.name}{under}"] = None
    return [f"{', '.join(names)}: {note}" for note, names in found.items()]


def _missing(job: Job) -> Iterator[str]:
    """What of a job has not been run, so that its size is only what it would be."""
    report, standard = job.reports()
    if report is None:
        yield "not evaluated yet"
    elif job.has_auto_attack and standard is None:
        yield "AutoAttack has not been run yet"


def _others(job: Job, full: Mapping[str, Any]) -> Iterator[str]:
    """Every other number of networks, training and defenses that a scale has changed."""
    ours, theirs = (leaves(_sized(config)) for config in (job.config, full))
    for path, value in ours.items():
        if value != theirs.get(path) and not path.endswith(_SAID):
            yield f"{path} {value} [{theirs.get(path)}]"


def _sized(config: Mapping[str, Any]) -> dict[str, Any]:
    runs = {name: config["run"][name] for name in config["runs"]}
    return {"run": runs, "defenses": config["evaluation"]["defenses"], "image_size": config["data"]["image_size"]}


def _seeds(jobs: Sequence[Job]) -> str:
    done, asked = sum(job.is_done for job in jobs), len(jobs)
    if asked == 1:
        return "1 seed"
    return f"{asked} seeds" if done == asked else f"{done} of {asked} seeds"


def _auto_attack(job: Job) -> str:
    """Its threat model, which need not be that of the attacks beside it, and its images."""
    evaluation = under_auto_attack(job.config, job.scale)["evaluation"]
    attack = evaluation["attacks"]["auto_attack"]
    return f"AutoAttack ({attack['norm']} {attack['epsilon']}) on {evaluation['num_examples']:,}"


def is_reduced(job: Job) -> bool:
    """Whether a job is smaller than the paper's experiment, in its networks, its training, or its test images."""
    full, config = full_config(job.part), job.config
    if list(config["runs"]) != list(full["runs"]):
        return True
    runs = [(config["run"][name], full["run"][name]) for name in config["runs"]]
    kept = [
        {key: value for key, value in part["data"].items() if f"data.{key}" not in IGNORED} for part in (config, full)
    ]
    images = [part["evaluation"]["num_examples"] for part in (config, full)]
    return any(ours != theirs for ours, theirs in runs) or kept[0] != kept[1] or images[0] != images[1]


def _run(name: str, job: Job, full: Mapping[str, Any]) -> str:
    ours, theirs = job.config["run"][name], full["run"][name]
    said = [f"{_length(ours)} [{_length(theirs)}]"]
    if "width" in ours["model"]:
        said.append(f"width {ours['model']['width']:g} [{theirs['model']['width']:g}]")
    counted = f" ({count:,} images)" if (count := _num_training(job, name)) else ""
    splits = [config["data"]["train_split"] for config in (job.config, full)]
    images, whole = ("the training images", "") if splits[0] == splits[1] else (splits[0], f" of {splits[1]}")
    said.append(f"{_percent(ours)} of {images}{counted} [{_percent(theirs)}{whole}]")
    return f"{name} {', '.join(said)}"


def _length(run: Mapping[str, Any]) -> str:
    return f"{run['num_steps']} steps" if run["num_steps"] else f"{run['epochs']} epochs"


def _percent(run: Mapping[str, Any]) -> str:
    return f"{100 * float(run['train_fraction']):g}%"


def _images(count: int) -> str:
    return f"{count:,}" if count else "all"


def _num_training(job: Job, run: str) -> int | None:
    path = job.folder / "data.json"
    if not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8"))["num_examples"].get(run)
