"""Training losses against closed forms in float64 NumPy: values and gradients, also where float32 saturates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.training import losses
from advjax.types import UserError

CLASSES = 7
GAPS = [0.0, 1.0, 10.0, 30.0, 90.0, 120.0, 1e4]


def log_probabilities(logits):
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def log_complements(logits):
    """log(1 - p_j) as log of the sum of the other classes, in float64."""
    total = np.logaddexp.reduce(logits)
    return np.array([np.logaddexp.reduce(np.delete(logits, j)) - total for j in range(len(logits))])


def reference(name, logits, target):
    log_p, log_q = log_probabilities(logits), log_complements(logits)
    if name == "cross_entropy":
        return -(target * log_p).sum()
    if name == "bce_on_softmax":
        return -(target * np.maximum(log_p, -100) + (1 - target) * np.maximum(log_q, -100)).mean()
    return -(target * np.exp(float(name.removeprefix("focal")) * log_q) * log_p).sum()


def gradient(name, logits, target):
    """Analytic, through d log p_j / dz_i = [i=j] - p_i and d log q_j / dz_i = [i!=j] p_i / q_j - p_i."""
    log_p, log_q = log_probabilities(logits), log_complements(logits)
    p, same = np.exp(log_p), np.eye(len(logits), dtype=bool)
    d_log_p = same - p[None, :]
    d_log_q = np.exp(np.where(same, -np.inf, log_p[None, :] - log_q[:, None])) - p[None, :]
    if name == "cross_entropy":
        return -(target @ d_log_p)
    if name == "bce_on_softmax":
        return -((target * (log_p > -100)) @ d_log_p + ((1 - target) * (log_q > -100)) @ d_log_q) / len(logits)
    gamma = float(name.removeprefix("focal"))
    weight = target * np.exp(gamma * log_q)
    return -(weight @ d_log_p + (weight * gamma * log_p) @ d_log_q)


LOSSES = {
    "cross_entropy": losses.cross_entropy,
    "bce_on_softmax": losses.bce_on_softmax,
    "focal2": losses.focal(),
    "focal0.5": losses.focal(0.5),
}


def examples():
    generator = np.random.default_rng(0)
    for gap in GAPS:
        logits = generator.normal(size=CLASSES).astype(np.float32)
        logits[2] += np.float32(gap)
        soft = generator.dirichlet(np.ones(CLASSES)).astype(np.float32)
        for target in (np.eye(CLASSES, dtype=np.float32)[2], np.eye(CLASSES, dtype=np.float32)[4], soft):
            yield logits, target


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients(name):
    evaluate = jax.jit(jax.value_and_grad(LOSSES[name]))
    for logits, target in examples():
        wide, wide_target = logits.astype(np.float64), target.astype(np.float64)
        value, slope = evaluate(logits, target)
        np.testing.assert_allclose(value, reference(name, wide, wide_target), rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(slope, gradient(name, wide, wide_target), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_analytic_gradients_above_are_those_of_the_closed_forms(name):
    """The oracle itself against central differences in float64."""
    logits, target = np.random.default_rng(1).normal(size=CLASSES), np.random.default_rng(2).dirichlet(np.ones(CLASSES))
    steps = 1e-6 * np.eye(CLASSES)
    slope = [(reference(name, logits + d, target) - reference(name, logits - d, target)) / 2e-6 for d in steps]
    np.testing.assert_allclose(gradient(name, logits, target), slope, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_finite_at_extreme_and_at_equal_logits(name, size):
    batch = jnp.concatenate([size * jnp.eye(CLASSES), -size * jnp.eye(CLASSES), jnp.zeros((1, CLASSES))])
    evaluate = jax.jit(jax.vmap(jax.value_and_grad(LOSSES[name]), (0, None)))
    for label in range(2):
        values, slopes = evaluate(batch, jax.nn.one_hot(label, CLASSES))
        assert np.isfinite(values).all() and np.isfinite(slopes).all()
        assert (values >= 0).all()


def test_focal_with_gamma_zero_is_cross_entropy():
    focal, cross_entropy = (jax.jit(jax.value_and_grad(loss)) for loss in (losses.focal(0.0), losses.cross_entropy))
    for logits, target in examples():
        ours, plain = focal(logits, target), cross_entropy(logits, target)
        np.testing.assert_array_equal(ours[0], plain[0])
        np.testing.assert_allclose(ours[1], plain[1], atol=1e-7)


def test_bce_is_cut_at_100_and_then_flat():
    logits, target = jnp.array([0.0, 1000.0]), jnp.array([1.0, 0.0])
    value, slope = jax.value_and_grad(losses.bce_on_softmax)(logits, target)
    assert float(value) == 100.0
    np.testing.assert_array_equal(slope, 0.0)


def test_bce_still_pulls_where_float32_probabilities_are_exactly_one():
    """At a gap of 50, 1 - p is 0 in float32, yet the loss is 50 and its slope 1."""
    value, slope = jax.value_and_grad(losses.bce_on_softmax)(jnp.array([0.0, 50.0]), jnp.array([1.0, 0.0]))
    assert float(value) == pytest.approx(50.0)
    np.testing.assert_allclose(slope, [-1.0, 1.0], rtol=1e-6)


MASKED = {**LOSSES, "boosted_cross_entropy": losses.boosted_cross_entropy}


@pytest.mark.parametrize("name", [name for name in MASKED if name != "bce_on_softmax"])
def test_masked_classes_count_for_nothing(name):
    """Logits of -inf: value and gradient are those of the other classes, and 0 at the masked ones."""
    kept = np.array([0, 2, 3, 6])
    evaluate = jax.value_and_grad(MASKED[name])
    for logits, target in examples():
        if target[kept].sum() < 1 - 1e-6 or np.ptp(logits) > 100:
            continue
        masked = np.full(CLASSES, -np.inf, np.float32)
        masked[kept] = logits[kept]
        value, slope = evaluate(masked, target)
        expected, expected_slope = evaluate(logits[kept], target[kept])
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(slope[kept], expected_slope, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(np.delete(slope, kept), 0)


@pytest.mark.parametrize("which", ["both", "first"])
def test_divergence_with_masked_classes(which):
    kept = np.array([0, 2, 3, 6])
    mask = np.where(np.isin(np.arange(CLASSES), kept), 0, -np.inf).astype(np.float32)
    rng = np.random.default_rng(0)
    logits, other = rng.normal(size=(2, CLASSES)).astype(np.float32)
    first, second = logits + mask, other + (mask if which == "both" else 0)
    value, slopes = jax.value_and_grad(losses.kl_divergence, argnums=(0, 1))(first, second)
    p, q = (np.exp(log_probabilities(each.astype(np.float64))) for each in (first, second))
    log_ratio = np.log(np.where(p > 0, p, 1)) - np.log(np.where(p > 0, q, 1))
    expected = (p * log_ratio).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slopes[0], p * (log_ratio - expected), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slopes[1], q - p, rtol=1e-4, atol=1e-6)


def test_divergence_from_a_distribution_without_some_class_is_infinite():
    value = losses.kl_divergence(jnp.zeros(3), jnp.array([0.0, 0.0, -jnp.inf]))
    assert float(value) == np.inf


@pytest.mark.parametrize("loss", LOSSES.values())
def test_a_class_index_or_a_batch_is_refused(loss):
    with pytest.raises(UserError, match="one_hot"):
        loss(jnp.zeros(3), jnp.array(1))
    with pytest.raises(UserError, match="vmap"):
        loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)))


def test_negative_gamma_is_refused():
    with pytest.raises(UserError, match="-1"):
        losses.focal(-1)
