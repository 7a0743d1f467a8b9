"""What a folder says of itself: damaged descriptions are refused or made anew; refused work leaves nothing behind."""

import json

import numpy as np
import pytest

from advjax.experiment.from_config import complete, from_config
from advjax.jobs import workdir as folders
from advjax.types import UserError
from support.experiments import built, small_config


def test_refused_work_leaves_no_new_folder(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    for folder in (new, old):
        with pytest.raises(UserError, match="nonsense"), folders.locked(folder):
            raise UserError("nonsense")
    assert not new.exists() and old.exists()
    with folders.locked(new):
        (new / "config.json").touch()
    assert new.exists()


def test_a_folder_has_one_worker(tmp_path):
    with folders.locked(tmp_path), pytest.raises(UserError, match="another process is working in"):
        folders.locked(tmp_path).__enter__()


@pytest.mark.parametrize(
    "content", ["", "{", "null", "[1]", "{}", '{"data": 3, "run": 3, "needs": 3}', '{"data": {}}', "\x00", '"text"']
)
def test_a_damaged_description_of_a_run_is_one_line(content, tmp_path):
    (run,) = built(num_validation=20).runs
    folders.claim(run, str(tmp_path))
    folders.claim(run, str(tmp_path))
    path = tmp_path / "base" / "run.json"
    path.write_text(content)
    with pytest.raises(UserError, match=str(path.parent)) as caught:
        folders.claim(run, str(tmp_path))
    assert "\n" not in str(caught.value)


def test_facts_about_the_data_are_used_only_if_they_are_intact(tmp_path):
    config, path = complete(small_config(num_validation=20)), tmp_path / "data.json"
    folders.write_experiment(built(num_validation=20), config, tmp_path)
    assert folders._stored_facts(config, tmp_path) == built(num_validation=20).facts
    stored = json.loads(path.read_text())
    for changes in ({"num_classes": 9}, {"num_examples": {"base": 3}}, {"image_shape": "x"}, {"sha256": "0"}):
        path.write_text(json.dumps({**stored, **changes}))
        assert folders._stored_facts(config, tmp_path) is None
    for content in ("", "{", "null", "[1]", "3", "{}", "\x00"):
        path.write_text(content)
        assert folders._stored_facts(config, tmp_path) is None


def test_other_data_under_another_path_are_other_data(tmp_path):
    for name in ("one", "other"):
        images, labels = np.zeros((8, 4, 4, 1), np.uint8), np.arange(8) % 2
        np.savez(tmp_path / name, x_train=images, y_train=labels, x_test=images, y_test=labels)
    config = small_config(select="last", train_fraction=1.0)
    config.data.update(name="npz", dir=str(tmp_path / "one.npz"))
    first = complete(config)
    folders.write_experiment(from_config(first), first, tmp_path)
    folders.claim(folders.open_experiment(first, tmp_path).runs[0], tmp_path)
    config.data.dir = str(tmp_path / "other.npz")
    other = folders.open_experiment(complete(config), tmp_path)
    assert other.facts.name == "other"
    with pytest.raises(UserError, match="data_set is 'one' there, 'other' here"):
        folders.claim(other.runs[0], tmp_path)
