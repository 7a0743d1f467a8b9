"""What checkpoints are chosen by: validation images, if there are any, as the run is to withstand attacks on them."""

import numpy as np
import pytest

from advjax import attacks
from advjax.evaluation.attack_runs import Resources
from advjax.jobs import train
from advjax.jobs.validation import validation
from advjax.jobs.workdir import restore
from advjax.models import blocks
from advjax.runtime.metrics import read_metrics
from advjax.training import loop
from advjax.types import UserError
from support.experiments import built, devices, fresh, small_config

TRADES = {"name": "trades", "loss": {"name": "cross_entropy"}}
DIVERGENT = {"name": "most_divergent", "epsilon": "0.2", "num_steps": 3, "step_size": "0.1"}


@pytest.mark.parametrize(
    "changes, what",
    [({}, "select is 'best'"), ({"select": "last", "patience": 2}, "patience is 2")],
)
def test_no_validation_images_are_refused_where_they_are_needed(changes, what):
    with pytest.raises(UserError, match=f"^run.base: {what}, but there are no .* data.num_validation .*select='last'"):
        built(**changes)


def test_a_run_without_validation_images_keeps_its_last_checkpoint(tmp_path):
    experiment = built(select="last")
    train.train(small_config(select="last"), str(tmp_path), devices(), print)
    assert {line["kind"] for line in read_metrics(tmp_path / "base")} == {"train"}
    assert restore(experiment.runs[0], str(tmp_path), experiment.facts.image_shape, print).params


def test_a_checkpoint_that_something_else_has_left_is_known_by_its_shapes(tmp_path):
    experiment = built(select="last")
    (run,) = experiment.runs
    variables, dataset = fresh(experiment), experiment.load_data().train
    fit = {"folder": str(tmp_path / "base"), "devices": devices(), "config": {"made": "by hand"}, "notify": print}
    loop.fit("base", run.method(variables, {}), run.plan, variables, dataset, {}, lambda variables: {}, **fit)
    assert restore(run, str(tmp_path), experiment.facts.image_shape, print).params


def scores(experiment, variables):
    """Metrics of the only run on validation images that the network, without noise, classifies correctly."""
    (run,), images = experiment.runs, experiment.load_data().validation
    logits = blocks.logits_fn(run.model, variables)(images.images.astype(np.float32) / 255)
    images = images._replace(labels=np.asarray(logits).argmax(-1).astype(np.int32))
    resources = Resources(devices(), experiment.evaluation.batch_size, experiment.seed, None)
    return validation(run, variables, images, {}, resources)(variables)


@pytest.mark.parametrize("noise, right", [(0.0, True), (30.0, False)])
def test_a_random_network_is_validated_with_its_noise(noise, right):
    experiment = built(20, 32, model={"name": "net62k", "width": 0.2, "noise": noise})
    variables = fresh(experiment)
    found = scores(experiment, variables)
    assert (found["accuracy"] == 1) == right
    assert found["score"] == found["accuracy"]


def test_a_network_of_trades_is_validated_under_an_attack_on_labels():
    experiment = built(20, objective=TRADES, attack=DIVERGENT)
    placed = experiment.runs[0].validation_attack
    assert (placed.made_on, placed.function.num_steps, placed.attack.threat_model) == ("self", 3, attacks.linf(0.2))
    variables = fresh(experiment)
    found = scores(experiment, variables)
    assert found["accuracy"] == 1 and found["attacked_accuracy"] < 0.5
    assert found["score"] == (found["accuracy"] + found["attacked_accuracy"]) / 2


def test_a_run_may_be_validated_with_another_attack_than_it_trains_with():
    fgsm = {"name": "fgsm", "epsilon": "0.2"}
    pgd = {"name": "pgd", "epsilon": "0.1", "num_steps": 4, "step_size": "0.05"}
    assert built(20, attack=fgsm).runs[0].validation_attack.function.num_steps == 1
    other = built(20, attack=fgsm, validation_attack=pgd).runs[0].validation_attack.function
    assert (other.num_steps, other.threat_model) == (4, attacks.linf(0.1))
    assert built(20, validation_attack=pgd).runs[0].validation_attack.function.num_steps == 4


@pytest.mark.parametrize(
    "spec, message",
    [
        (DIVERGENT, "run.base.validation_attack: unknown name 'most_divergent'; known are auto_pgd"),
        ({"name": "auto_attack", "epsilon": 0.1}, "run.base.validation_attack: auto_attack is for evaluation only"),
        ({"name": "fgsm", "epsilon": 0.1, "made_on": "x"}, "run.base: no earlier run is named 'x'"),
    ],
)
def test_an_attack_that_cannot_validate_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        built(20, validation_attack=spec)


def test_the_loss_is_measured_where_the_config_says_so():
    """Cross-entropy of the true labels, clean and attacked; it is no part of the score."""
    attack = {"name": "fgsm", "epsilon": "0.2", "made_on": "self"}
    experiment = built(20, 32, validate_loss=True, attack=attack)
    (run,), images, variables = experiment.runs, experiment.load_data().validation, fresh(experiment)
    resources = Resources(devices(), 16, 0, None)
    found = validation(run, variables, images, {}, resources)(variables)
    assert list(found) == ["accuracy", "attacked_accuracy", "score", "cross_entropy", "attacked_cross_entropy"]
    logits = np.asarray(blocks.logits_fn(run.model, variables)(images.images.astype(np.float32) / 255), np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), images.labels]
    assert found["cross_entropy"] == pytest.approx(losses.mean(), rel=1e-4)
    assert found["attacked_cross_entropy"] > found["cross_entropy"]
    assert found["score"] == pytest.approx((found["accuracy"] + found["attacked_accuracy"]) / 2)
