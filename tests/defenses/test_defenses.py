"""Defenses are pure functions of their key, match their formulas, and propagate gradients."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks, defenses
from advjax.defenses.mixup_inference import _partner
from advjax.experiment import registry
from advjax.experiment.spec import DefensePlan
from advjax.models import blocks
from advjax.models import distribution_regression as drn
from advjax.models.fixer import with_fixers
from advjax.models.lenet import Net62k
from advjax.training.partition import num_params
from advjax.types import UserError, Variables

COUNT, SIDE, CLASSES = 5, 8, 4


@pytest.fixture(scope="module")
def linear():
    weights = jax.random.normal(jax.random.key(1), (SIDE * SIDE * 3, CLASSES))
    return lambda images: images.reshape(len(images), -1) @ weights


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(2), (COUNT, SIDE, SIDE, 3))


@pytest.fixture(scope="module")
def pool():
    labels = np.arange(23) % CLASSES
    # The class of a pool image can be read off its pixels, and no two are equal.
    values = labels * 20 + np.arange(23) // CLASSES
    pictures = np.broadcast_to(values[:, None, None, None], (23, SIDE, SIDE, 3)).astype(np.uint8)
    return defenses.make_pool(pictures, labels, CLASSES)


DEFENSES = {
    "smoothing": lambda f, pool: defenses.gaussian_smoothing(f, 0.3),
    "resize and pad": lambda f, pool: defenses.random_resize_pad(f, 5, 7),
    "predicted": lambda f, pool: defenses.mixup_inference(f, pool, mode="predicted", num_mixes=3),
    "other": lambda f, pool: defenses.mixup_inference(f, pool, mode="other", num_mixes=3),
    "combined": lambda f, pool: defenses.mixup_inference(f, pool, mode="combined"),
    "averaged": lambda f, pool: defenses.averaged(defenses.gaussian_smoothing(f, 0.3), 4),
}


@pytest.mark.parametrize("name", DEFENSES)
def test_draws_repeat_and_let_gradients_through(name, linear, images, pool):
    defended = jax.jit(DEFENSES[name](linear, pool))
    first = defended(images, jax.random.key(0))
    np.testing.assert_array_equal(first, defended(images, jax.random.key(0)))
    assert not np.array_equal(first, defended(images, jax.random.key(1)))
    gradient = jax.grad(lambda x: jnp.sum(jax.nn.log_softmax(defended(x, jax.random.key(0)))[:, 0]))(images)
    assert np.isfinite(gradient).all() and (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()


def test_averages_over_probabilities_and_over_their_logarithms(linear, images):
    one = defenses.gaussian_smoothing(linear, 0.5)
    keys = jax.random.split(jax.random.key(3), 6)
    draws = jax.nn.log_softmax(jnp.stack([one(images, key) for key in keys]))
    mean = defenses.averaged(one, 6)(images, jax.random.key(3))
    np.testing.assert_allclose(jnp.exp(mean), jnp.exp(draws).mean(0), rtol=1e-4, atol=1e-7)
    log_mean = defenses.averaged(one, 6, over="log_probabilities")(images, jax.random.key(3))
    np.testing.assert_allclose(log_mean, draws.mean(0), rtol=1e-4, atol=1e-5)
    shares = defenses.voted(one, 6)(images, jax.random.key(3))
    np.testing.assert_array_equal(shares, np.eye(CLASSES)[np.argmax(draws, -1)].mean(0, dtype=np.float32))


def test_straight_through_has_one_value_and_the_other_gradient():
    function = defenses.straight_through(jnp.round, lambda x: 3 * x)
    value, gradient = jax.value_and_grad(function)(1.7)
    assert (value, gradient) == (2.0, 3.0)


def test_partners_are_of_the_predicted_class_or_never_of_it(pool):
    keys = jax.random.split(jax.random.key(0), 500)

    def drawn(predicted, of_others):
        found = jax.vmap(lambda key: _partner(pool, key, jnp.int32(predicted), of_others)[0, 0, 0])(keys)
        return (np.asarray(found) * 255 // 20 + 1e-3).astype(int)

    for predicted in range(CLASSES):
        classes = drawn(predicted, True)
        assert set(drawn(predicted, False)) == {predicted}
        assert set(classes) == set(range(CLASSES)) - {predicted}
        assert np.bincount(classes, minlength=CLASSES)[np.arange(CLASSES) != predicted].min() > 120


def test_mixing_with_all_weight_on_the_image_changes_nothing(linear, images, pool):
    whole = defenses.mixup_inference(linear, pool, num_mixes=2, mix_weight=1.0)(images, jax.random.key(0))
    np.testing.assert_allclose(whole, jax.nn.log_softmax(linear(images)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["predicted", "other", "combined"])
def test_mixup_inference_is_the_log_of_the_mean_probability_also_of_a_confident_network(linear, images, pool, mode):
    calls = []

    def spied(x):
        calls.append(linear(x))
        return calls[-1]

    found = defenses.mixup_inference(spied, pool, mode=mode, num_mixes=3)(images, jax.random.key(0))
    draws = {"combined": 5}.get(mode, 3)
    mixtures = [jax.nn.softmax(logits).reshape(COUNT, -1, CLASSES).mean(1) for logits in calls[1:]]
    fallen = jax.nn.softmax(calls[0]).max(-1) - mixtures[0].max(-1)
    expected = np.where((fallen < 0.2)[:, None], mixtures[0], mixtures[-1])
    assert len(calls[1]) == draws * COUNT
    np.testing.assert_allclose(found, np.log(expected), rtol=1e-4, atol=1e-4)

    confident = defenses.mixup_inference(lambda x: 100 * linear(x), pool, mode=mode, num_mixes=3)

    @jax.jit
    def everything(images):
        found, pull = jax.vjp(lambda x: confident(x, jax.random.key(0)), images)
        return found, pull(jnp.ones_like(found))

    sure, gradient = everything(images)
    assert np.isfinite(sure).all() and np.min(sure) < -100, "probabilities of less than 1e-44 must be among them"
    assert np.isfinite(gradient[0]).all()


def test_combined_inference_falls_back_to_other_classes_where_confidence_drops(images, pool):
    def confident(x):
        # Sure of class 0 unless something was mixed in.
        return jnp.stack(
            [jnp.where(jnp.isin(x[:, 0, 0, 0], images[:, 0, 0, 0]), 9.0, 0.0), *[jnp.zeros(len(x))] * 3], 1
        )

    fallen = defenses.mixup_inference(confident, pool, mode="combined")(images, jax.random.key(0))
    np.testing.assert_allclose(jnp.exp(fallen), 0.25, rtol=1e-5)


def test_smoothing_without_noise_is_the_plain_model(linear, images):
    np.testing.assert_array_equal(defenses.gaussian_smoothing(linear, 0.0)(images, jax.random.key(0)), linear(images))


def test_resizing_keeps_the_image_whole_somewhere_on_zeros():
    image = jnp.ones((SIDE, SIDE, 1))
    seen = set()
    for key in jax.random.split(jax.random.key(0), 60):
        found = np.asarray(drn.resize_and_pad(image, key, 4, 6))[..., 0]
        rows, columns = (np.flatnonzero(found.any(axis)) for axis in (1, 0))
        assert len(rows) == len(columns) and 4 <= len(rows) <= 6
        assert found.max() == 1 and (found[np.ix_(rows, columns)] == 1).all()
        seen.add((len(rows), rows[0], columns[0]))
    assert {size for size, _, _ in seen} == {4, 5, 6} and len(seen) > 20


def test_densities_and_layers_are_distributions():
    found = drn.densities(jax.random.uniform(jax.random.key(0), (7, CLASSES)))
    assert found.shape == (CLASSES, 100)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert np.argmax(drn.densities(jnp.full((3, 1), 0.42))[0]) == 42
    layer = drn.DistributionLayer(10, 10)
    variables = layer.init(jax.random.key(0), jnp.full((10, 100), 0.01))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 140
    np.testing.assert_allclose(layer.apply(variables, jnp.full((10, 100), 0.01)).sum(-1), 1, rtol=1e-5)


def test_a_layer_without_weights_gives_the_distribution_of_its_biases():
    layer = drn.DistributionLayer(3, 6)
    uniform = jnp.full((4, 10), 0.1)
    params = dict(layer.init(jax.random.key(0), uniform)["params"])
    params["weights"] = jnp.zeros_like(params["weights"])
    t = np.arange(6) / 6
    energy = -params["square"] * (t - params["square_center"]) ** 2
    energy -= params["straight"] * np.abs(t - params["straight_center"])
    np.testing.assert_allclose(layer.apply({"params": params}, uniform), jax.nn.softmax(energy), rtol=1e-5)


def regression(linear, scale=1.0):
    """Distribution regression on a linear network, with its variables."""

    class Base(blocks.Classifier):
        def __call__(self, images, *, train=False, between=None):
            return scale * linear(images)

        def make_blocks(self):
            return {}

    model = drn.DistributionRegression(Base(), num_copies=3, smallest=5, largest=7)
    return model, blocks.init(model, jax.random.key(0), (SIDE, SIDE, 3))


def test_distribution_regression_gives_the_difference_of_the_logarithms(linear, images):
    model, variables = regression(linear)
    distributions = jax.vmap(lambda p: drn.densities(p[None]))(jax.nn.softmax(linear(images)))
    for name, bins in (("drn_hidden", 10), ("drn_output", 2)):
        layer = drn.DistributionLayer(CLASSES, bins)
        distributions = jax.vmap(lambda p, f=layer, v=variables.params[name]: f.apply({"params": v}, p))(distributions)
    expected = jnp.log(distributions[..., 0]) - jnp.log(distributions[..., 1])
    np.testing.assert_allclose(blocks.apply(model, variables, images), expected, rtol=1e-3, atol=1e-5)


def of_one_certain_bin(params):
    return {**params, "drn_output": {**params["drn_output"], "square": jnp.full((CLASSES, 1), -3e3)}}


def of_steep_layers(params):
    return jax.tree.map(lambda leaf: -1e3 * jnp.abs(leaf), params)


@pytest.mark.parametrize("change", [dict, of_one_certain_bin, of_steep_layers])
def test_distribution_regression_stays_finite_for_confident_networks_and_layers(linear, images, change):
    model, variables = regression(linear, scale=100.0)

    def logits(images, params):
        return blocks.apply(model, Variables(params, {}), images, rngs={"noise": jax.random.key(1)})

    @jax.jit
    def everything(params):
        found, pull = jax.vjp(logits, images, params)
        return found, pull(jnp.ones_like(found))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(everything(change(variables.params))))


def test_distribution_regression_adds_the_published_number_of_parameters():
    model = drn.DistributionRegression(Net62k())
    params = jax.eval_shape(lambda: blocks.init(model, jax.random.key(0), (32, 32, 3))).params
    assert num_params({name: tree for name, tree in params.items() if name != "base"}) == 280
    assert num_params(params["base"]) == 62_006


def test_a_defended_model_can_be_attacked_through_its_randomness(linear, images):
    labels = jnp.argmax(linear(images), -1)
    defended = attacks.expectation(defenses.gaussian_smoothing(linear, 0.05), 8)
    attack = attacks.pgd(attacks.linf(0.2), num_steps=5, step_size=0.1)
    assert attack(defended, images, labels, jax.random.key(0)).success.mean() > 0.5


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda f, pool: defenses.gaussian_smoothing(f, -1), "std must be 0 or more"),
        (lambda f, pool: defenses.averaged(f, 0), "num_draws must be at least 1"),
        (lambda f, pool: defenses.averaged(f, 2, over="x"), "over must be one of probabilities"),
        (lambda f, pool: defenses.mixup_inference(f, pool, mode="x"), "mode must be one of predicted"),
        (lambda f, pool: defenses.mixup_inference(f, pool, mix_weight=2), "mix_weight in"),
        (lambda f, pool: defenses.random_resize_pad(f, 9, 8), "smallest <= largest"),
        (lambda f, pool: defenses.make_pool(np.zeros((2, 1, 1, 1)), np.array([0, 2]), 3), "no image of class 1"),
    ],
)
def test_mistakes(linear, pool, make, message):
    with pytest.raises(ValueError, match=message):
        make(linear, pool)


@pytest.mark.parametrize(
    "shape, largest, message",
    [
        (
            (8, 8, 3),
            9,
            "^random resizing of 8x8 images needs 1 <= smallest <= largest <= 8, got smallest 5 and largest 9",
        ),
        ((8, 6, 3), 6, "^random resizing needs square images, got 8x6: crop or resize them first"),
    ],
)
def test_images_that_cannot_be_shrunk_are_refused(linear, shape, largest, message):
    resized = defenses.random_resize_pad(linear, 5, largest)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(resized, jnp.zeros((2, *shape)), jax.random.key(0))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(
            lambda: blocks.init(drn.DistributionRegression(Net62k(), 3, 5, largest), jax.random.key(0), shape)
        )


@pytest.mark.parametrize(
    "model, spec, message",
    [
        (Net62k(noise=0.2), {"name": "random_self_ensemble"}, None),
        (drn.DistributionRegression(Net62k()), {"name": "random_self_ensemble"}, None),
        (with_fixers(Net62k(noise=0.2), ("conv1",)), {"name": "random_self_ensemble"}, None),
        (
            Net62k(),
            {"name": "random_self_ensemble"},
            "random_self_ensemble needs a model with noise layers, and this Net62k has none",
        ),
        (Net62k(), {"name": "random_resize_pad"}, None),
        (Net62k(), {"name": "random_resize_pad", "largest": 33}, "random resizing of 32x32 images needs"),
        (Net62k(), {"name": "gaussian_smoothing", "std": 0.1}, None),
    ],
)
def test_a_defense_that_would_do_nothing_or_something_else_is_refused(model, spec, message):
    recipe = registry.build(registry.DEFENSES, spec, "defense")
    defense = DefensePlan("named", "run", recipe, 1, 1, 1, "probabilities", identity=spec)
    with pytest.raises(UserError, match=f"^evaluation.defenses.named: {message}") if message else nullcontext():
        defense.check(model, (32, 32, 3))
