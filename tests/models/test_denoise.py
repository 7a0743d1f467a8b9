"""Denoising blocks; also inserted modules with BatchNorm, and fine-tuned bases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.models import blocks
from advjax.models.denoise import DenoisingBlock, non_local_means, with_denoising
from advjax.models.fixer import with_fixers
from advjax.models.preact_resnet import PreActResNet18
from advjax.models.resnet9 import ResNet9
from advjax.training.partition import num_params

SHAPE = (8, 8, 3)


def by_the_sum(h, weighting):
    """Non-local means of one image's features, position by position."""
    positions = np.asarray(h, np.float64).reshape(-1, h.shape[-1])
    means = []
    for own in positions:
        products = positions @ own
        if weighting == "gaussian":
            weights = np.exp(products / np.sqrt(len(own)))
            weights /= weights.sum()
        else:
            weights = products / len(positions)
        means.append(weights @ positions)
    return np.reshape(means, h.shape)


@pytest.mark.parametrize("weighting", ["dot_product", "gaussian"])
@pytest.mark.parametrize("channels", [3, 20], ids=["few channels", "more channels than positions"])
def test_non_local_means_are_their_definition(weighting, channels):
    h = jax.random.normal(jax.random.key(0), (2, 3, 4, channels))
    found = non_local_means(h, weighting)
    for image, means in zip(h, found, strict=True):
        np.testing.assert_allclose(means, by_the_sum(image, weighting), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_a_fresh_block_is_the_identity_bit_for_bit_and_a_trained_one_is_not(train):
    h = jax.random.normal(jax.random.key(0), (4, 3, 5, 6))
    block = DenoisingBlock()
    variables = blocks.init(block, jax.random.key(1), (3, 5, 6))
    output = blocks.apply(block, variables, h, train=train)
    np.testing.assert_array_equal(output[0] if train else output, h)
    params = {**variables.params, "norm": {**variables.params["norm"], "scale": jnp.ones(6)}}
    output = blocks.apply(block, variables._replace(params=params), h, train=train)
    assert not np.allclose(output[0] if train else output, h)


def test_blocks_have_the_published_number_of_parameters():
    params = jax.eval_shape(lambda: blocks.init(with_denoising(ResNet9()), jax.random.key(0), (32, 32, 3))).params
    assert num_params(params["patches_res1"]) == 16_640
    assert num_params(params["patches_res2"]) == 263_168


@pytest.fixture(scope="module")
def base():
    model = PreActResNet18(num_classes=3, width=1 / 32)
    images = jax.random.uniform(jax.random.key(1), (4, *SHAPE))
    return model, blocks.init(model, jax.random.key(0), SHAPE), images


def grafted(patched, base_variables):
    """Variables with the trained base, with active denoising blocks."""
    variables = blocks.graft(blocks.init(patched, jax.random.key(2), SHAPE), base_variables)
    awake = jax.tree.map_with_path(
        lambda path, leaf: leaf + 0.5 if "patches_" in str(path[0]) and "scale" in str(path[-1]) else leaf,
        variables.params,
    )
    return variables._replace(params=awake)


def same(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return [np.array_equal(a, b) for a, b in pairs]


@jax.jit(static_argnums=(0, 1))
def in_train_mode(build, train_base, variables, images):
    model = with_denoising(build(), ("stage1", "stage2"), train_base=train_base)
    return blocks.apply(model, variables, images, train=True)


def tiny():
    return PreActResNet18(num_classes=3, width=1 / 32)


@pytest.mark.parametrize("train_base", [False, True])
def test_the_base_follows_train_mode_only_if_asked_and_the_blocks_always(base, train_base):
    model, base_variables, images = base
    patched = with_denoising(model, ("stage1", "stage2"), train_base=train_base)
    variables = grafted(patched, base_variables)
    logits, state = in_train_mode(tiny, train_base, variables, images)
    assert logits.shape == (4, 3)
    before, after = variables.model_state["batch_stats"], state["batch_stats"]
    assert all(same(before["base"], after["base"])) == (not train_base)
    assert not any(same(before["patches_stage1"], after["patches_stage1"]))


def test_the_parameters_of_the_base_keep_their_paths(base):
    model, base_variables, _ = base
    for patched in (with_denoising(model, ("stage1",)), with_fixers(model, ("stage1",))):
        variables = jax.eval_shape(lambda patched=patched: blocks.init(patched, jax.random.key(0), SHAPE))
        assert set(variables.params) == {"base", "patches_stage1"}
        assert jax.tree.structure(variables.params["base"]) == jax.tree.structure(base_variables.params)


def test_replicas_synchronize_the_batch_norm_of_blocks_and_base(base):
    model, base_variables, images = base
    patched = with_denoising(model, ("stage1",))
    variables = grafted(patched, base_variables)
    together = jax.jit(lambda v, x: blocks.apply(patched, v, x, train=True))(variables, images)
    replica = patched.clone(axis_name="replicas")
    apply = jax.vmap(lambda v, x: blocks.apply(replica, v, x, train=True), (None, 0), axis_name="replicas")
    logits, state = jax.jit(apply)(variables, images.reshape(2, 2, *SHAPE))
    np.testing.assert_allclose(logits.reshape(4, 3), together[0], rtol=1e-4, atol=1e-5)
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(together[1]), strict=True):
        np.testing.assert_allclose(leaf, jnp.stack([expected] * 2), rtol=1e-4, atol=1e-5)


def test_patched_models_are_seen_and_mixed_like_their_base_and_can_be_patched_again(base):
    model, _, images = base
    once = with_denoising(model, ("stage1",))
    twice = with_fixers(once, ("stage2",), delta=0.0)
    variables = jax.eval_shape(lambda: blocks.init(twice, jax.random.key(0), SHAPE))
    assert twice.block_names == model.block_names and twice.mixing_points == model.mixing_points
    seen = []

    def between(name, features):
        seen.append(name)
        return features

    jax.eval_shape(lambda v: blocks.apply(twice, v, images, between=between), variables)
    assert tuple(seen) == model.block_names
    assert set(variables.params) == {"base", "patches_stage2"}
    assert set(variables.params["base"]) == {"base", "patches_stage1"}
