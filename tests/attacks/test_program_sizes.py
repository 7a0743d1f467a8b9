"""Programs for fewer images are compiled where this is worth it, and what seldom runs is compiled quickly."""

import functools

import jax
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import combine, continuous_batching, program_cache, runner, schedule
from advjax.cpu import compiling
from support import attack_models as am
from support.stage_runs import same

COUNT, CLASSES, NUM_STEPS = 64, 4, 80
NEVER, AT_ONCE = 1e12, -1.0
FLOP = 1000.0
"""Of every program here."""


@pytest.fixture(scope="module")
def problem():
    """A linear model, and images of which one or a few withstand the attack, and the others fall early."""
    images = am.gray_images(COUNT)
    model = am.random_linear(images, num_classes=CLASSES)
    labels = np.array(np.argmax(model(images), axis=-1), np.int32)
    bounds = np.sort(am.lower_bounds(model, images, labels, "linf"))
    ball = attacks.linf(float(np.mean(bounds[-2:])))
    bim = attacks.bim(ball, num_steps=NUM_STEPS, step_size=ball.epsilon / 10)
    return (combine.restarts("bim", bim, 1), ball), (images, labels), model


@pytest.fixture
def run(problem, monkeypatch):
    """``flop -> (verdicts, number of lanes at each step)``, where compiling takes as long as so much arithmetic."""
    lanes, advance = [], continuous_batching._LaneRun.advance

    def spy(self, held, count):
        lanes.extend([len(held.steps)] * count)
        return advance(self, held, count)

    def call(flop, bind=None):
        (stages, ball), data, model = problem
        monkeypatch.setitem(program_cache.FLOP_OF_COMPILATION, "cpu", flop)
        lanes.clear()
        if bind is None:
            monkeypatch.setattr(program_cache, "_by_text", type(program_cache._by_text)())
            bind = functools.partial(lambda variables: variables)
        options = {"variables": model, "batch_size": COUNT, "devices": jax.devices()[:1]}
        return attacks.run_stages(stages, ball, bind, *data, **options), list(lanes)

    # With it, all images have lanes to begin with, and few ones few.
    monkeypatch.setattr(schedule, "OVERHEAD_PER_CORE", 20)
    monkeypatch.setattr(schedule, "num_cores", lambda: 1)
    monkeypatch.setattr(continuous_batching._LaneRun, "advance", spy)
    monkeypatch.setattr(program_cache, "flop_count", lambda jaxpr, per_element, turns: FLOP)
    return call


def test_lanes_become_fewer_once_idle_ones_have_cost_a_compilation(run):
    expected, lanes = run(AT_ONCE)
    assert 1 <= np.sum(expected.broken_by == runner.ROBUST) <= 4
    previous = first = moved(lanes)
    assert first < 30
    never, all_large = run(NEVER)
    assert set(all_large) == {COUNT} and len(all_large) == NUM_STEPS + 1
    same(never, expected)
    for steps in (5, 25):
        found, lanes = run(steps * FLOP)
        # A step with 16 or 4 images leaves three quarters or more of it idle; there are some steps between two looks.
        shortest, longest = first + steps, first + steps / 0.75
        assert shortest - schedule.MOST_STEPS <= moved(lanes) <= longest + schedule.MOST_STEPS
        assert moved(lanes) > previous
        same(found, expected)
        previous = moved(lanes)


def moved(lanes):
    """The first step with fewer lanes."""
    return next(step for step, count in enumerate(lanes) if count < COUNT)


def test_idle_lanes_add_up_over_calls_until_they_are_worth_a_program(run, monkeypatch):
    _, expected = run(AT_ONCE)
    monkeypatch.setattr(program_cache, "_by_text", type(program_cache._by_text)())

    def bind(variables):
        return variables

    # Less than the steps that one call takes, and more than those with idle lanes.
    calls = [run(NUM_STEPS * FLOP, bind)[1] for _ in range(4)]
    assert set(calls[0]) == {COUNT}
    # From then on the program is there, and used at once.
    assert moved(calls[-1]) == moved(expected)


@pytest.mark.parametrize(("flop", "enough"), [(30.0, 5), (np.inf, 1)])
def test_work_that_cannot_be_seen_is_always_too_much(flop, enough):
    program = program_cache.CachedProgram(None, None, 64, flop, worth_compiling=100.0)  # type: ignore
    found = [program.is_too_large(0.75, 1) for _ in range(6)]
    assert found == [False] * (enough - 1) + [True] * (7 - enough)


@pytest.mark.parametrize(("flop", "quick"), [(AT_ONCE, set()), (NEVER, {"begin", "verify"})])
def test_what_runs_seldom_is_compiled_quickly(run, monkeypatch, flop, quick):
    """But not if all its runs together compute more than compiling costs."""
    found, compile = {}, program_cache.compiled

    def spy(jitted, mesh, arguments, *others):
        # Variables, number of the round, and a batch.
        kind = {4: "advance", 5: "verify", 7: "begin"}[len(arguments)]
        monkeypatch.setattr(
            program_cache, "compiler_options", lambda mesh, quickly: found.update({kind: quickly}) or {}
        )
        return compile(jitted, mesh, arguments, *others)

    monkeypatch.setattr("advjax.attacks.programs.compiled", spy)
    run(flop)
    assert set(found) == {"advance", "begin", "verify"}
    assert {kind for kind, quickly in found.items() if quickly} == quick


@pytest.mark.optimized
def test_quickly_is_a_lower_level(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    options = functools.partial(compiling.compiler_options, mesh)
    assert options(quickly=True) == {**options(), compiling.LEVEL: compiling.QUICK_LEVEL}
    monkeypatch.setenv("XLA_FLAGS", f"--{compiling.LEVEL}=1")
    assert compiling.LEVEL not in options(quickly=True)
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(jax.config, "read", {"jax_disable_most_optimizations": True}.get)
    assert compiling.LEVEL not in options(quickly=True)
