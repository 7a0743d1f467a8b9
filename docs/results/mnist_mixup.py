"""Test accuracy after every epoch of ``configs/mnist_mixup.py`` beside the mixup report's, into mnist_mixup.csv.

    python -m docs.results.mnist_mixup WORKDIR [NUM_SEEDS]

The report gives no validation accuracy, only test accuracy after every epoch.  So the test images stand in for the
validation images here.  Nothing is chosen by what is measured on them: every run goes to its last epoch.
"""

import csv
import pathlib
import statistics
import sys
import time

from advjax import wiring
from advjax.jobs import train
from advjax.papers import published
from advjax.runtime import devices as sharding
from advjax.runtime.metrics import read_metrics
from configs import mnist_mixup

EPOCHS = range(1, 6)


def main(workdir: str, num_seeds: int = 3) -> None:
    """Trains the three runs with every seed and writes the table."""
    report = reported()
    found = {name: [accuracies(name, seed, workdir) for seed in range(num_seeds)] for name in report}
    with pathlib.Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "epoch", "report", "mean", "sd", *(f"seed_{seed}" for seed in range(num_seeds))])
        for name, values in report.items():
            for epoch, theirs in zip(EPOCHS, values, strict=True):
                ours = [seed[epoch - 1] for seed in found[name]]
                spread = statistics.stdev(ours) if len(ours) > 1 else float("nan")
                numbers = (theirs, statistics.mean(ours), spread, *ours)
                writer.writerow([name, epoch, *(f"{value:.2f}" for value in numbers)])


def reported() -> dict[str, tuple[float, ...]]:
    """Clean test accuracy in % after each epoch, from the training logs that were published with the report's code."""
    found = {(entry.model, entry.training): entry.value for entry in published.read("001_epochs")}
    methods = {"vanilla": "vanilla", "mixup": "mixup", "manifold": "manifold_mixup"}
    return {name: tuple(found["LeNet5", f"{method}:{epoch}ep"] for epoch in EPOCHS) for name, method in methods.items()}


def accuracies(name: str, seed: int, workdir: str) -> list[float]:
    """Test accuracy in % after every epoch of one run."""
    config = mnist_mixup.get_config()
    config.seed, config.runs, config.evaluation.made_on, config.evaluation.batch_size = seed, (name,), name, 1000
    built = wiring.from_config(config)
    if built.runs[0].plan.select != "last" or built.runs[0].plan.patience:
        raise ValueError("the test images are watched: nothing may be chosen by them")
    built = built._replace(data=built.data._replace(validation=built.data.test))
    folder, began = f"{workdir}/seed_{seed}", time.perf_counter()
    train.train(built, folder, sharding.Devices(sharding.mesh(), built.mapping), print)
    print(f"{name}, seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    return [100 * line["accuracy"] for line in read_metrics(f"{folder}/{name}") if line["kind"] == "validation"]


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
