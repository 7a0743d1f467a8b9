"""Errors that speak before XLA does: what an attack was given, what it needs and how to mend it."""

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks.threat_model import is_concrete
from advjax.types import Array


def check_inputs(images: Array | np.ndarray, labels: Array | np.ndarray, bounds: tuple[float, float]) -> None:
    """Shapes and dtypes always; values only outside jit, where they are known."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating point in {list(bounds)}, got {images.dtype}: "
            "convert 8-bit images with images.astype(float32) / 255"
        )
    if images.ndim != 4:
        raise ValueError(f"images must have shape [n, height, width, channels], got {images.shape}")
    if labels.shape != images.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers of shape ({images.shape[0]},), one per image, got {labels.dtype} {labels.shape}"
        )
    if is_concrete(images) and images.size:
        # What is known may still stand inside a jitted function, where it would be traced.
        with jax.ensure_compile_time_eval():
            low, high = float(jnp.min(images)), float(jnp.max(images))
        if not (bounds[0] <= low and high <= bounds[1]):
            raise ValueError(
                f"images must lie in {list(bounds)}, got values in [{low:g}, {high:g}]: "
                "put normalization inside the model, or pass other bounds to the threat model"
            )


def check_logits(logits: Array | np.ndarray, images: Array | np.ndarray, labels: Array | np.ndarray) -> None:
    """The shape always; NaN and the range of the labels only outside jit."""
    if logits.ndim != 2 or logits.shape[0] != images.shape[0] or logits.shape[1] < 2:
        raise ValueError(
            f"logits_fn must return logits of shape ({images.shape[0]}, classes) with at least two classes, "
            f"got {logits.shape}"
        )
    if is_concrete(labels) and labels.size:
        low, high = int(np.asarray(labels).min()), int(np.asarray(labels).max())
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(f"labels must be in 0..{logits.shape[1] - 1} for these logits, got {low}..{high}")
    if is_concrete(logits):
        with jax.ensure_compile_time_eval():
            nan_free = not bool(jnp.any(jnp.isnan(jax.lax.stop_gradient(logits))))
        if not nan_free:
            raise ValueError("logits_fn returns NaN on the unperturbed images")
