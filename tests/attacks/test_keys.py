"""Keys per image: whatever the implementation of the keys, the batch does not affect what happens to an image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import Attack
from advjax.attacks.keys import fold_in, keys_per_image, threefry
from support import attack_models as am

IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
ATTACKS: dict[str, Attack] = {
    "pgd": attacks.pgd(attacks.l2(0.3), num_steps=1, step_size=0.01),
    "square": attacks.square(attacks.linf(0.1), num_queries=3),
    "noise": attacks.gaussian_noise(0.1),
}


def data(key) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def test_threefry_keys_are_folded_with_the_position_and_otherwise_unchanged():
    key = jax.random.key(7, impl="threefry2x32")
    np.testing.assert_array_equal(data(threefry(key)), data(key))
    np.testing.assert_array_equal(data(threefry(jax.random.key_data(key))), data(key))
    expected = np.stack([data(jax.random.fold_in(key, i)) for i in range(3)])
    np.testing.assert_array_equal(data(keys_per_image(key, 3)), expected)
    np.testing.assert_array_equal(data(keys_per_image(keys_per_image(key, 3), 3)), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_keys_of_any_implementation_become_different_threefry_keys(implementation):
    keys = [jax.random.key(seed, impl=implementation) for seed in range(20)]
    split = list(jax.random.split(keys[0], 20))
    found = [threefry(key) for key in keys + split]
    assert all(jax.random.key_impl(key) == "threefry2x32" for key in found)
    assert len({data(key).tobytes() for key in found}) == 40
    stacked = threefry(jnp.stack(split))
    np.testing.assert_array_equal(data(stacked), np.stack([data(key) for key in found[20:]]))


def test_fold_in_takes_one_number_or_one_for_each_key():
    keys = keys_per_image(jax.random.key(0), 3)
    np.testing.assert_array_equal(data(fold_in(keys, 5))[1], data(jax.random.fold_in(keys[1], 5)))
    np.testing.assert_array_equal(data(fold_in(keys, np.arange(3)))[2], data(jax.random.fold_in(keys[2], 2)))


@pytest.mark.parametrize(
    "implementation",
    [pytest.param(name, marks=pytest.mark.slow if name == "unsafe_rbg" else ()) for name in IMPLEMENTATIONS],
)
@pytest.mark.parametrize("name", [*ATTACKS, "expectation"])
def test_an_image_has_the_same_result_in_any_batch(name, implementation):
    images = am.gray_images()
    model = am.random_linear(images, num_classes=3)
    labels = np.argmax(model(images), axis=-1)

    def noisy(images, rng):
        return model(images + 0.1 * jax.random.normal(rng, images.shape[1:]))

    logits_fn = attacks.expectation(noisy, 2) if name == "expectation" else model
    attack = attacks.with_restarts(ATTACKS.get(name, ATTACKS["pgd"]), 2)

    with jax.default_prng_impl(implementation):
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(1)))(np.arange(8))
        run = jax.jit(functools.partial(attack, logits_fn))
        everything = run(images, labels, keys)
        for rows in (np.arange(8)[::-1], np.asarray([5]), np.asarray([6, 2, 2])):
            result = run(images[rows], labels[rows], keys[rows])
            np.testing.assert_allclose(result.images, everything.images[rows], atol=1e-6)
            np.testing.assert_allclose(result.logits, everything.logits[rows], atol=1e-5)


@pytest.mark.parametrize("rng", [0, None, 1.5, "key", np.arange(2), np.zeros((), np.uint32), jnp.zeros(2)])
def test_what_is_not_a_key(rng):
    with pytest.raises(TypeError, match=r"rng must be a key, such as jax.random.key\(0\).*got"):
        keys_per_image(rng, 2)
