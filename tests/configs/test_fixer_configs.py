"""The configs of the fixer paper (003) match the paper, number by number, and our reading of it."""

import jax
import numpy as np
import pytest

from advjax.experiment.build_attack import build_attack
from advjax.experiment.build_data import load_data
from advjax.experiment.from_config import plain
from advjax.models import blocks
from advjax.models.resnet9 import ResNet9
from advjax.papers import join
from advjax.types import UserError
from support.configs import config_of


@pytest.mark.parametrize("attack, num_steps", [("auto_pgd", None), ("fgsm", 1), ("carlini_wagner", 6 * 25)])
def test_fixers_are_trained_against_any_of_the_three_attacks(attack, num_steps):
    config = plain(config_of("cifar_fixer", attack))
    described = dict(config["run"]["fixer"]["attack"])
    assert (described.pop("made_on"), described.pop("labels")) == ("base", "predicted")
    built = build_attack("train", described, "here")
    assert built.norm == "linf" and built.epsilon == pytest.approx(8 / 255)
    # The toolbox's AutoPGD is a plain function, whose images share a step size.
    assert getattr(built.attack, "num_steps", None) == num_steps
    held, _ = join.applicable(config["published"], config)
    assert {entry["run"] for entry in held} == ({"base", "fixer"} if attack == "auto_pgd" else {"base"})


@pytest.mark.parametrize("name", ["cifar_fixer", "cifar_denoising", "cifar_fixer_baselines"])
def test_the_rows_of_figure_6_train_against_any_of_the_three_attacks(name):
    run = {"cifar_fixer": "fixer", "cifar_denoising": "denoise", "cifar_fixer_baselines": "transfer"}[name]
    found = [config_of(name, attack).run[run].attack.name for attack in ("fgsm", "carlini_wagner")]
    assert found == ["fgsm", "carlini_wagner_linf_line_search"]
    message = r"cifar_fixer\.py:pgd: unknown attack; known are auto_pgd, fgsm, carlini_wagner"
    with pytest.raises(UserError, match=message):
        config_of(name, "pgd")


def test_the_network_has_the_constants_of_keras_like_that_of_the_other_keras_paper():
    config = config_of("cifar_denoising")
    keras = {"norm_decay": 0.99, "norm_epsilon": 1e-3}
    assert all(keras.items() <= run.model.to_dict().items() for run in config.run.values())


def test_the_constants_reach_batch_norm():
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))

    def first_mean(**norm):
        model = ResNet9(width=1 / 64, head="average", **norm)
        variables = blocks.init(model, jax.random.key(0), (8, 8, 3))
        logits, state = blocks.apply(model, variables, images, train=True)
        return logits, state["batch_stats"]["block_conv1"]["conv_block"]["norm"]["mean"]

    logits, mean = first_mean()
    keras_logits, keras_mean = first_mean(norm_decay=0.99, norm_epsilon=1e-3)
    np.testing.assert_allclose(10 * keras_mean, mean, rtol=1e-4)
    assert np.abs(logits - keras_logits).max() > 1e-5


def test_the_attacks_of_the_evaluation_are_those_of_the_paper():
    """Appendix A.2; AutoPGD has the toolbox's number of restarts, PGD has none and no random start."""
    attacks = plain(config_of("cifar_fixer"))["evaluation"]["attacks"]
    paper = {"fgsm", "pgd_50", "carlini_wagner", "art_auto_pgd", "art_auto_pgd_16"}
    assert set(attacks["order"]) == paper | {"auto_pgd"}
    found = {
        name: [attacks[name].get(key) for key in ("epsilon", "num_steps", "step_size", "num_restarts", "random_start")]
        for name in paper
    }
    assert found == {
        "fgsm": ["8/255", None, None, None, None],
        "pgd_50": ["8/255", 50, "0.005", None, False],
        "carlini_wagner": ["8/255", 25, None, None, None],
        "art_auto_pgd": ["8/255", 25, "0.005", 5, None],
        "art_auto_pgd_16": ["16/255", 25, "0.005", 5, None],
    }


def test_only_fixers_have_no_weight_decay():
    decays = {
        run: config_of(name).run[run].optimizer.weight_decay
        for name, runs in {
            "cifar_fixer": ("base", "fixer"),
            "cifar_denoising": ("denoise",),
            "cifar_fixer_baselines": ("transfer", "adversarial", "honest_fixer"),
        }.items()
        for run in runs
    }
    without = {"fixer", "honest_fixer"}
    assert decays == {run: 0.0 if run in without else 5e-4 for run in decays} and len(decays) == 6


def test_baselines_differ_in_trained_parameters_and_attacked_model():
    described = config_of("cifar_fixer_baselines").run
    attacked = {name: (run.attack.made_on, run.attack.labels) for name, run in described.items() if run.attack}
    sound = ("self", "true")
    assert attacked == {"transfer": ("base", "predicted"), "adversarial": sound, "honest_fixer": sound}
    learning = {name: described[name].trainable for name in attacked}
    assert learning == {"transfer": "", "adversarial": "", "honest_fixer": "^patches_"}
    for name in ("transfer", "adversarial"):
        assert described[name].start == "base" and described[name].model == described.base.model
    assert {name: described[name].objective.get("on") for name in attacked} == {
        "transfer": "both",
        "adversarial": "both",
        "honest_fixer": None,
    }


def test_the_histology_config_keeps_patients_apart(shared):
    config = config_of("hist_fixer")
    config.data.dir = str(shared / "data" / "image_folders" / "monuseg_patches")
    config.data.image_size = 8
    parts = load_data(plain(config)["data"], 0)
    patients = [set(part.groups) for part in parts.splits]
    assert all(patients) and sum(map(len, patients)) == len(set.union(*patients)) == 44
    augmentation = config.run.fixer.augmentation
    assert (augmentation.pad_crop.padding, augmentation.coarse_dropout.holes) == (16, 8)
    assert config.run.base.model.head == "max4_average" and config_of("hist_fixer").data.image_size == 128
