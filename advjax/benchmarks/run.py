"""Runs the benchmark: every attack by every contender, in interleaved rounds."""

import argparse
import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.console import Console

from advjax.benchmarks import measure, results
from advjax.benchmarks.attack_calls import ATTACKS, ENSEMBLES, AttackOutput
from advjax.benchmarks.contenders import CONTENDERS
from advjax.benchmarks.networks import Network, forward_flops, make_network, predict
from advjax.benchmarks.results import Measurement

NO_LOSS = "No contender was faster than advjax or used less memory."
MemoryOf = Callable[[str, str], dict[str, float] | None]
"""``(contender, attack) -> {"idle": MiB, "peak": MiB}``, measured in a separate process."""


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


def run(options: argparse.Namespace, memory_of: MemoryOf) -> dict[str, Any]:
    """Runs all measurements, prints their tables, and returns them for the JSON file."""
    clock, ceiling = measure.CompileClock(), _ceiling()
    network = load_network(options)
    missing, present = {}, {}
    for name in options.contenders:
        reason = CONTENDERS[name].missing(network)
        if reason is None:
            present[name] = CONTENDERS[name]
        else:
            missing[name] = reason
    flops = forward_flops(lambda images: network.forward(network.variables, images), network.images.shape[1:])
    console, rows, broken, absent = Console(width=results.WIDTH), [], {}, []
    for attack in options.attacks:
        prepared = {name: c.prepare(attack, network, options.batch_size) for name, c in present.items()}
        absent += [f"{name} has no {attack}" for name, made in prepared.items() if made is None]
        runs = {name: made for name, made in prepared.items() if made is not None}
        timings, outputs = measure.interleaved(
            runs, rounds=options.rounds, budget=options.budget, clock=clock, after_round=ceiling.measure
        )
        for name, output in outputs.items():
            memory = memory_of(name, attack) if options.memory and attack not in ENSEMBLES else None
            row, broken[attack, name] = _row(attack, name, network, timings[name], output, flops, ceiling, memory)
            rows.append(row)
        console.print(results.table([row for row in rows if row.attack == attack], f"{attack}: {ATTACKS[attack]}"))
    sentences = {
        "losses": results.losses(rows),
        "comparisons": results.comparisons(rows, broken, options.reference_seconds, options.threads),
    }
    _print_notes(console, network, flops, ceiling, missing, absent, sentences)
    return {
        "schema_version": results.SCHEMA_VERSION,
        "settings": {key: _plain(value) for key, value in vars(options).items()},
        "network": {"name": network.name, "epsilon": network.epsilon, "forward_flops": flops},
        "ceiling_gflops": {"size": ceiling.size, "median": ceiling.median, "all": ceiling.gflops},
        "rows": [row.to_json() for row in rows],
        "missing": missing,
        "absent": absent,
        "notes": {name: contender.note for name, contender in present.items() if contender.note},
        **sentences,
    }


def memory_of(contender: str, attack: str, options: argparse.Namespace) -> dict[str, float]:
    """Peak memory of this process, which must run nothing else, before and after the attack."""
    made = CONTENDERS[contender].prepare(attack, load_network(options), options.batch_size)
    assert made is not None
    measure.forget_peak_memory()
    idle = measure.peak_memory_mib()
    made()
    return {"idle": idle, "peak": measure.peak_memory_mib()}


def _ceiling() -> measure.Ceiling:
    # On an accelerator, a single small product is too fast to time.
    return measure.Ceiling() if jax.default_backend() == "cpu" else measure.Ceiling(size=8192, repeats=20)


def _row(attack, name, network, timing, output: AttackOutput, flops, ceiling, memory) -> tuple[Measurement, np.ndarray]:
    wrong = predict(network.forward, network.variables, output.adversarial) != network.labels
    distances = np.sqrt(np.sum((output.adversarial - network.images) ** 2, axis=(1, 2, 3)))
    gflops = None if output.passes is None else output.passes * flops / timing.median / 1e9
    package = CONTENDERS[name].package
    row = Measurement(
        attack=attack,
        contender=name,
        version=importlib.metadata.version("advjax" if name.startswith("advjax") else package),
        examples=len(network.images),
        seconds=timing.seconds,
        cpu_seconds=timing.cpu_seconds,
        compile_seconds=timing.compile_seconds,
        is_first_call=timing.is_first_call,
        gflops=gflops,
        ceiling_share=None if gflops is None else gflops / ceiling.median,
        remaining_accuracy=1 - float(np.mean(wrong)),
        median_l2=float(np.median(distances)),
        peak_memory_mib=None if memory is None else memory["peak"],
        idle_memory_mib=None if memory is None else memory["idle"],
    )
    return row, wrong


def _print_notes(console, network, flops, ceiling, missing, absent, sentences) -> None:
    console.print(
        f"{network.name}: {flops / 1e6:.2f} MFLOPs per forward pass, epsilon {network.epsilon:.4g}", highlight=False
    )
    spread = f"{min(ceiling.gflops):.0f} to {max(ceiling.gflops):.0f}, median {ceiling.median:.0f}"
    console.print(f"{ceiling.size}^3 float32 matrix product: {spread} GFLOP/s", highlight=False)
    for name, reason in missing.items():
        console.print(f"skipped: {name} ({reason})", highlight=False)
    for line in absent:
        console.print(f"skipped: {line}", highlight=False)
    for line in sentences["losses"] or [NO_LOSS]:
        console.print(f"advjax loses: {line}" if line is not NO_LOSS else line, highlight=False)
    for line in sentences["comparisons"]:
        console.print(line, highlight=False)


def _plain(value):
    return value if isinstance(value, str | int | float | bool | list | None) else str(value)
