"""Networks that are given instead of trained: functions of images, and modules with their variables."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from advjax.experiment import defaults
from advjax.experiment.from_config import from_config
from advjax.jobs import evaluate, train
from advjax.jobs.load import load
from advjax.jobs.workdir import read_config, restore
from advjax.types import UserError
from support.configs import config_of
from support.experiments import devices

MODULE = """
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from advjax.models import adapter

WEIGHTS = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)

def logits(images):
    return images.reshape(len(images), -1) @ WEIGHTS

def three_classes(images):
    return logits(images)[:, :3]

def probabilities(image):
    return logits(image[None])[0]

class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(images.reshape(len(images), -1))

def trained():
    return Net(), {"params": {"Dense_0": {"kernel": WEIGHTS, "bias": np.zeros(10, np.float32)}}}

def in_blocks():
    return adapter.from_module(Net(), ("Dense_0",), trained()[1])

def untrained():
    return in_blocks()[0]

def other_shape():
    return Net(), {"params": {"Dense_0": {"kernel": WEIGHTS[:, :4], "bias": np.zeros(4, np.float32)}}}

def no_variables():
    return Net(), 3

def number():
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Name of a module of the user's."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def experiment(**model):
    """Digits, and a run with this model and nothing else."""
    attack = {"order": ("fgsm",), "fgsm": {"name": "fgsm", "epsilon": "0.05"}}
    evaluation = {"made_on": "given", "attacks": attack, "num_examples": 16, "batch_size": 16, "num_checked": 0}
    run = {"given": defaults.run(model=model)}
    return defaults.experiment(data={"name": "digits"}, runs=("given",), run=run, evaluation=evaluation)


def test_a_function_is_a_run_that_is_not_trained(own, tmp_path):
    config = experiment(name="logits_fn", function=f"{own}:logits")
    (run,) = from_config(config).runs
    assert run.is_taken and [leaf.shape for leaf in jax.tree.leaves(run.given)] == [(64, 10)]
    workdir = str(tmp_path / "work")
    train.train(config, workdir, devices(), print)
    found = evaluate.evaluate_experiment(config, workdir, devices(), print)
    network = load(workdir, "given", trust_workdir=True)
    images = network.test.images[:16] / np.float32(255)
    weights = jax.tree.leaves(run.given)[0]
    np.testing.assert_allclose(network.logits_fn(images), images.reshape(16, -1) @ weights, rtol=1e-5, atol=1e-5)
    correct = np.mean(np.argmax(images.reshape(16, -1) @ weights, axis=-1) == network.test.labels[:16])
    assert found.summary[0]["clean"]["accuracy"] == correct
    assert not (tmp_path / "work" / "given").exists()
    # A folder that somebody else has made may not run code.
    with pytest.raises(UserError, match="--trust_workdir"):
        read_config(workdir)


def test_a_module_may_come_with_its_variables(own, tmp_path):
    (run,) = from_config(experiment(name=f"{own}:trained")).runs
    assert isinstance(run.model, nn.Module) and run.is_taken
    assert restore(run, tmp_path, (8, 8, 1), print).params["Dense_0"]["kernel"].shape == (64, 10)


def test_later_runs_start_from_a_network_that_was_given(own, tmp_path):
    config = experiment(name=f"{own}:in_blocks")
    config.runs = ("given", "tuned")
    few = {"epochs": 0, "num_steps": 2, "batch_size": 8, "train_fraction": 0.05, "select": "last"}
    with config.unlocked():
        config.run.tuned = defaults.run(model={"name": f"{own}:untrained"}, start="given", **few)
    train.train(config, str(tmp_path), devices(), print)
    given, tuned = from_config(config).runs
    start, end = (restore(run, tmp_path, (8, 8, 1), print).params["Dense_0"]["kernel"] for run in (given, tuned))
    assert 0 < np.max(np.abs(np.asarray(start) - end)) < 1


def test_variables_of_another_network_are_refused(own, tmp_path):
    (run,) = from_config(experiment(name=f"{own}:other_shape")).runs
    with pytest.raises(UserError, match=r"own_.*:other_shape returns holds another model .* \(4,\) there and \(10,\)"):
        restore(run, tmp_path, (8, 8, 1), print)


@pytest.mark.parametrize(
    "model, message",
    [
        ({"function": "OWN:three_classes"}, "three_classes has 3 classes, and the data 10"),
        ({"function": "OWN:probabilities"}, r"cannot be called .* give jax.vmap\(model\)"),
        ({"function": "OWN:missing"}, "model: function: .* cannot be imported"),
        ({"function": "logits"}, "unknown name 'logits'"),
        ({}, "model: function is missing"),
        ({"function": "OWN:logits", "width": 2}, "unknown key 'width'; known are name, function"),
        ({"name": "OWN:no_variables"}, r"variables must be \{'params'"),
        ({"name": "OWN:number"}, "pair of a module and its variables, and returned int"),
    ],
)
def test_what_cannot_be_a_given_model_is_explained(model, message, own):
    spec = {"name": "logits_fn", **{key: str(value).replace("OWN", own) for key, value in model.items()}}
    with pytest.raises(UserError, match=message):
        from_config(experiment(**spec))


def test_the_shipped_config_takes_the_name_of_a_function(own):
    config = config_of("own_model", f"{own}:logits")
    (run,) = from_config(config).runs
    assert config.title == "Robustness of logits" and run.is_taken
