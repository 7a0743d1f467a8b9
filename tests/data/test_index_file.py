"""Index files: round trips, and refusal of files that were modified or belong to other data."""

import json

import numpy as np
import pytest

from advjax import data
from advjax.types import UserError


@pytest.fixture
def dataset() -> data.Dataset:
    labels = np.arange(20, dtype=np.int32) % 4
    return data.Dataset("toy", np.zeros((20, 2, 2, 1), np.uint8), labels, np.arange(20, dtype=np.int32), tuple("abcd"))


@pytest.fixture
def path(tmp_path, dataset):
    path = tmp_path / "deeper" / "split.json"
    parts = dict(zip(("train", "test"), data.fractions(dataset.labels, (0.6, 0.4), seed=3, name="toy"), strict=True))
    data.write_index(path, dataset, parts, meta={"seed": 3})
    return path


def test_round_trip_keeps_parts_and_order(path, dataset):
    found = data.read_index(path, dataset)
    expected = data.fractions(dataset.labels, (0.6, 0.4), seed=3, name="toy")
    assert list(found) == ["train", "test"]
    for part, positions in zip(found.values(), expected, strict=True):
        np.testing.assert_array_equal(part, positions)
        assert part.dtype == np.int32
    data.write_index(path, data.from_dataset(dataset), {"some": np.array([7, 2, 5]), "none": np.array([], int)})
    found = data.read_index(path, data.from_dataset(dataset))
    assert found["some"].tolist() == [7, 2, 5] and found["none"].shape == (0,)
    assert [file.name for file in path.parent.iterdir()] == ["split.json"]


def test_file_is_readable_json_with_what_made_it(path):
    content = json.loads(path.read_text())
    assert content["meta"] == {"seed": 3} and content["dataset"] == "toy" and len(content["sha256"]) == 64


@pytest.mark.parametrize("change", ["position", "meta", "name", "hash"])
def test_any_change_is_found(path, dataset, change):
    content = json.loads(path.read_text())
    if change == "position":
        content["parts"]["test"][0] += 1
    elif change == "meta":
        content["meta"]["seed"] = 4
    elif change == "name":
        content["dataset"] = "other"
    else:
        content["sha256"] = content["sha256"][::-1]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged: its content does not match its checksum"):
        data.read_index(path, dataset)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", "3"])
def test_other_files_are_refused(path, dataset, content):
    path.write_text(content)
    with pytest.raises(UserError, match="is not an index file, or is damaged"):
        data.read_index(path, dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d._replace(name="other"), "its dataset is 'toy', that of other is 'other'"),
        (lambda d: d.take(np.arange(19)), "its num_examples is 20, that of toy is 19"),
        (lambda d: d.take(np.arange(20)[::-1]), "its hash of the labels"),
    ],
)
def test_another_data_set_is_refused(path, dataset, change, message):
    with pytest.raises(UserError, match=f"belongs to another dataset: {message}"):
        data.read_index(path, change(dataset))


def test_missing_file_and_impossible_writes(tmp_path, path, dataset):
    with pytest.raises(UserError, match="cannot be read"):
        data.read_index(tmp_path / "absent.json", dataset)
    for positions in ([20], [-1, 3]):
        with pytest.raises(UserError, match=r"part 'x' of toy has positions outside 0 .. 19"):
            data.write_index(path, dataset, {"x": np.array(positions)})
    with pytest.raises(UserError, match="cannot be written"):
        data.write_index(path / "below", dataset, {})
    assert list(data.read_index(path, dataset)) == ["train", "test"]
