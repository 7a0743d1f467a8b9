"""Training attacks on stochastic networks: the noise is on, and independent for every image and query."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks.keys import image_keys
from advjax.models import blocks
from advjax.training import losses, mixing, objectives, optimizers, transforms
from advjax.training.step import Method, init_state, prepare
from advjax.training.two_updates import two_updates
from support.tiny_models import CLASSES, SHAPE, Tiny, assert_close, fresh, make_batch, make_data

# Without a random start: whatever differs is the noise of the network.
BIM = attacks.bim(attacks.linf(0.1), num_steps=3, step_size=0.05)
VARIABLES = fresh(Tiny())
BATCH = make_batch()


def make_method(noise, **options):
    model, trainable = Tiny(noise=noise), jax.tree.map(lambda _: True, VARIABLES.params)
    method = {"transforms": (transforms.perturb(BIM),), "models": {}, **options}
    objective = objectives.supervised(model, losses.cross_entropy, noise=False)
    return Method(model, objective, optimizer=optimizers.sgd(1.0), trainable=trainable, **method)


def attacked(noise, seed=0, **options):
    method = make_method(noise, **options)
    state = init_state(method, VARIABLES, jax.random.key(seed))
    sources = dict.fromkeys(method.models, VARIABLES)
    return jax.jit(lambda state: prepare(state, sources, BATCH, method)[0].images)(state)


def test_only_networks_that_draw_noise_are_random():
    assert blocks.is_stochastic(Tiny(noise=0.3), VARIABLES, SHAPE)
    assert not blocks.is_stochastic(Tiny(noise=0.0), VARIABLES, SHAPE)


@pytest.mark.parametrize(
    "options", [{}, {"transforms": (transforms.perturb(BIM, "base"),), "models": {"base": Tiny(noise=2.0)}}]
)
def test_the_noise_of_a_network_moves_the_images_attacked_on_it(options):
    noisy, again, other = (attacked(2.0, seed, **options) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(noisy, again)
    assert not np.allclose(noisy, other)
    if not options:
        chex.assert_trees_all_equal(attacked(0.0, 0), attacked(0.0, 1))
        assert not np.allclose(noisy, attacked(0.0))


def test_every_image_has_its_draw_whatever_else_is_in_the_batch():
    network = transforms.attackable(Tiny(noise=2.0), VARIABLES, SHAPE)
    step = transforms.perturb(BIM)
    whole = step({"self": network}, BATCH, jax.random.key(3)).images
    half = step(
        {"self": network}, jax.tree.map(lambda x: x[4:] if x is not None else x, BATCH), jax.random.key(3)
    ).images
    assert_close(whole[4:], half)
    keys = image_keys(jax.random.key(3), BATCH.index)
    one_draw = attacks.expectation(blocks.stochastic_logits_fn(Tiny(noise=2.0), VARIABLES), 1)
    assert_close(whole, BIM(one_draw, BATCH.images, BATCH.labels, keys).images)


def test_the_second_of_two_updates_attacks_with_noise():
    def params(noise, seed):
        method = make_method(noise, transforms=(), step=two_updates(BIM))
        state = init_state(method, VARIABLES, jax.random.key(seed))
        rows = (make_data(), jnp.arange(8), jnp.ones(8, bool))
        run = jax.jit(lambda state: method.step(state, {}, *rows, axis_name=None, method=method, num_classes=CLASSES))
        return run(state)[0].params

    # The objective has no noise here, so the seed is for the attack alone.
    chex.assert_trees_all_equal(params(0.0, 0), params(0.0, 1))
    with pytest.raises(AssertionError):
        assert_close(params(2.0, 0), params(2.0, 1))


def test_labels_may_come_from_a_random_network():
    network = transforms.attackable(Tiny(noise=2.0), VARIABLES, SHAPE)
    predicted = attacks.with_predicted_labels(BIM)(network, BATCH.images, BATCH.labels, jax.random.key(0))
    assert bool(jnp.all(jnp.abs(predicted.images - BATCH.images) <= 0.1 + 1e-6))
    assert not np.allclose(predicted.images, BATCH.images)
    twins = mixing.noisy_twins(0.1, "self")({"self": network}, BATCH, jax.random.key(0))
    assert twins.targets.shape == (16, CLASSES)
    assert_close(twins.targets.sum(-1), jnp.ones(16))
