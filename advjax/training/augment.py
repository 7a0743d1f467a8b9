"""Random augmentations of ONE image, as pure functions of the image and a key.

An augmentation is ``(image [h, w, c], rng) -> image`` of the same shape; pixels are float32 and remain in [0, 1].
Factories build them, ``chain`` composes them, and ``batched`` maps them over a batch with one key per image, so that
the result for an image depends only on its own key, and not on its neighbors or its position in the batch.

    augment = chain(pad_crop(4), horizontal_flip(), coarse_dropout(size=10))
    images = batched(augment)(images, jax.random.split(rng, len(images)))

Factories raise a ``ValueError`` for invalid arguments. ``solarize`` and ``coarse_dropout`` follow Albumentations
(Buslaev et al., 2020); the latter is Cutout (DeVries and Taylor, 2017) with holes entirely inside the image.
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from advjax.types import Array, Key

Augmentation: TypeAlias = Callable[[Array, Key], Array]
"""``(image [h, w, c], rng) -> image`` of the same shape, float32 in [0, 1]."""

PadMode: TypeAlias = Literal["reflect", "constant", "edge"]


def chain(*augmentations: Augmentation) -> Augmentation:
    """Applies ``augmentations`` in order; the one at position i draws from ``fold_in(rng, i)``.

    Appending one therefore does not change the draws of the others. An empty chain is the identity.
    """

    def apply(image: Array, rng: Key) -> Array:
        for position, augmentation in enumerate(augmentations):
            image = augmentation(image, jax.random.fold_in(rng, position))
        return image

    return apply


def batched(augmentation: Augmentation) -> Callable[[Array, Array], Array]:
    """``(images [n, h, w, c], rngs [n]) -> images``: augments every image under its own key."""
    return jax.vmap(augmentation)


def pad_crop(padding: int, mode: PadMode = "reflect") -> Augmentation:
    """Pads every side by ``padding`` pixels and crops to the original size at a uniformly random offset.

    Args:
      padding: pixels on each side, at least 0; both offsets are uniform in {0, ..., 2 padding}.
      mode: how to pad: "reflect" mirrors at the center of the border pixel, "edge" repeats it, "constant" pads with 0.

    Raises:
      ValueError: the padding is negative, not an integer, or (when applied) more than four times the size of the
        image; or the mode is unknown.
    """
    if not isinstance(padding, int) or padding < 0:
        raise ValueError(f"pad_crop: padding is {padding!r}; give an integer number of pixels, 0 or more")
    if mode not in get_args(PadMode):
        raise ValueError(f"pad_crop: mode is {mode!r}; choose one of {', '.join(get_args(PadMode))}")

    # Gathers of whole rows and columns are three times faster on CPU than padding and a batch of dynamic slices.
    def apply(image: Array, rng: Key) -> Array:
        if padding > 4 * min(image.shape[:2]):
            raise ValueError(f"pad_crop: padding is {padding}, too much for images of {image.shape[:2]} pixels")
        offsets = jax.random.randint(rng, (2,), -padding, padding + 1)
        return _shift(_shift(image, offsets[0], 0, mode), offsets[1], 1, mode)

    return apply


def horizontal_flip(probability: float = 0.5) -> Augmentation:
    """Mirrors left and right with the given probability."""
    return _flip("horizontal_flip", probability, axis=1)


def vertical_flip(probability: float = 0.5) -> Augmentation:
    """Mirrors top and bottom with the given probability."""
    return _flip("vertical_flip", probability, axis=0)


def solarize(probability: float = 0.3, threshold: float = 0.5) -> Augmentation:
    """With the given probability, inverts bright values: every v >= ``threshold`` becomes 1 - v.

    Raises:
      ValueError: the probability or the threshold is outside [0, 1].
    """
    _check_range("solarize", "threshold", threshold, 0.0, 1.0)
    return _with_probability("solarize", probability, lambda image, _: jnp.where(image >= threshold, 1 - image, image))


def coarse_dropout(
    probability: float = 0.5, holes: int = 1, size: int | tuple[int, int] = 10, fill: float = 0.0
) -> Augmentation:
    """With the given probability, overwrites rectangles of the image.

    Args:
      probability: probability of any holes at all, in [0, 1].
      holes: exact number of holes, drawn independently; they may overlap.
      size: side length in pixels, or (height, width). Each hole lies entirely inside the image, uniformly distributed.
      fill: the value inside, in [0, 1].

    Raises:
      ValueError: an argument is out of range, or (when applied) a hole is larger than the image.
    """
    _check_range("coarse_dropout", "fill", fill, 0.0, 1.0)
    if not isinstance(holes, int) or holes < 1:
        raise ValueError(f"coarse_dropout: holes is {holes!r}; give an integer, 1 or more")
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"coarse_dropout: size is {size!r}; give one positive integer or (height, width)")

    def inside(rng: Key, length: int, side: int) -> Array:
        start = jax.random.randint(rng, (holes, 1), 0, length - side + 1)
        return (jnp.arange(length) >= start) & (jnp.arange(length) < start + side)

    def punch(image: Array, rng: Key) -> Array:
        height, width, _ = image.shape
        if sides[0] > height or sides[1] > width:
            raise ValueError(f"coarse_dropout: {sides[0]}x{sides[1]} holes do not fit into {height}x{width} pixels")
        row_rng, column_rng = jax.random.split(rng)
        rows, columns = inside(row_rng, height, sides[0]), inside(column_rng, width, sides[1])
        hole = jnp.any(rows[:, :, None] & columns[:, None, :], axis=0)
        return jnp.where(hole[:, :, None], fill, image)

    return _with_probability("coarse_dropout", probability, punch)


def gaussian_noise(std: float) -> Augmentation:
    """``clip(image + n, 0, 1)`` with n ~ N(0, std^2) for every value; ``std`` is in units of the [0, 1] range."""
    _check_range("gaussian_noise", "std", std, 0.0, math.inf)
    return lambda image, rng: jnp.clip(image + std * jax.random.normal(rng, image.shape, image.dtype), 0, 1)


def brightness(limit: float) -> Augmentation:
    """``clip(f * image, 0, 1)`` with ONE factor f ~ U(1 - limit, 1 + limit) per image; ``limit`` is in [0, 1]."""
    _check_range("brightness", "limit", limit, 0.0, 1.0)

    def apply(image: Array, rng: Key) -> Array:
        return jnp.clip(image * jax.random.uniform(rng, (), image.dtype, 1 - limit, 1 + limit), 0, 1)

    return apply


def affine(
    rotation_degrees: float = 0.0,
    shift_fraction: float = 0.0,
    scale_limits: tuple[float, float] = (1.0, 1.0),
    shear_degrees: float = 0.0,
) -> Augmentation:
    """Rotates, shifts, scales, and shears about the center, with bilinear resampling.

    The content at offset q from the center moves to A q + t with A = s R(theta) [[1, 0], [tan phi, 1]] in (row, column)
    order, where R rotates counterclockwise as seen. Drawn uniformly and independently: theta in
    +-``rotation_degrees``, phi in +-``shear_degrees``, s in ``scale_limits``, and t in +-``shift_fraction`` of the
    height and of the width. The image is extended by 0, to which it fades linearly over one pixel beyond its border.
    The map is linear in the image, hence differentiable, and exactly the identity for the default arguments.

    Raises:
      ValueError: rotation is outside [0, 180], shift outside [0, 1], shear outside [0, 90), or not
        0 < low <= high for the scales.
    """
    _check_range("affine", "rotation_degrees", rotation_degrees, 0.0, 180.0)
    _check_range("affine", "shift_fraction", shift_fraction, 0.0, 1.0)
    _check_range("affine", "shear_degrees", shear_degrees, 0.0, math.nextafter(90.0, 0.0))
    if len(scale_limits) != 2 or not 0 < scale_limits[0] <= scale_limits[1] < math.inf:
        raise ValueError(f"affine: scale_limits is {scale_limits!r}; give (low, high) with 0 < low <= high")
    radians = math.radians(rotation_degrees), math.radians(shear_degrees)

    def apply(image: Array, rng: Key) -> Array:
        height, width, _ = image.shape
        unit = jax.random.uniform(rng, (5,), minval=-1.0)
        turn, slant = unit[0] * radians[0], jnp.tan(unit[1] * radians[1])
        scale = scale_limits[0] + (unit[2] + 1) / 2 * (scale_limits[1] - scale_limits[0])
        center = jnp.array([(height - 1) / 2, (width - 1) / 2])
        shift = unit[3:] * shift_fraction * jnp.array([height, width])
        # An output pixel p is pulled back to its source: A^-1 (p - center - t) + center = inverse p + origin.
        cosine, sine = jnp.cos(turn), jnp.sin(turn)
        inverse = jnp.array([[cosine, sine], [-sine - slant * cosine, cosine - slant * sine]]) / scale
        origin = center - jnp.sum(inverse * (center + shift), axis=1)
        row, column = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
        source = [inverse[axis, 0] * row + inverse[axis, 1] * column + origin[axis] for axis in (0, 1)]
        return _bilinear(image, *source)

    return apply


def _with_probability(name: str, probability: float, augmentation: Augmentation) -> Augmentation:
    _check_range(name, "probability", probability, 0.0, 1.0)

    def apply(image: Array, rng: Key) -> Array:
        coin, rest = jax.random.split(rng)
        return jnp.where(jax.random.bernoulli(coin, probability), augmentation(image, rest), image)

    return apply


def _flip(name: str, probability: float, axis: int) -> Augmentation:
    _check_range(name, "probability", probability, 0.0, 1.0)

    # Selecting indices instead of images keeps XLA from computing the image twice.
    def apply(image: Array, rng: Key) -> Array:
        index = jnp.arange(image.shape[axis])
        index = jnp.where(jax.random.bernoulli(rng, probability), index[::-1], index)
        return _take(image, index, axis)

    return apply


def _take(image: Array, index: Array, axis: int) -> Array:
    return image.at[(slice(None),) * axis + (index,)].get(mode="promise_in_bounds")


def _shift(image: Array, offset: Array, axis: int, mode: PadMode) -> Array:
    """``out[i] = image[i + offset]`` along ``axis``, where ``mode`` fills positions outside the image."""
    length = image.shape[axis]
    position = jnp.arange(length) + offset
    if mode == "reflect":
        period = max(2 * (length - 1), 1)
        index = jnp.minimum(position % period, period - position % period)
    else:
        index = jnp.clip(position, 0, length - 1)
    shifted = _take(image, index, axis)
    inside = jnp.expand_dims(position == index, (1, 2) if axis == 0 else (0, 2))
    return jnp.where(inside, shifted, 0) if mode == "constant" else shifted


def _bilinear(image: Array, row: Array, column: Array) -> Array:
    """The image at fractional positions ``row`` and ``column`` [h, w]; 0 at one pixel or more outside."""
    height, width, channels = image.shape
    row, column = jnp.clip(row, -1, height), jnp.clip(column, -1, width)
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = (row - top)[:, :, None], (column - left)[:, :, None]
    padded = jnp.pad(image, ((1, 2), (1, 2), (0, 0)))

    def corners(top: Array, left: Array) -> Array:
        return jax.lax.dynamic_slice(padded, (top + 1, left + 1, 0), (2, 2, channels))

    block = jax.vmap(jax.vmap(corners))(top.astype(jnp.int32), left.astype(jnp.int32))
    # a + w (b - a) cannot leave [0, 1] by rounding, so no clip is needed; it would spoil the gradient at 0 and 1.
    sides = block[:, :, 0] + down[:, :, None] * (block[:, :, 1] - block[:, :, 0])
    return sides[:, :, 0] + right * (sides[:, :, 1] - sides[:, :, 0])


def _check_range(name: str, argument: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or math.isinf(value):
        allowed = f"{low:g} or more" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise ValueError(f"{name}: {argument} is {value!r}; give a number {allowed}")
