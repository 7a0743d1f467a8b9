"""Interrupted runs resume to equal verdicts, and refuse results of other runs or damaged ones."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import combine, result_store, resume, runner
from advjax.types import UserError
from support.stage_runs import COUNT, StageRuns, same


@pytest.fixture(scope="module")
def data():
    return StageRuns()


class Stopped(Exception):  # noqa: N818
    pass


def interrupted_after(count, run):
    """Whether the run was interrupted, after so many batches."""
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) == count:
            raise Stopped

    try:
        run(progress=interrupt)
    except Stopped:
        return seen
    return None


@pytest.mark.parametrize("after", [3, 6])
def test_progress_goes_on(data, tmp_path, after):
    """From what has been recorded; attacks that had not ended begin anew."""
    path = tmp_path / "state"
    everything, later = [], []
    run = data.run
    found = run(progress=everything.append)
    earlier = interrupted_after(after, functools.partial(run, state_file=path))
    same(run(state_file=path, progress=later.append), found)
    assert [path.name] == [file.name for file in tmp_path.iterdir()]
    plain = [[at._replace(seconds=0) for at in calls] for calls in (earlier, later, everything)]
    assert plain[0] == plain[2][:after]
    last, first = earlier[-1], later[0]
    assert (first.stage, first.round) != (last.stage, last.round) or first.done > last.done
    assert plain[1][-1] == plain[2][-1]
    for calls in (earlier + later, everything):
        counts = [(call.stage, call.round, call.total) for call in calls]
        ends = [
            call.done for call, here, after in zip(calls, counts, [*counts[1:], None], strict=True) if here != after
        ]
        assert ends == [total for *_, total in dict.fromkeys(counts)]
    # Finished: nothing is left to do.
    same(run(state_file=path, progress=lambda progress: pytest.fail("attacked again")), found)


@pytest.mark.parametrize("survivors_only", [True, False])
def test_an_interruption_after_every_batch_changes_nothing(data, tmp_path, survivors_only):
    options = {"stages": data.stages[::2], "batch_size": 16}
    run = functools.partial(data.run, survivors_only=survivors_only, **options)
    resumed = functools.partial(run, state_file=tmp_path / "state")
    count = 0
    while interrupted_after(1, resumed):
        count += 1
    # At each interruption, other attacks are under way.
    assert count > 4
    same(resumed(), run())


def unbounded(data, **options):
    attack = attacks.deepfool(attacks.l2(np.inf), num_steps=4)
    stages = combine.restarts("deepfool", attack, 1), combine.restarts("again", attack, 2)
    return runner.run_stages(
        stages,
        attacks.l2(np.inf),
        data.bind,
        data.images,
        data.labels,
        variables=data.model,
        batch_size=8,
        survivors_only=False,
        **options,
    )


def test_minimum_norm_attacks_resume(data, tmp_path):
    found = unbounded(data)
    resumed = functools.partial(unbounded, data, state_file=tmp_path / "state")
    while interrupted_after(2, resumed):
        pass
    same(resumed(), found)


def test_time_adds_up(data, tmp_path):
    resumed = functools.partial(data.run, state_file=tmp_path / "state")
    interrupted_after(4, resumed)
    before = [float(np.load(path)) for path in sorted(tmp_path.rglob("seconds.npy"))]
    assert before == sorted(before) and before[0] > 0
    finished = resumed().seconds
    assert finished > before[-1]
    # Nothing is left to do, but what has been done took its time.
    assert resumed().seconds > finished / 2


def test_saves_within_a_round_are_rare(data, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_EVERY", 1e9)
    calls = []
    data.run(state_file=tmp_path / "rare", progress=calls.append)
    rounds = {(call.stage, call.round) for call in calls}
    assert len(list((tmp_path / "rare").glob("0*"))) == 1 + len(rounds) < len(calls)
    monkeypatch.setattr(resume, "SAVE_EVERY", 0.0)
    data.run(state_file=tmp_path / "often")
    assert len(list((tmp_path / "often").glob("0*"))) == 1 + len(calls)


def weak_run(data, path, *, change=None, **options):
    """One stage of one weak attack."""
    step_size = 0.02 if change == "step size" else 0.01
    threat_model = attacks.linf(0.2) if change == "epsilon" else attacks.linf(0.1)
    attack = attacks.bim(threat_model, num_steps=2, step_size=step_size, loss="dlr" if change == "loss" else "ce")
    stages = (combine.restarts("other" if change == "name" else "weak", attack, 2 if change == "rounds" else 1),)
    arguments = {"batch_size": 8, "state_file": path} | options
    labels = (data.labels + 1) % 4 if change == "labels" else data.labels
    images = data.images[:, ::-1] if change == "images" else data.images
    model = options.pop("model", data.model)
    arguments.pop("model", None)
    return runner.run_stages(stages, threat_model, model, images, labels, **arguments)


CHANGES = {
    "seed": ({"seed": 1}, "seed"),
    "index": ({"index": np.arange(COUNT) + 1}, "index"),
    "batch size": ({"batch_size": 64}, "batch sizes"),
    "survivors_only": ({"survivors_only": False}, "attacks, survivors_only"),
    "search_fn": ({"search_fn": lambda images: jnp.ones((len(images), 4))}, "search_fn, search gradients"),
    "labels": ({}, "labels"),
    "images": ({}, "images, clean logits"),
    "step size": ({}, "attacks"),
    "loss": ({}, "attacks"),
    "epsilon": ({}, "attacks, epsilon"),
    "name": ({}, "stages"),
    "rounds": ({}, "rounds"),
    "devices": ({"devices": jax.devices()[:1], "batch_size": 7}, "batch sizes"),
}


@pytest.fixture(scope="module")
def stored(data, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("stored") / "state"
    weak_run(data, folder)
    return folder


def test_the_same_run_is_accepted(data, stored):
    # Everything is built again, as by another process.
    same(weak_run(data, stored, progress=lambda progress: pytest.fail("attacked again")), weak_run(data, None))


@pytest.mark.parametrize("change", CHANGES)
def test_another_run_is_refused(data, stored, change):
    options, facts = CHANGES[change]
    with pytest.raises(UserError, match=rf"state belongs to another run \({facts}.* differ\): delete it or name"):
        weak_run(data, stored, change=change, **options)


def test_identity_is_readable(stored):
    facts = json.loads((stored / "identity.json").read_text())
    assert facts["stages"] == ["weak"] and facts["norm"] == "linf" and facts["epsilon"] == "0.1"
    assert facts["platform"] == "cpu" and facts["JAX version"] == jax.__version__ and facts["survivors_only"] is True


def slope(data, factor):
    """A model with the clean logits of ``data.model`` on its images and another slope between them."""
    images, logits = jnp.asarray(data.images.reshape(COUNT, -1)), data.model(data.images)

    def model(batch):
        flat = batch.reshape(len(batch), -1)
        nearest = jnp.argmin(jnp.sum((flat[:, None] - images) ** 2, -1), axis=1)
        return logits[nearest] + factor * (data.model(batch) - logits[nearest])

    return model


def test_a_model_with_equal_clean_logits_is_told_apart(data, tmp_path):
    assert np.sum(weak_run(data, None, model=slope(data, 1.0)).broken_by == runner.ROBUST) < COUNT - 3
    for first, second in ((1.0, 1e-3), (1e-3, 1.0)):
        folder = tmp_path / str(first)
        weak_run(data, folder, model=slope(data, first))
        with pytest.raises(UserError, match=r"belongs to another run \(gradients differ\)"):
            weak_run(data, folder, model=slope(data, second))


def test_variables_are_compared_to_the_last_bit(data, tmp_path):
    def bind(model):
        return model

    weak_run(data, tmp_path / "state", model=bind, variables=data.model)
    weak_run(data, tmp_path / "state", model=bind, variables=data.model)
    weights = np.array(data.model.weights)
    weights[0, 0, 0, 0] = np.nextafter(weights[0, 0, 0, 0], 2)
    with pytest.raises(UserError, match=r"\(variables differ\)"):
        weak_run(data, tmp_path / "state", model=bind, variables=data.model._replace(weights=weights))
    with pytest.raises(UserError, match=r"\(variables differ\)"):
        weak_run(data, tmp_path / "state")


def test_a_model_without_gradients_is_known_by_its_logits(data, tmp_path):
    weights = np.asarray(data.model.weights)

    def called_back(images):
        shape = jax.ShapeDtypeStruct((len(images), 4), jnp.float32)
        return jax.pure_callback(lambda x: np.tensordot(x, weights, 3).astype(np.float32), shape, images)

    square = (combine.restarts("square", attacks.square(data.threat_model, num_queries=3), 1),)
    arguments = square, data.threat_model, called_back, data.images, data.labels
    run = functools.partial(runner.run_stages, *arguments, batch_size=8, devices=jax.devices()[:1])
    run(state_file=tmp_path / "state")
    assert [path.stem for path in (tmp_path / "state" / "fingerprint").glob("*.npy")] == ["clean_logits"]


def changed(part, name, change):
    """Replaces an array of a stored part, in the way in which it was written."""
    arrays = {path.stem: np.load(path) for path in part.glob("*.npy")}
    arrays[name] = np.asarray(change(arrays[name]))
    for path in part.iterdir():
        path.unlink()
    result_store._write_arrays(part, arrays)


FALSE = {
    "an image that is not adversarial": (
        "images",
        lambda images: 0.5 + 0 * images,
        "holds successes that this model does not confirm",
    ),
    "an image outside": ("images", lambda images: np.where(images > 0.5, 0, 1).astype(np.float32), "does not confirm"),
    "NaN": ("images", lambda images: images * np.nan, "holds successes that this model does not confirm"),
    "half the rows": ("rows", lambda rows: rows[: len(rows) // 2], "is damaged"),
    "other rows": ("rows", lambda rows: rows[::-1], "is damaged|does not confirm"),
    "rows twice": ("rows", lambda rows: 0 * rows, "is damaged"),
    "rows outside": ("rows", lambda rows: rows + COUNT, "is damaged"),
    "rows of another type": ("rows", lambda rows: rows.astype(np.int32), "is damaged"),
    "flags of another type": ("success", lambda flags: flags.astype(np.int32), "is damaged"),
    "another number kept": ("kept", lambda flags: ~flags, "is damaged"),
    "another shape": ("images", lambda images: images[:, :2], "is damaged"),
    "fewer distances": ("distance", lambda distance: distance[1:], "is damaged"),
    "steps in two dimensions": ("steps", lambda steps: steps[None], "is damaged"),
    "a stage too many": ("stage", lambda stage: stage + 7, "is damaged"),
    "a round before the first": ("round", lambda number: number - 1, "is damaged"),
    "two stages": ("stage", lambda stage: np.asarray([0, 0]), "is damaged"),
}


@pytest.fixture(scope="module")
def of_variables(data, tmp_path_factory):
    """``(run, folder)`` of a finished run whose programs are found again without tracing the model."""
    run = functools.partial(weak_run, data, model=data.bind, variables=data.model)
    folder = tmp_path_factory.mktemp("of_variables") / "state"
    run(folder)
    return run, folder


@pytest.mark.parametrize("kind", FALSE)
def test_what_does_not_hold_is_refused(of_variables, tmp_path, kind):
    name, change, message = FALSE[kind]
    (run, stored), folder = of_variables, tmp_path / "state"
    shutil.copytree(stored, folder)
    changed(folder / "00001", name, change)
    with pytest.raises(UserError, match=message) as caught:
        run(folder)
    assert str(caught.value).startswith(str(folder)) and "delete the folder to start afresh" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_predictions_are_refused(of_variables, tmp_path):
    (run, stored), folder = of_variables, tmp_path / "state"
    shutil.copytree(stored, folder)
    changed(folder / "00000", "misclassified", lambda flags: ~flags)
    with pytest.raises(UserError, match=r"belongs to another run \(predictions differ\)"):
        run(folder)
    changed(folder / "00000", "misclassified", lambda flags: flags[1:])
    with pytest.raises(UserError, match="is damaged"):
        run(folder)


def test_results_of_something_else_are_refused(of_variables, tmp_path):
    (run, stored), folder = of_variables, tmp_path / "state"
    shutil.copytree(stored, folder)
    shutil.rmtree(folder / "00000")
    (folder / "00001").rename(folder / "00000")
    with pytest.raises(UserError, match="is damaged"):
        run(folder)


def test_a_full_disk_is_told_in_one_line(data, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(result_store.os, "fsync", full)
        with pytest.raises(UserError, match=r"^results cannot be saved in .*: No space left on device$"):
            weak_run(data, tmp_path / "state")
    assert not list(tmp_path.iterdir())
    same(weak_run(data, tmp_path / "state"), weak_run(data, None))


def test_a_state_file_of_an_older_version_is_refused(data, tmp_path):
    np.savez(tmp_path / "state.npz", identity=np.asarray("x"))
    with pytest.raises(UserError, match="older versions wrote such files"):
        weak_run(data, tmp_path / "state.npz")
