"""A user's linen network: its class, variables, and layers work unchanged."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.models import adapter, blocks
from advjax.models.denoise import with_denoising
from advjax.models.fixer import with_fixers
from advjax.training import losses, mixing
from advjax.types import Batch, UserError

SHAPE = (4, 5, 3)
NAMES = ("conv", "norm", "body", "head")


class Body(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(6, (3, 3))(x))


class Setup(nn.Module):
    """A common style: submodules in ``setup``, and a positional "training" flag."""

    norm: nn.Module = nn.BatchNorm(momentum=0.5)

    def setup(self):
        self.conv, self.body, self.head = nn.Conv(4, (3, 3)), Body(), nn.Dense(3)

    def __call__(self, x, training=False):
        x = self.norm(self.conv(x), not training)
        return self.head(self.body(x).mean((1, 2)))


class Compact(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic=True):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.BatchNorm(deterministic, momentum=0.5, name="norm")(x)
        return nn.Dense(3, name="head")(Body(name="body")(x).mean((1, 2)))


class Listed(blocks.Classifier):
    """The same as a sequence of linen's own layers and of functions."""

    def make_blocks(self):
        return {
            "conv": nn.Conv(4, (3, 3)),
            "norm": nn.BatchNorm(momentum=0.5, axis_name=self.axis_name),
            "body": Body(),
            "mean": lambda x: x.mean((1, 2)),
            "head": nn.Dense(3),
        }


@pytest.fixture(scope="module")
def trained():
    """Variables of the plain network, with running statistics away from their initial values, and images."""
    images = jax.random.uniform(jax.random.key(0), (4, *SHAPE))
    variables = Compact().init(jax.random.key(1), images)
    _, state = Compact().apply(variables, images, deterministic=False, mutable=["batch_stats"])
    return {**variables, **state}, images


def classifiers(variables):
    """All ways to take the network, each with its variables."""
    return {
        "setup": adapter.from_module(Setup(), NAMES, variables),
        "compact": adapter.from_module(Compact(), NAMES, variables),
        "listed": (Listed(), adapter.in_blocks(variables)),
    }


KINDS = ("setup", "compact", "listed")


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_taken_with_its_variables(trained, kind):
    variables, images = trained
    model, taken = classifiers(variables)[kind]
    fresh = jax.eval_shape(lambda: blocks.init(model, jax.random.key(0), SHAPE))
    chex.assert_trees_all_equal_shapes_and_dtypes(fresh, taken)
    np.testing.assert_allclose(blocks.apply(model, taken, images), Compact().apply(variables, images), rtol=1e-5)
    logits, state = blocks.apply(model, taken, images, train=True)
    expected, moved = Compact().apply(variables, images, deterministic=False, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    chex.assert_trees_all_close(jax.tree.leaves(state), jax.tree.leaves(moved["batch_stats"]), rtol=1e-5)
    assert not np.allclose(logits, blocks.apply(model, taken, images))


@pytest.mark.parametrize("kind", KINDS)
def test_its_batch_norm_is_synchronized_and_the_users_object_left_alone(trained, kind):
    variables, images = trained
    model, taken = classifiers(variables)[kind]
    together = blocks.apply(model, taken, images, train=True)
    replica = model.clone(axis_name="replicas")
    apply = jax.vmap(lambda x: blocks.apply(replica, taken, x, train=True), axis_name="replicas")
    logits, state = apply(images.reshape(2, 2, *SHAPE))
    np.testing.assert_allclose(logits.reshape(4, 3), together[0], rtol=1e-4, atol=1e-5)
    halves = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), together[1])
    chex.assert_trees_all_close(state, halves, rtol=1e-4, atol=1e-6)
    assert Setup.norm.axis_name is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("insert", [with_fixers, with_denoising], ids=["fixers", "denoising"])
def test_fixers_and_denoising_blocks_go_in_by_name(trained, kind, insert):
    variables, images = trained
    model, taken = classifiers(variables)[kind]
    options = {"zero_last": True} if insert is with_fixers else {}
    patched = insert(model, ("body",), **options)
    grafted = blocks.graft(blocks.init(patched, jax.random.key(2), SHAPE), taken)
    assert set(grafted.params) == {"base", "patches_body"}
    expected = Compact().apply(variables, images)
    np.testing.assert_allclose(blocks.apply(patched, grafted, images), expected, rtol=1e-5)
    awake = jax.tree.map(lambda leaf: leaf + 0.5, grafted.params["patches_body"])
    grafted = grafted._replace(params={**grafted.params, "patches_body": awake})
    logits, features = blocks.apply(patched, grafted, images, method="with_features")
    assert features["body"].shape == (4, 4, 5, 6) and not np.allclose(logits, expected)


def test_manifold_mixup_mixes_in_it(trained):
    variables, images = trained
    labels = jnp.array([0, 1, 2, 1])
    batch = Batch(images, labels, jax.nn.one_hot(labels, 3), jnp.arange(4), jnp.ones(4, bool))

    def loss_of(kind, points):
        model, taken = classifiers(variables)[kind]
        objective = mixing.manifold_mixup(model, losses.cross_entropy, points=points)
        gradient = jax.jit(jax.value_and_grad(lambda params: objective(params, taken.model_state, batch, rng, None)[0]))
        value, found = gradient(taken.params)
        return value, sorted(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(found))

    rng = jax.random.key(3)
    at_body, at_images = loss_of("listed", ("body",)), loss_of("listed", ("images",))
    assert not np.isclose(at_body[0], at_images[0], rtol=1e-4)
    model, _ = classifiers(variables)["compact"]
    assert model.block_names == NAMES and model.mixing_points == ("images", "conv", "norm", "body")
    chex.assert_trees_all_close(loss_of("compact", ("body",)), at_body, rtol=1e-4, atol=1e-6)


def test_blocks_are_told_of_train_mode_by_the_argument_that_they_have():
    seen = []
    functions = [
        (lambda x, train: seen.append(train) or x, [True, False]),
        (lambda x, *, training=False: seen.append(training) or x, [True, False]),
        (lambda x, is_training=None: seen.append(is_training) or x, [True, False]),
        (lambda x, deterministic=None: seen.append(deterministic) or x, [False, True]),
        (lambda x, other=7: seen.append(other) or x, [7, 7]),
    ]
    for function, expected in functions:
        seen.clear()
        for train in (True, False):
            blocks.call_block(function, jnp.zeros(1), train)
        assert seen == expected

    frozen = nn.BatchNorm(use_running_average=True)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    variables = frozen.init(jax.random.key(0), x)
    in_training = nn.apply(lambda module, x: blocks.call_block(module, x, True), frozen)(variables, x)
    np.testing.assert_allclose(in_training, x, rtol=1e-4)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        body = Body(name="body")
        return nn.Dense(3, name="head")(body(body(jnp.tile(x, 2))).mean((1, 2)))


@pytest.mark.parametrize(
    "module, names, message",
    [
        (Setup(), (), "blocks must name at least one submodule, got none"),
        (Setup(), ("body", "conv", "head"), "Setup calls its submodules in the order conv, norm, body, head: blocks "),
        (Setup(), ("trunk", "head"), "Setup calls .*: blocks must be some of them, .* got trunk, head"),
        (Setup(), ("conv", "body"), "the last block must return the logits, but 'body' of Setup does not"),
        (Twice(), ("body", "head"), "Twice calls its submodules in the order body, body, head: .* called once"),
    ],
)
def test_names_of_no_blocks_are_refused(module, names, message):
    with pytest.raises(UserError, match=f"^{message}"):
        model, _ = adapter.from_module(module, names, {"params": {}})
        jax.eval_shape(lambda: blocks.init(model, jax.random.key(0), SHAPE))


def test_variables_without_parameters_are_refused():
    with pytest.raises(UserError, match=r"^variables must be \{'params': ...\}, as returned by init, got conv"):
        adapter.in_blocks({"conv": {"kernel": jnp.zeros(1)}})
