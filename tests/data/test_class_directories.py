"""Folders with one directory per class: classes, splits, order, cache, and what is said when something is wrong."""

import os
import shutil

import numpy as np
import PIL.Image
import pytest

from advjax import data
from advjax.experiment import defaults
from advjax.experiment.from_config import from_config
from advjax.types import UserError

SHAPE = (6, 5, 3)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVJAX_CACHE", str(tmp_path / "cache"))


def image_of(path):
    return np.random.RandomState(sum(path.encode())).randint(0, 256, SHAPE, dtype=np.uint8)


def make(folder, *paths):
    """Images whose pixels follow from their paths."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image_of(path)).save(folder / path)
    return folder


@pytest.fixture
def divided(tmp_path):
    paths = ("train/dog/1.png", "train/cat/b.png", "train/cat/a.png", "train/cat/more/c.bmp", "test/dog/1.png")
    return make(tmp_path / "pets", *paths)


def error_of(folder, split="train"):
    with pytest.raises(UserError) as error:
        data.load("folder", split, directory=folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_directories_are_classes_and_splits(divided):
    (divided / "train" / "cat" / "notes.txt").write_text("no image")
    (divided / "train" / "cat" / ".hidden.png").write_text("no image")
    (divided / ".git" / "objects").mkdir(parents=True)
    train, test = (data.load("folder", split, directory=divided) for split in ("train", "test"))
    assert train.name == "pets" and train.class_names == test.class_names == ("cat", "dog") and train.groups is None
    expected = ["train/cat/a.png", "train/cat/b.png", "train/cat/more/c.bmp", "train/dog/1.png"]
    np.testing.assert_array_equal(train.images, [image_of(path) for path in expected])
    np.testing.assert_array_equal(train.labels, [0, 0, 0, 1])
    np.testing.assert_array_equal(test.images, [image_of("test/dog/1.png")])
    np.testing.assert_array_equal(test.labels, [1])
    source = data.open_source("folder", "train+test", directory=divided)
    both = data.load("folder", "train+test", directory=divided)
    assert data.fingerprint(data.read_all(source)) == data.fingerprint(both)


def test_a_manifest_comes_first(divided):
    (divided / "manifest.csv").write_text("file,split,label\ntest/dog/1.png,train,wolf\n")
    assert data.load("folder", "train", directory=divided).class_names == ("wolf",)


def test_numbers_are_classes_in_their_order_and_a_train_can_be_one(tmp_path):
    numbers = make(tmp_path / "numbers", "10/a.png", "9/a.png")
    assert data.load("folder", "train", directory=numbers).class_names == ("9", "10")
    vehicles = make(tmp_path / "vehicles", "train/a.png", "bus/a.png")
    assert data.load("folder", "train", directory=vehicles).class_names == ("bus", "train")


def config_of(folder, **changes):
    run = defaults.run(model={"name": "lenet5"}, num_steps=2, batch_size=4, select="last")
    described = {"name": "folder", "dir": str(folder), "image_size": 16, **changes}
    return defaults.experiment(data=described, runs=("base",), run={"base": run}, evaluation={"batch_size": 4})


def test_one_split_is_divided_by_fractions_alone(tmp_path):
    folder = make(tmp_path / "pets", *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)))
    with pytest.raises(UserError, match=r"pets has no split 'test'; it has: train; divide it with data.fractions"):
        from_config(config_of(folder))
    parts = from_config(config_of(folder, fractions=(0.6, 0.2, 0.2))).load_data().splits
    assert [np.bincount(part.labels).tolist() for part in parts] == [[6, 6], [2, 2], [2, 2]]
    assert sorted(np.concatenate([part.index for part in parts])) == list(range(20))
    again = from_config(config_of(folder, fractions=(0.6, 0.2, 0.2), stream=True)).load_data().splits
    for one, other in zip(parts, again, strict=True):
        np.testing.assert_array_equal(one.index, other.index)


def test_the_cache_knows_which_class_an_image_is_in(tmp_path):
    """Names, sizes and times of all four files are equal, and so is their order before and after."""
    folder = make(tmp_path / "pets", "a/0.bmp", "b/0.bmp")
    for path in folder.rglob("*.bmp"):
        os.utime(path, (1, 1))
    first = data.load("folder", "train", directory=folder)
    np.testing.assert_array_equal(first.images, [image_of("a/0.bmp"), image_of("b/0.bmp")])
    shutil.move(folder / "a", folder / "c")
    renamed = data.load("folder", "train", directory=folder)
    assert renamed.class_names == ("b", "c")
    np.testing.assert_array_equal(renamed.images, [image_of("b/0.bmp"), image_of("a/0.bmp")])


@pytest.mark.parametrize(
    "paths, message",
    [
        (["a.png"], "manifest.csv cannot be read"),
        (
            ["train/0.png", "test/0.png"],
            "train has no directories, and must have one per class|test has no directories",
        ),
        (["train/cat/0.png", "test/0.png"], "test has no directories, and must have one per class"),
        (["train/cat/0.png", "test/Cat/0.png"], "test has a class 'Cat' that .*train has not"),
        (["train/cat/0.png", "val/cat/0.png"], None),
    ],
)
def test_layouts_that_are_not_of_classes_are_refused(tmp_path, paths, message):
    folder = make(tmp_path / "pets", *paths)
    if message is None:
        assert error_of(folder, "test").endswith("pets has no split 'test'; it has: train, val")
    else:
        with pytest.raises(UserError, match=message):
            data.load("folder", "train", directory=folder)


def test_an_empty_class_is_refused(divided):
    (divided / "train" / "mouse").mkdir()
    assert f"{divided}/train/mouse has no images" in error_of(divided)


def test_an_image_in_two_splits_through_a_link_is_refused(divided):
    (divided / "test" / "dog" / "same.png").symlink_to(divided / "train" / "dog" / "1.png")
    message = error_of(divided)
    assert "in test/dog/same.png and in train/dog/1.png; it may be in only one" in message


def test_a_truncated_image_is_named(divided):
    path = divided / "train" / "cat" / "b.png"
    path.write_bytes(path.read_bytes()[:60])
    assert f"{path} is not a readable image" in error_of(divided)
    source = data.open_source("folder", "train", directory=divided)
    with pytest.raises(UserError, match=r"b.png is not a readable image"):
        source.read(1)
