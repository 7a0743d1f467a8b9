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

import numpy as np
from ml_collections import ConfigDict

from advjax import data
from advjax.experiment.from_config import from_config
from advjax.jobs import train
from advjax.papers import published
from advjax.runtime.devices import Devices, mesh
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
    logs = [entry for entry in published.read("001_epochs") if entry.metric == "accuracy"]
    found = {(entry.model, entry.training): entry.value for entry in logs}
    methods = {"vanilla": "vanilla", "mixup": "mixup", "manifold": "manifold_mixup"}
    return {name: tuple(found["LeNet5", f"{method}:{epoch}ep"] for epoch in EPOCHS) for name, method in methods.items()}


def accuracies(name: str, seed: int, workdir: str) -> list[float]:
    """Test accuracy in % after every epoch of one run."""
    config = mnist_mixup.get_config()
    config.seed, config.runs, config.evaluation.made_on, config.evaluation.batch_size = seed, (name,), name, 1000
    folder, began = pathlib.Path(workdir, f"seed_{seed}"), time.perf_counter()
    validate_on_test_images(config, folder / "validate_on_test.json")
    (run,) = from_config(config).runs
    if run.plan.select != "last" or run.plan.patience:
        raise ValueError("validation uses the test images: no checkpoint may be selected by it")
    train.train(config, str(folder), Devices(mesh(), config.mapping), print)
    print(f"{name}, seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    return [100 * line["accuracy"] for line in read_metrics(folder / name) if line["kind"] == "validation"]


def validate_on_test_images(config: ConfigDict, path: pathlib.Path) -> None:
    """Makes the test images the validation images, by an index file of both splits together."""
    splits = from_config(config).load_data()
    both = data.load("mnist", "train+test", directory=config.data.dir or None)
    test = np.arange(len(both.labels) - len(splits.test.labels), len(both.labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_index(path, both, {"train": splits.train.index, "validation": test, "test": test})
    config.data.update(train_split="train+test", num_validation=0, index_file=str(path))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
