"""Values that make no sense: one line and exit code 2 before anything is written."""

import pytest

from support import job

pytestmark = pytest.mark.slow

OUTCOME = "one line and exit code 2; nothing is written"

VALUES = [
    "run.base.model.num_classes=5",
    "run.base.model.width=inf",
    "run.base.optimizer.schedule.peak_learning_rate=nan",
    "run.base.optimizer.schedule.peak_learning_rate=-0.1",
    "run.base.optimizer.weight_decay=-1",
    "run.base.optimizer.clip=nan",
    "run.base.epochs=-3",
    "run.base.batch_size=0",
    "run.base.augmentation={'order': ('pad_crop',), 'pad_crop': {'padding': 100}}",
    "run.fixer.model.after=('foo',)",
    "run.fixer.model.base=nobody",
    "run.fixer.attack.num_restarts=1.5",
    "data.num_workers=0",
    "data.num_validation=-1",
    "data.num_validation=99999",
    "data.image_size=100000",
    "data.name=nothing",
    "evaluation.num_checked=-1",
    "evaluation.batch_size=0",
    "evaluation.attacks.fgsm.epsilon=1e400",
    "evaluation.attacks.fgsm.epsilon=-0.1",
    "evaluation.attacks.fgsm.epsilon=8",
    "evaluation.attacks.fgsm.norm=l7",
    "evaluation.attacks.pgd_50.num_steps=1.5",
    "evaluation.attacks.order=('fgsm', 'foo')",
    "evaluation.made_on=nobody",
    "evaluation.pictured=nothing",
    "evaluation.defenses.order=('foo',)",
    "seed=99999999999999999999",
    "seed=-1",
    "mapping=vmap",
    "runs=('../outside',)",
]


@pytest.mark.parametrize("override", VALUES)
def test_a_value_that_makes_no_sense(override, tmp_path, fault):
    workdir = tmp_path / "work"
    with fault("a value that makes no sense", f"{len(VALUES)} overrides of digits_fixer", OUTCOME):
        assert job.run("--config=digits_fixer", f"--workdir={workdir}", f"--config.{override}").only_line
        assert not workdir.exists() and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cifar10", "folder", "npz", "cifar10_c"])
def test_data_that_are_not_there(name, tmp_path, fault):
    workdir = tmp_path / "work"
    with fault("a data directory that is not there", "data.dir of four kinds of data", OUTCOME):
        changes = (f"--config.data.name={name}", f"--config.data.dir={tmp_path / 'nowhere'}")
        assert job.run("--config=digits_fixer", f"--workdir={workdir}", *changes).only_line
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [("--json", "file/x.json"), ("--weights", "nowhere.npz"), ("--images", "nowhere")])
def test_files_of_a_benchmark_that_are_not_there(flags, tmp_path, fault):
    with fault("files of a benchmark that are not there", "--json, --weights, --images", OUTCOME):
        (tmp_path / "file").touch()
        given = (flags[0], tmp_path / flags[1], "--quick")
        assert job.run(*given, module="advjax.benchmarks").only_line
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", ["evaluate", "compare"])
def test_a_folder_that_is_not_there(mode, tmp_path, fault):
    with fault("a folder that is not there", "--mode=evaluate and compare", OUTCOME):
        assert job.run(f"--mode={mode}", f"--workdir={tmp_path / 'nowhere'}").only_line
        assert list(tmp_path.iterdir()) == []


def test_nothing_for_a_key_of_the_config(tmp_path, fault):
    with fault("evaluation.curve=None", "on the command line of the config of the tests", "accepted"):
        finished = job.run(*job.arguments(tmp_path / "work", "--config.evaluation.curve=None"))
        assert finished.code == 0, finished.said
