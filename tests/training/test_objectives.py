"""Objectives against NumPy references; transforms."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks.keys import image_keys
from advjax.models import blocks
from advjax.models.blocks import Classifier
from advjax.models.denoise import with_denoising
from advjax.models.fixer import with_fixers
from advjax.models.layers import ConvNormRelu, Hidden
from advjax.training import augment, losses, objectives, transforms
from advjax.types import Batch, UserError, Variables
from support import tiny_models as tiny

SHAPE = (8, 8, 1)


def make_batch(count=6, masked=2, clean=False, seed=0):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(size=(count, *SHAPE)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, count), jnp.int32)
    return Batch(
        images=images,
        labels=labels,
        targets=jax.nn.one_hot(labels, 10),
        index=jnp.arange(count) + 100,
        mask=jnp.arange(count) < count - masked,
        clean=jnp.clip(images + 0.1, 0, 1) if clean else None,
    )


class TwoConvolutions(Classifier):
    """The smallest network with BatchNorm and two places for fixers."""

    def make_blocks(self):
        convolutions = {name: ConvNormRelu(4, axis_name=self.axis_name) for name in ("res1", "res2")}
        return {**convolutions, "head": Hidden(10, relu=False)}


@pytest.fixture(scope="module")
def base():
    model = TwoConvolutions()
    return model, blocks.init(model, jax.random.key(0), SHAPE)


@pytest.fixture(scope="module")
def patched(base):
    model = with_fixers(base[0])
    return model, blocks.graft(blocks.init(model, jax.random.key(1), SHAPE), base[1])


def value(objective, variables, batch):
    return objective(variables.params, variables.model_state, batch, jax.random.key(0), None)


def focal_of(logits, batch):
    values = jax.vmap(losses.focal(2.0))(logits, batch.targets)
    return float(values[batch.mask].mean())


def test_supervised_is_the_mean_loss_of_the_unmasked_rows_in_train_mode(base):
    model, variables = base
    batch = make_batch()
    total, (state, metrics) = value(objectives.supervised(model, losses.focal(2.0)), variables, batch)
    logits, expected_state = blocks.apply(model, variables, batch.images, train=True)
    assert float(total) == pytest.approx(focal_of(logits, batch), rel=1e-6)
    correct = np.asarray(logits.argmax(-1) == batch.labels)[np.asarray(batch.mask)]
    assert float(metrics["accuracy"]) == pytest.approx(correct.mean())
    chex.assert_trees_all_equal(state, expected_state)


def test_supervised_on_both_sees_clean_and_adversarial_images_in_one_batch(base):
    model, variables = base
    batch = make_batch(clean=True)
    total, (_, metrics) = value(objectives.supervised(model, losses.cross_entropy, on="both"), variables, batch)
    together = jnp.concatenate([batch.clean, batch.images])
    clean, attacked = jnp.split(blocks.apply(model, variables, together, train=True)[0], 2)
    mean = [
        float(jax.vmap(losses.cross_entropy)(logits, batch.targets)[batch.mask].mean()) for logits in (clean, attacked)
    ]
    assert float(total) == pytest.approx(sum(mean), rel=1e-6)
    assert {"clean_accuracy", "accuracy", "loss"} == set(metrics)


class TwoPlaces(Classifier):
    """``relu(x A)``, ``relu(h B)``, ``h C`` on images of one pixel: matrix products only."""

    def make_blocks(self):
        return {name: OnePixel(width, name != "c") for name, width in (("a", 4), ("b", 3), ("c", 3))}


class OnePixel(nn.Module):
    width: int
    rectified: bool

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(self.width, use_bias=False, name="dense")(x)
        return nn.relu(x) if self.rectified else x[:, 0, 0]


def random_two_places():
    """The model, variables, NumPy matrices of the base, and ``{place: (squeeze, its bias, expand, its bias)}``."""
    model = with_fixers(TwoPlaces(), after=("a", "b"), delta=0.7, reduction=2)
    variables = blocks.init(model, jax.random.key(0), (1, 1, 2))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), variables.params)
    base = {name: params["base"][f"block_{name}"]["dense"]["kernel"] for name in "abc"}
    fixers = {}
    for name in "ab":
        layers = params[f"patches_{name}"]
        squeeze, expand = layers["squeeze"], layers["expand"]
        # At a single pixel, the others being padding, a 3x3 convolution is its middle.
        fixers[name] = squeeze["kernel"][0, 0], squeeze["bias"], expand["kernel"][1, 1], expand["bias"]
    return model, Variables(jax.tree.map(jnp.float32, params), variables.model_state), base, fixers


def printed_fixer(images, base, fixers):
    """Logits and ``{tensor: [of a, of b]}`` by eq. 1 and Table 7; without ``fixers`` those of the base."""
    found, h = {"before": [], "sum": [], "output": []}, images
    for name in "ab":
        h = np.maximum(h @ base[name], 0)
        found["before"].append(h)
        if fixers:
            squeeze, squeeze_bias, expand, expand_bias = fixers[name]
            h = h + 0.7 * (np.maximum(h @ squeeze + squeeze_bias, 0) @ expand + expand_bias)
        found["sum"].append(h)
        h = np.maximum(h, 0)
        found["output"].append(h)
    return h @ base["c"], found


def pixel_batch():
    clean, attacked = np.random.default_rng(1).uniform(size=(2, 5, 2))
    labels = np.array([0, 1, 2, 2, 0])
    mask = np.array([True, True, False, True, True])
    images = [jnp.float32(array)[:, None, None] for array in (attacked, clean)]
    targets = jax.nn.one_hot(labels, 3)
    batch = Batch(images[0], jnp.int32(labels), targets, jnp.arange(5), jnp.asarray(mask), images[1])
    return batch, clean, attacked, labels, mask


@pytest.mark.parametrize("norm", ["rms", "l2"])
@pytest.mark.parametrize("tensor", ["sum", "output", "before"])
@pytest.mark.parametrize("target", ["natural", "printed"])
def test_fixer_loss_is_that_of_the_paper(target, tensor, norm):
    """Eq. 2-4 in NumPy, for every choice of what they leave open."""
    model, variables, base, fixers = random_two_places()
    batch, clean, attacked, labels, mask = pixel_batch()
    expected = np.zeros(5)
    distances = np.zeros(5)
    natural = printed_fixer(clean, base, None)[1]["before"]
    for images, wanted in (
        (clean, natural),
        (attacked, natural if target == "natural" else printed_fixer(attacked, base, None)[1]["before"]),
    ):
        logits, found = printed_fixer(images, base, fixers)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        of_label = probabilities[np.arange(5), labels]
        expected += -((1 - of_label) ** 2) * np.log(of_label)
        for features, aim in zip(found[tensor], wanted, strict=True):
            lengths = np.linalg.norm(features - aim, axis=1)
            distances += lengths / np.sqrt(features.shape[1]) if norm == "rms" else lengths
    objective = objectives.fixers(model, losses.focal(2.0), distillation=0.7, target=target, tensor=tensor, norm=norm)
    total, (state, metrics) = value(objective, variables, batch)
    assert float(metrics["distillation_distance"]) == pytest.approx(distances[mask].mean(), rel=1e-5)
    assert float(total) == pytest.approx((expected + 0.7 * distances)[mask].mean(), rel=1e-5)
    assert float(metrics["loss"]) == float(total)
    chex.assert_trees_all_equal(state, variables.model_state)


def test_the_three_tensors_of_the_distillation_differ_and_the_sum_is_the_default():
    model, variables, *_ = random_two_places()
    batch = pixel_batch()[0]

    def distance(**choice):
        metrics = value(objectives.fixers(model, losses.focal(2.0), **choice), variables, batch)[1][1]
        return float(metrics["distillation_distance"])

    before, output, summed = (distance(tensor=tensor) for tensor in ("before", "output", "sum"))
    assert distance() == summed
    assert summed > output * 1.01 > 0 and abs(before - summed) > 0.01


def test_features_before_the_last_fixer_do_not_depend_on_it():
    """What remains of the distillation if eq. 1 is taken literally."""
    model, variables, *_ = random_two_places()
    batch = pixel_batch()[0]

    def gradients(tensor):
        objective = objectives.fixers(model, losses.focal(2.0), tensor=tensor)

        def distance(params):
            return value(objective, Variables(params, variables.model_state), batch)[1][1]["distillation_distance"]

        found = jax.grad(distance)(variables.params)
        return [max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found[f"patches_{n}"])) for n in "ab"]

    first, last = gradients("before")
    assert first > 0 and last == 0
    assert min(gradients("sum")) > 0


def test_fixer_loss_has_finite_gradients_where_the_fixers_change_nothing(base):
    model = with_fixers(base[0], zero_last=True)
    variables = blocks.graft(blocks.init(model, jax.random.key(1), SHAPE), base[1])
    objective = objectives.fixers(model, losses.cross_entropy)
    batch = make_batch(clean=True)
    gradients = jax.grad(lambda params: value(objective, Variables(params, variables.model_state), batch)[0])(
        variables.params
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients["patches_res1"])) > 0


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda model: objectives.supervised(model, losses.cross_entropy, on="clean"), "on must be"),
        (lambda model: objectives.fixers(model, losses.cross_entropy, target="x"), "target must be"),
        (lambda model: objectives.fixers(model, losses.cross_entropy, tensor="x"), "tensor must be"),
        (lambda model: objectives.fixers(model, losses.cross_entropy, norm="linf"), "norm must be"),
    ],
)
def test_unknown_choices_are_refused(patched, build, message):
    with pytest.raises(ValueError, match=message):
        build(patched[0])


def test_an_objective_on_pairs_needs_an_attack(patched):
    model, variables = patched
    with pytest.raises(UserError, match="add a transform that attacks the batch"):
        value(objectives.fixers(model, losses.cross_entropy), variables, make_batch())


def test_perturb_attacks_the_named_model_and_keeps_the_originals(base):
    model, variables = base
    batch = make_batch()
    models = {
        "base": blocks.logits_fn(model, variables),
        "self": lambda images: images.reshape(len(images), -1)[:, :10],
    }
    attack = attacks.fgsm(attacks.linf(0.1))
    found = transforms.perturb(attack, "base")(models, batch, jax.random.key(0))
    expected = attack(models["base"], batch.images, batch.labels, jax.random.key(0)).images
    np.testing.assert_allclose(found.images, expected, atol=1e-6)
    np.testing.assert_array_equal(found.clean, batch.images)


def test_augmentation_of_an_example_depends_on_its_index_alone():
    batch = make_batch()
    transform = transforms.augment(augment.chain(augment.pad_crop(2), augment.horizontal_flip()))
    whole = transform({}, batch, jax.random.key(3)).images
    order = np.array([4, 0, 2])
    part = jax.tree.map(lambda leaf: leaf[order], batch)
    np.testing.assert_array_equal(transform({}, part, jax.random.key(3)).images, whole[order])


def test_soft_labels_and_label_smoothing():
    batch = make_batch()
    found = transforms.soft_labels(0.01)({}, batch, jax.random.key(0)).targets
    np.testing.assert_allclose(found, np.where(np.eye(10)[batch.labels] > 0, 1 - 9 * 0.01, 0.01), atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    smoothed = transforms.label_smoothing(0.1)({}, batch, jax.random.key(0)).targets
    np.testing.assert_allclose(smoothed, found, atol=1e-6)
    with pytest.raises(UserError, match="for 10 classes give 0 to"):
        transforms.soft_labels(0.2)({}, batch, jax.random.key(0))
    with pytest.raises(UserError, match="strength is 2"):
        transforms.label_smoothing(2)


def test_noise_layers_are_on_in_training_unless_turned_off():
    quiet, noisy = tiny.Tiny(), tiny.Tiny(noise=0.5)
    variables, batch = tiny.fresh(quiet), tiny.make_batch()

    def loss(model, noise, seed=0):
        return float(
            tiny.value(objectives.supervised(model, losses.cross_entropy, noise=noise), variables, batch, seed)[0]
        )

    assert loss(noisy, False) == loss(quiet, True) == loss(quiet, False)
    assert loss(noisy, True) != loss(quiet, True)
    assert loss(noisy, True) == loss(noisy, True)
    assert loss(noisy, True, seed=1) != loss(noisy, True)
    assert loss(tiny.Tiny(noise=0.0), True) == loss(quiet, True)


def test_replicas_with_other_examples_draw_other_noise():
    batch = tiny.make_batch()
    shifted = batch._replace(index=batch.index + 8)
    first, second = (objectives.noise_rngs(jax.random.key(0), part, True)["noise"] for part in (batch, shifted))
    assert not np.array_equal(jax.random.key_data(first), jax.random.key_data(second))
    assert objectives.noise_rngs(jax.random.key(0), batch, False) is None


def test_denoising_trains_the_whole_network():
    base = tiny.Tiny()
    model = with_denoising(base, after=("conv",))
    variables = blocks.graft(tiny.fresh(model, 1), tiny.fresh(base))
    # BatchNorm's scale starts at 0, where the convolution before it has no gradient yet.
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf + 0.5 if "scale" in str(path) and "patches" in str(path) else leaf, variables.params
    )
    objective = objectives.supervised(model, losses.focal(2.0), on="both")
    batch = tiny.make_batch(clean=True)
    gradients, (state, _) = jax.grad(
        lambda params: tiny.value(objective, Variables(params, variables.model_state), batch), has_aux=True
    )(params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), state, variables.model_state)
    assert set(moved) == {"batch_stats"} and all(jax.tree.leaves(moved))


def test_the_honest_training_attack_sees_the_fixers():
    base = tiny.Smooth()
    model = with_fixers(tiny.Tiny(), after=("conv",))
    variables = tiny.fresh(model)
    batch = tiny.make_batch()
    models = {"self": blocks.logits_fn(model, variables), "base": blocks.logits_fn(base, tiny.fresh(base))}
    attack = attacks.fgsm(attacks.linf(0.1))
    honest = transforms.perturb(attack, "self")(models, batch, jax.random.key(0))
    gradient = jax.grad(lambda images: jax.vmap(losses.cross_entropy)(models["self"](images), batch.targets).sum())(
        batch.images
    )
    np.testing.assert_allclose(honest.images, jnp.clip(batch.images + 0.1 * jnp.sign(gradient), 0, 1), atol=1e-6)
    other = transforms.perturb(attack, "base")(models, batch, jax.random.key(0))
    assert not np.allclose(other.images, honest.images)
    total, (_, metrics) = tiny.value(objectives.fixers(model, losses.focal()), variables, honest)
    assert np.isfinite(float(total)) and float(metrics["distillation_distance"]) > 0


def test_fast_adversarial_training_is_one_step_of_pgd_from_a_random_start():
    """Wong et al. (2020): a uniform start, one step of 1.25 epsilon, back into the ball."""
    model = tiny.Smooth()
    network = blocks.logits_fn(model, tiny.fresh(model))
    batch, threat_model = tiny.make_batch(), attacks.linf(0.08)
    attack = attacks.pgd(threat_model, num_steps=1, step_size=1.25 * 0.08, returns="last")
    found = transforms.perturb(attack)({"self": network}, batch, jax.random.key(0)).images
    keys = image_keys(jax.random.key(0), batch.index)
    start = jax.vmap(threat_model.sample)(batch.images, keys)
    gradient = jax.grad(lambda images: jax.vmap(losses.cross_entropy)(network(images), batch.targets).sum())(start)
    expected = jnp.clip(start + 0.1 * jnp.sign(gradient), batch.images - 0.08, batch.images + 0.08)
    np.testing.assert_allclose(found, jnp.clip(expected, 0, 1), atol=1e-6)
