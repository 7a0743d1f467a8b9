"""Attacks, the runner, training and verdicts compute any model with ``fast_on_cpu``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from advjax import attacks
from advjax.attacks import programs
from advjax.attacks.combine import Stage
from advjax.attacks.keys import KEY_TYPE
from advjax.cpu import convolution
from advjax.evaluation.scored_model import ScoredModel, predict
from advjax.training import losses, objectives, step, transforms
from advjax.training.weight_perturbation import with_weight_perturbation
from support import tiny_models as tiny
from support.slow_equations import slow_equations

IMAGES = np.random.default_rng(0).uniform(size=(3, *tiny.SHAPE)).astype(np.float32)
LABELS = np.arange(3, dtype=np.int32)
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 3)
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 2, tiny.CLASSES)).astype(np.float32)
BALL = attacks.linf(0.1)


def logits_fn(images):
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(images, KERNEL, (1, 1), "SAME", dimension_numbers=layout)
    return nn.max_pool(x, (2, 2), (2, 2)).mean((1, 2))


def noisy(images, rng):
    return logits_fn(images + 0.1 * jax.random.normal(rng, images.shape))


MODELS = {"deterministic": logits_fn, "stochastic": attacks.expectation(noisy, 2)}
ATTACKS = {
    "pgd": attacks.pgd(BALL, num_steps=2, step_size=0.05),
    "deepfool": attacks.deepfool(attacks.l2(1.0), num_steps=2),
    "square": attacks.square(BALL, num_queries=2),
}


def assert_fast(function, *args):
    """Nothing slow is left; without ``fast_on_cpu`` there would be."""
    assert not slow_equations(function, *args)
    with convolution.exact():
        assert slow_equations(function, *args)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks(attack, model):
    assert_fast(lambda images: ATTACKS[attack](MODELS[model], images, LABELS, KEY).images, IMAGES)


@pytest.mark.parametrize(("num_steps", "repeated"), [(3, False), (4, True)])
def test_the_steps_of_an_attack_are_the_body_of_a_loop(num_steps, repeated, monkeypatch):
    """In which kernels are transformed once, if there are enough of them."""
    seen, are_repeated = [], convolution.are_repeated
    monkeypatch.setattr(convolution, "are_repeated", lambda: (seen.append(are_repeated()), seen[-1])[1])
    attack = attacks.pgd(BALL, num_steps=num_steps, step_size=0.01)
    jax.eval_shape(lambda images: attack(MODELS["deterministic"], images, LABELS, KEY).images, IMAGES)
    assert False in seen and (True in seen) == repeated
    assert not are_repeated()


@pytest.mark.parametrize("model", MODELS)
def test_programs_of_the_runner(model):
    words = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0, impl=KEY_TYPE), 3))
    stage = Stage("pgd", lambda _: ATTACKS["pgd"], lambda _: 1)
    for function, batch in (
        (functools.partial(programs._attack, stage, True), (IMAGES, LABELS)),
        (functools.partial(programs._verify, BALL), (IMAGES, IMAGES)),
        (programs._gradient, (IMAGES,)),
    ):
        assert_fast(functools.partial(function, MODELS[model]), jnp.int32(0), *batch, words)


def scored(name):
    options = {} if name == "deterministic" else {"num_draws": 2, "num_votes": 2, "num_samples": 1}
    return ScoredModel(
        "run", "none", lambda _: {"deterministic": logits_fn, "stochastic": noisy}[name], None, "", **options
    )


@pytest.mark.parametrize("name", MODELS)
def test_verdicts(name):
    assert_fast(lambda images, keys: predict(scored(name), None, images, keys), IMAGES, KEYS)


@pytest.mark.parametrize("perturbed", [False, True], ids=["plain", "weight_perturbation"])
def test_training_steps(perturbed):
    model = tiny.Tiny()
    variables = tiny.fresh(model)
    objective = objectives.supervised(model, losses.cross_entropy, on="both")
    objective = with_weight_perturbation(objective) if perturbed else objective
    trainable = jax.tree.map(lambda _: True, variables.params)
    method = step.Method(model, objective, [transforms.perturb(ATTACKS["pgd"])], optax.sgd(0.1), trainable, {})
    state, data = step.init_state(method, variables, KEY), tiny.make_data()
    options = {"axis_name": None, "method": method, "num_classes": tiny.CLASSES}
    batch = {}, data, jnp.arange(4), jnp.ones(4, bool)
    for function in (step.train_step, step.refresh_step):
        assert_fast(lambda state: function(state, *batch, **options), state)  # noqa: B023
