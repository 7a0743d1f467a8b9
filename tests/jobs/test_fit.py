"""``advjax.fit_fixers`` and ``advjax.fine_tune``: networks trained elsewhere, with weights that are kept or start."""

import ast
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

import advjax
from advjax import attacks
from advjax.models import adapter, blocks
from advjax.types import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 1)).astype(np.uint8)
LABELS = np.arange(40) % 3
FEW = {"num_steps": 2, "batch_size": 8, "notify": print}


class Net(nn.Module):
    """As a user has it: not a classifier of advjax."""

    def setup(self):
        self.conv, self.norm, self.head = nn.Conv(4, (3, 3)), nn.BatchNorm(), nn.Dense(3)

    def __call__(self, images, train=False):
        features = nn.relu(self.norm(self.conv(images), use_running_average=not train))
        return self.head(features.reshape(len(images), -1))


TRAINED = jax.tree.map(np.asarray, dict(Net().init(jax.random.key(0), IMAGES / np.float32(255))))


def in_blocks():
    return adapter.from_module(Net(), ("conv", "head"), TRAINED)


def fitted(workdir, function=advjax.fit_fixers, variables=None, **options):
    network, trained = in_blocks()
    chosen = {"after": ("conv",)} if function is advjax.fit_fixers else {}
    options = {**FEW, **chosen, **options}
    return function(network, variables or trained, IMAGES, LABELS, attacks.linf(0.05), workdir=workdir, **options)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def patched(workdir):
    return fitted(workdir)


def test_fixers_learn_and_the_network_stays_as_it_is(patched):
    kept = {"params": patched.variables.params["base"]}
    kept["batch_stats"] = patched.variables.model_state["batch_stats"]["base"]
    assert jax.tree.all(jax.tree.map(np.array_equal, kept, TRAINED))
    (fixer,) = (part for name, part in patched.variables.params.items() if name.startswith("patches_"))
    assert np.any(np.asarray(fixer["expand"]["kernel"]) != 0)
    images = IMAGES[:4] / np.float32(255)
    assert patched.logits_fn(images).shape == (4, 3)
    assert not np.allclose(patched.logits_fn(images), Net().apply(TRAINED, images))


def test_a_finished_call_returns_what_it_has_trained(patched, workdir, monkeypatch):
    monkeypatch.setattr("advjax.training.loop._train", lambda *arguments: pytest.fail("trained again"))
    again = fitted(workdir)
    assert jax.tree.all(jax.tree.map(np.array_equal, again.variables, patched.variables))


def test_a_folder_is_refused_for_other_weights(patched, workdir):
    other = jax.tree.map(lambda leaf: leaf + 1, TRAINED)
    with pytest.raises(UserError, match="choose another --workdir"):
        fitted(workdir, variables=other)


def test_fine_tuning_starts_from_the_weights_and_changes_all_of_them(tmp_path):
    seen = []
    tuned = fitted(tmp_path, advjax.fine_tune, num_validation=8, on_metrics=lambda *record: seen.append(record))
    assert {(run, kind) for run, _, kind, _ in seen} == {("fine_tuned", "train"), ("fine_tuned", "validation")}
    assert all(np.isfinite(values["accuracy"]) for *_, values in seen)
    _, start = in_blocks()
    moved = jax.tree.map(lambda a, b: 0 < np.max(np.abs(a - b)) < 0.5, tuned.variables.params, start.params)
    assert jax.tree.all(moved)


def test_the_method_in_the_docstring_can_be_trained(tmp_path, monkeypatch):
    """Building and tracing it is enough: training has its own tests."""
    monkeypatch.setattr("advjax.jobs.fit.train_runs", lambda experiment, *rest: {"fine_tuned": None})
    (method,) = re.findall(r"``objective=(\{.*\})``", advjax.fine_tune.__doc__)
    tuned = fitted(tmp_path, advjax.fine_tune, objective=ast.literal_eval(method))
    assert tuned.model is not None and "trades" in method


def test_linen_variables_of_a_network_of_advjax_are_accepted(tmp_path):
    _, trained = in_blocks()
    assert jax.tree.all(jax.tree.map(np.array_equal, {"params": trained.params, **trained.model_state}, TRAINED))
    found = fitted(tmp_path, variables=TRAINED, made_on="base")
    assert isinstance(found.model, blocks.Patched)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"network": Net()}, "cut into blocks, got Net: adapter.from_module"),
        ({"made_on": "nobody"}, "'self' or 'base', got 'nobody'"),
        ({"after": ("conv9",)}, "no block named conv9"),
        ({"epoch": 3}, "unknown key run.fixers.epoch"),
        ({"labels": LABELS + 5}, "labels of images range from 5 to 7"),
        ({"variables": 3}, "variables must be"),
        ({"threat_model": attacks.l1(3.0)}, "linf or l2"),
    ],
)
def test_mistakes_are_explained_before_anything_is_written(options, message, tmp_path):
    network, trained = in_blocks()
    given = {"network": network, "variables": trained, "images": IMAGES, "labels": LABELS}
    given |= {"threat_model": attacks.linf(0.05), "after": ("conv",), **FEW, **options}
    with pytest.raises(ValueError, match=message):
        advjax.fit_fixers(**given, workdir=tmp_path / "fit")
    assert not (tmp_path / "fit").exists()
