"""Frozen parameters keep every bit and cost no memory; the others see their own gradients only."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advjax.training.optimizers import adamw, one_cycle, sgd, with_clipping
from advjax.training.partition import FROZEN, label_params, num_params, partitioned, trainable_mask
from advjax.types import UserError

PARAMS = {
    "block1": {"conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.array([0.0, -0.0, 1.0, -3e38])}},
    "fixer1": {"conv": {"kernel": jnp.full((4, 4), 0.5), "bias": jnp.zeros(4)}},
    "head": [jnp.full((4, 2), -0.25), jnp.array([-0.0, 2.0])],
}
RULES = (("fixer", "trainable"),)


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).view(np.int32), tree)


def state_bytes(state):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def step_with(transform):
    def step(params, state, gradients):
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def test_first_rule_found_in_the_path_wins():
    labels = label_params(PARAMS, (("^fixer1/conv/bias$", "bias"), ("fixer|head/1", "trainable")), "frozen")
    assert labels == {
        "block1": {"conv": {"kernel": "frozen", "bias": "frozen"}},
        "fixer1": {"conv": {"kernel": "trainable", "bias": "bias"}},
        "head": ["frozen", "trainable"],
    }
    assert set(jax.tree.leaves(label_params(PARAMS, (), "all"))) == {"all"}
    assert set(jax.tree.leaves(label_params(PARAMS, ((".", "trainable"),), "frozen"))) == {"trainable"}


def test_a_rule_that_decides_nothing_is_an_error_that_lists_paths():
    with pytest.raises(UserError, match=r"'fixers' -> 'trainable' matches no parameter.*block1/conv/bias.*head/0"):
        label_params(PARAMS, (("fixers", "trainable"),), "frozen")
    with pytest.raises(UserError, match=r"'fixer1/conv' -> 'slow'.*earlier rules.*fixer1/conv/kernel"):
        label_params(PARAMS, (("fixer", "fast"), ("fixer1/conv", "slow")), "frozen")
    with pytest.raises(UserError, match=r"'\(' is not a regular expression"):
        label_params(PARAMS, (("(", "trainable"),), "frozen")
    with pytest.raises(UserError, match="and 12 more") as error:
        label_params({f"layer{i:02}": jnp.zeros(1) for i in range(20)}, (("nowhere", "trainable"),), "frozen")
    assert "\n" not in str(error.value)


@pytest.mark.optimized
@pytest.mark.parametrize("jitted", [True, False])
def test_frozen_parameters_keep_every_bit(jitted):
    labels = label_params(PARAMS, RULES, "frozen")
    rate, momentum = one_cycle(0.1, 10)
    transform = partitioned(
        {"trainable": with_clipping(sgd(rate, momentum, weight_decay=0.1), 1.0), "frozen": FROZEN}, labels
    )
    # Eager addition on CPU flushes subnormal numbers, so the promise about those is for jitted steps.
    subnormal = 1e-40 if jitted else 1e-30
    bias = jnp.array(np.array([0.0, -0.0, subnormal, -3e38], np.float32))
    params = PARAMS | {"block1": {"conv": PARAMS["block1"]["conv"] | {"bias": bias}}}
    before, state = bits(params), transform.init(params)
    step = jax.jit(step_with(transform)) if jitted else step_with(transform)
    for i in range(5):
        poisoned = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
        poisoned["fixer1"] = jax.tree.map(lambda x, i=i: jnp.full_like(x, 0.1 * i - 3), params["fixer1"])
        params, state = step(params, state, poisoned)
    after = bits(params)
    assert np.signbit(params["block1"]["conv"]["bias"][1]) and np.signbit(params["head"][1][0])
    for name in ("block1", "head"):
        chex.assert_trees_all_equal(before[name], after[name])
    for old, new in zip(jax.tree.leaves(PARAMS["fixer1"]), jax.tree.leaves(params["fixer1"]), strict=True):
        assert np.isfinite(new).all() and (np.asarray(old) != np.asarray(new)).all()


def test_masked_would_have_moved_them():
    """The pitfall this module avoids: optax.masked alone with the same mask changes the frozen parameters."""
    labels = label_params(PARAMS, RULES, "frozen")
    trap = optax.masked(sgd(0.1, 0.9), trainable_mask(labels, {"trainable": sgd(0.1, 0.9), "frozen": FROZEN}))
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    params, _ = jax.jit(step_with(trap))(PARAMS, trap.init(PARAMS), ones)
    np.testing.assert_array_equal(params["block1"]["conv"]["kernel"], PARAMS["block1"]["conv"]["kernel"] + 1)


def test_frozen_parameters_need_no_optimizer_memory():
    labels = label_params(PARAMS, RULES, "frozen")
    fixer_bytes = 4 * num_params(PARAMS["fixer1"])
    assert state_bytes(FROZEN.init(PARAMS)) == 0
    state = partitioned({"trainable": sgd(0.1, 0.9, weight_decay=0.1), "frozen": FROZEN}, labels).init(PARAMS)
    assert state_bytes(state) == fixer_bytes
    state = partitioned({"trainable": adamw(0.1), "frozen": FROZEN}, labels).init(PARAMS)
    assert state_bytes(state) == 2 * fixer_bytes + 4  # two moments and a step count


def test_clipping_sees_the_trainable_gradients_alone():
    labels = label_params(PARAMS, RULES, "frozen")
    transform = partitioned({"trainable": with_clipping(sgd(1.0), 1.0), "frozen": FROZEN}, labels)
    gradients = jax.tree.map(lambda x: jnp.full_like(x, 1e6), PARAMS)
    gradients["fixer1"] = jax.tree.map(lambda x: jnp.full_like(x, 2.0), PARAMS["fixer1"])
    updates, _ = transform.update(gradients, transform.init(PARAMS), PARAMS)
    norm = 2.0 * np.sqrt(20)
    np.testing.assert_allclose(updates["fixer1"]["conv"]["kernel"], -2.0 / norm, rtol=1e-6)
    assert float(optax.tree.norm(updates)) == pytest.approx(1.0, rel=1e-6)


def test_each_label_has_its_own_rule():
    labels = label_params(PARAMS, (("fixer", "fast"), ("head", "slow")), "frozen")
    transform = partitioned({"fast": sgd(1.0), "slow": sgd(0.1), "frozen": FROZEN}, labels)
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, PARAMS), transform.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["fixer1"]["conv"]["bias"], -1.0, rtol=1e-6)
    np.testing.assert_allclose(updates["head"][0], -0.1, rtol=1e-6)


def test_a_transformation_without_parameters_is_idle():
    labels = label_params(PARAMS, RULES, "frozen")
    rate, momentum = one_cycle(0.1, 10)
    rules = {"trainable": sgd(0.1), "frozen": FROZEN}
    idle = {"idle": with_clipping(sgd(rate, momentum, weight_decay=0.1), 1.0)}
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    with_idle, without = partitioned(rules | idle, labels), partitioned(rules, labels)
    params, _ = jax.jit(step_with(with_idle))(PARAMS, with_idle.init(PARAMS), ones)
    expected, _ = jax.jit(step_with(without))(PARAMS, without.init(PARAMS), ones)
    chex.assert_trees_all_equal(params, expected)


def test_frozen_weight_gradients_are_not_computed():
    """XLA eliminates dead code: the step costs less than one that trains everything."""
    params = {"base": jnp.ones((64, 64)), "fixer": jnp.ones((64, 64))}
    images = jnp.ones((256, 64))

    def flops(rules):
        transform = partitioned({"trainable": sgd(0.1), "frozen": FROZEN}, label_params(params, rules, "frozen"))

        def step(params, state):
            gradients = jax.grad(lambda p: jnp.sum(jnp.tanh(images @ p["base"]) @ p["fixer"]))(params)
            return step_with(transform)(params, state, gradients)

        return jax.jit(step).lower(params, transform.init(params)).compile().cost_analysis()["flops"]

    one_product = 2 * 256 * 64 * 64
    assert flops(((".", "trainable"),)) - flops((("fixer", "trainable"),)) > one_product


def test_trainable_mask_and_counts():
    labels = label_params(PARAMS, RULES, "frozen")
    mask = trainable_mask(labels, {"trainable": sgd(0.1), "frozen": FROZEN})
    assert jax.tree.leaves(mask) == [False, False, True, True, False, False]
    assert num_params(PARAMS) == 72 + 4 + 16 + 4 + 8 + 2
    assert num_params(PARAMS, labels) == {"trainable": 20, "frozen": 86}
    shapes = jax.eval_shape(lambda: PARAMS)
    assert num_params(shapes, labels) == {"trainable": 20, "frozen": 86}


def test_a_label_without_a_transformation_is_refused():
    labels = label_params(PARAMS, RULES, "base")
    for use in (lambda t: partitioned(t, labels), lambda t: trainable_mask(labels, t)):
        with pytest.raises(UserError, match=r"\['base'\] have no transformation.*\['frozen', 'trainable'\]"):
            use({"trainable": sgd(0.1), "frozen": FROZEN})
