"""Clean training of the mixup report (001) with accuracy per epoch: Tables 1 to 3, Figures 3 to 6.

    python -m advjax.main --config=configs/papers/mixup_report/clean.py:mnist

After the colon is the data set, ``mnist`` (LeNet-5, 500 epochs) or ``cifar10`` (PreActResNet-18, 2,000 epochs).  As in
the report, every epoch is measured on the test images, and the best of them is the network that the tables are about;
``metrics.jsonl`` holds all of them, so that the numbers of the logs come from one run.  The attack of Table 3 is the
report's own.  On MNIST, 100 epochs agree with the logs within 0.9 points (docs/papers/001_table1.small.md); not run on
CIFAR-10 yet.
"""

from collections.abc import Iterator
from typing import Any

from advjax.experiment import defaults
from advjax.papers.join import publish
from advjax.types import UserError
from configs.papers.mixup_report import cifar, mnist
from configs.papers.mixup_report.experiment import LOSS, experiment

METHODS = {"vanilla": "vanilla", "mixup": "mixup", "manifold": "manifold_mixup"}
"""Our run -> its name in the tables."""
EPOCHS = (1, 2, 3, 4, 5, 10, 20, 50, 100, 200, 501, 1001)
"""Epochs in the packaged logs."""
DATA = {
    "mnist": ("LeNet5", "001_table1", "own_pgd:mnist"),
    "cifar10": ("PreActResNet18", "001_table2", "own_pgd:cifar10:v1"),
}
"""Data set -> network, table of its clean accuracies, attack of Table 3."""


def get_config(data: str = "mnist"):
    """The experiment on one of the two data sets."""
    if data not in DATA:
        raise UserError(f"configs/papers/mixup_report/clean.py:{data}: known are {', '.join(DATA)}")
    whole = (mnist if data == "mnist" else cifar).get_config("clean")
    recipe = whole.run.clean.to_dict()
    runs = {
        "vanilla": recipe,
        "mixup": {**recipe, "targets": {"order": ("mixup",), "mixup": {"alpha": 1.0}}},
        "manifold": {**recipe, "objective": {"name": "manifold_mixup", "loss": LOSS, "alpha": 2.0}},
    }
    selection = {"select": "best", "select_metric": "accuracy", "validate_loss": True}
    attacks = whole.evaluation.attacks.to_dict()
    own = "own_pgd" if data == "mnist" else "own_pgd_v1"
    sound = attacks["order"][0]
    config: Any = experiment(
        f"Clean training of the mixup report on {data}",
        data={"name": data, "per_class": 5000 if data == "mnist" else 0, "validate_on_test": True},
        described={name: defaults.run(**{**run, **selection}) for name, run in runs.items()},
        chosen="",
        attacks={sound: attacks[sound], own: attacks[own]},
    )
    config.evaluation.faithful_attacks = (own,)
    publish(config, tuple(_published(data, own, sound)))
    return config


def _published(data: str, own: str, sound: str) -> Iterator[dict[str, Any]]:
    """Clean accuracies, best and of single epochs, and those of Table 3, which is one network three times."""
    model, table, attack = DATA[data]
    epochs = [epoch for epoch in EPOCHS if data == "cifar10" or epoch <= 200]
    for run, training in METHODS.items():
        found = {"model": model, "training": training, "run": run}
        attacked = {"attack": attack, "our_attack": own, "sound_attack": sound}
        attacked |= {"adaptive": True, "protocol": "faithful"}
        yield {**found, "table": table, "attack": "none", "our_attack": "clean"}
        yield {**found, "table": "001_table3", **attacked}
        for epoch in epochs:
            at = {"table": "001_epochs", "training": f"{training}:{epoch}ep", "our_attack": "clean"}
            yield {**found, **at, "when": {f"run.{run}.epochs": epoch}}
