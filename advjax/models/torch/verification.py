"""Compares the logits of a loaded model with those that PyTorch computed."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from advjax.models import blocks
from advjax.models.blocks import Classifier
from advjax.models.layers import ImageClassifier
from advjax.models.torch.reading import is_torch_module, module_logits
from advjax.models.torch.recognition import describe, lookalikes
from advjax.types import LogitsFn, UserError, Variables

NORMALIZATIONS: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = (
    ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.5,), (0.5,)),
    ((0.0,), (1.0,)),
)
"""Common input normalizations (CIFAR-10 twice, CIFAR-100, ImageNet, [-1, 1], none), tried to explain a mismatch."""


class Reference(NamedTuple):
    """Images, float32 [n, h, w, c] in [0, 1], and the logits that PyTorch computes for them, float32 [n, classes]."""

    images: np.ndarray
    logits: np.ndarray


def reference_from(source: Any, images: Any, logits: Any, image_shape: tuple[int, int, int]) -> Reference | None:
    """What a loaded model is compared with: the given logits or those of a module, or None if there are neither.

    Args:
      source: a module, which computes the logits itself, or anything else.
      images: [n, h, w, c] in [0, 1], at least two; for a module, by default eight random ones.
      logits: [n, classes], unless the source is a module.
      image_shape: of the random images.

    Raises:
      ValueError: there are images without logits, or vice versa, or they do not fit together.
    """
    if is_torch_module(source):
        if logits is not None:
            raise ValueError("logits must not be given for a module, which computes them itself")
        images = probe_images(image_shape) if images is None else checked_images(images)
        return Reference(images, module_logits(source, images))
    if images is None and logits is None:
        return None
    if images is None or logits is None:
        raise ValueError("images and logits must be given together: PyTorch's logits of these images")
    images, logits = checked_images(images), np.asarray(logits, np.float32)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"logits must have shape [{len(images)}, classes] for these images, got {logits.shape}")
    return Reference(images, logits)


def probe_images(image_shape: tuple[int, int, int], num: int = 8) -> np.ndarray:
    """Different random images, float32 [num, h, w, c] in [0, 1]: smooth patterns with some noise."""
    rng = np.random.default_rng(0)
    height, width, channels = image_shape
    rows, columns = (np.arange(size) * 4 // size for size in (height, width))
    smooth = rng.uniform(size=(num, 4, 4, channels))[:, rows][:, :, columns]
    return np.clip(smooth + rng.normal(0, 0.1, (num, *image_shape)), 0, 1).astype(np.float32)


def difference(found: Any, reference: Reference, tolerance: float) -> float:
    """Largest difference of logits, relative to the largest logit in size.

    Raises:
      UserError: the reference cannot prove anything: its logits are not finite, or depend too little on the images.
    """
    expected = reference.logits
    scale = float(np.abs(expected).max())
    if not np.isfinite(scale):
        raise UserError("PyTorch's logits are not finite")
    if np.ptp(expected, axis=0).max() <= 10 * tolerance * scale:
        raise UserError(
            "PyTorch's logits hardly depend on the images, so that comparing them proves nothing: pass others"
        )
    if np.shape(found) != expected.shape:
        raise UserError(f"the logits have shape {np.shape(found)}, but PyTorch's have {expected.shape}")
    return float(np.abs(np.asarray(found, np.float32) - expected).max()) / scale


def verify(model: Classifier, variables: Variables, reference: Reference, tolerance: float) -> None:
    """Raises UserError unless the model's logits are PyTorch's; names a model whose logits are, if there is one.

    Args:
      model: the loaded model.
      variables: its variables.
      reference: PyTorch's logits.
      tolerance: largest difference allowed, relative to the largest logit in size.
    """
    found = difference(_logits(model, variables, reference.images), reference, tolerance)
    if found <= tolerance:
        return
    message = f"the logits differ from PyTorch's by {found:.2g} of the largest one, more than tolerance={tolerance:g}"
    explanation = _explanation(model, variables, reference, tolerance)
    if explanation is None:
        raise UserError(
            f"{message}: {describe(model)} computes something else than the PyTorch network, although names and shapes "
            "agree; check normalization, activations, and the epsilon of BatchNorm, or convert it with from_torch"
        )
    raise UserError(f"{message}; those of {describe(explanation)} agree: use that model")


def max_precision(logits_fn: LogitsFn, images: np.ndarray) -> np.ndarray:
    """Logits computed in full float32 precision, also on accelerators."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(logits_fn(jax.numpy.asarray(images)))


def _logits(model: Classifier, variables: Variables, images: np.ndarray) -> np.ndarray:
    logits_fn = jax.jit(lambda variables, images: blocks.apply(model, variables, images))
    return max_precision(lambda images: logits_fn(variables, images), images)


def _explanation(model: Classifier, variables: Variables, reference: Reference, tolerance: float) -> Classifier | None:
    """A look-alike, or the model with another usual normalization, whose logits are PyTorch's."""
    for each in (model, *lookalikes(model)):
        logits_fn = jax.jit(lambda variables, images, each=each: blocks.apply(each, variables, images))
        for normalized, images in _normalized(each, reference.images):
            logits = max_precision(lambda images, call=logits_fn: call(variables, images), images)
            if difference(logits, reference, tolerance) <= tolerance:
                return normalized
    return None


def _normalized(model: Classifier, images: np.ndarray) -> Iterator[tuple[Classifier, np.ndarray]]:
    """The model with other normalizations, and images for which the given model computes the same."""
    yield model, images
    if isinstance(model, ImageClassifier):
        own_mean, own_std = np.asarray(model.mean, np.float32), np.asarray(model.std, np.float32)
        for mean, std in NORMALIZATIONS:
            if len(mean) in (1, images.shape[-1]):
                centered = (images - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
                yield model.clone(mean=mean, std=std), centered * own_std + own_mean


def checked_images(images: Any) -> np.ndarray:
    """At least two images [n, h, w, c] as float32; raises ValueError if they are not in [0, 1]."""
    images = np.asarray(images)
    if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be floating point [n, h, w, c] in [0, 1], got {images.dtype} {images.shape}")
    if len(images) < 2:
        raise ValueError("images must be at least two: the logits of one do not show that the images matter")
    if images.min() < 0 or images.max() > 1:
        raise ValueError(f"images must be in [0, 1], got {images.min():.3g} to {images.max():.3g}")
    return images.astype(np.float32)
