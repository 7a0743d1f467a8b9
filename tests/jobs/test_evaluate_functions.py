"""``advjax.evaluate``: models that are functions, through the whole evaluation."""

import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import advjax
from advjax import attacks
from advjax.attacks.programs import Programs
from advjax.evaluation import report
from advjax.evaluation.given_model import given_model
from advjax.evaluation.outcomes import read_outcomes
from advjax.experiment import registry
from advjax.jobs import compare, evaluate
from advjax.runtime.files import plain
from advjax.types import UserError

THREAT_MODEL = attacks.linf(0.05)
FGSM = {"fgsm": attacks.fgsm(THREAT_MODEL)}
WEIGHTS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).random((20, 4, 4, 1)).astype(np.float32)


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


def logits_fn(images):
    return linear(WEIGHTS, images)


def noisy(weights, images, rng):
    return linear(weights, images + 0.02 * jax.random.normal(rng, images.shape))


LABELS = np.argmax(logits_fn(IMAGES), axis=-1)
LABELS[:2] = (LABELS[:2] + 1) % 3


def evaluated(model, workdir, images=IMAGES, labels=LABELS, threat_model=THREAT_MODEL, **options):
    options = {"attacks": FGSM, "num_checked": 0, "batch_size": 20, **options}
    return advjax.evaluate(model, images, labels, threat_model, workdir=workdir, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def found(folder):
    models = {"plain": logits_fn, "noisy": (attacks.expectation(noisy, 2), WEIGHTS)}
    return evaluated(models, folder, title="Two models", class_names=("a", "b", "c"), save_adversarial="float32")


def test_it_gives_the_numbers_of_the_attacks_themselves(found):
    plain_model = found.summary[0]
    adversarial = attacks.fgsm(THREAT_MODEL)(logits_fn, IMAGES, LABELS, jax.random.key(0))
    assert plain_model["clean"]["accuracy"] == 0.9
    # Images that are misclassified anyway are left alone.
    assert plain_model["robust"]["accuracy"] == np.mean(~np.asarray(adversarial.success)) < 0.9
    assert plain_model["transfer"] is None


def test_several_models_stand_side_by_side(found):
    seen = {(row["run"], row["knowledge"], row["eot_samples"]) for row in found.rows if row["attack"] != "clean"}
    own = {("plain", "everything", 1), ("noisy", "everything", 2), ("noisy", "everything", 4)}
    assert seen == own | {("noisy", "source model", 1)}


def test_it_writes_what_a_trained_experiment_writes(found, folder):
    assert plain(report.read_report(folder / "report.json")._asdict(), "") == plain(found._asdict(), "")
    assert {outcome.run for outcome in read_outcomes(folder / "outcomes.npz")} == {"plain", "noisy"}
    page = (folder / "report.html").read_text()
    assert "Two models" in page and page.count("data:image/png") > 2
    assert {path.name for path in (folder / "adversarial").iterdir()} == {"fgsm.plain.npz", "fgsm.noisy.npz"}
    assert not (folder / "unfinished").exists()


def test_finished_evaluations_can_be_compared(found, folder):
    console = Console(width=200)
    with console.capture() as captured:
        compare.compare([str(folder)], "", console)
    assert re.search(r"linf 0.05 +plain +noisy +\d", captured.get())


def test_an_interrupted_evaluation_resumes(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.report, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluated(logits_fn, tmp_path)
    assert list((tmp_path / "unfinished").iterdir()) and not (tmp_path / "report.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Programs, "attack", lambda *arguments: pytest.fail("attacked again"))
        evaluated(logits_fn, tmp_path)
    assert (tmp_path / "report.json").exists()


def test_stored_results_are_only_used_for_the_model_that_they_belong_to(tmp_path, monkeypatch):
    """Also where models differ in their code alone, not in their arrays."""
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.report, "write", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluated((linear, WEIGHTS), tmp_path)
    found = evaluated((lambda weights, images: -linear(weights, images), WEIGHTS), tmp_path)
    assert found.summary[0]["clean"]["accuracy"] < 0.5 and found.summary[0]["robust"]["accuracy"] < 0.5


def test_8_bit_images_and_presets_are_accepted(tmp_path, monkeypatch):
    stages = attacks.quick_check_stages(THREAT_MODEL)[:1]
    monkeypatch.setitem(registry.ATTACK_ENSEMBLES, "quick_check", lambda threat_model: stages)
    found = evaluated(logits_fn, tmp_path, images=(255 * IMAGES).astype(np.uint8), attacks="quick")
    assert {row["attack"] for row in found.rows} == {"clean", "quick_check"}
    stored = json.loads((tmp_path / "report.json").read_text())["config"]["evaluation"]["attacks"]
    assert stored["quick_check"] == {"name": "quick_check", "norm": "linf", "epsilon": 0.05}


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(images.reshape(len(images), -1))


@pytest.mark.parametrize(
    "model, options, message",
    [
        (Net(), {}, "'model' is a linen module, which says neither .* module.apply"),
        ((Net(), {}), {}, "'model' is a linen module"),
        ("resnet", {}, "'model' must be a function of images"),
        ({}, {}, "at least one model"),
        (lambda images: (logits_fn(images), 1), {}, "one array of logits .* got a tuple"),
        (lambda images: jnp.argmax(logits_fn(images), -1), {}, "floating-point logits, got int"),
        (lambda images: logits_fn(images)[:, :1], {}, r"returns \(2, 1\) .* at least two classes"),
        (
            lambda image: logits_fn(image[None])[0],
            {},
            r"seems to take single images \[h, w, c\]: give jax.vmap\(model\)",
        ),
        ({"a": logits_fn, "b": lambda x: logits_fn(x)[:, :2]}, {}, "same classes, got logits for 2 and 3"),
        (logits_fn, {"images": IMAGES[0]}, r"images must have shape \[n, height"),
        (logits_fn, {"images": 255 * IMAGES}, r"images must lie in \[0.0, 1.0\]"),
        (logits_fn, {"labels": LABELS[:3]}, "one per image"),
        (logits_fn, {"labels": LABELS + 1}, "labels of images range from 1 to 3"),
        (logits_fn, {"class_names": ("a",)}, "one name for each of 3 classes, got 1"),
        (logits_fn, {"attacks": "all"}, "attacks must be 'quick', 'standard', 'rand', or a mapping"),
        (logits_fn, {"attacks": {"pgd": 3}}, "attack 'pgd' must be an attack"),
        (logits_fn, {"attacks": []}, "the name of a preset, or a mapping"),
        (logits_fn, {"threat_model": attacks.l2(80), "attacks": "quick"}, "attacks: quick_check: epsilon is 80"),
        (logits_fn, {"threat_model": attacks.l1(8), "attacks": "standard"}, "standard .*linf or l2"),
        (logits_fn, {"threat_model": attacks.linf(0.1, bounds=(-1, 1))}, r"bounds \[0, 1\] of the images"),
        (logits_fn, {"made_on": "base"}, "one of the models model, got 'base'"),
        (logits_fn, {"save_adversarial": "png"}, "'float32', 'uint8' or ''"),
        (logits_fn, {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_mistakes_are_explained_before_anything_is_written(model, options, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        evaluated(model, tmp_path / "report", **options)
    assert not (tmp_path / "report").exists()


def test_functions_that_differ_in_their_gradients_alone_are_told_apart():
    """Adversarial images made on a masked model say nothing about the repaired one."""

    def masked(images):
        return logits_fn(jax.lax.stop_gradient(images))

    def called_back(images):
        shape = jax.ShapeDtypeStruct((len(images), 3), np.float32)
        return jax.pure_callback(lambda x: np.asarray(logits_fn(np.asarray(x))), shape, images)

    hashes = [given_model("model", function, (4, 4, 1)).scored.hash for function in (logits_fn, masked, called_back)]
    assert len(set(hashes)) == 3
    assert given_model("model", logits_fn, (4, 4, 1)).scored.hash == hashes[0]


def test_images_without_progress_are_said_in_the_call_and_in_the_report(tmp_path):
    """A random start moves the images, and hides nothing."""
    attack = attacks.pgd(THREAT_MODEL, num_steps=2, step_size=0.02)
    given = {"pgd": attack, "square": attacks.square(THREAT_MODEL, num_queries=2)}
    masked = lambda images: 1e-3 * logits_fn(jax.lax.stop_gradient(images - 0.5))  # noqa: E731
    with pytest.warns(UserWarning, match=r"made no progress on (\d+) of \1 robust images \(pgd on \1\)"):
        found = evaluated(masked, tmp_path, attacks=given, labels=np.argmax(masked(IMAGES), axis=-1))
    rows = {row["attack"]: row for row in found.rows if row["subset"] == "all"}
    for name, row in rows.items():
        assert row["no_progress"] == (name in ("pgd", "worst case")) * round(20 * row["accuracy"]), name
    left = rows["worst case"]["accuracy"]
    assert 0 < left <= rows["pgd"]["accuracy"]
    assert "this may be too high: the report card fails on progress of attacks" in found.verdict[0]
    (check,) = [check for check in found.checks if check["name"] == "progress of attacks"]
    assert not check["passed"] and check["numbers"] == {"without": left}
    again = {outcome.attack: outcome for outcome in read_outcomes(tmp_path / "outcomes.npz")}
    assert np.sum(again["pgd"].without_progress) == rows["pgd"]["no_progress"] and again["clean"].progress is None


@pytest.mark.filterwarnings("ignore:gradients are NaN")
def test_logits_that_become_nan_are_not_robust(tmp_path):
    def breaking(images):
        brightness = jnp.mean(images, axis=(1, 2, 3))[:, None]
        return jnp.where(brightness > 0.52, jnp.nan, brightness * jnp.asarray([-1.0, 1.0]) + jnp.asarray([2.0, 0.0]))

    found = evaluated(breaking, tmp_path, images=0 * IMAGES + 0.5, labels=0 * LABELS)
    assert found.summary[0]["clean"]["accuracy"] == 1 and found.summary[0]["robust"]["accuracy"] == 0
    assert "none (NaN)" in (tmp_path / "report.html").read_text()


def test_nan_on_the_images_as_they_are_is_one_line(tmp_path):
    """As of damaged weights: no attack could start there."""
    broken = lambda images: jnp.where(jnp.arange(3) == 1, jnp.nan, logits_fn(images))  # noqa: E731
    with pytest.raises(UserError, match=r"^model returns NaN on 20 of 20 images as they are: look for NaN") as caught:
        evaluated(broken, tmp_path / "report")
    assert "\n" not in str(caught.value) and not (tmp_path / "report" / "report.json").exists()


@pytest.mark.parametrize("name", ["a/b", "../outside", ".hidden", "", "x" * 65, "line\nbreak", 3, None])
def test_names_that_cannot_be_those_of_files_are_refused(name, tmp_path):
    for models, given in (({name: logits_fn}, FGSM), (logits_fn, {name: FGSM["fgsm"]})):
        with pytest.raises(ValueError, match="cannot be a name: it becomes part of file names"):
            evaluated(models, tmp_path / "report", attacks=given)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": {"clean": FGSM["fgsm"]}}, "'clean' cannot be a name"),
        ({"attacks": {"worst case": FGSM["fgsm"]}}, "'worst case' cannot be a name"),
        ({"attacks": {"x": attacks.with_restarts(attacks.fgsm(THREAT_MODEL, targeted=True), 2)}}, "'x' is targeted"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**40}, "needs a seed below"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"notify": None}, "a function notify"),
        ({"class_names": "abc"}, "a list of class_names"),
        ({"class_names": (1, 2, 3)}, r"class_names\[0\] must be a string"),
        ({"title": 3}, "title must be a string"),
        ({"data_name": None}, "data_name must be a string"),
    ],
)
def test_other_arguments_that_make_no_sense(changes, message, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        evaluated(logits_fn, tmp_path / "report", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", ""):
        with pytest.raises(ValueError, match="workdir must name a folder"):
            evaluated(logits_fn, workdir)


def test_a_model_that_nothing_attacks_in_a_ball_has_no_evidence_of_robustness(tmp_path):
    found = evaluated(logits_fn, tmp_path, attacks={"noise": attacks.gaussian_noise(0.1)})
    assert found.verdict == [
        "model: 90.0 % clean; no attack with a finite epsilon was made, so there is no evidence of robustness"
    ]
