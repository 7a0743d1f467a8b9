"""Arguments of ``run_stages`` that make no sense: one clear error each, and no image counts as robust for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import combine
from advjax.attacks.batching import sizes_for
from advjax.types import UserError

WEIGHTS = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.3, 0.7, (4, 3, 3, 1)).astype(np.float32)
LINF = attacks.linf(0.1)
FGSM = attacks.fgsm(LINF)


def logits_fn(images):
    return images.reshape(len(images), -1) @ WEIGHTS


LABELS = np.argmax(logits_fn(IMAGES), axis=-1)


def stage(attack=FGSM, rounds=1):
    return attacks.Stage("it", lambda number: attack, lambda num_classes: rounds)


def run(stages=None, threat_model=LINF, model=logits_fn, **options):
    options = {"batch_size": 4, "devices": jax.devices()[:1], **options}
    return attacks.run_stages((stage(),) if stages is None else stages, threat_model, model, IMAGES, LABELS, **options)


TARGETED = attacks.fgsm(LINF, targeted=True)
WRONG = {
    # Without a round, every image would count as robust.
    "no rounds": ({"stages": [stage(rounds=0)]}, ValueError, "rounds of stage 'it' must be at least 1, got 0"),
    "fewer than no rounds": ({"stages": [stage(rounds=-1)]}, ValueError, "rounds of stage 'it' must be at least 1"),
    "half a round": ({"stages": [stage(rounds=1.5)]}, TypeError, "rounds of stage 'it' must be an integer, got 1.5"),
    "no stages": ({"stages": ()}, ValueError, "at least one stage"),
    "an attack for stages": ({"stages": FGSM}, TypeError, "stages must be a list of stages, .* holds Attack"),
    "a list of attacks": ({"stages": [FGSM]}, TypeError, "stages must be a list of stages"),
    "a name": ({"stages": "standard"}, TypeError, "stages must be a list of stages, .* holds 'standard'"),
    "a stage without an attack": ({"stages": [stage(None)]}, TypeError, "stage 'it' must make an attack"),
    "epsilon for a threat model": ({"threat_model": 0.1}, TypeError, "threat_model must be a ThreatModel"),
    "a model that is none": ({"model": "net"}, TypeError, "logits_fn must be a function of images, or .* got 'net'"),
    "a search that is none": ({"search_fn": 3}, TypeError, "search_fn must be a function of images, or .* got 3"),
    "other classes": ({"search_fn": lambda x: logits_fn(x)[:, :2]}, ValueError, "must have the classes of logits_fn"),
    "index of floats": ({"index": np.arange(4) / 2}, ValueError, r"index must be integers of shape \(4,\).*float64"),
    "index of words": ({"index": list("abcd")}, ValueError, "index must be integers"),
    "too few": ({"index": [0, 1]}, ValueError, r"index must be integers of shape \(4,\), .* got int64 \(2,\)"),
    "a negative index": ({"index": np.arange(4) - 1}, ValueError, r"index must be in 0\.\.4294967295, got -1\.\.2"),
    "a large index": ({"index": np.arange(4) + 2**40}, ValueError, "index must be in 0"),
    "a large seed": ({"seed": 2**70}, ValueError, "seed must be an integer of 64 bits or one key, got 118"),
    "half a seed": ({"seed": 0.5}, TypeError, "rng must be a key"),
    "restarts of a targeted attack": (
        {"stages": [stage(attacks.with_restarts(TARGETED, 2))]},
        ValueError,
        "stage 'it' is targeted",
    ),
    "the worst of targeted attacks": (
        {"stages": [stage(attacks.worst_of(attacks.with_restarts(TARGETED, 2), TARGETED))]},
        ValueError,
        "stage 'it' is targeted",
    ),
    "restarts in a smaller ball": (
        {"stages": [stage(attacks.with_restarts(attacks.fgsm(attacks.linf(0.01)), 2))]},
        ValueError,
        "stage 'it' attacks in linf 0.01 .* but threat_model is linf 0.1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_refused(case):
    arguments, error, message = WRONG[case]
    with pytest.raises(error, match=message) as caught:
        run(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: attacks.worst_of(FGSM, TARGETED), "all targeted or all untargeted"),
        (lambda: attacks.over_targets(lambda aim: TARGETED), "must be untargeted"),
        (lambda: combine.targets("x", lambda aim: TARGETED, 2), "must be untargeted"),
        (lambda: attacks.with_predicted_labels(TARGETED), "with_predicted_labels needs an untargeted attack"),
        (lambda: attacks.next_likely_class(0), "rank must be at least 1, got 0"),
        (
            lambda: attacks.fgsm(LINF, aim=attacks.next_likely_class(3))(logits_fn, IMAGES, LABELS, jax.random.key(0)),
            "rank must be at most 2 for 3 classes, got 3",
        ),
    ],
)
def test_combinations_that_make_no_sense_are_refused_when_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_combinations_of_targeted_attacks_can_still_be_called():
    targets = (LABELS + 1) % 3
    for attack in (attacks.with_restarts(TARGETED, 2), attacks.worst_of(TARGETED, TARGETED)):
        result = attack(logits_fn, IMAGES, targets, jax.random.key(0))
        np.testing.assert_array_equal(result.success, np.argmax(result.logits, axis=-1) == targets)


def test_a_folder_of_other_files_is_not_called_damaged(tmp_path):
    """Its owner would be told to delete it."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds other files, e\.g\. thesis\.tex: name another folder$"):
        run(state_file=tmp_path)
    with pytest.raises(UserError, match="name a folder of their own"):
        run(state_file="")


def test_huge_batches_are_no_larger_than_the_images_need():
    assert sizes_for(256, 1, 6) == (16, 64, 256)
    assert sizes_for(10**9, 1, 6) == (64, 256, 1024)
    assert sizes_for(10**9, 2, 2000) == (2000, 8000, 32000)
    np.testing.assert_array_equal(run(batch_size=10**9).broken_by, run().broken_by)


@pytest.mark.filterwarnings("ignore:gradients are NaN")
@pytest.mark.parametrize("how", ["deterministic", "stochastic"])
def test_logits_that_become_nan_predict_nothing(how):
    """The argmax of NaN is class 0, which may be the label."""

    def breaking(images):
        brightness = jnp.mean(images, axis=(1, 2, 3))[:, None]
        return jnp.where(brightness > 0.55, jnp.nan, brightness * jnp.asarray([-1.0, 1.0]) + jnp.asarray([2.0, 0.0]))

    model = breaking if how == "deterministic" else attacks.expectation(lambda images, rng: breaking(images), 2)
    found = attacks.run_stages((stage(),), LINF, model, 0 * IMAGES + 0.5, 0 * LABELS, batch_size=4)
    np.testing.assert_array_equal(found.broken_by, 0)
    np.testing.assert_array_equal(found.refused, 0)


def result(logits_fn, images, labels, **changes):
    none = jnp.zeros(len(images), jnp.int32)
    found = attacks.AttackResult(jnp.asarray(images), logits_fn(images), none > 0, 0.0 * none, none)
    return found._replace(**changes)


OWN = {
    "nothing": (
        lambda f, x, y, key: None,
        TypeError,
        "stage 'it': an attack must return an AttackResult, got NoneType",
    ),
    "images alone": (lambda f, x, y, key: x, TypeError, "an attack must return an AttackResult"),
    "numpy": (lambda f, x, y, key: result(f, np.asarray(x), y), TypeError, "an attack is traced by JAX"),
    "a branch": (
        lambda f, x, y, key: result(f, x, y) if x.max() > 0 else None,
        TypeError,
        "an attack is traced by JAX",
    ),
    "one success": (
        lambda f, x, y, key: result(f, x, y, success=jnp.ones(2, bool)),
        ValueError,
        "must return one image",
    ),
    "half the images": (lambda f, x, y, key: result(f, x, y)._replace(images=x[..., :1, :]), ValueError, "one image"),
}


@pytest.mark.parametrize("kind", OWN)
def test_functions_that_are_no_attacks_are_explained(kind):
    attack, error, message = OWN[kind]
    with pytest.raises(error, match=message) as caught:
        run([stage(attack)])
    assert "\n" not in str(caught.value)


def test_a_function_that_changes_nothing_is_no_evidence():
    with pytest.warns(UserWarning, match=r"made no progress on 4 of 4 robust images \(it on 4\)"):
        found = run([stage(lambda f, x, y, key: result(f, x, y))])
    np.testing.assert_array_equal(found.without_progress, True)
    moved = run([stage(lambda f, x, y, key: result(f, x, y)._replace(images=x + 1e-6))])
    assert not np.any(moved.without_progress)


def test_epsilon_may_be_an_array_of_jax():
    ball = attacks.linf(jnp.float32(0.1))
    found = run([stage(attacks.fgsm(ball))], ball)
    np.testing.assert_array_equal(found.broken_by, run().broken_by)
