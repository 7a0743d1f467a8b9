"""Every shipped config builds, takes a training step in each of its runs, and evaluates."""

import pytest
from conftest import REPOSITORY
from test_experiment import config_of

from advjax import assessment, experiment, sharding, workflow
from advjax.sharding import Devices

CONFIGS = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))


def shrink(config):
    """The same experiment with as little of everything as possible."""
    with config.unlocked(), config.ignore_type():
        config.data.num_validation = 12
        for run in config.run.values():
            # Two: a learning rate cycle has at least that many.
            run.num_steps, run.batch_size = 2, 8
            if "width" in run.model:
                run.model.width = 0.0625
            if run.attack is not None and "num_steps" in run.attack:
                run.attack.num_steps = 1
        config.evaluation.num_examples = config.evaluation.batch_size = 8
        for name in config.evaluation.attacks.order:
            attack = config.evaluation.attacks[name]
            if "num_steps" in attack:
                attack.num_steps = 1
    return config


def test_there_are_configs():
    assert {"digits_fixer", "cifar_fixer"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_trains_and_evaluates(name, tmp_path, request):
    config = shrink(config_of(name))
    if config.data.name != "digits":
        config.data.dir = str(request.getfixturevalue("shared") / "data" / "tensorflow_datasets")
    built = experiment.from_config(config)
    devices = Devices(sharding.mesh(), built.mapping)
    workflow.train(built, str(tmp_path), devices, print)
    found = assessment.evaluate(built, str(tmp_path), devices, print)
    assert {row["run"] for row in found.rows} == set(config.runs)
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_says_how_to_run_it(name):
    text = (REPOSITORY / "configs" / f"{name}.py").read_text()
    assert f"python -m advjax.main --config=configs/{name}.py" in text.split('"""')[1]
