"""The training step on several devices, and the loop around it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advjax import attacks
from advjax.data import Dataset, from_dataset
from advjax.models import blocks
from advjax.models.fixer import with_fixers
from advjax.runtime import collectives
from advjax.runtime import devices as sharding
from advjax.runtime.checkpoint import restore_variables
from advjax.runtime.devices import Devices
from advjax.runtime.metrics import read_metrics
from advjax.runtime.preemption import PreemptedError
from advjax.training import (
    augment,
    averaging,
    losses,
    mixing,
    objectives,
    optimizers,
    partition,
    trades,
    transforms,
    weight_perturbation,
)
from advjax.training.loop import Plan, fit
from advjax.training.step import (
    DeviceData,
    Method,
    advance,
    evaluation_variables,
    flattened,
    init_state,
    train_step,
)
from advjax.types import UserError, Variables
from support.compiling import BOTH_WAYS
from support.tiny_models import Tiny, assert_close

SHAPE = (8, 8, 1)
TINY = Tiny()
EMA = averaging.ema(0.9)
MAPPINGS = ("jit", "shard_map", pytest.param("pmap", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 22).astype(np.int32)
    images = rng.integers(0, 100, (22, *SHAPE)).astype(np.uint8) + (50 * labels[:, None, None, None]).astype(np.uint8)
    return Dataset("toy", images, labels, np.arange(22, dtype=np.int32) + 7, ("a", "b", "c"))


def make_method(average=EMA):
    """Adversarial training of a small network: augmentation, attack on the model itself, BatchNorm, momentum, decay."""
    variables = blocks.init(TINY, jax.random.key(0), SHAPE)
    labels = partition.label_params(variables.params, (), "trained")
    by_label = {"trained": optimizers.sgd(0.05, 0.9, weight_decay=1e-3)}
    steps = (
        transforms.augment(augment.pad_crop(1, "constant")),
        transforms.perturb(attacks.pgd(attacks.linf(0.05), num_steps=2, step_size=0.03, returns="last")),
    )
    method = Method(
        TINY,
        objectives.supervised(TINY, losses.cross_entropy),
        steps,
        partition.partitioned(by_label, labels),
        partition.trainable_mask(labels, by_label),
        {},
        average,
    )
    return method, variables


def light_method(objective=None, steps=(), average=None):
    """Training of a network that compiles quickly."""
    variables = blocks.init(TINY, jax.random.key(0), SHAPE)
    objective = objective or objectives.supervised(TINY, losses.cross_entropy)
    trainable = jax.tree.map(lambda _: True, variables.params)
    return Method(TINY, objective, steps, optimizers.sgd(0.05, 0.9), trainable, {}, average), variables


def bare_step(state, sources, data, positions, mask, *, axis_name, method, num_classes):
    """Moves the weights, with metrics of the step and its examples, for tests of all that is around a step."""
    params = jax.tree.map(lambda leaf: 0.9 * leaf, state.params)
    # NaN where the weights are.
    loss = state.step + 0 * jnp.sum(state.params["kernel"])
    loss += collectives.mean_over(jnp.mean(data.labels[positions] * mask), axis_name)
    return advance(state.replace(params=params), method), {"loss": loss}


def bare_method(step=bare_step):
    """Training without a network."""
    params = {"kernel": np.linspace(1, 2, 6, dtype=np.float32), "bias": np.ones(3, np.float32)}
    trainable = jax.tree.map(lambda _: True, params)
    objective = objectives.supervised(TINY, losses.cross_entropy)
    method = Method(TINY, objective, (), optimizers.sgd(0.05, 0.9), trainable, {}, step=step)
    return method, Variables(params, {})


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
    """Parameters after a few steps, the third with a partly padded batch."""
    devices = Devices(sharding.mesh(), mapping)
    step = devices.parallelize(
        lambda *args, axis_name: train_step(*args, axis_name=axis_name, method=method, num_classes=3),
        in_sharded=(False, False, False, True, True),
        out_sharded=False,
    )
    state = devices.replicate(init_state(method, variables, jax.random.key(5)))
    data = devices.replicate(flattened(dataset.images, dataset.labels, dataset.index))
    for number in range(count):
        positions = ((np.arange(8) + 8 * number) % 22).astype(np.int32)
        mask = np.arange(8) + 8 * number % 24 < 22
        state, metrics = step(state, {}, data, positions, mask)
    return sharding.fetch((state.params, state.model_state, state.average, metrics))


@pytest.fixture(scope="module")
def on_one_device(dataset):
    """What the steps of ``some_steps`` give without devices to share them."""
    method, variables = make_method()

    @jax.jit
    def single(state, positions, mask):
        data = DeviceData(jnp.asarray(dataset.images), jnp.asarray(dataset.labels), jnp.asarray(dataset.index))
        return train_step(state, {}, data, positions, mask, axis_name=None, method=method, num_classes=3)

    state = init_state(method, variables, jax.random.key(5))
    for number in range(4):
        positions = ((np.arange(8) + 8 * number) % 22).astype(np.int32)
        state, metrics = single(state, positions, np.arange(8) + 8 * number % 24 < 22)
    return jax.device_get((state.params, state.model_state, state.average, metrics))


@pytest.mark.optimized
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_every_mapping_over_four_devices_gives_the_single_device_step(dataset, on_one_device, mapping):
    assert len(jax.devices()) == 4
    found = some_steps(mapping, dataset, *make_method())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, on_one_device)


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


class InterruptedRunError(Exception):
    pass


@pytest.fixture(scope="module")
def averaged_method():
    """Weights averaged from the second step on, with statistics that are refreshed."""
    return make_method(averaging.swa(start=2, refresh_steps=2))


@pytest.fixture(scope="module", params=BOTH_WAYS)
def compiled(request):
    return request.param


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, dataset, averaged_method, compiled):
    """``(folder, found)`` of a run on images that lie on the devices, and that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run_fit(folder, dataset, make_plan(), method=averaged_method)


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, dataset, averaged_method, undisturbed):
    folder, expected = undisturbed
    calls = []

    def dying(variables):
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedRunError
        return constant_score(variables)

    with pytest.raises(InterruptedRunError):
        run_fit(tmp_path, dataset, make_plan(), dying, averaged_method)
    resumed = run_fit(tmp_path, dataset, make_plan(), method=averaged_method)
    assert resumed.step == expected.step == 9
    chex.assert_trees_all_equal(resumed.state, expected.state)
    assert read_metrics(folder) == read_metrics(tmp_path)


def test_a_finished_run_is_left_alone(tmp_path, dataset):
    run_fit(tmp_path, dataset, make_plan(num_steps=2), method=bare_method())
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def forbidden(variables):
        raise AssertionError("validated again")

    run_fit(tmp_path, dataset, make_plan(num_steps=2), forbidden, bare_method())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path, dataset):
    scores = iter([0.2, 0.9, 0.4])
    run_fit(tmp_path, dataset, make_plan(), lambda variables: {"score": next(scores)}, bare_method())
    best = restore_variables(str(tmp_path / "checkpoints"), which="best", best_metric="score")
    last = restore_variables(str(tmp_path / "checkpoints"))
    assert (best.step, last.step) == (6, 9)
    kernels = [found.state["params"]["kernel"] for found in (best, last)]
    assert not np.array_equal(*kernels)


def test_the_average_is_what_is_evaluated(dataset):
    method, variables = light_method(average=averaging.ema(0.5))
    params, model_state, average, _ = some_steps("jit", dataset, method, variables)
    found = evaluation_variables({"params": params, "model_state": model_state, "average": average})
    chex.assert_trees_all_equal(found, Variables(average["params"], average["model_state"]))
    assert not np.array_equal(found.params["block_head"]["dense"]["kernel"], params["block_head"]["dense"]["kernel"])
    plain, variables = light_method()
    params, model_state, average, _ = some_steps("jit", dataset, plain, variables)
    assert average == {}
    chex.assert_trees_all_equal(
        evaluation_variables({"params": params, "model_state": model_state, "average": {}}),
        Variables(params, model_state),
    )


def test_the_frozen_base_stays_bit_identical_and_costs_no_memory(dataset, compiled):
    base = blocks.init(TINY, jax.random.key(0), SHAPE)
    model = with_fixers(TINY, after=("conv",), reduction=1)
    variables = blocks.graft(blocks.init(model, jax.random.key(1), SHAPE), base)
    labels = partition.label_params(variables.params, (("^patches_", "trained"),), "frozen")
    by_label = {"trained": optimizers.sgd(0.1, 0.9, weight_decay=0.1), "frozen": partition.FROZEN}
    attack = attacks.bim(attacks.linf(0.05), num_steps=2, step_size=0.03)
    method = Method(
        model,
        objectives.fixers(model, losses.focal()),
        (transforms.perturb(attack, "base"),),
        partition.partitioned(by_label, labels),
        partition.trainable_mask(labels, by_label),
        {"base": TINY},
        EMA,
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
    chex.assert_trees_all_equal(found[0]["base"], jax.device_get(base.params))
    chex.assert_trees_all_equal(found[1], jax.device_get(variables.model_state))
    fixers = {key: leaf for key, leaf in found[0].items() if key != "base"}
    assert set(state.average["params"]) == set(fixers)
    for name, leaves in fixers.items():
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), leaves, jax.device_get(variables.params[name]))
        assert all(jax.tree.leaves(moved))
    fixer_size = sum(leaf.size for leaf in jax.tree.leaves(fixers))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == fixer_size


def test_preemption_saves_and_stops(tmp_path, dataset):
    asked = iter(range(1, 9))
    with pytest.raises(PreemptedError, match="stopped at step 4 of 9, state saved"):
        run_fit(tmp_path / "a", dataset, make_plan(), method=bare_method(), stop_requested=lambda: next(asked) == 4)
    assert restore_variables(str(tmp_path / "a/checkpoints")).step == 4
    resumed = run_fit(tmp_path / "a", dataset, make_plan(), method=bare_method())
    undisturbed = run_fit(tmp_path / "b", dataset, make_plan(), method=bare_method())
    chex.assert_trees_all_equal(resumed.state, undisturbed.state)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_records_of_an_interrupted_run_average_all_their_steps(tmp_path, dataset, stop):
    """Wherever it stops: before a record, after one, and between a checkpoint and a record."""
    plan = make_plan(num_steps=8, log_every=4, validate_every=3)
    method = bare_method()
    run_fit(tmp_path / "a", dataset, plan, method=method)
    asked = iter(range(1, 9))
    with pytest.raises(PreemptedError):
        run_fit(tmp_path / "b", dataset, plan, method=method, stop_requested=lambda: next(asked) == stop)
    run_fit(tmp_path / "b", dataset, plan, method=method)
    assert read_metrics(tmp_path / "a") == read_metrics(tmp_path / "b")


def test_a_resumed_run_says_where_it_goes_on(tmp_path, dataset, capsys):
    asked = iter(range(1, 9))
    with pytest.raises(PreemptedError):
        run_fit(tmp_path, dataset, make_plan(), method=bare_method(), stop_requested=lambda: next(asked) == 2)
    assert "resuming" not in capsys.readouterr().out
    run_fit(tmp_path, dataset, make_plan(), method=bare_method())
    assert capsys.readouterr().out == "toy: resuming at step 2 of 9\n"


def diverging(step, what):
    """Training in which the loss, or the weights, become NaN at a step."""

    def diverge(state, *args, **kwargs):
        new, metrics = bare_step(state, *args, **kwargs)
        now = state.step + 1 == step
        if what == "loss":
            return new, {**metrics, "loss": jnp.where(now, jnp.nan, metrics["loss"])}
        return new.replace(params=jax.tree.map(lambda leaf: jnp.where(now, jnp.nan, leaf), new.params)), metrics

    return bare_method(diverge)


@pytest.mark.parametrize(
    ("what", "step", "said"),
    [
        ("loss", 1, "the training loss is nan at step 1; nothing was saved before"),
        ("loss", 3, "the training loss is nan at step 3; nothing was saved before"),
        ("loss", 5, "the training loss is nan at step 5; the checkpoint of step 3 is kept"),
        ("loss", 9, "the training loss is nan at step 9; the checkpoint of step 6 is kept"),
        ("weights", 4, "the training loss is nan at step 5; the checkpoint of step 3 is kept"),
        ("weights", 6, "the weights are NaN or infinite at step 6; the checkpoint of step 3 is kept"),
        ("weights", 9, "the weights are NaN or infinite at step 9; the checkpoint of step 6 is kept"),
    ],
)
def test_divergence_ends_training_and_is_never_saved(tmp_path, dataset, what, step, said):
    scores = iter([0.1, 0.2, 0.3])
    with pytest.raises(UserError, match=f"^toy: {said}") as error:
        run_fit(tmp_path, dataset, make_plan(), lambda variables: {"score": next(scores)}, diverging(step, what))
    assert "\n" not in str(error.value)
    if "kept" in said:
        for which in ("latest", "best"):
            found = restore_variables(str(tmp_path / "checkpoints"), which=which, best_metric="score")
            assert f"step {found.step} is kept" in said
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.state))
    assert all(np.isfinite(row["loss"]) for row in read_metrics(tmp_path) if row["kind"] == "train")


def test_a_divergence_is_not_saved_on_preemption_either(tmp_path, dataset):
    asked = iter(range(1, 9))
    with pytest.raises(UserError, match="the weights are NaN or infinite at step 4; the checkpoint of step 3 is kept"):
        run_fit(tmp_path, dataset, make_plan(), method=diverging(4, "weights"), stop_requested=lambda: next(asked) == 4)
    assert restore_variables(str(tmp_path / "checkpoints")).step == 3


def test_a_finished_run_needs_no_optimizer_state(tmp_path, dataset):
    """One flipped byte there, in the only checkpoint, does not matter; in an unfinished run it does."""
    bits = np.random.default_rng(0).integers(0, 2**32, 4000, np.uint32)
    keep = optax.GradientTransformation(
        lambda params: jnp.asarray(bits), lambda updates, state, params: (updates, state)
    )
    method, variables = bare_method()
    method = method._replace(optimizer=optax.chain(method.optimizer, keep))
    plan = make_plan(num_steps=2, validate_every=2)
    finished = run_fit(tmp_path, dataset, plan, method=(method, variables))
    snippet = bits.tobytes()[400:416]
    (path,) = [path for path in tmp_path.rglob("d/*") if snippet in path.read_bytes()]
    content = bytearray(path.read_bytes())
    content[content.index(snippet)] ^= 1
    path.write_bytes(content)
    again = run_fit(tmp_path, dataset, plan, some_scores([]), method=(method, variables))
    chex.assert_trees_all_equal(again.state, finished.state)
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged .*opt_state/1 differs"):
        run_fit(tmp_path, dataset, plan._replace(num_steps=4), method=(method, variables))


def test_trades_with_perturbed_weights_is_the_same_over_four_devices(dataset):
    attack = trades.most_divergent(attacks.linf(0.05), num_steps=2, step_size=0.03)
    objective = weight_perturbation.with_weight_perturbation(trades.trades(TINY, losses.cross_entropy), 0.01)
    method, variables = light_method(objective, (transforms.perturb(attack),))
    expected = some_steps("jit", dataset, method, variables)
    for mapping in ("shard_map", "pmap"):
        found = some_steps(mapping, dataset, method, variables)
        assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_noisy_twins_are_the_same_over_four_devices(dataset):
    steps = (mixing.noisy_twins(0.1, "self"),)
    method, variables = light_method(steps=steps)
    expected = some_steps("jit", dataset, method, variables)
    assert_close(some_steps("shard_map", dataset, method, variables), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "mapping", ["shard_map", *(pytest.param(name, marks=pytest.mark.slow) for name in ("jit", "pmap"))]
)
def test_mixing_runs_on_every_mapping(dataset, mapping):
    """Results differ between mappings, because partners come from the same device."""
    steps = (mixing.mixup(1e6), mixing.mixup(1.0, per_sample=True))
    method, variables = light_method(mixing.manifold_mixup(TINY, losses.cross_entropy), steps)
    params, _, _, metrics = some_steps(mapping, dataset, method, variables, count=1)
    assert np.isfinite(metrics["loss"]) and 0 <= metrics["accuracy"] <= 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def some_scores(scores):
    scores = iter(scores)
    return lambda variables: {"score": next(scores)}


def test_patience_ends_training_and_survives_an_interruption(tmp_path, dataset):
    # 0.5 again is no new best, so two validations in a row are in vain at step 4.
    scores = [0.2, 0.5, 0.4, 0.5, 0.9]
    plan = make_plan(validate_every=1, patience=2)
    undisturbed = run_fit(tmp_path / "a", dataset, plan, some_scores(scores), bare_method())
    assert undisturbed.step == 4
    asked = iter(range(1, 9))
    with pytest.raises(PreemptedError, match="stopped at step 3"):
        run_fit(
            tmp_path / "b",
            dataset,
            plan,
            some_scores(scores),
            bare_method(),
            stop_requested=lambda: next(asked) == 3,
        )
    resumed = run_fit(tmp_path / "b", dataset, plan, some_scores(scores[3:]), bare_method())
    assert resumed.step == 4
    chex.assert_trees_all_equal(resumed.state, undisturbed.state)
    best = restore_variables(str(tmp_path / "b/checkpoints"), which="best", best_metric="score")
    # The newer one of equal scores is the best.
    assert best.step == 4 and best.metrics["score"] == 0.5
    # A run that has ended early is a finished run.
    run_fit(tmp_path / "b", dataset, plan, some_scores([]), bare_method())


def test_a_score_that_is_not_a_number_is_no_new_best(tmp_path, dataset):
    plan = make_plan(validate_every=1, patience=2, select="last")
    found = run_fit(
        tmp_path, dataset, plan, some_scores([float("nan"), 0.1, float("nan"), float("nan")]), bare_method()
    )
    assert found.step == 4


def test_without_patience_training_goes_on(tmp_path, dataset):
    scores = [0.9, *[0.1] * 8]
    assert run_fit(tmp_path, dataset, make_plan(validate_every=1), some_scores(scores), bare_method()).step == 9


def test_batch_statistics_of_the_average_are_refreshed_before_validation(tmp_path, dataset):
    seen = {}
    for count in (0, 30):
        method = light_method(average=averaging.swa(2, refresh_steps=count))
        plan = make_plan(num_steps=4, validate_every=4)
        seen[count] = run_fit(tmp_path / str(count), dataset, plan, method=method)
    plain, refreshed = (evaluation_variables(seen[count].state) for count in (0, 30))
    chex.assert_trees_all_equal(plain.params, refreshed.params)
    chex.assert_trees_all_equal(seen[0].state["model_state"], seen[30].state["model_state"])
    images = dataset.images.astype(np.float32) / 255
    wanted = blocks.apply(TINY, plain, images, train=True)[1]
    # One batch of all the data moves the running averages by a tenth of what is left to go.
    left = jax.tree.map(
        lambda before, after: np.abs(after - before).max(),
        refreshed.model_state,
        blocks.apply(TINY, refreshed, images, train=True)[1],
    )
    far = jax.tree.map(lambda before, after: np.abs(after - before).max(), plain.model_state, wanted)
    assert max(jax.tree.leaves(left)) < 0.2 * max(jax.tree.leaves(far))


def test_streamed_images_train_as_those_on_the_device(tmp_path, dataset, averaged_method, undisturbed):
    """Also when the run is interrupted, and when the first batches refresh the statistics of the average."""
    asked = iter(range(1, 9))
    source = from_dataset(dataset)
    with pytest.raises(PreemptedError):
        run_fit(tmp_path, source, make_plan(), method=averaged_method, stop_requested=lambda: next(asked) == 4)
    streamed = run_fit(tmp_path, source, make_plan(), method=averaged_method)
    chex.assert_trees_all_equal(undisturbed[1].state, streamed.state)
