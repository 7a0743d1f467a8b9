"""What an attack cannot handle is refused or marked, and never counts as robust."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import AttackResult, ThreatModel
from advjax.attacks.losses import least_likely_class, other_classes
from advjax.attacks.model_queries import is_fooled
from support import attack_models as am
from support.attack_rows import ATTACKS, FIRST, QUICK

KEY = jax.random.key(0)
NORMS = {"linf": attacks.LINF, "l2": attacks.L2, "l1": attacks.L1}
first_norm = pytest.mark.parametrize(("name", "norm"), FIRST)


def made(name, norm, epsilon, bounds=(0.0, 1.0)):
    return ATTACKS[name].make(ThreatModel(NORMS[norm], epsilon, bounds), False)


def run(attack, logits_fn, images, labels, **options):
    """Compiled quickly."""
    jitted = jax.jit(functools.partial(attack, logits_fn, **options), compiler_options=QUICK)
    return jax.device_get(jitted(images, labels, am.keys_of(range(len(images)))))


# Bounds.

NEED_FINITE_BOUNDS = {
    "carlini_wagner_l2",
    "carlini_wagner_l2_last",
    "carlini_wagner_l2_line_search",
    "carlini_wagner_linf_line_search",
    "carlini_wagner_linf",
    "fab",
}


HALF_INFINITE = {"fgsm": (0.0, math.inf), "deepfool": (-math.inf, 1.0), "auto_pgd_l1": (0.0, math.inf)}


@first_norm
def test_infinite_bounds_are_refused_or_attacked_as_well(name, norm):
    known = am.known_distance(norm)
    if name in NEED_FINITE_BOUNDS:
        for bounds in ((-math.inf, math.inf), (0.0, math.inf), (-math.inf, 1.0)):
            with pytest.raises(ValueError, match=r"needs finite pixel bounds, got \("):
                made(name, norm, 0.1, bounds)
        return
    bounds = HALF_INFINITE.get(name, (-math.inf, math.inf))
    result = run(
        made(name, norm, ATTACKS[name].enough * known.epsilon, bounds), known.model, known.images, known.labels
    )
    assert np.all(result.success) and not np.any(result.invalid) and np.all(np.isfinite(result.images))
    # An image outside the ball must not be allowed because the bounds are infinite.
    assert not ThreatModel(NORMS[norm], 0.1, bounds).contains(known.images[0], known.images[0] + 0.2)


SCALED = [name for name, row in ATTACKS.items() if row.minimal]


@pytest.mark.parametrize("name", SCALED)
def test_constants_scale_with_the_pixels(name):
    """The same problem with pixels in 0..256."""
    norm = ATTACKS[name].norms[0]
    known, scale = am.known_distance(norm), np.float32(256)
    epsilon = 1.5 * known.epsilon
    plain = run(made(name, norm, epsilon), known.model, known.images, known.labels)
    scaled = run(
        made(name, norm, scale * epsilon, (0.0, 256.0)),
        lambda images: known.model(images / scale),
        scale * known.images,
        known.labels,
    )
    np.testing.assert_array_equal(scaled.success, plain.success)
    np.testing.assert_allclose(scaled.distance / scale, plain.distance, rtol=1e-2)
    assert np.any(plain.success)


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((np.zeros(3), np.ones(3)), ValueError, "two numbers, for all pixels and channels, got arrays of shape"),
        ((0.0, math.nan), ValueError, "low < high"),
        ((0.0, 0.0), ValueError, "low < high"),
        ((0.0,), TypeError, "pair"),
        (1.0, TypeError, "pair"),
        (("0", "1"), TypeError, "pair"),
        ((None, 1.0), TypeError, "pair"),
    ],
)
def test_bounds_that_are_none(bounds, error, message):
    with pytest.raises(error, match=message):
        attacks.linf(0.1, bounds)


def test_bounds_must_not_be_traced():
    with pytest.raises(TypeError, match="set them outside jit"):
        jax.jit(lambda high: attacks.linf(0.1, (0.0, high)).project(jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1))))(1.0)


@pytest.mark.parametrize(
    ("epsilon", "error", "message"),
    [
        (np.full(4, 0.1), ValueError, r"single number, got an array of shape \(4,\).*vmap the attack"),
        (jnp.zeros((1,)), ValueError, "single number"),
        ("8/255", TypeError, "epsilon must be a number, got '8/255'"),
        (None, TypeError, "epsilon must be a number, got None"),
        (-math.inf, ValueError, "0 or more"),
        (math.nan, ValueError, "0 or more"),
    ],
)
def test_epsilons_that_are_none(epsilon, error, message):
    with pytest.raises(error, match=message):
        attacks.linf(epsilon)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: attacks.bim(attacks.linf(0.1), num_steps=1.5, step_size=0.1), TypeError, "num_steps must be an int"),
        (lambda: attacks.bim(attacks.linf(0.1), num_steps=1, step_size=math.inf), ValueError, "step_size must be 0 or"),
        (lambda: attacks.bim(attacks.linf(0.1), num_steps=1, step_size=np.ones(3)), ValueError, "single number"),
        (lambda: attacks.auto_pgd(attacks.linf(0.1), step_size=-1.0), ValueError, "step_size must be 0 or more"),
        (lambda: attacks.square(attacks.linf(0.1), num_queries=0), ValueError, "num_queries must be at least 1, got 0"),
        (lambda: attacks.random_points(attacks.linf(0.1), num_points=0), ValueError, "num_points must be at least 1"),
        (lambda: attacks.random_points(attacks.linf(math.inf)), ValueError, "random_points needs a finite epsilon"),
        (
            lambda: attacks.carlini_wagner_l2(attacks.l2(1), learning_rate=0.0),
            ValueError,
            "learning_rate must be above",
        ),
        (
            lambda: attacks.carlini_wagner_l2(attacks.l2(1), initial_const=0),
            ValueError,
            "initial_const must be above 0",
        ),
        (
            lambda: attacks.carlini_wagner_linf(attacks.linf(1), confidence=math.nan),
            ValueError,
            "confidence must be fin",
        ),
        (lambda: attacks.with_restarts(attacks.fgsm(attacks.linf(0.1)), 1.5), TypeError, "num_restarts must be an int"),
        (lambda: attacks.gaussian_noise("much"), TypeError, "level must be a number"),
    ],
)
def test_arguments_that_no_attack_can_use(build, error, message):
    with pytest.raises(error, match=message):
        build()


# Images, labels and logits.

IMAGES = am.gray_images(6)
MODEL = am.random_linear(IMAGES, num_classes=3)
LABELS = np.array(np.argmax(MODEL(IMAGES), axis=-1))
PGD = attacks.bim(attacks.linf(1e-4), num_steps=2, step_size=1e-4)


def with_pixel(value, image=1):
    images = IMAGES.copy()
    images[image, 0, 0, 0] = value
    return images


def sometimes_nan(images):
    return jnp.where(images[:, :1, 0, 0] == 0.125, jnp.nan, MODEL(images))


BAD = {
    "NaN pixel": (with_pixel(np.nan), LABELS, IMAGES),
    "infinite pixel": (with_pixel(np.inf), LABELS, IMAGES),
    "too bright": (with_pixel(1 + 1e-6), LABELS, IMAGES),
    "too dark": (with_pixel(-1e-6), LABELS, IMAGES),
    "label too large": (IMAGES, np.where(np.arange(6) == 1, 3, LABELS), IMAGES),
    "negative label": (IMAGES, np.where(np.arange(6) == 1, -1, LABELS), IMAGES),
    "NaN logits": (with_pixel(0.125), LABELS, IMAGES),
    "start": (IMAGES, LABELS, with_pixel(np.nan)),
}
"""Images, labels and starts, of which those of image 1 are bad."""
FORMS = {
    "attack": PGD,
    "targeted": attacks.bim(attacks.linf(1e-4), num_steps=2, step_size=1e-4, targeted=True),
    "queries": attacks.square(attacks.linf(1e-4), num_queries=2),
    "until done": attacks.deepfool(attacks.linf(1e-4), num_steps=2),
    "with_restarts": attacks.with_restarts(PGD, 2),
    "closest": attacks.with_restarts(PGD, 2, keep="closest"),
    "worst_of": attacks.worst_of(PGD, attacks.fgsm(attacks.linf(1e-4)), keep="closest"),
    "over_targets": attacks.over_targets(lambda aim: attacks.fgsm(attacks.linf(1e-4), aim=aim), 2),
    "large epsilon": attacks.auto_pgd_l1_large_epsilon(attacks.l1(1e-4), num_steps=5),
}


@pytest.mark.parametrize("form", FORMS)
def test_bad_images_are_marked_under_jit_and_harm_no_others(form):
    """Image 1 of each case, and then the good images, in one batch."""
    images = np.concatenate([[case[0][1] for case in BAD.values()], IMAGES])
    labels = np.concatenate([[case[1][1] for case in BAD.values()], LABELS])
    starts = np.concatenate([[case[2][1] for case in BAD.values()], IMAGES])
    is_bad = np.arange(len(images)) < len(BAD)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def attacked(images, labels, starts):
        return FORMS[form](sometimes_nan, images, labels, am.keys_of(range(len(images))), starts)

    found = attacked(images, labels, starts)
    again = np.where(is_bad[:, None, None, None], IMAGES[0], images)
    fine = attacked(
        again, np.where(is_bad, LABELS[0], labels), np.where(is_bad[:, None, None, None], IMAGES[0], starts)
    )
    np.testing.assert_array_equal(found.invalid, is_bad)
    np.testing.assert_array_equal(fine.invalid, False)
    assert np.all(found.success[is_bad])
    for field in ("images", "logits", "distance"):
        assert np.all(np.isnan(getattr(found, field)[is_bad]))
    for field in ("images", "logits", "success", "distance", "steps"):
        np.testing.assert_array_equal(getattr(found, field)[~is_bad], getattr(fine, field)[~is_bad])
    assert np.all(found.success[~is_bad]) == (form == "targeted")


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("form", ["attack", "with_restarts"])
def test_bad_images_raise_outside_jit(name, form):
    images, labels, starts = BAD[name]
    with pytest.raises(ValueError, match=r"must|returns NaN|could not be attacked"):
        FORMS[form](sometimes_nan, images, labels, KEY, starts)


def test_predicted_labels_carry_the_mark():
    attack = attacks.with_predicted_labels(PGD)
    result = run(attack, MODEL, with_pixel(np.nan), LABELS)
    np.testing.assert_array_equal(result.invalid, np.arange(6) == 1)
    assert result.success[1]


def test_the_mark_survives_attacks_that_do_not_know_it():
    def plain(logits_fn, images, labels, rng):
        none = jnp.zeros(len(images), jnp.int32)
        return AttackResult(jnp.asarray(images), logits_fn(images), none == 0, none + 1e-9, none)

    for attack in (attacks.worst_of(plain, PGD, keep="closest"), attacks.worst_of(PGD, plain, keep="closest")):
        result = run(attack, MODEL, with_pixel(2.0), LABELS)
        np.testing.assert_array_equal(result.invalid, np.arange(6) == 1)
        np.testing.assert_array_equal(np.isnan(result.distance), np.arange(6) == 1)


@pytest.mark.parametrize("value", [np.float32(1 + 2e-7), np.float32(-2e-7)])
def test_rounding_at_the_bounds_is_valid(value):
    images = with_pixel(value)
    labels = LABELS.copy()
    labels[1] = (labels[1] + 1) % 3
    for result in (PGD(MODEL, images, labels, KEY), run(PGD, MODEL, images, labels, until_success=True)):
        assert not np.any(result.invalid) and result.success[1]
        assert np.min(result.images) >= 0 and np.max(result.images) <= 1


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda z: (z, {}), "one array of logits .* got a tuple: return the logits alone"),
        (lambda z: {"logits": z}, "got a dict"),
        (lambda z: None, "got a NoneType"),
        (lambda z: z.astype(int), "floating-point logits, got int32"),
        (lambda z: z > 0, "floating-point logits, got bool"),
    ],
)
def test_outputs_that_are_no_logits(output, message):
    def logits_fn(images):
        return output(MODEL(images))

    forms = [PGD, attacks.with_restarts(PGD, 2), attacks.worst_of(PGD, PGD), attacks.with_predicted_labels(PGD)]
    for attack in forms:
        with pytest.raises(TypeError, match=message):
            attack(logits_fn, IMAGES, LABELS, KEY)
    with pytest.raises(TypeError, match=message):
        PGD(attacks.expectation(lambda images, rng: logits_fn(images), 2), IMAGES, LABELS, KEY)


@pytest.mark.parametrize("form", ["attack", "with_restarts", "worst_of", "over_targets", "large epsilon"])
def test_lists_are_as_good_as_arrays(form):
    attack = FORMS[form]
    expected = attack(MODEL, IMAGES, LABELS, KEY)
    result = attack(MODEL, IMAGES.tolist(), LABELS.tolist(), KEY)
    np.testing.assert_array_equal(result.images, expected.images)


@pytest.mark.parametrize(
    ("images", "labels", "start", "error", "message"),
    [
        ("cat.png", LABELS, None, TypeError, "images must be an array of numbers, got str"),
        (IMAGES, ["cat"] * 6, None, TypeError, "labels must be an array of numbers, got list"),
        (IMAGES, LABELS > 0, None, ValueError, "labels must be integers"),
        (IMAGES, LABELS, IMAGES[:2], ValueError, r"start must have the shape of the images, \(6,"),
        (IMAGES, LABELS, IMAGES * np.inf, ValueError, "start must be finite"),
    ],
)
def test_inputs_of_other_kinds(images, labels, start, error, message):
    with pytest.raises(error, match=message):
        PGD(MODEL, images, labels, KEY, start)


def test_nan_logits_predict_nothing():
    logits = np.float32([[np.nan, 0, 1], [0, 2, 1], [0, 1, np.nan]])
    np.testing.assert_array_equal(is_fooled(logits, np.asarray([0, 1, 2])), [True, False, True])
    np.testing.assert_array_equal(is_fooled(logits, np.asarray([0, 1, 2]), True), [False, True, False])


def test_a_model_that_fails_off_the_images_is_not_robust():
    def logits_fn(images):
        moved = jnp.any(images != IMAGES, axis=(1, 2, 3))
        return jnp.where(moved[:, None], jnp.nan, MODEL(images))

    result = run(attacks.pgd(attacks.linf(1e-3), num_steps=2, step_size=1e-3), logits_fn, IMAGES, LABELS)
    assert np.all(result.success)


# Kinds of logits.

FAMILIES = [
    ("auto_pgd", "linf"),
    ("auto_pgd_dlr_best", "l2"),
    ("auto_pgd_l1", "l1"),
    ("carlini_wagner_l2", "l2"),
    ("carlini_wagner_linf", "linf"),
    ("carlini_wagner_linf_line_search", "linf"),
    ("deepfool", "l2"),
    ("fab", "linf"),
    ("square", "l2"),
]
each_family = pytest.mark.parametrize(("name", "norm"), FAMILIES)


def masked(model, num_classes):
    """The first of the model's classes between others that are masked."""

    def logits_fn(images):
        logits = model(images)[:, :num_classes]
        mask = jnp.full((len(images), 1), -jnp.inf)
        return jnp.concatenate([mask, logits, mask, mask], axis=-1)

    return logits_fn


@each_family
def test_masked_classes_are_ignored(name, norm):
    known = am.known_distance(norm)
    attack = made(name, norm, ATTACKS[name].enough * known.epsilon)
    for num_classes in (2, 3)[: 1 + (name == "fab")]:
        result = run(attack, masked(known.model, num_classes), known.images, known.labels + 1)
        assert np.all(result.success) and not np.any(result.nonfinite)


@each_family
def test_half_precision_constant_and_many_logits(name, norm):
    known = am.known_distance(norm)
    attack = made(name, norm, 1.1 * ATTACKS[name].enough * known.epsilon)
    half = functools.partial(run, attack, lambda images: known.model(images).astype(jnp.bfloat16))
    if name == "carlini_wagner_linf_line_search":
        with pytest.raises(ValueError, match="line search need logits in float32 or float64, got bfloat16"):
            half(known.images, known.labels)
    else:
        assert np.all(half(known.images, known.labels).success)
    constant = run(attack, lambda images: 0 * known.model(images) + 1, known.images, known.labels)
    np.testing.assert_array_equal(constant.success, known.labels == 1)
    assert np.all(np.isfinite(constant.images))
    many = am.random_linear(known.images, num_classes=1000)
    result = jax.eval_shape(functools.partial(attack, many), known.images, jnp.asarray(known.labels), KEY)
    assert result.logits.shape == (8, 1000)


def test_the_ratio_of_logits_falls_back_to_the_margin():
    for logits in ([2.0, 1.0, -np.inf, -np.inf], [2.0, 1.0]):
        assert attacks.dlr(jnp.float32(logits), jnp.int32(0)) == -1
        assert attacks.targeted_dlr(jnp.float32(logits), jnp.int32(0), jnp.int32(1)) == -1
    three = attacks.targeted_dlr(jnp.float32([2.0, 1.0, 0.0]), jnp.int32(0), jnp.int32(1))
    np.testing.assert_allclose(attacks.targeted_dlr(jnp.float32([2.0, 1.0, 0.0, -np.inf]), 0, 1), three)
    half = attacks.dlr(jnp.float16([1.0, 1.0, 1.0]), jnp.int32(0))
    assert half == 0


def test_the_label_comes_after_masked_classes():
    logits = jnp.float32([-np.inf, 1.0, 3.0, -np.inf, 2.0])
    assert list(other_classes(logits, jnp.int32(2)))[:2] == [4, 1]
    assert 0 not in list(other_classes(logits, jnp.int32(0)))
    problem = attacks.Problem(IMAGES[0], jnp.int32(2), KEY, logits, None)
    assert least_likely_class(problem) == 1
