"""Adversarial images survive the disk and 8 bits, and are not taken for what they are not."""

import jax
import numpy as np
import pytest

from advjax import attacks
from advjax.data import Dataset, pixels
from advjax.evaluation import adversarial_sets
from advjax.evaluation.adversarial_sets import AdversarialSet, allowed, distances, quantized
from advjax.types import UserError

RNG = np.random.default_rng(0)
CLEAN = RNG.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.int32) % 3
TEST = Dataset("noise", CLEAN, LABELS, np.arange(40, dtype=np.int32), ("a", "b", "c"))


def attacked(threat_model, seed=0):
    """Images on the edge of the ball."""
    candidates = pixels(CLEAN) + np.random.default_rng(seed).choice([-0.3, 0.3], CLEAN.shape).astype(np.float32)
    return np.asarray(jax.vmap(threat_model.project)(pixels(CLEAN), candidates))


def kept(images, positions=slice(None), **facts):
    clean = TEST.take(np.arange(40)[positions])
    provenance = {"data": adversarial_sets.describe_data(clean, "test"), **facts}
    sizes = np.linspace(0, 1, len(clean.labels), dtype=np.float32)
    return AdversarialSet(images[positions], clean.labels, clean.index, clean.labels, sizes, provenance)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    saved = kept(attacked(attacks.linf(8 / 255)), epsilon=8 / 255, spec={"name": "pgd"})
    adversarial_sets.save(saved, tmp_path / "deep" / "set.npz")
    loaded = adversarial_sets.load(tmp_path / "deep" / "set.npz")
    for there, here in zip(saved[:-1], loaded[:-1], strict=True):
        assert here.dtype == there.dtype
        np.testing.assert_array_equal(here, there)
    assert loaded.provenance == saved.provenance


def test_files_that_are_no_sets(tmp_path):
    with pytest.raises(UserError, match=r"no adversarial images at .*evaluate with --save_adversarial=float32"):
        adversarial_sets.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", images=CLEAN)
    with pytest.raises(UserError, match="is not an adversarial-set file"):
        adversarial_sets.load(tmp_path / "other.npz")


def test_the_clean_images_are_found_and_others_refused():
    images = attacked(attacks.linf(8 / 255))
    part = kept(images, slice(3, 9))
    np.testing.assert_array_equal(adversarial_sets.clean_images(part, TEST).index, np.arange(3, 9))
    changed = CLEAN.copy()
    changed[5, 0, 0, 0] ^= 1
    for other in (TEST._replace(images=changed), TEST.take(np.arange(7)), TEST._replace(labels=LABELS[::-1].copy())):
        with pytest.raises(UserError, match="were made from 6 images of noise that are not in the test split"):
            adversarial_sets.clean_images(part, other)


def test_images_outside_their_threat_model_are_refused():
    threat_model = attacks.linf(8 / 255)
    images = attacked(threat_model)
    adversarial_sets.check_allowed(kept(images), TEST, threat_model)
    images = images.copy()
    images[3, 0, 0, 0] = abs(images[3, 0, 0, 0] - 0.5)
    with pytest.raises(UserError, match=r"1 of 40 adversarial images are outside their threat model, linf 0.0313725"):
        adversarial_sets.check_allowed(kept(images), TEST, threat_model)


@pytest.mark.parametrize(
    "threat_model", [attacks.linf(0.05), attacks.l2(0.7), attacks.l1(3.0)], ids=["linf", "l2", "l1"]
)
def test_rounded_images_stay_in_the_ball_and_close(threat_model):
    images = attacked(threat_model)
    rounded = quantized(threat_model, CLEAN, images)
    assert rounded.dtype == np.uint8
    assert allowed(threat_model, pixels(CLEAN), pixels(rounded)).all()
    # Less than a level away, and nearer to the clean image or where it was, but for float32.
    assert np.abs(rounded - images * 255.0).max() < 1 + 1e-3
    before, after = (np.abs(array - CLEAN.astype(np.float64)) for array in (images * 255.0, rounded.astype(np.float64)))
    assert (after <= before + 1e-3).all()
    assert (rounded != CLEAN).any()


def test_whole_levels_are_kept():
    """clean + 8/255 in float32 lies a little below 8 levels: rounding towards the clean image must not make it 7."""
    threat_model = attacks.linf(8 / 255)
    rounded = quantized(threat_model, CLEAN, attacked(threat_model)).astype(int)
    inner = (CLEAN >= 8) & (CLEAN <= 247)
    assert (np.abs(rounded - CLEAN)[inner] == 8).all()
    np.testing.assert_allclose(distances(threat_model, pixels(CLEAN), pixels(rounded.astype(np.uint8))), 8 / 255, 1e-5)


def test_where_rounding_up_would_leave_the_ball_it_does_not():
    """Each pixel is next to nothing below a level; all of them rounded up together leave a tight l2 ball."""
    image = np.full((1, 32, 32, 3), 100, np.uint8)
    adversarial = ((image + 1 - 5e-4) / 255).astype(np.float32)
    size = float(np.linalg.norm(adversarial - pixels(image)))
    np.testing.assert_array_equal(quantized(attacks.l2(size), image, adversarial), image)
    np.testing.assert_array_equal(quantized(attacks.l2(size * 1.01), image, adversarial), image + 1)


def test_8_bits_need_8_bits():
    with pytest.raises(UserError, match="8-bit adversarial images need 8-bit clean images, got float32"):
        quantized(attacks.linf(0.1), pixels(CLEAN), pixels(CLEAN))
