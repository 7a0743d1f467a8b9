"""Carlini and Wagner's attacks against closed forms and against what another library did on frozen networks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advjax import attacks
from advjax.attacks import carlini_wagner_l2, carlini_wagner_linf
from advjax.attacks.carlini_wagner.tanh_space import Smallest, smaller, tanh_box
from support import attack_models as am
from support import recorded

pytestmark = pytest.mark.optimized

KEY = jax.random.key(0)
FEW_STEPS = {
    "l2": {"num_steps": 200, "binary_search_steps": 5, "learning_rate": 2e-3, "initial_const": 0.1},
    "linf": {"num_steps": 60, "learning_rate": 1e-3},
}
MAKE = {"l2": carlini_wagner_l2, "linf": carlini_wagner_linf}
THREAT_MODEL = {"l2": attacks.l2, "linf": attacks.linf}
every_norm = pytest.mark.parametrize("norm", MAKE)


def attack_of(norm, epsilon=math.inf, bounds=(0.0, 1.0), **options):
    return MAKE[norm](THREAT_MODEL[norm](epsilon, bounds), **{**FEW_STEPS[norm], **options})


def run(attack, model, images, labels, start=None):
    return jax.device_get(jax.jit(functools.partial(attack, model))(images, labels, KEY, start))


@functools.cache
def compiled(norm, targeted):
    """``(model, images, labels) -> AttackResult``, compiled once for several tests."""
    return jax.jit(lambda model, *arguments: attack_of(norm, targeted=targeted)(model, *arguments, KEY))


def search(norm, model, images, labels, targeted=False):
    return jax.device_get(compiled(norm, targeted)(model, images, jnp.asarray(labels, jnp.int32)))


@every_norm
@pytest.mark.parametrize("targeted", [False, True])
def test_within_a_quarter_of_the_closed_form(norm, targeted):
    known = am.known_distance(norm, margin=1.5 if norm == "linf" else 0.5)
    labels = known.other_labels if targeted else known.labels
    result = search(norm, known.model, known.images, labels, targeted=targeted)
    assert np.all(result.success)
    assert np.all(result.distance >= known.epsilon * (1 - 1e-3))
    assert np.all(result.distance <= 1.25 * known.epsilon)


@every_norm
@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_any_number_of_classes(norm, num_classes):
    images = am.gray_images()
    model = am.random_linear(images, num_classes)
    labels = np.argmax(model(images), axis=-1)
    bounds = am.lower_bounds(model, images, labels, norm)
    result = search(norm, model, images, labels)
    assert np.all(result.success)
    assert np.all(result.distance >= bounds * (1 - 1e-3))
    # The linf attack does not look for changes of less than 1 / 256.
    floor = {"l2": 0.0, "linf": 1 / 256}[norm]
    assert np.mean(result.distance <= 1.25 * np.maximum(bounds, floor)) >= 0.75


@every_norm
def test_finds_smaller_perturbations_than_deepfool(norm):
    model, images = am.smooth_net(), am.gray_images()
    labels = np.argmax(model(images), axis=-1)
    ours = search(norm, model, images, labels)
    deepfool = run(attacks.deepfool(THREAT_MODEL[norm](math.inf)), model, images, labels)
    assert np.all(ours.success)
    floor = {"l2": 0.0, "linf": 1 / 256}[norm]
    assert np.median(ours.distance / np.maximum(deepfool.distance, floor)) <= 1.02


@every_norm
def test_confidence_is_a_margin(norm):
    known = am.known_distance(norm)
    result = run(attack_of(norm, confidence=1.0), known.model, known.images, known.labels)
    margins = np.asarray(jax.vmap(attacks.margin)(result.logits, known.labels))
    assert np.all(result.success)
    assert np.all(margins >= 1 - 1e-4)
    # The margin grows from -0.5 to 1 along a straight line.
    assert np.all(result.distance <= 1.25 * 3 * known.epsilon)


@every_norm
def test_less_confidence_than_asked_for_is_better_than_none(norm):
    known = am.known_distance(norm)
    result = run(attack_of(norm, 1.2 * known.epsilon, confidence=5.0), known.model, known.images, known.labels)
    assert np.all(result.success)
    margins = np.asarray(jax.vmap(attacks.margin)(result.logits, known.labels))
    assert np.all(margins < 0.2)


@every_norm
def test_failures_return_the_image(norm):
    known = am.known_distance(norm)
    result = run(attack_of(norm, 0.9 * known.epsilon), known.model, known.images, known.labels)
    np.testing.assert_array_equal(result.images, known.images)
    assert not np.any(result.success)


@every_norm
def test_misclassified_images_take_one_step(norm):
    known = am.known_distance(norm)
    result = search(norm, known.model, known.images, known.other_labels)
    np.testing.assert_array_equal(result.images, known.images)
    assert np.all(result.success) and np.all(result.steps == 1)


@every_norm
def test_images_do_not_wait_for_each_other(norm):
    """An image's search is the same alone as in a batch, and ends by itself."""
    model, images = am.smooth_net(), am.gray_images()
    labels = np.argmax(model(images), axis=-1)
    with jax.enable_x64(True):
        model, images = jax.tree.map(lambda x: x.astype(np.float64), (model, images))
        attack = attack_of(norm, num_steps=40)
        together = run(attack, model, images, labels)
        alone = run(attack, model, images[2:3], labels[2:3])
    assert len(set(together.steps.tolist())) > 1
    assert together.steps[2] == alone.steps[0] <= attack.num_steps
    np.testing.assert_allclose(together.images[2], alone.images[0], atol=1e-9)


@every_norm
@pytest.mark.parametrize("bounds", [(-1.0, 3.0)])
def test_other_bounds_are_the_same_problem_stretched(norm, bounds):
    low, high = bounds
    known = am.known_distance(norm, margin=1.5)

    def stretched_model(images):
        return known.model((images - low) / (high - low))

    stretched = (low + (high - low) * known.images).astype(np.float32)
    result = run(attack_of(norm, bounds=bounds), stretched_model, stretched, known.labels)
    assert np.all(result.success)
    assert np.all((result.images >= low) & (result.images <= high))
    assert np.all(result.distance <= 1.25 * (high - low) * known.epsilon)


def test_tanh_box_reaches_every_pixel_value():
    pixels = np.linspace(-1, 3, 401, dtype=np.float32)
    to_variable, to_image = tanh_box((-1.0, 3.0))
    assert np.all(np.isfinite(to_variable(pixels)))
    np.testing.assert_allclose(to_image(to_variable(pixels)), pixels, atol=5e-6)
    far = to_image(jnp.float32([-50, 50]))
    np.testing.assert_array_equal(far, [-1, 3])


def test_smaller_prefers_conviction_then_distance():
    def point(distance, quality):
        return Smallest(jnp.float32(distance), jnp.float32(distance), jnp.int32(quality))

    for old, new, kept in [
        (point(0, 0), point(3, 1), point(3, 1)),
        (point(3, 1), point(2, 1), point(2, 1)),
        (point(2, 1), point(3, 1), point(2, 1)),
        (point(2, 1), point(9, 2), point(9, 2)),
        (point(9, 2), point(1, 1), point(9, 2)),
        (point(0, 0), point(0, 0), point(0, 0)),
    ]:
        assert jax.tree.map(float, smaller(old, new)) == jax.tree.map(float, kept)


def binary_search(margin_at_const, num_steps=3, **options):
    """The values of c tried on a model of one pixel that is fooled at once where ``margin_at_const(c)``."""
    attack = carlini_wagner_l2(attacks.l2(math.inf), num_steps=num_steps, abort_early=False, **options)
    image = jnp.full((1, 1, 1), 0.5)
    problem = attacks.Problem(image, jnp.int32(0), KEY, jnp.float32([1, 0]), None)
    state, tried = attack.init(problem), []
    for _ in range(attack.num_steps):
        tried.append(float(state.const))
        logits = jnp.float32([0, 1] if margin_at_const(tried[-1]) else [1, 0])
        state = attack.move(problem, attack.observe(problem, state, logits), logits, jnp.ones(image.shape))
    assert attack.done(state)
    return tried[::num_steps]


def test_binary_search_grows_then_halves():
    tried = binary_search(lambda const: const >= 0.6, binary_search_steps=6)
    np.testing.assert_allclose(tried, [1e-3, 1e-2, 0.1, 1, 0.55, 0.775], rtol=1e-5)
    hopeless = binary_search(lambda const: False, binary_search_steps=4, initial_const=0.5)
    np.testing.assert_allclose(hopeless, [0.5, 5, 50, 500], rtol=1e-5)


def test_the_last_of_ten_values_is_one_that_worked():
    tried = binary_search(lambda const: const >= 0.6, binary_search_steps=10)
    assert tried[-1] == min(const for const in tried[:-1] if const >= 0.6)


def test_one_constant_is_adam_on_the_printed_objective():
    """``|x' - x|^2 + c max(z_y - max z_i, -kappa)`` with ``x' = (tanh w + 1) / 2``, written out."""
    model, images, steps = am.smooth_net(), am.gray_images(4), 12
    labels, const, kappa = np.argmax(model(images), axis=-1), 0.7, 0.05
    options = {"num_steps": steps, "binary_search_steps": 1, "learning_rate": 0.03, "abort_early": False}
    attack = carlini_wagner_l2(attacks.l2(math.inf), initial_const=const, confidence=kappa, returns="last", **options)
    result = run(attack, model, images, labels)

    def objective(variable):
        found = (jnp.tanh(variable) + 1) / 2
        logits = model(found)
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        other = jnp.max(jnp.where(jnp.arange(3) == labels[:, None], -jnp.inf, logits), axis=1)
        return jnp.sum((found - images) ** 2) + const * jnp.sum(jnp.maximum(own - other, -kappa))

    variable = jnp.arctanh(2 * images - 1)
    adam = optax.adam(0.03)
    state = adam.init(variable)
    for _ in range(steps):
        updates, state = adam.update(jax.grad(objective)(variable), state)
        variable = variable + updates
    np.testing.assert_allclose(result.images, (jnp.tanh(variable) + 1) / 2, atol=2e-4)
    assert np.all(result.steps == steps)
    np.testing.assert_array_equal(result.success, np.argmax(result.logits, axis=-1) != labels)


def test_one_constant_returns_the_closest_success_or_the_end():
    known = am.known_distance("l2")
    options = {"num_steps": 60, "binary_search_steps": 1, "initial_const": 20.0, "abort_early": False}
    closest, last = (attack_of("l2", returns=returns, learning_rate=0.01, **options) for returns in ("closest", "last"))
    closest, last = (run(attack, known.model, known.images, known.labels) for attack in (closest, last))
    assert np.all(closest.success)
    assert np.all(closest.distance[last.success] <= last.distance[last.success] + 1e-6)
    assert np.any(closest.distance < last.distance)
    too_little = attack_of("l2", returns="last", **options | {"initial_const": 1e-4})
    failed = run(too_little, known.model, known.images, known.labels)
    assert not np.any(failed.success)
    assert np.all(failed.distance < known.epsilon)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (functools.partial(attack_of, "l2"), {"returns": "best"}, "returns must be one of closest, last, got 'best'"),
        (functools.partial(attack_of, "l2"), {"returns": "last"}, "binary_search_steps=1, got 5"),
        (lambda **options: carlini_wagner_l2(attacks.linf(0.1), **options), {}, "carlini_wagner_l2 needs l2, got linf"),
        (
            lambda **options: carlini_wagner_linf(attacks.l2(0.1), **options),
            {},
            "carlini_wagner_linf needs linf, got l2",
        ),
        (functools.partial(attack_of, "l2"), {"binary_search_steps": 0}, "search_steps must be at least 1, got 0"),
        (functools.partial(attack_of, "linf"), {"num_steps": 0}, "at least 1"),
        (functools.partial(attack_of, "linf"), {"decrease": 1.0}, "between 0 and 1"),
    ],
)
def test_mistakes(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_finds_smaller_perturbations_than_deepfool_on_a_network(shared):
    network = recorded.load(shared, "cifar_cnn_std", 6)
    attack = attack_of("l2", num_steps=100, learning_rate=5e-3, binary_search_steps=4)
    result = run(attack, network.logits_fn, network.images, network.labels)
    correct = network.clean_correct
    assert np.all(result.success)
    assert np.median(result.distance[correct]) <= np.median(network.minimal["deepfool_l2_foolbox_distance"][correct])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar_cnn_std", "mnist_cnn_at"])
def test_distances_of_adversarial_library(shared, name):
    network = recorded.load(shared, name, 32)
    result = run(carlini_wagner_l2(attacks.l2(math.inf)), network.logits_fn, network.images, network.labels)
    correct = network.clean_correct
    assert np.mean(result.success) >= np.mean(network.minimal["cw_l2_success"])
    expected = network.minimal["cw_l2_distance"]
    assert np.median(result.distance[correct]) <= 1.01 * np.median(expected[correct])
    assert np.mean(result.distance[correct] <= 1.05 * expected[correct]) >= 0.9
