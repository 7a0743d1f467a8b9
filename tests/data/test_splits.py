"""Splits: exact sizes, stratified, disjoint, nested, and functions of (dataset, seed)."""

import itertools

import numpy as np
import pytest

from advjax.data import by_group, class_balanced, fractions, index_hash, k_fold, nested_subset, train_validation
from advjax.types import UserError

CIFAR_LIKE = np.random.RandomState(0).permutation(np.repeat(np.arange(10), 5000))
PATIENTS = np.random.RandomState(2).permutation(np.repeat([f"P{i}" for i in range(40)], np.arange(40) % 13 + 3))
UNEQUAL = np.random.RandomState(1).permutation(np.repeat(np.arange(4), [400, 100, 60, 7]))


def test_cifar10_sizes_are_exact_and_balanced():
    train, validation = train_validation(CIFAR_LIKE, num_validation=5000, seed=0, name="cifar10")
    assert (len(train), len(validation)) == (45_000, 5_000)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(50_000))
    np.testing.assert_array_equal(np.bincount(CIFAR_LIKE[validation]), [500] * 10)
    labels = CIFAR_LIKE[train]
    for fraction, size in ((1.0, 45_000), (0.1, 4_500), (0.01, 450)):
        subset = nested_subset(labels, fraction=fraction, seed=0, name="cifar10")
        np.testing.assert_array_equal(np.bincount(labels[subset]), [size // 10] * 10)


@pytest.mark.parametrize("labels", [CIFAR_LIKE, UNEQUAL], ids=["balanced", "unequal"])
def test_subsets_are_nested_sorted_and_stratified(labels):
    fractions = [0.1, 0.15, 1 / 3, 0.5, 0.99, 1.0]
    subsets = [nested_subset(labels, fraction=fraction, seed=3, name="x") for fraction in fractions]
    for fraction, subset in zip(fractions, subsets, strict=True):
        assert subset.dtype == np.int32 and len(subset) == round(fraction * len(labels))
        assert np.all(np.diff(subset) > 0)
        counts = np.bincount(labels[subset], minlength=labels.max() + 1)
        assert np.all(np.abs(counts - fraction * np.bincount(labels)) <= 1)
    for small, large in itertools.pairwise(subsets):
        assert np.isin(small, large).all()
    np.testing.assert_array_equal(subsets[-1], np.arange(len(labels)))


def test_splits_depend_on_name_and_seed_alone():
    def both(name: str, seed: int) -> tuple[str, str]:
        validation = train_validation(CIFAR_LIKE, num_validation=5000, seed=seed, name=name)[1]
        return index_hash(validation), index_hash(nested_subset(CIFAR_LIKE, fraction=0.1, seed=seed, name=name))

    np.random.seed(5)  # The global generator must not matter.
    frozen = ("3cae4e219473", "ed0e9f45d67b")  # Results are compared across machines and years by these.
    assert both("cifar10", 0) == frozen
    hashes = [h for name in ("cifar10", "mnist") for seed in (0, 1) for h in both(name, seed)]
    assert len(set(hashes)) == len(hashes)


def test_validation_and_subset_share_no_randomness():
    """With equal seeds, a 10% subset contains about 10% of the 10% validation examples, not all or none of them."""
    validation = train_validation(CIFAR_LIKE, num_validation=5000, seed=0, name="cifar10")[1]
    subset = nested_subset(CIFAR_LIKE, fraction=0.1, seed=0, name="cifar10")
    assert 400 < np.intersect1d(validation, subset).size < 600


def test_no_validation():
    train, validation = train_validation(UNEQUAL, num_validation=0, seed=0, name="x")
    np.testing.assert_array_equal(train, np.arange(len(UNEQUAL)))
    assert validation.shape == (0,) and validation.dtype == np.int32


def test_validation_of_an_odd_size_is_stratified():
    validation = train_validation(UNEQUAL, num_validation=101, seed=0, name="x")[1]
    assert len(validation) == 101
    assert np.all(np.abs(np.bincount(UNEQUAL[validation]) - 101 / 567 * np.bincount(UNEQUAL)) <= 1)


@pytest.mark.parametrize(
    ("num_validation", "message"),
    [
        (567, "num_validation is 567, but x has 567 training examples: .* 0 to 566"),
        (-1, "num_validation is -1"),
        (3, r"3 validation examples of x would leave . of 4 classes without .*take more"),
        (565, r"left by 565 for validation would leave . of 4 classes without .*take fewer"),
    ],
)
def test_impossible_validation_is_refused(num_validation, message):
    with pytest.raises(UserError, match=message):
        train_validation(UNEQUAL, num_validation=num_validation, seed=0, name="x")


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, 10, float("nan")])
def test_fraction_outside_the_unit_interval_is_refused(fraction):
    with pytest.raises(UserError, match=r"it must be greater than 0 and at most 1"):
        nested_subset(UNEQUAL, fraction=fraction, seed=0, name="x")


def test_fraction_that_loses_a_class_is_refused_with_the_numbers():
    with pytest.raises(UserError, match=r"fraction 0.01 \(6 of 567 examples\) of x .* \(class 3 has 7\): take more"):
        nested_subset(UNEQUAL, fraction=0.01, seed=0, name="x")


@pytest.mark.parametrize("labels", [np.array([], np.int32), np.eye(3, dtype=np.int32)])
def test_labels_that_are_not_a_list_of_classes_are_refused(labels):
    with pytest.raises(UserError, match="one label for each example"):
        nested_subset(labels, fraction=0.5, seed=0, name="x")


def test_index_hash_sees_values_and_order_but_not_the_type():
    assert index_hash(np.array([1, 2], np.int32)) == index_hash(np.array([1, 2], np.int64))
    assert len({index_hash(np.array(p)) for p in ([1, 2], [2, 1], [1, 3], [1])}) == 4
    assert len(index_hash(np.arange(5))) == 12


# 70/10/20 and the like -----------------------------------------------------------------------------------------------


def assert_partition(parts, size: int) -> None:
    for part in parts:
        assert part.dtype == np.int32 and np.all(np.diff(part) > 0)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(size))


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.2), (0.5, 0.5), (0.34, 0.33, 0.2, 0.13)])
@pytest.mark.parametrize("labels", [CIFAR_LIKE, UNEQUAL], ids=["balanced", "unequal"])
def test_fractions_are_a_stratified_partition(labels, shares):
    parts = fractions(labels, shares, seed=0, name="x")
    assert_partition(parts, len(labels))
    for share, part in zip(shares, parts, strict=True):
        assert abs(len(part) - share * len(labels)) <= 1
        counts = np.bincount(labels[part], minlength=labels.max() + 1)
        assert np.all(np.abs(counts - share * np.bincount(labels)) <= 2)


def test_70_10_20_of_cifar10_is_exact():
    parts = fractions(CIFAR_LIKE, (0.7, 0.1, 0.2), seed=0, name="cifar10")
    assert [np.bincount(CIFAR_LIKE[part]).tolist() for part in parts] == [[3500] * 10, [500] * 10, [1000] * 10]


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.1), (1.0,), (), (0.7, 0.3, 0.0), (1.2, -0.2), (float("nan"), 0.5)])
def test_shares_that_are_no_partition_are_refused(shares):
    with pytest.raises(UserError, match="with sum 1"):
        fractions(UNEQUAL, shares, seed=0, name="x")
    with pytest.raises(UserError, match="with sum 1"):
        by_group(PATIENTS, shares, seed=0, name="x")


def test_fraction_without_a_class_is_refused():
    with pytest.raises(UserError, match=r"the share 0.01 \(6 of 567 examples\) of x would leave 1 of 4 classes"):
        fractions(UNEQUAL, (0.99, 0.01), seed=0, name="x")


# Folds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_folds", [2, 5, 6])
def test_folds_partition_and_are_stratified(num_folds):
    folds = [k_fold(UNEQUAL, num_folds=num_folds, fold=fold, seed=1, name="x") for fold in range(num_folds)]
    assert_partition([held_out for _, held_out in folds], len(UNEQUAL))
    assert np.ptp([len(held_out) for _, held_out in folds]) <= 1
    for train, held_out in folds:
        assert_partition([train, held_out], len(UNEQUAL))
        assert np.all(np.abs(np.bincount(UNEQUAL[held_out]) - np.bincount(UNEQUAL) / num_folds) <= 2)


@pytest.mark.parametrize(
    ("num_folds", "fold", "message"),
    [
        (1, 0, "num_folds is 1, but x has 567 examples: choose 2 to 567"),
        (568, 0, "num_folds is 568"),
        (5, 5, "fold is 5; with 5 folds it must be from 0 to 4"),
        (5, -1, "fold is -1"),
        (100, 0, "held-out part of 100 folds of x would leave .* take fewer folds"),
    ],
)
def test_impossible_folds_are_refused(num_folds, fold, message):
    with pytest.raises(UserError, match=message):
        k_fold(UNEQUAL, num_folds=num_folds, fold=fold, seed=0, name="x")


# Balanced ------------------------------------------------------------------------------------------------------------


def test_class_balanced_is_exact_sorted_and_nested():
    subsets = [class_balanced(UNEQUAL, per_class=count, seed=0, name="x") for count in (1, 4, 7)]
    for count, subset in zip((1, 4, 7), subsets, strict=True):
        assert subset.dtype == np.int32 and np.all(np.diff(subset) > 0)
        np.testing.assert_array_equal(np.bincount(UNEQUAL[subset]), [count] * 4)
    for small, large in itertools.pairwise(subsets):
        assert np.isin(small, large).all()


@pytest.mark.parametrize("per_class", [0, -1, 8])
def test_more_than_the_smallest_class_has_is_refused(per_class):
    with pytest.raises(UserError, match=f"per_class is {per_class}, but class 3 of x has 7 examples: choose 1 to 7"):
        class_balanced(UNEQUAL, per_class=per_class, seed=0, name="x")


# Groups --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.2), (0.2,) * 5, (0.9, 0.1)])
@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_and_shares_are_roughly_met(shares, seed):
    parts = by_group(PATIENTS, shares, seed=seed, name="x")
    assert_partition(parts, len(PATIENTS))
    for one, other in itertools.combinations(parts, 2):
        assert not set(PATIENTS[one]) & set(PATIENTS[other])
    largest = np.unique(PATIENTS, return_counts=True)[1].max()
    for share, part in zip(shares, parts, strict=True):
        assert abs(len(part) - share * len(PATIENTS)) <= largest


def test_every_part_gets_a_group_while_there_are_enough():
    for seed in range(10):
        parts = by_group(np.repeat([5, 6, 7], [50, 1, 1]), (0.98, 0.01, 0.01), seed=seed, name="x")
        assert min(len(part) for part in parts) >= 1
    with pytest.raises(UserError, match="x has 2 groups for 3 parts"):
        by_group(np.array(["a", "b", "b"]), (0.5, 0.3, 0.2), seed=0, name="x")
    with pytest.raises(UserError, match="one for each example"):
        by_group(np.array([]), (0.5, 0.5), seed=0, name="x")


def test_new_splits_are_frozen_and_depend_on_name_and_seed():
    """Results are compared across machines and years by these hashes."""

    def all_of(name: str, seed: int) -> list[str]:
        parts = [
            fractions(CIFAR_LIKE, (0.7, 0.1, 0.2), seed=seed, name=name)[2],
            k_fold(CIFAR_LIKE, num_folds=5, fold=1, seed=seed, name=name)[1],
            class_balanced(CIFAR_LIKE, per_class=100, seed=seed, name=name),
            by_group(PATIENTS, (0.7, 0.3), seed=seed, name=name)[1],
        ]
        return [index_hash(part) for part in parts]

    assert all_of("cifar10", 0) == ["3abacd6fa820", "e89f54b0a5fe", "aa4b20386eec", "67e14a0f8308"]
    hashes = [h for name in ("cifar10", "mnist") for seed in (0, 1) for h in all_of(name, seed)]
    assert len(set(hashes)) == len(hashes)
