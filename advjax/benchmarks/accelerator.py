"""Fills the time of one accelerator with what has not been measured on one, in order of value.

    python -m advjax.benchmarks.accelerator --folder suite --data CIFAR10 --limit 570
    python -m advjax.benchmarks.accelerator --folder suite --data CIFAR10 --limit 570   # goes on

First attacks and training steps, in float32 and bfloat16 and beside PyTorch where it is installed; then the fixer
experiment, its baselines and a robust recipe, all on CIFAR-10.  What is left when the time is over goes on with the
next call; ``--json`` has all results so far.
"""

import argparse
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from advjax.benchmarks.command_line import run_command
from advjax.benchmarks.markdown import speeds
from advjax.benchmarks.results import WIDTH
from advjax.benchmarks.steps import State, Step, reading, run_steps

NETWORKS = ("resnet18", "wide_resnet_28_10")
LIBRARIES = "advjax,advjax-bfloat16,torch,torch-compiled,torchattacks"
BENCHMARKS = {
    # Task: (contenders, images for each network, images at a time for each, expected seconds).
    "pgd-20": (LIBRARIES, (4096, 1024), (1024, 256), 60),
    "train": (LIBRARIES, (4096, 2048), (1024, 256), 60),
    "train-pgd-7": (LIBRARIES, (4096, 1024), (1024, 256), 60),
    "autopgd-100": ("advjax,advjax-bfloat16,torchattacks", (2048, 512), (1024, 256), 60),
    "autoattack": ("advjax,advjax-bfloat16", (512, 64), (512, 64), 150),
}
"""With random weights and a budget that breaks nothing, so that every image takes all steps."""
KEPT = ("verdict", "rows", "notes", "environment", "date")
"""What is kept of a report of an experiment."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m advjax.benchmarks.accelerator", description=__doc__)
    made.add_argument("--folder", type=pathlib.Path, required=True, help="for checkpoints, reports and numbers")
    made.add_argument("--json", type=pathlib.Path, help="also copy all results to this file; default: none")
    made.add_argument("--limit", type=float, default=570.0, help="seconds for this call")
    made.add_argument("--part", choices=("all", "benchmarks", "experiments"), default="all", help="what to do")
    made.add_argument(
        "--data", help="folder of tfds data with cifar10, or an npz file; experiments are skipped without"
    )
    made.add_argument("--compute-dtype", default="bfloat16", help="of the training of the experiments")
    made.add_argument("--recipe", default="cifar_adversarial", help="config of the robust recipe")
    made.add_argument(
        "--tiny", action="store_true", help="two images, narrow networks, digits: a rehearsal on any machine"
    )
    return made


def main(arguments: Sequence[str]) -> None:
    """Runs what is not done yet, as long as there is time, and prints a table of all speeds."""
    options = parser().parse_args(arguments)
    console = Console(width=WIDTH, highlight=False)
    settings = {"compute_dtype": options.compute_dtype, "recipe": options.recipe, "tiny": options.tiny}
    state = State(options.folder / "accelerator.json", settings)
    steps = [] if options.part == "experiments" else benchmark_steps(options.folder, options.tiny)
    if options.part != "benchmarks" and (options.data or options.tiny):
        steps += tiny_experiment_steps(options.folder) if options.tiny else experiment_steps(options)
    elif options.part != "benchmarks":
        console.print("experiments: skipped (give --data)")
    try:
        run_steps(steps, state, options.limit, lambda line: console.print(line, markup=False))
    finally:
        if options.json is not None and state.path.exists():
            shutil.copy(state.path, options.json)
    console.print(speeds(state.results()), markup=False, soft_wrap=True)
    left = [step.name for step in steps if not state.is_done(step.name)]
    console.print(f"left: {', '.join(left)}; repeat the command" if left else "everything is done")


def benchmark_steps(folder: pathlib.Path, tiny: bool) -> list[Step]:
    """A process for each task and network, so that one that fails or takes too long costs no other."""
    steps = []
    for task, (contenders, examples, batches, seconds) in BENCHMARKS.items():
        for network, count, batch in zip(NETWORKS, examples, batches, strict=True):
            path = folder / f"benchmark-{task}-{network}.json"
            arguments = ["--network", network, "--tasks", task, "--contenders", contenders, "--calls", "none"]
            arguments += ["--num-examples", str(count), "--batch-size", str(batch)]
            arguments += ["--rounds", "0" if task == "autoattack" else "3", "--budget", str(seconds / 3)]
            if tiny:
                # The last one counts.
                arguments += ["--num-examples", "2", "--batch-size", "2", "--rounds", "0", "--width", "0.1"]
                arguments += ["--contenders", "advjax,torch"]
            command = [sys.executable, "-m", "advjax.benchmarks", *arguments, "--json", str(path)]
            steps.append(Step(path.stem, command, seconds, reading(path)))
    return steps


def experiment_steps(options: argparse.Namespace) -> list[Step]:
    """Trains and evaluates; each goes on from its checkpoints and stored verdicts."""
    data = {"config.data.dir": str(options.data)}
    if str(options.data).endswith(".npz"):
        data["config.data.name"] = "npz"

    def experiment(config: str, runs: Sequence[str], seconds: float, flags: Mapping[str, str]) -> Step:
        dtypes = {f"config.run.{run}.compute_dtype": options.compute_dtype for run in runs}
        return _experiment(options.folder, config, seconds, {**data, **dtypes, **flags})

    base = {"config.run.base.checkpoint": f"{options.folder}/cifar_fixer/base"}
    return [
        experiment("cifar_fixer", ("base", "fixer"), 900, {}),
        experiment("cifar_fixer_baselines", ("transfer", "adversarial", "honest_fixer"), 900, base),
        experiment(options.recipe, ("robust",), 600, {}),
    ]


def tiny_experiment_steps(folder: pathlib.Path) -> list[Step]:
    """The same on digits, a few training steps each."""
    short = {"config.evaluation.num_examples": "4", "config.evaluation.num_checked": "0"}
    fixer = {f"config.run.{run}.num_steps": "2" for run in ("base", "fixer", "adversarial")}
    baselines = {f"config.run.{run}.num_steps": "2" for run in ("adversarial", "honest_fixer")}
    baselines["config.run.base.checkpoint"] = f"{folder}/digits_fixer/base"
    return [
        _experiment(folder, "digits_fixer", 60, {**short, **fixer}),
        _experiment(folder, "digits_robust", 60, {**short, **baselines}),
    ]


def _experiment(folder: pathlib.Path, config: str, seconds: float, flags: Mapping[str, str]) -> Step:
    workdir = folder / config
    command = [sys.executable, "-m", "advjax.main", f"--config={config}", f"--workdir={workdir}"]
    command += [f"--{flag}={value}" for flag, value in flags.items()]
    return Step(config, command, seconds, _experiment_result(workdir), is_resumable=True)


def _experiment_result(workdir: pathlib.Path) -> Callable[[], dict[str, Any]]:
    """The report, if there is one yet, and the last logged metrics of every run."""

    def result() -> dict[str, Any]:
        report = workdir / "report.json"
        found = json.loads(report.read_text()) if report.exists() else {}
        logs = sorted(workdir.glob("*/metrics.jsonl"))
        last = {path.parent.name: path.read_text().splitlines()[-3:] for path in logs}
        return {"report": {key: found[key] for key in KEPT if key in found}, "last_metrics": last}

    return result


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
