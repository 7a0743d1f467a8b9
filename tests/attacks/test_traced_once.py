"""The Python code of a model runs once for all queries of a program, and the program stays the same."""

import collections
import gc
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import model_queries
from support import attack_models as am

BALL = attacks.linf(0.1)
KEY = jax.random.key(0)
IMAGES = am.gray_images(4)
LABELS = np.zeros(4, np.int32)
PGD = attacks.pgd(BALL, num_steps=2, step_size=0.05)
FORMS = {
    "attack": PGD,
    "trajectory": lambda *arguments: attacks.trajectory(PGD, *arguments),
    "with_restarts": attacks.with_restarts(PGD, 2),
    "over_targets": attacks.over_targets(lambda aim: attacks.fab(BALL, num_steps=2, aim=aim), 2),
    "worst_of": attacks.worst_of(PGD, attacks.square(BALL, num_queries=2), attacks.deepfool(attacks.linf(0.1))),
    "with_predicted_labels": attacks.with_predicted_labels(attacks.with_restarts(PGD, 2)),
    "large epsilon": attacks.auto_pgd_l1_large_epsilon(attacks.l1(1.0), num_steps=5),
}


class Counted:
    """A network that counts how often it is traced."""

    def __init__(self):
        self.net, self.traces = am.smooth_net(), 0

    def __call__(self, images):
        self.traces += 1
        return self.net(images)

    def noisy(self, images, rng):
        return self(images + 0.01 * jax.random.normal(rng, images.shape))


@pytest.mark.parametrize(
    ("form", "stochastic"), [*((form, False) for form in FORMS), ("attack", True), ("with_restarts", True)]
)
def test_every_attack_traces_a_model_once(form, stochastic):
    model = Counted()
    logits_fn = attacks.expectation(model.noisy, 2) if stochastic else model
    jax.eval_shape(lambda images: FORMS[form](logits_fn, images, LABELS, KEY), IMAGES)
    assert model.traces == 1


def operations(function):
    """How often each operation is in the compiled program, whatever its results are called."""
    text = jax.jit(function).lower(IMAGES).compile().as_text()
    return collections.Counter(re.findall(r" = \S+ ([\w-]+)\(", text))


def test_the_program_is_the_same():
    net = am.smooth_net()

    def queries(logits_fn):
        def query(images):
            logits, gradients = model_queries.differentiate(logits_fn, images, KEY, lambda logits: logits)
            return model_queries.evaluate(logits_fn, images + gradients, KEY), logits

        return query

    once, plain = queries(model_queries.traced_once(net)), queries(net)
    assert operations(once) == operations(plain)
    for found, expected in zip(jax.jit(once)(IMAGES), jax.jit(plain)(IMAGES), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_other_shapes_and_settings_trace_again():
    model = Counted()
    once = model_queries.traced_once(model)

    def program(count):
        return str(jax.make_jaxpr(lambda images: model_queries.evaluate(once, images, KEY))(IMAGES[:count]))

    plain = program(4)
    assert program(4) == plain and model.traces == 1
    assert program(2) != plain and model.traces == 2
    with jax.default_matmul_precision("highest"):
        assert "HIGHEST" in program(4).upper() and model.traces == 3
    assert program(4) == plain and model.traces == 3


def test_a_model_is_traced_again_by_the_next_call_and_not_kept_alive():
    model = Counted()
    before = PGD(model, IMAGES, LABELS, KEY).logits
    model.net = model.net._replace(dense=-model.net.dense)
    after = PGD(model, IMAGES, LABELS, KEY).logits
    assert model.traces == 2 and not jnp.array_equal(before, after)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
