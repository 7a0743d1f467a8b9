"""The mixup family against NumPy references."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.models import blocks
from advjax.models.fixer import with_fixers
from advjax.training import losses, mixing, objectives, transforms
from advjax.training.mixing import Mixing
from advjax.types import Variables
from support.tiny_models import CLASSES, SHAPE, Tiny, assert_close, fresh, make_batch, value

KEY = jax.random.key(3)
MODEL = Tiny()


@pytest.fixture(scope="module")
def variables():
    return fresh(MODEL)


def column(weights):
    return np.asarray(weights).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("per_sample", [False, True])
def test_mixup_is_the_weighted_mean_of_rows_and_targets(per_sample):
    batch = make_batch()
    found = mixing.mixup(0.7, per_sample)({}, batch, KEY)
    weight, partners = mixing.draw(KEY, 8, 0.7, per_sample)
    assert weight.shape == ((8,) if per_sample else ())
    assert sorted(np.asarray(partners)) == list(range(8))
    weights = np.broadcast_to(weight, 8)
    images, targets = np.asarray(batch.images), np.asarray(batch.targets)
    expected = column(weights) * images + (1 - column(weights)) * images[partners]
    np.testing.assert_allclose(found.images, expected, atol=1e-6)
    expected = weights[:, None] * targets + (1 - weights[:, None]) * targets[partners]
    np.testing.assert_allclose(found.targets, expected, atol=1e-6)
    heavier = np.where(weights >= 0.5, batch.labels, np.asarray(batch.labels)[partners])
    np.testing.assert_array_equal(found.labels, heavier)
    np.testing.assert_array_equal(found.index, batch.index)
    np.testing.assert_array_equal(found.mask, batch.mask)


@pytest.mark.parametrize("per_sample", [False, True])
def test_cutmix_pastes_a_box_of_the_partner_and_mixes_targets_by_area(per_sample):
    batch, kept, centers = make_batch(clean=True), [], []
    images, clean, targets = (np.asarray(values) for values in (batch.images, batch.clean, batch.targets))
    for number in range(20):
        key = jax.random.key(number)
        found = mixing.cutmix(1.0, per_sample)({}, batch, key)
        weight, partners = mixing.draw(key, 8, 1.0, per_sample)
        pasted = np.any(found.images != images, axis=-1)
        # Where the pixels are not those of the image they are those of the partner, and the same in both versions.
        wanted = np.where(pasted[..., None], images[partners], images)
        np.testing.assert_array_equal(found.images, wanted)
        moved = np.asarray(partners) != np.arange(8)
        for row in np.flatnonzero(moved):
            rows, columns = pasted[row].any(axis=1), pasted[row].any(axis=0)
            np.testing.assert_array_equal(pasted[row], rows[:, None] & columns)
            share = 1 - pasted[row].mean()
            np.testing.assert_allclose(
                found.targets[row], share * targets[row] + (1 - share) * targets[partners[row]], atol=1e-6
            )
            # Cut at the border, a box may be smaller than the weight says, and it is rounded to whole pixels.
            sides = np.sqrt(1 - np.broadcast_to(weight, 8)[row]) * np.asarray(images.shape[1:3])
            assert rows.sum() <= np.ceil(sides[0]) and columns.sum() <= np.ceil(sides[1])
            assert found.labels[row] == batch.labels[row if share >= 0.5 else partners[row]]
            np.testing.assert_array_equal(
                found.clean[row], np.where(pasted[row][..., None], clean[partners[row]], clean[row])
            )
            kept.append(share)
        boxes = {pasted[row].tobytes() for row in np.flatnonzero(moved)}
        centers.append(len(boxes))
    assert (max(centers) > 1) == per_sample
    assert 0.5 < np.mean(kept) < 0.9 and min(kept) < 0.4 and max(kept) > 0.9


def test_a_weight_of_one_is_the_identity():
    values = make_batch().images
    mixed = mixing.mix(values, Mixing(jnp.float32(1), jnp.arange(8)[::-1]))
    np.testing.assert_array_equal(mixed, values)
    swapped = mixing.mix(values, Mixing(jnp.float32(0), jnp.arange(8)[::-1]))
    np.testing.assert_array_equal(swapped, values[::-1])


def test_weights_have_the_distribution_that_alpha_says():
    for alpha in (1.0, 8.0):
        weights = mixing.draw(KEY, 4000, alpha, per_sample=True).weight
        assert float(weights.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(weights.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_targets_stay_distributions_through_soft_labels_and_mixing():
    batch = make_batch()
    soften, mix = transforms.soft_labels(0.01), mixing.mixup(1.0, per_sample=True)
    before = mix({}, soften({}, batch, KEY), KEY).targets
    after = soften({}, mix({}, batch, KEY), KEY).targets
    np.testing.assert_allclose(before.sum(-1), 1, atol=1e-6)
    assert float(before.min()) >= 0.01 - 1e-6
    np.testing.assert_allclose(before, after, atol=1e-6)


def test_partial_mix_takes_clean_partners(variables):
    batch = make_batch(clean=True)
    found = mixing.partial_mix()({}, batch, KEY)
    weight, partners = mixing.draw(KEY, 8, 1.0)
    attacked, clean = np.asarray(batch.images), np.asarray(batch.clean)
    np.testing.assert_allclose(found.images, weight * attacked + (1 - weight) * clean[partners], atol=1e-6)
    np.testing.assert_allclose(found.clean, weight * clean + (1 - weight) * clean[partners], atol=1e-6)
    with pytest.raises(ValueError, match="add a transform that attacks"):
        mixing.partial_mix()({}, make_batch(), KEY)


def test_partial_mix_without_perturbation_is_mixup(variables):
    batch, models = make_batch(), {"self": blocks.logits_fn(MODEL, variables)}
    attack = attacks.pgd(attacks.linf(0.0), num_steps=2, step_size=0.1)
    attacked = transforms.perturb(attack)(models, batch, KEY)
    found, plain = mixing.partial_mix()(models, attacked, KEY), mixing.mixup()(models, batch, KEY)
    np.testing.assert_array_equal(found.images, plain.images)
    np.testing.assert_array_equal(found.targets, plain.targets)


def test_adversarial_mixup_attacks_with_true_labels_and_then_mixes(variables):
    batch, models = make_batch(), {"self": blocks.logits_fn(MODEL, variables)}
    attack = attacks.fgsm(attacks.linf(0.1))
    attacked = transforms.perturb(attack)(models, batch, KEY)
    found = mixing.mixup()(models, attacked, KEY)
    weight, partners = mixing.draw(KEY, 8, 1.0)
    np.testing.assert_allclose(
        found.images, weight * attacked.images + (1 - weight) * attacked.images[partners], atol=1e-6
    )
    np.testing.assert_allclose(found.clean, weight * batch.images + (1 - weight) * batch.images[partners], atol=1e-6)


def test_fixed_mix_keeps_target_and_label():
    batch = make_batch()
    found = mixing.fixed_mix(0.4)({}, batch, KEY)
    partners = mixing.draw(KEY, 8, 1.0).partners
    np.testing.assert_allclose(found.images, 0.4 * batch.images + 0.6 * batch.images[partners], atol=1e-6)
    np.testing.assert_array_equal(found.targets, batch.targets)
    np.testing.assert_array_equal(found.labels, batch.labels)
    np.testing.assert_array_equal(mixing.fixed_mix(1.0)({}, batch, KEY).images, batch.images)


def twins(batch, rng=KEY, level=0.2, **options):
    """The second half of the batch; the model sees class 2 everywhere."""
    models = {"base": lambda images: jnp.tile(jnp.array([0.0, 1.0, 5.0]), (len(images), 1))}
    found = mixing.noisy_twins(level, "base", **options)(models, batch, rng)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[: len(batch.labels)], found), batch)
    return jax.tree.map(lambda leaf: leaf[len(batch.labels) :], found)


def test_noisy_twins_are_mixtures_with_the_predicted_label():
    batch = make_batch()
    found = twins(batch)
    # Where the label is not 2, the weight can be read off the target.
    other = np.asarray(batch.labels) != 2
    weight = np.take_along_axis(np.asarray(found.targets), np.asarray(batch.labels)[:, None], 1)[:, 0]
    assert weight[other].min() > 0 and weight[other].max() < 1
    np.testing.assert_allclose(found.targets.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(found.targets[other, 2], 1 - weight[other], atol=1e-6)
    # x~ - x = (1 - w) (x1 - x), with x1 inside the bounds.
    noisy = batch.images + (found.images - batch.images) / column(1 - weight)
    assert float(noisy[other].min()) >= -1e-5 and float(noisy[other].max()) <= 1 + 1e-5
    np.testing.assert_array_equal(found.labels, batch.labels)
    np.testing.assert_array_equal(found.mask, batch.mask)


def test_noisy_twins_are_the_same_in_every_step_and_place():
    batch = make_batch()
    whole = twins(batch)
    order = np.array([5, 0, 3])
    part = twins(jax.tree.map(lambda leaf: leaf[order], batch), jax.random.key(99))
    assert_close(part.images, whole.images[order], rtol=0, atol=0)
    assert_close(part.targets, whole.targets[order], rtol=0, atol=0)
    assert not np.array_equal(twins(batch, seed=1).images, whole.images)


def test_ablations_of_the_noisy_twins():
    batch = make_batch()
    both, images, targets = twins(batch), twins(batch, mixed="images"), twins(batch, mixed="targets")
    np.testing.assert_array_equal(images.images, both.images)
    np.testing.assert_array_equal(images.targets, batch.targets)
    np.testing.assert_array_equal(targets.images, batch.images)
    np.testing.assert_array_equal(targets.targets, both.targets)
    np.testing.assert_array_equal(twins(batch, level=0.04, reading="variance").images, both.images)


def test_originals_and_twins_count_alike_in_the_loss(variables):
    batch = make_batch()
    models = {"base": blocks.logits_fn(MODEL, variables)}
    doubled = mixing.noisy_twins(0.1, "base")(models, batch, KEY)
    total, (_, metrics) = value(objectives.supervised(MODEL, losses.cross_entropy), variables, doubled)
    logits, _ = blocks.apply(MODEL, variables, doubled.images, train=True)
    each = np.asarray(jax.vmap(losses.cross_entropy)(logits, doubled.targets))
    mask = np.asarray(batch.mask)
    assert float(total) == pytest.approx((each[:8][mask].sum() + each[8:][mask].sum()) / 12, rel=1e-5)
    assert metrics["accuracy"].shape == ()


def test_manifold_mixup_at_the_images_is_mixup(variables):
    batch = make_batch()
    manifold = mixing.manifold_mixup(MODEL, losses.bce_on_softmax, alpha=2.0, points=("images",))
    found = value(manifold, variables, batch, seed=3)
    mixed = mixing.mixup(2.0)({}, batch, KEY)
    assert_close(found, value(objectives.supervised(MODEL, losses.bce_on_softmax), variables, mixed, seed=3))


def by_hand(variables, batch, point):
    weight, partners = mixing.draw(KEY, 8, 2.0)

    def between(name, features):
        return weight * features + (1 - weight) * features[partners] if name == point else features

    images = between("images", batch.images)
    logits, _ = blocks.apply(MODEL, variables, images, train=True, between=between)
    targets = weight * batch.targets + (1 - weight) * batch.targets[partners]
    return float(jax.vmap(losses.cross_entropy)(logits, targets)[batch.mask].mean())


@pytest.mark.parametrize("point", ["images", "conv", "hidden"])
def test_manifold_mixup_mixes_the_output_of_its_block(variables, point):
    batch = make_batch()
    objective = mixing.manifold_mixup(MODEL, losses.cross_entropy, points=(point,))
    assert float(value(objective, variables, batch, seed=3)[0]) == pytest.approx(
        by_hand(variables, batch, point), rel=1e-5
    )


def test_manifold_mixup_draws_every_place_in_one_program(variables):
    batch = make_batch()
    objective = mixing.manifold_mixup(MODEL, losses.cross_entropy)
    assert MODEL.mixing_points == ("images", "conv", "hidden")

    @jax.jit
    @chex.assert_max_traces(1)
    def step(rng):
        return objective(variables.params, variables.model_state, batch, rng, None)[0]

    seen = set()
    for seed in range(20):
        key = jax.random.key(seed)
        weight, partners = mixing.draw(key, 8, 2.0)
        found = float(step(key))
        for point in MODEL.mixing_points:

            def between(name, features, point=point, weight=weight, partners=partners):
                return mixing.mix(features, Mixing(weight, partners)) if name == point else features

            logits, _ = blocks.apply(MODEL, variables, between("images", batch.images), train=True, between=between)
            targets = mixing.mix(batch.targets, Mixing(weight, partners))
            expected = float(jax.vmap(losses.cross_entropy)(logits, targets)[batch.mask].mean())
            if abs(expected - found) < 1e-6:
                seen.add(point)
        if len(seen) == 3:
            break
    assert seen == set(MODEL.mixing_points)


def test_manifold_mixup_sends_gradients_through_the_mixture(variables):
    objective = mixing.manifold_mixup(MODEL, losses.cross_entropy, points=("hidden",))
    gradients = jax.grad(lambda params: value(objective, Variables(params, variables.model_state), make_batch())[0])(
        variables.params
    )
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients["block_hidden"]))


def test_manifold_mixup_of_a_patched_network_mixes_behind_the_patch(variables):
    model = with_fixers(MODEL, after=("conv",))
    patched = blocks.graft(fresh(model, 1), variables)
    batch = make_batch()
    weight, partners = mixing.draw(KEY, 8, 2.0)
    found = value(mixing.manifold_mixup(model, losses.cross_entropy, points=("conv",)), patched, batch, seed=3)

    def between(name, features):
        return mixing.mix(features, Mixing(weight, partners)) if name == "conv" else features

    logits = blocks.apply(model, patched, batch.images, between=between)
    targets = mixing.mix(batch.targets, Mixing(weight, partners))
    expected = jax.vmap(losses.cross_entropy)(logits, targets)[batch.mask].mean()
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: mixing.mixup(0), "alpha is 0"),
        (lambda: mixing.partial_mix(-1), "alpha is -1"),
        (lambda: mixing.fixed_mix(1.5), "weight is 1.5"),
        (lambda: mixing.noisy_twins(0.1, "base", reading="power"), "reading must be"),
        (lambda: mixing.noisy_twins(0.1, "base", mixed="labels"), "mixed must be"),
        (lambda: mixing.noisy_twins(-0.1, "base"), "level is -0.1"),
        (lambda: mixing.manifold_mixup(MODEL, losses.cross_entropy, alpha=0), "alpha is 0"),
        (lambda: mixing.manifold_mixup(MODEL, losses.cross_entropy, points=("res1",)), "images, conv, hidden, head"),
        (lambda: mixing.manifold_mixup(MODEL, losses.cross_entropy, points=()), "give one or more"),
    ],
)
def test_what_makes_no_sense_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_shapes_of_the_tiny_model(variables):
    assert blocks.apply(MODEL, variables, jnp.zeros((2, *SHAPE))).shape == (2, CLASSES)
