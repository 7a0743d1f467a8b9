"""The step with two updates, against two explicit optimizer steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advjax import attacks
from advjax.models import blocks
from advjax.runtime import devices as sharding
from advjax.runtime.devices import Devices
from advjax.training import losses, objectives, optimizers
from advjax.training.step import Method, gather, init_state
from advjax.training.two_updates import two_updates
from advjax.types import UserError, Variables
from support.tiny_models import Smooth, assert_close, fresh, make_data

MODEL = Smooth()
EPSILON = 0.03
FGSM = attacks.fgsm(attacks.linf(EPSILON))
BIM = attacks.bim(attacks.linf(EPSILON), num_steps=3, step_size=0.01)
POSITIONS, MASK = jnp.arange(8), jnp.arange(8) < 7
# A large first step: afterwards the signs of many gradients are others.
OPTIMIZER = optimizers.sgd(3.0, 0.9)


def make_method(**options):
    variables = fresh(MODEL)
    objective = objectives.supervised(MODEL, losses.cross_entropy)
    trainable = jax.tree.map(lambda _: True, variables.params)
    return Method(MODEL, objective, (), OPTIMIZER, trainable, {}, step=two_updates(**options)), variables


def once(method, variables):
    state = init_state(method, variables, jax.random.key(0))
    step = jax.jit(
        lambda state: method.step(state, {}, make_data(), POSITIONS, MASK, axis_name=None, method=method, num_classes=3)
    )
    return step(state)


def mean_loss(params, images, batch):
    logits = blocks.apply(MODEL, Variables(params, {}), images)
    return jnp.mean(jax.vmap(losses.cross_entropy)(logits, batch.targets)[:7])


def two_steps(variables, attacked_images):
    """``attacked_images(old params, new params, batch) -> images`` between two optimizer steps."""
    batch = gather(make_data(), POSITIONS, MASK, 3)
    old, optimizer = variables.params, OPTIMIZER.init(variables.params)
    updates, optimizer = OPTIMIZER.update(jax.grad(mean_loss)(old, batch.images, batch), optimizer, old)
    new = optax.apply_updates(old, updates)
    images = attacked_images(old, new, batch)
    updates, _ = OPTIMIZER.update(jax.grad(mean_loss)(new, images, batch), optimizer, new)
    return optax.apply_updates(new, updates)


def fgsm_at(params, batch):
    gradient = jax.grad(mean_loss, argnums=1)(params, batch.images, batch)
    return jnp.clip(batch.images + EPSILON * jnp.sign(gradient), 0, 1)


def test_fgsm_reuses_the_gradient_of_the_old_weights():
    method, variables = make_method(attack=FGSM, reuse_gradient=True)
    found = once(method, variables)[0].params
    assert_close(found, two_steps(variables, lambda old, new, batch: fgsm_at(old, batch)), rtol=1e-4, atol=1e-5)
    other = two_steps(variables, lambda old, new, batch: fgsm_at(new, batch))
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, other)
    assert max(jax.tree.leaves(gaps)) > 1e-3


@pytest.mark.parametrize("attack", [FGSM, BIM], ids=["fgsm", "bim"])
def test_other_attacks_see_the_new_weights(attack):
    method, variables = make_method(attack=attack)
    found = once(method, variables)[0].params

    def attacked(old, new, batch):
        return attack(blocks.logits_fn(MODEL, Variables(new, {})), batch.images, batch.labels, jax.random.key(0)).images

    assert_close(found, two_steps(variables, attacked), rtol=1e-4, atol=1e-5)


def test_metrics_of_both_updates_and_one_step_counted():
    method, variables = make_method(attack=FGSM, reuse_gradient=True)
    state, metrics = once(method, variables)
    assert set(metrics) == {"clean_loss", "clean_accuracy", "loss", "accuracy"}
    batch = gather(make_data(), POSITIONS, MASK, 3)
    assert float(metrics["clean_loss"]) == pytest.approx(
        float(mean_loss(variables.params, batch.images, batch)), rel=1e-5
    )
    assert int(state.step) == 1


@pytest.mark.parametrize("mapping", sharding.MAPPINGS)
def test_several_devices_take_the_same_step(mapping):
    method, variables = make_method(attack=FGSM, reuse_gradient=True)
    expected, metrics = once(method, variables)
    devices = Devices(sharding.mesh(), mapping)
    step = devices.parallelize(
        lambda *args, axis_name: method.step(*args, axis_name=axis_name, method=method, num_classes=3),
        in_sharded=(False, False, False, True, True),
        out_sharded=False,
    )
    state = devices.replicate(init_state(method, variables, jax.random.key(0)))
    found, found_metrics = step(state, {}, devices.replicate(make_data()), np.asarray(POSITIONS), np.asarray(MASK))
    assert_close(sharding.fetch(found.params), jax.device_get(expected.params), rtol=2e-4, atol=2e-5)
    assert_close(sharding.fetch(found_metrics), jax.device_get(metrics), rtol=2e-4, atol=2e-5)


def test_a_gradient_cannot_be_reused_without_epsilon():
    for attack in (attacks.deepfool(attacks.l2(float("inf"))), lambda *args: None):
        with pytest.raises(UserError, match="needs an attack with a finite epsilon"):
            two_updates(attack, reuse_gradient=True)
