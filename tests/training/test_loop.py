"""The training step on several devices, and the loop around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks, sharding
from advjax.checkpoint import restore_variables
from advjax.data import Dataset
from advjax.metrics import read_metrics
from advjax.models import blocks
from advjax.models.fixer import with_fixers
from advjax.models.resnet9 import ResNet9
from advjax.preemption import PreemptedError
from advjax.sharding import Devices
from advjax.training import augment, losses, objectives, optimizers, partition, transforms
from advjax.training.loop import (
    DeviceData,
    Method,
    Plan,
    deployed,
    fit,
    init_state,
    train_step,
)
from advjax.types import Variables

SHAPE = (8, 8, 1)
BASE = ResNet9(width=0.0625, num_classes=3, head="average")


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 22).astype(np.int32)
    images = rng.integers(0, 100, (22, *SHAPE)).astype(np.uint8) + (50 * labels[:, None, None, None]).astype(np.uint8)
    return Dataset("toy", images, labels, np.arange(22, dtype=np.int32) + 7, ("a", "b", "c"))


def make_method(average_decay=0.9):
    """Adversarial training of a small network: augmentation, attack on the model itself, BatchNorm, momentum, decay."""
    variables = blocks.init(BASE, jax.random.key(0), SHAPE)
    labels = partition.label_params(variables.params, (), "trained")
    by_label = {"trained": optimizers.sgd(0.05, 0.9, weight_decay=1e-3)}
    steps = (
        transforms.augment(augment.pad_crop(1, "constant")),
        transforms.perturb(attacks.pgd(attacks.linf(0.05), num_steps=2, step_size=0.03, returns="last")),
    )
    method = Method(
        BASE,
        objectives.supervised(BASE, losses.cross_entropy),
        steps,
        partition.partitioned(by_label, labels),
        partition.trainable_mask(labels, by_label),
        {},
        average_decay,
    )
    return method, variables


def make_plan(**changes):
    return Plan(
        **{
            "num_steps": 9,
            "batch_size": 8,
            "log_every": 2,
            "validate_every": 3,
            "seed": 1,
            "select": "best",
            "select_metric": "score",
            **changes,
        }
    )


def some_steps(mapping, dataset, method, variables, count=4):
    """Parameters after a few steps, the third of which has a batch that is partly filler."""
    devices = Devices(sharding.mesh(), mapping)
    step = devices.parallelize(
        lambda *args, axis_name: train_step(*args, axis_name=axis_name, method=method, num_classes=3),
        in_sharded=(False, False, False, True, True),
        out_sharded=False,
    )
    state = devices.replicate(init_state(method, variables, jax.random.key(5)))
    data = devices.replicate(DeviceData(dataset.images, dataset.labels, dataset.index))
    for number in range(count):
        positions = ((np.arange(8) + 8 * number) % 22).astype(np.int32)
        mask = np.arange(8) + 8 * number % 24 < 22
        state, metrics = step(state, {}, data, positions, mask)
    return sharding.fetch((state.params, state.model_state, state.average, metrics))


def test_every_mapping_over_four_devices_gives_the_single_device_step(dataset):
    method, variables = make_method()

    @jax.jit
    def single(state, positions, mask):
        data = DeviceData(jnp.asarray(dataset.images), jnp.asarray(dataset.labels), jnp.asarray(dataset.index))
        return train_step(state, {}, data, positions, mask, axis_name=None, method=method, num_classes=3)

    state = init_state(method, variables, jax.random.key(5))
    for number in range(4):
        positions = ((np.arange(8) + 8 * number) % 22).astype(np.int32)
        state, metrics = single(state, positions, np.arange(8) + 8 * number % 24 < 22)
    expected = jax.device_get((state.params, state.model_state, state.average, metrics))
    assert len(jax.devices()) == 4
    for mapping in sharding.MAPPINGS:
        found = some_steps(mapping, dataset, method, variables)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected)


def constant_score(variables):
    return {"score": 0.5}


def run_fit(folder, dataset, plan, validate=constant_score, method=None, **options):
    method, variables = method or make_method()
    fit(
        "toy",
        method,
        plan,
        variables,
        dataset,
        {},
        validate,
        folder=str(folder),
        devices=Devices(sharding.mesh(), "shard_map"),
        config={},
        notify=print,
        **options,
    )
    return restore_variables(f"{folder}/checkpoints")


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


class InterruptedRunError(Exception):
    pass


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, dataset):
    undisturbed = run_fit(tmp_path / "a", dataset, make_plan())
    calls = []

    def dying(variables):
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedRunError
        return constant_score(variables)

    with pytest.raises(InterruptedRunError):
        run_fit(tmp_path / "b", dataset, make_plan(), dying)
    resumed = run_fit(tmp_path / "b", dataset, make_plan())
    assert resumed.step == undisturbed.step == 9
    assert_same(resumed.state, undisturbed.state)
    strip = lambda folder: [(row["step"], row["kind"]) for row in read_metrics(tmp_path / folder)]  # noqa: E731
    assert strip("a") == strip("b")


def test_a_finished_run_is_left_alone(tmp_path, dataset):
    run_fit(tmp_path, dataset, make_plan(num_steps=2))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def forbidden(variables):
        raise AssertionError("validated again")

    run_fit(tmp_path, dataset, make_plan(num_steps=2), forbidden)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path, dataset):
    scores = iter([0.2, 0.9, 0.4])
    run_fit(tmp_path, dataset, make_plan(), lambda variables: {"score": next(scores)})
    best = restore_variables(str(tmp_path / "checkpoints"), which="best", best_metric="score")
    last = restore_variables(str(tmp_path / "checkpoints"))
    assert (best.step, last.step) == (6, 9)
    kernels = [found.state["params"]["block_head"]["dense"]["kernel"] for found in (best, last)]
    assert not np.array_equal(*kernels)


def test_the_average_is_what_is_deployed(dataset):
    method, variables = make_method(average_decay=0.5)
    params, model_state, average, _ = some_steps("jit", dataset, method, variables)
    found = deployed({"params": params, "model_state": model_state, "average": average})
    assert_same(found.params, average)
    plain, variables = make_method(average_decay=0.0)
    params, model_state, average, _ = some_steps("jit", dataset, plain, variables)
    assert average == {}
    assert_same(deployed({"params": params, "model_state": model_state, "average": {}}), Variables(params, model_state))


def test_the_frozen_base_stays_bit_identical_and_costs_no_memory(dataset):
    base = blocks.init(BASE, jax.random.key(0), SHAPE)
    model = with_fixers(BASE)
    variables = blocks.graft(blocks.init(model, jax.random.key(1), SHAPE), base)
    labels = partition.label_params(variables.params, (("^patches_", "trained"),), "frozen")
    by_label = {"trained": optimizers.sgd(0.1, 0.9, weight_decay=0.1), "frozen": partition.FROZEN}
    attack = attacks.auto_pgd(attacks.linf(0.05), num_steps=2, returns="last")
    method = Method(
        model,
        objectives.fixers(model, losses.focal()),
        (transforms.perturb(attack, "base"),),
        partition.partitioned(by_label, labels),
        partition.trainable_mask(labels, by_label),
        {"base": BASE},
        0.9,
    )
    devices = Devices(sharding.mesh(), "shard_map")
    step = devices.parallelize(
        lambda *args, axis_name: train_step(*args, axis_name=axis_name, method=method, num_classes=3),
        in_sharded=(False, False, False, True, True),
        out_sharded=False,
    )
    state = devices.replicate(init_state(method, variables, jax.random.key(5)))
    data = devices.replicate(DeviceData(dataset.images, dataset.labels, dataset.index))
    for _ in range(3):
        state, _ = step(state, {"base": base}, data, np.arange(8, dtype=np.int32), np.ones(8, bool))
    found = sharding.fetch((state.params, state.model_state))
    assert_same(found[0]["base"], jax.device_get(base.params))
    assert_same(found[1], jax.device_get(variables.model_state))
    fixers = {key: leaf for key, leaf in found[0].items() if key != "base"}
    assert set(state.average) == set(fixers)
    for name, leaves in fixers.items():
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), leaves, jax.device_get(variables.params[name]))
        assert all(jax.tree.leaves(moved))
    fixer_size = sum(leaf.size for leaf in jax.tree.leaves(fixers))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == fixer_size


def test_preemption_saves_and_stops(tmp_path, dataset):
    asked = iter(range(1, 9))
    with pytest.raises(PreemptedError, match="stopped at step 4 of 9, state saved"):
        run_fit(tmp_path / "a", dataset, make_plan(), stop_requested=lambda: next(asked) == 4)
    assert restore_variables(str(tmp_path / "a/checkpoints")).step == 4
    resumed = run_fit(tmp_path / "a", dataset, make_plan())
    assert_same(resumed.state, run_fit(tmp_path / "b", dataset, make_plan()).state)
