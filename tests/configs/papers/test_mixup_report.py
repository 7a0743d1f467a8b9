"""The configs of the mixup report (001) do what their docstrings say."""

import jax
import pytest

from advjax.experiment.build_attack import build_attack
from advjax.experiment.from_config import from_config, plain
from advjax.jobs import evaluate, train
from advjax.models import blocks
from advjax.papers import join
from advjax.types import UserError
from configs.papers.mixup_report import cifar, mnist
from support.configs import config_of, shrink

pytestmark = pytest.mark.usefixtures("frugal")

SOUND = {
    "mnist_mixup_adversarial": {"mixup": {"targets"}},
    "mnist_manifold_adversarial": {"manifold": {"objective"}},
    "mnist_soft_labels": {"mixup": {"targets"}, "soft_labels": {"targets"}},
    "mnist_partial_pgd": {"partial": {"targets"}},
}
"""Config -> run -> keys that differ from plain adversarial training."""


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_form_differs_from_adversarial_training_only_in_its_method(name):
    config = plain(config_of(name))
    runs = dict(config["run"])
    vanilla = runs.pop("vanilla")
    differences = {
        run: {key for key, value in described.items() if value != vanilla[key]} for run, described in runs.items()
    }
    assert differences == SOUND[name] and config["runs"] == ["vanilla", *SOUND[name]]
    ball = {"norm": "linf", "epsilon": "0.3"}
    assert vanilla["attack"] == {"name": "pgd", **ball, "num_steps": 40, "step_size": "0.01", "returns": "last"}
    assert {run["objective"]["loss"]["name"] for run in config["run"].values()} == {"cross_entropy"}
    assert 30 <= vanilla["epochs"] <= 100 and vanilla["optimizer"]["schedule"]["name"] == "cosine"


def test_sound_forms_select_checkpoints_on_attacked_validation_images(shared):
    config = config_of("mnist_mixup_adversarial")
    config.data.dir = str(shared / "data" / "tensorflow_datasets")
    built = from_config(config)
    assert [len(split.labels) for split in built.load_data().splits] == [50000, 4000, 10000]
    for run in built.runs:
        assert (run.plan.select, run.plan.select_metric) == ("best", "attacked_accuracy")
        variables = jax.eval_shape(lambda run=run: blocks.init(run.model, jax.random.key(0), built.facts.image_shape))
        assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == 61_706


FAITHFUL = {"mnist": (mnist, "vanilla"), "cifar": (cifar, "partial")}


@pytest.mark.parametrize("name", FAITHFUL)
def test_a_faithful_form_is_valid_as_shipped(name, shared):
    config = FAITHFUL[name][0].get_config()
    config.data.dir = str(shared / "data" / "tensorflow_datasets")
    built = from_config(config)
    assert [run.name for run in built.runs] == list(config.runs) and set(config.runs) == set(config.run)
    assert len(built.load_data().train.labels) == 50000 and {run.plan.select for run in built.runs} == {"last"}


@pytest.mark.parametrize(
    "name, runs", [("mnist", "clean,vanilla"), pytest.param("cifar", "partial", marks=pytest.mark.slow)]
)
def test_a_faithful_form_trains_and_is_paired_with_published_numbers(name, runs, tmp_path, shared, devices):
    module, run = FAITHFUL[name]
    config = module.get_config(runs)
    config.data.dir = str(shared / "data" / "tensorflow_datasets")
    published = [entry for entry in config.published if entry["run"] == run][:2]
    own = published[1]["our_attack"]
    with config.unlocked(), config.ignore_type():
        shrink(config)
        config.run[run].objective.num_steps = config.evaluation.attacks[own].num_steps = 1
        config.evaluation.attacks.order = (own,)
        if runs == run:
            config.run[run].start = ""
    train.train(config, str(tmp_path), devices, print)
    found = evaluate.evaluate_experiment(config, str(tmp_path), devices, print)
    pairs = join.join(found.rows, published)
    assert [(pair.kind, pair.attack, pair.ours is None) for pair in pairs] == [
        ("clean", "clean", False),
        ("adaptive", own, False),
    ]


@pytest.mark.parametrize("name", FAITHFUL)
def test_published_numbers_apply_only_to_the_method_of_the_report(name):
    module, run = FAITHFUL[name]
    config = module.get_config()
    numbers = [join.select(entry) for entry in config.published]
    assert len(numbers) == 8 + {"mnist": 8, "cifar": 5}[name] * 9 * 2

    def held(**changes):
        spec = plain(config)
        spec["run"][run]["epochs"] = 20
        for path, value in changes.items():
            *parents, last = path.split("__")
            node = spec
            for key in parents:
                node = node[key]
            assert node[last] != value
            node[last] = value
        return [
            (join.select(entry).training, entry["our_attack"]) for entry in join.applicable(config.published, spec)[0]
        ]

    own = config.published[-1]["our_attack"] if name == "cifar" else "own_pgd"
    training = {"mnist": "adv_vanilla", "cifar": "adv_partial_pgd"}[name]
    both = [(f"{training}:from_pretrained:20ep", attack) for attack in ("clean", own)]
    assert held() == both == held(**{f"run__{run}__log_every": 7})
    assert held(**{f"evaluation__attacks__{own}__num_steps": 3}) == both[:1]
    objective = f"run__{run}__objective"
    for change in (
        {f"{objective}__batch_norm": "eval"},
        {f"{objective}__num_steps": 3},
        {f"run__{run}__optimizer": {}},
        {f"run__{run}__start": ""},
        {"run__clean__epochs": 30},
        {"run__clean__num_steps": 20},
        {"data__per_class": 17},
    ):
        assert held(**change) == []
    assert held(run__clean__epochs=20) == [("vanilla:20ep", "clean")]
    assert held(run__clean__epochs=20, run__clean__batch_size=50) == []


@pytest.mark.parametrize(
    "name, message",
    [
        ("os:path.join", "run.a.attack: 'os:path.join' is not a function's name; write package.module:function"),
        ("no.such.module:attack", "run.a.attack: 'no.such.module:attack' cannot be imported: No module named 'no'"),
        (
            "configs.papers.mixup_report.nothing:attack",
            "'configs.papers.mixup_report.nothing:attack' cannot be imported",
        ),
        (
            "configs.papers.mixup_report.attack:nothing",
            "'configs.papers.mixup_report.attack:nothing' cannot be imported",
        ),
        ("configs.papers.mixup_report.attack:np", "'configs.papers.mixup_report.attack:np' is not a function"),
    ],
)
def test_functions_that_cannot_be_imported_are_one_line(name, message):
    with pytest.raises(UserError, match=message):
        build_attack("a", {"name": name, "norm": "linf", "epsilon": "0.6"}, "run.a.attack")


def test_errors_in_functions_of_configs_are_one_line():
    spec = {"name": mnist.ATTACK, "norm": "linf", "epsilon": "0.6", **mnist.RULES}
    with pytest.raises(UserError, match="evaluation: unknown key 'steps'; known are radius, num_steps"):
        build_attack("own", {**spec, "steps": 3}, "evaluation")
    with pytest.raises(UserError, match="evaluation: noisy_center_pgd needs linf and an epsilon of"):
        build_attack("own", {**spec, "epsilon": "0.3"}, "evaluation")
