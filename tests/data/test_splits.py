"""Splits: exact sizes, stratified, disjoint, nested, and functions of (data set, seed)."""

import itertools

import numpy as np
import pytest

from advjax.data import index_hash, nested_subset, train_validation
from advjax.types import UserError

CIFAR_LIKE = np.random.RandomState(0).permutation(np.repeat(np.arange(10), 5000))
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
    """With one seed, the 10 % subset holds about 10 % of the 10 % validation examples, not all or none of them."""
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
        (565, r"565 for validation leave would leave . of 4 classes without .*take fewer"),
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
