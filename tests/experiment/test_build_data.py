"""Splits as a config gives them: shares, whole patients, images read from disk, several splits as one."""

import csv

import numpy as np
import PIL.Image
import pytest

from advjax import data
from advjax.experiment import defaults
from advjax.experiment.build_data import load_data
from advjax.experiment.from_config import from_config, plain
from advjax.types import UserError

PATIENTS = 8
OF_EACH = 6


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Eight patients with six images each, the last two in splits of their own."""
    monkeypatch.setenv("ADVJAX_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "patches"
    made.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number in range(PATIENTS * OF_EACH):
        PIL.Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(made / f"{number}.png")
        patient = number // OF_EACH
        split = {PATIENTS - 2: "extra", PATIENTS - 1: "test"}.get(patient, "train")
        lines.append({"file": f"{number}.png", "split": split, "label": number % 2, "patient": f"P{patient}"})
    with (made / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return made


def loaded(**changes):
    run = defaults.run(model={"name": "lenet5"}, num_steps=2, batch_size=4, select="last")
    config = defaults.experiment(data=changes, runs=("base",), run={"base": run}, evaluation={"batch_size": 4})
    return from_config(config).load_data()


def of_folder(folder, **changes):
    return loaded(**{"name": "folder", "dir": str(folder), **changes})


def test_fractions_are_shares_of_the_training_split():
    parts = loaded(name="digits", image_size=16, fractions=("0.7", "0.1", "0.2"))
    pool = data.load("digits", "train", image_size=16)
    counts = [len(part.labels) for part in parts.splits]
    assert sum(counts) == len(pool.labels) == 1438
    np.testing.assert_allclose(np.array(counts) / 1438, [0.7, 0.1, 0.2], atol=0.01)
    assert sorted(np.concatenate([part.index for part in parts.splits])) == list(range(1438))
    for part in parts.splits:
        np.testing.assert_array_equal(part.images, pool.images[part.index])


def test_no_patient_is_in_two_shares(folder):
    parts = of_folder(folder, train_split="train+extra+test", fractions=(0.5, 0.25, 0.25), by_patient=True)
    patients = [set(part.groups) for part in parts.splits]
    assert [len(some) for some in patients] == [4, 2, 2]
    assert len(set.union(*patients)) == PATIENTS
    assert [len(part.labels) for part in parts.splits] == [4 * OF_EACH, 2 * OF_EACH, 2 * OF_EACH]


def test_without_by_patient_a_patient_is_in_several_shares(folder):
    parts = of_folder(folder, train_split="train+extra+test", fractions=(0.5, 0.25, 0.25))
    assert set(parts.train.groups) & set(parts.test.groups)


def test_the_seed_chooses_the_patients(folder):
    options = {"fractions": (0.5, 0.25, 0.25), "by_patient": True}
    shares = []
    for seed in (0, 0, 1, 2, 3):
        run = defaults.run(model={"name": "lenet5"}, num_steps=2, batch_size=4, select="last")
        config = defaults.experiment(
            seed=seed,
            data={"name": "folder", "dir": str(folder), **options},
            runs=("base",),
            run={"base": run},
        )
        shares.append(tuple(sorted(set(load_data(plain(config.data), seed).test.groups))))
    assert shares[0] == shares[1] and len(set(shares)) > 1


@pytest.mark.parametrize("changes", [{}, {"fractions": (0.5, 0.25, 0.25), "by_patient": True}])
def test_streamed_images_are_those_in_memory(folder, changes):
    streamed, held = (of_folder(folder, stream=stream, **changes) for stream in (True, False))
    assert isinstance(streamed.train, data.Source) and isinstance(held.train, data.Dataset)
    for there, here in zip(streamed.splits, held.splits, strict=True):
        there = data.read_all(there) if isinstance(there, data.Source) else there
        assert there.images.dtype == here.images.dtype == np.uint8
        np.testing.assert_array_equal(there.images, here.images)
        np.testing.assert_array_equal(there.labels, here.labels)
        np.testing.assert_array_equal(there.groups, here.groups)
    assert len(held.train.labels) > 0


def test_joined_splits_are_learned_from_together(folder):
    with pytest.raises(UserError):
        of_folder(folder, train_split="train+nothing")
    joined = of_folder(folder, train_split="train+extra")
    assert set(joined.train.groups) == {f"P{patient}" for patient in range(PATIENTS - 1)}
    assert set(joined.test.groups) == {f"P{PATIENTS - 1}"}


def test_patients_that_nobody_wrote_down_are_missed():
    with pytest.raises(UserError, match=r"data\.by_patient: digits does not say which images belong to one patient"):
        loaded(name="digits", image_size=16, fractions=(0.7, 0.1, 0.2), by_patient=True)


@pytest.mark.parametrize("key, value", [("num_validation", 20), ("per_class", 3), ("test_split", "train")])
def test_what_shares_would_ignore_is_refused(key, value):
    with pytest.raises(UserError, match=f"data.{key} has no effect beside data.fractions"):
        loaded(name="digits", image_size=16, fractions=(0.7, 0.1, 0.2), **{key: value})


def test_folds_are_test_splits_that_make_up_the_whole():
    pool = data.load("digits", "train", image_size=16)
    tested = []
    for fold in range(3):
        parts = loaded(name="digits", image_size=16, num_folds=3, fold=fold, num_validation=50)
        indices = [part.index for part in parts.splits]
        assert len(parts.validation.labels) == 50
        assert sorted(np.concatenate(indices)) == list(range(len(pool.labels)))
        tested.append(parts.test.index)
    assert sorted(np.concatenate(tested)) == list(range(len(pool.labels)))


def test_an_index_file_repeats_a_division(tmp_path, folder):
    first = of_folder(folder, train_split="train+extra+test", fractions=(0.5, 0.25, 0.25), by_patient=True)
    path = tmp_path / "split.json"
    data.write_index(path, first.division, first.division.parts)
    again = of_folder(folder, train_split="train+extra+test", index_file=str(path))
    for one, other in zip(first.splits, again.splits, strict=True):
        np.testing.assert_array_equal(one.index, other.index)
        np.testing.assert_array_equal(one.images, other.images)
    with pytest.raises(UserError, match="belongs to another dataset"):
        of_folder(folder, train_split="train+extra", index_file=str(path))
    data.write_index(path, first.division, {"train": np.arange(3)})
    with pytest.raises(UserError, match=r"split.json has no part 'validation'"):
        of_folder(folder, train_split="train+extra+test", index_file=str(path))


def test_a_split_of_the_data_set_stays_the_test_split_of_an_index_file(tmp_path):
    first = loaded(name="digits", image_size=16, num_validation=20, per_class=30)
    assert first.division.parts.keys() == {"train", "validation"}
    data.write_index(tmp_path / "split.json", first.division, first.division.parts)
    again = loaded(name="digits", image_size=16, index_file=str(tmp_path / "split.json"))
    assert [len(part.labels) for part in again.splits] == [280, 20, 359]
    np.testing.assert_array_equal(first.train.index, again.train.index)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"num_folds": 3, "fractions": (0.5, 0.25, 0.25)},
            "num_folds has no effect beside data.fractions",
        ),
        ({"index_file": "x", "num_validation": 3}, "num_validation has no effect beside data.index_file"),
        ({"fold": 1}, "data.fold needs data.num_folds"),
        ({"num_folds": 3, "fold": 3}, "fold is 3; with 3 folds it must be from 0 to 2"),
    ],
)
def test_ways_to_divide_exclude_each_other(changes, message):
    with pytest.raises(UserError, match=message):
        loaded(name="digits", image_size=16, **changes)


def test_training_images_are_evaluated_only_where_the_config_says_so():
    """As Table 2 of the intelligent-mixup paper (000) measures noise."""
    with pytest.raises(UserError, match=r"or say data\.test_on_training"):
        loaded(name="digits", image_size=16, test_split="train")
    found = loaded(name="digits", image_size=16, test_split="train", test_on_training=True)
    np.testing.assert_array_equal(found.test.images, found.train.images)
    with pytest.raises(UserError, match=r"data\.test_on_training has no effect beside data\.fractions"):
        loaded(name="digits", image_size=16, fractions=(0.7, 0.1, 0.2), test_on_training=True)


def test_test_images_validate_only_where_the_config_says_so():
    """As the mixup report (001) selects its epochs."""
    found = loaded(name="digits", image_size=16, validate_on_test=True)
    assert found.validation is found.test and len(found.train.labels) == 1438
    with pytest.raises(UserError, match=r"data\.validate_on_test leaves no use"):
        loaded(name="digits", image_size=16, validate_on_test=True, num_validation=10)
