"""Undersampling and concatenation."""

import numpy as np
import pytest

from advjax.data.dataset import Dataset, check
from advjax.data.sampling import concatenate, undersample
from advjax.types import UserError

LABELS = np.array([0] * 5 + [1] * 3 + [3] * 9)


def make_dataset(count=4, dtype=np.uint8, name="toy", classes=("a", "b"), size=2):
    images = np.arange(count * size * size).reshape(count, size, size, 1)
    images = images.astype(np.uint8) if dtype == np.uint8 else (images / 255).astype(np.float32)
    return Dataset(name, images, np.arange(count, dtype=np.int32) % 2, np.arange(count, dtype=np.int32) + 50, classes)


def test_undersampling_leaves_as_many_of_each_class_as_of_the_rarest():
    kept = undersample(LABELS, seed=0, name="toy")
    assert kept.dtype == np.int32 and np.all(np.diff(kept) > 0)
    classes, counts = np.unique(LABELS[kept], return_counts=True)
    assert classes.tolist() == [0, 1, 3] and counts.tolist() == [3, 3, 3]


def test_undersampling_is_a_function_of_seed_and_name():
    chosen = {(seed, name): tuple(undersample(LABELS, seed=seed, name=name)) for seed in (0, 1, 2) for name in "ab"}
    assert chosen[0, "a"] == tuple(undersample(LABELS, seed=0, name="a"))
    assert len(set(chosen.values())) > 3


def test_undersampling_leaves_balanced_classes_alone():
    labels = np.arange(12) % 3
    assert undersample(labels, seed=0, name="toy").tolist() == list(range(12))


def test_undersampling_needs_labels():
    with pytest.raises(UserError, match="one label per example"):
        undersample(np.zeros(0, int), seed=0, name="toy")


def test_concatenation_keeps_order_and_numbers_anew():
    first, second = make_dataset(4), make_dataset(3, name="other")
    both = check(concatenate([first, second]))
    assert both.name == "toy" and both.images.dtype == np.uint8
    np.testing.assert_array_equal(both.images, np.concatenate([first.images, second.images]))
    assert both.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert both.index.tolist() == list(range(7)) and both.index.dtype == np.int32


def test_bytes_and_floats_become_floats():
    both = check(concatenate([make_dataset(), make_dataset(dtype=np.float32)]))
    assert both.images.dtype == np.float32
    np.testing.assert_array_equal(both.images[:4], both.images[4:])


@pytest.mark.parametrize(
    "others, message",
    [
        ([], "nothing to concatenate"),
        ([make_dataset(), make_dataset(size=3)], "differ in size"),
        ([make_dataset(), make_dataset(classes=("b", "a"))], "classes"),
    ],
)
def test_what_does_not_fit_is_refused(others, message):
    with pytest.raises(UserError, match=message):
        concatenate(others)
