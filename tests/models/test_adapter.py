"""A user's network of pure functions: fixers, denoising blocks, and mixing without rewriting it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advjax.models import adapter, blocks
from advjax.models.denoise import with_denoising
from advjax.models.fixer import with_fixers
from advjax.training.partition import FROZEN, label_params, partitioned
from advjax.types import UserError, Variables

SNIPPET = """\
import jax
import jax.numpy as jnp

from advjax.models import adapter, blocks
from advjax.models.fixer import with_fixers


def body(params, x):  # your trained network, cut into pure functions
    x = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(x)


def head(params, x):
    return x.mean((1, 2)) @ params["kernel"]


params = {"body": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 3, 8))}, "head": {"kernel": jnp.eye(8, 3)}}
network, trained = adapter.from_functions({"body": body, "head": head}, params)
patched = with_fixers(network, after=("body",))
variables = blocks.graft(blocks.init(patched, jax.random.key(1), (32, 32, 3)), trained)
logits = blocks.apply(patched, variables, images)
"""


@pytest.fixture(scope="module")
def shown():
    """The variables that the README snippet defines."""
    names = {"images": jax.random.uniform(jax.random.key(1), (5, 4, 4, 3))}
    exec(SNIPPET, names)
    return names


def plain(shown, params, images):
    return shown["head"](params["head"], shown["body"](params["body"], images))


def test_the_lines_of_the_readme_patch_a_network(shown):
    assert shown["logits"].shape == (5, 3)
    network, trained, params, images = (shown[name] for name in ("network", "trained", "params", "images"))
    expected = plain(shown, params, images)
    np.testing.assert_array_equal(blocks.apply(network, trained, images), expected)
    assert not np.allclose(shown["logits"], expected)
    silent = with_fixers(network, after=("body",), delta=0.0)
    np.testing.assert_array_equal(blocks.apply(silent, shown["variables"], images), expected)


def test_the_network_starts_from_the_parameters_it_came_with(shown):
    fresh = blocks.init(shown["network"], jax.random.key(5), (4, 4, 3))
    chex.assert_trees_all_equal(fresh, shown["trained"])


def test_a_step_of_training_moves_the_fixers_and_no_bit_of_the_network(shown):
    patched, variables, images = shown["patched"], shown["variables"], shown["images"]
    labels = label_params(variables.params, ((r"^patches_", "fixers"),), default="frozen")
    optimizer = partitioned({"fixers": optax.sgd(0.5), "frozen": FROZEN}, labels)

    @jax.jit
    def step(params):
        def loss(params):
            logits = blocks.apply(patched, Variables(params, {}), images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(5) % 3).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return value, optax.apply_updates(params, updates)

    before, params = step(variables.params)
    after, _ = step(params)
    assert after < before
    chex.assert_trees_all_equal(params["base"], variables.params["base"])
    fixers = zip(
        jax.tree.leaves(params["patches_body"]), jax.tree.leaves(variables.params["patches_body"]), strict=True
    )
    assert all(not np.array_equal(new, old) for new, old in fixers)


def test_features_can_be_mixed_between_the_functions(shown):
    network, trained, params, images = (shown[name] for name in ("network", "trained", "params", "images"))
    assert network.block_names == ("body", "head") and network.mixing_points == ("images", "body")

    def between(name, features):
        return 0.5 * (features + features[::-1]) if name == "body" else features

    features = shown["body"](params["body"], images)
    expected = shown["head"](params["head"], 0.5 * (features + features[::-1]))
    np.testing.assert_allclose(blocks.apply(network, trained, images, between=between), expected, rtol=1e-6)


def test_it_takes_denoising_blocks_functions_without_parameters_and_any_tree(shown):
    functions = {
        "body": lambda params, x: x @ params[0] + params[1],
        "relu": lambda params, x: jax.nn.relu(x),
        "head": lambda params, x: x.mean((1, 2)),
    }
    network, trained = adapter.from_functions(functions, {"body": (jnp.eye(3), jnp.full(3, -0.5))})
    assert set(trained.params) == {"block_body"}
    images = shown["images"]
    expected = jax.nn.relu(images - 0.5).mean((1, 2))
    np.testing.assert_allclose(blocks.apply(network, trained, images), expected, rtol=1e-6)
    patched = with_denoising(network, ("relu",))
    variables = blocks.graft(blocks.init(patched, jax.random.key(0), (4, 4, 3)), trained)
    np.testing.assert_allclose(blocks.apply(patched, variables, images), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "functions, params, message",
    [
        ({}, {}, "functions must name at least one block, got none"),
        ({"a": abs}, {"b": 1}, "params has 'b', which is not a block: the blocks are a"),
    ],
)
def test_parameters_of_no_block_are_refused(functions, params, message):
    with pytest.raises(UserError, match="^" + message):
        adapter.from_functions(functions, params)
