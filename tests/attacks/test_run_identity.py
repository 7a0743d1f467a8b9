"""A result store belongs to one function: to its variables, logits and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import combine, model_queries, runner
from advjax.types import UserError

COUNT, CLASSES = 12, 3
IMAGES = np.random.default_rng(0).uniform(0.3, 0.7, (COUNT, 3, 3, 1)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(9, CLASSES)).astype(np.float32)
LABELS = np.argmax(IMAGES.reshape(COUNT, -1) @ WEIGHTS, axis=-1)
THREAT_MODEL = attacks.linf(0.1)
STAGES = combine.restarts("fgsm", attacks.fgsm(THREAT_MODEL), 1)


def plain(weights, images):
    return images.reshape(len(images), -1) @ weights


def detached(weights, images):
    return plain(weights, jax.lax.stop_gradient(images))


def detached_in_part(weights, images):
    """As by a quantization layer in one of two branches."""
    return 0.5 * plain(weights, images) + 0.5 * detached(weights, images)


def with_gradient(gradient):
    """``plain`` with another gradient with respect to the images, such as a straight-through estimator."""

    @jax.custom_vjp
    def model(weights, images):
        return plain(weights, images)

    def backward(residuals, cotangent):
        weights, images = residuals
        return jnp.zeros_like(weights), gradient((cotangent @ weights.T).reshape(images.shape))

    model.defvjp(lambda weights, images: (plain(weights, images), (weights, images)), backward)
    return model


FAULTY = {
    "detached": detached,
    "detached in part": detached_in_part,
    "a thousandth": with_gradient(lambda gradient: gradient / 1000),
    "of the wrong sign": with_gradient(jnp.negative),
    "zero on one pixel": with_gradient(lambda gradient: gradient.at[:, 0, 0].set(0)),
    "NaN on one image of twelve": with_gradient(lambda gradient: gradient.at[0].set(jnp.nan)),
    "zero on one image of twelve": with_gradient(lambda gradient: gradient.at[0].set(0)),
}


def run(model, folder, how, *, weights=WEIGHTS, search=None, **options):
    """A run of a model that has variables, closes over them, or is stochastic."""

    def bound(function):
        if how == "closure":
            return lambda images: function(weights, images)
        if how == "variables":
            return lambda variables: lambda images: function(variables, images)

        def draw(variables, images, rng):
            return function(variables, images + 0.01 * jax.random.normal(rng, images.shape))

        return lambda variables: attacks.expectation(lambda images, rng: draw(variables, images, rng), 2)

    options |= {} if how == "closure" else {"variables": weights}
    options |= {} if search is None else {"search_fn": bound(search)}
    arguments = (STAGES,), THREAT_MODEL, bound(model), IMAGES, LABELS
    return runner.run_stages(*arguments, state_file=folder, batch_size=COUNT, devices=jax.devices()[:1], **options)


@pytest.mark.filterwarnings("ignore:gradients are NaN", "ignore:.*no progress")
@pytest.mark.parametrize(
    ("how", "fault"), [("closure", "detached"), ("stochastic", "detached"), *(("variables", fault) for fault in FAULTY)]
)
def test_a_repaired_gradient_is_another_model(how, fault, tmp_path):
    for first, second in ((FAULTY[fault], plain), (plain, FAULTY[fault])):
        folder = tmp_path / ("faulty" if second is plain else "plain")
        run(first, folder, how)
        # Equal functions resume.
        run(first, folder, how, progress=lambda at: pytest.fail("attacked again"))
        with pytest.raises(UserError, match=r"^\S+ belongs to another run \(.*gradients differ\): delete it"):
            run(second, folder, how)


@pytest.mark.parametrize(
    ("how", "scale"),
    [("closure", 0.0), ("stochastic", 0.0), *(("variables", scale) for scale in (0.0, 1e-30, 1e4, 1e30))],
)
def test_a_model_with_any_size_of_gradients_resumes(how, scale, tmp_path):
    """All zero, about to vanish, and saturating the softmax."""
    model = lambda weights, images: plain(scale * weights, images)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "warn_of_doubtful", lambda *arguments, **options: None)
        first = run(model, tmp_path / "store", how)
        again = run(model, tmp_path / "store", how, progress=lambda at: pytest.fail("attacked again"))
    np.testing.assert_array_equal(first.images, again.images)


@pytest.mark.parametrize("how", ["variables", "stochastic"])
def test_other_variables_are_another_model(how, tmp_path):
    run(plain, tmp_path / "store", how)
    with pytest.raises(UserError, match=r"variables.* differ"):
        run(plain, tmp_path / "store", how, weights=np.nextafter(WEIGHTS, 9))


@pytest.mark.parametrize("how", ["closure", "variables"])
def test_the_search_belongs_to_the_run(how, tmp_path):
    lower = lambda weights, images: plain(weights, images.astype(jnp.bfloat16)).astype(images.dtype)  # noqa: E731
    run(plain, tmp_path / "store", how, search=lower)
    run(plain, tmp_path / "store", how, search=lower, progress=lambda at: pytest.fail("attacked again"))
    with pytest.raises(UserError, match=r"\(search gradients, search vanishing gradients differ\)"):
        run(plain, tmp_path / "store", how, search=lambda weights, images: detached(weights, images))


@pytest.mark.parametrize("how", ["closure", "variables"])
def test_functions_without_gradients_resume(how, tmp_path):
    def called_back(weights, images):
        shape = jax.ShapeDtypeStruct((len(images), CLASSES), jnp.float32)
        return jax.pure_callback(lambda w, x: np.asarray(x).reshape(len(x), -1) @ np.asarray(w), shape, weights, images)

    def looped(weights, images):
        logits = plain(weights, images)
        return jax.lax.while_loop(
            lambda carry: carry[0] < 1, lambda carry: (carry[0] + 1, 1.0 * carry[1]), (0, logits)
        )[1]

    square = (combine.restarts("square", attacks.square(THREAT_MODEL, num_queries=3), 1),)
    for number, function in enumerate((called_back, looped)):
        bind = lambda weights, function=function: lambda images: function(weights, images)  # noqa: E731
        model, options = (bind(WEIGHTS), {}) if how == "closure" else (bind, {"variables": WEIGHTS})
        options |= {"state_file": tmp_path / str(number), "batch_size": COUNT, "devices": jax.devices()[:1]}
        arguments = square, THREAT_MODEL, model, IMAGES, LABELS
        first = runner.run_stages(*arguments, **options)
        again = runner.run_stages(*arguments, **options, progress=lambda at: pytest.fail("attacked again"))
        np.testing.assert_array_equal(first.images, again.images)
        if function is looped:
            repaired = (lambda v: lambda x: plain(v, x)) if how == "variables" else lambda x: plain(WEIGHTS, x)
            with pytest.raises(UserError, match=r"\(gradients, vanishing gradients differ\)"):
                runner.run_stages(*arguments[:2], repaired, *arguments[3:], **options)


def test_probes_follow_masked_classes_and_saturated_ones():
    """Where other losses have no gradient, the probe has one."""
    keys = jax.random.split(jax.random.key(0), COUNT)
    for logits_fn in (
        lambda images: 1e6 * plain(WEIGHTS, images),
        lambda images: plain(WEIGHTS, images).at[:, 0].set(-jnp.inf),
        lambda images: plain(WEIGHTS, images)[:, :2],
    ):
        gradients = np.asarray(model_queries.probe_gradients(logits_fn, IMAGES, keys))
        assert np.all(np.isfinite(gradients)) and np.all(np.max(np.abs(gradients), axis=(1, 2, 3)) > 0)
