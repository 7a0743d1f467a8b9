"""Runs the benchmark: every task by every contender, in interleaved rounds."""

import argparse
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console

from advjax.benchmarks import measure, results
from advjax.benchmarks.contenders import CONTENDERS, Contender
from advjax.benchmarks.networks import Network, forward_flops, make_network, predict
from advjax.benchmarks.results import Measurement
from advjax.benchmarks.tasks import TASKS, Output, is_of_runner
from advjax.types import UserError

CallsOf = Callable[[str, str], dict[str, Any] | None]
"""``calls.in_processes`` of ``(contender, task)``."""
LOSS_TOLERANCE = 0.01
"""Relative; that of the same network and batch in float32, BatchNorm included, is 1e-5, in bfloat16 1e-3."""


def load_network(options: argparse.Namespace) -> Network:
    """The network and images that the command line specifies."""
    return make_network(
        options.network,
        options.num_examples,
        weights=options.weights,
        images=options.images,
        epsilon=options.epsilon,
        width=options.width,
    )


def run(options: argparse.Namespace, calls_of: CallsOf) -> dict[str, Any]:
    """Runs all measurements, prints their tables, and returns them for the JSON file."""
    clock, ceiling = measure.CompileClock(), _ceiling()
    network = load_network(options)
    missing = {name: reason for name in options.contenders if (reason := CONTENDERS[name].missing(network))}
    present = {name: CONTENDERS[name] for name in options.contenders if name not in missing}
    flops = forward_flops(lambda images: network.forward(network.variables, images), network.images.shape[1:])
    scored = _Scored(network, flops, ceiling)
    console, rows, broken, absent = Console(width=results.WIDTH), [], {}, []
    for task in options.tasks:
        prepared = {name: contender.prepare(task, network, options.batch_size) for name, contender in present.items()}
        absent += [f"{name} has no {task}" for name, made in prepared.items() if made is None]
        runs = {name: made for name, made in prepared.items() if made is not None}
        timings, outputs = measure.interleaved(
            runs, rounds=options.rounds, budget=options.budget, clock=clock, after_round=ceiling.measure
        )
        _check_losses(task, outputs)
        for name, output in outputs.items():
            is_called = options.calls == "all" or (options.calls == "runner" and is_of_runner(task))
            calls = calls_of(name, task) if is_called else None
            broken[task, name] = scored.broken(output)
            row = scored.row(task, CONTENDERS[name], timings[name], output, broken[task, name], calls)
            rows.append(row)
        console.print(results.table([row for row in rows if row.task == task], f"{task}: {TASKS[task]}"))
    if (table := results.calls_table(rows)) is not None:
        console.print(table)
    comparisons = results.comparisons(rows, broken, options.reference_seconds, options.threads)
    _print_notes(console, network, flops, ceiling, missing, absent, [*results.outcome(rows), *comparisons])
    return {
        "schema_version": results.SCHEMA_VERSION,
        "settings": {key: _plain(value) for key, value in vars(options).items()},
        "network": {"name": network.name, "epsilon": network.epsilon, "forward_flops": flops},
        "wrong": 1 - float(np.mean(scored.right)),
        "ceiling_gflops": {"size": ceiling.size, "median": ceiling.median, "all": ceiling.gflops},
        "rows": [row.to_json() for row in rows],
        "missing": missing,
        "absent": absent,
        "notes": {name: contender.note for name, contender in present.items()},
        "losses": results.losses(rows),
        "comparisons": comparisons,
    }


def _ceiling() -> measure.Ceiling:
    # On an accelerator, a single small product is too fast to time.
    return measure.Ceiling() if jax.default_backend() == "cpu" else measure.Ceiling(size=8192, repeats=20)


def _check_losses(task: str, outputs: Mapping[str, Output]) -> None:
    """Raises if contenders that train do not start from the same loss: then they do not do the same."""
    losses = {name: output.loss for name, output in outputs.items() if output.loss is not None}
    if losses and not max(losses.values()) - min(losses.values()) <= LOSS_TOLERANCE * max(losses.values()):
        raise UserError(f"{task}: the losses of the first step differ: {losses}")


class _Scored:
    """What is said about the calls of all contenders for one network."""

    def __init__(self, network: Network, flops: float, ceiling: measure.Ceiling):
        self.network, self.flops, self.ceiling = network, flops, ceiling
        self.right = predict(network.forward, network.variables, network.images) == network.labels

    def broken(self, output: Output) -> np.ndarray | None:
        """bool [n], the images that are misclassified afterward; None for training."""
        if output.adversarial is None:
            return None
        return predict(self.network.forward, self.network.variables, output.adversarial) != self.network.labels

    def distance(self, output: Output) -> float | None:
        """Median l2 distance of the images that were right; None for training, or if there are none."""
        if output.adversarial is None or not self.right.any():
            return None
        moved = output.adversarial[self.right] - self.network.images[self.right]
        return float(np.median(np.sqrt(np.sum(moved**2, axis=(1, 2, 3)))))

    def row(
        self,
        task: str,
        contender: Contender,
        timing: measure.Timing,
        output: Output,
        broken: np.ndarray | None,
        calls: dict[str, Any] | None,
    ) -> Measurement:
        """The measured row."""
        gflops = None if output.passes is None else output.passes * self.flops / timing.median / 1e9
        return Measurement(
            task=task,
            contender=contender.name,
            is_ours=contender.is_ours,
            version=importlib.metadata.version("advjax" if contender.is_ours else contender.package),
            examples=len(self.network.images),
            seconds=timing.seconds,
            cpu_seconds=timing.cpu_seconds,
            compile_seconds=timing.compile_seconds,
            later_compile_seconds=timing.later_compile_seconds,
            is_first_call=timing.is_first_call,
            gflops=gflops,
            ceiling_share=None if gflops is None else gflops / self.ceiling.median,
            remaining_accuracy=None if broken is None else 1 - float(np.mean(broken)),
            median_l2=self.distance(output),
            loss=output.loss,
            processes=calls,
        )


def _print_notes(console, network, flops, ceiling, missing, absent, sentences) -> None:
    lines = [f"{network.name}: {flops / 1e6:.2f} MFLOPs per forward pass, epsilon {network.epsilon:.4g}"]
    spread = f"{min(ceiling.gflops):.0f} to {max(ceiling.gflops):.0f}, median {ceiling.median:.0f}"
    lines.append(f"{ceiling.size}^3 float32 matrix product: {spread} GFLOP/s")
    lines += [f"skipped: {name} ({reason})" for name, reason in missing.items()]
    lines += [f"skipped: {line}" for line in absent]
    for line in (*lines, *sentences):
        console.print(line, highlight=False)


def _plain(value):
    return value if isinstance(value, str | int | float | bool | list | None) else str(value)
