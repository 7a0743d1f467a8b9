"""Input normalization that PyTorch networks keep as buffers."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from advjax.models.blocks import Classifier
from advjax.models.layers import ImageClassifier
from advjax.types import UserError

_MEAN = re.compile(r"^((?:.*\.)?(?:\w*_)?)(mean|mu)$")
_PARTNERS = ("std", "sigma")
_RTOL = 1e-5


class Normalization(NamedTuple):
    """``(images - mean) / std`` per channel, and the names under which it was found."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, str]


def split_normalization(
    weights: Mapping[str, np.ndarray], channels: int
) -> tuple[dict[str, np.ndarray], Normalization | None]:
    """Removes buffers such as ``mu`` and ``sigma``, ``normalizer.mean`` and ``normalizer.std``, ``_mean`` and ``_std``.

    Args:
      weights: by full name.
      channels: of the images; the buffers have one value, or one per channel.

    Returns:
      The other weights, and the normalization if there is one.

    Raises:
      UserError: there are several normalizations with different values.
    """
    rest, found = dict(weights), []
    for name, value in weights.items():
        if match := _MEAN.match(name):
            partner = next((match[1] + other for other in _PARTNERS if match[1] + other in weights), None)
            if partner and all(array.size in (1, channels) for array in (value, weights[partner])):
                mean, std = (tuple(map(float, np.ravel(rest.pop(each)))) for each in (name, partner))
                found.append(Normalization(mean, std, (name, partner)))
    for other in found[1:]:
        if not _equal(other, found[0]):
            raise UserError(
                f"the weights normalize twice, by {' and '.join(found[0].names)} and by {' and '.join(other.names)}, "
                "with different values; remove those that are unused"
            )
    return rest, found[0] if found else None


def check_normalization(model: Classifier, found: Normalization) -> None:
    """Raises UserError if the model does not normalize its input in this way."""
    mean, std = (tuple(float(f"{value:.7g}") for value in values) for values in (found.mean, found.std))
    wanted = f"mean={mean}, std={std}"
    where = f"the weights normalize their input with {wanted} ({' and '.join(found.names)})"
    if not isinstance(model, ImageClassifier):
        raise UserError(f"{where}, but {type(model).__name__} has no mean and std; remove them and normalize yourself")
    if max(found.mean) > 1 or max(found.std) > 1:
        raise UserError(f"{where}, so they take pixels in [0, 255]: divide both by 255 in the weights")
    if not _equal(Normalization(tuple(model.mean), tuple(model.std), ("", "")), found):
        raise UserError(
            f"{where}, but this {type(model).__name__} has mean={tuple(model.mean)}, std={tuple(model.std)}: "
            f"build it with {wanted}"
        )


def _equal(one: Normalization, other: Normalization) -> bool:
    return all(
        np.allclose(*np.broadcast_arrays(a, b), rtol=_RTOL, atol=1e-7)
        for a, b in ((one.mean, other.mean), (one.std, other.std))
    )
