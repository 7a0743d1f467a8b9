"""Training and evaluating what an entry needs, once: parts and base networks are shared between entries.

::

    <workdir>/parts/<part>-<digest>/     a workdir of `advjax.jobs`, with standard/ for AutoAttack
    <workdir>/trained/<digest>.json      which folder holds a run, so that no other part trains it again
    <workdir>/pages/                     see `advjax.papers.page`
"""

import copy
import functools
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from advjax.data.image_list import list_images
from advjax.evaluation.report import Report, read_report
from advjax.experiment.from_config import complete
from advjax.experiment.presets import with_preset
from advjax.jobs.evaluate import evaluate_experiment
from advjax.jobs.train import train
from advjax.jobs.workdir import locked
from advjax.papers.config_diff import with_dependencies
from advjax.papers.recipe import Entry, Part, Scale, build
from advjax.runtime.devices import Devices, mesh
from advjax.runtime.files import write_atomically
from advjax.types import UserError

STANDARD = "standard"
"""Preset, and folder of its report: AutoAttack."""
_NO_DIFFERENCE = ("title", "published", "published_for")
_PLACES = ("dir", "stream", "num_workers")


class Job(NamedTuple):
    """One part of an entry at a scale, with one seed."""

    part: Part
    scale: Scale
    config: dict[str, Any]
    """Complete, without the checkpoints of shared runs."""
    folder: pathlib.Path

    @property
    def workdir(self) -> pathlib.Path:
        """The folder of all parts, and of what they share."""
        return self.folder.parents[1]

    @property
    def has_auto_attack(self) -> bool:
        """Whether the networks are put under AutoAttack, too."""
        return self.part.auto_attack and self.scale.num_auto_attack > 0

    @property
    def is_done(self) -> bool:
        """Whether all its reports are there; the name of the folder says that they are about this config."""
        folders = ("", STANDARD) if self.has_auto_attack else ("",)
        return all((self.folder / name / "report.json").exists() for name in folders)

    def reports(self) -> tuple[Report | None, Report | None]:
        """The report under the attacks of the config, and that under AutoAttack; None where there is none yet."""
        paths = [self.folder / name / "report.json" for name in ("", STANDARD)]
        found = [read_report(path) if path.exists() else None for path in paths]
        return found[0], found[1]


def jobs_of(
    entry: Entry, scale: str, workdir: str | os.PathLike[str], seeds: int, directories: Mapping[str, str] | None = None
) -> list[Job]:
    """The jobs of an entry, one seed after the other.

    Raises:
      UserError: the entry has no such scale, a config makes no sense, or a folder of images cannot be listed.
    """
    if scale not in entry.scales:
        raise UserError(f"{entry.name} has no scale {scale!r}; it has {', '.join(entry.scales)}")
    made = []
    for seed in range(seeds):
        for part in entry.parts:
            size = entry.scales[scale]
            config = build(part, size, seed, directories)
            made.append(Job(part, size, config, _folder(pathlib.Path(workdir, "parts"), part, _identity(config, size))))
    return made


def _folder(parts: pathlib.Path, part: Part, identity: Mapping[str, Any]) -> pathlib.Path:
    """The folder of a part; if there is none, that of a part with another name that is the same experiment."""
    own = parts / f"{part.name}-{_digest(identity)}"
    others = [] if own.exists() else sorted(parts.glob(f"*-{_digest(identity)}"))
    return others[0] if others else own


def run_job(
    job: Job,
    notify: Callable[[str], None],
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Trains and evaluates a job, as far as that has not been done.

    Raises:
      UserError: something in its config makes no sense, its data cannot be read, or another process is working on it.
      PreemptedError: asked to stop; the same call resumes.
    """
    if job.is_done:
        return
    config = with_shared_runs(job)
    devices = Devices(mesh(), config["mapping"])
    with locked(job.folder):
        started = time.monotonic()
        remember = functools.partial(_remember, job)
        train(config, str(job.folder), devices, notify, stop_requested, remember)
        if not (job.folder / "report.json").exists():
            evaluate_experiment(config, str(job.folder), devices, notify, stop_requested)
        if job.has_auto_attack and not (job.folder / STANDARD / "report.json").exists():
            standard = under_auto_attack(config, job.scale)
            evaluate_experiment(standard, str(job.folder), devices, notify, stop_requested, str(job.folder / STANDARD))
        notify(f"{job.part.name}: done in {(time.monotonic() - started) / 60:.1f} min, {job.folder}")


def under_auto_attack(config: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """The complete config of a job with AutoAttack in place of its attacks, on as many images as the scale says."""
    standard = with_preset(complete(config), STANDARD)
    evaluation = standard["evaluation"]
    asked = evaluation["num_examples"]
    if evaluation["defenses"]["order"]:
        # The authors' version for defenses with randomness.
        evaluation["attacks"]["auto_attack"]["version"] = "rand"
    evaluation.update(
        num_examples=min(asked or scale.num_auto_attack, scale.num_auto_attack),
        num_checked=0,
        save_adversarial="",
    )
    return standard


def with_shared_runs(job: Job) -> dict[str, Any]:
    """The config of a job, with the runs that another part has trained as checkpoints."""
    config = copy.deepcopy(job.config)
    for name in config["runs"]:
        folder = folder_of_run(job, name)
        if folder != job.folder / name:
            config["run"][name]["checkpoint"] = str(folder.absolute())
    return config


def folder_of_run(job: Job, name: str) -> pathlib.Path:
    """Where a run is trained: in the folder of the job, or in that of another part, which has trained it before.

    A run that was begun in the folder of the job goes on there.
    """
    own, found = job.folder / name, job.workdir / "trained" / f"{run_digest(job.config, name)}.json"
    if (own / "run.json").exists() or not found.exists():
        return own
    other = job.workdir / json.loads(found.read_text(encoding="utf-8"))["folder"]
    return other if other.is_dir() else own


def _remember(job: Job, name: str) -> None:
    """Notes where a run of a job is, relative to the workdir, which may be moved."""
    trained = job.workdir / "trained"
    trained.mkdir(parents=True, exist_ok=True)
    where = {"folder": os.path.relpath(job.folder / name, job.workdir), "part": job.part.name}
    write_atomically(trained / f"{run_digest(job.config, name)}.json", json.dumps(where).encode())


def run_digest(config: Mapping[str, Any], name: str) -> str:
    """Equal for runs that are trained alike, whatever they are called and whatever else their configs hold."""
    needs = {other: config["run"][other] for other in with_dependencies(config["run"], (name,)) if other != name}
    data = _data_identity(config["data"])
    data.pop("test_on_training")
    return _digest({"run": config["run"][name], "needs": needs, "data": data, "seed": config["seed"]})


def _identity(config: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    facts = {key: value for key, value in config.items() if key not in _NO_DIFFERENCE}
    facts["data"] = _data_identity(config["data"])
    return {**facts, "num_auto_attack": scale.num_auto_attack}


def _data_identity(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the images are, wherever they lie."""
    facts = {key: value for key, value in data.items() if key not in _PLACES}
    if data["name"] == "folder" and data["dir"]:
        facts["images"] = _listed(str(data["dir"]))
    return facts


@functools.lru_cache(maxsize=8)
def _listed(folder: str) -> str:
    """A digest of the list of images in a folder, with their splits, labels and sizes."""
    paths = [(image, pathlib.Path(folder, image.file)) for image in list_images(pathlib.Path(folder))]
    facts = [[*image, path.stat().st_size if path.exists() else None] for image, path in paths]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:10]


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
