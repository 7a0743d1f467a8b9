"""The report card catches models that only look robust, and a healthy one passes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.evaluation import report_card
from advjax.types import LogitsFn
from support.reference import reference_networks

COUNT = 48


def failed(checks):
    """Names of the checks that did not pass."""
    return [check.name for check in checks if not check.passed]


class Healthy(NamedTuple):
    """An adversarially trained MNIST network."""

    logits_fn: LogitsFn
    images: np.ndarray
    labels: np.ndarray

    def examine(self, logits_fn, *names):
        threat_model = attacks.linf(0.25)
        return report_card.examine(logits_fn, self.images, self.labels, threat_model, names=names or None)


@pytest.fixture(scope="module")
def healthy(shared):
    folder = shared / "reference"
    networks = reference_networks(shared)
    name = "mnist_cnn_at"
    data = np.load(folder / f"{name}_images.npz")
    logits_fn = functools.partial(networks.NETWORKS[name], networks.load(name))
    return Healthy(logits_fn, data["images"][:COUNT].astype(np.float32) / 255, data["labels"][:COUNT].astype(np.int32))


def loud(logits_fn):
    return lambda images: 1e4 * logits_fn(images)


def quantised(logits_fn):
    return lambda images: logits_fn(jnp.round(images * 3) / 3)


def detached(logits_fn):
    return lambda images: jax.lax.stop_gradient(logits_fn(images))


def one_hot(logits_fn):
    return lambda images: jax.nn.one_hot(jnp.argmax(logits_fn(images), axis=-1), 10)


def random_head(logits_fn):
    generator = np.random.default_rng(0)

    def noisy(images):
        shape = jax.ShapeDtypeStruct((len(images), 10), jnp.float32)
        noise = jax.pure_callback(lambda: generator.normal(size=shape.shape).astype(np.float32), shape)
        return logits_fn(images) + jax.lax.stop_gradient(noise)

    return noisy


def declared_random_head(logits_fn):
    def noisy(images, rng):
        return logits_fn(images) + 20 * jax.random.normal(rng, (len(images), 10))

    return attacks.expectation(noisy, 1)


def batch_statistics(logits_fn):
    def normalised(images):
        logits = logits_fn(images)
        return (logits - logits.mean(0)) / logits.std(0)

    return normalised


CANARIES = {
    loud: ("gradients", "scale of logits"),
    quantised: ("gradients",),
    detached: ("gradients",),
    one_hot: ("gradients",),
    random_head: ("repeatable",),
    declared_random_head: ("repeatable",),
    batch_statistics: ("images apart",),
}


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.__name__)
def test_canaries_are_caught(healthy, canary):
    names = CANARIES[canary]
    assert failed(healthy.examine(canary(healthy.logits_fn), *names)) == list(names)


def test_gradients_that_lead_nowhere_are_caught_by_comparing_attacks(healthy):
    found = healthy.examine(quantised(healthy.logits_fn), "random noise", "query attack", "unbounded attack")
    assert "query attack" in failed(found) and "unbounded attack" in failed(found)


def test_a_healthy_model_passes_every_check(healthy):
    found = healthy.examine(healthy.logits_fn)
    assert [check.name for check in found] == list(report_card.CHECKS)
    assert failed(found) == [], [check.finding for check in found if not check.passed]
    numbers = {check.name: check.numbers for check in found}
    assert numbers["larger epsilon"]["2.0"] < numbers["larger epsilon"]["1.0"] < numbers["larger epsilon"]["clean"]
    assert all(np.isfinite(list(values.values())).all() for values in numbers.values())


def test_variables_may_be_arguments(healthy):
    def bind(scale):
        return lambda images: scale * healthy.logits_fn(images)

    threat_model = attacks.linf(0.25)
    common = (healthy.images, healthy.labels, threat_model)
    inside = report_card.examine(bind, *common, variables=np.float32(1), names=["iterative attack"])
    assert inside == report_card.examine(healthy.logits_fn, *common, names=["iterative attack"])


def test_mistakes(healthy):
    with pytest.raises(ValueError, match="needs linf or l2 with a finite epsilon, got l1"):
        report_card.examine(healthy.logits_fn, healthy.images, healthy.labels, attacks.l1(1))
    with pytest.raises(ValueError, match="names must be among repeatable, .* got 'all'"):  # noqa: RUF043
        healthy.examine(healthy.logits_fn, "all")
