"""Measures every row of the target table, in order of value, and goes on where an earlier call stopped.

    python -m advjax.benchmarks.targets --json targets.json --budget 1200 --weights ROBUST.npz --images IMAGES.npz \\
      --undefended-weights UNDEFENDED.npz --undefended-images IMAGES.npz --reference-seconds 305.2

Run nothing else meanwhile.  Repeat the command until it says that everything is done.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console

from advjax.benchmarks import reports, target_table
from advjax.benchmarks.command_line import run_command
from advjax.benchmarks.results import WIDTH
from advjax.benchmarks.steps import State, Step, reading, run_steps
from advjax.types import UserError

ROBUST, UNDEFENDED = "robust", "undefended"
EVERY_ATTACK = (
    "fgsm,one-step-least-likely,bim-10,pgd-20,autopgd-100,autopgd-l1-100,cw-l2-100,deepfool-l2-50,fab-t-100,square-1000"
)
TINY = {"--num-examples": "4", "--rounds": "1", "--budget": "1"}
"""What ``--tiny`` replaces: everything runs, nothing is meant to be believed."""


class Part(NamedTuple):
    """Arguments of ``python -m advjax.benchmarks`` for a step."""

    name: str
    seconds: float
    """On one thread of a server core with nothing else running."""
    arguments: str
    network: str = ""
    """"robust" or "undefended": with the weights and images of the command line; "" for random weights."""


PARTS = (
    Part(
        "small-256",
        100,
        "--network cifar_cnn --num-examples 256 --tasks autopgd-100-runner,deepfool-l2-50-runner --rounds 2 "
        "--contenders advjax,torchattacks,foolbox --calls none",
        ROBUST,
    ),
    Part(
        "small-32",
        90,
        "--network cifar_cnn --num-examples 32 --tasks autopgd-100-runner,deepfool-l2-50-runner --rounds 5 "
        "--contenders advjax,torchattacks,foolbox --calls runner",
        ROBUST,
    ),
    Part(
        "resnet9-pgd",
        170,
        "--network resnet9 --num-examples 32 --tasks pgd-20 --rounds 2 --contenders advjax,flax,torch,torchattacks",
    ),
    Part(
        "preact-train",
        110,
        "--network preact_resnet18 --num-examples 32 --tasks train,train-pgd-7 --rounds 4 --contenders advjax,torch",
    ),
    Part(
        "autoattack-undefended",
        120,
        "--network cifar_cnn --num-examples 256 --tasks autoattack --rounds 0 --contenders advjax,torchattacks "
        "--calls runner",
        UNDEFENDED,
    ),
    Part(
        "resnet9-autopgd",
        90,
        "--network resnet9 --num-examples 32 --tasks autopgd-20 --rounds 2 --contenders advjax,torchattacks",
    ),
    Part(
        "preact-attacks",
        180,
        "--network preact_resnet18 --num-examples 32 --tasks pgd-20,autopgd-20 --rounds 2 "
        "--contenders advjax,torch,torchattacks",
    ),
    Part("foreign", 50, "--network resnet9 --num-examples 4 --tasks pgd-20 --rounds 2 --contenders flax,flax-exact"),
    Part(
        "autoattack-robust",
        230,
        "--network cifar_cnn --num-examples 256 --tasks autoattack --rounds 0 --contenders advjax --calls none",
        ROBUST,
    ),
    Part(
        "small-cw",
        60,
        "--network cifar_cnn --num-examples 32 --tasks cw-l2-100,cw-l2-100-runner --rounds 3 "
        "--contenders advjax,torchattacks,foolbox --calls none",
        ROBUST,
    ),
    Part(
        "resnet9-train",
        110,
        "--network resnet9 --num-examples 32 --tasks train,train-pgd-7 --rounds 3 --contenders advjax,flax,torch",
    ),
    Part(
        "lenet5",
        40,
        "--network lenet5 --num-examples 128 --tasks pgd-20,train,train-pgd-7 --rounds 9 "
        "--contenders advjax,torch,torchattacks",
    ),
    Part(
        "mnist",
        40,
        "--network mnist_cnn --num-examples 128 --tasks pgd-20,train,train-pgd-7 --rounds 5 "
        "--contenders advjax,torch,torchattacks",
    ),
    Part(
        "wide",
        120,
        "--network wide_resnet_28_10 --num-examples 2 --tasks pgd-20,train --rounds 2 --contenders advjax,torch",
    ),
    Part(
        "every-attack",
        120,
        f"--network cifar_cnn --num-examples 32 --tasks {EVERY_ATTACK} --rounds 2 --contenders advjax",
        ROBUST,
    ),
)
"""In order of value."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m advjax.benchmarks.targets", description=__doc__)
    made.add_argument("--json", type=pathlib.Path, required=True, help="file with everything measured so far")
    made.add_argument("--budget", type=float, default=1200.0, help="seconds for this call")
    made.add_argument("--threads", type=int, default=1, help="number of CPUs to bind all contenders to")
    made.add_argument("--weights", help="npz file: a robust cifar_cnn; rows that need it are skipped without")
    made.add_argument("--images", help="npz file with images and labels for it")
    made.add_argument("--undefended-weights", help="npz file: a cifar_cnn trained plainly")
    made.add_argument("--undefended-images", help="npz file with images and labels for it")
    made.add_argument("--reference-seconds", type=float, help="recorded CPU seconds of AutoAttack on the robust one")
    made.add_argument("--only", help="comma-separated names of steps")
    made.add_argument(
        "--tiny", action="store_true", help="four images and narrow networks: a rehearsal, not a measurement"
    )
    return made


def main(arguments: Sequence[str]) -> None:
    """Runs the steps, and prints the table."""
    options = parser().parse_args(arguments)
    chosen = [part.name for part in PARTS] if options.only is None else options.only.split(",")
    if unknown := [name for name in chosen if name not in {part.name for part in PARTS}]:
        raise UserError(f"--only: unknown {', '.join(unknown)}; known are {', '.join(part.name for part in PARTS)}")
    console = Console(width=WIDTH, highlight=False)
    not_settings = ("json", "budget", "only")
    settings = {name: value for name, value in vars(options).items() if name not in not_settings}
    state = State(options.json, settings)
    with tempfile.TemporaryDirectory() as folder:
        steps = []
        for part in PARTS:
            if part.name in chosen:
                if (reason := _missing(part, options)) is None:
                    steps.append(_step(part, options, pathlib.Path(folder)))
                else:
                    console.print(f"{part.name}: skipped ({reason})")
        run_steps(steps, state, options.budget, lambda line: console.print(line, markup=False))
    state.report["targets"] = target_table.rows(state.results())
    reports.write(state.path, state.report)
    console.print(target_table.table(state.report["targets"]))
    left = [step.name for step in steps if not state.is_done(step.name)]
    console.print(f"left: {', '.join(left)}; repeat the command" if left else "everything is done")


def _missing(part: Part, options: argparse.Namespace) -> str | None:
    """Why a step cannot be run; None if it can."""
    weights, images, _ = _files(part, options)
    if part.network and (weights is None or images is None):
        prefix = "undefended-" if part.network == UNDEFENDED else ""
        return f"give --{prefix}weights and --{prefix}images"
    if part.name == "autoattack-robust" and options.reference_seconds is None:
        return "give --reference-seconds"
    return None


def _files(part: Part, options: argparse.Namespace) -> tuple[str | None, str | None, str]:
    """Weights, images and budget of a small network."""
    if part.network == UNDEFENDED:
        return options.undefended_weights, options.undefended_images, str(8 / 255)
    return options.weights, options.images, str(8 / 255)


def _step(part: Part, options: argparse.Namespace, folder: pathlib.Path) -> Step:
    path = folder / f"{part.name}.json"
    arguments = part.arguments.split()
    if part.network:
        weights, images, epsilon = _files(part, options)
        arguments += ["--weights", str(weights), "--images", str(images), "--epsilon", epsilon]
    if part.name == "autoattack-robust":
        arguments += ["--reference-seconds", str(options.reference_seconds)]
    arguments += ["--threads", str(options.threads)]
    if options.tiny:
        for flag, value in TINY.items():
            arguments += [flag, value]  # The last one counts.
        if not part.network:
            arguments += ["--width", "0.125"]
    command = [sys.executable, "-m", "advjax.benchmarks", *arguments, "--json", str(path)]
    return Step(part.name, command, part.seconds, reading(path))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
