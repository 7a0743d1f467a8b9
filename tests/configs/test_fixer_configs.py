"""The configs of the fixer paper (003) match the paper, number by number, and our reading of it."""

import pytest

from advjax.experiment.build_attack import build_attack
from advjax.experiment.build_data import load_data
from advjax.experiment.from_config import plain
from advjax.papers import join
from advjax.types import UserError
from support.configs import config_of


@pytest.mark.parametrize("attack, num_steps", [("auto_pgd", 25), ("fgsm", 1), ("carlini_wagner", 6 * 25)])
def test_fixers_are_trained_against_any_of_the_three_attacks(attack, num_steps):
    config = plain(config_of("cifar_fixer", attack))
    described = dict(config["run"]["fixer"]["attack"])
    assert (described.pop("made_on"), described.pop("labels")) == ("base", "predicted")
    built = build_attack("train", described, "here")
    assert built.norm == "linf" and built.epsilon == pytest.approx(8 / 255)
    assert built.attack.num_steps == num_steps
    held, _ = join.applicable(config["published"], config)
    assert {entry["run"] for entry in held} == ({"base", "fixer"} if attack == "auto_pgd" else {"base"})


def test_an_unknown_training_attack_is_rejected():
    with pytest.raises(
        UserError, match=r"cifar_fixer\.py:pgd: unknown attack; known are auto_pgd, fgsm, carlini_wagner"
    ):
        config_of("cifar_fixer", "pgd")


def test_the_attacks_of_the_evaluation_are_those_of_the_paper():
    """Appendix A.2; AutoPGD has the toolbox's number of restarts, PGD has none and no random start."""
    attacks = plain(config_of("cifar_fixer"))["evaluation"]["attacks"]
    assert set(attacks["order"]) == {"fgsm", "pgd_50", "carlini_wagner", "auto_pgd", "auto_pgd_16"}
    found = {
        name: [attacks[name].get(key) for key in ("epsilon", "num_steps", "step_size", "num_restarts", "random_start")]
        for name in attacks["order"]
    }
    assert found == {
        "fgsm": ["8/255", None, None, None, None],
        "pgd_50": ["8/255", 50, "0.005", None, False],
        "carlini_wagner": ["8/255", 25, None, None, None],
        "auto_pgd": ["8/255", 25, "0.005", 5, None],
        "auto_pgd_16": ["16/255", 25, "0.005", 5, None],
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
    assert config.run.base.model.head == "average" and config_of("hist_fixer").data.image_size == 128
