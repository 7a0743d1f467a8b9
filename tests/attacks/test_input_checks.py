"""Every mistake gets one clear message, and nothing that is right gets one."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import input_checks
from advjax.experiment import registry

IMAGES = np.full((3, 2, 2, 1), 0.5, np.float32)
LABELS = np.asarray([0, 1, 0])
KEY = jax.random.key(0)
ATTACK = attacks.fgsm(attacks.linf(0.1))


def two_classes(images):
    total = jnp.sum(images, axis=(1, 2, 3))
    return jnp.stack([total, 2 - total], axis=-1)


def run(logits_fn=two_classes, images=IMAGES, labels=LABELS, rng=KEY):
    return ATTACK(logits_fn, images, labels, rng)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((3, 2, 2, 1), np.uint8)}, r"floating point in \[0.0, 1.0\], got uint8.*/ 255"),
        ({"images": IMAGES[0]}, r"shape \[n, height, width, channels\], got \(2, 2, 1\)"),
        ({"images": IMAGES * 255}, r"lie in \[0.0, 1.0\], got values in \[127.5, 127.5\].*normalization inside"),
        ({"images": IMAGES - 1}, r"lie in \[0.0, 1.0\], got values in \[-0.5, -0.5\]"),
        ({"images": IMAGES * np.nan}, r"lie in \[0.0, 1.0\], got values in \[nan, nan\]"),
        ({"labels": LABELS[:2]}, r"labels must be integers of shape \(3,\), one per image, got int64 \(2,\)"),
        ({"labels": np.eye(2)[LABELS]}, r"labels must be integers of shape \(3,\).*\(3, 2\)"),
        ({"labels": LABELS.astype(np.float32)}, r"labels must be integers of shape \(3,\).*float32"),
        ({"labels": LABELS + 1}, r"labels must be in 0..1 for these logits, got 1..2"),
        ({"labels": LABELS - 1}, r"labels must be in 0..1 for these logits, got -1..0"),
        # As int32, 2**32 would be class 0.
        ({"labels": LABELS + 2**32}, r"labels must be classes, got 4294967296..4294967297"),
        ({"logits_fn": lambda x: two_classes(x)[:, 0]}, r"shape \(3, classes\).*got \(3,\)"),
        ({"logits_fn": lambda x: two_classes(x)[:1]}, r"shape \(3, classes\).*got \(1, 2\)"),
        ({"logits_fn": lambda x: two_classes(x)[:, :1]}, r"at least two classes, got \(3, 1\)"),
        ({"logits_fn": lambda x: two_classes(x) * jnp.nan}, r"logits_fn returns NaN on the unperturbed images"),
        ({"rng": jax.random.split(KEY, 2)}, r"one key or one key per image \(3\), got an array of shape \(2,\)"),
    ],
)
def test_inputs(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        run(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: attacks.linf(-0.1), r"epsilon must be 0 or more .*got -0.1"),
        (lambda: attacks.l2(float("nan")), r"epsilon must be 0 or more .*got nan"),
        (
            lambda: attacks.linf(0.1, bounds=(1.0, 0.0)),
            r"bounds must be \(low, high\) with low < high, got \(1.0, 0.0\)",
        ),
        (lambda: attacks.fgsm(attacks.l2(np.inf)), r"fgsm needs a finite epsilon, got l2 inf"),
        (
            lambda: attacks.pgd(attacks.l2(np.inf), num_steps=1, step_size=0.1),
            r"pgd needs a finite epsilon, got l2 inf",
        ),
        (lambda: attacks.pgd(attacks.l2(1), num_steps=0, step_size=0.1), r"num_steps must be at least 1, got 0"),
        (lambda: attacks.bim(attacks.l2(1), num_steps=1, step_size=-1), r"step_size must be 0 or more, got -1"),
        (
            lambda: attacks.pgd(attacks.l2(1), num_steps=1, step_size=0.1, returns="first"),
            r"returns must be one of best, highest_loss, latest_success, last, got 'first'",
        ),
        (lambda: attacks.auto_pgd(attacks.l1(1)), r"auto_pgd needs linf or l2 with a finite epsilon, got l1 1"),
        (lambda: attacks.auto_pgd(attacks.linf(np.inf)), r"auto_pgd needs linf or l2 .*got linf inf"),
        (lambda: attacks.auto_pgd(attacks.linf(0.1), loss="kl"), r"one of ce, dlr or a function .*got 'kl'"),
        (lambda: attacks.auto_pgd(attacks.linf(0.1), rho=0.0), r"rho must be in \(0, 1\], got 0.0"),
        (lambda: attacks.auto_pgd(attacks.linf(0.1), rho=1.5), r"rho must be in \(0, 1\], got 1.5"),
        (lambda: attacks.auto_pgd(attacks.linf(0.1), num_steps=0), r"num_steps must be at least 1, got 0"),
        (lambda: attacks.linf(np.inf).sample(IMAGES[0], KEY), r"a random start needs a finite epsilon"),
    ],
)
def test_building(build, message):
    with pytest.raises(ValueError, match=message):
        build()


MAGNITUDES = {
    "epsilon": lambda x: attacks.fgsm(attacks.linf(x)),
    "step_size": lambda x: attacks.pgd(attacks.linf(0.1), num_steps=1, step_size=x),
    "step_size of auto_pgd": lambda x: attacks.auto_pgd(attacks.linf(0.1), num_steps=1, step_size=x),
    "rho": lambda x: attacks.auto_pgd(attacks.linf(0.1), num_steps=1, rho=x),
    "overshoot": lambda x: attacks.deepfool(attacks.linf(0.1), num_steps=1, overshoot=x),
    "alpha_max": lambda x: attacks.fab(attacks.linf(0.1), num_steps=1, alpha_max=x),
    "eta": lambda x: attacks.fab(attacks.linf(0.1), num_steps=1, eta=1 + x),
    "beta": lambda x: attacks.fab(attacks.linf(0.1), num_steps=1, beta=x),
    "learning_rate": lambda x: attacks.carlini_wagner_l2(attacks.l2(0.1), num_steps=1, learning_rate=x),
    "initial_const": lambda x: attacks.carlini_wagner_l2(attacks.l2(0.1), num_steps=1, initial_const=x),
    "confidence": lambda x: attacks.carlini_wagner_linf(attacks.linf(0.1), num_steps=1, confidence=x),
    "rate of a line search": lambda x: attacks.carlini_wagner_l2_line_search(attacks.l2(0.1), learning_rate=x),
    "level": attacks.gaussian_noise,
}


@pytest.mark.parametrize("name", MAGNITUDES)
def test_magnitudes_may_be_traced(name):
    """An attack is built and called inside jit, from a number that is not known there."""
    jax.eval_shape(lambda x: MAGNITUDES[name](x)(two_classes, IMAGES, LABELS, KEY).images, jnp.float32(0.5))


def test_shapes_are_checked_inside_jit():
    with pytest.raises(ValueError, match="one per image"):
        jax.jit(lambda images, labels: run(images=images, labels=labels))(IMAGES, LABELS[:2])


def test_values_known_inside_jit_are_checked_there():
    images, labels = jnp.asarray(IMAGES), jnp.asarray(LABELS)
    inside = jax.jit(lambda rng: run(images=images, labels=labels, rng=rng).images)(KEY)
    np.testing.assert_array_equal(inside, run().images)
    with pytest.raises(ValueError, match="must lie in"):
        jax.jit(lambda rng: run(images=IMAGES + 1, rng=rng))(KEY)
    with pytest.raises(ValueError, match="labels must be in"):
        jax.jit(lambda rng: run(images=images, labels=LABELS + 5, rng=rng))(KEY)


@pytest.mark.parametrize(
    "arguments",
    [
        {"images": jnp.asarray(IMAGES)},
        {"images": IMAGES.astype(np.float64)},
        {"labels": LABELS.astype(np.uint8)},
        {"labels": jnp.asarray(LABELS)},
        {"rng": jax.random.PRNGKey(0)},
        {"rng": jax.random.split(KEY, 3)},
    ],
)
def test_what_is_right_passes(arguments):
    np.testing.assert_array_equal(run(**arguments).images, run().images)


def softmax_of_two_classes(images):
    return jax.nn.softmax(two_classes(images))


def test_probabilities_get_one_warning():
    with pytest.warns(UserWarning, match="seems to return probabilities.*return logits") as seen:
        run(softmax_of_two_classes)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert "\n" not in str(seen[0].message)


@pytest.mark.parametrize(
    "logits_fn",
    [
        two_classes,
        lambda x: jax.nn.log_softmax(two_classes(x)),
        lambda x: softmax_of_two_classes(x) * 1.001,
        lambda x: softmax_of_two_classes(x) - 0.5,
        lambda x: softmax_of_two_classes(x).at[0, 0].add(0.1),
        lambda x: 3 * softmax_of_two_classes(x) - 1,
    ],
)
def test_logits_get_no_warning(logits_fn):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(logits_fn)


def test_probabilities_go_unnoticed_inside_jit():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(lambda images: run(softmax_of_two_classes, images))(IMAGES)


def test_other_bounds():
    threat_model = attacks.linf(0.5, bounds=(-1.0, 1.0))
    result = attacks.fgsm(threat_model)(two_classes, IMAGES - 1.25, LABELS, KEY)
    np.testing.assert_allclose(np.unique(result.images), [-1.0, -0.25], rtol=1e-6)


@pytest.mark.parametrize("attack", [ATTACK, attacks.auto_pgd(attacks.l2(0.1), num_steps=2)])
@pytest.mark.parametrize(("images", "logits"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_precision_of_the_model_may_differ_from_that_of_the_images(attack, images, logits):
    result = jax.eval_shape(
        lambda x: attack(lambda x: two_classes(x).astype(logits), x, LABELS, KEY), jnp.asarray(IMAGES, images)
    )
    assert result.images.dtype == images
    assert result.logits.dtype == logits
    assert result.distance.dtype == jnp.float32


@pytest.mark.parametrize("make", [attacks.linf, attacks.l2, attacks.l1])
def test_precision_of_the_images_is_kept_in_64_bit_mode(make):
    with jax.enable_x64(True):
        attack = attacks.pgd(make(np.float64(0.1)), num_steps=2, step_size=np.float64(0.1))
        result = jax.eval_shape(lambda x: attack(two_classes, x, LABELS, jax.random.key(0)), IMAGES)
        assert result.images.dtype == np.float32


def test_a_stochastic_model_in_train_mode_is_explained_like_any_other():
    class TraceContextError(Exception):
        """As Flax raises it where a module counts its keys."""

    def training(images, rng=None):
        raise TraceContextError("Cannot mutate RngCount from a different trace level")

    for model in (training, attacks.expectation(training, 2)):
        with pytest.raises(TypeError, match=r"^logits_fn cannot be attacked: .*call model\.eval\(\) first$"):
            run(model)


@pytest.mark.parametrize("name", [*registry.ATTACKS, *registry.ATTACK_ENSEMBLES])
@pytest.mark.parametrize("given", [0.03, None, "linf"])
def test_an_epsilon_is_no_threat_model(name, given):
    build = {**registry.ATTACKS, **registry.ATTACK_ENSEMBLES}[name]
    arguments = {"num_steps": 3, "step_size": 0.01} if name in ("pgd", "bim") else {}
    with pytest.raises(TypeError, match=r"needs a threat model, such as attacks\.linf\(8 / 255\), got "):
        build(given, **arguments)


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_infinite_and_huge_logits_are_no_reason_to_warn(asarray):
    logits = np.float32([[np.inf, -np.inf, 0], [3e38, 3e38, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        input_checks.check_logits(asarray(logits), np.zeros((2, 3, 3, 1), np.float32), np.zeros(2, np.int32))
