"""Decoding, and resizing against a NumPy reference."""

import io

import numpy as np
import PIL.Image
import pytest

from advjax.data import images

RNG = np.random.RandomState(0)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.randint(0, 256, (height, width, channels)).astype(np.uint8)


def encoded(image: PIL.Image.Image, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def weights(length: int, side: int, size: int) -> np.ndarray:
    """[size, length]: weight of each input pixel in each output pixel of the centered crop of ``side``."""
    shrink = side / size
    support = max(shrink, 1)
    at = (np.arange(size) + 0.5) * shrink + (length - side) / 2
    near = np.maximum(0, 1 - np.abs(np.arange(length) + 0.5 - at[:, None]) / support)
    return near / near.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (37, 37), (9, 12), (16, 23), (16, 16)])
def test_square_is_the_stated_filter(shape):
    image, side = noise(*shape), min(shape)
    columns = np.round(np.einsum("oj,ijc->ioc", weights(shape[1], side, 16), image.astype(np.float64)))
    expected = np.einsum("oi,ijc->ojc", weights(shape[0], side, 16), columns)
    found = images.square(image, 16)
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8
    # Pillow's weights are fixed-point numbers, so a half may be rounded to the other side: once in each direction.
    assert np.abs(found - expected).max() < 1.6
    assert np.abs(found - expected).mean() < 0.35


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_do_not_mix_and_constants_stay(channels):
    image = noise(20, 30, channels)
    found = images.square(image, 7)
    for channel in range(channels):
        np.testing.assert_array_equal(found[..., [channel]], images.square(image[..., [channel]], 7))
    assert (images.square(np.full((20, 33, channels), 201, np.uint8), 7) == 201).all()


def test_the_center_is_kept():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert (images.square(image, 10) == 255).all()
    assert (images.square(image.transpose(1, 0, 2), 10) == 255).all()


def test_decode_keeps_pixels_and_makes_the_asked_for_channels():
    color, gray = noise(6, 5), noise(6, 5, 1)
    np.testing.assert_array_equal(images.decode(encoded(PIL.Image.fromarray(color))), color)
    np.testing.assert_array_equal(images.decode(encoded(PIL.Image.fromarray(gray[..., 0])), 1), gray)
    np.testing.assert_array_equal(images.decode(encoded(PIL.Image.fromarray(gray[..., 0]))), gray.repeat(3, axis=2))
    transparent = np.concatenate([color, gray], axis=2)
    np.testing.assert_array_equal(images.decode(encoded(PIL.Image.fromarray(transparent))), color)
    luma = color.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(images.decode(encoded(PIL.Image.fromarray(color)), 1)[..., 0] - luma).max() < 1.01
    palette = PIL.Image.fromarray(color).quantize(256)
    np.testing.assert_array_equal(images.decode(encoded(palette)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "cannot identify"),
        (encoded(PIL.Image.fromarray(noise(50, 50)), "jpeg")[:900], "truncated"),
        (encoded(PIL.Image.fromarray(noise(50, 50)))[:900], "truncated"),
        (encoded(PIL.Image.fromarray(noise(4, 4, 1)[..., 0].astype(np.uint16))), "mode I;16 has no 8-bit"),
    ],
)
def test_what_is_no_whole_8_bit_image_is_refused(content, message):
    with pytest.raises(OSError, match=message):
        images.decode(content)
