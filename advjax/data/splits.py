"""Splits and subsets: stratified, nested, and functions of (data set, seed) alone.

Both are prefixes of one ranking in which *every* prefix is stratified, so smaller subsets lie inside larger ones by
construction.
"""

import hashlib

import numpy as np

from advjax.data.order import seeded_permutation
from advjax.types import UserError


def stratified_ranking(labels: np.ndarray, *, key: tuple[str | int, ...]) -> np.ndarray:
    """All positions, ranked such that the classes of every prefix are as balanced as those of the whole.

    Within its class of size m an example gets a random rank j = 0 .. m - 1 and the quantile (j + 1/2) / m; examples are
    sorted by quantile, ties between classes at random.  A prefix then holds round(t m) examples of each class, for one
    t common to all classes (the apportionment of Webster and Sainte-Lague).

    Args:
      labels: int [n], the classes.
      key: names and numbers that select the random numbers.

    Returns:
      int64 [n], a permutation of the positions.
    """
    labels = np.asarray(labels)
    shuffled = seeded_permutation(len(labels), *key)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    rank_in_class = np.concatenate([np.arange(count) for count in counts])
    quantile = np.empty(len(labels))
    quantile[by_class] = (2 * rank_in_class + 1) / np.repeat(2 * counts, counts)
    place = np.empty(len(labels), np.int64)
    place[shuffled] = np.arange(len(labels))
    return np.lexsort((place, quantile))


def train_validation(labels: np.ndarray, *, num_validation: int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Splits a training set into training and validation examples, stratified.

    Args:
      labels: int [n], the classes of the whole training set.
      num_validation: exact number of validation examples; 0 for none.
      seed: seed of the split.
      name: name of the data set: with one seed, different data sets share no randomness.

    Returns:
      ``(train_positions, validation_positions)``: int32, sorted, disjoint, together all of ``0 .. n - 1``.

    Raises:
      UserError: if ``num_validation`` is negative or leaves no training examples, or if a class would be left without
        an example on either side.
    """
    labels = _check_labels(labels, name)
    if not 0 <= num_validation < len(labels):
        raise UserError(
            f"num_validation is {num_validation}, but {name} has {len(labels)} training examples: "
            f"choose a number from 0 to {len(labels) - 1}"
        )
    ranking = stratified_ranking(labels, key=("validation", name, seed))
    validation, train = np.sort(ranking[:num_validation]), np.sort(ranking[num_validation:])
    if num_validation:
        _check_every_class(labels, validation, f"{num_validation} validation examples of {name}", "more")
    _check_every_class(labels, train, f"the training examples that {num_validation} for validation leave", "fewer")
    return train.astype(np.int32), validation.astype(np.int32)


def nested_subset(labels: np.ndarray, *, fraction: float, seed: int, name: str) -> np.ndarray:
    """A stratified share of the examples; smaller shares lie inside larger ones (1 % in 10 % in 100 %).

    Args:
      labels: int [n], the classes.
      fraction: share in (0, 1]; the subset has ``round(fraction * n)`` examples.
      seed: seed of the subset; shares are nested for equal ``name`` and ``seed``.
      name: name of the data set.

    Returns:
      int32 [round(fraction * n)], sorted positions.

    Raises:
      UserError: if the fraction is outside (0, 1], or a class would be left without an example.
    """
    labels = _check_labels(labels, name)
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}; it must be greater than 0 and at most 1 (0.1 for 10 %)")
    size = round(fraction * len(labels))
    subset = np.sort(stratified_ranking(labels, key=("subset", name, seed))[:size])
    _check_every_class(labels, subset, f"fraction {fraction} ({size} of {len(labels)} examples) of {name}", "more")
    return subset.astype(np.int32)


def index_hash(positions: np.ndarray) -> str:
    """Short fingerprint of a split: the first 12 hexadecimal digits of the SHA-256 of its positions, order included."""
    return hashlib.sha256(np.ascontiguousarray(positions, dtype="<i8").tobytes()).hexdigest()[:12]


def _check_labels(labels: np.ndarray, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) == 0:
        raise UserError(f"labels of {name} have shape {labels.shape}; a split needs one label for each example")
    return labels


def _check_every_class(labels: np.ndarray, positions: np.ndarray, what: str, remedy: str) -> None:
    absent = np.setdiff1d(labels, labels[positions])
    if absent.size:
        raise UserError(
            f"{what} would leave {absent.size} of {np.unique(labels).size} classes without an example "
            f"(class {absent[0]} has {int(np.sum(labels == absent[0]))}): take {remedy}"
        )
