"""The command line: which keys of a config may be given, and what is said of those that may not."""

import json
import pathlib
import sys

import pytest
from absl import flags

from advjax import main
from advjax.experiment.from_config import complete, from_config
from advjax.types import UserError
from support.configs import config_of
from support.paths import REPOSITORY

CONFIG = str(REPOSITORY / "configs" / "digits_fixer.py")


@pytest.fixture
def parse(monkeypatch):
    """``arguments -> config``, as ``python -m advjax.main`` has it."""

    def forget():
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)

    def parsed(*arguments):
        forget()
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        main._parse(sys.argv)
        return main._CONFIG.value

    yield parsed
    forget()


@pytest.mark.parametrize("arguments", [("--config=digits_fixer",), ("-config", "digits_fixer")])
def test_the_name_of_an_installed_config_needs_no_path(parse, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = parse(*arguments, "--config.run.base.epochs=3")
    assert named.run.base.epochs == 3 and named.title == parse(f"--config={CONFIG}").title
    assert main._workdirs() == ["workdirs/digits_fixer"]


def test_an_installed_config_gets_its_argument_and_finds_the_others(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "configs", raising=False)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (pathlib.Path(path) / "configs").is_dir()])
    whole, smaller = parse("--config=cifar_fixer:fgsm"), parse("--config=cifar_fixer")
    assert whole.run.fixer.attack.name == "fgsm" != smaller.run.fixer.attack.name
    assert parse("--config=cifar_trades").runs and parse("--config=papers/mixup_report/mnist").runs


def test_a_file_comes_before_an_installed_config_and_sees_its_own_neighbors(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs"
    own.mkdir()
    (own / "common.py").write_text("TITLE = 'my own'")
    (own / "mine.py").write_text(
        "from advjax.experiment import defaults\nfrom configs import common\nimport neighbor\n\n\n"
        "def get_config():\n    return defaults.experiment(title=common.TITLE + neighbor.MORE)\n"
    )
    (tmp_path / "neighbor.py").write_text("MORE = ' title'")
    for name in ("configs", "configs.common", "neighbor"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert parse("--config=configs/mine.py").title == "my own title"
    for name in ("configs", "configs.common", "neighbor"):
        sys.modules.pop(name, None)


def test_keys_that_the_config_leaves_to_defaults_may_be_given(parse):
    config = parse(
        f"--config={CONFIG}",
        "--config.run.base.epochs=3",
        "--config.run.base.objective.noise=false",
        "--config.run.base.model.mean=(0.5,)",
        "--config.run.fixer.attack.num_restarts=2",
        "--config.evaluation.attacks.auto_pgd.loss=dlr",
        "--config.evaluation.attacks.fgsm.norm=l2",
    )
    built = from_config(config)
    base, fixer = (run.identity["run"] for run in built.runs[:2])
    assert (base["epochs"], base["objective"]["noise"], built.runs[0].model.mean) == (3, False, [0.5])
    assert fixer["attack"]["num_restarts"] == 2
    assert {attack.name: attack.identity.get("loss") for attack in built.evaluation.attacks}["auto_pgd"] == "dlr"


@pytest.mark.parametrize(
    "override, message",
    [
        ("typo=1", "unknown key typo; known are title, seed"),
        ("run.base.epoch=1", "unknown key run.base.epoch; known are model"),
        ("run.fixer.attack.steps=1", "run.fixer.attack: unknown key 'steps'; known are num_steps"),
        ("run.base.objective.gamma=1", "run.base.objective: unknown key 'gamma'; known are on, noise"),
        ("run.base.augmentation.padding=3", "run.base.augmentation.padding must have the arguments of 'padding'"),
    ],
)
def test_keys_that_there_are_not_are_one_clear_line(parse, override, message):
    with pytest.raises(UserError, match=message):
        from_config(parse("--config", CONFIG, f"--config.{override}"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("--config", CONFIG, "--config.run.bas.epochs=1"),
            "unknown config key run.bas; known there are adversarial, base",
        ),
        ((f"--config={CONFIG}", "--config.runs.base.x", "1"), "error: "),
        ((f"--config={CONFIG}", "--config.run.base.attack.name=fgsm"), "config key run.base.attack is None"),
        ((f"--config={CONFIG}", "--config.run.base.attack={}"), "config key run.base.attack is None"),
        (("--config", CONFIG, "--config.run.base.epochs=many"), "invalid literal for int"),
        ((f"--config={CONFIG}", "--config.evaluation.attacks.fgsm=3"), "is not a dict"),
        ((f"--config={CONFIG}:fgsm",), "digits_fixer.py:fgsm: this config takes no argument after the colon"),
        (
            ("--config=cifar_robust:wide,preact",),
            "configs/cifar_robust.py:wide,preact: give preact or wide, and trades",
        ),
        (("--config=cifar_denoising:pgd",), "configs/cifar_fixer.py:pgd: unknown attack; known are auto_pgd, fgsm"),
        (("--config=nowhere.py",), "no config file at nowhere.py"),
        (("--config=digits",), "installed configs, which need no path, are cifar_adversarial"),
        (("--config=../pyproject",), "no config file at ../pyproject"),
        (("--config=common",), "no config file at common"),
    ],
)
def test_what_flags_cannot_take_is_one_line_and_exit_code_2(parse, capfd, arguments, message):
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    said = capfd.readouterr().err.strip()
    assert message in said and "\n" not in said and "Traceback" not in said


def test_a_folder_is_trusted_by_a_flag_alone(parse, tmp_path):
    config = complete(config_of("digits_fixer"))
    config["data"]["name"] = "my.data:load"
    (tmp_path / "config.json").write_text(json.dumps(config))
    parse("--mode=evaluate", f"--workdir={tmp_path}")
    with pytest.raises(UserError, match=r"data.name is 'my.data:load', a function outside advjax"):
        main._config(str(tmp_path))
    parse("--mode=evaluate", f"--workdir={tmp_path}", "--trust_workdir")
    assert main._config(str(tmp_path))["data"]["name"] == "my.data:load"
