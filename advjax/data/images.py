"""Decoding and resizing of single images."""

import io
import os

import numpy as np
import PIL.Image

MAX_SIZE = 4096
"""The largest side length, in pixels, that images are resized to."""
_MODES = {1: "L", 3: "RGB"}
_GRAY = frozenset({"1", "L", "LA", "La"})
_EIGHT_BIT = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "La", "RGBa"})


def decode(file: str | os.PathLike | bytes | PIL.Image.Image, channels: int | None = 3) -> np.ndarray:
    """Decodes an image file, the bytes of one, or an image that Pillow has opened, to uint8 [h, w, channels].

    Gray and color are converted into each other as needed; transparency is dropped; orientation tags are ignored.
    Pillow is the decoder no matter what else is installed, so that all machines with the same Pillow see the same
    pixels.

    Args:
      file: path, content, or image.
      channels: 1 for gray, 3 for color, None for gray if the image is.

    Raises:
      OSError: the file cannot be read, is not an image, is damaged, or has more than 8 bits per channel.
    """
    try:
        if isinstance(file, PIL.Image.Image):
            pixels = _converted(file, channels)
        else:
            with PIL.Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                pixels = _converted(image, channels)
    except OSError:
        raise
    # Pillow's plugins report damage in various ways: SyntaxError, struct.error, zlib.error, ValueError, and others.
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _converted(image: PIL.Image.Image, channels: int | None) -> np.ndarray:
    if image.mode not in _EIGHT_BIT:
        raise OSError(f"an image of mode {image.mode} has no 8-bit channels")
    return np.asarray(image.convert(_MODES[channels or (1 if image.mode in _GRAY else 3)]))


def square(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes the shorter side to ``size`` and center-crops to ``size`` x ``size`` pixels.

    Uses Pillow's antialiased bilinear filter: along a side that shrinks by the factor s >= 1, output pixel i is the
    mean of the input pixels j with weights ``max(0, 1 - |(j + 1/2) - x| / s)``, where x = (i + 1/2) s plus the start of
    the crop; s = 1 for a side that grows. The horizontal pass comes first; each pass rounds to 8 bits. Resizing and
    cropping are one operation, so the crop is exactly centered, by half pixels if necessary.

    Args:
      image: uint8 [h, w, c], or float32, which is not rounded.
      size: pixels, at least 1.

    Returns:
      [size, size, c] of the same dtype; the image itself if it already has that size.
    """
    height, width, channels = image.shape
    if height == width == size:
        return image
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    # Pillow resizes the channels of a color image one by one; floating point it only knows as single channels.
    is_color = channels == 3 and image.dtype == np.uint8
    planes = [image] if is_color else [image[..., channel] for channel in range(channels)]
    opened = (PIL.Image.fromarray(np.ascontiguousarray(plane)) for plane in planes)
    pixels = np.dstack([np.asarray(plane.resize((size, size), PIL.Image.Resampling.BILINEAR, box)) for plane in opened])
    # Means of pixels in [0, 1] may leave it by rounding.
    return pixels if pixels.dtype == np.uint8 else np.clip(pixels, 0, 1)
