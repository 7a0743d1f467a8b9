"""The attack and the training of the mixup report (001), against loops written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import Problem
from advjax.attacks.keys import image_keys
from advjax.models import blocks
from advjax.runtime import devices as sharding
from advjax.runtime.devices import Devices
from advjax.training import losses, mixing, objectives, optimizers
from advjax.training.step import Method, init_state, train_step
from advjax.types import Variables
from configs.papers.mixup_report import cifar, training
from configs.papers.mixup_report.attack import ball, noisy_center_pgd
from support import attack_models as am
from support import tiny_models as tiny

NET, IMAGES, LABELS = am.smooth_net(seed=1), am.gray_images(8, seed=4), np.arange(8) % 3


def own_pgd(epsilon, norm=attacks.linf, **rules):
    return noisy_center_pgd(norm(epsilon), **{"num_steps": 6, "step_size": 0.04, **rules})


ATTACK = own_pgd(epsilon=0.2, radius=0.1)


@pytest.fixture(scope="module")
def attack():
    return jax.jit(lambda keys: ATTACK(NET, IMAGES, LABELS, keys).images)


def test_the_own_pgd_is_the_loop_of_the_report(attack):
    keys = jax.random.split(jax.random.key(1), 8)
    noise = jax.vmap(lambda key: jax.random.uniform(key, IMAGES.shape[1:], minval=-0.1, maxval=0.1))(keys)
    centers, points = np.clip(IMAGES + noise, 0, 1), IMAGES
    gradient = jax.jit(jax.grad(lambda points: jax.vmap(attacks.cross_entropy)(NET(points), LABELS).sum()))
    for _ in range(6):
        points = points + 0.04 * np.sign(gradient(points))
        points = np.clip(centers + np.clip(points - centers, -0.1, 0.1), 0, 1)
    found = attack(keys)
    np.testing.assert_allclose(found, points, atol=1e-6)
    np.testing.assert_array_equal(found, attack(keys))
    assert (np.asarray(found) != attack(jax.random.split(jax.random.key(2), 8))).any()


def test_its_results_are_up_to_twice_the_radius_away(attack):
    found = np.asarray(attack(jax.random.split(jax.random.key(0), 8)))
    away = np.abs(found - IMAGES)
    assert 0.15 < away.max() <= 0.2 + 1e-6 and (away > 0.1).mean() > 0.1
    assert found.min() >= 0 and found.max() <= 1


def test_the_search_begins_at_the_image():
    problem = Problem(IMAGES[0], LABELS[0], jax.random.key(0), NET(IMAGES[:1])[0], None)
    state = ATTACK.init(problem)
    np.testing.assert_array_equal(state.point, IMAGES[0])
    assert (np.asarray(state.center) != IMAGES[0]).mean() > 0.9


def test_normalized_images_are_clipped_to_the_unit_interval():
    rules = {"radius": 8 / 255, "num_steps": 7, "step_size": 2 / 255, "mean": cifar.MEAN, "std": cifar.STD}
    attack = noisy_center_pgd(attacks.linf(1.0), **rules)
    images = jax.random.uniform(jax.random.key(0), (6, 8, 8, 3))
    weights = jax.random.normal(jax.random.key(1), (192, 3))
    result = jax.jit(attack, static_argnums=0)(
        lambda x: x.reshape(len(x), -1) @ weights, images, jnp.arange(6) % 3, jax.random.key(2)
    )
    normalized = (np.asarray(result.images) - cifar.MEAN) / cifar.STD
    assert normalized.min() > -1e-5 and normalized.max() < 1 + 1e-5
    assert result.success.any() and float(result.distance.max()) > 0.3
    inside = (images > np.asarray(cifar.MEAN)) & (images < np.add(cifar.MEAN, cifar.STD))
    moved = np.abs(normalized - (np.asarray(images) - cifar.MEAN) / cifar.STD)
    assert moved[inside].max() <= 2 * 8 / 255 + 1e-5


def test_the_versions_differ_in_the_clip_of_the_noisy_images():
    images, noise = np.full((1, 1, 1, 1), 0.95, np.float32), np.ones((1, 1, 1, 1), np.float32)
    assert [float(ball(0.1, 0.1, version).center(images, noise).item()) for version in ("v1", "v2")] == [
        pytest.approx(1.05),
        1.0,
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"epsilon": 0.19}, "an epsilon of at least 0.2"),
        ({"norm": attacks.l2}, "needs linf"),
        ({"version": "v3"}, "version must be 'v1' or 'v2', got 'v3'"),
        ({"radius": -0.1}, "radius -0.1"),
        ({"mean": (0.4,), "std": (0.2,), "epsilon": 0.5}, "an epsilon of at least 0.6"),
    ],
)
def test_the_own_pgd_says_no(changes, message):
    with pytest.raises(ValueError, match=message):
        own_pgd(**{"epsilon": 0.2, "radius": 0.1, **changes})


MODEL, VARIABLES = tiny.Tiny(), tiny.fresh(tiny.Tiny())
BATCH = tiny.make_batch()
RULES = {"radius": 0.1, "num_steps": 3, "step_size": 0.04}


def adversarial(method="vanilla", **options):
    return training.adversarial(MODEL, losses.cross_entropy, **{"method": method, **RULES, **options})


def by_hand(train):
    """Attacked images and model state after one question after the other."""
    keys = image_keys(jax.random.fold_in(jax.random.key(0), training._ATTACK), BATCH.index)
    noise = jax.vmap(lambda key: jax.random.uniform(key, tiny.SHAPE, minval=-0.1, maxval=0.1))(keys)
    centers, points, state = jnp.clip(BATCH.images + noise, 0, 1), BATCH.images, VARIABLES.model_state

    def total(points, state):
        found = blocks.apply(MODEL, Variables(VARIABLES.params, state), points, train=train)
        logits, state = found if train else (found, state)
        return jnp.sum(jax.vmap(attacks.cross_entropy)(logits, BATCH.labels) * BATCH.mask), state

    for _ in range(3):
        gradient, state = jax.grad(total, has_aux=True)(points, state)
        points = centers + jnp.clip(points + 0.04 * jnp.sign(gradient) - centers, -0.1, 0.1)
        points = jnp.clip(points, 0, 1)
    return points, state


@pytest.mark.parametrize("batch_norm", training.BATCH_NORMS)
def test_batch_norm_in_the_attack(batch_norm):
    images, moved = jax.jit(by_hand, static_argnums=0)(batch_norm != "eval")
    untouched = VARIABLES.model_state
    assert (jax.tree.leaves(moved)[0] != jax.tree.leaves(untouched)[0]).any() == (batch_norm != "eval")
    start = moved if batch_norm == "train_update" else untouched
    plain = objectives.supervised(MODEL, losses.cross_entropy)

    def differentiated(objective, state, batch):
        def value(params):
            return objective(params, state, batch, jax.random.key(0), None)

        return jax.jit(jax.value_and_grad(value, has_aux=True))(VARIABLES.params)

    expected = differentiated(plain, start, BATCH._replace(images=images))
    found = differentiated(adversarial(batch_norm=batch_norm), untouched, BATCH)
    tiny.assert_close(found, expected)


def test_the_modes_of_batch_norm_differ():
    found = [tiny.value(adversarial(batch_norm=mode), VARIABLES, BATCH)[1][0] for mode in training.BATCH_NORMS]
    means = [np.asarray(jax.tree.leaves(state)[0]) for state in found]
    assert all((one != other).any() for one, other in ((means[0], means[1]), (means[1], means[2])))


@pytest.mark.parametrize("method", ["vanilla", "mixup", "manifold", "partial"])
def test_without_an_attack_the_methods_are_the_clean_ones(method):
    nothing = {"radius": 0.0, "step_size": 0.0, "batch_norm": "train_keep"}
    found = tiny.value(adversarial(method, **nothing), VARIABLES, BATCH)
    if method == "manifold":
        expected = tiny.value(mixing.manifold_mixup(MODEL, losses.cross_entropy, alpha=2.0), VARIABLES, BATCH)
    else:
        batch = BATCH
        if method != "vanilla":
            rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), training._MIXING), 0)
            batch = mixing.mixup(alpha=1.0)({}, BATCH, rng)
        expected = tiny.value(objectives.supervised(MODEL, losses.cross_entropy), VARIABLES, batch)
    tiny.assert_close(found, expected)


def test_partial_mixes_with_clean_images_and_mixup_with_attacked_ones():
    mixed, partial = (tiny.value(adversarial(method), VARIABLES, BATCH)[0] for method in ("mixup", "partial"))
    assert abs(float(mixed - partial)) > 1e-4


@pytest.mark.parametrize("changes", [{"method": "cutmix"}, {"batch_norm": "test"}, {"num_steps": 0}, {"version": "v3"}])
def test_the_training_says_no(changes):
    with pytest.raises(ValueError, match="got"):
        adversarial(**changes)


def test_replicas_attack_as_one():
    objective = adversarial()
    trainable = jax.tree.map(lambda _: True, VARIABLES.params)
    method = Method(MODEL, objective, (), optimizers.sgd(0.1), trainable, {})
    data, positions, mask = tiny.make_data(), np.arange(8), np.arange(8) < 7

    def stepped(mesh, mapping):
        devices = Devices(mesh, mapping)
        step = devices.parallelize(
            lambda *args, axis_name: train_step(*args, axis_name=axis_name, method=method, num_classes=3),
            in_sharded=(False, False, False, True, True),
            out_sharded=False,
        )
        state, shared = devices.replicate((init_state(method, VARIABLES, jax.random.key(0)), data))
        state, _ = step(state, {}, shared, positions, mask)
        return sharding.fetch((state.params, state.model_state))

    tiny.assert_close(stepped(sharding.mesh(), "shard_map"), stepped(sharding.mesh(), "jit"), rtol=1e-4, atol=1e-5)
