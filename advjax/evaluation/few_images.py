"""Which images stand for a data set where not all of them are used: test images, report cards, curves, pictures.

The first of a benchmark, whose published order is shuffled and which leaderboards take; a seeded stratified draw of any
other data set: the manifest of a folder is often sorted by class, and its first images are of one class.
"""

import numpy as np

from advjax.data import Dataset
from advjax.data.splits import stratified_ranking

BENCHMARKS = ("cifar10", "cifar10_c", "cifar100", "mnist", "fashion_mnist", "digits")
"""Data sets whose first test images are a random sample, and the ones that others report on."""


def takes_first(labels: np.ndarray, name: str) -> bool:
    """Whether the first images are taken: those of a benchmark, unless they are sorted by class."""
    is_sorted = len(labels) > 1 and labels[0] != labels[-1] and bool(np.all(np.diff(labels) >= 0))
    return name in BENCHMARKS and not is_sorted


def ranked(labels: np.ndarray, name: str, seed: int) -> np.ndarray:
    """All positions of a data set, those to take first at the beginning.

    Args:
      labels: int [n].
      name: of the data set.
      seed: of the draw.
    """
    if takes_first(labels, name):
        return np.arange(len(labels))
    return stratified_ranking(labels, key=("few images", name, seed))


def few_images(dataset: Dataset, count: int, seed: int) -> Dataset:
    """``count`` images of a data set in its order, or all of them if it has fewer."""
    return dataset.take(np.sort(ranked(dataset.labels, dataset.name, seed)[:count]))


def described(dataset: Dataset, count: int, seed: int) -> str:
    """What ``few_images`` takes, in words."""
    how = "the first" if takes_first(dataset.labels, dataset.name) else f"a stratified draw with seed {seed}"
    return f"{min(count, len(dataset.labels)):,} of {len(dataset.labels):,} images, {how}"
