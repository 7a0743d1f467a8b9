"""Several training steps per call of the compiled program."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.data import Dataset, from_dataset
from advjax.runtime import devices as sharding
from advjax.runtime.checkpoint import restore_variables
from advjax.runtime.devices import Devices
from advjax.runtime.metrics import read_metrics
from advjax.runtime.preemption import PreemptedError
from advjax.training import augment, averaging, losses, mixing, objectives, optimizers, train_log, transforms
from advjax.training.calls import calls, run_steps
from advjax.training.loop import Plan, fit
from advjax.training.step import Method, flattened, init_state, train_step
from advjax.types import UserError
from support import tiny_models as tiny

MODEL = tiny.Tiny()


@pytest.fixture(scope="module")
def dataset():
    data = tiny.make_data(22)
    return Dataset("toy", *map(np.asarray, (data.images, data.labels, data.index)), ("a", "b", "c"))


def make_method(whole=False, **options):
    """Augmentation alone draws from the key of its step; an attack and mixup take four times as long to compile."""
    variables = tiny.fresh(MODEL)
    pgd = attacks.pgd(attacks.linf(0.05), num_steps=2, step_size=0.03, returns="last")
    augmentation = transforms.augment(augment.pad_crop(1, "constant"))
    steps = (augmentation, transforms.perturb(pgd), mixing.mixup()) if whole else (augmentation,)
    objective = objectives.supervised(MODEL, losses.cross_entropy)
    trainable = jax.tree.map(lambda _: True, variables.params)
    options = {"average": averaging.ema(0.9), **options}
    return Method(MODEL, objective, steps, optimizers.sgd(0.05, 0.9), trainable, {}, **options), variables


def run_fit(folder, dataset, steps_per_call, method=None, mapping="shard_map", num_devices=1, **options):
    method, variables = method or make_method()
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:num_devices]), ("data",))
    plan = Plan(9, 8, 4, 7, 1, "last", "score", steps_per_call=steps_per_call)
    fit(
        "toy",
        method,
        plan,
        variables,
        dataset,
        {},
        lambda variables: {"score": 0.5},
        folder=str(folder),
        devices=Devices(mesh, mapping),
        config={},
        notify=lambda line: None,
        **options,
    )
    return restore_variables(f"{folder}/checkpoints").state


def assert_close_records(folder, other):
    """Equal records up to rounding."""
    found, wanted = (
        [(row.pop("step"), row.pop("kind"), row) for row in read_metrics(path)] for path in (folder, other)
    )
    for (step, kind, values), (wanted_step, wanted_kind, wanted_values) in zip(found, wanted, strict=True):
        assert (step, kind) == (wanted_step, wanted_kind)
        assert values == pytest.approx(wanted_values, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize(
    ("start", "counts"),
    [(0, [3, 1, 3, 1, 1]), (2, [1, 1, 3, 1, 1]), (4, [3, 1, 1]), (5, [1, 1, 1, 1]), (9, [])],
)
def test_calls_end_at_every_record_and_validation(start, counts):
    """Records after 4 and 8 steps, validation after 7 and 9; a call has three steps or one."""
    batches = ((None, np.full(2, step), np.ones(2, bool)) for step in range(start, 9))
    found = list(calls(batches, start, 9, 3, 4, 7))
    assert [count for count, _ in found] == counts
    # Positions are [rows] or [rows, steps], and equal to the step here.
    steps = [step for _, (_, positions, _) in found for step in np.atleast_1d(positions[0])]
    assert steps == list(range(start, 9))


@pytest.mark.parametrize(
    ("mapping", "whole"),
    [
        ("shard_map", True),
        ("jit", False),
        *(pytest.param(mapping, True, marks=pytest.mark.slow) for mapping in ("jit", "pmap")),
    ],
)
def test_several_steps_are_the_single_ones(tmp_path, dataset, mapping, whole):
    """State and records, over two devices, on a dataset that lies there and on one that is streamed."""
    setup = {"mapping": mapping, "num_devices": 2, "method": make_method(whole)}
    single = run_fit(tmp_path / "single", dataset, 1, **setup)
    several = run_fit(tmp_path / "several", dataset, 3, **setup)
    streamed = run_fit(tmp_path / "streamed", from_dataset(dataset), 3, **setup)
    tiny.assert_close(several, single, rtol=2e-4, atol=2e-5)
    tiny.assert_close(streamed, single, rtol=2e-4, atol=2e-5)
    steps = [(row["step"], row["kind"]) for row in read_metrics(tmp_path / "several")]
    assert steps == [(4, "train"), (7, "validation"), (8, "train"), (9, "train"), (9, "validation")]
    assert_close_records(tmp_path / "several", tmp_path / "single")
    assert_close_records(tmp_path / "streamed", tmp_path / "single")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, dataset):
    """``(folder, state)`` of a run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run_fit(folder, dataset, 3)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stop_after_any_call_resumes_to_the_same_bits(tmp_path, dataset, undisturbed, stop):
    folder, state = undisturbed
    asked = iter(range(1, 9))
    with pytest.raises(PreemptedError, match=f"stopped at step {[3, 4, 7][stop - 1]} of 9, state saved"):
        run_fit(tmp_path, dataset, 3, stop_requested=lambda: next(asked) == stop)
    chex.assert_trees_all_equal(run_fit(tmp_path, dataset, 3), state)
    assert read_metrics(folder) == read_metrics(tmp_path)


def test_a_run_resumes_in_the_middle_of_what_would_have_been_a_call(tmp_path, dataset, undisturbed):
    folder, state = undisturbed
    asked = iter(range(1, 9))
    with pytest.raises(PreemptedError, match="stopped at step 2 of 9"):
        run_fit(tmp_path, dataset, 1, stop_requested=lambda: next(asked) == 2)
    tiny.assert_close(run_fit(tmp_path, dataset, 3), state, rtol=2e-4, atol=2e-5)
    assert_close_records(tmp_path, folder)


@pytest.mark.parametrize(
    ("step", "kept"),
    [(2, "nothing was saved before"), (5, "nothing was saved before"), (9, "the checkpoint of step 7 is kept")],
)
def test_a_loss_that_is_not_a_number_is_reported_at_its_own_step(tmp_path, dataset, step, kept):
    method, variables = make_method()

    def diverging(state, *args, **kwargs):
        new, metrics = train_step(state, *args, **kwargs)
        return new, {**metrics, "loss": jnp.where(state.step + 1 == step, jnp.nan, metrics["loss"])}

    with pytest.raises(UserError, match=f"the training loss is nan at step {step}; {kept}"):
        run_fit(tmp_path, dataset, 3, (method._replace(step=diverging), variables))
    assert all(np.isfinite(row["loss"]) for row in read_metrics(tmp_path) if row["kind"] == "train")


def test_metrics_come_back_once_per_call(tmp_path, dataset, monkeypatch):
    fetched = []
    monkeypatch.setattr(train_log, "fetch", lambda tree: fetched.append(jax.device_get(tree)) or fetched[-1])
    run_fit(tmp_path, dataset, 3)
    assert [np.shape(metrics["loss"]) for metrics in fetched] == [(3,), (), (3,), (), ()]


@pytest.mark.parametrize("mapping", sharding.MAPPINGS)
def test_the_state_is_donated(mapping):
    method, variables = make_method()
    devices = Devices(jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",)), mapping)
    step = devices.parallelize(
        lambda *args, axis_name: run_steps(*args, axis_name=axis_name, method=method, num_classes=tiny.CLASSES),
        in_sharded=(False, False, False, True, True),
        out_sharded=False,
        donate=(0,),
    )
    data = tiny.make_data()
    data = devices.replicate(flattened(data.images, data.labels, data.index))
    state = devices.replicate(init_state(method, variables, jax.random.key(0)))
    step(state, {}, data, np.zeros((4, 3), np.int32), np.ones((4, 3), bool))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state, state.average)))
