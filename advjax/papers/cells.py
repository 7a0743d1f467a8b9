"""The cells of an entry: each published accuracy with ours, under the paper's attack, a sound one, and AutoAttack.

A published number stands beside the result of the same experiment at another size; `Cell.reduced` says that it does.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from advjax import data
from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.report import ALL, Report, Row, is_on_itself
from advjax.evaluation.statistics import wilson_interval
from advjax.experiment.registry import number
from advjax.papers.config_diff import differences
from advjax.papers.join import Accuracy, Spec, accuracy_of, applicable, pair, select
from advjax.papers.means import over_rows, over_seeds
from advjax.papers.published import Published
from advjax.papers.recipe import Part, full_config
from advjax.papers.running import Job, folder_of_run, under_auto_attack
from advjax.reporting.formatting import model_name
from advjax.runtime.metrics import read_metrics

EPOCH_TABLES = ("001_epochs", "001_adversarial_epochs")
"""Tables of single epochs of long runs: an epoch that ours has not reached has no counterpart."""


class Cell(NamedTuple):
    """A published accuracy and ours, in percent."""

    published: Published
    theirs: Accuracy | None
    """None where the paper printed no number: in a figure, or for a network of ours alone."""
    model: str
    """Our run, with its defense if it has one."""
    attack: str
    """Its name in our config, or "clean"."""
    kind: str
    """As in `advjax.papers.join.Pair`."""
    ours: Accuracy | None
    """Under the attack of the paper, by the paper's protocol; with several seeds, the mean over them."""
    per_seed: tuple[float, ...]
    sound: Accuracy | None
    """The lowest accuracy of the same model under the same attack, or under ``sound_attack`` of the entry of
    ``published``, made on the model itself with true labels or, if that is stronger, on another one; None for clean
    images, and where none was made on the model itself."""
    sound_attack: str
    """Its name in our config; "" for clean images."""
    auto_attack: Accuracy | None
    """The lowest under AutoAttack, likewise; None beside an attack with another norm or epsilon."""
    reduced: tuple[str, ...]
    """The settings that differ from the paper's experiment, as in "run.base.model.width is 0.125"; () for none."""

    @property
    def difference(self) -> float | None:
        """Ours minus theirs, in percentage points."""
        return None if self.ours is None or self.theirs is None else self.ours.value - self.theirs.value


def cells(jobs: Sequence[Job], tables: Sequence[str]) -> list[Cell]:
    """The cells of an entry, from whatever reports there are.

    Args:
      jobs: of the entry, at one scale, for one or more seeds.
      tables: the published tables that it is compared with.
    """
    by_seed: dict[tuple[Any, ...], list[Cell]] = {}
    for job in jobs:
        for cell in _cells_of(job, tables):
            # The base of several parts, for one, is measured once.
            known = by_seed.setdefault((*cell.published[:6], cell.model, cell.attack, job.config["seed"]), [])
            known.append(cell)
    one_a_seed = {key: max(found, key=_completeness) for key, found in by_seed.items()}
    grouped: dict[tuple[Any, ...], list[Cell]] = {}
    for key, cell in one_a_seed.items():
        grouped.setdefault(key[:-1], []).append(cell)
    return [_over_seeds(found) for found in grouped.values()]


def _completeness(cell: Cell) -> tuple[int, int]:
    """How much of a cell is known, and of how many images."""
    known = [value for value in (cell.ours, cell.sound, cell.auto_attack) if value]
    return len(known), sum(value.n or 0 for value in known)


def _over_seeds(found: Sequence[Cell]) -> Cell:
    first = next((cell for cell in found if cell.ours is not None), found[0])
    return first._replace(
        ours=over_seeds([cell.ours for cell in found if cell.ours]),
        per_seed=tuple(cell.ours.value for cell in found if cell.ours),
        sound=over_seeds([cell.sound for cell in found if cell.sound]),
        auto_attack=over_seeds([cell.auto_attack for cell in found if cell.auto_attack]),
    )


def _cells_of(job: Job, tables: Sequence[str]) -> Iterator[Cell]:
    reference = full_config(job.part)
    report, standard = job.reports()
    for spec in specs_of(job.part):
        if "unpublished" not in spec and spec["table"] not in tables:
            continue
        epoch = epoch_of(spec)
        if "mean_of" in spec:
            yield _mean_cell(spec, reference, job, report, standard)
        elif epoch is not None:
            if epoch <= job.config["run"][spec["run"]]["epochs"]:
                yield _epoch_cell(spec, epoch, reference, job)
        else:
            yield _report_cell(spec, reference, job, report, standard)


def specs_of(part: Part) -> list[Spec]:
    """What the results of a part are compared with, and what is shown besides."""
    specs = part.specs
    if specs is None:
        reference = full_config(part)
        # A part may be a variant of its config that other published numbers are for.
        specs = [spec for spec in reference["published"] if _applies(spec, reference)]
    return [*specs, *part.unpublished]


def epoch_of(spec: Spec) -> int | None:
    """The epoch of a longer run that an entry of ``published`` is about; None if it is about the run's result."""
    return _epoch(spec) if spec.get("table") in EPOCH_TABLES else None


def _applies(spec: Spec, reference: Mapping[str, Any]) -> bool:
    """Whether an entry of ``published`` is for the config, after as many epochs as it says."""
    epoch = _epoch(spec)
    config = reference if epoch is None else _after(reference, spec["run"], epoch)
    return bool(applicable([spec], config)[0])


def _after(config: Mapping[str, Any], run: str, epochs: int) -> dict[str, Any]:
    """The config with so many epochs in a run."""
    return {**config, "run": {**config["run"], run: {**config["run"][run], "epochs": epochs}}}


def _report_cell(
    spec: Spec, reference: Mapping[str, Any], job: Job, report: Report | None, standard: Report | None
) -> Cell:
    rows = report.rows if report else []
    unpublished = spec.get("unpublished")
    sound_attack = "" if spec["our_attack"] == CLEAN else spec.get("sound_attack", spec["our_attack"])
    found = pair(rows, spec, unpublished or select(spec))
    # Without a report, there may be no budget that AutoAttack could have.
    comparable = standard is not None and (not sound_attack or _is_at_its_budget(job, sound_attack))
    return Cell(
        published=found.published,
        theirs=None if unpublished else found.theirs,
        model=found.model,
        attack=found.attack,
        kind=found.kind,
        ours=found.ours,
        per_seed=(),
        sound=_strongest(rows, spec, sound_attack) if sound_attack else None,
        sound_attack=sound_attack,
        auto_attack=_strongest(standard.rows, spec, "auto_attack") if standard and comparable else None,
        reduced=(*_reduced(reference, job.config, spec), *_fewer_images(reference, job.config)),
    )


def _is_at_its_budget(job: Job, attack: str) -> bool:
    """Whether AutoAttack has the norm and epsilon of an attack, and so may stand beside it."""
    budgets = [
        (found["norm"], float(number(found["epsilon"])))
        for found in (
            job.config["evaluation"]["attacks"][attack],
            under_auto_attack(job.config, job.scale)["evaluation"]["attacks"]["auto_attack"],
        )
    ]
    return budgets[0] == budgets[1]


def _strongest(rows: Sequence[Row], spec: Spec, attack: str) -> Accuracy | None:
    """The lowest accuracy that an attack left, if it was made on the model itself as well.

    An attack on the model itself can be weaker than one on another: through few draws of a random model, it is.
    """
    wanted = {"run": spec["run"], "defense": spec.get("defense", "none"), "subset": spec.get("subset", ALL)}
    found = [row for row in rows if row["attack"] == attack and all(row[key] == value for key, value in wanted.items())]
    if not any(map(is_on_itself, found)):
        return None
    known = [accuracy for row in found if (accuracy := accuracy_of(row, rows))]
    return min(known, key=lambda accuracy: accuracy.value, default=None)


def _mean_cell(
    spec: Spec, reference: Mapping[str, Any], job: Job, report: Report | None, standard: Report | None
) -> Cell:
    """A mean over networks and budgets, as 002 prints them."""
    own = {key: value for key, value in spec.items() if key != "mean_of"}
    unpublished = spec.get("unpublished")
    published = unpublished or select(own)
    parts = [_report_cell({**own, **row}, reference, job, report, standard) for row in spec["mean_of"]]
    return Cell(
        published=published,
        theirs=None if unpublished else Accuracy(published.value, None, published.n),
        model="mean",
        attack="mean",
        kind=parts[0].kind,
        ours=over_rows(cell.ours for cell in parts),
        per_seed=(),
        sound=over_rows(cell.sound for cell in parts),
        sound_attack="mean" if parts[0].sound_attack else "",
        auto_attack=over_rows(cell.auto_attack for cell in parts),
        reduced=tuple(dict.fromkeys(reason for cell in parts for reason in cell.reduced)),
    )


def _epoch_cell(spec: Spec, epoch: int, reference: Mapping[str, Any], job: Job) -> Cell:
    """An epoch of a longer run: accuracy on the validation images, which are the test images."""
    beside = pair([], spec, select(spec))
    run, metric = spec["run"], "accuracy" if spec["our_attack"] == CLEAN else "attacked_accuracy"
    found = dict(epochs_of(job, run, metric)).get(epoch)
    return Cell(
        published=beside.published,
        theirs=beside.theirs,
        model=model_name(run, "none"),
        attack=spec["our_attack"],
        kind="clean" if metric == "accuracy" else "adaptive",
        ours=None if found is None else _of_count(found, _num_validation(job)),
        per_seed=(),
        sound=None,
        sound_attack="",
        auto_attack=None,
        reduced=_reduced(_after(reference, run, epoch), _after(job.config, run, epoch), spec),
    )


def epochs_of(job: Job, run: str, metric: str, kind: str = "validation") -> list[tuple[float, float]]:
    """Epoch and value, for every epoch of a run that was validated; or for every record of training.

    Args:
      job: what was run.
      run: name of the run.
      metric: such as "accuracy".
      kind: of the records.
    """
    folder = folder_of_run(job, run)
    if not (folder / "metrics.jsonl").exists():
        return []
    steps = _steps_per_epoch(job, run)
    records = [record for record in read_metrics(folder) if record["kind"] == kind and record.get(metric) is not None]
    if kind == "validation":
        records = [record for record in records if record["step"] % steps == 0]
    return [(record["step"] / steps, record[metric]) for record in records]


def _steps_per_epoch(job: Job, run: str) -> int:
    facts = json.loads((job.folder / "data.json").read_text(encoding="utf-8"))
    return data.steps_per_epoch(facts["num_examples"][run], job.config["run"][run]["batch_size"])


def _num_validation(job: Job) -> int:
    return json.loads((job.folder / "data.json").read_text(encoding="utf-8"))["num_validation"]


def _of_count(share: float, n: int) -> Accuracy:
    low, high = wilson_interval(round(share * n), n)
    return Accuracy(100 * share, (100 * low, 100 * high), n)


def _reduced(reference: Mapping[str, Any], config: Mapping[str, Any], spec: Spec) -> tuple[str, ...]:
    changed = differences(reference, config, spec)
    return tuple(f"{path} is {value}" for path, value in changed.items())


def _fewer_images(reference: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...]:
    whole, count = (one["evaluation"]["num_examples"] for one in (reference, config))
    return () if count == whole else (f"evaluation.num_examples is {count}",)


def _epoch(spec: Spec) -> int | None:
    return next((value for key, value in spec.get("when", {}).items() if _is_epochs(key)), None)


def _is_epochs(key: str) -> bool:
    return key.startswith("run.") and key.endswith(".epochs")
