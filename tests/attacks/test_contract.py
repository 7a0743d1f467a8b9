"""What every attack promises.  A new attack is one more row of ``support.attack_rows``."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.attacks import Attack
from advjax.attacks.keys import keys_per_image
from support import attack_models as am
from support.attack_rows import ATTACKS, FIRST, NORMS, QUICK

pytestmark = pytest.mark.optimized

CASES = [(name, norm) for name, row in ATTACKS.items() for norm in row.norms]


def slow_for(condition, cases):
    """The cases, those that meet a condition for the slow tests only."""
    return [pytest.param(*case, marks=pytest.mark.slow if condition(*case) else ()) for case in cases]


def is_variant(name, *_):
    """What depends on the loop alone, the fast tests only try on one attack of every structure."""
    return bool(ATTACKS[name].variant_of)


LOOPS = ("pgd", "deepfool", "fab", "square")
"""With all steps, with an end of its own, with the model evaluated twice per step, and without gradients: whatever the
loop knows of an attack."""


def is_looped_like_another(name, *_):
    return name not in LOOPS


CALLED_ELSEWHERE = ("auto_pgd", "auto_pgd_l1", "carlini_wagner_l2")
"""Attacks that ``test_course`` calls without jit, too, and whose loop is like another one's."""
AIMED = [(*case, targeted) for case in CASES for targeted in (False, True)[: 1 + ATTACKS[case[0]].targetable]]
every_case = pytest.mark.parametrize(("name", "norm"), CASES)
every_structure = pytest.mark.parametrize(("name", "norm"), slow_for(is_variant, CASES))
every_goal = pytest.mark.parametrize(
    ("name", "norm", "targeted"), slow_for(lambda name, norm, targeted: targeted and is_variant(name), AIMED)
)
every_loop = pytest.mark.parametrize(("name", "norm"), slow_for(is_variant, FIRST))
kinds_of_loops = pytest.mark.parametrize(("name", "norm"), slow_for(is_looped_like_another, FIRST))
traces = 0


def counted(model):
    """The model, counting how often it is traced."""

    def logits_fn(images):
        global traces
        traces += 1
        return model(images)

    return logits_fn


def make(name, norm, epsilon, targeted=False) -> Attack:
    return ATTACKS[name].make(NORMS[norm](epsilon), targeted)


@functools.cache
def compiled(name, norm, targeted=False, until_success=False):
    """``(model, images, labels, keys, epsilon) -> AttackResult``, compiled once for all tests."""

    @functools.partial(jax.jit, compiler_options=QUICK if targeted or until_success else None)
    def jitted(model, images, labels, keys, epsilon):
        attack = make(name, norm, epsilon, targeted)
        return attack(counted(model), images, labels, keys, until_success=until_success)

    def run(model, images, labels, keys, epsilon):
        # One set of types, or each test would compile its own.
        return jitted(model, images, jnp.asarray(labels, jnp.int32), keys, jnp.asarray(epsilon, images.dtype))

    return run


class Data(NamedTuple):
    model: am.Linear
    images: np.ndarray
    labels: np.ndarray
    keys: jax.Array


@pytest.fixture(scope="module")
def data() -> Data:
    """Gray images, all with the label that the model gives them, except for the last two."""
    images = am.gray_images()
    model = am.random_linear(images, num_classes=3)
    labels = np.array(jnp.argmax(model(images), axis=-1))
    labels[-2:] = (labels[-2:] + 1) % 3
    return Data(model, images, labels, am.keys_of(range(len(images))))


def middle_epsilon(data, norm):
    """Some images cannot be fooled within it, others can."""
    return 1.2 * np.sort(am.lower_bounds(data.model, data.images, data.labels, norm)[:-2])[2]


def awkward(data):
    images = am.awkward_images()
    model = am.random_linear(images, num_classes=3)
    return Data(model, images, np.argmax(model(images), axis=-1), data.keys)


EPSILONS = {
    "linf": (8 / 255, 0.1, 1 / 3, 0.031, 16 / 255, 1e-3),
    "l2": (0.5, 1 / 3, 0.1, 3.0),
    "l1": (1 / 3, 0.7, 12.0),
}


@every_goal
def test_stays_inside_ball_and_bounds(data, name, norm, targeted):
    model, images, labels, keys = awkward(data)
    for epsilon in EPSILONS[norm]:
        result = compiled(name, norm, targeted)(model, images, labels, keys, epsilon)
        sizes = am.perturbation_sizes(images, result.images, norm)
        assert np.all(sizes <= np.float64(np.float32(epsilon)))
        assert np.all((np.asarray(result.images) >= 0) & (np.asarray(result.images) <= 1))
        assert ATTACKS[name].minimal or np.any(sizes > 0.3 * min(epsilon, 1))
        np.testing.assert_allclose(result.distance, sizes, rtol=1e-5)


@every_case
def test_epsilon_zero_returns_the_image(data, name, norm):
    model, images, labels, keys = awkward(data)
    result = compiled(name, norm)(model, images, labels, keys, 0.0)
    np.testing.assert_array_equal(result.images, images)
    assert not np.any(result.distance)
    assert not np.any(result.success)


@every_case
def test_is_a_function_of_its_key(data, name, norm):
    # Without a gradient a random attack stays where it started, and the others at the image.
    model = data.model._replace(weights=np.zeros_like(data.model.weights))
    run = functools.partial(compiled(name, norm), model, data.images, data.labels, epsilon=0.1)
    first, again, other = (np.asarray(run(keys=am.keys_of(range(8), seed)).images) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    moved = np.any(first != other, axis=(1, 2, 3))
    assert np.all(moved) if ATTACKS[name].random else not np.any(moved)


@pytest.mark.parametrize(
    ("name", "norm"), slow_for(lambda name, norm: is_variant(name) or name in CALLED_ELSEWHERE, FIRST)
)
def test_same_without_jit_and_leaves_numpy_inputs_alone(data, name, norm):
    epsilon = middle_epsilon(data, norm)
    images, labels = data.images.copy(), data.labels.copy()
    for array in (images, labels):
        array.setflags(write=False)
    # Without jit, every step costs as much as a thousand steps do with it.
    attack = dataclasses.replace(make(name, norm, epsilon), num_steps=2)
    eager = attack(data.model, images, labels, data.keys)
    jitted = jax.jit(attack, compiler_options=QUICK)(data.model, images, labels, data.keys)
    np.testing.assert_array_equal(eager.success, jitted.success)
    np.testing.assert_allclose(eager.steps, jitted.steps, atol=ATTACKS[name].steps_close)
    np.testing.assert_allclose(eager.images, jitted.images, atol=ATTACKS[name].pixels_close)
    np.testing.assert_array_equal(images, data.images)
    np.testing.assert_array_equal(labels, data.labels)


@every_loop
def test_independent_of_batch_size_padding_and_order(data, name, norm):
    with jax.enable_x64(True):
        model, images = jax.tree.map(lambda x: x.astype(np.float64), (data.model, data.images))
        attack = compiled(name, norm, until_success=True)
        epsilon = middle_epsilon(data, norm)

        def run(indices):
            result = attack(model, images[indices], data.labels[indices], am.keys_of(indices), epsilon)
            assert result.images.dtype == np.float64
            return jax.device_get(result)

        everything = run(np.arange(8))
        assert 0 < np.sum(everything.success[:-2]) < 6
        order = np.random.default_rng(0).permutation(8)
        padded = np.asarray([0, 1, 2, 3, 4, 4, 4, 4])
        for indices in (order, padded, np.asarray([2, 3]), np.asarray([6, 0])):
            result = run(indices)
            np.testing.assert_array_equal(result.success, everything.success[indices])
            np.testing.assert_array_equal(result.steps, everything.steps[indices])
            np.testing.assert_allclose(result.images, everything.images[indices], atol=1e-12)


def test_one_key_is_folded_with_the_position():
    keys = keys_per_image(jax.random.key(0), 8)
    np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(am.keys_of(range(8))))
    np.testing.assert_array_equal(jax.random.key_data(keys_per_image(keys[::-1], 8)), jax.random.key_data(keys[::-1]))


@kinds_of_loops
def test_vmaps_over_epsilon(data, name, norm):
    model, images, labels, keys = data
    epsilons = middle_epsilon(data, norm) * np.float32([0, 0.5, 1, 1.5, 3])
    attack = compiled(name, norm)
    curve = jax.vmap(attack, in_axes=(None, None, None, None, 0))(model, images, labels, keys, epsilons)
    for i, epsilon in enumerate(epsilons):
        separate = attack(model, images, labels, keys, epsilon)
        np.testing.assert_array_equal(curve.success[i], separate.success)
        np.testing.assert_allclose(curve.images[i], separate.images, atol=ATTACKS[name].pixels_close)
    robust_accuracy = 1 - np.mean(curve.success, axis=1)
    assert np.all(np.diff(robust_accuracy) <= 0)
    assert robust_accuracy[0] == 0.75
    assert robust_accuracy[-1] < 0.5


@every_structure
def test_misclassified_images(data, name, norm):
    model, images, labels, keys = data
    epsilon = middle_epsilon(data, norm)
    wrong = np.arange(8) >= 6
    stopped = compiled(name, norm, until_success=True)(model, images, labels, keys, epsilon)
    np.testing.assert_array_equal(np.asarray(stopped.images)[wrong], images[wrong])
    assert np.all(np.asarray(stopped.distance)[wrong] == 0)
    assert np.all(np.asarray(stopped.steps)[wrong] == 0)
    assert np.all(np.asarray(stopped.success)[wrong])
    full = compiled(name, norm)(model, images, labels, keys, epsilon)
    assert np.all(np.asarray(full.success)[wrong])
    distances = np.asarray(full.distance)[wrong]
    assert np.all(distances == 0) if ATTACKS[name].minimal else np.all(distances > 0.3 * epsilon)


@every_structure
def test_stopping_on_success_keeps_the_verdicts(data, name, norm):
    model, images, labels, keys = data
    epsilon = 1.5 * middle_epsilon(data, norm)
    stopped = jax.device_get(compiled(name, norm, until_success=True)(model, images, labels, keys, epsilon))
    full = jax.device_get(compiled(name, norm)(model, images, labels, keys, epsilon))
    if ATTACKS[name].returns_success:
        np.testing.assert_array_equal(stopped.success, full.success)
    assert np.all(stopped.success | ~full.success)
    num_steps = make(name, norm, 0.1).num_steps
    assert np.all((stopped.steps >= 0) & (stopped.steps <= full.steps) & (full.steps <= num_steps))
    if not ATTACKS[name].minimal:
        assert np.all(full.steps == num_steps)
        assert np.all(stopped.steps[~stopped.success] == num_steps)
    assert np.any(stopped.success[:-2])
    if num_steps > 1:
        assert np.any((stopped.steps[:-2] > 0) & (stopped.steps[:-2] < num_steps))


@pytest.mark.parametrize(
    ("name", "norm", "until_success"),
    slow_for(
        lambda name, norm, until_success: until_success and is_variant(name),
        [(*case, until_success) for case in CASES for until_success in (False, True)],
    ),
)
def test_success_is_what_a_forward_pass_says(data, name, norm, until_success):
    model, images, labels, keys = data
    epsilon = middle_epsilon(data, norm)
    result = compiled(name, norm, until_success=until_success)(model, images, labels, keys, epsilon)
    logits = np.tensordot(np.asarray(result.images, np.float64), np.asarray(model.weights, np.float64), 3) + model.bias
    np.testing.assert_allclose(result.logits, logits, atol=1e-4)
    np.testing.assert_array_equal(result.success, np.argmax(logits, axis=-1) != labels)
    np.testing.assert_array_equal(np.asarray(result.distance) <= np.float32(epsilon), True)
    assert result.images.dtype == np.float32 and result.images.shape == images.shape
    assert result.success.dtype == bool and result.steps.dtype == np.int32 and result.distance.dtype == np.float32


@every_loop
def test_two_classes_and_a_single_image(name, norm):
    images = am.gray_images(count=2)
    model = am.random_linear(images, num_classes=2)
    # The second image only serves to put the first one near the boundaries.
    label = np.argmax(model(images), axis=-1)[:1]
    bound = am.lower_bounds(model, images[:1], label, norm)[0]
    attack = compiled(name, norm, until_success=True)
    assert not attack(model, images[:1], label, am.keys_of([0]), 0.98 * bound).success[0]
    beyond = attack(model, images[:1], label, am.keys_of([0]), 3 * bound)
    assert beyond.success[0]
    assert beyond.logits.shape == (1, 2)


def ends_early_anyway(name, norm, until_success):
    """Whether the loop is the one of ``until_success`` without it."""
    return not until_success and make(name, norm, 0.1).done is not None


@pytest.mark.parametrize(
    ("name", "norm", "until_success"),
    slow_for(
        lambda *case: is_variant(*case) or ends_early_anyway(*case),
        [(*case, until_success) for case in FIRST for until_success in (False, True)],
    ),
)
def test_same_on_four_devices(data, name, norm, until_success):
    assert jax.device_count() == 4
    epsilon = middle_epsilon(data, norm)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated, split = jax.P(), jax.P("data")

    def attack(model, images, labels, keys):
        return make(name, norm, epsilon)(model, images, labels, keys, until_success=until_success)

    mapped = jax.shard_map(attack, mesh=mesh, in_specs=(replicated, split, split, split), out_specs=split)
    sharded = jax.jit(mapped, compiler_options=QUICK)(*data)
    single = compiled(name, norm, until_success=until_success)(*data, epsilon)
    assert 0 < np.sum(single.success[:-2]) < 6
    np.testing.assert_array_equal(sharded.success, single.success)
    np.testing.assert_allclose(sharded.steps, single.steps, atol=ATTACKS[name].steps_close)
    np.testing.assert_allclose(sharded.images, single.images, atol=ATTACKS[name].pixels_close)


@every_goal
def test_finds_the_closed_form_distance(data, name, norm, targeted):
    known = am.known_distance(norm)
    labels = known.other_labels if targeted else known.labels
    attack = functools.partial(compiled(name, norm, targeted), known.model, known.images, labels, data.keys)
    assert np.all(attack(ATTACKS[name].enough * known.epsilon).success)
    assert not np.any(attack(0.98 * known.epsilon).success)


@every_case
def test_new_values_do_not_trace_the_model_again(data, name, norm):
    model, images, labels, keys = data
    attack = compiled(name, norm)
    attack(model, images, labels, keys, 0.1)
    before = traces
    attack(model, images[::-1], labels[::-1], keys[::-1], 0.2)
    assert traces == before


@every_loop
def test_the_model_is_traced_once_however_many_steps_there_are(data, name, norm):
    def traced(num_steps):
        before = traces
        attack = dataclasses.replace(make(name, norm, 0.1), num_steps=num_steps)
        jax.eval_shape(lambda *arguments: attack(counted(data.model), *arguments), *data[1:])
        return traces - before

    assert traced(2) == traced(9) == 1
