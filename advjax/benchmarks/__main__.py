"""Measures how many examples per second attacks process, in advjax and in other libraries."""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from advjax.types import UserError

ATTACK_NAMES = ("pgd-20", "autopgd-100", "cw-l2-100", "deepfool-l2-50", "autoattack", "quick-check")
ADVJAX_ONLY_NAMES = (
    *("fgsm", "one-step-least-likely", "bim-10", "autopgd-l1-100", "cw-linf", "cw-l2-line-search"),
    *("cw-linf-line-search", "fab-t-100", "square-1000"),
)
"""Attacks timed for advjax only, on request."""
CONTENDER_NAMES = ("advjax", "advjax-bfloat16", "advjax-exact", "torch", "torchattacks", "foolbox", "art")
DEFAULT_CONTENDERS = tuple(name for name in CONTENDER_NAMES if name != "advjax-exact")
DEFAULTS = {"num_examples": 64, "rounds": 3, "budget": 120.0, "attacks": ",".join(ATTACK_NAMES), "memory": True}
QUICK = {"num_examples": 32, "rounds": 2, "budget": 15.0, "attacks": ",".join(ATTACK_NAMES[:4]), "memory": False}
PACKAGES = ("advjax", "jax", "jaxlib", "flax", "numpy", "torch", "torchattacks", "foolbox")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m advjax.benchmarks", description=__doc__)
    made.add_argument("--network", default="cifar_cnn", help="mnist_cnn, cifar_cnn, or (JAX only) resnet9 or resnet18")
    made.add_argument("--width", type=float, default=1.0, help="channel multiplier of a ResNet")
    made.add_argument("--weights", help="npz file with weights for mnist_cnn or cifar_cnn; default: random weights")
    made.add_argument("--images", help="npz file with images and labels; default: random images")
    made.add_argument(
        "--epsilon", type=float, help="linf budget; default with random weights: 1e-6, so that no attack succeeds"
    )
    made.add_argument("--num-examples", type=int, help="number of images to attack")
    made.add_argument("--batch-size", type=int, help="default: all examples at once")
    made.add_argument("--attacks", help=f"comma-separated, from {','.join((*ATTACK_NAMES, *ADVJAX_ONLY_NAMES))}")
    made.add_argument(
        "--contenders", default=",".join(DEFAULT_CONTENDERS), help=f"comma-separated, from {','.join(CONTENDER_NAMES)}"
    )
    made.add_argument("--rounds", type=int, help="timed calls per contender after the warm-up call")
    made.add_argument("--budget", type=float, help="seconds after which a contender is not called again")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="number of CPUs to bind all contenders to")
    made.add_argument("--memory", action=argparse.BooleanOptionalAction, default=None, help="measure peak memory")
    made.add_argument("--quick", action="store_true", help="few examples and rounds; no ensembles, no memory")
    made.add_argument(
        "--reference-seconds", type=float, help="recorded CPU seconds of another AutoAttack to compare with"
    )
    made.add_argument("--json", type=pathlib.Path, help="JSON file to write all measurements to")
    made.add_argument("--memory-of", nargs=2, metavar=("CONTENDER", "ATTACK"), help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str]) -> None:
    """Runs the benchmark as the command line says."""
    options = parser().parse_args(arguments)
    for name, value in (QUICK if options.quick else DEFAULTS).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.batch_size = options.batch_size or options.num_examples
    options.attacks = _chosen("--attacks", options.attacks, (*ATTACK_NAMES, *ADVJAX_ONLY_NAMES))
    options.contenders = _chosen("--contenders", options.contenders, CONTENDER_NAMES)
    for name in ("num_examples", "batch_size", "rounds", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    for flag in ("weights", "images"):
        if (path := getattr(options, flag)) is not None and not pathlib.Path(path).is_file():
            raise UserError(f"--{flag}: there is no file {path}")
    if options.json is not None:
        _check_writable(options.json)
    # Measure memory in use rather than reserved by the backend, and leave some for other processes.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from advjax.benchmarks import measure

    processors = measure.limit_threads(options.threads)
    import jax

    # A cached executable would hide the compilation time.
    jax.config.update("jax_enable_compilation_cache", False)
    from advjax.benchmarks import run

    if options.memory_of:
        contender, attack = options.memory_of
        print(json.dumps(run.memory_of(contender, attack, options)))
        return
    measured = run.run(options, lambda contender, attack: _memory_in_child(arguments, contender, attack))
    report = provenance(arguments, processors) | measured
    if options.json is not None:
        from advjax.runtime.files import write_atomically

        write_atomically(options.json, (json.dumps(report, indent=1) + "\n").encode())


def _check_writable(path: pathlib.Path) -> None:
    """Refuses, before minutes of measurements, a file that could not be written after them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--json: the folder of {path} cannot be created ({error.strerror})") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--json: {path} cannot be written")


def _chosen(flag: str, text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{flag}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return names


def _memory_in_child(arguments: Sequence[str], contender: str, attack: str) -> dict[str, float] | None:
    command = [sys.executable, "-m", "advjax.benchmarks", *arguments, "--memory-of", contender, attack]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"could not measure the memory of {contender} running {attack}:\n{done.stderr}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def provenance(arguments: Sequence[str], processors: Sequence[int]) -> dict[str, Any]:
    """Date, command, machine, package versions and environment of a measurement."""
    import jax

    versions = {}
    for package in (*PACKAGES, "adversarial-robustness-toolbox"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.local_devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m advjax.benchmarks", *arguments]),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "python": platform.python_version(),
            "processors": list(processors),
            "backend": device.platform,
            "device": device.device_kind,
            "load_average": os.getloadavg(),
        },
        "versions": versions,
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_", "OMP_", "NPROC"))
        },
    }


def _processor() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
