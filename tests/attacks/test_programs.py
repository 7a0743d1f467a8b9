"""Programs are compiled once per process, whatever they are traced from, and never taken for others."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import combine, program_cache, runner, schedule
from support.stage_runs import same

SHAPE, CLASSES, COUNT = (4, 3, 1), 3, 20
IMAGES = np.random.default_rng(0).uniform(0.3, 0.7, (COUNT, *SHAPE)).astype(np.float32)
LABELS = np.arange(COUNT, dtype=np.int32) % CLASSES
BALL = attacks.linf(0.05)


def weights(seed):
    return np.random.default_rng(seed).normal(size=(12, CLASSES)).astype(np.float32)


def forward(parameters, images):
    return images.reshape(len(images), -1) @ parameters


def bind(parameters):
    return functools.partial(forward, parameters)


def stages(step_size=0.03):
    return (
        combine.restarts("bim", attacks.bim(BALL, num_steps=2, step_size=step_size), 2),
        combine.restarts("pgd", attacks.pgd(BALL, num_steps=2, step_size=step_size), 1),
    )


def run(model, stages, **options):
    return runner.run_stages(stages, BALL, model, IMAGES, LABELS, batch_size=16, **options)


@pytest.fixture
def compiled(monkeypatch):
    """Number of programs that have been compiled, in a list; none is known to begin with."""
    counts = [0]
    compile = jax.stages.Lowered.compile

    def counting(lowered, *arguments, **options):
        counts[0] += 1
        return compile(lowered, *arguments, **options)

    monkeypatch.setattr(program_cache, "_by_text", type(program_cache._by_text)())
    monkeypatch.setattr(program_cache, "_by_functions", weakref.WeakKeyDictionary())
    monkeypatch.setattr(jax.stages.Lowered, "compile", counting)
    return counts


def test_ten_checkpoints_are_compiled_once(compiled):
    traced = []

    def model(parameters):
        return lambda images: (traced.append(1), forward(parameters, images))[1]

    plan, counts, found = stages(), [], []
    for seed in range(10):
        found.append(run(model, plan, variables=weights(seed)))
        counts.append((compiled[0], len(traced)))
    # Verification and at most three sizes of two stages; later calls do not even trace the model.
    assert len(set(counts)) == 1 and 3 <= counts[0][0] <= 7
    for seed, expected in enumerate(found):
        logits = forward(weights(seed), expected.images)
        np.testing.assert_array_equal(np.argmax(logits, -1) != LABELS, expected.broken_by != runner.ROBUST)


@pytest.mark.parametrize("kind", ["closure", "partial", "jit", "variables"])
def test_new_functions_of_the_same_kind_are_compiled_once(compiled, kind):
    """Stages and model are built anew each time, and weights that a function closes over are arguments."""

    def build(seed):
        parameters = jnp.asarray(weights(seed))
        return {
            "closure": (lambda images: forward(parameters, images), {}),
            "partial": (functools.partial(forward, parameters), {}),
            "jit": (jax.jit(lambda images: forward(parameters, images)), {}),
            "variables": (lambda variables: lambda images: forward(variables, images), {"variables": parameters}),
        }[kind]

    counts, found = [], []
    for seed in range(3):
        model, options = build(seed)
        found.append(run(model, stages(), **options))
        counts.append(compiled[0])
    assert len(set(counts)) == 1
    for seed, verdicts in enumerate(found):
        same(verdicts, run(bind, stages(), variables=weights(seed)))
    assert np.any(found[0].images != found[1].images)


def test_an_expectation_is_compiled_once(compiled):
    def noisy(seed):
        parameters = weights(seed)
        return lambda images, rng: forward(parameters, images + 0.01 * jax.random.normal(rng, images.shape))

    counts = []
    for seed in range(3):
        run(attacks.expectation(noisy(seed), 2), stages())
        counts.append(compiled[0])
    assert len(set(counts)) == 1


def test_a_model_that_has_been_changed_is_not_taken_for_what_it_was(compiled):
    class Model:
        def __init__(self, seed):
            self.weights = weights(seed)

        def __call__(self, images):
            return forward(self.weights, images)

    model = Model(0)
    closure, plan = (lambda images: model(images)), stages()
    first = run(closure, plan)
    model.weights = weights(1)
    for changed in (closure, model):
        same(run(changed, plan), run(bind, plan, variables=weights(1)))
    assert not np.array_equal(first.broken_by, run(closure, plan).broken_by)


def test_programs_with_equal_text_and_other_arguments_are_told_apart(compiled):
    """Models that use the first or the second of two arrays of one shape."""
    variables = {"a": weights(0), "b": weights(1)}
    found = {
        name: run(lambda variables, name=name: bind(variables[name]), stages(), variables=variables) for name in "ab"
    }
    for name in "ab":
        same(found[name], run(bind, stages(), variables=variables[name]))


@pytest.mark.parametrize("change", ["step size", "threat model", "survivors_only", "matmul precision", "devices"])
def test_what_changes_a_program_is_compiled_again(compiled, change):
    plan = stages()
    first = run(bind, plan, variables=weights(0))
    before = compiled[0]
    if change == "step size":
        assert not np.array_equal(run(bind, stages(0.01), variables=weights(0)).images, first.images)
    elif change == "threat model":
        ball = attacks.linf(0.01)
        weak = (combine.restarts("bim", attacks.bim(ball, num_steps=2, step_size=0.03), 2),)
        found = runner.run_stages(weak, ball, bind, IMAGES, LABELS, variables=weights(0), batch_size=16)
        assert np.max(found.distance) <= 0.0101 < np.max(first.distance)
    elif change == "survivors_only":
        run(bind, plan, variables=weights(0), survivors_only=False)
    elif change == "matmul precision":
        with jax.default_matmul_precision("bfloat16"):
            same(run(bind, plan, variables=weights(0)), first)
    else:
        same(run(bind, plan, variables=weights(0), devices=jax.devices()[:2]), first)
    assert compiled[0] > before


def test_two_stages_that_are_no_functions_are_told_apart(compiled):
    class Attacks:
        """Not a function, so nothing can be remembered by it."""

        def __init__(self, step_size):
            self.attack = attacks.bim(BALL, num_steps=1, step_size=step_size)

        def __call__(self, number):
            return self.attack

    def plan(*step_sizes):
        return [combine.Stage(str(size), Attacks(size), lambda num_classes: 1) for size in step_sizes]

    found = run(bind, plan(1e-6, 0.05), variables=weights(0))
    assert {0, 1} & set(found.broken_by) == {1}


def test_functions_are_not_kept_alive(compiled):
    def model(parameters):
        return functools.partial(forward, parameters)

    plan = stages()
    run(model, plan, variables=weights(0))
    assert len(program_cache._by_functions) == 1
    kept = weakref.ref(model), *(weakref.ref(stage.attack) for stage in plan)
    del model, plan
    gc.collect()
    assert [reference() for reference in kept] == [None] * 3
    assert len(program_cache._by_functions) == 0


def test_programs_are_forgotten_in_the_end(compiled, monkeypatch):
    monkeypatch.setattr(program_cache, "MAX_PROGRAMS", 3)
    run(bind, stages(), variables=weights(0))
    assert len(program_cache._by_text) == 3


@pytest.mark.parametrize("num_rounds", [1, 7])
def test_nothing_is_traced_more_often_than_there_are_sizes(num_rounds, monkeypatch):
    monkeypatch.setattr(schedule, "num_cores", lambda: 2)
    traced = []

    def model(parameters):
        return lambda images: (traced.append(len(images)), forward(parameters, images))[1]

    once = (combine.restarts("bim", attacks.bim(BALL, num_steps=2, step_size=0.01), num_rounds),)
    runner.run_stages(once, BALL, model, IMAGES, LABELS, variables=weights(0), batch_size=64)
    # On each of four devices: verification of four images, and attacks, in their own precision, on one (few are right).
    assert traced == [4, 1]
