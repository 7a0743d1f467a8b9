"""Lanes that images give up when they are done: few steps are wasted, and results do not depend on the schedule."""

import contextlib
import functools
import itertools
import types

import jax
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import combine, continuous_batching, program_cache, runner, schedule
from advjax.attacks.batching import batch_sizes, default_batch_size
from support import attack_models as am
from support.stage_runs import same

COUNT, EPSILON = 40, 0.06


@pytest.fixture(scope="module")
def smooth():
    """A smooth network in float64, and images of which some are wrong."""
    with jax.enable_x64(True):
        model = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), am.smooth_net())
        images = np.random.default_rng(5).uniform(0, 1, (COUNT, *am.SHAPE))
        labels = np.array(np.argmax(model(images), axis=-1), np.int32)
        labels[::9] = (labels[::9] + 1) % 3
    return model, images, labels


STAGES = {
    "ensemble": lambda ball: (
        combine.restarts("pgd", attacks.pgd(ball, num_steps=2, step_size=EPSILON / 4), 2),
        combine.targets("apgd-t", lambda aim: attacks.auto_pgd(ball, num_steps=6, loss="dlr", aim=aim), 2),
        combine.restarts("square", attacks.square(ball, num_queries=20), 1),
    ),
    "fab": lambda ball: (combine.targets("fab-t", lambda aim: attacks.fab(ball, num_steps=6, aim=aim), 2),),
    "deepfool": lambda ball: (combine.restarts("deepfool", attacks.deepfool(ball, num_steps=6), 1),),
}


def run(smooth, name, *, order=slice(None), survivors_only=True, **options):
    """Verdicts in the original order."""
    model, images, labels = smooth
    ball = attacks.l2(np.inf) if name == "deepfool" else attacks.linf(EPSILON)
    index = np.arange(COUNT)[order]
    with jax.enable_x64(True):
        found = runner.run_stages(
            STAGES[name](ball),
            ball,
            lambda variables: variables,
            images[order],
            labels[order],
            variables=model,
            index=index,
            survivors_only=survivors_only,
            **options,
        )
    back = np.argsort(index)
    return runner.Verdicts(*(array[back] for array in found[:-1]))


@pytest.mark.usefixtures("compiling_is_free")
@pytest.mark.parametrize("survivors_only", [True, False])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in STAGES])
def test_results_do_not_depend_on_the_schedule(smooth, name, survivors_only, monkeypatch):
    """On batch size, order, devices, or when lanes are given to others."""
    verdict = functools.partial(run, smooth, name, survivors_only=survivors_only)
    expected = verdict(batch_size=COUNT, devices=jax.devices()[:1])
    assert len(set(expected.steps)) >= 2 and len(set(expected.broken_by)) >= 1 + survivors_only
    shuffled = np.random.default_rng(0).permutation(COUNT)
    looks = itertools.cycle([3, 1, 7, 2])
    others = [verdict(batch_size=8, order=shuffled), verdict(batch_size=1, devices=jax.devices()[:1])]
    monkeypatch.setattr(continuous_batching, "steps_until_look", lambda rate: next(looks))
    others.append(verdict(batch_size=16))
    for other in others:
        for field in ("broken_by", "steps", "refused", "nonfinite"):
            np.testing.assert_array_equal(getattr(other, field), getattr(expected, field), err_msg=field)
        # The network itself adds in another order in other batches.
        np.testing.assert_allclose(other.images, expected.images, rtol=0, atol=1e-9)
        np.testing.assert_allclose(other.distance, expected.distance, rtol=1e-6)


@pytest.fixture
def compiling_is_free(monkeypatch):
    """Then every size that suits the images has its program."""
    monkeypatch.setitem(program_cache.FLOP_OF_COMPILATION, "cpu", -1.0)
    monkeypatch.setattr(schedule, "num_cores", lambda: 1)


@contextlib.contextmanager
def counted(monkeypatch):
    """Number of images that the model is evaluated on in the steps of attacks, in a list."""
    counts, advance = [0], continuous_batching._LaneRun.advance

    def counting(self, held, count):
        counts[0] += count * len(held.steps)
        return advance(self, held, count)

    with monkeypatch.context() as patch:
        patch.setattr(continuous_batching._LaneRun, "advance", counting)
        yield counts


def linear(count):
    images = am.gray_images(count)
    model = am.random_linear(images, num_classes=4)
    return model, images, np.array(np.argmax(model(images), axis=-1), np.int32)


@pytest.mark.usefixtures("compiling_is_free")
@pytest.mark.parametrize("batch_size", [16, 64])
def test_images_that_are_broken_give_up_their_lanes(batch_size, monkeypatch):
    """Nearly all images of an undefended network fall early, and a few late or never."""
    model, images, labels = linear(200)
    bounds = np.sort(am.lower_bounds(model, images, labels, "linf"))
    ball = attacks.linf(float(bounds[-4]))
    stages = (combine.restarts("bim", attacks.bim(ball, num_steps=40, step_size=ball.epsilon / 20), 1),)
    with counted(monkeypatch) as counts:
        found = runner.run_stages(stages, ball, model, images, labels, batch_size=batch_size, devices=jax.devices()[:1])
    assert np.sum(found.broken_by == runner.ROBUST) >= 3 and np.mean(found.steps) < 12
    # The last point is evaluated, too.
    needed = np.sum(found.steps + (found.broken_by == runner.ROBUST))
    assert needed <= counts[0] < 1.5 * needed


@pytest.mark.usefixtures("compiling_is_free")
def test_minimum_norm_attacks_give_up_their_lanes(monkeypatch):
    model, images, labels = linear(100)
    labels[::2] = (labels[::2] + 1) % 4
    ball = attacks.l2(np.inf)
    stages = (combine.restarts("deepfool", attacks.deepfool(ball, num_steps=50), 1),)
    with counted(monkeypatch) as counts:
        found = runner.run_stages(
            stages,
            ball,
            model,
            images,
            labels,
            batch_size=32,
            survivors_only=False,
            devices=jax.devices()[:1],
        )
    np.testing.assert_array_equal(found.broken_by, 0)
    assert counts[0] < 2 * np.sum(found.steps) < 10 * len(images)


@pytest.mark.usefixtures("compiling_is_free")
def test_few_images_take_few_lanes(monkeypatch):
    """Verification, too."""
    model, images, labels = linear(17)
    ball, sizes = attacks.linf(1e-4), []
    stages = (combine.restarts("bim", attacks.bim(ball, num_steps=10, step_size=1e-4), 1),)
    verify = runner.Programs.verify

    def spy(self, images, adversarial, keys):
        sizes.append(len(images))
        return verify(self, images, adversarial, keys)

    monkeypatch.setattr(runner.Programs, "verify", spy)
    with counted(monkeypatch) as counts:
        runner.run_stages(stages, ball, model, images, labels, batch_size=64, devices=jax.devices()[:1])
    # 16 lanes, and 4 for the last image.
    assert counts[0] == 11 * (16 + 4)
    assert max(sizes) <= 16


def test_a_stochastic_model_draws_what_it_draws_on_one_batch():
    """Each image at its own step has the keys of that step."""
    model, images, labels = linear(13)

    def noisy(images, rng):
        return model(images + 0.05 * jax.random.normal(rng, images.shape))

    ball = attacks.linf(0.05)
    attack = attacks.fab(ball, num_steps=3, aim=attacks.next_likely_class(1))
    stochastic = attacks.expectation(noisy, 3)
    found = runner.run_stages(
        (combine.restarts("fab", attack, 1),), ball, stochastic, images, labels, batch_size=4, survivors_only=False
    )
    expected = jax.jit(functools.partial(attack, stochastic))(images, labels, am.keys_of(range(13)))
    assert np.any(expected.distance > 0)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-6)
    np.testing.assert_array_equal(found.broken_by >= 0, expected.success)
    np.testing.assert_array_equal(found.refused, 0)


@pytest.mark.parametrize(
    ("overhead", "expected"),
    [(4, [16, 16, 16, 64, 64, 64, 256]), (256, [16, 64, 256, 256, 256, 256, 256])],
)
def test_number_of_lanes(overhead, expected):
    sizes, counts = batch_sizes(256, 1), (1, 17, 100, 300, 1024, 2000, 5000)
    assert [schedule.number_of_lanes(count, 0, sizes, overhead) for count in counts] == expected
    # Those that are under way have to stay somewhere.
    assert schedule.number_of_lanes(17, 17, sizes, 1) == 64


def test_more_cores_or_devices_take_more_lanes(monkeypatch):
    one, four = (jax.sharding.Mesh(np.array(jax.devices()[:count]), ("data",)) for count in (1, 4))
    for cores in (1, 16):
        monkeypatch.setattr(schedule, "num_cores", lambda cores=cores: cores)
        # Virtual devices share the cores.
        assert schedule.overhead(one) == schedule.overhead(four) == 4 * cores
    accelerators = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="gpu")] * 2))
    assert schedule.overhead(accelerators) == 512


def test_lanes_that_have_their_program_are_used_where_they_nearly_suit():
    number = functools.partial(schedule.number_of_lanes, least=0, sizes=(4, 16, 64), overhead=4)
    assert [number(200), number(200, compiled={64}), number(200, compiled={16, 64})] == [16, 64, 16]
    assert [number(20), number(20, compiled={64}), number(20, compiled={4, 64})] == [16, 16, 4]


def test_looks_become_rare_as_attacks_last():
    looks = [schedule.steps_until_look(rate) for rate in (1, 0.5, 0.1, 0.01, 0)]
    assert looks == sorted(looks) and looks[0] == 1 and looks[-1] == schedule.MOST_STEPS


def test_nobody_has_to_choose_a_batch_size():
    model, images, labels = linear(5)
    ball = attacks.linf(0.05)
    stages = (combine.restarts("bim", attacks.bim(ball, num_steps=2, step_size=0.05), 1),)
    found = [runner.run_stages(stages, ball, model, images, labels, batch_size=size) for size in (None, 4)]
    same(*found)
    assert default_batch_size(jax.devices()) == 64 * len(jax.devices())
