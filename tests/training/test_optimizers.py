"""Schedules at their end points and against PyTorch's and optax's formulas; optimizers against NumPy recursions."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from advjax.training import optimizers
from advjax.types import UserError


def values(schedule, num_steps):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(num_steps)))


def torch_one_cycle(step, num_steps, start, peak, end, fraction):
    """The published formula of OneCycleLR in Python floats, with the final value given directly."""
    first, last = fraction * num_steps - 1, num_steps - 1
    if step <= first:
        low, high, progress = start, peak, step / first
    else:
        low, high, progress = peak, end, (step - first) / (last - first)
    return high + (low - high) / 2 * (1 + math.cos(math.pi * progress))


@pytest.mark.parametrize("num_steps", [25, 100, 1000])
def test_one_cycle_follows_the_formula(num_steps):
    rate, momentum = optimizers.one_cycle(0.1, num_steps)
    steps = range(num_steps)
    expected_rate = [torch_one_cycle(s, num_steps, 0.1 / 25, 0.1, 0.1 / 1e4, 0.3) for s in steps]
    expected_momentum = [torch_one_cycle(s, num_steps, 0.95, 0.85, 0.95, 0.3) for s in steps]
    np.testing.assert_allclose(values(rate, num_steps), expected_rate, rtol=2e-5, atol=2e-8)
    np.testing.assert_allclose(values(momentum, num_steps), expected_momentum, rtol=1e-6)


def test_one_cycle_end_points_and_mirror():
    rate, momentum = optimizers.one_cycle(0.02, 200, initial_divisor=10.0, final_divisor=100.0)
    assert float(rate(0)) == pytest.approx(0.002, rel=1e-6)
    assert float(rate(59)) == pytest.approx(0.02, rel=1e-6)
    assert float(rate(199)) == pytest.approx(0.0002, rel=1e-6)
    assert float(rate(10_000)) == float(rate(199))
    assert [float(momentum(s)) for s in (0, 59, 199)] == pytest.approx([0.95, 0.85, 0.95], rel=1e-6)
    rates, momenta = values(rate, 200), values(momentum, 200)
    assert rates.argmax() == momenta.argmin() == 59
    # Mirrored: where the rate is a fraction of its way up, momentum is the same fraction of its way down.
    np.testing.assert_allclose((rates[:60] - 0.002) / 0.018, (0.95 - momenta[:60]) / 0.1, atol=1e-5)
    np.testing.assert_allclose((rates[59:] - 0.0002) / 0.0198, (0.95 - momenta[59:]) / 0.1, atol=1e-5)


def test_a_cycle_with_its_top_in_the_middle_is_symmetric():
    rate, momentum = optimizers.one_cycle(1.0, 101, initial_divisor=20, final_divisor=20, warmup_fraction=51 / 101)
    for schedule in (rate, momentum):
        np.testing.assert_allclose(values(schedule, 101), values(schedule, 101)[::-1], atol=2e-6)


def test_one_cycle_matches_optax_where_its_steps_are_whole():
    """Optax counts transitions, not steps, and divides the initial value for the final one."""
    rate, _ = optimizers.one_cycle(0.1, 101, warmup_fraction=26 / 101)
    theirs = optax.cosine_onecycle_schedule(100, 0.1, pct_start=0.25, div_factor=25.0, final_div_factor=1e4 / 25)
    np.testing.assert_allclose(values(rate, 120), values(theirs, 120), rtol=1e-4, atol=2e-8)


@pytest.mark.parametrize("num_steps", [2, 3])
def test_short_cycles_are_finite_and_end_low(num_steps):
    rate, momentum = optimizers.one_cycle(0.1, num_steps)
    assert float(rate(0)) == pytest.approx(0.1) and float(rate(num_steps - 1)) == pytest.approx(1e-5)
    assert np.isfinite(values(momentum, num_steps)).all()


def test_step_decay_changes_at_its_boundaries():
    schedule = optimizers.step_decay(0.1, (3, 5), 0.1)
    np.testing.assert_allclose(values(schedule, 7), [0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    np.testing.assert_allclose(values(optimizers.step_decay(0.1, (), 0.5), 3), 0.1, rtol=1e-6)


def test_cosine():
    plain = [0.2 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(21)]
    np.testing.assert_allclose(values(optimizers.cosine(0.2, 20), 21), plain, atol=1e-7)
    warm = values(optimizers.cosine(0.2, 20, warmup=5), 21)
    np.testing.assert_allclose(warm[:6], np.linspace(0, 0.2, 6), atol=1e-7)
    np.testing.assert_allclose(warm[5:], [0.2 * (1 + math.cos(math.pi * s / 15)) / 2 for s in range(16)], atol=1e-7)


PARAMS = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[0.3], [4.0]])}


def gradient(params, step):
    """Depends on the parameters and on the step, so that an off-by-one update is visible."""
    return jax.tree.map(lambda p: 0.3 * p + jnp.sin(p + step), params)


def run(transform, num_steps, params=PARAMS):
    transform = optax.with_extra_args_support(transform)

    @jax.jit
    def update(params, state, step):
        updates, state = transform.update(gradient(params, step), state, params, value=jnp.sum(params["a"]))
        return optax.apply_updates(params, updates), state

    state = transform.init(params)
    for step in range(num_steps):
        params, state = update(params, state, step)
    return params, state


def run_sgd_in_numpy(learning_rate, momentum, nesterov, weight_decay, num_steps):
    params = {name: np.asarray(value, np.float64) for name, value in PARAMS.items()}
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    for step in range(num_steps):
        for name, p in params.items():
            g = 0.3 * p + np.sin(p + step) + weight_decay * p
            velocity[name] = momentum(step) * velocity[name] + g
            direction = g + momentum(step) * velocity[name] if nesterov else velocity[name]
            params[name] = p - learning_rate(step) * direction
    return params


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("scheduled", [False, True])
def test_sgd_is_the_recursion(nesterov, weight_decay, scheduled):
    num_steps = 20
    # A momentum range this wide makes a shift of the schedule by one step visible.
    rate, momentum = optimizers.one_cycle(0.1, num_steps, momentum_low=0.2) if scheduled else (0.1, 0.9)

    def exact(value):
        table = values(value, num_steps).astype(np.float64) if scheduled else np.full(num_steps, value)
        return lambda step: table[step]

    transform = optimizers.sgd(rate, momentum, nesterov=nesterov, weight_decay=weight_decay)
    params, _ = run(transform, num_steps)
    expected = run_sgd_in_numpy(exact(rate), exact(momentum), nesterov, weight_decay, num_steps)
    for name in PARAMS:
        np.testing.assert_allclose(params[name], expected[name], rtol=2e-5, atol=2e-6)


def test_plain_sgd_keeps_no_state():
    transform = optimizers.sgd(0.1)
    assert jax.tree.leaves(transform.init(PARAMS)) == []
    params, _ = run(transform, 1)
    np.testing.assert_allclose(params["a"], PARAMS["a"] - 0.1 * gradient(PARAMS, 0)["a"], rtol=1e-6)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_and_adamw(decoupled):
    rate, decay, num_steps = 0.05, 0.2, 10
    make = optimizers.adamw if decoupled else optimizers.adam
    params, _ = run(make(rate, beta1=0.8, beta2=0.95, weight_decay=decay), num_steps)
    p = np.asarray(PARAMS["a"], np.float64)
    first, second = np.zeros_like(p), np.zeros_like(p)
    for step in range(num_steps):
        g = 0.3 * p + np.sin(p + step) + (0 if decoupled else decay * p)
        first, second = 0.8 * first + 0.2 * g, 0.95 * second + 0.05 * g * g
        direction = first / (1 - 0.8 ** (step + 1)) / (np.sqrt(second / (1 - 0.95 ** (step + 1))) + 1e-8)
        p = p - rate * (direction + (decay * p if decoupled else 0))
    np.testing.assert_allclose(params["a"], p, rtol=2e-5)


def test_clipping_scales_the_whole_gradient_before_the_decay():
    g = {"a": jnp.array([3.0, 0.0, 0.0]), "b": jnp.array([[0.0], [4.0]])}
    transform = optimizers.with_clipping(optimizers.sgd(1.0, weight_decay=0.1), max_norm=0.5)
    updates, _ = transform.update(g, transform.init(PARAMS), PARAMS)
    for name in PARAMS:
        np.testing.assert_allclose(updates[name], -(g[name] / 10 + 0.1 * PARAMS[name]), rtol=1e-6)
    transform = optimizers.with_clipping(optimizers.sgd(1.0), max_norm=5.1)
    updates, _ = transform.update(g, transform.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["b"], -g["b"])


def test_the_rate_falls_after_epochs_without_a_lower_mean_loss():
    transform = optimizers.with_plateaus(optimizers.sgd(1.0), 2, factor=0.1, patience=2)
    gradients, state = jax.tree.map(jnp.ones_like, PARAMS), transform.init(PARAMS)
    rates = []
    # Mean losses of the epochs: 2, 1, and then nothing lower than that, though single batches are.
    for loss in (3.0, 1.0, 1.0, 1.0, 0.5, 1.5, 1.0, 1.0, 0.2, 3.0, 1.0, 1.0, 1.0):
        updates, state = transform.update(gradients, state, PARAMS, value=loss)
        rates.append(-float(updates["a"][0]))
    np.testing.assert_allclose(rates, [*[1.0] * 7, *[0.1] * 4, *[0.01] * 2], rtol=1e-6)
    with pytest.raises(UserError, match="patience 0;"):
        optimizers.with_plateaus(optimizers.sgd(1.0), 2, patience=0)


def test_states_are_arrays_that_keep_their_type_and_survive_a_checkpoint(tmp_path):
    rate, momentum = optimizers.one_cycle(0.1, 10)
    states = {
        "sgd": optimizers.with_clipping(optimizers.sgd(rate, momentum, weight_decay=0.1), 1.0),
        "adam": optimizers.adam(rate),
        "adamw": optimizers.adamw(0.1),
        "plateaus": optimizers.with_plateaus(optimizers.sgd(0.1), 2),
    }
    before = {name: transform.init(PARAMS) for name, transform in states.items()}
    after = {name: run(transform, 3)[1] for name, transform in states.items()}
    for leaf in jax.tree.leaves(after):
        assert isinstance(leaf, jax.Array)
        assert leaf.dtype == jnp.float32 or (leaf.dtype == jnp.int32 and leaf.shape == ())
    signatures = [jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree) for tree in (before, after)]
    assert signatures[0] == signatures[1]  # otherwise the second step would compile again
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", after)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", before)
    assert jax.tree.structure(restored) == jax.tree.structure(after)
    chex.assert_trees_all_equal(restored, after)


def test_ema_starts_short_and_ends_at_its_decay():
    average, params = {"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}
    np.testing.assert_allclose(optimizers.ema_update(average, params, 0.99, 0)["w"], 0.1 * 1 + 0.9 * 3, rtol=1e-6)
    late = jax.jit(optimizers.ema_update)(average, params, 0.99, jnp.int32(10_000))
    np.testing.assert_allclose(late["w"], 0.99 * 1 + 0.01 * 3, rtol=1e-6)
    assert late["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("build", "given"),
    [
        (lambda: optimizers.one_cycle(0.1, 1), "num_steps is 1"),
        (lambda: optimizers.one_cycle(0.1, 10, warmup_fraction=1.2), "1.2"),
        (lambda: optimizers.one_cycle(0.1, 10, final_divisor=0), "25.0 and 0"),
        (lambda: optimizers.step_decay(0.1, (5, 3), 0.1), r"\(5, 3\)"),
        (lambda: optimizers.step_decay(0.1, (0, 3), 0.1), r"\(0, 3\)"),
        (lambda: optimizers.cosine(0.1, 10, warmup=10), "warmup is 10"),
        (lambda: optimizers.sgd(0.1, 1.0), "momentum is 1.0"),
        (lambda: optimizers.sgd(0.1, nesterov=True), "nesterov"),
        (lambda: optimizers.sgd(0.1, 0.9, weight_decay=-1e-4), "-0.0001"),
        (lambda: optimizers.adam(0.1, weight_decay=-1.0), "adam: weight_decay is -1.0"),
        (lambda: optimizers.adamw(0.1, weight_decay=-1.0), "adamw: weight_decay is -1.0"),
        (lambda: optimizers.with_clipping(optimizers.sgd(0.1), 0.0), "max_norm is 0.0"),
    ],
)
def test_bad_arguments_are_refused(build, given):
    with pytest.raises(UserError, match=given):
        build()
