import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.attacks import cross_entropy, dlr, margin, targeted_dlr

LOGITS = np.float32([1.0, 3.0, -2.0, 2.5])
LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.mark.parametrize("label", range(4))
def test_closed_forms(label):
    others = np.delete(LOGITS, label)
    np.testing.assert_allclose(cross_entropy(LOGITS, label), np.log(np.sum(np.exp(LOGITS))) - LOGITS[label], rtol=1e-6)
    assert margin(LOGITS, label) == others.max() - LOGITS[label]
    np.testing.assert_allclose(dlr(LOGITS, label), (others.max() - LOGITS[label]) / (3.0 - 1.0), rtol=1e-6)


@every_loss
def test_larger_is_more_adversarial(loss):
    values = [float(loss(LOGITS.copy() - np.float32([0, drop, 0, 0]), 1)) for drop in (0.0, 0.25, 0.75)]
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("loss", [margin, dlr])
def test_positive_exactly_for_wrong_predictions(loss):
    signs = [float(jnp.sign(loss(LOGITS, label))) for label in range(4)]
    assert signs == [1, -1, 1, 1]


@every_loss
def test_invariant_to_shifts(loss):
    np.testing.assert_allclose(loss(LOGITS + 7, 2), loss(LOGITS, 2), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 0.5, 1e3])
def test_dlr_is_invariant_to_scale(scale):
    np.testing.assert_allclose(dlr(scale * LOGITS, 0), dlr(LOGITS, 0), rtol=1e-6)
    assert float(margin(scale * LOGITS, 0)) == pytest.approx(scale * float(margin(LOGITS, 0)))


def test_dlr_of_two_classes_is_the_margin():
    logits = np.float32([0.3, -0.9])
    for label in (0, 1):
        assert dlr(logits, label) == margin(logits, label)
        assert float(dlr(10 * logits, label)) == pytest.approx(10 * float(margin(logits, label)))
        assert np.any(jax.grad(dlr)(logits, label))


@every_loss
@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("logits", ["zeros", "tied", "huge", "tiny"])
def test_values_and_gradients_are_finite(loss, num_classes, logits):
    ramp = np.arange(num_classes, dtype=np.float32)
    logits = {"zeros": 0 * ramp, "tied": ramp // 2, "huge": 1e4 * ramp, "tiny": 1e-20 * ramp}[logits]
    for label in (0, num_classes - 1):
        value, gradient = jax.value_and_grad(loss)(logits, label)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_cross_entropy_has_a_gradient_where_the_prediction_is_confident():
    gradient = jax.grad(cross_entropy)(np.float32([60, 0, 0]), 0)
    assert np.all(np.asarray(gradient[1:]) > 0)
    assert float(cross_entropy(np.float32([0, 60, 0]), 0)) == pytest.approx(60)


@every_loss
def test_is_about_one_example_and_vmaps(loss):
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    labels = np.arange(6) % 4
    batch = jax.vmap(loss)(logits, labels)
    assert batch.shape == (6,)
    np.testing.assert_allclose(batch, [loss(z, y) for z, y in zip(logits, labels, strict=True)], rtol=1e-5)


@pytest.mark.parametrize(
    ("num_classes", "denominator"), [(5, 3.0 - (1.0 + 0.5) / 2), (4, 3.0 - (1.0 - 2.0) / 2), (3, 5.0)]
)
def test_targeted_dlr(num_classes, denominator):
    """z_(1) minus the mean of z_(3) and z_(4), or minus z_(3) if there is no fourth."""
    logits = np.float32([1.0, 3.0, -2.0, 2.5, 0.5])[:num_classes]
    for label in range(num_classes):
        for target in range(num_classes):
            expected = (logits[target] - logits[label]) / denominator
            np.testing.assert_allclose(targeted_dlr(logits, label, target), expected, rtol=1e-6)
            np.testing.assert_allclose(targeted_dlr(100 * logits + 7, label, target), expected, rtol=1e-5)


def test_targeted_dlr_of_two_classes_is_the_margin():
    logits = np.float32([0.3, -0.9])
    assert targeted_dlr(logits, 0, 1) == margin(logits, 0)
    assert targeted_dlr(logits, 1, 0) == margin(logits, 1)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 10])
def test_targeted_dlr_is_finite(num_classes):
    for logits in (np.zeros(num_classes, np.float32), 1e-20 * np.arange(num_classes, dtype=np.float32)):
        value, gradient = jax.value_and_grad(targeted_dlr)(logits, 0, 1)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
