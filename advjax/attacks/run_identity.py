"""What identifies a run, so that stored results are only used for the run that they belong to."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks.batching import batches
from advjax.attacks.combine import Stage
from advjax.attacks.programs import Model, Programs
from advjax.attacks.stage_checks import call_stage, describe
from advjax.types import Array, PyTree

NUM_FINGERPRINTED = 32
"""Number of images that the fingerprint of a model is taken on."""
TOLERANCES = {"search_gradients": 0.1}
"""Of arrays of a fingerprint: a search may be in half precision, which GPUs round differently each time."""
LARGEST_LOGARITHM = 88.0
"""Of a float32."""


class Problem(NamedTuple):
    """The data of a run."""

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    root: np.ndarray
    """uint32 [2]: words of the key that those of the images are folded from."""
    keys: np.ndarray
    """uint32 [n, 2]: words of the images' keys."""
    logits: np.ndarray
    """[n, classes]: of the clean images."""


def identity(
    problem: Problem,
    stages: Sequence[Stage],
    programs: Programs,
    *,
    survivors_only: bool,
    has_variables: bool,
    has_gradients: bool,
) -> dict[str, Any]:
    """The facts that decide the results of a run, in JSON's types."""
    norm, epsilon, bounds = describe(programs.threat_model)
    shape, num_classes = problem.images.shape[1:], problem.logits.shape[1]
    return {
        "stages": [stage.name for stage in stages],
        "rounds": [stage.num_rounds(num_classes) for stage in stages],
        "attacks": [stage_digest(stage, survivors_only, shape, num_classes) for stage in stages],
        "norm": norm,
        "epsilon": repr(epsilon),
        "bounds": list(bounds),
        "survivors_only": survivors_only,
        "seed": problem.root.tolist(),
        "images": _digest(problem.images),
        "labels": _digest(problem.labels),
        "index": _digest(problem.index),
        "variables": _variables_digest(programs.verdict.variables) if has_variables else None,
        "gradients": has_gradients,
        "search_fn": "given" if programs.search is not programs.verdict else None,
        "batch sizes": list(programs.sizes),
        "JAX version": jax.__version__,
        "platform": programs.mesh.devices.flat[0].platform,
    }


def fingerprint(problem: Problem, programs: Programs) -> dict[str, np.ndarray]:
    """Identifies the model by its clean logits and by gradients on some images.

    Equal variables and logits are not enough: where gradients alone were repaired (a ``stop_gradient`` removed),
    attacks find what they did not find before.
    """
    some = few(len(problem.images))
    found = model_fingerprint(
        problem.logits[some],
        lambda: _gradients(programs, programs.verdict, problem, some),
    )
    if programs.search is not programs.verdict:
        found |= gradient_fingerprint(lambda: _gradients(programs, programs.search, problem, some), "search_")
    return found


def few(count: int) -> np.ndarray:
    """Positions of the images that the fingerprint of a model is taken on."""
    return np.unique(np.linspace(0, count - 1, min(NUM_FINGERPRINTED, count)).astype(int))


def model_fingerprint(logits: np.ndarray, gradients: Callable[[], np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays for a ``ResultStore`` that identify a model.

    Args:
      logits: [n, classes], of some images.
      gradients: computes ``model_queries.probe_gradients`` [n, h, w, c] of these.
    """
    # A single row: all logits must be reproduced, but only most of the gradients.
    return {"clean_logits": logits[None].astype(np.float32), **gradient_fingerprint(gradients)}


def gradient_fingerprint(gradients: Callable[[], np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    """Gradients as directions and sizes, since sizes differ by orders of magnitude; {} for a model that has none.

    Which gradients are zero or not finite must be reproduced for all images: rounding does not decide it.
    """
    try:
        rows = gradients()
    except (NotImplementedError, TypeError, ValueError):
        # Raised by JAX for a function without a differentiation rule.
        return {}
    rows = rows.reshape(len(rows), -1).astype(np.float32)
    finite = np.isfinite(rows)
    sizes = np.max(np.abs(rows), axis=1, initial=0, where=finite)
    is_zero = sizes == 0
    logarithms = np.log(np.where(is_zero, 1, sizes)) / LARGEST_LOGARITHM
    kinds = np.where(np.all(finite, axis=1), np.where(is_zero, 0, 1), 2)
    return {
        f"{prefix}gradients": np.column_stack([rows / np.where(is_zero, 1, sizes)[:, None], logarithms]),
        f"{prefix}vanishing_gradients": kinds[None].astype(np.float32),
    }


def _gradients(programs: Programs, model: Model, problem: Problem, some: np.ndarray) -> np.ndarray:
    parts = batches(some, programs.sizes)
    return np.concatenate([programs.gradient(model, problem.images[rows], problem.keys[rows]) for rows in parts])


def stage_digest(stage: Stage, survivors_only: bool, image_shape: tuple[int, ...], num_classes: int) -> str:
    """Identifies a stage by the program it traces to for a small model.

    A stage is a closure, which hides its parameters, but the program contains all of them.  Nothing is compiled.
    """

    def logits_fn(images: Array) -> Array:
        return jnp.tensordot(images.reshape(len(images), -1).mean(axis=1), jnp.arange(float(num_classes)), axes=0)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    label, number = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    keys = jax.random.split(jax.random.key(0), 1)

    @jax.jit
    def attack(number: Array, *arguments: Any) -> PyTree:
        result = call_stage(stage, logits_fn, number, *arguments, until_success=survivors_only)
        return result.images, result.steps, result.success, result.nonfinite

    return _digest(attack.lower(number, image, label, keys).as_text())


def _variables_digest(variables: PyTree) -> str:
    """Hash of the names, shapes, dtypes and bytes of all arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _digest(content: np.ndarray | str) -> str:
    if isinstance(content, str):
        return hashlib.sha256(content.encode()).hexdigest()
    array = np.ascontiguousarray(content)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
