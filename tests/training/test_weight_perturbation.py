"""Adversarial weight perturbation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.training import losses, objectives
from advjax.training.weight_perturbation import with_weight_perturbation
from support.tiny_models import Tiny, assert_close, fresh, make_batch, value

MODEL = Tiny()
OBJECTIVE = objectives.supervised(MODEL, losses.cross_entropy)


@pytest.fixture(scope="module")
def variables():
    return fresh(MODEL)


def perturbed_by_hand(variables, batch, gamma):
    gradients = jax.grad(lambda params: value(OBJECTIVE, variables._replace(params=params), batch)[0])(variables.params)

    def moved(weight, gradient):
        if weight.ndim < 2:
            return weight
        return weight + gamma * np.linalg.norm(weight) / np.linalg.norm(gradient) * gradient

    return variables._replace(params=jax.tree.map(moved, variables.params, gradients))


def test_loss_and_gradient_are_those_at_the_perturbed_weights(variables):
    batch = make_batch()
    there = perturbed_by_hand(variables, batch, 0.05)
    objective = with_weight_perturbation(OBJECTIVE, 0.05)
    loss = lambda objective: lambda params: value(objective, variables._replace(params=params), batch)[0]  # noqa: E731
    found = jax.value_and_grad(loss(objective))(variables.params)
    assert_close(found, jax.value_and_grad(loss(OBJECTIVE))(there.params), rtol=1e-4, atol=1e-5)
    assert float(found[0]) > float(value(OBJECTIVE, variables, batch)[0])


def test_a_perturbation_of_nothing_is_the_objective(variables):
    batch = make_batch()
    assert_close(value(with_weight_perturbation(OBJECTIVE, 0.0), variables, batch), value(OBJECTIVE, variables, batch))


def test_frozen_weights_stay(variables):
    batch = make_batch()
    seen = []

    def spying(params, *rest):
        seen.append(params)
        return OBJECTIVE(params, *rest)

    trainable = jax.tree.map_with_path(lambda path, _: "hidden" in str(path), variables.params)
    value(with_weight_perturbation(spying, 0.1, trainable), variables, batch)
    before, after = variables.params, seen[-1]
    assert_close(after["block_conv"], before["block_conv"], rtol=0, atol=0)
    assert_close(after["block_head"], before["block_head"], rtol=0, atol=0)
    old, new = (tree["block_hidden"]["Hidden_0"]["dense"] for tree in (before, after))
    np.testing.assert_array_equal(new["bias"], old["bias"])
    size = jnp.linalg.norm(new["kernel"] - old["kernel"]) / jnp.linalg.norm(old["kernel"])
    assert float(size) == pytest.approx(0.1, rel=1e-3)


def test_a_layer_without_gradient_makes_no_nan(variables):
    def blind(params, model_state, batch, rng, axis_name):
        return jnp.sum(params["block_head"]["dense"]["kernel"] ** 2), (model_state, {})

    total, gradients = jax.value_and_grad(
        lambda params: value(with_weight_perturbation(blind, 0.1), variables._replace(params=params), make_batch())[0]
    )(variables.params)
    assert np.isfinite(float(total)) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="gamma is -1"):
        with_weight_perturbation(OBJECTIVE, -1)
