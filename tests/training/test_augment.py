"""Every augmentation against a NumPy reference, and the guarantees they all share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.training import augment

SHAPE = (9, 12, 3)
NUM_IMAGES = 64


@pytest.fixture(scope="module")
def images():
    # Exact 0 and 1 are where a careless resampling leaves the range.
    values = jax.random.uniform(jax.random.key(0), (NUM_IMAGES, *SHAPE), minval=-0.2, maxval=1.2)
    return jnp.clip(values, 0, 1)


@pytest.fixture(scope="module")
def rngs():
    return jax.random.split(jax.random.key(1), NUM_IMAGES)


def many(augmentation):
    """One image under many keys."""
    return jax.jit(jax.vmap(augmentation, (None, 0)))


def batched(augmentation):
    return jax.jit(augment.batched(augmentation))


ALL = {
    "pad_crop_reflect": augment.pad_crop(3),
    "pad_crop_constant": augment.pad_crop(2, "constant"),
    "pad_crop_edge": augment.pad_crop(2, "edge"),
    "horizontal_flip": augment.horizontal_flip(),
    "vertical_flip": augment.vertical_flip(),
    "solarize": augment.solarize(),
    "coarse_dropout": augment.coarse_dropout(holes=2, size=(3, 4), fill=0.5),
    "gaussian_noise": augment.gaussian_noise(0.3),
    "brightness": augment.brightness(0.4),
    "affine": augment.affine(30.0, 0.2, (0.8, 1.3), 15.0),
    "chain": augment.chain(
        augment.pad_crop(2), augment.horizontal_flip(), augment.affine(15.0, 0.1), augment.solarize()
    ),
}


@pytest.mark.parametrize("name", ALL)
def test_contract(name, images, rngs):
    """Shape, dtype, range; changes something; depends on the key but not on the batch position or jit."""
    augmentation = ALL[name]
    apply = batched(augmentation)
    out = apply(images, rngs)
    assert out.shape == images.shape and out.dtype == jnp.float32
    assert float(out.min()) >= 0.0 and float(out.max()) <= 1.0
    assert not np.array_equal(out, images)
    np.testing.assert_array_equal(apply(images, rngs), out)
    np.testing.assert_array_equal(apply(images[::-1], rngs[::-1]), out[::-1])
    np.testing.assert_allclose(jax.jit(augmentation)(images[5], rngs[5]), out[5], atol=1e-6)
    same_image = apply(jnp.broadcast_to(images[0], images.shape), rngs)
    assert len(np.unique(np.asarray(same_image).reshape(NUM_IMAGES, -1), axis=0)) > 1


@pytest.mark.parametrize(
    "augmentation",
    [
        augment.chain(),
        augment.pad_crop(0),
        augment.horizontal_flip(0.0),
        augment.vertical_flip(0.0),
        augment.solarize(0.0),
        augment.coarse_dropout(0.0, size=3),
        augment.gaussian_noise(0.0),
        augment.brightness(0.0),
        augment.affine(),
    ],
)
def test_identity_where_nothing_is_asked_for(augmentation, images, rngs):
    np.testing.assert_array_equal(batched(augmentation)(images, rngs), images)


@pytest.mark.parametrize(
    ("mode", "padding"), [("reflect", 3), ("reflect", 20), ("constant", 3), ("edge", 3), ("edge", 20)]
)
def test_pad_crop_is_a_window_of_the_padded_image(mode, padding, images, rngs):
    out = np.asarray(batched(augment.pad_crop(padding, mode))(images, rngs))
    height, width, _ = SHAPE
    for image, cropped in zip(np.asarray(images[:8]), out, strict=False):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
        windows = np.lib.stride_tricks.sliding_window_view(padded, SHAPE)[:, :, 0]
        assert windows.shape[:2] == (2 * padding + 1, 2 * padding + 1)
        assert (windows == cropped).all(axis=(2, 3, 4)).any()
    assert out.shape[1:3] == (height, width)


def test_pad_crop_offsets_are_uniform_and_independent():
    row = jnp.arange(9.0)[:, None, None] * 9 + jnp.arange(9.0)[None, :, None]
    keys = jax.random.split(jax.random.key(3), 4000)
    centers = np.asarray(many(augment.pad_crop(2))(row / 81, keys))[:, 4, 4, 0] * 81
    found = np.round(centers).astype(int)
    rows, columns = found // 9, found % 9
    assert (
        rows.min() == columns.min() == 2 and rows.max() == columns.max() == 6
    )  # offsets -2..2 around the center (4, 4)
    counts = np.bincount((rows - 2) * 5 + columns - 2, minlength=25)
    expected = 4000 / 25
    assert ((counts - expected) ** 2 / expected).sum() < 51.2  # chi-square with 24 degrees of freedom, p = 0.001


@pytest.mark.parametrize(("make", "axis"), [(augment.horizontal_flip, 1), (augment.vertical_flip, 0)])
def test_flips(make, axis, images, rngs):
    np.testing.assert_array_equal(batched(make(1.0))(images, rngs), np.flip(images, axis + 1))
    keys = jax.random.split(jax.random.key(4), 4000)
    out = many(make(0.3))(images[0], keys)
    flipped = (np.asarray(out) == np.flip(images[0], axis)).all(axis=(1, 2, 3))
    kept = (np.asarray(out) == np.asarray(images[0])).all(axis=(1, 2, 3))
    assert (flipped ^ kept).all()
    assert abs(flipped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)


def test_solarize_inverts_from_the_threshold_on(images, rngs):
    image = images[0].at[0, 0, 0].set(0.25)
    out = augment.solarize(1.0, 0.25)(image, rngs[0])
    np.testing.assert_array_equal(out, np.where(np.asarray(image) >= 0.25, 1 - np.asarray(image), np.asarray(image)))
    assert out[0, 0, 0] == 0.75


def test_one_hole_is_exactly_its_size_and_everywhere_equally_likely():
    image = jnp.ones((6, 7, 2))
    keys = jax.random.split(jax.random.key(5), 3000)
    out = np.asarray(many(augment.coarse_dropout(1.0, size=(2, 3), fill=0.25))(image, keys))
    hole = (out == 0.25).all(-1)
    assert ((out == 1.0).all(-1) == ~hole).all()
    tops, lefts = hole.any(2).argmax(1), hole.any(1).argmax(1)
    rows, columns = np.arange(6)[None, :, None], np.arange(7)[None, None, :]
    inside_rows = (rows >= tops[:, None, None]) & (rows < tops[:, None, None] + 2)
    inside_columns = (columns >= lefts[:, None, None]) & (columns < lefts[:, None, None] + 3)
    np.testing.assert_array_equal(hole, inside_rows & inside_columns)
    np.testing.assert_array_equal(hole.sum((1, 2)), 6)
    counts = np.bincount(tops * 5 + lefts, minlength=25)
    assert len(counts) == 25
    assert ((counts - 120) ** 2 / 120).sum() < 51.2  # chi-square with 24 degrees of freedom, p = 0.001


def test_many_holes_are_drawn_independently_and_probability_counts_images():
    image = jnp.ones((32, 32, 1))
    keys = jax.random.split(jax.random.key(6), 2000)
    out = np.asarray(many(augment.coarse_dropout(0.5, holes=8, size=4))(image, keys))
    missing = (out == 0).sum((1, 2, 3))
    assert abs((missing > 0).mean() - 0.5) < 4 * np.sqrt(0.25 / 2000)
    punched = missing[missing > 0]
    assert punched.max() == 8 * 16 and punched.min() >= 16
    assert (punched == 16).mean() < 0.01


def test_noise_and_brightness_distributions():
    image = jnp.full((16, 16, 3), 0.5)
    keys = jax.random.split(jax.random.key(7), 500)
    noise = np.asarray(many(augment.gaussian_noise(0.05))(image, keys)) - 0.5
    assert abs(noise.std() - 0.05) < 5e-4 and abs(noise.mean()) < 5e-4
    lit = np.asarray(many(augment.brightness(0.2))(image, keys))
    factor = lit[:, :1, :1, :1] / 0.5
    np.testing.assert_allclose(lit, np.broadcast_to(factor * 0.5, lit.shape), atol=1e-7)
    assert 0.8 <= factor.min() < 0.82 and 1.18 < factor.max() <= 1.2 and abs(factor.mean() - 1) < 0.02


def affine_in_numpy(image, turn, slant, scale, shift):
    """Bilinear interpolation of an image that is 0 outside: weights of all input pixels for each output pixel."""
    height, width, _ = image.shape
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = scale * turned @ np.array([[1, 0], [np.tan(slant), 1]])
    center = np.array([(height - 1) / 2, (width - 1) / 2])
    out = np.zeros_like(image, dtype=np.float64)
    for i in range(height):
        for j in range(width):
            row, column = np.linalg.inv(matrix) @ (np.array([i, j]) - center - shift) + center
            for k in range(height):
                for m in range(width):
                    out[i, j] += max(0, 1 - abs(row - k)) * max(0, 1 - abs(column - m)) * image[k, m]
    return out


@pytest.mark.parametrize("which", ["rotation", "shift", "scale", "shear", "all"])
def test_affine_is_the_stated_map(which, images):

    def chosen(name, value, neutral):
        return value if which in (name, "all") else neutral

    rotation, shear = chosen("rotation", 40.0, 0.0), chosen("shear", 20.0, 0.0)
    shift, limits = chosen("shift", 0.3, 0.0), chosen("scale", (0.6, 1.5), (1.0, 1.0))
    key = jax.random.key(11)
    expected = drawn_affine_in_numpy(np.asarray(images[3]), key, rotation, shift, limits, shear)
    out = jax.jit(augment.affine(rotation, shift, limits, shear))(images[3], key)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    assert not np.array_equal(out, images[3])


def test_affine_turns_counterclockwise_for_positive_angles():
    """A quarter turn of a square image is np.rot90."""
    image = jax.random.uniform(jax.random.key(0), (7, 7, 1))
    keys = jax.random.split(jax.random.key(2), 64)
    units = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (5,), minval=-1.0)[0])(keys), np.float64)
    for which, quarters in ((units.argmax(), 1), (units.argmin(), -1)):
        turned = jax.jit(augment.affine(90 / abs(units[which])))(image, keys[which])
        np.testing.assert_allclose(turned, np.rot90(image, quarters), atol=1e-5)


def test_affine_gradient_is_the_adjoint(images):
    """Linear in the image: <T x, y> = <x, T* y>, also at pixels of exactly 0 and 1."""

    @jax.jit
    def transform(image):
        return augment.affine(20.0, 0.1, (0.9, 1.1), 10.0)(image, jax.random.key(8))

    other = jax.random.normal(jax.random.key(9), SHAPE)
    gradient = jax.grad(lambda image: jnp.vdot(transform(image), other))(images[0])
    assert float(jnp.vdot(gradient, images[1])) == pytest.approx(float(jnp.vdot(transform(images[1]), other)), rel=1e-4)


# For given draws ------------------------------------------------------------------------------------------------------
# Each function below says in NumPy what an augmentation makes of an image: the draws are repeated, the rest is written
# independently.


def coin(rng, probability):
    """Whether an event of that probability occurs, and the key for what follows."""
    first, rest = jax.random.split(rng)
    return bool(jax.random.bernoulli(first, probability)), rest


def pad_crop_in_numpy(image, rng, padding, mode):
    down, right = np.asarray(jax.random.randint(rng, (2,), -padding, padding + 1)) + padding
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    return padded[down : down + image.shape[0], right : right + image.shape[1]]


def flip_in_numpy(image, rng, probability, axis):
    return np.flip(image, axis) if jax.random.bernoulli(rng, probability) else image


def solarize_in_numpy(image, rng, probability, threshold):
    happens, _ = coin(rng, probability)
    return np.array([1 - v if happens and v >= threshold else v for v in image.ravel()]).reshape(image.shape)


def dropout_in_numpy(image, rng, probability, holes, sides, fill):
    happens, rest = coin(rng, probability)
    ranges = [length - side + 1 for length, side in zip(image.shape, sides, strict=False)]
    keys = jax.random.split(rest)
    tops, lefts = (np.asarray(jax.random.randint(k, (holes, 1), 0, r)) for k, r in zip(keys, ranges, strict=True))
    out = image.copy()
    for top, left in zip(tops[:, 0], lefts[:, 0], strict=True):
        if happens:
            out[top : top + sides[0], left : left + sides[1]] = fill
    return out


def noise_in_numpy(image, rng, std):
    return np.clip(image + std * np.asarray(jax.random.normal(rng, image.shape)), 0, 1)


def brightness_in_numpy(image, rng, limit):
    return np.clip(image * float(jax.random.uniform(rng, (), minval=1 - limit, maxval=1 + limit)), 0, 1)


def drawn_affine_in_numpy(image, rng, rotation, shift, limits, shear):
    unit = np.asarray(jax.random.uniform(rng, (5,), minval=-1.0), np.float64)
    return affine_in_numpy(
        image,
        turn=unit[0] * np.deg2rad(rotation),
        slant=unit[1] * np.deg2rad(shear),
        scale=limits[0] + (unit[2] + 1) / 2 * (limits[1] - limits[0]),
        shift=unit[3:] * shift * np.array(image.shape[:2]),
    )


NUM_STATED = 8  # Enough for every coin to fall on both sides.

# With the values of the two papers, but for the padding and the holes, which are made to fit the small images here.
OF_PAPER_002 = [
    (
        augment.affine(15.0, 0.1, (0.9, 1.1), 10.0),
        lambda i, k: drawn_affine_in_numpy(i, k, 15.0, 0.1, (0.9, 1.1), 10.0),
    ),
    (augment.horizontal_flip(0.5), lambda i, k: flip_in_numpy(i, k, 0.5, 1)),
    (augment.brightness(0.2), lambda i, k: brightness_in_numpy(i, k, 0.2)),
    (augment.gaussian_noise(0.02), lambda i, k: noise_in_numpy(i, k, 0.02)),
]
OF_PAPER_003 = [
    (augment.pad_crop(4, "reflect"), lambda i, k: pad_crop_in_numpy(i, k, 4, "reflect")),
    (augment.vertical_flip(0.5), lambda i, k: flip_in_numpy(i, k, 0.5, 0)),
    (augment.horizontal_flip(0.5), lambda i, k: flip_in_numpy(i, k, 0.5, 1)),
    (augment.solarize(0.3, 0.5), lambda i, k: solarize_in_numpy(i, k, 0.3, 0.5)),
    (augment.coarse_dropout(0.5, 2, (3, 4), 0.0), lambda i, k: dropout_in_numpy(i, k, 0.5, 2, (3, 4), 0.0)),
]


@pytest.mark.parametrize("place", range(len(OF_PAPER_002 + OF_PAPER_003)))
def test_augmentation_is_its_numpy_statement_for_given_draws(place, images, rngs):
    augmentation, stated = (OF_PAPER_002 + OF_PAPER_003)[place]
    found = batched(augmentation)(images, rngs)[:NUM_STATED]
    expected = [stated(image, rng) for image, rng in zip(np.asarray(images[:NUM_STATED]), rngs, strict=False)]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not np.allclose(expected, images[:NUM_STATED])


@pytest.mark.parametrize("steps", [OF_PAPER_002, OF_PAPER_003], ids=["002", "003"])
def test_the_augmentation_of_a_paper_is_its_steps_in_order(steps, images, rngs):
    found = batched(augment.chain(*(augmentation for augmentation, _ in steps)))(images, rngs)
    for original, rng, augmented in zip(np.asarray(images[:NUM_STATED]), rngs, found, strict=False):
        image = original
        for place, (_, stated) in enumerate(steps):
            image = stated(image, jax.random.fold_in(rng, place))
        np.testing.assert_allclose(augmented, image, atol=2e-5)


@pytest.mark.parametrize("mode", ["constant", "edge"])
def test_other_padding_is_its_numpy_statement(mode, images, rngs):
    found = batched(augment.pad_crop(3, mode))(images, rngs)
    for image, rng, cropped in zip(np.asarray(images[:8]), rngs, found, strict=False):
        np.testing.assert_array_equal(cropped, pad_crop_in_numpy(image, rng, 3, mode))


def test_chain_is_composition_under_folded_keys_and_appending_changes_no_draw(images, rngs):
    first, second = augment.pad_crop(3), augment.gaussian_noise(0.1)
    image, rng = images[0], rngs[0]
    by_hand = second(first(image, jax.random.fold_in(rng, 0)), jax.random.fold_in(rng, 1))
    np.testing.assert_array_equal(augment.chain(first, second)(image, rng), by_hand)
    np.testing.assert_array_equal(
        augment.chain(first, augment.solarize(0.0))(image, rng), augment.chain(first)(image, rng)
    )


@pytest.mark.parametrize(
    ("build", "given"),
    [
        (lambda: augment.pad_crop(-1), "-1"),
        (lambda: augment.pad_crop(1.5), "1.5"),
        (lambda: augment.pad_crop(1, "wrap"), "wrap"),
        (lambda: augment.horizontal_flip(1.5), "1.5"),
        (lambda: augment.vertical_flip(-0.5), "-0.5"),
        (lambda: augment.solarize(0.5, 2.0), "2.0"),
        (lambda: augment.solarize(float("nan")), "nan"),
        (lambda: augment.coarse_dropout(holes=0), "holes is 0"),
        (lambda: augment.coarse_dropout(size=(3, 0)), r"\(3, 0\)"),
        (lambda: augment.coarse_dropout(size=(3, 3, 3)), r"\(3, 3, 3\)"),
        (lambda: augment.coarse_dropout(fill=-1.0), "-1.0"),
        (lambda: augment.gaussian_noise(-0.1), "-0.1"),
        (lambda: augment.gaussian_noise(float("inf")), "inf"),
        (lambda: augment.brightness(1.1), "1.1"),
        (lambda: augment.affine(shear_degrees=90.0), "90.0"),
        (lambda: augment.affine(rotation_degrees=-3.0), "-3.0"),
        (lambda: augment.affine(shift_fraction=2.0), "2.0"),
        (lambda: augment.affine(scale_limits=(0.0, 1.0)), r"\(0.0, 1.0\)"),
        (lambda: augment.affine(scale_limits=(1.2, 1.0)), r"\(1.2, 1.0\)"),
    ],
)
def test_bad_arguments_are_refused_when_built(build, given):
    with pytest.raises(ValueError, match=given):
        build()


def test_a_hole_larger_than_the_image_is_refused(images, rngs):
    with pytest.raises(ValueError, match="10x10 holes do not fit into 9x12"):
        augment.coarse_dropout(size=10)(images[0], rngs[0])
