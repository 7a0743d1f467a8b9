"""Errors that speak before XLA does: what an attack was given, what it needs and how to mend it."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks.threat_model import is_concrete
from advjax.types import Array

PROBABILITY_TOLERANCE = 1e-5
"""How far sums of float32 probabilities may be from 1."""
PROBABILITIES = (
    "logits_fn seems to return probabilities (all in [0, 1], with sums of 1): return logits, the values before the "
    "softmax; after it, gradients vanish where the model is confident, and it looks more robust than it is"
)

NONFINITE = (
    "an attack cannot follow them, and what it fails to do there is no robustness: look for square roots, norms, "
    "logarithms and divisions at 0 in the model (jax.config.update('jax_debug_nans', True) finds them)"
)


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
    """The shape always; NaN, probabilities (a warning) and the range of the labels only outside jit."""
    if logits.ndim != 2 or logits.shape[0] != images.shape[0] or logits.shape[1] < 2:
        raise ValueError(
            f"logits_fn must return logits of shape ({images.shape[0]}, classes) with at least two classes, "
            f"got {logits.shape}"
        )
    if is_concrete(labels) and labels.size:
        low, high = int(np.asarray(labels).min()), int(np.asarray(labels).max())
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(f"labels must be in 0..{logits.shape[1] - 1} for these logits, got {low}..{high}")
    if is_concrete(logits) and logits.size:
        with jax.ensure_compile_time_eval():
            values = jnp.asarray(jax.lax.stop_gradient(logits))
            nan_free = not bool(jnp.any(jnp.isnan(values)))
            probabilities = bool(_look_like_probabilities(values))
        if not nan_free:
            raise ValueError("logits_fn returns NaN on the unperturbed images")
        if probabilities:
            # The caller of the attack: check_logits, _problems and __call__ lie between.
            warnings.warn(PROBABILITIES, stacklevel=4)


def warn_of_nonfinite(nonfinite: Array | np.ndarray, images: str = "images") -> None:
    """A warning for gradients that were NaN or infinite; inside jit, where they are not known yet, there is none."""
    if is_concrete(nonfinite) and (count := int(np.sum(nonfinite))):
        message = f"gradients are NaN or infinite on {count} of {len(nonfinite)} {images}: {NONFINITE}"
        # The caller of the attack: its __call__ lies between.
        warnings.warn(message, stacklevel=3)


def _look_like_probabilities(logits: Array) -> Array:
    in_range = jnp.all((logits >= 0) & (logits <= 1))
    sums = jnp.sum(logits, axis=-1, dtype=jnp.float32)
    return in_range & jnp.all(jnp.abs(sums - 1) <= PROBABILITY_TOLERANCE)
