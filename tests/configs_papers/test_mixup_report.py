"""The configs of the mixup report (001): what their docstrings claim."""

import jax
import pytest
from test_wiring import config_of

from advjax import wiring
from advjax.models import blocks

SOUND = {
    "mnist_mixup_adversarial": {"mixup": {"targets"}},
    "mnist_manifold_adversarial": {"manifold": {"objective"}},
    "mnist_soft_labels": {"mixup": {"targets"}, "soft_labels": {"targets"}},
    "mnist_partial_pgd": {"partial": {"targets"}},
}
"""Config -> run -> keys in which it differs from plain adversarial training."""


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_form_is_plain_adversarial_training_but_for_its_method(name):
    config = wiring.plain(config_of(name))
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


def test_the_best_checkpoint_of_a_sound_form_is_that_of_attacked_validation_images(shared):
    config = config_of("mnist_mixup_adversarial")
    config.data.dir = str(shared / "data" / "tensorflow_datasets")
    built = wiring.from_config(config)
    assert [len(split.labels) for split in built.data] == [50000, 4000, 10000]
    for run in built.runs:
        assert (run.plan.select, run.plan.select_metric) == ("best", "attacked_accuracy")
        variables = jax.eval_shape(lambda run=run: blocks.init(run.model, jax.random.key(0), built.image_shape))
        assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == 61_706
