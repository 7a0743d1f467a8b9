"""The results of the five papers as they were published, a csv file for each table.

Facts alone: what was measured, the number, and a few words where it would mislead without them.  Numbers that were
printed as pictures of tables and cannot be read are left out.
"""

import csv
import functools
import importlib.resources
from collections.abc import Mapping
from typing import NamedTuple

from advjax.types import UserError

__all__ = ["PAPERS", "PROVENANCES", "TABLES", "Published", "read"]

PAPERS: Mapping[str, str] = {
    "000": "intelligent mixup",
    "001": "mixup report",
    "002": "cross-architecture adversarial augmentation",
    "003": "fixers",
    "004": "Dauphine report",
}
"""The papers by the numbers that tables, configs and docstrings give them."""

TABLES: Mapping[str, str] = {
    "000_figure2": "Figure 2, the numbers in the prose: Gaussian noise on training images",
    "000_table2": "Table 2: Gaussian noise on training images; levels are called deviations, but fit variances",
    "000_table3": "Table 3: VGG16 on CIFAR-10; n is inferred under attack, where all numbers are multiples of 0.05",
    "000_table4": "Table 4: a small network on Fashion-MNIST",
    "001_table1": "Table 1: clean MNIST, the best epoch on the test images",
    "001_table2": "Table 2: clean CIFAR-10, the best epoch on the test images",
    "001_table3": "Table 3: attacks before adversarial training; by the logs on one vanilla network, three times",
    "001_table4": "Table 4: adversarial training on MNIST, after epoch 799 of 800",
    "001_table5": "Table 5: MNIST before and after, from Tables 1, 3 and 4",
    "001_table6": "Table 6: CIFAR-10 before and after, epoch 499 of 500; before: as in Tables 2 and 3",
    "001_table7": "Table 7: mixup with soft labels; attack v1 on CIFAR-10 is weaker than v2",
    "001_table8": "Table 8: partial PGD; attack v1 on CIFAR-10 is weaker than v2",
    "001_pgd100": "logs of an earlier PGD-100 on training images, each network attacked itself",
    "001_epochs": "logs: clean test accuracy after some epochs of clean training",
    "001_adversarial_epochs": "logs: accuracies after some epochs of adversarial training; neighbours differ by points",
    "001_last_epochs": "logs: mean of the last 50 epochs of adversarial training; std is that of these epochs",
    "002_table1": "Table 1: clean accuracy before and after",
    "002_table2": "Table 2, the means in the prose: FGSM before",
    "002_table4": "Table 4, the means in the prose: FGSM after",
    "003_table1": "Table 1: attacks made on the base, which has 91.2 % right; std is that of five parts of the images",
    "003_text": "prose on other figures",
    "004_section3": "Sections 3.1 to 3.3: attacks on a plain network, images held out of the training split",
    "004_table1": "Table 1: adversarial training",
    "004_table2": "Table 2: random self-ensemble",
    "004_section5": "Section 5.2: training on fixed mixes",
    "004_figure3": "Figure 3: training on fixed mixes at several weights; std is the error of reading the figure",
}
"""Every table that can be read, and what it is of."""

PROVENANCES: Mapping[str, str] = {
    "paper": "printed in a table",
    "text": "printed in the prose",
    "log": "in logs that came with the paper",
    "corrected": "printed, but put where the rest of the paper shows it to belong",
    "derived": "computed from printed numbers",
    "figure": "read off a figure",
}
"""Where a number comes from."""


class Published(NamedTuple):
    """One published number, and what it is of, in the words of the paper."""

    paper: str
    """A key of `PAPERS`."""
    table: str
    """A key of `TABLES`."""
    model: str
    dataset: str
    """Data set and split; in brackets the subset, as in "cifar10/test[base_correct]"."""
    training: str
    attack: str
    """With its size where the paper tells it, as in "FGSM:8/255"; "none" for clean images."""
    metric: str
    """"accuracy" in percent, "cross_entropy", or some difference in points."""
    value: float
    std: float | None
    """Of what, `TABLES` says."""
    n: int | None
    """Number of images, if that is known."""
    provenance: str
    """A key of `PROVENANCES`."""
    note: str
    """What to know about this number above others, or ""."""


@functools.cache
def read(table: str) -> tuple[Published, ...]:
    """The numbers of a table, in its order.

    Raises:
      UserError: there is no such table.
    """
    if table not in TABLES:
        raise UserError(f"no published table {table!r}; there are {', '.join(TABLES)}")
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
