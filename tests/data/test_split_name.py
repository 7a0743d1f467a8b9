"""Split names and slices, as used by datasets, sources, and configs."""

import numpy as np
import pytest

from advjax import data
from advjax.experiment.from_config import from_config
from advjax.types import UserError
from support.configs import changed, config_of

TRAIN, TEST = 1438, 359
"""Images of digits."""


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train+test")


@pytest.mark.parametrize(
    "split, expected",
    [
        ("train", range(TRAIN)),
        ("train[:]", range(TRAIN)),
        ("train[1024:]", range(1024, TRAIN)),
        ("train[:1024]", range(1024)),
        ("train[10:20]", range(10, 20)),
        (f"train[{TRAIN - 1}:{TRAIN}]", [TRAIN - 1]),
        ("train+test", range(TRAIN + TEST)),
        ("train[1430:]+test[5:7]", [*range(1430, TRAIN), TRAIN + 5, TRAIN + 6]),
        ("train[7:9]+train[:2]", [7, 8, 0, 1]),
        ("train[700:]+train[:700]", [*range(700, TRAIN), *range(700)]),
    ],
)
def test_pieces_keep_the_positions_of_the_whole(split, expected, digits):
    wanted = digits.take(np.array(expected))
    found = data.load("digits", split)
    for field in ("images", "labels", "index"):
        np.testing.assert_array_equal(getattr(found, field), getattr(wanted, field))
    np.testing.assert_array_equal(found.index, expected)
    streamed = data.open_source("digits", split)
    np.testing.assert_array_equal(streamed.index, expected)
    np.testing.assert_array_equal(streamed.labels, wanted.labels)
    np.testing.assert_array_equal(streamed.read(len(expected) - 1), wanted.images[-1])


@pytest.mark.parametrize(
    "split, message",
    [
        ("train[1024]", r"has no split 'train\[1024\]'"),
        ("train[-5:]", "has no split"),
        ("train[:5", "has no split"),
        ("train+", "has no split ''"),
        ("other[:5]", "has no split 'other'"),
        ("train[5:5]", r"train\[5:5\] is empty; the second number must be larger"),
        ("train[:0]", "is empty"),
        ("train+train", "names a split, or a part of one, twice"),
        ("train[:5]+test+train[4:6]", "names a split, or a part of one, twice"),
        ("train[:1439]", r"train\[:1439\] is out of range: train has 1438 examples"),
        ("train[1438:]", r"train\[1438:\] is out of range"),
    ],
)
def test_mistakes_are_one_line(split, message):
    for read in (data.load, data.open_source):
        with pytest.raises(UserError, match=message) as caught:
            read("digits", split)
        assert "\n" not in str(caught.value)


def test_a_config_trains_on_one_piece_and_tests_on_another():
    built = from_config(changed(data__train_split="train[100:]", data__test_split="train[:100]"))
    np.testing.assert_array_equal(built.load_data().test.index, np.arange(100))
    learnt = np.concatenate([built.load_data().train.index, built.load_data().validation.index])
    np.testing.assert_array_equal(np.sort(learnt), np.arange(100, TRAIN))
    with pytest.raises(UserError, match=r"data.test_split 'train\[:101\]' has images of data.train_split 'test\+train"):
        from_config(changed(data__train_split="test+train[100:]", data__test_split="train[:101]"))


def test_the_dauphine_configs_measure_what_the_report_measures(shared):
    """They train on all of train[1024:] and test on train[:1024]."""
    config = config_of("cifar_fixed_mix")
    config.data.dir = str(shared / "data" / "tensorflow_datasets")
    built = from_config(config)
    np.testing.assert_array_equal(built.load_data().train.index, np.arange(1024, 50_000))
    np.testing.assert_array_equal(built.load_data().test.index, np.arange(1024))
    assert built.evaluation.num_examples in (0, 1024) and not len(built.load_data().validation.index)
    assert all(run.plan.select == "last" and run.plan.num_steps == 10 * 1531 for run in built.runs)
