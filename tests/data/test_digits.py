"""Scikit-learn's digits, and the validation of datasets."""

import sys

import numpy as np
import pytest

from advjax import data
from advjax.types import UserError

datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture
def digits() -> data.Dataset:
    return data.load("digits", "test")


def test_digits_are_all_of_scikit_learns_images_once():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (train.images.shape, test.images.shape) == ((1438, 8, 8, 1), (359, 8, 8, 1))
    assert train.num_classes == 10
    ours = np.concatenate([train.images, test.images])[..., 0]
    theirs = datasets.load_digits()
    levels = np.round(theirs.images * 255 / 16).astype(np.uint8)
    assert ours.max() == 255

    def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple]:
        return sorted((*image.ravel().tolist(), int(label)) for image, label in zip(images, labels, strict=True))

    assert rows(ours, np.concatenate([train.labels, test.labels])) == rows(levels, theirs.target)


def test_digits_split_is_stratified_and_constant(digits):
    share = np.bincount(digits.labels) / np.bincount(datasets.load_digits().target)
    assert np.all(np.abs(share - 0.2) < 0.01)
    np.testing.assert_array_equal(digits.index, np.arange(359))
    # Frozen: published numbers rest on this split.
    assert data.fingerprint(digits) == "8189ac2c7fbd0d0bfb2d6db9370e9a389b5918de11d08c113f20030a96cc81e7"


def test_digits_say_how_to_get_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'advjax\[digits\]'"):
        data.load("digits", "train")


@pytest.mark.parametrize("split", ["validation", "Train", "", "train[:10%]"])
def test_unknown_split_lists_the_known_ones(split):
    with pytest.raises(UserError, match=r"has no split .*train, test"):
        data.load("digits", split)


def test_take_keeps_original_positions(digits):
    part = digits.take(np.array([300, 5])).take(np.array([1]))
    np.testing.assert_array_equal(part.index, [5])
    np.testing.assert_array_equal(part.images[0], digits.images[5])
    assert part.labels[0] == digits.labels[5] and part.num_classes == 10


def test_other_sizes_joined_splits_and_single_reads(digits):
    assert data.load("digits", "test", image_size=32).images.shape == (359, 32, 32, 1)
    whole = data.load("digits", "test+train")
    assert len(whole.labels) == 1797 and len(np.unique(whole.index)) == 1797
    np.testing.assert_array_equal(whole.images[:359], digits.images)
    assert data.fingerprint(data.read_all(data.open_source("digits", "test"))) == data.fingerprint(digits)


def test_check_accepts_floats_in_the_unit_interval(digits):
    floats = digits._replace(images=(digits.images / 255).astype(np.float32))
    assert data.check(floats) is floats


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"images": d.images.astype(np.float32)}, r"values in \[0, 255\]; pixels must lie in \[0, 1\]"),
        (lambda d: {"images": d.images.astype(np.float32) / 255 - 0.001}, r"values in \[-0.001, "),
        (lambda d: {"images": np.full(d.images.shape, np.nan, np.float32)}, "values in .nan"),
        (lambda d: {"images": d.images / 255}, "float64"),
        (lambda d: {"images": d.images[..., 0]}, r"uint8 \[359, 8, 8\]"),
        (lambda d: {"labels": d.labels.astype(np.int64)}, "labels of digits are int64"),
        (lambda d: {"labels": np.eye(10, dtype=np.int32)[d.labels]}, r"labels of digits are int32 \[359, 10\]"),
        (lambda d: {"labels": d.labels + np.int32(1)}, "range from 1 to 10.* 0 .. 9"),
        (lambda d: {"labels": d.labels - np.int32(1)}, "range from -1"),
        (lambda d: {"labels": d.labels[:-1]}, "359 images, 358 labels, and 359 positions"),
        (lambda d: {"index": d.index[:, None]}, "index of digits"),
        (lambda d: {"groups": np.array(["A", "B"])}, r"359 examples and \[2\] groups"),
        (lambda d: d.take(np.arange(0))._asdict(), "at least one example"),
    ],
)
def test_check_names_what_is_wrong(digits, change, message):
    with pytest.raises(UserError, match=message) as error:
        data.check(digits._replace(**change(digits)))
    assert "\n" not in str(error.value)


def test_fingerprint_is_of_the_content(digits):
    copy = digits._replace(images=np.asfortranarray(digits.images), labels=digits.labels.copy())
    assert data.fingerprint(copy) == data.fingerprint(digits)
    changed_pixel = digits.images.copy()
    changed_pixel[200, 3, 3, 0] ^= 1
    others = [
        digits._replace(name="other"),
        digits._replace(images=changed_pixel),
        digits._replace(images=digits.images.reshape(359, 64, 1, 1)),
        digits._replace(labels=digits.labels[::-1]),
        digits._replace(index=digits.index + np.int32(1)),
        digits.take(np.arange(359)[::-1]),
    ]
    assert len({data.fingerprint(dataset) for dataset in [digits, *others]}) == 7
