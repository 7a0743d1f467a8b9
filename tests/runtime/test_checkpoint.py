"""Checkpoints: what is saved is restored bit for bit, and damage is noticed and skipped."""

import logging
import pathlib
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from advjax.runtime import devices as sharding
from advjax.runtime.checkpoint import Checkpoints, Restored, restore_variables
from advjax.types import UserError

CONFIG = {"model": {"widths": [16, 32], "name": "cnn"}, "epsilon": 8 / 255, "seed": 3}


class State(flax.struct.PyTreeNode):
    step: jax.Array
    params: dict
    model_state: dict
    opt_state: optax.OptState
    rng: jax.Array
    average: dict | None = None


def make_state(seed: int) -> State:
    kernel, head = (jax.random.normal(key, (40, 50)) for key in jax.random.split(jax.random.key(seed)))
    params = {"conv": {"kernel": kernel, "bias": jnp.full(50, jnp.nan)}, "head": head.astype(jnp.bfloat16)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.int32(seed), params, {}, optimizer.init(params), jax.random.key(seed))


def words(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(sharding.fetch(tree))]


def assert_same_bits(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [leaf.dtype for leaf in jax.tree.leaves(expected)]
    assert words(found) == words(expected)


def save_run(folder: pathlib.Path, scores: dict[int, float], keep_latest: int = 2) -> None:
    with Checkpoints(str(folder), save_every=1, best_metric="robust", keep_latest=keep_latest) as checkpoints:
        for step, score in scores.items():
            assert checkpoints.save(step, make_state(step), metrics={"robust": score, "loss": step / 3}, config=CONFIG)


def restore(folder: pathlib.Path, which: str = "latest", **kwargs) -> tuple[Restored | None, list[str]]:
    lines: list[str] = []
    with Checkpoints(
        str(folder), save_every=1, best_metric="robust", keep_latest=2, notify=lines.append
    ) as checkpoints:
        return checkpoints.restore(make_state(0), which=which, **kwargs), lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    save_run(folder, {1: 0.5, 2: 0.1, 3: 0.2})
    return folder


@pytest.fixture
def run(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole, tmp_path / "checkpoints"))


def steps(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_is_exact(run):
    restored, lines = restore(run)
    assert (restored.step, restored.metrics, restored.config, lines) == (3, {"robust": 0.2, "loss": 1.0}, CONFIG, [])
    assert_same_bits(restored.state, make_state(3))
    assert jax.random.uniform(restored.state.rng) == jax.random.uniform(jax.random.key(3))


def test_nothing_there(tmp_path):
    assert restore(tmp_path / "new") == (None, [])
    with pytest.raises(UserError, match="no checkpoint in"):
        restore_variables(str(tmp_path / "new"))


def test_best_is_restored(run):
    restored, lines = restore(run, "best")
    assert (restored.step, lines) == (1, [])
    assert_same_bits(restored.state, make_state(1))


@pytest.mark.parametrize(
    ("keep_latest", "scores", "kept", "best"),
    [
        (1, {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.2}, ["2", "4"], 2),
        (2, {1: 0.9, 2: 0.1, 3: 0.2, 4: 0.3}, ["1", "3", "4"], 1),
        (1, {1: 0.5, 2: 0.5, 3: 0.4}, ["2", "3"], 2),
        (1, {1: 0.5, 2: float("nan"), 3: float("nan")}, ["1", "3"], 1),
        (1, {1: float("nan"), 2: float("-inf")}, ["2"], 2),
        (1, {1: float("nan"), 2: float("nan")}, ["2"], None),
    ],
)
def test_retention(tmp_path, keep_latest, scores, kept, best):
    save_run(tmp_path, scores, keep_latest)
    assert steps(tmp_path) == kept
    with Checkpoints(str(tmp_path), save_every=1, best_metric="robust", keep_latest=keep_latest) as checkpoints:
        assert checkpoints.latest_step() == max(scores)
        if best is None:
            with pytest.raises(UserError, match="has the metric 'robust'"):
                checkpoints.restore(make_state(0), which="best")
        else:
            assert checkpoints.restore(make_state(0), which="best").step == best
        # A later run keeps the best of an earlier one.
        checkpoints.save(max(scores) + 1, make_state(9), metrics={"loss": 1.0}, config=CONFIG)
    if best is not None:
        assert str(best) in steps(tmp_path)
    assert str(max(scores) + 1) in steps(tmp_path)


def test_intervals_and_forced_saves(tmp_path):
    with Checkpoints(str(tmp_path), save_every=10, keep_latest=9) as checkpoints:
        save = lambda step, **kwargs: checkpoints.save(step, make_state(step), metrics={}, config={}, **kwargs)  # noqa: E731
        assert [step for step in range(25) if save(step)] == [10, 20]
        assert save(24, force=True)
        assert not save(24, force=True)
        assert not save(20)
    assert steps(tmp_path) == ["10", "20", "24"]


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    mesh = sharding.mesh()
    state = sharding.replicate({"w": np.ones((300, 300), np.float32)}, mesh)
    advance = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)
    with Checkpoints(str(tmp_path), save_every=1, keep_latest=9) as checkpoints:
        for step in (1, 2, 3):
            state = advance(state)
            checkpoints.save(step, state, metrics={}, config={})
            state = advance(state)
    for step, value in ((3, 32.0), (2, 8.0), (1, 2.0)):
        restored = restore_variables(str(tmp_path), names=("w",))
        assert restored.step == step
        np.testing.assert_array_equal(restored.state["w"], value)
        shutil.rmtree(tmp_path / str(step))


def data_file(step: pathlib.Path) -> pathlib.Path:
    return max((step / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


def truncate(step: pathlib.Path) -> None:
    path = data_file(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(step: pathlib.Path) -> None:
    path = data_file(step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def garble_the_description(step: pathlib.Path) -> None:
    path = step / "about" / "metadata"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))


def half_copy(step: pathlib.Path) -> None:
    for path in sorted(step.rglob("*"))[6:]:
        if path.is_file():
            path.unlink()


DAMAGES = {
    "truncated data": truncate,
    "flipped bit": flip_a_bit,
    "missing data": lambda step: data_file(step).unlink(),
    "missing manifest": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "garbled tree": lambda step: (step / "state" / "_METADATA").write_text("{"),
    "missing state": lambda step: shutil.rmtree(step / "state"),
    "altered config": garble_the_description,
    "torn description": lambda step: (step / "about" / "metadata").write_text('{"step": 3'),
    "half copied": half_copy,
    "empty": lambda step: [shutil.rmtree(step), step.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_passed_over_and_does_not_block(run, damage, capfd, caplog):
    damage(run / "3")
    lines: list[str] = []
    with Checkpoints(str(run), save_every=1, best_metric="robust", keep_latest=2, notify=lines.append) as checkpoints:
        restored = checkpoints.restore(make_state(0))
        assert restored.step == 2
        assert_same_bits(restored.state, make_state(2))
        assert checkpoints.latest_step() == 2
        assert checkpoints.save(3, make_state(3), metrics={"robust": 0.9}, config=CONFIG)
        assert checkpoints.restore(make_state(0), which="best").step == 3
        assert_same_bits(checkpoints.restore(make_state(0)).state, make_state(3))
    assert len(lines) == 1
    assert all(part in lines[0] for part in ("step 3", "using step 2", "3.damaged")) and "\n" not in lines[0]
    assert {"2", "3", "3.damaged"} <= set(steps(run))
    assert capfd.readouterr().err == ""
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_damaged_best_falls_back_to_the_newest(run):
    flip_a_bit(run / "1")
    restored, lines = restore(run, "best")
    assert restored.step == 3 and "step 1" in lines[0]
    assert restore(run, "best")[0].step == 3


def test_all_damaged(run):
    for step in (1, 2, 3):
        flip_a_bit(run / str(step))
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged .*remove the folder"):
        restore(run)
    assert steps(run) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda params: params | {"fixer": jnp.zeros(3)}, r"params/fixer is absent there and float32\[3\] here"),
        (lambda params: params | {"head": jnp.zeros(3)}, r"params/head is bfloat16\[40, 50\] there"),
    ],
)
def test_another_configuration_is_not_damage(run, change, message):
    template = make_state(0)
    with Checkpoints(str(run), save_every=1) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(template.replace(params=change(template.params)))
    assert steps(run) == ["1", "2", "3"]


def test_variables_alone(run):
    restored = restore_variables(str(run), which="best", best_metric="robust")
    assert restored.step == 1 and restored.config == CONFIG
    assert set(restored.state) == {"params", "model_state", "average"}
    assert restored.state["model_state"] == {} and restored.state["average"] == {}
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(restored.state))
    assert_same_bits(restored.state["params"], jax.device_get(make_state(1).params))
    lines: list[str] = []
    flip_a_bit(run / "3")
    assert restore_variables(str(run), notify=lines.append).step == 2
    assert len(lines) == 1 and "step 3" in lines[0]
    assert steps(run) == ["1", "2", "3"]


def flip_a_byte_of(array, step: pathlib.Path) -> None:
    """Flips a stored byte of an array of random bits, which cannot be compressed."""
    snippet = np.asarray(array).tobytes()[100:116]
    (path,) = [path for path in (step / "state").rglob("d/*") if snippet in path.read_bytes()]
    content = bytearray(path.read_bytes())
    content[content.index(snippet)] ^= 1
    path.write_bytes(content)


def test_damage_to_the_optimizer_state_leaves_the_weights_usable(tmp_path):
    kernel, moment = np.random.default_rng(0).bytes(8000), np.random.default_rng(1).bytes(8000)
    kernel, moment = (jnp.asarray(np.frombuffer(each, np.float32).reshape(40, 50)) for each in (kernel, moment))
    state = make_state(1)
    state = state.replace(params={**state.params, "conv": {**state.params["conv"], "kernel": kernel}})
    adam = state.opt_state[1][0]
    adam = adam._replace(mu={**adam.mu, "conv": {**adam.mu["conv"], "kernel": moment}})
    state = state.replace(opt_state=(state.opt_state[0], (adam, *state.opt_state[1][1:])))
    with Checkpoints(str(tmp_path), save_every=1, keep_latest=1) as checkpoints:
        checkpoints.save(1, state, metrics={}, config=CONFIG)
    flip_a_byte_of(moment, tmp_path / "1")
    lines: list[str] = []
    restored = restore_variables(str(tmp_path), notify=lines.append)
    assert lines == []
    assert_same_bits(restored.state["params"], jax.device_get(state.params))
    with pytest.raises(UserError, match="opt_state/1/0/mu/conv/kernel differs from what was saved"):
        restore(tmp_path)
    flip_a_byte_of(state.params["conv"]["kernel"], tmp_path / "1")
    with pytest.raises(UserError, match="params/conv/kernel differs from what was saved"):
        restore_variables(str(tmp_path))


def test_two_checkpoints_are_kept_by_default(tmp_path):
    with Checkpoints(str(tmp_path), save_every=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"w": jnp.ones(3)}, metrics={}, config={})
    assert steps(tmp_path) == ["2", "3"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("No space [os_error_code='28']")])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, error):
    with Checkpoints(str(tmp_path), save_every=1) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(3)}, metrics={}, config={})

        def fail(*args, **kwargs):
            raise error

        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot be written .*No space") as caught:
            patch.setattr(checkpoints._manager, "save", fail)
            checkpoints.save(2, {"w": jnp.ones(3)}, metrics={}, config={})
        assert "\n" not in str(caught.value)
        # What has been written of it takes space that the next attempt needs.
        (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert steps(tmp_path) == ["1"]
    assert restore_variables(str(tmp_path), names=("w",)).step == 1


@pytest.mark.parametrize("mistake", [{"save_every": 0}, {"save_every": 1, "keep_latest": 0}])
def test_settings_are_checked(tmp_path, mistake):
    with pytest.raises(UserError, match="must be at least 1"):
        Checkpoints(str(tmp_path), **mistake)


def test_unknown_choice(run):
    with pytest.raises(UserError, match="choose latest or best"):
        restore(run, "newest")


def test_four_devices_to_one_and_back(tmp_path):
    mesh = sharding.mesh()
    assert mesh.size == 4
    replicated = NamedSharding(mesh, PartitionSpec())
    state = sharding.replicate(make_state(1), mesh)
    with Checkpoints(str(tmp_path), save_every=1) as checkpoints:
        checkpoints.save(1, state, metrics={}, config={})
        device = jax.devices()[2]
        single = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(device)
            ),
            state,
        )
        one = checkpoints.restore(single).state
        assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(one))
        assert_same_bits(one, state)
        checkpoints.save(2, one, metrics={}, config={})
        four = checkpoints.restore(state).state
        assert all(leaf.sharding == replicated for leaf in jax.tree.leaves(four))
        assert_same_bits(four, state)
