"""The published results of the five papers, one CSV file per table.

The files hold facts only: what was measured, the number, and a note where the number alone would mislead.  Tables that
were printed as illegible images are omitted.
"""

import csv
import functools
import importlib.resources
import math
from collections.abc import Mapping
from typing import NamedTuple

from advjax.types import UserError

__all__ = ["PAPERS", "PROVENANCES", "TABLES", "Published", "read", "unpublished"]

PAPERS: Mapping[str, str] = {
    "000": "intelligent mixup",
    "001": "mixup report",
    "002": "cross-architecture adversarial augmentation",
    "003": "fixers",
    "004": "Dauphine report",
}
"""Number of a paper, as used in tables, configs and docstrings -> its short name."""

TABLES: Mapping[str, str] = {
    "000_figure2": "Figure 2, numbers given in the text: Gaussian noise on training images",
    "000_table2": "Table 2: Gaussian noise on training images; levels called deviations match variances",
    "000_table3": "Table 3: VGG16 on CIFAR-10; n under attack is inferred: all accuracies are multiples of 0.05",
    "000_table4": "Table 4: a small network on Fashion-MNIST",
    "001_table1": "Table 1: clean MNIST accuracy, best epoch selected on test images",
    "001_table2": "Table 2: clean CIFAR-10 accuracy, best epoch selected on test images",
    "001_table3": "Table 3: attacks before adversarial training; per the logs, three times on the same vanilla network",
    "001_table4": "Table 4: adversarial training on MNIST, after epoch 799 of 800",
    "001_table5": "Table 5: MNIST before and after adversarial training, from Tables 1, 3 and 4",
    "001_table6": "Table 6: CIFAR-10 before (Tables 2 and 3) and after adversarial training (epoch 499 of 500)",
    "001_table7": "Table 7: mixup with soft labels; attack v1 on CIFAR-10 is weaker than v2",
    "001_table8": "Table 8: partial PGD; attack v1 on CIFAR-10 is weaker than v2",
    "001_pgd100": "logs: an earlier PGD-100 on training images, each network attacked directly",
    "001_epochs": "logs: clean test accuracy and losses after selected epochs of clean training",
    "001_adversarial_epochs": "logs: selected epochs of adversarial training; adjacent ones differ by several points",
    "001_last_epochs": "logs: mean over the last 50 epochs of adversarial training; std is over these epochs",
    "002_table1": "Table 1: clean accuracy before and after retraining",
    "002_table2": "Table 2, means given in the text: FGSM before retraining",
    "002_table4": "Table 4, means given in the text: FGSM after retraining",
    "003_table1": "Table 1: attacks crafted on the base (clean accuracy 91.2%); std is over five parts of the images",
    "003_text": "text on other figures",
    "004_section3": "Sections 3.1 to 3.3: attacks on a plain network; images held out from the training split",
    "004_table1": "Table 1: adversarial training",
    "004_table2": "Table 2: random self-ensemble",
    "004_section5": "Section 5.2: training with a fixed mixing weight",
    "004_figure3": "Figure 3: training with several fixed mixing weights; std is the error of reading the figure",
}
"""Name of a table -> its contents."""

PROVENANCES: Mapping[str, str] = {
    "paper": "printed in a table",
    "text": "given in the text",
    "log": "from logs released with the paper",
    "corrected": "printed, but moved to where the rest of the paper shows that it belongs",
    "derived": "computed from printed numbers",
    "figure": "read off a figure",
}
"""Where a number comes from."""


class Published(NamedTuple):
    """One published number and what it measures, in the terms of the paper."""

    paper: str
    """A key of `PAPERS`."""
    table: str
    """A key of `TABLES`."""
    model: str
    dataset: str
    """Dataset and split, followed by the subset in brackets, as in "cifar10/test[base_correct]"."""
    training: str
    attack: str
    """Including its budget if the paper states it, as in "FGSM:8/255"; "none" for clean images."""
    metric: str
    """"accuracy" in percent, "cross_entropy", "binary_cross_entropy" (a training loss, the mean over classes), or a
    difference in percentage points."""
    value: float
    std: float | None
    """Standard deviation; `TABLES` says over what."""
    n: int | None
    """Number of images; None if unknown."""
    provenance: str
    """A key of `PROVENANCES`."""
    note: str
    """A caveat about this number, or ""."""


def unpublished(paper: str, model: str, dataset: str, training: str, attack: str) -> Published:
    """What an accuracy is called that a figure shows without a number, or that is ours alone."""
    return Published(paper, "", model, dataset, training, attack, "accuracy", math.nan, None, None, "", "")


@functools.cache
def read(table: str) -> tuple[Published, ...]:
    """Reads the numbers of a table, in its order.

    Raises:
      UserError: ``table`` is not in `TABLES`.
    """
    if table not in TABLES:
        raise UserError(f"unknown published table {table!r}; known are {', '.join(TABLES)}")
    text = importlib.resources.files("advjax.papers").joinpath("tables", f"{table}.csv").read_text(encoding="utf-8")
    return tuple(_published(table, line) for line in csv.DictReader(text.splitlines()))


def _published(table: str, line: Mapping[str, str]) -> Published:
    return Published(
        paper=table.split("_")[0],
        table=table,
        model=line["model"],
        dataset=line["dataset"],
        training=line["training"],
        attack=line["attack"],
        metric=line["metric"],
        value=float(line["value"]),
        std=float(line["std"]) if line["std"] else None,
        n=int(line["n"]) if line["n"] else None,
        provenance=line["provenance"],
        note=line["note"],
    )
