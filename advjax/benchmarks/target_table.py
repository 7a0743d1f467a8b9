"""How fast advjax is meant to be: a limit for every claim about speed, and what was measured beside it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from advjax.benchmarks.results import ENSEMBLE, SUBJECT, WIDTH, Measurement

Report = Mapping[str, Any]
"""A JSON file of ``python -m advjax.benchmarks``."""


class Value(NamedTuple):
    """What was measured."""

    ratio: float
    seconds: float
    """Of the subject."""
    other: str
    """Who or what it is divided by."""
    other_seconds: float


class Target(NamedTuple):
    """One row of the table: time of a subject divided by that of something else."""

    name: str
    step: str
    """The step of ``targets`` whose report has the numbers."""
    what: str
    limit: float | None
    """The ratio that is aimed at, at most; None for a row that only reports."""
    measure: Callable[[Report], Value | None]
    """None if the report lacks one of the two, because a library is not installed, say."""

    def row(self, reports: Mapping[str, Report]) -> dict[str, Any]:
        """The row as plain data, "measured" being None if it is not in the reports."""
        found = self.measure(reports[self.step]) if self.step in reports else None
        met = None if found is None or self.limit is None else found.ratio <= self.limit
        measured = None if found is None else found._asdict()
        return {"name": self.name, "what": self.what, "target": self.limit, "measured": measured, "met": met}


def _to_fastest(
    task: str, subject: str = SUBJECT, others: Sequence[str] | None = None
) -> Callable[[Report], Value | None]:
    """Median seconds of a call without compilation, by those of the fastest of the others.

    Args:
      task: what both do.
      subject: a contender.
      others: contenders; None for all other libraries.
    """

    def measure(report: Report) -> Value | None:
        rows = [Measurement.from_json(row) for row in report["rows"] if row["task"] == task]
        mine = next((row for row in rows if row.contender == subject), None)
        compared = [row for row in rows if (not row.is_ours if others is None else row.contender in others)]
        if mine is None or not compared:
            return None
        fastest = min(compared, key=lambda row: row.median_seconds)
        ratio = mine.median_seconds / fastest.median_seconds
        return Value(ratio, mine.median_seconds, fastest.contender, fastest.median_seconds)

    return measure


def _first_call(cache: str, task: str, other: str) -> Callable[[Report], Value | None]:
    """Wall-clock seconds of the first call in a process, compilation included, by those of another library."""

    def measure(report: Report) -> Value | None:
        mine, theirs = _processes(report, task, SUBJECT), _processes(report, task, other)
        if mine is None or theirs is None:
            return None
        seconds, other_seconds = (process["calls"][0]["seconds"] for process in (mine[cache], theirs["cold"]))
        return Value(seconds / other_seconds, seconds, other, other_seconds)

    return measure


def _compiling_again(report: Report) -> Value | None:
    """Compilation in the second calls of the runner, by the whole of these; the largest of all tasks."""
    found = [_processes(report, row["task"], SUBJECT) for row in report["rows"] if row["contender"] == SUBJECT]
    calls = [process["calls"][1] for processes in found if processes is not None for process in processes.values()]
    if not calls:
        return None
    worst = max(calls, key=lambda call: call["compile_seconds"] / call["seconds"])
    ratio = worst["compile_seconds"] / worst["seconds"]
    return Value(ratio, worst["compile_seconds"], "the whole call", worst["seconds"])


def _by_recorded(report: Report) -> Value | None:
    """CPU seconds, compilation included, by recorded ones of the authors' implementation."""
    row = _find(report, ENSEMBLE, SUBJECT)
    if row is None:
        return None
    mine, recorded = min(row["cpu_seconds"]), report["settings"]["reference_seconds"]
    return Value(mine / recorded, mine, "recorded, CPU", recorded)


def _processes(report: Report, task: str, contender: str) -> Mapping[str, Any] | None:
    row = _find(report, task, contender)
    return None if row is None else row["processes"]


def _find(report: Report, task: str, contender: str) -> Mapping[str, Any] | None:
    return next((row for row in report["rows"] if (row["task"], row["contender"]) == (task, contender)), None)


SMALL = "small CIFAR-10 network"
APGD, DEEPFOOL, CW = "autopgd-100-runner", "deepfool-l2-50-runner", "cw-l2-100-runner"
PREACT = "PreActResNet18, 32 images"
TARGETS = (
    Target("autopgd-100-256", "small-256", f"AutoPGD-100, verdicts, {SMALL}, 256 images", 0.9, _to_fastest(APGD)),
    Target("deepfool-256", "small-256", f"DeepFool, verdicts, {SMALL}, 256 images", 0.9, _to_fastest(DEEPFOOL)),
    Target("autopgd-100-32", "small-32", f"AutoPGD-100, verdicts, {SMALL}, 32 images", 0.9, _to_fastest(APGD)),
    Target("deepfool-32", "small-32", f"DeepFool, verdicts, {SMALL}, 32 images", 0.9, _to_fastest(DEEPFOOL)),
    Target("second-call", "small-32", "compilation in the second call of the runner", 0.05, _compiling_again),
    Target("resnet9-pgd", "resnet9-pgd", "PGD-20, ResNet9, 32 images", 0.65, _to_fastest("pgd-20")),
    Target(
        "foreign-pgd",
        "resnet9-pgd",
        "PGD-20, ResNet9 of flax's own layers by advjax.models' ResNet9",
        1.10,
        _to_fastest("pgd-20", "flax", (SUBJECT,)),
    ),
    Target("resnet9-autopgd", "resnet9-autopgd", "AutoPGD-20, ResNet9, 32 images", 0.65, _to_fastest("autopgd-20")),
    Target("preact-train", "preact-train", f"training step, {PREACT}", 1.1, _to_fastest("train")),
    Target("preact-train-pgd", "preact-train", f"PGD-7 training step, {PREACT}", None, _to_fastest("train-pgd-7")),
    Target("preact-pgd", "preact-attacks", f"PGD-20, {PREACT}", 0.75, _to_fastest("pgd-20")),
    Target("preact-autopgd", "preact-attacks", f"AutoPGD-20, {PREACT}", 0.75, _to_fastest("autopgd-20")),
    Target(
        "autoattack-undefended-warm",
        "autoattack-undefended",
        "AutoAttack, undefended network, 256 images, first call, compilation cache filled",
        0.2,
        _first_call("warm", ENSEMBLE, "torchattacks"),
    ),
    Target(
        "autoattack-undefended-cold",
        "autoattack-undefended",
        "AutoAttack, undefended network, 256 images, first call, nothing compiled before",
        0.45,
        _first_call("cold", ENSEMBLE, "torchattacks"),
    ),
    Target(
        "fast-on-cpu",
        "foreign",
        "PGD-20, ResNet9 of flax's own layers, 4 images, fast_on_cpu by without",
        None,
        _to_fastest("pgd-20", "flax", ("flax-exact",)),
    ),
    Target("autoattack-robust", "autoattack-robust", "AutoAttack, robust network, 256 images", 0.75, _by_recorded),
    Target("cw-32", "small-cw", f"Carlini-Wagner l2, 100 steps, {SMALL}, 32 images", None, _to_fastest(CW)),
    Target("resnet9-train", "resnet9-train", "training step, ResNet9, 32 images", None, _to_fastest("train")),
    Target(
        "resnet9-train-pgd",
        "resnet9-train",
        "PGD-7 training step, ResNet9, 32 images",
        None,
        _to_fastest("train-pgd-7"),
    ),
    Target("lenet5-pgd", "lenet5", "PGD-20, LeNet5, 128 images", None, _to_fastest("pgd-20")),
    Target("lenet5-train", "lenet5", "training step, LeNet5, 128 images", None, _to_fastest("train")),
    Target("mnist-pgd", "mnist", "PGD-20, small MNIST network, 128 images", None, _to_fastest("pgd-20")),
    Target("wide-pgd", "wide", "PGD-20, WideResNet-28-10, 2 images", None, _to_fastest("pgd-20")),
    Target("wide-train", "wide", "training step, WideResNet-28-10, 2 images", None, _to_fastest("train")),
)


def rows(reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    """All rows as plain data."""
    return [target.row(reports) for target in TARGETS]


def cells(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """What, target, measured, whether it is met, and the two times."""
    target, found = "-" if row["target"] is None else f"≤ {row['target']:.2f}", row["measured"]
    if found is None:
        return row["what"], target, "not measured", "-", "-"
    met = {None: "-", True: "met", False: "missed"}[row["met"]]
    times = f"{found['seconds']:.3g} s by {found['other_seconds']:.3g} s ({found['other']})"
    return row["what"], target, f"{found['ratio']:.2f}", met, times


def table(measured: Sequence[Mapping[str, Any]]) -> Table:
    """The table for a terminal."""
    made = Table(title="time divided by that of the fastest other library", box=box.SIMPLE, title_justify="left")
    made.width = WIDTH
    for heading in ("what", "target", "measured", "", "times"):
        made.add_column(heading)
    for row in measured:
        made.add_row(*cells(row))
    return made
