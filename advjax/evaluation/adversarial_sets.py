"""Adversarial images on disk, with their provenance, verified before a model is scored on them."""

import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from advjax.attacks import ThreatModel
from advjax.data import Dataset, pixels
from advjax.data.dataset import fingerprint
from advjax.runtime.files import plain, write_atomically
from advjax.types import UserError

FORMATS = ("float32", "uint8")
_ARRAYS = ("images", "labels", "index", "predictions", "distances")
_ROUNDING = 1e-3
"""Rounding error of float32 arithmetic, in levels of 255."""


class AdversarialSet(NamedTuple):
    """Adversarial test images, in data set order."""

    images: np.ndarray
    """[n, h, w, c]: float32 in [0, 1], as attacked, or uint8, as image files store them."""
    labels: np.ndarray
    """int32 [n]: the true classes."""
    index: np.ndarray
    """int32 [n]: positions in the split."""
    predictions: np.ndarray
    """int32 [n]: predictions of the attacked model on ``images``."""
    distances: np.ndarray
    """float32 [n]: sizes of the perturbations of ``images`` in the norm of the attack."""
    provenance: dict[str, Any]
    """Attack, threat model, attacked model, fingerprint of the clean images, seed and versions, as plain data."""


def save(kept: AdversarialSet, path: str | os.PathLike[str]) -> None:
    """Writes one npz file atomically; ``np.load`` reads it, and its ``provenance`` is JSON."""
    path, buffer = pathlib.Path(path), io.BytesIO()
    entries: dict[str, Any] = {field: getattr(kept, field) for field in _ARRAYS}
    entries["provenance"] = np.array(json.dumps(plain(kept.provenance, "provenance"), allow_nan=False))
    np.savez_compressed(buffer, **entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def load(path: str | os.PathLike[str]) -> AdversarialSet:
    """Reads what ``save`` wrote.

    Raises:
      UserError: there is no such file, or it is not an adversarial-set file.
    """
    try:
        with np.load(path, allow_pickle=False) as entries:
            arrays = {field: entries[field] for field in _ARRAYS}
            return AdversarialSet(**arrays, provenance=json.loads(entries["provenance"].item()))
    except FileNotFoundError:
        raise UserError(
            f"no adversarial images at {path}; evaluate with --save_adversarial=float32 to make some"
        ) from None
    except Exception as error:
        raise UserError(f"{path} is not an adversarial-set file: {error}") from error


def clean_images(kept: AdversarialSet, test: Dataset) -> Dataset:
    """The test images that the set was made from.

    Raises:
      UserError: the set was made from different images, labels or positions.
    """
    positions = np.flatnonzero(np.isin(test.index, kept.index))
    clean = test.take(positions)
    if fingerprint(clean) != kept.provenance["data"]["fingerprint"] or not np.array_equal(clean.labels, kept.labels):
        made_of = kept.provenance["data"]
        raise UserError(
            f"the adversarial images were made from {made_of['count']} images of {made_of['name']} that are not in the "
            f"test split of {test.name} at hand: use the same data in the same order"
        )
    return clean


def check_allowed(kept: AdversarialSet, clean: Dataset, threat_model: ThreatModel) -> None:
    """Raises a UserError if an image is outside the threat model that the set states."""
    outside = ~allowed(threat_model, pixels(clean.images), pixels(kept.images))
    if outside.any():
        raise UserError(
            f"{outside.sum()} of {len(outside)} adversarial images are outside their threat model, "
            f"{threat_model.norm.name} {threat_model.epsilon:g}: the file has been modified; make it again"
        )


def quantized(threat_model: ThreatModel, clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """Adversarial images as 8-bit images inside the same threat model: uint8 [n, h, w, c].

    Every pixel is rounded toward the clean one, so that no perturbation grows in any norm.  A pixel that is within
    float32 rounding of an 8-bit level becomes that level: an attack that ends at clean + 8/255 keeps its 8 levels.

    Args:
      threat_model: of the attack.
      clean: uint8 [n, h, w, c].
      adversarial: float32 [n, h, w, c], inside the threat model.

    Raises:
      UserError: the clean images are not 8-bit; there may be no 8-bit image near them.
    """
    if clean.dtype != np.uint8:
        raise UserError(f"8-bit adversarial images need 8-bit clean images, got {clean.dtype}: save them as float32")
    original, levels = clean.astype(np.float64), adversarial.astype(np.float64) * 255
    nearest = np.rint(levels)
    towards = np.where(levels > original, np.floor(levels), np.ceil(levels))
    close = np.where(np.abs(levels - nearest) < _ROUNDING, nearest, towards).astype(np.uint8)
    # Tiny errors of thousands of rounded pixels can add up in l2 or l1.
    inside = allowed(threat_model, pixels(clean), pixels(close))
    return np.where(inside[:, None, None, None], close, towards.astype(np.uint8))


def allowed(threat_model: ThreatModel, clean: np.ndarray, adversarial: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """bool [n]: the adversarial image (float32) is inside the threat model around the clean one."""
    return _by_batches(threat_model.contains, clean, adversarial, batch_size)


def distances(threat_model: ThreatModel, clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """float32 [n]: sizes of the perturbations."""
    return _by_batches(threat_model.distance, clean, adversarial, 256)


def describe_data(clean: Dataset, split: str) -> Mapping[str, Any]:
    """The clean images as the provenance describes them."""
    return {"name": clean.name, "split": split, "count": len(clean.labels), "fingerprint": fingerprint(clean)}


def _by_batches(function: Any, clean: np.ndarray, adversarial: np.ndarray, batch_size: int) -> np.ndarray:
    function = jax.jit(jax.vmap(function))
    starts = range(0, len(clean), batch_size)
    return np.concatenate(
        [np.asarray(function(clean[i : i + batch_size], adversarial[i : i + batch_size])) for i in starts]
    )
