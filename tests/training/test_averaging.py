"""Weight averaging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.models import blocks
from advjax.training import averaging, losses, objectives, optimizers
from advjax.training.step import Method, evaluation_variables, init_state, refresh_step, train_step
from advjax.types import UserError, Variables
from support.tiny_models import Tiny, assert_close, fresh, make_data

MODEL = Tiny()


def averages(rule, values):
    """The average after each of the updates."""
    average, out = {"w": jnp.float32(-7)}, []
    for step, latest in enumerate(values):
        average = rule.update(average, {"w": jnp.float32(latest)}, jnp.int32(step))
        out.append(float(average["w"]))
    return out


def test_swa_is_the_mean_of_what_counts():
    values = np.random.default_rng(0).normal(size=12).astype(np.float32)
    found = averages(averaging.swa(3, every=2), values)
    for step, average in enumerate(found):
        counted = values[3 : step + 1 : 2] if step >= 3 else values[step : step + 1]
        assert average == pytest.approx(counted.mean(), rel=1e-5)
    assert found[2] == values[2]


def test_ema_is_ema_update():
    found = averages(averaging.ema(0.9), [1.0, 2.0, 3.0])
    average = {"w": jnp.float32(-7)}
    for step, latest in enumerate([1.0, 2.0, 3.0]):
        average = optimizers.ema_update(average, {"w": jnp.float32(latest)}, 0.9, step)
        assert found[step] == pytest.approx(float(average["w"]), rel=1e-6)


def make_method(average):
    variables = fresh(MODEL)
    trainable = jax.tree.map_with_path(lambda path, _: "head" not in str(path), variables.params)
    objective = objectives.supervised(MODEL, losses.cross_entropy)
    return Method(MODEL, objective, (), optimizers.sgd(0.1), trainable, {}, average), variables


def run(method, variables, steps, function=train_step):
    state = init_state(method, variables, jax.random.key(0))
    step = jax.jit(
        lambda state, positions: function(
            state, {}, make_data(), positions, jnp.ones(8, bool), axis_name=None, method=method, num_classes=3
        )
    )
    states = [state]
    for number in range(steps):
        states.append(step(states[-1], (jnp.arange(8) + 8 * number) % 22)[0])
    return states


def test_parameters_that_learn_and_batch_statistics_are_averaged():
    method, variables = make_method(averaging.swa(0))
    states = run(method, variables, 3)
    mean = jax.tree.map(
        lambda *leaves: sum(leaves) / 3, *[Variables(state.params, state.model_state) for state in states[1:]]
    )
    found = evaluation_variables(states[-1])
    learned = {name: leaf for name, leaf in mean.params.items() if name != "block_head"}
    assert_close({name: found.params[name] for name in learned}, learned)
    assert_close(found.model_state, mean.model_state)
    assert set(states[-1].average["params"]) == set(learned)
    # What does not learn is taken as it is.
    assert_close(found.params["block_head"], states[-1].params["block_head"], rtol=0, atol=0)


def test_without_averaging_the_last_weights_are_evaluated():
    method, variables = make_method(None)
    last = run(method, variables, 1)[-1]
    assert last.average == {}
    assert_close(evaluation_variables(last), Variables(last.params, last.model_state), rtol=0, atol=0)


def test_refreshing_moves_the_statistics_of_the_average_alone():
    method, variables = make_method(averaging.ema(0.5))
    state = run(method, variables, 2)[-1]
    data, positions, mask = make_data(), jnp.arange(8), jnp.ones(8, bool)
    refresh = jax.jit(
        lambda state: refresh_step(state, {}, data, positions, mask, axis_name=None, method=method, num_classes=3)
    )
    found = refresh(state)
    before = evaluation_variables(state)
    expected = blocks.apply(MODEL, before, data.images[:8].astype(jnp.float32) / 255, train=True)[1]
    assert_close(found.average["model_state"], expected)
    assert_close(
        found.replace(average={**found.average, "model_state": state.average["model_state"], "params": {}}).params,
        state.params,
        rtol=0,
        atol=0,
    )
    assert int(found.step) == int(state.step)
    assert_close(found.average["params"], state.average["params"], rtol=0, atol=0)
    assert_close(found.model_state, state.model_state, rtol=0, atol=0)
    # Many batches end at the statistics of the data, wherever they began.
    for _ in range(150):
        found = refresh(found)
    again = refresh(found)
    assert_close(again.average["model_state"], found.average["model_state"], rtol=1e-4)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: averaging.ema(1.0), "decay is 1.0"),
        (lambda: averaging.swa(-1), "start is -1"),
        (lambda: averaging.swa(0, every=0), "every 0"),
        (lambda: averaging.ema(0.9, refresh_steps=-1), "refresh_steps is -1"),
    ],
)
def test_what_makes_no_sense_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()
