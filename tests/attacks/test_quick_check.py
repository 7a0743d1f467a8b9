"""The short ensemble: what it consists of, and that it is much less work."""

import jax.numpy as jnp
import numpy as np
import pytest

from advjax.attacks import auto_attack_stages, l1, l2, linf, quick_check_stages, run_stages
from advjax.benchmarks.advjax_contender import stage_passes
from advjax.benchmarks.networks import random_weights


def test_stages():
    stages = quick_check_stages(l2(0.5))
    assert [stage.name for stage in stages] == ["apgd-ce", "apgd-t", "square"]
    assert [stage.attack(jnp.int32(0)).num_steps * stage.num_rounds(10) for stage in stages] == [50, 400, 300]
    assert stages[1].num_rounds(3) == 2


def test_less_than_a_fifth_of_the_passes_of_autoattack():
    robust = np.array([-1])
    cheap, full = quick_check_stages(linf(0.1)), auto_attack_stages(linf(0.1))
    many = np.array([100_000])
    assert 5 * stage_passes(cheap, robust, many) < stage_passes(full, robust, many)


def test_it_needs_a_ball():
    for threat_model in (l1(1.0), linf(np.inf)):
        with pytest.raises(ValueError, match="quick_check needs linf or l2 with a finite epsilon"):
            quick_check_stages(threat_model)


def test_it_breaks_what_can_be_broken_and_nothing_else():
    """A linear model: an image breaks iff epsilon exceeds its distance to the nearest boundary."""
    weights = random_weights("cifar_cnn")["fc_kernel"][:48]
    images = np.random.default_rng(3).uniform(0.4, 0.6, size=(16, 4, 4, 3)).astype(np.float32)

    def logits_fn(x):
        return x.reshape(len(x), -1) @ weights

    logits = np.asarray(logits_fn(images))
    labels = np.argmax(logits, axis=-1).astype(np.int32)
    gaps = logits[np.arange(16), labels][:, None] - logits
    slopes = np.abs(weights[:, :, None] - weights[:, None, :]).sum(0)[labels]
    needed = np.min(np.where(gaps > 0, gaps / np.maximum(slopes, 1e-9), np.inf), axis=1)
    epsilon = float(np.mean(np.sort(needed)[7:9]))
    threat_model = linf(epsilon)
    found = run_stages(quick_check_stages(threat_model), threat_model, logits_fn, images, labels, batch_size=16)
    np.testing.assert_array_equal(found.broken_by >= 0, needed < epsilon)
