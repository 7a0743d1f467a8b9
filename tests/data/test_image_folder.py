"""Image folders: order, classes, patients, cache, and error messages."""

import csv
import pathlib

import numpy as np
import PIL.Image
import pytest

from advjax import data
from advjax.data import image_folder
from advjax.types import UserError

IMAGES = np.random.RandomState(0).randint(0, 256, (8, 6, 7, 3), dtype=np.uint8)
LABELS = ["poor", "rich", "mixed", "poor", "rich", "poor", "rich", "poor"]
SPLITS = ["train"] * 5 + ["test"] * 3
PATIENTS = ["A", "A", "B", "C", "B", "D", "D", "E"]


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVJAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    made = tmp_path / "patches"
    made.mkdir()
    for number, image in enumerate(IMAGES):
        PIL.Image.fromarray(image).save(made / f"{number}.png")
    write(made, rows())
    return made


def rows(**columns: list[str]) -> list[dict[str, str]]:
    default = {"file": [f"{i}.png" for i in range(8)], "split": SPLITS, "label": LABELS, "patient": PATIENTS}
    table = {key: values for key, values in (default | columns).items() if values}
    return [dict(zip(table, line, strict=True)) for line in zip(*table.values(), strict=True)]


def write(folder: pathlib.Path, lines: list[dict[str, str]]) -> None:
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def test_order_classes_and_patients_are_those_of_the_manifest(folder):
    train, test = (data.load("folder", split, directory=folder) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images, IMAGES[:5])
    np.testing.assert_array_equal(test.images, IMAGES[5:])
    # "mixed" is in the training split alone, and yet counts in both.
    assert train.class_names == test.class_names == ("mixed", "poor", "rich")
    np.testing.assert_array_equal(train.labels, [1, 2, 0, 1, 2])
    np.testing.assert_array_equal(test.labels, [1, 2, 1])
    np.testing.assert_array_equal(test.index, [0, 1, 2])
    assert train.name == "patches" and train.groups is not None and train.groups.tolist() == PATIENTS[:5]
    part = train.take(np.array([4, 2]))
    assert part.groups is not None and part.groups.tolist() == ["B", "B"]


def test_several_splits_as_one(folder):
    both = data.load("folder", "test+train", directory=folder)
    np.testing.assert_array_equal(both.images, np.concatenate([IMAGES[5:], IMAGES[:5]]))
    np.testing.assert_array_equal(both.index, np.arange(8))
    assert both.groups is not None and both.groups.tolist() == PATIENTS[5:] + PATIENTS[:5]
    source = data.open_source("folder", "test+train", directory=folder)
    assert data.fingerprint(data.read_all(source)) == data.fingerprint(both)
    np.testing.assert_array_equal(source.take(np.array([7, 3])).read(1), both.images[3])


def test_whole_numbers_are_classes_in_their_order(folder):
    write(folder, rows(label=["10", "9", "2", "10", "9", "2", "2", "2"]))
    train = data.load("folder", "train", directory=folder)
    assert train.class_names == ("2", "9", "10")
    np.testing.assert_array_equal(train.labels, [2, 1, 0, 2, 1])


def test_the_case_of_column_names_makes_no_difference(folder):
    expected = data.fingerprint(data.load("folder", "train", directory=folder))
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text(text.replace("file,split,label,patient", "File, SPLIT ,Label,Patient", 1))
    train = data.load("folder", "train", directory=folder)
    assert data.fingerprint(train) == expected and train.groups is not None


def test_what_is_read_is_what_was_checked(folder, tmp_path):
    """Through a link to a directory, ``link/..`` is another place than the spelling suggests."""
    elsewhere = tmp_path / "elsewhere" / "below"
    elsewhere.mkdir(parents=True)
    PIL.Image.fromarray(255 - IMAGES[0]).save(elsewhere.parent / "0.png")
    (folder / "link").symlink_to(elsewhere)
    write(folder, rows(file=["link/../0.png", *(f"{i}.png" for i in range(1, 8))]))
    np.testing.assert_array_equal(data.load("folder", "train", directory=folder).images[0], IMAGES[0])


def test_image_size_and_source_agree_with_load(folder):
    loaded = data.load("folder", "train", directory=folder, image_size=4)
    assert loaded.images.shape == (5, 4, 4, 3)
    source = data.open_source("folder", "train", directory=folder, image_size=4)
    assert source.image_shape == (4, 4, 3) and source.num_classes == 3
    for position in range(5):
        np.testing.assert_array_equal(source.read(position), loaded.images[position])


def test_without_patients_there_are_no_groups(folder):
    write(folder, rows(patient=[]))
    assert data.load("folder", "train", directory=folder).groups is None


def test_decoded_once_and_anew_when_a_file_changes(folder, monkeypatch):
    decoded = []
    decode = image_folder._decode
    monkeypatch.setattr(image_folder, "_decode", lambda path: decoded.append(path.name) or decode(path))

    def load() -> np.ndarray:
        return data.load("folder", "test", directory=folder, image_size=4).images

    first = load()
    np.testing.assert_array_equal(load(), first)
    assert sorted(decoded) == ["5.png", "6.png", "7.png"]
    PIL.Image.fromarray(IMAGES[0]).save(folder / "6.png")
    assert not np.array_equal(load()[1], first[1])
    assert len(decoded) == 6


# What is said ---------------------------------------------------------------------------------------------------------


def error_of(folder: pathlib.Path, split: str = "train", image_size: int = 0) -> str:
    with pytest.raises(UserError) as error:
        data.load("folder", split, directory=folder, image_size=image_size)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folder_and_manifest_are_needed(tmp_path):
    assert "--config.data.dir" in error_of("")
    assert "manifest.csv cannot be read" in error_of(tmp_path)


@pytest.mark.parametrize("column", ["file", "split", "label"])
def test_missing_column_is_named(folder, column):
    write(folder, rows(**{column: []}))
    assert f"has no column {column!r}" in error_of(folder)


@pytest.mark.parametrize("header", ["file,split,label,LABEL", "file,File,split,label"])
def test_columns_that_differ_in_case_alone_are_refused(folder, header):
    (folder / "manifest.csv").write_text(f"{header}\n0.png,train,a,b\n")
    assert f"{folder}/manifest.csv has two columns " in error_of(folder)


def test_empty_manifests(folder):
    (folder / "manifest.csv").write_text("")
    assert "has no column 'file'; its first line names none" in error_of(folder)
    (folder / "manifest.csv").write_text("file,split,label\n")
    assert "lists no images" in error_of(folder)


@pytest.mark.parametrize(("column", "position"), [("label", 2), ("patient", 7)])
def test_missing_value_is_named_with_its_line(folder, column, position):
    lines = rows()
    lines[position][column] = ""
    write(folder, lines)
    assert f"line {position + 2} of {folder}/manifest.csv has no {column}" in error_of(folder)


def test_unknown_split_lists_the_known_ones(folder):
    assert "has no split 'validation'; it has: train, test" in error_of(folder, "validation")
    assert "names a split, or a part of one, twice" in error_of(folder, "train+train")


def test_missing_files_are_counted_and_the_first_named(folder):
    (folder / "1.png").unlink()
    (folder / "3.png").unlink()
    message = error_of(folder)
    assert "2 of 5 files of split 'train'" in message and "1.png" in message and "3.png" not in message
    assert data.load("folder", "test", directory=folder).images.shape[0] == 3


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_unreadable_image_is_named(folder, content):
    path = folder / "2.png"
    path.write_bytes(path.read_bytes()[:80] if content is None else content)
    message = error_of(folder)
    assert "2.png is not a readable image" in message and "remove its line" in message


def test_a_patient_in_two_splits_is_refused(folder):
    write(folder, rows(patient=[*PATIENTS[:7], "B"]))
    for split in ("train", "test"):
        assert "patient 'B' is in train and test" in error_of(folder, split)


def test_a_file_listed_twice_is_refused(folder):
    write(folder, rows(file=[*(f"{i}.png" for i in range(7)), "0.png"]))
    assert "file '0.png' is on lines 2 and 9" in error_of(folder)


@pytest.mark.parametrize("spelling", ["./0.png", "a/../0.png", "link.png"])
def test_one_image_under_two_spellings_is_refused(folder, spelling):
    (folder / "link.png").symlink_to(folder / "0.png")
    write(folder, rows(file=[*(f"{i}.png" for i in range(7)), spelling]))
    message = error_of(folder)
    assert "0.png' is on lines 2 and 9" in message and "may be in only one" in message


@pytest.mark.parametrize("path", ["../0.png", "a/../../0.png", "/0.png"])
def test_files_outside_the_folder_are_refused(folder, path):
    write(folder, rows(file=[*(f"{i}.png" for i in range(7)), path]))
    assert f"line 9 of {folder}/manifest.csv: file {path!r} is outside the folder" in error_of(folder)


def test_images_of_several_sizes_need_an_image_size(folder):
    PIL.Image.fromarray(IMAGES[3][:, :5]).save(folder / "3.png")
    message = error_of(folder)
    assert "differ in size ([6, 7, 3] and [6, 5, 3])" in message and "--config.data.image_size" in message
    assert data.load("folder", "train", directory=folder, image_size=5).images.shape == (5, 5, 5, 3)
    for size in (-1, 100_000):
        assert f"image_size is {size}; give a side length from 1 to 4096" in error_of(folder, image_size=size)


# Real folders ---------------------------------------------------------------------------------------------------------


def test_real_histology_patches_have_patients_apart(shared):
    folder = shared / "data" / "image_folders" / "monuseg_patches"
    train, test = (data.load("folder", split, directory=folder) for split in ("train", "test"))
    assert train.images.shape == (693, 96, 96, 3) and test.images.shape == (313, 96, 96, 3)
    assert train.class_names == ("nuclei_poor", "nuclei_rich")
    assert train.groups is not None and test.groups is not None
    assert not set(train.groups) & set(test.groups)
    parts = data.by_group(train.groups, (0.7, 0.1, 0.2), seed=0, name=train.name)
    patients = [set(train.groups[part]) for part in parts]
    assert sum(map(len, patients)) == len(set(train.groups))
    np.testing.assert_allclose([len(part) / 693 for part in parts], (0.7, 0.1, 0.2), atol=0.04)


@pytest.mark.parametrize(
    ("name", "split", "count", "classes"), [("cats_vs_dogs", "test", 250, 2), ("imagenette", "validation", 250, 10)]
)
def test_real_photographs_of_many_sizes(shared, name, split, count, classes):
    folder = shared / "data" / "image_folders" / name
    loaded = data.load("folder", split, directory=folder, image_size=64)
    assert loaded.images.shape == (count, 64, 64, 3) and loaded.name == name
    np.testing.assert_array_equal(np.bincount(loaded.labels), [count // classes] * classes)
    assert 90 < loaded.images.mean() < 140 and loaded.images.std() > 50
