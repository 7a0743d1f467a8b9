"""Every mapping gives the single-device result, on virtual devices and in two real processes."""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advjax.runtime import collectives, distributed
from advjax.runtime import devices as sharding
from advjax.runtime.checkpoint import Checkpoints
from advjax.runtime.preemption import Preemption
from advjax.types import UserError

BATCH, EXAMPLES, STEPS = 16, 13, 3
OPTIMIZER = optax.sgd(0.5, momentum=0.9)  # Not Adam: it does not see the scale of a gradient.


class Net(nn.Module):
    axis_name: str | None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = nn.Conv(4, (3, 3), use_bias=False)(images)
        hidden = nn.BatchNorm(use_running_average=False, axis_name=self.axis_name)(hidden)
        return nn.Dense(5)(nn.relu(hidden).mean((1, 2)))


def train_step(state, batch, *, axis_name):
    """SGD on the mean loss of the rows that are not padding; noise per row, from the state's key."""
    step_key = jax.random.fold_in(state["rng"], state["step"])
    keys = jax.vmap(lambda index: jax.random.fold_in(step_key, index))(batch["index"])
    noise = jax.vmap(lambda key, image: 0.1 * jax.random.normal(key, image.shape))(keys, batch["images"])

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state["batch_stats"]}
        logits, updated = Net(axis_name).apply(variables, batch["images"] + noise, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return jnp.sum(losses * batch["mask"]), (losses, updated["batch_stats"])

    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (losses, batch_stats)), grads = gradient_fn(collectives.varying(state["params"], axis_name))
    loss, grads, count = collectives.mean_over((loss, grads, jnp.sum(batch["mask"])), axis_name)
    updates, opt_state = OPTIMIZER.update(jax.tree.map(lambda g: g / count, grads), state["opt_state"])
    params = optax.apply_updates(state["params"], updates)
    new = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}
    return state | new | {"step": state["step"] + 1}, {"loss": loss / count}, losses


@functools.cache
def make_state():
    variables = jax.jit(Net(None).init)(jax.random.key(0), jnp.zeros((1, 6, 6, 3)))
    start = {"step": jnp.int32(0), "rng": jax.random.key(7), "opt_state": OPTIMIZER.init(variables["params"])}
    return variables | start


def make_batch():
    """13 examples, padded to 16 rows with large values that must not count in the loss."""
    rng = np.random.default_rng(0)
    images = rng.random((BATCH, 6, 6, 3), dtype=np.float32)
    index = np.arange(BATCH, dtype=np.int32)
    return {"images": images, "labels": index % 5, "index": index, "mask": index < EXAMPLES}


def process_rows(batch):
    rows = BATCH // jax.process_count()
    return jax.tree.map(lambda leaf: leaf[rows * jax.process_index() :][:rows], batch)


def train(mapping: str):
    mesh = sharding.mesh()
    options = {"in_sharded": (False, True), "out_sharded": (False, False, True), "donate": (0,)}
    step = sharding.parallelize(train_step, mapping, mesh, **options)
    state, batch = sharding.replicate(make_state(), mesh), sharding.shard(process_rows(make_batch()), mesh)
    for _ in range(STEPS):
        state, metrics, losses = step(state, batch)
        jax.block_until_ready(losses)
    return state, metrics, losses


@functools.cache
def unmapped():
    step = jax.jit(functools.partial(train_step, axis_name=None))
    state = make_state()
    for _ in range(STEPS):
        state, metrics, losses = step(state, make_batch())
    return sharding.fetch((state, metrics, losses))


def assert_close(found, expected) -> None:
    chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("mapping", sharding.MAPPINGS)
def test_training_equals_the_unmapped_step(mapping):
    assert sharding.mesh().size == 4
    state, metrics, losses = train(mapping)
    assert_close(sharding.fetch((state, metrics, losses)), unmapped())
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((state, metrics)))
    assert losses.sharding.spec == jax.sharding.PartitionSpec("data") and losses.shape == (BATCH,)
    moved = np.abs(sharding.fetch(state["params"]["Dense_0"]["kernel"]) - make_state()["params"]["Dense_0"]["kernel"])
    assert moved.max() > 0.05


@pytest.mark.parametrize("mapping", sharding.MAPPINGS)
def test_gradient_has_the_right_scale(mapping):
    def gradient(weight, rows, *, axis_name):
        grads = jax.grad(lambda w: jnp.mean(w * rows))(collectives.varying(weight, axis_name))
        return collectives.mean_over(grads, axis_name)

    gradient = sharding.parallelize(gradient, mapping, sharding.mesh(), in_sharded=(False, True), out_sharded=False)
    assert gradient(np.float32(3.0), np.arange(8, dtype=np.float32)) == pytest.approx(3.5)


@pytest.mark.parametrize("mapping", sharding.MAPPINGS)
def test_rows_stay_in_order_and_arguments_come_from_anywhere(mapping):
    mesh = sharding.mesh()
    keys = jax.random.split(jax.random.key(1), 8)

    def replica(rows, scale, keys, *, axis_name):
        noise = jax.vmap(jax.random.uniform)(keys)
        return {"rows": rows * scale, "noise": noise, "keys": keys, "pair": (rows.sum(-1), None)}

    mapped = sharding.parallelize(replica, mapping, mesh, in_sharded=(True, False, True), out_sharded=True)
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    on_one_device = jax.device_put(rows, jax.devices()[3])
    for given in (rows, jnp.asarray(rows), on_one_device, sharding.shard(rows, mesh)):
        out = mapped(given, 2.0, keys)
        np.testing.assert_array_equal(sharding.fetch(out["rows"]), rows * 2)
        np.testing.assert_array_equal(sharding.fetch(out["pair"][0]), rows.sum(-1))
        np.testing.assert_array_equal(sharding.fetch(out["noise"]), jax.vmap(jax.random.uniform)(keys))
        assert out["keys"].dtype == keys.dtype
        np.testing.assert_array_equal(sharding.fetch(out["keys"]), jax.random.key_data(keys))


@pytest.mark.parametrize(("mapping", "rounds"), [("shard_map", [1, 2, 5, 7]), ("pmap", [1, 2, 5, 7]), ("jit", [7] * 4)])
def test_a_loop_stops_on_each_device_by_itself(mapping, rounds):
    def count_down(rows, *, axis_name):
        body = lambda carry: (carry[0] - 1, carry[1] + 1)  # noqa: E731
        return jax.lax.while_loop(lambda carry: jnp.any(carry[0] > 0), body, (rows, jnp.zeros_like(rows)))[1]

    mapped = sharding.parallelize(count_down, mapping, sharding.mesh(), in_sharded=(True,), out_sharded=True)
    rows = np.array([1, 0, 2, 1, 5, 0, 3, 7], np.int32)
    np.testing.assert_array_equal(sharding.fetch(mapped(rows)), np.repeat(rounds, 2))


def test_without_axis_name_the_collectives_do_nothing():
    tree = {"a": jnp.arange(3.0)}
    for function in (collectives.mean_over, collectives.varying):
        assert function(tree, None) is tree


@pytest.mark.parametrize("mapping", sharding.MAPPINGS)
def test_donation_spares_the_source(mapping):
    mesh = sharding.mesh()
    aligned = np.zeros(4096 + 16, np.float32)
    aligned = aligned[-aligned.ctypes.data % 64 // 4 :][:4096]
    local = jnp.zeros(4096)
    add = lambda tree, *, axis_name: jax.tree.map(lambda leaf: leaf + 1, tree)  # noqa: E731
    mapped = sharding.parallelize(add, mapping, mesh, in_sharded=(False,), out_sharded=False, donate=(0,))
    state = sharding.replicate({"numpy": aligned, "jax": local, "again": local}, mesh)
    aligned[0] = 5.0
    for _ in range(3):
        state = mapped(state)
    assert all((leaf == 3).all() for leaf in jax.tree.leaves(sharding.fetch(state)))
    assert (local == 0).all() and aligned[0] == 5.0 and (aligned[1:] == 0).all()


@pytest.mark.parametrize("mapping", ["shard_map", "jit"])
def test_a_program_can_be_compiled_from_shapes_alone(mapping):
    mesh = sharding.mesh()
    options = {"in_sharded": (False, True), "out_sharded": (False, False, True)}
    step = sharding.parallelize(train_step, mapping, mesh, **options)
    state, batch = sharding.replicate(make_state(), mesh), sharding.shard(process_rows(make_batch()), mesh)
    compiled = step.lower(*jax.eval_shape(lambda *args: args, state, batch)).compile()
    for found, expected in zip(compiled(state, batch), step(state, batch), strict=True):
        chex.assert_trees_all_equal(*map(sharding.fetch, (found, expected)))


def test_a_program_of_pmap_cannot_be_compiled_from_shapes():
    mapped = sharding.parallelize(train_step, "pmap", sharding.mesh(), in_sharded=(False, True), out_sharded=False)
    with pytest.raises(UserError, match=r"'pmap' cannot be compiled ahead of time: choose 'shard_map' or 'jit'"):
        mapped.lower({}, {})


def test_sizes_and_names_are_checked():
    mesh = sharding.mesh()
    assert [sharding.pad_to_multiple(n, mesh) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]
    assert sharding.local_batch(12, mesh) == 12
    with pytest.raises(UserError, match=r"batch size 10 is not divisible by the 4 devices.* for example 12"):
        sharding.local_batch(10, mesh)
    with pytest.raises(UserError, match="batch size 0 is not"):
        sharding.local_batch(0, mesh)
    with pytest.raises(UserError, match=r"shape \(6, 2\) over 4 devices"):
        sharding.shard({"images": np.zeros((6, 2))}, mesh)
    with pytest.raises(UserError, match="unknown mapping 'vmap'; choose one of shard_map, pmap, jit"):
        sharding.parallelize(train_step, "vmap", mesh, in_sharded=(False,), out_sharded=False)
    with pytest.raises(TypeError, match="expected 1 arguments"):
        sharding.parallelize(train_step, "jit", mesh, in_sharded=(False,), out_sharded=False)(1, 2)


@pytest.mark.parametrize(
    ("mode", "variables", "message"),
    [
        ("yes", {}, "choose auto or none"),
        ("auto", {"ADVJAX_PROCESS_ID": "0"}, "without ADVJAX_COORDINATOR, ADVJAX_NUM_PROCESSES"),
        ("auto", {"ADVJAX_COORDINATOR": "h:1", "ADVJAX_NUM_PROCESSES": "2", "ADVJAX_PROCESS_ID": "2"}, "below"),
        ("auto", {"ADVJAX_COORDINATOR": "h:1", "ADVJAX_NUM_PROCESSES": "2", "ADVJAX_PROCESS_ID": "x"}, "whole number"),
    ],
)
def test_initialize_checks_what_it_is_given(monkeypatch, mode, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        distributed.initialize(mode)


SLURM = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"}


@pytest.mark.parametrize(
    ("variables", "joins"),
    [
        (SLURM, True),
        ({"SLURM_JOB_ID", "SLURM_NTASKS"}, False),
        ({"OMPI_MCA_orte_hnp_uri"}, True),
        ({"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"}, True),
        ({"KUBERNETES_SERVICE_HOST"}, False),
        (set(), False),
    ],
)
def test_clusters_are_recognized(monkeypatch, variables, joins):
    for name in SLURM | {"OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"}:
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, "1")
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    distributed.initialize("none")
    assert calls == []
    distributed.initialize("auto")
    assert calls == ([()] if joins else [])


def to_lists(tree) -> list:
    return [leaf.tolist() for leaf in jax.tree.leaves(sharding.fetch(tree))]


def work(folder: pathlib.Path) -> dict:
    """One process of several: trains under every mapping, saves, damages, restores, and is asked to stop."""
    distributed.initialize("auto")
    results = {}
    for mapping in sharding.MAPPINGS:
        state, metrics, losses = train(mapping)
        assert len(losses.addressable_shards) == 2
        results[mapping] = to_lists((state, metrics, losses))
    lines = []
    with Checkpoints(str(folder), save_every=1, keep_latest=2, notify=lines.append) as checkpoints:
        checkpoints.save(1, state, metrics={}, config={})
        checkpoints.save(2, sharding.replicate(make_state(), sharding.mesh()), metrics={}, config={})
        assert checkpoints.restore(state).step == 2
        if jax.process_index() == 0:
            (folder / "2" / "state" / "manifest.ocdbt").unlink()
        restored = checkpoints.restore(state)
        assert checkpoints.save(2, restored.state, metrics={}, config={})
        assert checkpoints.restore(state).step == 2
    with Preemption() as preemption:
        assert not preemption.requested()
        if jax.process_index() == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        questions = 1
        while not preemption.requested():
            time.sleep(0.05)
            questions += 1
    parts = sharding.gather_parts(np.full((1 + jax.process_index(), 2), jax.process_index()), (1, 2))
    assert parts.tolist() == [[0, 0], [1, 1], [1, 1]]
    assert to_lists(restored.state) == to_lists(state)
    return results | {"restored": [restored.step, len(lines)], "preempted": questions}


def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    common = {"ADVJAX_COORDINATOR": coordinator, "ADVJAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "2"}
    common["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # Compiling is most of the time.
    path = os.pathsep.join([str(pathlib.Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, str(tmp_path)]
    environments = [os.environ | common | {"ADVJAX_PROCESS_ID": str(index), "PYTHONPATH": path} for index in range(2)]
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for environment in environments
    ]
    try:
        outputs = [worker.communicate() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], outputs[0][1][-2000:] + outputs[1][1][-2000:]
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first["restored"] == [1, 1] and second["restored"] == [1, 0]
    assert first["preempted"] == second["preempted"]
    for mapping in sharding.MAPPINGS:
        assert first[mapping] == second[mapping]
        assert_close(first[mapping], to_lists(unmapped()))


if __name__ == "__main__":
    print(json.dumps(work(pathlib.Path(sys.argv[1]))))
