"""Measures how fast attacks and training steps are, in advjax and in other libraries."""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from advjax.benchmarks import reports
from advjax.benchmarks.command_line import run_command
from advjax.types import UserError

TASK_NAMES = ("pgd-20", "autopgd-100", "autopgd-100-runner", "cw-l2-100", "deepfool-l2-50-runner", "train")
"""What is measured by default."""
OTHER_TASK_NAMES = (
    *("autopgd-20", "deepfool-l2-50", "cw-l2-100-runner", "autoattack", "quick-check", "train-pgd-7"),
    *("fgsm", "one-step-least-likely", "bim-10", "autopgd-l1-100", "cw-linf", "cw-l2-line-search"),
    *("cw-linf-line-search", "fab-t-100", "square-1000"),
)
"""Measured on request."""
CONTENDER_NAMES = (
    *("advjax", "advjax-bfloat16", "advjax-exact", "flax", "flax-exact"),
    *("torch", "torch-compiled", "torchattacks", "foolbox", "art"),
)
DEFAULT_CONTENDERS = ("advjax", "torch", "torchattacks", "foolbox", "art")
NETWORK_NAMES = (*("mnist_cnn", "cifar_cnn", "lenet5", "resnet9", "preact_resnet18", "resnet18", "wide_resnet_28_10"),)
DEFAULTS = {"num_examples": 32, "rounds": 3, "budget": 120.0, "tasks": ",".join(TASK_NAMES), "calls": "runner"}
QUICK = {"num_examples": 8, "rounds": 1, "budget": 15.0, "tasks": "pgd-20,deepfool-l2-50-runner,train", "calls": "none"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m advjax.benchmarks", description=__doc__)
    made.add_argument("--network", default="cifar_cnn", help=f"one of {', '.join(NETWORK_NAMES)}")
    made.add_argument("--width", type=float, default=1.0, help="channel multiplier of the larger networks")
    made.add_argument("--weights", help="npz file with weights for mnist_cnn or cifar_cnn; default: random weights")
    made.add_argument("--images", help="npz file with images and labels; default: random images")
    made.add_argument(
        "--epsilon", type=float, help="linf budget; default with random weights: 1e-6, so that no attack succeeds"
    )
    made.add_argument("--num-examples", type=int, help="number of images; 32, or 8 with --quick")
    made.add_argument("--batch-size", type=int, help="default: all images at once; run_stages chooses its own")
    made.add_argument("--tasks", help=f"comma-separated, from {','.join((*TASK_NAMES, *OTHER_TASK_NAMES))}")
    made.add_argument(
        "--contenders", default=",".join(DEFAULT_CONTENDERS), help=f"comma-separated, from {','.join(CONTENDER_NAMES)}"
    )
    made.add_argument("--rounds", type=int, help="timed calls per contender after the warm-up call; 0: time that one")
    made.add_argument("--budget", type=float, help="seconds after which a contender is not called again")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="number of CPUs to bind all contenders to")
    made.add_argument(
        "--calls",
        choices=("none", "runner", "all"),
        help="tasks whose first and second calls are also timed in processes of their own, with a cold and a warm "
        "compilation cache, and memory; runner: the verdicts, by default; none with --quick",
    )
    made.add_argument("--quick", action="store_true", help="few images, tasks and rounds")
    made.add_argument(
        "--reference-seconds", type=float, help="recorded CPU seconds of another AutoAttack to compare with"
    )
    made.add_argument("--json", type=pathlib.Path, help="JSON file to write all measurements to")
    made.add_argument("--calls-of", nargs=2, metavar=("CONTENDER", "TASK"), help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str]) -> None:
    """Runs the benchmark as the command line says."""
    options = _checked(parser().parse_args(arguments))
    # Measure memory in use rather than reserved by the backend, and leave some for other processes.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from advjax.benchmarks import measure

    processors = measure.limit_threads(options.threads)
    import jax

    from advjax.attacks import use_compilation_cache
    from advjax.benchmarks import calls, run

    if options.calls_of:
        use_compilation_cache(os.environ["ADVJAX_COMPILATION_CACHE"])
        contender, task = options.calls_of
        print(json.dumps(calls.measure_here(contender, task, run.load_network(options), options.batch_size)))
        return
    # A cached executable would hide the compilation time.
    jax.config.update("jax_enable_compilation_cache", False)
    measured = run.run(options, lambda contender, task: calls.in_processes(arguments, contender, task))
    if options.json is not None:
        command = " ".join(["python -m advjax.benchmarks", *arguments])
        reports.write(options.json, reports.provenance(command, processors) | measured)


def _checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options with their defaults, before anything is imported that takes time."""
    for name, value in (QUICK if options.quick else DEFAULTS).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.batch_size = options.num_examples if options.batch_size is None else options.batch_size
    options.tasks = _chosen("--tasks", options.tasks, (*TASK_NAMES, *OTHER_TASK_NAMES))
    options.contenders = _chosen("--contenders", options.contenders, CONTENDER_NAMES)
    _chosen("--network", options.network, NETWORK_NAMES)
    least = {"num_examples": 1, "batch_size": 1, "threads": 1, "rounds": 0}
    for name, minimum in least.items():
        if getattr(options, name) < minimum:
            raise UserError(f"--{name.replace('_', '-')} must be at least {minimum}, got {getattr(options, name)}")
    for flag in ("weights", "images"):
        if (path := getattr(options, flag)) is not None and not pathlib.Path(path).is_file():
            raise UserError(f"--{flag}: there is no file {path}")
    if options.json is not None:
        reports.check_writable(options.json)
    return options


def _chosen(flag: str, text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{flag}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return names


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
