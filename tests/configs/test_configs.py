"""Every shipped config builds, takes training steps in each of its runs, and evaluates."""

import re

import jax
import jax.numpy as jnp
import pytest

from advjax.evaluation.attacker_knowledge import TRANSFER
from advjax.experiment import registry
from advjax.experiment.build_evaluation import build_evaluation
from advjax.experiment.from_config import complete, from_config
from advjax.experiment.presets import with_preset
from advjax.jobs import evaluate, train
from advjax.jobs.dry_run import check_evaluation, check_runs
from advjax.models import blocks
from advjax.runtime.metrics import read_metrics
from advjax.training import losses, objectives
from advjax.types import Batch
from support.configs import config_of, shrink
from support.paths import REPOSITORY

pytestmark = pytest.mark.usefixtures("frugal")

CONFIGS = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))
METHODS = {
    "adversarial",
    "cross_architecture",
    "defenses",
    "denoising",
    "distribution_regression",
    "fast_adversarial",
    "fixed_mix",
    "fixer",
    "fixer_baselines",
    "intelligent_mixup",
    "manifold_adversarial",
    "mart",
    "mixup",
    "mixup_adversarial",
    "own_model",
    "partial_pgd",
    "random_self_ensemble",
    "robust",
    "soft_labels",
    "trades",
    "two_updates",
    "weight_averaging",
    "weight_perturbation",
}


QUICK = "cifar_fixer"
"""Run to its end also by the fast tests, which only trace the others."""
EVALUATED = {
    QUICK,
    "mnist_mixup",
    "cifar_defenses",
    "cifar_fixer_baselines",
    "cross_architecture",
    "hist_fixer",
}
"""Configs whose evaluations differ in structure: defenses, curves, several sources, folders, runs without a base."""


def test_there_is_a_config_for_every_method():
    assert {re.sub("^(cifar|mnist|digits|hist)_", "", name) for name in CONFIGS} == METHODS
    assert {"digits_fixer", "cifar_fixer", "hist_fixer"} <= set(CONFIGS)


def test_the_argument_after_the_colon_selects_the_experiment(shared):
    config = config_of("cifar_random_self_ensemble", "vgg16")
    config.data.dir = str(shared / "data" / "tensorflow_datasets")
    (run,) = from_config(config).runs
    assert type(run.model).__name__ == "VGG16"
    sides = {name: config_of("cross_architecture", name).data.image_size for name in ("cifar10", "cats_vs_dogs")}
    assert sides == {"cifar10": 0, "cats_vs_dogs": 128}


@pytest.fixture
def shipped(request):
    """``name -> config`` as it is, with its data where they are here."""

    def config_with_data(name):
        config = config_of(name)
        if config.data.name == "folder":
            config.data.dir = str(request.getfixturevalue("shared") / "data" / "image_folders" / "monuseg_patches")
            config.data.image_size = 32
        elif config.data.name != "digits":
            config.data.dir = str(request.getfixturevalue("shared") / "data" / "tensorflow_datasets")
        return config

    return config_with_data


@pytest.mark.parametrize("name", [*CONFIGS, "papers/mixup_report/clean", "papers/mixup_report/cifar"])
def test_a_preset_replaces_what_a_config_says_of_its_own_attacks(name):
    config = with_preset(complete(config_of(name)), "standard")
    plan = build_evaluation(config["evaluation"], dict.fromkeys(config["runs"]), config["run"])
    assert [attack.name for attack in plan.attacks] == ["auto_attack"]
    assert plan.transfer_rules("auto_attack") == ("true", "sound")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_valid_as_shipped(name, shipped, devices):
    """Every training step, attack, and defense is traced."""
    experiment = from_config(shipped(name))
    check_runs(experiment, devices)
    check_evaluation(experiment, experiment.load_data().train)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in CONFIGS]
)
def test_a_config_trains_and_evaluates(name, shipped, tmp_path, devices):
    config = shrink(shipped(name))
    train.train(config, str(tmp_path), devices, print)
    if name not in EVALUATED:
        return
    found = evaluate.evaluate_experiment(config, str(tmp_path), devices, print)
    assert {row["run"] for row in found.rows} == set(config.runs)
    if len(config.runs) > 1:
        made_on = config.evaluation.made_on
        sources = {row["made_on"] for row in found.rows if row["knowledge"] == TRANSFER}
        assert sources == ({made_on} if isinstance(made_on, str) else set(made_on))
    models = set(config.runs) | set(config.evaluation.defenses.order)
    assert len(found.curve) == (0 if config.evaluation.curve is None else len(models))
    assert {row["attack"] for row in found.rows} >= set(config.evaluation.attacks.order)
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_documents_its_command(name):
    text = (REPOSITORY / "configs" / f"{name}.py").read_text()
    assert f"python -m advjax.main --config=configs/{name}.py" in text.split('"""')[1]


@pytest.fixture
def contributed():
    """The training method in CONTRIBUTING.md, registered for the duration of the test."""
    code = re.findall(r"```python\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (code,) = [block for block in code if "OBJECTIVES" in block]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 20
    exec(code, {})
    yield registry.OBJECTIVES["logit_pairing"]
    del registry.OBJECTIVES["logit_pairing"]


def test_the_contributed_method_trains_from_a_config(contributed, tmp_path, devices):
    config = shrink(config_of("digits_fixer"))
    config.runs = ("base",)
    with config.unlocked(), config.ignore_type():
        config.run.base.objective = {"name": "logit_pairing", "loss": {"name": "cross_entropy"}, "weight": 0.5}
        config.run.base.attack = {"name": "fgsm", "norm": "linf", "epsilon": "0.15"}
    train.train(config, str(tmp_path), devices, print)
    (line,) = [line for line in read_metrics(tmp_path / "base") if line["kind"] == "train"]
    assert line["distance"] > 0 and line["loss"] > 0.5 * line["distance"]


def test_the_contributed_method_computes_its_formula(contributed):
    model = registry.MODELS["net62k"](width=0.2)
    variables = blocks.init(model, jax.random.key(0), (32, 32, 3))
    clean, images = jax.random.uniform(jax.random.key(1), (2, 3, 32, 32, 3))
    labels = jnp.array([1, 2, 3])
    batch = Batch(images, labels, jax.nn.one_hot(labels, 10), jnp.arange(3), jnp.ones(3, bool), clean)
    arguments = (variables.params, variables.model_state, batch, jax.random.key(2), None)
    found = contributed(model, losses.cross_entropy, weight=0.7)(*arguments)[0]
    unpaired = objectives.supervised(model, losses.cross_entropy)(*arguments)[0]
    f = blocks.logits_fn(model, variables)
    distances = [float(jnp.linalg.norm(f(clean)[i] - f(images)[i])) for i in range(3)]
    assert float(found) == pytest.approx(float(unpaired) + 0.7 * sum(d**2 for d in distances) / 3, rel=1e-5)
    assert min(distances) > 1e-3


@pytest.mark.parametrize(
    "options, network, objective, attack",
    [
        ("", "dm_preact_resnet18", "trades", "most_divergent"),
        ("wide", "dm_wide_resnet", "trades", "most_divergent"),
        ("pgd,wide", "dm_wide_resnet", "supervised", "pgd"),
        ("preact,pgd", "dm_preact_resnet18", "supervised", "pgd"),
    ],
)
def test_the_robust_recipe_has_options(options, network, objective, attack):
    run = config_of("cifar_robust", options).run.robust
    assert (run.model.name, run.objective.name, run.attack.name) == (network, objective, attack)
    assert ("beta" in run.objective) == (objective == "trades")
