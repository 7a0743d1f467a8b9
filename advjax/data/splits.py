"""Stratified, nested splits and subsets that are functions of (dataset, seed) only.

Most are prefixes, or consecutive pieces, of one ranking in which *every* prefix is stratified, so smaller subsets are
contained in larger ones by construction.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from advjax.data.order import seeded_permutation
from advjax.types import UserError


def stratified_ranking(labels: np.ndarray, *, key: tuple[str | int, ...]) -> np.ndarray:
    """Ranks all positions such that every prefix has the class proportions of the whole.

    Within its class of size m, an example gets a random rank j = 0 .. m - 1 and the quantile (j + 1/2) / m; examples
    are sorted by quantile, with ties between classes broken at random. A prefix then contains round(t m) examples of
    each class, for one t common to all classes (the Webster/Sainte-Lague apportionment).

    Args:
      labels: int [n], the classes.
      key: strings and integers that seed the random numbers.

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
      name: name of the dataset; different datasets share no randomness even with equal seeds.

    Returns:
      ``(train_positions, validation_positions)``: int32, sorted, disjoint, with union ``0 .. n - 1``.

    Raises:
      UserError: ``num_validation`` is negative or leaves no training examples, or a class would have no example on
        either side.
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
    _check_every_class(labels, train, f"the training examples left by {num_validation} for validation", "fewer")
    return train.astype(np.int32), validation.astype(np.int32)


def nested_subset(labels: np.ndarray, *, fraction: float, seed: int, name: str) -> np.ndarray:
    """A stratified fraction of the examples; smaller fractions are subsets of larger ones (1% of 10% of 100%).

    Args:
      labels: int [n], the classes.
      fraction: in (0, 1]; the subset has ``round(fraction * n)`` examples.
      seed: seed of the subset; subsets are nested for equal ``name`` and ``seed``.
      name: name of the dataset.

    Returns:
      int32 [round(fraction * n)], sorted positions.

    Raises:
      UserError: the fraction is outside (0, 1], or a class would have no example.
    """
    labels = _check_labels(labels, name)
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}; it must be greater than 0 and at most 1 (0.1 for 10%)")
    size = round(fraction * len(labels))
    subset = np.sort(stratified_ranking(labels, key=("subset", name, seed))[:size])
    _check_every_class(labels, subset, f"fraction {fraction} ({size} of {len(labels)} examples) of {name}", "more")
    return subset.astype(np.int32)


def fractions(labels: np.ndarray, shares: Sequence[float], *, seed: int, name: str) -> tuple[np.ndarray, ...]:
    """Splits a dataset into stratified parts of given fractions, such as 70%, 10%, and 20%.

    Args:
      labels: int [n], the classes.
      shares: fractions of the parts, each in (0, 1), with sum 1; part i ends at
        ``round(n * (shares[0] + ... + shares[i]))``.
      seed: seed of the split.
      name: name of the dataset; different datasets share no randomness even with equal seeds.

    Returns:
      int32 positions for each part: sorted, disjoint, with union ``0 .. n - 1``.

    Raises:
      UserError: the fractions do not sum to 1, or a part would have no example of some class.
    """
    labels, shares = _check_labels(labels, name), _check_shares(shares)
    ends = [round(len(labels) * end) for end in np.cumsum(shares)[:-1]]
    ranking = stratified_ranking(labels, key=("fractions", name, seed))
    parts = tuple(np.sort(part).astype(np.int32) for part in np.split(ranking, ends))
    for share, part in zip(shares, parts, strict=True):
        _check_every_class(
            labels, part, f"the share {share:g} ({len(part)} of {len(labels)} examples) of {name}", "more"
        )
    return parts


def k_fold(labels: np.ndarray, *, num_folds: int, fold: int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One fold of stratified k-fold cross-validation.

    The held-out parts of all folds are disjoint and cover the dataset; their sizes differ by at most 1.

    Args:
      labels: int [n], the classes.
      num_folds: number of folds, at least 2.
      fold: which fold, from 0 to ``num_folds - 1``.
      seed: seed of the parts, the same for all folds.
      name: name of the dataset.

    Returns:
      ``(train_positions, held_out_positions)``: int32, sorted.

    Raises:
      UserError: the fold does not exist, or a class would have no example on either side.
    """
    labels = _check_labels(labels, name)
    if not 2 <= num_folds <= len(labels):
        raise UserError(f"num_folds is {num_folds}, but {name} has {len(labels)} examples: choose 2 to {len(labels)}")
    if not 0 <= fold < num_folds:
        raise UserError(f"fold is {fold}; with {num_folds} folds it must be from 0 to {num_folds - 1}")
    ranking = stratified_ranking(labels, key=("k-fold", name, seed))
    parts = np.array_split(ranking, num_folds)
    held_out = np.sort(parts.pop(fold))
    train = np.sort(np.concatenate(parts))
    for side, positions in (("held-out", held_out), ("training", train)):
        _check_every_class(labels, positions, f"the {side} part of {num_folds} folds of {name}", "fewer folds")
    return train.astype(np.int32), held_out.astype(np.int32)


def class_balanced(labels: np.ndarray, *, per_class: int, seed: int, name: str) -> np.ndarray:
    """The same number of examples of every class; smaller subsets are contained in larger ones.

    Args:
      labels: int [n], the classes.
      per_class: number of examples of each class that occurs in ``labels``, at least 1.
      seed: seed of the random choice; subsets are nested for equal ``name`` and ``seed``.
      name: name of the dataset.

    Returns:
      int32 [per_class * classes], sorted positions.

    Raises:
      UserError: a class has fewer examples.
    """
    labels = _check_labels(labels, name)
    classes, counts = np.unique(labels, return_counts=True)
    if not 1 <= per_class <= counts.min():
        raise UserError(
            f"per_class is {per_class}, but class {classes[counts.argmin()]} of {name} has {counts.min()} examples: "
            f"choose 1 to {counts.min()}"
        )
    shuffled = seeded_permutation(len(labels), "class balanced", name, seed)
    chosen = [shuffled[labels[shuffled] == label][:per_class] for label in classes]
    return np.sort(np.concatenate(chosen)).astype(np.int32)


def by_group(groups: np.ndarray, shares: Sequence[float], *, seed: int, name: str) -> tuple[np.ndarray, ...]:
    """Splits a dataset such that no group, for example a patient, is in two parts.

    Groups are assigned in random order, each to the part that lacks the most examples; when only as many groups are
    left as there are empty parts, each of these gets one. Fractions are met up to about the size of the largest group.
    Equal fractions ``(1 / k,) * k`` give the parts of a grouped k-fold split.

    Args:
      groups: [n], the group of each example: strings or integers.
      shares: fractions of the examples in each part, each in (0, 1), with sum 1.
      seed: seed of the split.
      name: name of the dataset.

    Returns:
      int32 positions for each part: sorted, disjoint, nonempty, with union ``0 .. n - 1``.

    Raises:
      UserError: the fractions do not sum to 1, or there are fewer groups than parts.
    """
    groups, shares = np.asarray(groups), _check_shares(shares)
    if groups.ndim != 1 or not len(groups):
        raise UserError(f"groups of {name} have shape {groups.shape}; a split by group needs one for each example")
    names, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < len(shares):
        raise UserError(f"{name} has {len(names)} groups for {len(shares)} parts: ask for fewer parts")
    lacking = np.array(shares) * len(groups)
    part_of = np.full(len(names), -1)
    for done, group in enumerate(seeded_permutation(len(names), "by group", name, seed)):
        empty = np.setdiff1d(np.arange(len(shares)), part_of)
        candidates = empty if len(names) - done <= len(empty) else np.arange(len(shares))
        part_of[group] = candidates[lacking[candidates].argmax()]
        lacking[part_of[group]] -= sizes[group]
    return tuple(np.flatnonzero(part_of[group_of] == part).astype(np.int32) for part in range(len(shares)))


def index_hash(positions: np.ndarray) -> str:
    """Short fingerprint of a split: the first 12 hexadecimal digits of the SHA-256 of its positions, in order."""
    return hashlib.sha256(np.ascontiguousarray(positions, dtype="<i8").tobytes()).hexdigest()[:12]


def _check_labels(labels: np.ndarray, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) == 0:
        raise UserError(f"labels of {name} have shape {labels.shape}; a split needs one label for each example")
    return labels


def _check_shares(shares: Sequence[float]) -> tuple[float, ...]:
    shares = tuple(float(share) for share in shares)
    if len(shares) < 2 or not all(0 < share < 1 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UserError(
            f"shares are {shares}; give two or more numbers between 0 and 1 with sum 1, such as 0.7, 0.1, 0.2"
        )
    return shares


def _check_every_class(labels: np.ndarray, positions: np.ndarray, what: str, remedy: str) -> None:
    absent = np.setdiff1d(labels, labels[positions])
    if absent.size:
        raise UserError(
            f"{what} would leave {absent.size} of {np.unique(labels).size} classes without an example "
            f"(class {absent[0]} has {int(np.sum(labels == absent[0]))}): take {remedy}"
        )
