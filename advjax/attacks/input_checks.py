"""Checks of what attacks are given, with errors that say what was given, what is allowed and what to do."""

import contextlib
import math
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from advjax.types import Array

PROBABILITY_TOLERANCE = 1e-5
"""Tolerance for sums of float32 probabilities to 1."""
PROBABILITIES = (
    "logits_fn seems to return probabilities (all in [0, 1], with sums of 1): return logits, the values before the "
    "softmax; after it, gradients vanish where the model is confident, and it looks more robust than it is"
)
NONFINITE = (
    "attacks cannot follow them, and an attack that fails there is no evidence of robustness: look for square roots, "
    "norms, logarithms and divisions at 0 in the model (jax.config.update('jax_debug_nans', True) finds them)"
)

MASKED = (
    "their gradients are zero, or following them only decreases the loss (a saturated softmax, quantization, detached "
    "inputs), or the attack is a function that returned them unchanged: its failure is no evidence of robustness"
)
TRAIN_MODE = (
    "it changes its own state while JAX traces it, as an nnx module in train mode does, whose BatchNorm updates its "
    "statistics and whose Dropout counts its keys: call model.eval() first"
)


@contextlib.contextmanager
def explaining_train_mode() -> Iterator[None]:
    """Around calls of a model: explains why a model that changes itself cannot be traced.

    Raises:
      TypeError: instead of Flax's own error.
    """
    try:
        yield
    except Exception as error:
        if is_train_mode_error(error):
            raise TypeError(f"logits_fn cannot be attacked: {TRAIN_MODE}") from error
        raise


def is_train_mode_error(error: Exception) -> bool:
    """Whether a model could not be traced because it changes itself; Flax, which says so, need not be there."""
    return type(error).__name__ == "TraceContextError"


def is_concrete(value: object) -> bool:
    """False for a value that JAX is tracing."""
    return not isinstance(value, Tracer)


def require_count(name: str, value: Any, minimum: int = 1) -> None:
    """Raises unless ``value`` is an integer and at least ``minimum``."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if count < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {count}")


def require_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, *, open_low: bool = False, unit: str = ""
) -> None:
    """Raises unless ``value`` is one number, possibly traced, and, if it is known, in [low, high] and finite.

    Args:
      name: for the message.
      value: the number.
      low: smallest allowed value; -inf allows all.
      high: largest allowed value.
      open_low: exclude ``low``.
      unit: of the value, for the message.
    """
    if np.ndim(value):
        raise ValueError(
            f"{name} must be a single number, got an array of shape {np.shape(value)}: to use a different {name} for "
            "each image, vmap the attack over images and values"
        )
    if not is_concrete(value):
        return
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not (low < number if open_low else low <= number) or not number <= high or math.isinf(number):
        if high < math.inf:
            allowed = f"in {'(' if open_low else '['}{low:g}, {high:g}]"
        elif low == -math.inf:
            allowed = "finite"
        else:
            allowed = f"above {low:g}" if open_low else f"{low:g} or more"
        raise ValueError(f"{name} must be {allowed}{unit}, got {value}")


def check_bounds(bounds: Any) -> None:
    """Raises unless ``bounds`` is a pair of increasing numbers."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"bounds must be a pair (low, high) of numbers, got {bounds!r}")
    for bound in bounds:
        if not is_concrete(bound):
            raise TypeError("bounds must be known numbers, got values that JAX is tracing: set them outside jit")
        if np.ndim(bound):
            raise ValueError(
                f"bounds must be two numbers, for all pixels and channels, got arrays of shape {np.shape(bound)}: put "
                "normalization per channel inside the model, and pass images before it"
            )
        if not isinstance(bound, int | float | np.number | np.ndarray | jax.Array):
            raise TypeError(f"bounds must be a pair (low, high) of numbers, got {bounds!r}")
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")


def as_array(name: str, values: Any) -> Any:
    """Converts lists and the like to a numpy array; returns arrays unchanged."""
    if isinstance(values, jax.Array | np.ndarray):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be an array of numbers, got {type(values).__name__}")
    return array


def as_index(index: Any, count: int) -> np.ndarray:
    """Positions [count] of images in their data set, as keys are folded with them.

    Raises:
      ValueError: not one integer of 32 bits per image.
    """
    array = np.asarray(index)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise ValueError(f"index must be integers of shape ({count},), one per image, got {array.dtype} {array.shape}")
    if count and not (array.min() >= 0 and array.max() < 2**32):
        raise ValueError(f"index must be in 0..{2**32 - 1}, got {array.min()}..{array.max()}")
    return array


def check_inputs(images: Array | np.ndarray, labels: Array | np.ndarray, bounds: tuple[float, float]) -> None:
    """Checks shapes and dtypes, and values if they are known.

    Raises:
      ValueError: images or labels are not what attacks take, or pixels lie outside the bounds by more than rounding.
    """
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
    if is_concrete(labels) and labels.size:
        # By numpy: inside a jitted function, operations on known arrays of JAX are traced.
        known = np.asarray(labels)
        if np.any(known.astype(np.int32) != known):
            raise ValueError(f"labels must be classes, got {known.min()}..{known.max()}")
    if is_concrete(images) and images.size:
        # Known values may still be used inside a jitted function, where operations on them would be traced.
        with jax.ensure_compile_time_eval():
            known = _canonical(images)
            valid, low, high = bool(inside_bounds(known, bounds).all()), float(known.min()), float(known.max())
        if not valid:
            raise ValueError(
                f"images must lie in {list(bounds)}, got values in [{low:g}, {high:g}]: "
                "put normalization inside the model, or pass other bounds to the threat model"
            )


def check_start(start: Any, images: Array | np.ndarray) -> Array:
    """The images to start from, in the dtype of the images.

    Raises:
      ValueError: another shape than that of the images, or NaN or infinite pixels (if they are known).
    """
    start = as_array("start", start)
    if start.shape != images.shape:
        raise ValueError(f"start must have the shape of the images, {images.shape}, got {start.shape}")
    if is_concrete(start) and not np.all(np.isfinite(np.asarray(start, np.float32))):
        raise ValueError("start must be finite, got NaN or infinite pixels")
    return jnp.asarray(start, images.dtype)


def inside_bounds(images: Any, bounds: tuple[float, float]) -> Any:
    """bool [...], one per pixel: finite and inside the bounds, up to rounding; by NumPy for arrays of NumPy."""
    low, high = bounds
    slack = rounding(images.dtype, bounds)
    return (abs(images) < np.inf) & (images >= low - slack) & (images <= high + slack)


def rounding(dtype: jnp.dtype, bounds: tuple[float, float]) -> float:
    """Four units in the last place of a pixel, by which it may miss its bounds or the ball."""
    return 4 * float(jnp.finfo(dtype).eps) * pixel_range(bounds)


def pixel_range(bounds: tuple[float, float]) -> float:
    """``high - low`` or, where that is infinite, the scale of the pixels that is assumed: that of [0, 1] or more."""
    finite = [abs(float(bound)) for bound in bounds if math.isfinite(bound)]
    return float(bounds[1] - bounds[0]) if len(finite) == 2 else max([1.0, *finite])


def as_logits(output: Any) -> Array:
    """What a model returned, if it is one array of floating-point numbers.

    Raises:
      TypeError: anything else, such as a tuple of logits and a state.
    """
    if not isinstance(output, jax.Array | np.ndarray):
        raise TypeError(
            f"logits_fn must return one array of logits [n, classes], got a {type(output).__name__}: return the "
            "logits alone, e.g. lambda images: model(images)[0]"
        )
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise TypeError(
            f"logits_fn must return floating-point logits, got {output.dtype}: return the logits before they are "
            "rounded or compared; integers have no gradients"
        )
    return jnp.asarray(output)


def check_logits(logits: Array | np.ndarray, images: Array | np.ndarray, labels: Array | np.ndarray) -> None:
    """Checks the shape, and NaN, probabilities (a warning) and the range of the labels if values are known."""
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
        # Infinite logits are allowed, and NumPy would warn of their sums.
        with jax.ensure_compile_time_eval(), np.errstate(invalid="ignore", over="ignore"):
            values = logits if isinstance(logits, np.ndarray) else jax.lax.stop_gradient(logits)
            nan_free = not bool((values != values).any())
            probabilities = bool(_look_like_probabilities(values))
        if not nan_free:
            raise ValueError("logits_fn returns NaN on the unperturbed images")
        if probabilities:
            # The caller of the attack: check_logits, _problems and __call__ lie between.
            warnings.warn(PROBABILITIES, stacklevel=4)


def warn_of_nonfinite(nonfinite: Array | np.ndarray, images: str = "images") -> None:
    """Warns of gradients that were NaN or infinite; does nothing inside jit, where they are not known yet."""
    if is_concrete(nonfinite) and (count := int(np.sum(nonfinite))):
        message = f"gradients are NaN or infinite on {count} of {len(nonfinite)} {images}: {NONFINITE}"
        # The caller of the attack: its __call__ lies between.
        warnings.warn(message, stacklevel=3)


def warn_of_no_progress(without: Array | np.ndarray) -> None:
    """Warns of images [n] on which an attack has not failed but never begun; does nothing inside jit."""
    if is_concrete(without) and (count := int(np.sum(without))):
        message = f"the attack made no progress on {count} of {len(without)} images: {MASKED}"
        # The caller of the attack: its __call__ lies between.
        warnings.warn(message, stacklevel=3)


def refuse_invalid(invalid: Array | np.ndarray | bool) -> None:
    """Raises if images are marked as invalid (``AttackResult.invalid``), unless they are not known yet, inside jit."""
    if is_concrete(invalid) and (count := int(np.sum(invalid))):
        raise ValueError(
            f"{count} of {np.size(invalid)} images could not be attacked: their pixels are outside the bounds or NaN, "
            "their logits are NaN, or their labels are out of range"
        )


def _look_like_probabilities(logits: Any) -> Any:
    in_range = ((logits >= 0) & (logits <= 1)).all()
    sums = logits.sum(axis=-1, dtype=np.float32)
    return in_range & (abs(sums - 1) <= PROBABILITY_TOLERANCE).all()


def _canonical(array: Any) -> Any:
    """The array in the dtype that JAX would give it; NumPy's stay there, where nothing has to be compiled for them."""
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
