"""ResNet9, fixers, and named blocks."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.models import blocks
from advjax.models.fixer import Fixer, with_fixers
from advjax.models.resnet9 import Head, ResNet9
from advjax.training.partition import num_params
from support.variables import trained_looking


def shapes(model, image_shape=(32, 32, 3)):
    return jax.eval_shape(lambda: blocks.init(model, jax.random.key(0), image_shape))


@pytest.mark.parametrize(
    "model, image_shape, expected",
    [
        (ResNet9(), (32, 32, 3), 6_588_490),
        (ResNet9(pool3=True), (32, 32, 3), 6_573_130),
        (ResNet9(num_classes=4, head="max4_average"), (128, 128, 3), 6_570_052),
        (ResNet9(num_classes=4, head="average"), (128, 128, 3), 6_570_052),
    ],
)
def test_parameter_counts_of_the_paper(model, image_shape, expected):
    assert num_params(shapes(model, image_shape).params) == expected


def test_heads_pool_as_they_say():
    features = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    largest = features.reshape(2, 2, 4, 2, 4, 3).max((2, 4))
    pooled = {"max4": largest.reshape(2, -1), "max4_average": largest.mean((1, 2)), "average": features.mean((1, 2))}
    for name, expected in pooled.items():
        head = Head(2, name)
        variables = head.init(jax.random.key(1), features)
        layer = variables["params"]["dense"]
        np.testing.assert_allclose(
            head.apply(variables, features), expected @ layer["kernel"] + layer["bias"], rtol=1e-4, atol=1e-5
        )


def test_fixers_have_the_published_number_of_parameters():
    params = shapes(with_fixers(ResNet9())).params
    assert num_params(params["patches_res1"]) == 41_120
    assert num_params(params["patches_res2"]) == 656_000
    assert num_params(params) - num_params(params["base"]) == 697_120
    assert num_params(params["base"]) == 6_588_490


@pytest.fixture(scope="module")
def small():
    base = ResNet9(width=0.125, head="average")
    images = jax.random.uniform(jax.random.key(9), (6, 8, 8, 3))
    return base, trained_looking(base, (8, 8, 3)), images


@pytest.mark.optimized
@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_a_fixer_with_delta_0_leaves_the_base_as_it_is_bit_for_bit(small, activation):
    base, variables, images = small
    patched = with_fixers(base, delta=0.0, activation=activation)
    grafted = blocks.graft(trained_looking(patched, (8, 8, 3)), variables)
    # Variables as arguments: as constants, parts of the two networks would be folded differently.
    expected = jax.jit(lambda variables: blocks.apply(base, variables, images))(variables)
    found = jax.jit(lambda variables: blocks.apply(patched, variables, images))(grafted)
    np.testing.assert_array_equal(found, expected)


def test_a_fixer_that_starts_at_zero_starts_at_the_base_and_another_does_not(small):
    base, variables, images = small
    expected = blocks.apply(base, variables, images)
    for zero_last in (True, False):
        patched = with_fixers(base, zero_last=zero_last)
        grafted = blocks.graft(blocks.init(patched, jax.random.key(3), (8, 8, 3)), variables)
        same = np.array_equal(blocks.apply(patched, grafted, images), expected)
        assert same == zero_last


def test_features_are_those_after_the_fixer_or_of_the_base(small):
    base, variables, images = small
    patched = with_fixers(base)
    grafted = blocks.graft(blocks.init(patched, jax.random.key(3), (8, 8, 3)), variables)
    logits, fixed = blocks.apply(patched, grafted, images, method="with_features")
    base_logits, natural = blocks.apply(patched, grafted, images, method="with_features", patched=False)
    np.testing.assert_array_equal(logits, blocks.apply(patched, grafted, images))
    np.testing.assert_allclose(base_logits, blocks.apply(base, variables, images), rtol=1e-6)
    # The first place sees no earlier fixer, so there the fixer itself can be checked.
    fixer = Fixer().apply({"params": grafted.params["patches_res1"]}, natural["res1"])
    np.testing.assert_allclose(fixed["res1"], fixer, rtol=1e-5, atol=1e-6)
    assert set(natural) == {"res1", "res2"}


def test_the_base_of_a_patched_model_ignores_train_mode(small):
    base, variables, images = small
    patched = with_fixers(base)
    grafted = blocks.graft(blocks.init(patched, jax.random.key(3), (8, 8, 3)), variables)
    logits, state = blocks.apply(patched, grafted, images, train=True)
    np.testing.assert_array_equal(logits, blocks.apply(patched, grafted, images))
    chex.assert_trees_all_equal(state, grafted.model_state)


def test_train_mode_uses_and_updates_batch_statistics(small):
    base, variables, images = small
    logits, state = blocks.apply(base, variables, images, train=True)
    assert not np.allclose(logits, blocks.apply(base, variables, images))
    before, after = variables.model_state["batch_stats"], state["batch_stats"]
    assert all(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def test_between_acts_on_the_features_of_every_block(small):
    base, variables, images = small
    seen = []

    def between(name, features):
        seen.append((name, features.shape[1:]))
        return jnp.zeros_like(features) if name == "head" else features

    assert not blocks.apply(base, variables, images, between=between).any()
    assert seen == [
        ("conv1", (8, 8, 8)),
        ("conv2", (4, 4, 16)),
        ("res1", (4, 4, 16)),
        ("conv3", (4, 4, 32)),
        ("conv4", (2, 2, 64)),
        ("res2", (2, 2, 64)),
        ("head", (10,)),
    ]


def test_a_users_own_network_gets_fixers_by_naming_its_blocks():
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.relu(nn.Conv(4, (3, 3))(x))

    class Top(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(3)(x.mean((1, 2)))

    class Own(blocks.Classifier):
        def make_blocks(self):
            return {"body": Body(), "top": Top()}

    variables = blocks.init(Own(), jax.random.key(0), (5, 7, 1))
    patched = with_fixers(Own(), after=("body",), zero_last=True)
    grafted = blocks.graft(blocks.init(patched, jax.random.key(1), (5, 7, 1)), variables)
    images = jax.random.uniform(jax.random.key(2), (2, 5, 7, 1))
    np.testing.assert_allclose(
        blocks.apply(patched, grafted, images), blocks.apply(Own(), variables, images), rtol=1e-6
    )


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ResNet9(head="mean"), "head must be one of max4, max4_average, average, got 'mean'"),
        (lambda: ResNet9(width=0), "width must be positive, got 0"),
        (lambda: with_fixers(ResNet9(), activation="relu"), "activation must be one of identity, tanh, got 'relu'"),
        (lambda: with_fixers(ResNet9(), reduction=0), "reduction must be at least 1, got 0"),
        (lambda: shapes(ResNet9(), (8, 8, 3)), "head 'max4' needs features of 4x4 or more, got 2x2: use 'average'"),
        (
            lambda: shapes(with_fixers(ResNet9(), after=("res7",))),
            "no block named res7: the blocks are conv1, conv2, res1, conv3, conv4, res2, head",
        ),
    ],
)
def test_impossible_models_are_refused(build, message):
    with pytest.raises(ValueError, match="^" + message):
        build()
