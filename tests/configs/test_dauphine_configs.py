"""The configs of the Dauphine report (004) match its code where they are said to."""

import pytest

from advjax.experiment.from_config import plain
from advjax.papers import join
from advjax.types import UserError
from support.configs import config_of


def test_one_draw_is_the_ensemble_of_the_report():
    """Its attacks follow a single draw, and it sums log-probabilities over 50."""
    ensemble = plain(config_of("cifar_random_self_ensemble", "one_draw"))["evaluation"]["defenses"]["ensemble"]
    assert ensemble["num_draws"] == 50 and ensemble["num_samples"] == ensemble["num_votes"] == 1
    assert ensemble["mean_over"] == "log_probabilities"
    published = {
        variant: [join.select(entry).value for entry in config_of("cifar_random_self_ensemble", variant).published]
        for variant in ("", "one_draw", "vgg16")
    }
    assert published == {"": [52.0], "one_draw": [52.0, 16.0, 9.8], "vgg16": []}
    with pytest.raises(UserError, match="unknown variant; known: one_draw, vgg16"):
        config_of("cifar_random_self_ensemble", "net62k")


@pytest.mark.parametrize(
    ("config", "arguments", "models"),
    [
        ("cifar_fixed_mix", (), ("plain", "mixed")),
        ("cifar_two_updates", (), ("fgsm", "pgd")),
        ("cifar_random_self_ensemble", ("one_draw",), ("noisy", "noisy+ensemble")),
    ],
)
def test_its_protocol_is_the_whole_attack_and_its_last_images(config, arguments, models):
    described = plain(config_of(config, *arguments))
    evaluation = described["evaluation"]
    assert (tuple(evaluation["made_on"]), evaluation["protocol"]) == (models, "faithful")
    assert {evaluation["attacks"][name]["returns"] for name in ("pgd_10", "pgd_40")} == {"last"}
    attacked = [entry for entry in described["published"] if entry["our_attack"] != "clean"]
    assert attacked and all(entry["protocol"] == "faithful" and entry["adaptive"] for entry in attacked)
