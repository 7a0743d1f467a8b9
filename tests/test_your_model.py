"""The recipes of docs/your_model.md: one for each library, and the command line."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import advjax
from advjax import attacks
from advjax.evaluation.given_model import given_model
from support.paths import REPOSITORY

SHAPE = (6, 5, 2)
IMAGES = np.random.default_rng(0).random((4, *SHAPE)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0])
TEXT = (REPOSITORY / "docs" / "your_model.md").read_text()


def plain():
    rng = np.random.default_rng(1)
    params = {"weights": rng.normal(size=(60, 3)).astype(np.float32), "bias": np.arange(3, dtype=np.float32)}
    return {"params": params}, IMAGES.reshape(4, -1) @ params["weights"] + params["bias"]


def linen():
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            features = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(images))
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(features.mean(axis=(1, 2))))

    network = Network()
    variables = network.init(jax.random.key(0), IMAGES, train=False)
    return {"network": network, "variables": variables}, network.apply(variables, IMAGES, train=False)


def nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.conv, self.norm = nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, images):
            return self.head(self.dropout(self.norm(self.conv(images)).mean(axis=(1, 2))))

    network = Network(nnx.Rngs(0))
    inference = nnx.clone(network)
    inference.eval()
    # In train mode, as a network is after training.
    return {"network": network}, inference(IMAGES)


def equinox():
    eqx = pytest.importorskip("equinox", reason="needs equinox, which is in the extra 'test'")
    keys = jax.random.split(jax.random.key(0))
    layers = eqx.nn.Conv2d(2, 4, 3, key=keys[0]), eqx.nn.Lambda(jnp.ravel), eqx.nn.Dropout(0.5)
    network = eqx.nn.Sequential([*layers, eqx.nn.Linear(48, 3, key=keys[1])])
    inference = eqx.nn.inference_mode(network)
    return {"network": network}, jnp.stack([inference(image.transpose(2, 0, 1)) for image in IMAGES])


def haiku():
    hk = pytest.importorskip("haiku", reason="needs dm-haiku, which is in the extra 'test'")

    def forward(images, is_training):
        features = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(images), is_training)
        return hk.Linear(3)(features.mean(axis=(1, 2)))

    network = hk.transform_with_state(forward)
    params, state = network.init(jax.random.key(0), IMAGES, is_training=True)
    logits, _ = network.apply(params, state, None, IMAGES, is_training=False)
    return {"network": network, "params": params, "state": state}, logits


def stochastic():
    weights = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
    return {"logits_fn": lambda images: images.reshape(len(images), -1) @ weights, "attacks": attacks}, None


RECIPES = {
    "Plain JAX": plain,
    "Flax linen": linen,
    "Flax nnx": nnx,
    "Equinox": equinox,
    "Haiku": haiku,
    "Stochastic models": stochastic,
}


def recipe(title):
    """The code that follows a title."""
    return re.search(rf"^(?:## )?{title}.*?```python\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE)[1]


def made(title):
    names, logits = RECIPES[title]()
    exec(recipe(title), namespace := {"jax": jax, **names})
    return namespace["model"], logits


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_gives_the_model_in_inference_mode(title):
    model, logits = made(title)
    scored = given_model("model", model, SHAPE).scored
    bound = scored.attacked(scored.variables)
    result = attacks.fgsm(attacks.linf(0.05))(bound, IMAGES, LABELS, jax.random.key(0))
    if logits is None:
        assert scored.num_draws == 20
    else:
        np.testing.assert_allclose(scored.bind(scored.variables)(IMAGES), logits, rtol=1e-4, atol=1e-5)
        # All weights are arguments.
        assert sum(leaf.size for leaf in jax.tree.leaves(scored.variables)) >= 23
    assert np.all(np.asarray(result.distance) > 0.02)


@pytest.mark.slow
def test_every_recipe_gives_a_report(tmp_path):
    """All libraries side by side, with the attacks of the page."""
    (text,) = (text for text in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if '"PGD-20"' in text)
    models = {title: made(title)[0] for title in RECIPES}
    names = {"advjax": advjax, "attacks": attacks, "images": IMAGES, "labels": LABELS}
    names |= {"logits_fn": models["Plain JAX"], "model": models["Stochastic models"]}
    exec(text.replace('"report"', repr(str(tmp_path / "two"))), names)
    assert [entry["run"] for entry in names["report"].summary] == ["plain", "smoothed"]
    fgsm = {"fgsm": attacks.fgsm(attacks.linf(0.05))}
    found = advjax.evaluate(models, IMAGES, LABELS, attacks.linf(0.05), attacks=fgsm, workdir=tmp_path, num_checked=0)
    assert {entry["run"] for entry in found.summary} == set(RECIPES)
