"""Functions by name: what is imported, and what a config that was found in a folder may not name."""

import importlib
import json
import pathlib
import sys

import pytest

import advjax
from advjax.experiment.from_config import complete
from advjax.jobs.workdir import read_config
from advjax.runtime import named_function as named
from advjax.types import UserError
from support.configs import config_of
from support.paths import REPOSITORY

OWN = "configs.papers.mixup_report.attack:noisy_center_pgd"
CONFIGS = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A current folder without configs, and an interpreter that has not seen any."""

    def imported():
        return {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("configs", "foreign")}

    before = imported()
    for name in before:
        del sys.modules[name]
    places = [path for path in sys.path if not (pathlib.Path(path or ".") / "configs").is_dir()]
    monkeypatch.setattr(sys, "path", places)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in imported():
        del sys.modules[name]
    sys.modules.update(before)


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["os:getcwd", "a.b_c.d1:_e", "é:f"])
def test_names_of_functions(text):
    assert named.is_function_name(text)


@pytest.mark.parametrize(
    "text", ["", "os", ":f", "os:", "os:a.b", ".os:f", "os.:f", "a/b:f", "1a:f", "a b:f", "a:b:c", 3]
)
def test_other_names(text):
    assert not named.is_function_name(text)
    with pytest.raises(UserError, match=r"run.a: .* is not a function's name; write package.module:function"):
        named.named_function(text, "run.a")


def test_functions_beside_the_configs_are_found_from_anywhere(elsewhere):
    assert named.named_function(OWN, "here").__name__ == "noisy_center_pgd"


def test_a_package_configs_of_the_user_stays_what_it_is(elsewhere, monkeypatch):
    package = elsewhere / "configs"
    package.mkdir()
    (package / "__init__.py").write_text("KEPT = 1")
    (package / "mine.py").write_text("def function():\n    pass\n")
    monkeypatch.setattr(sys, "path", [str(elsewhere), *sys.path])
    configs = importlib.import_module("configs")
    assert named.named_function(OWN, "here").__name__ == "noisy_center_pgd"
    assert named.named_function("configs.mine:function", "here").__name__ == "function"
    assert sys.modules["configs"] is configs and configs.KEPT == 1


# Configs of folders ---------------------------------------------------------------------------------------------------


def stored(folder, config, **changes):
    """A folder with a complete config, changed at paths such as ``run__base__model``."""
    config = complete(config)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = config
        for key in parents:
            node = node[key]
        node[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_the_installed_configs_are_accepted_as_stored(name, tmp_path):
    assert read_config(stored(tmp_path, config_of(name)))["runs"]


@pytest.mark.parametrize(
    "path, value",
    [
        ("data__name", "foreign:f"),
        ("run__base__model", {"name": "foreign:f"}),
        ("run__base__objective", {"name": "supervised", "loss": {"name": "foreign:f"}}),
        ("run__base__augmentation", {"order": ["foreign:f"]}),
        ("run__base__targets", {"order": ["foreign:f"]}),
        ("run__base__optimizer", {"name": "sgd", "schedule": {"name": "foreign:f"}}),
        ("run__fixer__attack__name", "foreign.module:f"),
        ("run__fixer__attack__loss", "foreign:f"),
        ("evaluation__attacks__pgd_50__name", "foreign:f"),
        ("evaluation__curve", {"attack": {"name": "foreign:f"}}),
        ("evaluation__defenses", {"order": ["a"], "a": {"name": "foreign:f", "run": "base"}}),
        ("data__name", "configs.foreign:f"),
        ("data__name", "configs.papers.mixup_report.mnist:adversarial_run"),
        ("data__name", "os:getcwd"),
        ("data__name", "advjax.data:load"),
    ],
)
def test_the_config_of_a_folder_runs_no_code(elsewhere, path, value, monkeypatch):
    ran = elsewhere / "ran"
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\ndef f(*_, **__): ...\n"
    for file in ("foreign.py", "configs/foreign.py", "configs/__init__.py"):
        (elsewhere / file).parent.mkdir(exist_ok=True)
        (elsewhere / file).write_text(code)
    monkeypatch.setattr(sys, "path", [str(elsewhere), *sys.path])
    folder = stored(elsewhere, config_of("digits_fixer"), **{path: value})
    for load in (read_config, lambda folder: advjax.load(folder, "base")):
        with pytest.raises(UserError, match=r"config.json: .* a function outside advjax.*--trust_workdir") as error:
            load(folder)
        assert path.split("__")[-1] in str(error.value) and "\n" not in str(error.value)
    assert not ran.exists()
    assert read_config(folder, trusted=True)["title"]


def test_functions_of_the_installed_configs_and_titles_may_be_named(tmp_path):
    changes = {"title": "PGD:again", "evaluation__attacks__pgd_50__name": OWN}
    assert read_config(stored(tmp_path, config_of("digits_fixer"), **changes))["title"] == "PGD:again"
