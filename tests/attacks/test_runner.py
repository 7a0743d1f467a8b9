"""The runner: which images are attacked, by what, with which keys, and what is kept."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import combine, runner
from support import attack_models as am
from support.compiling import BOTH_WAYS
from support.stage_runs import COUNT, StageRuns, same


@pytest.fixture(scope="module", autouse=True, params=BOTH_WAYS)
def compiled(request):
    return request.param


@pytest.fixture(scope="module")
def data():
    return StageRuns()


@pytest.fixture(scope="module")
def found(data, compiled):
    return data.run()


def test_verdicts_are_true(data, found):
    broken = found.broken_by != runner.ROBUST
    logits = np.tensordot(found.images.astype(np.float64), np.asarray(data.model.weights, np.float64), 3)
    logits += data.model.bias
    np.testing.assert_array_equal(np.argmax(logits, axis=-1) != data.labels, broken)
    sizes = am.perturbation_sizes(data.images, found.images, "linf")
    assert np.all(sizes <= np.float32(data.threat_model.epsilon))
    np.testing.assert_allclose(found.distance, sizes, rtol=1e-5)
    np.testing.assert_array_equal(found.images[~broken], data.images[~broken])


def test_every_outcome_occurs(data, found):
    np.testing.assert_array_equal(found.broken_by[-3:], runner.MISCLASSIFIED)
    assert set(found.broken_by) >= {runner.MISCLASSIFIED, runner.ROBUST, 0}
    assert np.any(found.broken_by > 0)
    counts = [np.sum(found.robust_after(stage)) for stage in (-1, 0, 1, 2)]
    assert counts[0] == COUNT - 3
    assert counts[0] > counts[1] > counts[-1] > 0
    assert counts[-1] == np.sum(found.broken_by == runner.ROBUST)


def test_only_survivors_are_attacked(data, found):
    assert np.all(found.steps[-3:] == 0)
    robust = found.broken_by == runner.ROBUST
    # Two rounds of one step, three targets of five, four steps.
    np.testing.assert_array_equal(found.steps[robust], 2 + 15 + 4)
    assert np.all(found.steps[found.broken_by == 0] <= 2)


def test_independent_of_batch_size_and_of_the_other_images(data, found):
    same(data.run(batch_size=64), found)
    some = np.asarray([3, 20, 5, 11, 0])
    part = data.run(images=data.images[some], labels=data.labels[some], index=some)
    same(part, runner.Verdicts(*(array[some] for array in found[:-1])))
    same(data.run(devices=jax.devices()[1:2]), found)


def test_a_seed_is_another_run(data, found):
    other = data.run(seed=1)
    broken = (found.broken_by == 0) & (other.broken_by == 0)
    assert np.any(broken)
    assert np.all(np.any(other.images[broken] != found.images[broken], axis=(1, 2, 3)))


def test_the_model_may_be_a_closure(data, found):
    same(data.run(variables=None), found)


def test_progress(data):
    calls = []
    found = data.run(progress=calls.append)
    assert [call.stage for call in calls] == sorted(
        (call.stage for call in calls), key=["weak", "aimed", "strong"].index
    )
    assert {(call.stage, call.num_rounds) for call in calls} == {("weak", 2), ("aimed", 3), ("strong", 1)}
    assert all(0 < call.done <= call.total for call in calls)
    assert calls[0].total == COUNT - 3
    assert calls[-1].robust == np.sum(found.broken_by == runner.ROBUST)


def test_a_lying_attack_is_found_out(data):
    """Whatever an attack claims, an image counts only if it is misclassified and inside the threat model."""

    def liar(logits_fn, images, labels, rng):
        result = attacks.bim(attacks.linf(1.0), num_steps=5, step_size=0.3)(logits_fn, images, labels, rng)
        return result._replace(success=result.success | True)

    liars = (combine.restarts("liar", liar, 1),)
    with pytest.warns(UserWarning, match="successes on 20 of 20 robust images that did not hold when verified"):
        found = runner.run_stages(liars, data.threat_model, data.model, data.images, data.labels, batch_size=8)
    np.testing.assert_array_equal(found.broken_by[:-3], runner.ROBUST)
    np.testing.assert_array_equal(found.refused, np.where(found.broken_by == runner.ROBUST, 1, 0))
    np.testing.assert_array_equal(found.images, data.images)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 8.0}, TypeError, "batch_size must be an integer, got 8.0"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer, got True"),
        ({"index": np.arange(2)}, ValueError, "index must be integers of shape"),
        (
            {"images": np.zeros((0, 5, 7, 2), np.float32), "labels": np.zeros(0, np.int32)},
            ValueError,
            "at least one image",
        ),
        ({"devices": []}, ValueError, "devices must be one or more devices of this process"),
        ({"seed": jax.random.split(jax.random.key(0), 2)}, ValueError, "seed must be an integer or one key"),
    ],
)
def test_mistakes(data, options, error, message):
    with pytest.raises(error, match=message):
        data.run(**options)


def test_no_stages(data):
    with pytest.raises(ValueError, match="at least one stage"):
        runner.run_stages((), data.threat_model, data.model, data.images, data.labels)


@pytest.mark.parametrize(
    "other", [attacks.linf(0.2), attacks.l2(0.1), attacks.linf(np.inf), attacks.linf(0.1, bounds=(-1.0, 1.0))]
)
def test_a_stage_in_another_threat_model_is_refused(data, other):
    model = attacks.linf(0.1)
    attack = attacks.bim(model, num_steps=1, step_size=0.1)
    others = dataclasses.replace(attack, threat_model=other)
    stages = combine.restarts("same", attack, 1), combine.restarts("other", others, 1)
    with pytest.raises(ValueError, match=r"^stage 'other' attacks in .*, but threat_model is linf 0.1 with bounds \[0"):
        runner.run_stages(stages, model, data.model, data.images, data.labels)
    # The same in float32.
    rounded = (combine.restarts("same", attacks.bim(attacks.linf(np.float32(0.1)), num_steps=1, step_size=0.1), 1),)
    runner.run_stages(rounded, model, data.model, data.images[:4], data.labels[:4], batch_size=4)


def test_a_search_in_low_precision_is_verified_in_full(data, found, monkeypatch):
    def bind(model):
        return lambda images: images.reshape(len(images), -1) @ model["weights"] + model["bias"]

    variables = {"weights": data.model.weights.reshape(-1, 4), "bias": jnp.asarray(data.model.bias)}
    low = attacks.in_precision(jnp.bfloat16, bind)
    assert low(variables)(data.images).dtype == jnp.float32
    assert not np.array_equal(low(variables)(data.images), bind(variables)(data.images))
    common = (data.stages, data.threat_model, bind, data.images, data.labels)
    repeated, attack_images = set(), runner.attack_images

    def spy(programs, search, inputs, rows):
        repeated.update(rows.tolist() if search.is_precise else ())
        return attack_images(programs, search, inputs, rows)

    monkeypatch.setattr(runner, "attack_images", spy)
    searched = runner.run_stages(*common, variables=variables, search_fn=low, batch_size=8)
    logits = np.asarray(bind(variables)(searched.images))
    np.testing.assert_array_equal(np.argmax(logits, axis=-1) != data.labels, searched.broken_by != runner.ROBUST)
    assert repeated, "images at the very edge should tell the precisions apart"
    # These count as robust only if a search in full precision finds nothing either.
    rows = np.asarray(sorted(repeated))
    np.testing.assert_array_equal(searched.broken_by[rows] == runner.ROBUST, found.broken_by[rows] == runner.ROBUST)
    assert np.sum(searched.refused) == 0


class Shifted(NamedTuple):
    """A linear model whose first class is underrated as much as ``error`` says."""

    model: am.Linear
    error: float

    def __call__(self, images):
        return self.model(images) - self.error * jnp.asarray([1.0, 0.0])


@pytest.mark.parametrize("survivors_only", [True, False])
@pytest.mark.parametrize("name", ["bim", "deepfool", "function"])
def test_a_success_that_does_not_hold_is_searched_again(name, survivors_only):
    """The search takes the first step for a success, and the second one is."""
    weights = np.stack([-np.ones((2, 2, 1)), np.ones((2, 2, 1))], axis=-1).astype(np.float32)
    model = am.Linear(weights, np.float32([4.25, -4.25]))
    # The second class wins where the mean of the pixels exceeds 1.0625; the search believes that it does from 1.0375.
    images, labels = np.full((5, 2, 2, 1), 1.0, np.float32), np.zeros(5, np.int32)
    ball = attacks.linf(0.1 if name != "deepfool" else np.inf, bounds=(0, 2))
    bim = attacks.bim(ball, num_steps=2, step_size=0.045) if name != "deepfool" else None
    attack = {
        "bim": bim,
        "deepfool": attacks.deepfool(ball, num_steps=5),
        "function": lambda *arguments, **options: bim(*arguments, **options),
    }[name]
    found = runner.run_stages(
        single(attack),
        ball,
        model,
        images,
        labels,
        search_fn=Shifted(model, 0.2),
        batch_size=4,
        survivors_only=survivors_only,
    )
    np.testing.assert_array_equal(found.broken_by, 0)
    np.testing.assert_array_equal(found.refused, 0)
    assert np.all(np.argmax(model(found.images), -1) == 1)


def test_what_cannot_be_searched_again_is_warned_of(data):
    """The attack follows the gradients of a stand-in, and the model itself has none."""
    weights, bias = np.asarray(data.model.weights), np.asarray(data.model.bias)

    def called_back(images):
        shape = jax.ShapeDtypeStruct((len(images), 4), jnp.float32)
        return jax.pure_callback(lambda x: (np.tensordot(x, weights, 3) + bias).astype(np.float32), shape, images)

    def stand_in(images):
        logits = data.model(images)
        return logits - 0.3 * jax.nn.one_hot(jnp.argmax(logits, -1), 4)

    strong = (data.stages[2],)
    arguments = (strong, data.threat_model, called_back, data.images, data.labels)
    with pytest.warns(UserWarning, match="robust images that did not hold when verified"):
        found = runner.run_stages(*arguments, search_fn=stand_in, batch_size=8, devices=jax.devices()[:1])
    assert np.sum(found.refused) > 0
    np.testing.assert_array_equal(found.broken_by[found.refused > 0], runner.ROBUST)


def test_a_search_that_finds_nothing_breaks_nothing(data):
    detached = lambda images: jax.lax.stop_gradient(data.model(images))  # noqa: E731
    strong = (data.stages[2],)
    arguments = (strong, data.threat_model, data.model, data.images, data.labels)
    blind = runner.run_stages(*arguments, search_fn=detached, batch_size=8)
    assert np.sum(blind.broken_by == runner.ROBUST) == COUNT - 3


def pushed(threat_model, start=False):
    """An attack that takes its whole budget, so that its result tells its key and how far it has come."""
    epsilon = 0.1 if not threat_model.is_bounded else threat_model.epsilon
    options = {"num_steps": 3, "step_size": epsilon / 2}
    return attacks.pgd(threat_model, returns="last", **options) if start else attacks.bim(threat_model, **options)


def single(attack, num_rounds=1):
    return (combine.restarts("single", attack, num_rounds),)


@pytest.mark.parametrize("num_rounds", [1, 3])
@pytest.mark.parametrize("survivors_only", [True, False])
def test_a_single_stage_equals_the_attack_on_one_batch(data, num_rounds, survivors_only):
    attack = pushed(data.threat_model, start=True)
    index = np.arange(COUNT) * 3 + 1
    options = {"index": index, "batch_size": 8, "survivors_only": survivors_only}
    arguments = (single(attack, num_rounds), data.threat_model, data.model, data.images, data.labels)
    found = runner.run_stages(*arguments, seed=5, **options)
    whole = attack if num_rounds == 1 else attacks.with_restarts(attack, num_rounds)
    call = jax.jit(functools.partial(whole, data.model, until_success=survivors_only))
    expected = jax.device_get(call(data.images, data.labels, am.keys_of(index, seed=5)))
    assert 0 < np.sum(expected.success[:-3]) < COUNT - 3
    if survivors_only:
        success = expected.success & (found.broken_by != runner.MISCLASSIFIED)
        images = np.where(success[:, None, None, None], expected.images, data.images)
    else:
        success, images = expected.success, expected.images
        np.testing.assert_array_equal(found.distance, expected.distance)
        # An image that is broken keeps its result, and is not attacked in later rounds.
        rounds = np.full(COUNT, num_rounds)
        for number in reversed(range(num_rounds)):
            keys = am.keys_of(index, seed=5)
            keys = keys if num_rounds == 1 else jax.vmap(functools.partial(jax.random.fold_in, data=number))(keys)
            result = jax.jit(functools.partial(attack, data.model))(data.images, data.labels, keys)
            rounds[np.asarray(result.success)] = number + 1
        np.testing.assert_array_equal(found.steps, 3 * rounds)
    np.testing.assert_array_equal(found.broken_by >= 0, success)
    np.testing.assert_array_equal(found.images, images)
    # A key is used as it is.
    same(runner.run_stages(*arguments, seed=jax.random.key(5), **options), found)


def test_the_closest_success_is_kept_without_an_epsilon(data):
    """As by ``with_restarts(keep="closest")``, for an attack whose distances the restarts scatter."""
    threat_model = attacks.l2(np.inf)

    def scattered(logits_fn, images, labels, rng):
        """Moves towards the boundary and beyond, by a share that the key draws."""
        result = attacks.deepfool(threat_model, num_steps=10)(logits_fn, images, labels, rng)
        share = jax.vmap(lambda key: jax.random.uniform(key, minval=0.5, maxval=3.0))(rng)[:, None, None, None]
        adversarial = jnp.clip(images + share * (result.images - images), 0, 1)
        logits = logits_fn(adversarial)
        distance = jax.vmap(threat_model.distance)(images, adversarial)
        return result._replace(
            images=adversarial, logits=logits, success=jnp.argmax(logits, -1) != labels, distance=distance
        )

    found = runner.run_stages(
        single(scattered, 4),
        threat_model,
        data.model,
        data.images,
        data.labels,
        batch_size=8,
        survivors_only=False,
    )
    attack = jax.jit(functools.partial(attacks.with_restarts(scattered, 4, keep="closest"), data.model))
    expected = jax.device_get(attack(data.images, data.labels, am.keys_of(range(COUNT))))
    np.testing.assert_array_equal(found.broken_by >= 0, expected.success)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-6)
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-4)
    np.testing.assert_array_equal(found.steps, expected.steps)
    first = runner.run_stages(
        single(scattered), threat_model, data.model, data.images, data.labels, batch_size=8, survivors_only=False
    )
    assert np.mean(found.distance) < np.mean(first.distance)


def test_every_image_is_attacked_to_the_end(data):
    attack = pushed(data.threat_model)
    stages = (combine.restarts("first", attack, 2), combine.restarts("second", attack, 1))
    found = runner.run_stages(
        stages, data.threat_model, data.model, data.images, data.labels, batch_size=8, survivors_only=False
    )
    np.testing.assert_array_equal(found.steps, np.where(found.broken_by == runner.ROBUST, 9, 3))
    sizes = am.perturbation_sizes(data.images, found.images, "linf")
    # Also where it failed, and where nothing was to be done.
    np.testing.assert_allclose(sizes, data.threat_model.epsilon, rtol=1e-4)
    np.testing.assert_allclose(found.distance, sizes, rtol=1e-5)
    logits = np.asarray(data.model(found.images))
    np.testing.assert_array_equal(found.broken_by, np.where(np.argmax(logits, -1) != data.labels, 0, runner.ROBUST))
    assert set(found.broken_by[-3:]) == {0} and runner.ROBUST in found.broken_by


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_do_not_depend_on_the_default_type(data, impl):
    """Other types of keys draw other numbers in other batches."""
    attack = pushed(data.threat_model, start=True)
    some = np.asarray([3, 20, 5])

    def run(rows, batch_size, seed=2):
        return runner.run_stages(
            single(attack),
            data.threat_model,
            data.model,
            data.images[rows],
            data.labels[rows],
            index=rows,
            batch_size=batch_size,
            survivors_only=False,
            seed=seed,
        )

    everything = run(np.arange(COUNT), 8)
    with jax.default_prng_impl(impl):
        same(run(np.arange(COUNT), 8), everything)
        key = jax.random.key(2)
        given = run(np.arange(COUNT), 8, key).images
        np.testing.assert_array_equal(run(some, 4, key).images, given[some])
    assert not np.array_equal(given, everything.images)


def test_verdicts_are_computed_in_full_precision(data):
    """Searches in what JAX is set to."""
    seen = []

    @jax.jit
    def product(images, weights):
        seen.append(jax.config.jax_default_matmul_precision)
        return images.reshape(len(images), -1) @ weights

    def bind(weights):
        return lambda images: product(images, weights)

    weights = jnp.asarray(data.model.weights.reshape(-1, 4))
    stages = single(pushed(data.threat_model))
    runner.run_stages(
        stages, data.threat_model, bind, data.images, data.labels, variables=weights, batch_size=8, seed=1
    )
    assert set(seen) == {"highest", None}


def test_a_targeted_attack_is_refused():
    """It would pull every image into its own class, and all of them would look robust."""
    threat_model = attacks.linf(0.1)
    stage = combine.restarts("targeted", attacks.pgd(threat_model, num_steps=2, step_size=0.05, targeted=True), 1)
    with pytest.raises(ValueError, match="stage 'targeted' is targeted"):
        runner.run_stages(
            (stage,), threat_model, lambda x: x.reshape(len(x), -1)[:, :3], np.zeros((2, 2, 2, 3)), [0, 1]
        )
