"""Attacked copies of training images: made once, kept, taken up again, and learnt beside the images."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest

from advjax import data
from advjax.data import Dataset
from advjax.evaluation.attack_runs import Resources
from advjax.evaluation.scored_model import variables_hash
from advjax.experiment.build_attack import build_attack, whole_attack
from advjax.experiment.build_data import training_subset
from advjax.experiment.from_config import from_config
from advjax.experiment.spec import AdversarialCopies
from advjax.jobs import adversarial_augmentation
from advjax.jobs import train as train_job
from advjax.jobs.adversarial_augmentation import with_copies
from advjax.models import adapter
from advjax.runtime.preemption import PreemptedError
from advjax.types import UserError
from support.configs import changed, config_of
from support.experiments import devices

COUNT, SIDE, IN_A_PART = 20, 4, 8
EPSILONS = (0.01, 0.03)
WEIGHTS = np.random.default_rng(1).normal(size=(SIDE * SIDE, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(adversarial_augmentation, "_IMAGES_IN_A_PART", IN_A_PART)


@pytest.fixture
def train():
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 1)).astype(np.uint8)
    labels = np.arange(COUNT, dtype=np.int32) % 3
    return Dataset("toy", images, labels, np.arange(COUNT, dtype=np.int32) + 7, ("a", "b", "c"))


@pytest.fixture
def make(tmp_path):
    """``(training images, format, when to stop) -> with copies``, always in one folder."""
    model, variables = adapter.from_functions(
        {"linear": lambda params, x: x.reshape(len(x), -1) @ params}, {"linear": WEIGHTS}
    )
    fgsm = [{"name": "fgsm", "epsilon": epsilon} for epsilon in EPSILONS]
    named = tuple(whole_attack(build_attack(f"fgsm_{i}", spec, "test"), "true", "test") for i, spec in enumerate(fgsm))

    def made(train, kind="float32", stop_requested=lambda: False):
        copies = AdversarialCopies("source", named, "true", kind)
        resources = Resources(devices(), 4, 0, str(tmp_path / "copies"), stop_requested)
        return with_copies(train, copies, model, variables, resources)

    return made


def fgsm_by_hand(images, labels, epsilon):
    """x + epsilon * sign(W (softmax(W' x) - onehot)), inside [0, 1]."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    logits = flat @ WEIGHTS
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gradient = (probabilities - np.eye(3)[labels]) @ WEIGHTS.T
    return np.clip(flat + epsilon * np.sign(gradient), 0, 1).reshape(images.shape)


def test_images_are_followed_by_their_copies_under_each_attack(make, train):
    both = data.check(make(train))
    clean = data.pixels(train.images)
    expected = [clean, *(fgsm_by_hand(clean, train.labels, epsilon) for epsilon in EPSILONS)]
    np.testing.assert_allclose(both.images, np.concatenate(expected), atol=1e-6)
    assert both.labels.tolist() == 3 * train.labels.tolist()
    # Not the positions of the originals: copies of one image would be augmented alike.
    assert both.index.tolist() == list(range(3 * COUNT))


def test_eight_bits_stay_inside_the_ball(make, train):
    both = data.check(make(train, "uint8"))
    assert both.images.dtype == np.uint8
    steps = np.abs(both.images.reshape(3, *train.images.shape).astype(int) - train.images)
    assert steps.max(axis=(1, 2, 3, 4)).tolist() == [0, *(int(epsilon * 255) for epsilon in EPSILONS)]


def test_half_precision_keeps_small_perturbations(make, train):
    """Eight bits round 0.01 down to 2/255, 22% less; all of Cats vs Dogs in 32 bits is 29 GB."""
    exact, half = make(train, "float32").images, make(train, "float16").images
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() <= 2**-12
    steps = np.abs(half[COUNT : 2 * COUNT] - half[:COUNT]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(steps, EPSILONS[0], rtol=0.03)
    assert config_of("cross_architecture", "cats_vs_dogs").run.resnet18_retrained.copies.format == "float16"


def test_streamed_images_get_the_same_copies(make, train):
    for kind in ("float32", "float16", "uint8"):
        streamed, resident = make(data.from_dataset(train), kind), make(train, kind)
        assert isinstance(streamed, data.Source)
        chex.assert_trees_all_equal(data.read_all(streamed), resident)


def test_copies_are_made_once(make, train, tmp_path, monkeypatch):
    made = make(train)
    (folder, _) = sorted((tmp_path / "copies").iterdir())
    parts = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert parts == ["00000", "00001", "00002", "fingerprint"]
    facts = json.loads((folder / "identity.json").read_text())
    assert (facts["made_on"], facts["count"], facts["attack"]["epsilon"]) == ("source", COUNT, EPSILONS[0])
    assert facts["model_hash"] == variables_hash(adapter.from_functions({"linear": abs}, {"linear": WEIGHTS})[1])
    shutil.rmtree(folder / "00002")
    attacked = []
    run_attack = adversarial_augmentation.run_attack

    def counted(source, attack, part, *rest, **options):
        attacked.extend(part.index)
        return run_attack(source, attack, part, *rest, **options)

    monkeypatch.setattr(adversarial_augmentation, "run_attack", counted)
    chex.assert_trees_all_equal(make(train), made)
    assert attacked == list(train.index[2 * IN_A_PART :])


def test_other_images_get_other_copies(make, train, tmp_path):
    make(train)
    make(train.take(np.arange(10)))
    assert len(list((tmp_path / "copies").iterdir())) == 4


def test_making_can_be_stopped_and_goes_on(make, train, tmp_path):
    asked = iter([False, False, True])
    with pytest.raises(PreemptedError, match="fgsm_0 on source: stopped before image 16 of 20, state saved"):
        make(train, stop_requested=lambda: next(asked))
    assert len(list((tmp_path / "copies").rglob("images.npy"))) == 2
    assert len(make(train).labels) == 3 * COUNT


@pytest.mark.parametrize(
    "content, message", [(b"no array", "is damaged"), (np.zeros((8, 4, 4, 3), np.float32), "is damaged.*does not hold")]
)
def test_a_damaged_store_is_refused(make, train, tmp_path, content, message):
    make(train)
    path = sorted((tmp_path / "copies").rglob("images.npy"))[1]
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(UserError, match=message):
        make(train)


def with_a_pupil(**changes):
    """The digits config with a second network, which learns from copies made on the first."""
    config = changed(
        **{
            "data__num_validation": 20,
            "run__base__num_steps": 2,
            "run__base__model__width": 0.0625,
            "run__base__train_fraction": 0.05,
            "evaluation__num_checked": 0,
        }
    )
    copies = {"order": ("fgsm",), "made_on": "base", "fgsm": {"name": "fgsm", "epsilon": 0.1}}
    with config.unlocked(), config.ignore_type():
        config.runs = ("base", "pupil")
        config.run.pupil = {**config.run.base.to_dict(), "copies": copies, "undersample": True, **changes}
    return config


def test_a_run_learns_from_copies_and_balanced_classes(tmp_path, monkeypatch):
    config = with_a_pupil()
    built = from_config(config)
    pupil = built.runs[1]
    assert pupil.needs == ("base",) and pupil.identity["needs"]["base"] == built.runs[0].identity
    seen = {}
    learn = train_job.fit

    def watched(name, method, plan, variables, dataset, *rest, **options):
        seen[name] = dataset
        learn(name, method, plan, variables, dataset, *rest, **options)

    monkeypatch.setattr(train_job, "fit", watched)
    train_job.train(config, str(tmp_path), devices("jit"), print)
    _, counts = np.unique(seen["base"].labels, return_counts=True)
    _, balanced = np.unique(seen["pupil"].labels, return_counts=True)
    assert len(set(counts)) > 1 and set(balanced) == {2 * counts.min()}
    assert [path.name.split(".")[:2] for path in (tmp_path / "copies").iterdir()] == [["fgsm", "base"]]


def test_an_epoch_is_as_long_as_what_is_learnt():
    length = {"num_steps": 0, "epochs": 1, "undersample": False, "batch_size": 8}
    copied = from_config(with_a_pupil(**length))
    plain = from_config(with_a_pupil(**length, copies={"order": ()}))
    number = len(training_subset(plain.load_data(), 0.05, plain.seed).labels)
    assert [built.runs[1].plan.num_steps for built in (plain, copied)] == [-(-number // 8), -(-2 * number // 8)]


@pytest.mark.parametrize(
    "copies, message",
    [
        ({"made_on": "x"}, "run.pupil: no earlier run is named 'x'"),
        ({"format": "int8"}, "copies: format must be one of float32, uint8, float16, got 'int8'"),
        ({"labels": "none"}, "copies: labels must be 'true' or 'predicted'"),
        ({"order": ("pgd",)}, "copies: 'pgd' is in the order but not described"),
        ({"fgsm": {"name": "auto_attack", "epsilon": 0.1}}, "copies.fgsm: auto_attack is for evaluation only"),
    ],
)
def test_mistakes_are_one_line(copies, message):
    fgsm = {"order": ("fgsm",), "made_on": "base", "fgsm": {"name": "fgsm", "epsilon": 0.1}}
    with pytest.raises(UserError, match=message):
        from_config(with_a_pupil(copies={**fgsm, **copies}))


def test_copies_made_with_other_gradients_are_refused(tmp_path, train):
    """The code of the source may be repaired while its variables stay."""
    attack = whole_attack(build_attack("fgsm", {"name": "fgsm", "epsilon": 0.01}, "test"), "true", "test")
    copies = AdversarialCopies("source", (attack,), "true", "uint8")
    resources = Resources(devices(), 4, 0, str(tmp_path / "copies"), lambda: False)

    def made(apply):
        model, variables = adapter.from_functions({"linear": apply}, {"linear": WEIGHTS})
        both = with_copies(train, copies, model, variables, resources)
        assert isinstance(both, Dataset)
        return both.images

    def masked(params, x):
        return jax.lax.stop_gradient(x).reshape(len(x), -1) @ params

    first = made(masked)
    np.testing.assert_array_equal(made(masked), first)
    with pytest.raises(UserError, match=r"belongs to another run \(gradients, vanishing gradients differ\): delete it"):
        made(lambda params, x: x.reshape(len(x), -1) @ params)
