"""The runner: who is attacked, by what, with which keys, and what survives an interruption."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import combine, runner
from advjax.types import UserError
from support import attack_models as am

pytestmark = pytest.mark.optimized

COUNT = 23


class Data:
    """A linear model on images of which some are wrong, some break at once, some later and some never."""

    def __init__(self):
        self.images = am.gray_images(COUNT)
        self.model = am.random_linear(self.images, num_classes=4)
        logits = np.asarray(self.model(self.images))
        self.labels = np.argmax(logits, axis=-1).astype(np.int32)
        self.labels[-3:] = (self.labels[-3:] + 1) % 4
        bounds = am.lower_bounds(self.model, self.images, self.labels, "linf")
        self.threat_model = attacks.linf(float(np.sort(bounds[:-3])[15]))
        epsilon = self.threat_model.epsilon
        weak = attacks.pgd(self.threat_model, num_steps=1, step_size=epsilon / 2, loss=attacks.dlr)
        strong = functools.partial(attacks.bim, num_steps=4, step_size=epsilon / 2, returns="best")
        self.stages = (
            combine.restarts("weak", weak, 2),
            combine.targets("aimed", lambda aim: attacks.fab(self.threat_model, num_steps=5, aim=aim), 9),
            combine.restarts("strong", strong(self.threat_model), 1),
        )

    def run(self, **options):
        arguments = {"batch_size": 8, "images": self.images, "labels": self.labels} | options
        return runner.run_stages(self.stages, self.threat_model, self.model, **arguments)


@pytest.fixture(scope="module")
def data():
    return Data()


@pytest.fixture(scope="module")
def found(data):
    return data.run()


def same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


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
    same(part, [array[some] for array in found])


def test_a_seed_is_another_run(data, found):
    other = data.run(seed=1)
    broken = (found.broken_by == 0) & (other.broken_by == 0)
    assert np.any(broken)
    assert np.all(np.any(other.images[broken] != found.images[broken], axis=(1, 2, 3)))


def test_variables_may_be_arguments(data, found):
    same(
        runner.run_stages(
            data.stages,
            data.threat_model,
            lambda model: model,
            data.images,
            data.labels,
            variables=data.model,
            batch_size=8,
        ),
        found,
    )


def test_nothing_is_compiled_more_often_than_there_are_sizes(data):
    traced = []

    def model(images):
        traced.append(len(images))
        return data.model(images)

    attack = attacks.pgd(data.threat_model, num_steps=2, step_size=0.01)
    once = (combine.restarts("once", attack, 1),)
    often = (combine.restarts("often", attack, 7),)
    counts = []
    for rounds in (once, often):
        traced.clear()
        runner.run_stages(rounds, data.threat_model, model, data.images, data.labels, batch_size=64)
        counts.append(len(traced))
        assert len(set(traced)) <= 3
    assert counts[1] <= 2 * counts[0]


class Stopped(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("after", [4, 9])
def test_resumed_run_equals_an_uninterrupted_one(data, found, tmp_path, after):
    path, seen = tmp_path / "state", []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) == after:
            raise Stopped

    with pytest.raises(Stopped):
        data.run(state_file=path, progress=interrupt)
    later = []
    same(data.run(state_file=path, progress=later.append), found)
    assert [path.name] == [file.name for file in tmp_path.iterdir()]
    everything = []
    data.run(progress=everything.append)
    without_time = [progress._replace(seconds=0) for progress in everything]
    assert [progress._replace(seconds=0) for progress in seen + later] == without_time
    # Finished: nothing is left to do.
    same(data.run(state_file=path, progress=lambda progress: pytest.fail("attacked again")), found)


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


@pytest.mark.parametrize("change", ["seed", "labels", "model"])
def test_state_of_another_run_is_refused(data, tmp_path, change):
    path = tmp_path / "state"
    short = runner.run_stages
    stage = (combine.restarts("weak", attacks.bim(data.threat_model, num_steps=1, step_size=0.01), 1),)
    short(stage, data.threat_model, data.model, data.images, data.labels, batch_size=8, state_file=path)
    labels = (data.labels + 1) % 4 if change == "labels" else data.labels
    model = data.model._replace(bias=data.model.bias[::-1] + 1e3 * np.arange(4)) if change == "model" else data.model
    with pytest.raises(UserError, match="belongs to another run"):
        short(
            stage,
            data.threat_model,
            model,
            data.images,
            labels,
            batch_size=8,
            state_file=path,
            seed=int(change == "seed"),
        )


CHANGES = {
    "norm": lambda: (attacks.l2(0.1), 0.02, 2, 1, {}),
    "bounds": lambda: (attacks.linf(0.1, bounds=(-1.0, 1.0)), 0.02, 2, 1, {}),
    "number of rounds": lambda: (attacks.linf(0.1), 0.02, 2, 2, {}),
    "step size": lambda: (attacks.linf(0.1), 0.03, 2, 1, {}),
    "number of steps": lambda: (attacks.linf(0.1), 0.02, 3, 1, {}),
    "loss": lambda: (attacks.linf(0.1), 0.02, 2, 1, {"loss": "dlr"}),
}


def test_state_of_another_attack_is_refused(data, tmp_path):
    def run(threat_model, step_size, num_steps, num_rounds, options):
        attack = attacks.bim(threat_model, num_steps=num_steps, step_size=step_size, **options)
        stage = (combine.restarts("same name", attack, num_rounds),)
        few = data.images[:3], data.labels[:3]
        return runner.run_stages(stage, threat_model, data.model, *few, batch_size=4, state_file=tmp_path / "state")

    def again():
        # Everything is made anew, as by another process.
        return run(attacks.linf(0.1), 0.02, 2, 1, {})

    same(again(), again())
    for change, arguments in CHANGES.items():
        with pytest.raises(UserError, match=r"belongs to another run \(.*threat model"):
            run(*arguments())
            pytest.fail(f"another {change} was accepted")


def test_a_lying_attack_is_found_out(data):
    """Whatever an attack claims, an image counts only if it is misclassified and inside the threat model."""

    def liar(logits_fn, images, labels, rng):
        result = attacks.bim(attacks.linf(1.0), num_steps=5, step_size=0.3)(logits_fn, images, labels, rng)
        return result._replace(success=result.success | True)

    liars = (combine.restarts("liar", liar, 1),)
    found = runner.run_stages(liars, data.threat_model, data.model, data.images, data.labels, batch_size=8)
    np.testing.assert_array_equal(found.broken_by[:-3], runner.ROBUST)
    np.testing.assert_array_equal(found.images, data.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"index": np.arange(2)}, "index must have one entry per image"),
        ({"images": np.zeros((0, 5, 7, 2), np.float32), "labels": np.zeros(0, np.int32)}, "at least one image"),
    ],
)
def test_mistakes(data, options, message):
    with pytest.raises(ValueError, match=message):
        data.run(**options)
    with pytest.raises(ValueError, match="at least one stage"):
        runner.run_stages((), data.threat_model, data.model, data.images, data.labels)


def test_keys_are_those_of_the_stages_as_one_attack(data):
    rngs = np.asarray(jax.random.key_data(am.keys_of(range(3))))
    folded = jax.random.fold_in(jax.random.fold_in(am.keys_of([2])[0], 1), 4)
    np.testing.assert_array_equal(jax.random.key_data(runner._round_keys(rngs, 1, 4))[2], jax.random.key_data(folded))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (300, [128, 128, 32, 8, 4]),
        (128, [128]),
        (65, [65]),
        (64, [32, 32]),
        (39, [32, 7]),
        (3, [3]),
        (0, []),
    ],
)
def test_little_is_filled_up(count, expected):
    parts = list(runner._batches(np.arange(count), (8, 32, 128)))
    assert [len(part) for part in parts] == expected
    np.testing.assert_array_equal(np.concatenate([*parts, []]), np.arange(count))


def test_a_search_in_low_precision_is_verified_in_full(data, found):
    def bind(model):
        return lambda images: images.reshape(len(images), -1) @ model["weights"] + model["bias"]

    variables = {"weights": data.model.weights.reshape(-1, 4), "bias": jnp.asarray(data.model.bias)}
    low = attacks.in_precision(jnp.bfloat16, bind)
    assert low(variables)(data.images).dtype == jnp.float32
    assert not np.array_equal(low(variables)(data.images), bind(variables)(data.images))
    common = (data.stages, data.threat_model, bind, data.images, data.labels)
    searched = runner.run_stages(*common, variables=variables, search_fn=low, batch_size=8)
    logits = np.asarray(bind(variables)(searched.images))
    np.testing.assert_array_equal(np.argmax(logits, axis=-1) != data.labels, searched.broken_by != runner.ROBUST)
    assert np.sum(found.refused) == 0
    assert np.sum(searched.refused) > 0, "images at the very edge should tell the precisions apart"


def test_a_search_that_finds_nothing_breaks_nothing(data):
    detached = lambda images: jax.lax.stop_gradient(data.model(images))  # noqa: E731
    strong = (data.stages[2],)
    arguments = (strong, data.threat_model, data.model, data.images, data.labels)
    blind = runner.run_stages(*arguments, search_fn=detached, batch_size=8)
    assert np.sum(blind.broken_by == runner.ROBUST) == COUNT - 3
