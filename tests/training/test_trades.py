"""TRADES and MART against their formulas in NumPy, and the inner attack of TRADES."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks.base import trajectory
from advjax.models import blocks
from advjax.training import losses, mart, trades, transforms
from advjax.types import UserError
from support.tiny_models import Smooth, Tiny, fresh, make_batch, value

MODEL = Tiny()
THREAT = attacks.linf(0.1)


@pytest.fixture(scope="module")
def variables():
    return fresh(MODEL)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def pair(variables, batch):
    """Probabilities of clean and adversarial images in one batch in train mode, in float64."""
    together = jnp.concatenate([batch.clean, batch.images])
    logits, _ = blocks.apply(MODEL, variables, together, train=True)
    return np.split(softmax(np.asarray(logits, np.float64)), 2)


def kl(p, q):
    return (p * (np.log(p) - np.log(q))).sum(-1)


def test_trades_is_its_formula(variables):
    batch = make_batch(clean=True)
    total, (_, metrics) = value(trades.trades(MODEL, losses.cross_entropy, beta=3.0), variables, batch)
    clean, attacked = pair(variables, batch)
    labels, mask = np.asarray(batch.labels), np.asarray(batch.mask)
    natural = -np.log(clean[np.arange(8), labels])
    assert float(total) == pytest.approx((natural + 3 * kl(clean, attacked))[mask].mean(), rel=1e-5)
    assert float(metrics["divergence"]) == pytest.approx(kl(clean, attacked)[mask].mean(), abs=1e-6)
    assert float(metrics["accuracy"]) == pytest.approx((attacked.argmax(-1) == labels)[mask].mean())
    assert float(metrics["clean_accuracy"]) == pytest.approx((clean.argmax(-1) == labels)[mask].mean())


def test_mart_is_its_formula(variables):
    batch = make_batch(clean=True)
    total, _ = value(mart.mart(MODEL, losses.boosted_cross_entropy, beta=5.0), variables, batch)
    clean, attacked = pair(variables, batch)
    labels, mask, rows = np.asarray(batch.labels), np.asarray(batch.mask), np.arange(8)
    others = attacked.copy()
    others[rows, labels] = 0
    boosted = -np.log(attacked[rows, labels]) - np.log(1 - others.max(-1))
    values = boosted + 5 * kl(clean, attacked) * (1 - clean[rows, labels])
    assert float(total) == pytest.approx(values[mask].mean(), rel=1e-5)


def test_without_regularization_only_the_loss_is_left(variables):
    batch = make_batch(clean=True)
    clean, attacked = pair(variables, batch)
    labels, mask = np.asarray(batch.labels), np.asarray(batch.mask)
    for build, seen in ((trades.trades, clean), (mart.mart, attacked)):
        total, _ = value(build(MODEL, losses.cross_entropy, beta=0.0), variables, batch)
        assert float(total) == pytest.approx(-np.log(seen[np.arange(8), labels])[mask].mean(), rel=1e-5)


class Masked(Tiny):
    """A network that never predicts its last class."""

    def __call__(self, images, **kwargs):
        logits = super().__call__(images, **kwargs)
        return logits.at[:, -1].set(-jnp.inf)


@pytest.mark.parametrize("build", [trades.trades, mart.mart])
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.boosted_cross_entropy])
def test_masked_classes_give_finite_losses_and_gradients(build, loss):
    model = Masked()
    batch, variables = make_batch(clean=True), fresh(model)
    labels = batch.labels % 2
    batch = batch._replace(labels=labels, targets=jax.nn.one_hot(labels, 3))

    def total(params):
        return value(build(model, loss), variables._replace(params=params), batch)[0]

    found, gradients = jax.value_and_grad(total)(variables.params)
    assert np.isfinite(found) and float(found) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert float(jnp.abs(gradients["block_hidden"]["Hidden_0"]["dense"]["kernel"]).max()) > 0


@pytest.mark.parametrize("build", [trades.trades, mart.mart])
def test_gradients_reach_all_parameters(variables, build):
    objective = build(MODEL, losses.cross_entropy)
    batch = make_batch(clean=True)
    gradients = jax.grad(lambda params: value(objective, variables._replace(params=params), batch)[0])(variables.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients["block_hidden"]))


def test_the_attack_of_trades_raises_the_divergence_and_knows_no_label():
    model = Smooth()
    network = blocks.logits_fn(model, fresh(model))
    batch = make_batch()
    attack = trades.most_divergent(THREAT, num_steps=10, step_size=0.02)
    found = attack(network, batch.images, batch.labels, jax.random.key(0))
    assert float(found.distance.max()) <= 0.1 + 1e-6

    def divergence(images):
        return jax.vmap(losses.kl_divergence)(network(batch.images), network(images))

    steps = trajectory(attack, network, batch.images, batch.labels, jax.random.key(0)).best.image
    start = divergence(steps[0])
    # The start is a point very near the image ...
    assert 0 < float(jnp.abs(steps[0] - batch.images).max()) < 0.01
    # ... and every image ends far above it, and above noise of the same size.
    signs = jnp.sign(jax.random.normal(jax.random.key(1), batch.images.shape))
    assert np.all(divergence(found.images) > 100 * start)
    noise = jnp.clip(batch.images + 0.1 * signs, 0, 1)
    assert np.all(divergence(found.images) > divergence(noise))
    other = attack(network, batch.images, (batch.labels + 1) % 3, jax.random.key(0))
    np.testing.assert_array_equal(other.images, found.images)


def test_the_attack_of_trades_trains_in_a_transform(variables):
    batch, models = make_batch(), {"self": blocks.logits_fn(MODEL, variables)}
    attack = trades.most_divergent(THREAT, num_steps=2, step_size=0.05)
    attacked = jax.jit(lambda batch: transforms.perturb(attack)(models, batch, jax.random.key(0)))(batch)
    total, (_, metrics) = value(trades.trades(MODEL, losses.cross_entropy), variables, attacked)
    assert np.isfinite(float(total)) and float(metrics["divergence"]) > 0


@pytest.mark.parametrize("gap", [0.0, 1.0, 20.0, 200.0])
def test_boosted_cross_entropy_and_divergence_stay_finite(gap):
    logits = jnp.array([gap, 0.0, -gap / 2, 0.0])
    for label in range(4):
        target = jax.nn.one_hot(label, 4)
        found, gradient = jax.value_and_grad(losses.boosted_cross_entropy)(logits, target)
        p = np.exp(np.asarray(logits, np.float64) - np.logaddexp.reduce(np.asarray(logits, np.float64)))
        rival = max(range(4), key=lambda k: (k != label, p[k]))
        rest = sum(p[k] for k in range(4) if k != rival)
        assert float(found) == pytest.approx(-np.log(p[label]) - np.log(rest), rel=1e-5, abs=1e-6)
        assert np.isfinite(gradient).all()
    other = logits[::-1]
    divergence, gradient = jax.value_and_grad(losses.kl_divergence)(logits, other)
    assert float(divergence) >= 0 and np.isfinite(gradient).all()
    assert float(losses.kl_divergence(logits, logits)) == 0


def test_boosted_cross_entropy_is_linear_in_the_target():
    logits = jnp.array([0.3, -1.0, 2.0])
    pieces = [losses.boosted_cross_entropy(logits, jax.nn.one_hot(k, 3)) for k in range(3)]
    mixed = losses.boosted_cross_entropy(logits, jnp.array([0.2, 0.5, 0.3]))
    assert float(mixed) == pytest.approx(float(0.2 * pieces[0] + 0.5 * pieces[1] + 0.3 * pieces[2]), rel=1e-6)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: trades.trades(MODEL, losses.cross_entropy, beta=-1), "beta is -1"),
        (lambda: mart.mart(MODEL, losses.cross_entropy, beta=-1), "beta is -1"),
        (lambda: trades.most_divergent(THREAT, num_steps=1, step_size=0.1, start_std=-1), "start_std is -1"),
        (lambda: trades.most_divergent(attacks.linf(float("inf")), num_steps=1, step_size=0.1), "finite epsilon"),
    ],
)
def test_what_makes_no_sense_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_losses_check_their_shapes():
    with pytest.raises(UserError, match="boosted_cross_entropy"):
        losses.boosted_cross_entropy(jnp.zeros(3), jnp.zeros(4))
    with pytest.raises(UserError, match="kl_divergence"):
        losses.kl_divergence(jnp.zeros(3), jnp.zeros(4))
