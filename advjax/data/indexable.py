"""Sources from random-access collections: Hugging Face datasets, Grain data sources, PyTorch datasets, lists."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image

from advjax.data import images
from advjax.data.arrays import as_labels
from advjax.data.source import Source
from advjax.types import UserError


def from_indexable(
    examples: Any,
    *,
    image: str | int = "image",
    label: str | int = "label",
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    channels: int | None = None,
    image_size: int = 0,
    name: str = "examples",
) -> Source:
    """Makes a source of a random-access collection, whose images are decoded only when they are read.

    An example is a mapping, such as a row of a Hugging Face ``datasets.Dataset``, or a tuple, such as those of Grain's
    ``RandomAccessDataSource`` and PyTorch's datasets. Its image is an array [h, w, c] or [h, w], uint8 or floating
    point in [0, 1], a Pillow image, or the bytes of an image file.

    Example::

        photographs = datasets.load_from_disk("photographs")["train"]
        dataset = advjax.data.read_all(advjax.data.from_indexable(photographs, image="img", name="photographs"))

    Args:
      examples: has ``len(examples)`` and ``examples[i]``; reading has to be thread-safe.
      image: key or position of the image in an example.
      label: key or position of the label in an example.
      labels: integers [n]; default: those of the examples, taken from a column where there is one (as in Hugging Face
        datasets), and otherwise by reading all examples once.
      class_names: one name per class; default: those of a Hugging Face ``ClassLabel``, or the numbers up to the largest
        label.
      channels: 1 or 3 to convert Pillow images and files to gray or color; default: color if the first
        image has color; a gray first image must then be followed by gray ones.
      image_size: if positive, the side length that images are resized and cropped to, as in ``load``.
      name: name of the dataset, which also seeds its splits.

    Raises:
      TypeError: ``examples`` cannot be indexed.
      UserError: there are no examples, an example lacks its image or label, or labels or images are not as above; what
        is wrong with a later image shows when it is read.
    """
    if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")):
        kind = type(examples).__name__
        raise TypeError(f"examples of {name} must have a length and [i], got {kind}: convert an iterable to a list")
    if not len(examples):
        raise UserError(f"{name} has no examples; at least one is needed")
    found = as_labels(_labels(examples, label, name) if labels is None else labels, name)
    if len(found) != len(examples):
        raise UserError(f"{name} has {len(examples)} examples and {len(found)} labels; every example needs one")
    names = tuple(map(str, class_names or _feature_names(examples, label) or range(found.max() + 1)))
    if found.max() >= len(names):
        raise UserError(f"labels of {name} go up to {found.max()}, and there are {len(names)} class names")

    def read_as(position: int, channels: int | None) -> np.ndarray:
        where = f"image {position} of {name}"
        pixels = _pixels(_field(examples[position], image, f"example {position} of {name}"), channels, where)
        return images.square(pixels, image_size) if image_size else pixels

    first = read_as(0, channels)
    # Gray images become color without loss, color images do not become gray unless that is asked for.
    like_first = channels or (3 if first.shape[-1] == 3 else None)

    def read(position: int) -> np.ndarray:
        pixels = read_as(position, like_first)
        if pixels.shape[-1] != first.shape[-1]:
            raise UserError(
                f"image {position} of {name} has {pixels.shape[-1]} channels, image 0 has {first.shape[-1]}: "
                "convert all of them with channels=3 or channels=1"
            )
        return pixels

    return Source(name, first.shape, read, found, np.arange(len(found), dtype=np.int32), names)


def _labels(examples: Any, label: str | int, name: str) -> list[Any]:
    """The labels of all examples; those of a column are read without the images."""
    if isinstance(label, str) and label in getattr(examples, "column_names", ()):
        return list(examples[label])
    return [_field(examples[i], label, f"example {i} of {name}") for i in range(len(examples))]


def _feature_names(examples: Any, label: str | int) -> Sequence[str] | None:
    features = getattr(examples, "features", None)
    return getattr(features[label], "names", None) if isinstance(features, Mapping) and label in features else None


def _field(example: Any, key: str | int, where: str) -> Any:
    """An entry of an example: by its key or, in tuples, where "image" and "label" are the first two, by position."""
    by_position: Any = {"image": 0, "label": 1}.get(str(key), key) if isinstance(example, tuple | list) else key
    try:
        return example[by_position]
    except (KeyError, IndexError, TypeError):
        known = ", ".join(map(str, example)) if isinstance(example, Mapping) else type(example).__name__
        raise UserError(f"{where} has no {key!r}; it has: {known}") from None


def _pixels(image: Any, channels: int | None, where: str) -> np.ndarray:
    """An image as uint8 or float32 [h, w, c]."""
    try:
        if isinstance(image, bytes | PIL.Image.Image):
            return images.decode(image, channels)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{where} is not a readable image ({reason}): replace it, or leave it out") from error
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = pixels.astype(np.float32)
    if pixels.ndim != 3 or pixels.dtype not in (np.uint8, np.float32):
        raise UserError(
            f"{where} is {pixels.dtype} {list(pixels.shape)}; it must be uint8 or floating point [h, w, c], a Pillow "
            "image, or the bytes of an image file"
        )
    # "not all inside" rather than "any outside", because comparisons with NaN are false.
    if pixels.dtype == np.float32 and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(
            f"{where} has values in [{pixels.min():g}, {pixels.max():g}]; pixels must lie in [0, 1]: divide by 255, "
            "and put normalization inside the model"
        )
    return pixels
