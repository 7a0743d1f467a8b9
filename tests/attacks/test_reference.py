"""Trace by trace against what the original implementations did on small frozen networks.

``shared/reference/README.md`` describes the recordings and where their tolerances come from: both sides compute in
float32, and now and then the sign of a gradient near 0, or the comparison of two almost equal losses, falls the other
way and an image leaves the recorded path.  The l2 ball is a few 1e-6 smaller here, to be inside in spite of rounding.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import Attack
from support.halving_rule import step_sizes
from support.reference import reference_networks

pytestmark = pytest.mark.optimized

KEY = jax.random.key(0)
EPSILON = {"mnist_cnn_at": {"linf": 0.25, "l2": 1.5}, "cifar_cnn_at": {"linf": 8 / 255, "l2": 0.5}}
NUM_TRACED = 32
FAST_COUNT = {"mnist_cnn_at": 16, "cifar_cnn_at": 16}


PIXEL_TOLERANCE = {"linf": 1e-5, "l2": 1e-4}
LOSS_TOLERANCE = {"linf": 2e-5, "l2": 1e-4}


def close_losses(ours, theirs, norm):
    return np.abs(ours - theirs) <= 5e-6 + LOSS_TOLERANCE[norm] * np.abs(theirs)


def relative_errors(ours, theirs):
    return np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-3)


class Subset(NamedTuple):
    """Some of the recorded images."""

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    """Positions in arrays over all images."""
    trace: np.ndarray
    """Positions in arrays over the traced images."""


class Reference:
    """One network and everything recorded about it."""

    def __init__(self, name, folder, network):
        self.name = name
        self.logits_fn = network
        data, self.gradient, self.auto_pgd = (
            np.load(folder / f"{name}_{kind}.npz") for kind in ("images", "gradient", "apgd")
        )
        self.images = data["images"].astype(np.float32) / 255
        self.labels = data["labels"].astype(np.int32)
        self.trace_index = data["trace_index"]
        self.recorded = len(self.auto_pgd["ce_linf_25_robust"])

    def threat_model(self, norm):
        return {"linf": attacks.linf, "l2": attacks.l2}[norm](EPSILON[self.name][norm])

    def traced(self, count) -> Subset:
        """The first ``count`` traced images that have recorded starts and final losses."""
        trace = np.flatnonzero(self.trace_index < self.recorded)[:count]
        index = self.trace_index[trace]
        return Subset(self.images[index], self.labels[index], index, trace)

    def everything(self) -> Subset:
        index = np.arange(self.recorded)
        return Subset(self.images[index], self.labels[index], index, index)

    def start(self, subset, norm):
        noise = self.auto_pgd[f"{norm}_start_noise_int8"][subset.index].astype(np.float32)
        size = 127.0 if norm == "linf" else np.linalg.norm(noise.reshape(len(noise), -1), axis=1)[:, None, None, None]
        return np.clip(subset.images + np.float32(EPSILON[self.name][norm]) * noise / size, 0, 1)


@pytest.fixture(scope="module")
def load(shared):
    """``name -> Reference``."""
    folder = shared / "reference"
    networks = reference_networks(shared)

    @functools.cache
    def reference(name):
        return Reference(name, folder, functools.partial(networks.NETWORKS[name], networks.load(name)))

    return reference


def gradient_attack(reference, recording) -> Attack:
    threat_model = reference.threat_model("l2" if "l2" in recording else "linf")
    if recording in ("fgsm", "fgm_l2"):
        return attacks.fgsm(threat_model)
    num_steps = 10 if recording == "bim10" else 40
    step_size = threat_model.epsilon * (1 if recording == "bim10" else 2.5) / num_steps
    return attacks.bim(threat_model, num_steps=num_steps, step_size=step_size)


def check_gradient_recording(reference, recording, count):
    subset = reference.traced(count)
    recorded = reference.gradient
    expected = recorded[f"{recording}_adv_trace"]
    # Only the first of the final images were kept of l2 runs.
    kept = subset.trace < len(expected)
    start = None
    if recording == "pgd40rs":
        noise = recorded["pgd40rs_start_noise_int8"][subset.index].astype(np.float32) / 127
        start = np.clip(subset.images + np.float32(EPSILON[reference.name]["linf"]) * noise, 0, 1)
    run = jax.jit(functools.partial(gradient_attack(reference, recording), reference.logits_fn))
    result = jax.device_get(run(subset.images, subset.labels, KEY, start))

    norm = "l2" if "l2" in recording else "linf"
    errors = np.abs(result.images[kept] - expected[subset.trace[kept]]).max(axis=(1, 2, 3))
    assert len(errors) >= 8
    assert np.mean(errors <= PIXEL_TOLERANCE[norm]) >= (1.0 if recording == "fgsm" else 0.8)
    if norm == "l2":
        assert np.all(errors < 0.03)
    losses = np.asarray(jax.vmap(attacks.cross_entropy)(result.logits, subset.labels))
    expected_losses = recorded[f"{recording}_loss"][subset.index]
    assert np.all(relative_errors(losses, expected_losses) < 0.05)
    assert np.mean(close_losses(losses, expected_losses, norm)) >= 0.9
    predictions = np.argmax(result.logits, axis=-1)
    np.testing.assert_array_equal(predictions, recorded[f"{recording}_pred"][subset.index])
    np.testing.assert_array_equal(result.success, predictions != subset.labels)


GRADIENT_RECORDINGS = ("fgsm", "fgm_l2", "bim10", "pgd40", "pgd40rs", "pgd40_l2")
FAST_RECORDINGS = [
    *[("mnist_cnn_at", recording) for recording in GRADIENT_RECORDINGS],
    *[("cifar_cnn_at", recording) for recording in ("fgsm", "fgm_l2", "bim10")],
]


@pytest.mark.parametrize(("name", "recording"), FAST_RECORDINGS)
def test_gradient_attacks(load, name, recording):
    check_gradient_recording(load(name), recording, FAST_COUNT[name])


@pytest.mark.slow
@pytest.mark.parametrize("recording", GRADIENT_RECORDINGS)
@pytest.mark.parametrize("name", EPSILON)
def test_gradient_attacks_on_all_traced_images(load, name, recording):
    check_gradient_recording(load(name), recording, 32)


def auto_pgd_run(recording):
    """``"dlr_l2_25" -> ("dlr", "l2", 25)``."""
    loss, norm, num_steps = recording.split("_")
    return loss, norm, int(num_steps)


def check_auto_pgd_trace(reference, recording):
    loss, norm, num_steps = auto_pgd_run(recording)
    subset = reference.traced(NUM_TRACED)
    attack = attacks.auto_pgd(reference.threat_model(norm), num_steps=num_steps, loss=loss)
    run = jax.jit(functools.partial(attacks.trajectory, attack, reference.logits_fn))
    states = jax.device_get(run(subset.images, subset.labels, KEY, reference.start(subset, norm)))

    def recorded(kind):
        return reference.auto_pgd[f"{recording}_{kind}"]

    losses, best = recorded("trace_loss")[:, subset.trace], recorded("trace_loss_best")[:, subset.trace]
    # Ever more images leave the path: most late steps are decided by comparisons of almost equal losses.
    share = 0.9 if num_steps <= 25 else 0.75
    assert np.all(np.mean(close_losses(states.loss[1:], losses, norm), axis=1) >= share)
    assert np.all(close_losses(states.highest.loss[0], best[0], norm))
    # The best loss hardly depends on the path.
    assert np.mean(relative_errors(states.highest.loss[-1], best[-1]) < 0.05) >= 0.9
    # Step sizes are decided by comparisons, and at late steps of losses that are equal but for rounding: each side has
    # to follow the rule with the losses that it has seen, and before the last checkpoint most agree as well.
    ours, theirs = states.step_size[:-1], recorded("trace_step_size")[:, subset.trace]
    by_rule = functools.partial(step_sizes, first=ours[0, 0])
    np.testing.assert_allclose(ours, by_rule(states.loss[1:], states.highest.loss), rtol=1e-6)
    np.testing.assert_allclose(theirs, by_rule(losses, best), rtol=1e-6)
    same = np.abs(ours - theirs) < 1e-6
    assert np.all(np.mean(same, axis=1)[:-1] >= share)
    assert np.mean(same) > 0.9
    assert np.sum(states.best.success[-1] == recorded("robust")[subset.index]) <= 1


@pytest.mark.parametrize("recording", ["ce_linf_25", "dlr_l2_25"])
@pytest.mark.parametrize("name", EPSILON)
def test_auto_pgd_traces(load, name, recording):
    check_auto_pgd_trace(load(name), recording)


@pytest.mark.slow
@pytest.mark.parametrize("recording", ["ce_linf_100", "dlr_linf_100", "ce_l2_100"])
@pytest.mark.parametrize("name", EPSILON)
def test_long_auto_pgd_traces(load, name, recording):
    check_auto_pgd_trace(load(name), recording)


@pytest.mark.slow
@pytest.mark.parametrize("recording", ["ce_linf_100", "dlr_linf_100", "ce_l2_100"])
@pytest.mark.parametrize("name", EPSILON)
def test_auto_pgd_verdicts_on_all_images(load, name, recording):
    reference = load(name)
    loss, norm, num_steps = auto_pgd_run(recording)
    subset = reference.everything()
    attack = attacks.auto_pgd(reference.threat_model(norm), num_steps=num_steps, loss=loss)
    run = jax.jit(functools.partial(attack, reference.logits_fn))
    result = run(subset.images, subset.labels, KEY, reference.start(subset, norm))
    robust = reference.auto_pgd[f"{recording}_robust"]
    assert np.sum(np.asarray(result.success) == robust) <= 1
