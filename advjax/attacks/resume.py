"""How an interrupted run is resumed: what its store is about, what it holds, and whether that is still true."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks.batching import batches
from advjax.attacks.combine import Stage
from advjax.attacks.programs import Programs, call_stage, describe
from advjax.attacks.result_store import ResultStore
from advjax.attacks.verdicts import RoundResults, joined
from advjax.types import Array, PyTree, UserError

SAVE_EVERY = 60.0
"""Seconds between two saves inside a round."""
NUM_FINGERPRINTED = 32
"""Number of images that the fingerprint of a model is taken on."""
MARGIN = 1e-4
"""How far from one a stored success or prediction may be, relative to the largest logit: CPUs round differently."""


class Problem(NamedTuple):
    """What a run computes on."""

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
    problem: Problem, stages: Sequence[Stage], programs: Programs, *, survivors_only: bool, has_variables: bool
) -> dict[str, Any]:
    """The facts that decide the results of a run, in JSON's types."""
    norm, epsilon, bounds = describe(programs.threat_model)
    shape, num_classes = problem.images.shape[1:], problem.logits.shape[1]
    return {
        "stages": [stage.name for stage in stages],
        "rounds": [stage.num_rounds(num_classes) for stage in stages],
        "attacks": [_stage_digest(stage, survivors_only, shape, num_classes) for stage in stages],
        "norm": norm,
        "epsilon": repr(epsilon),
        "bounds": list(bounds),
        "survivors_only": survivors_only,
        "seed": problem.root.tolist(),
        "images": _digest(problem.images),
        "labels": _digest(problem.labels),
        "index": _digest(problem.index),
        "variables": _variables_digest(programs.verdict.variables) if has_variables else None,
        "search_fn": "given" if programs.search is not programs.verdict else None,
        "batch sizes": list(programs.sizes),
        "JAX version": jax.__version__,
        "platform": programs.mesh.devices.flat[0].platform,
    }


def fingerprint(problem: Problem, programs: Programs, *, has_variables: bool) -> dict[str, np.ndarray]:
    """What the model computes at some of the images, as far as the identity does not say it.

    These are clean logits and, without ``variables``, gradients of the loss: models with equal predictions are told
    apart.  A model that has no gradients, which only query attacks can attack, is known by its logits alone.
    """
    count = len(problem.images)
    some = np.unique(np.linspace(0, count - 1, min(NUM_FINGERPRINTED, count)).astype(int))
    # As one row: all logits have to be reproduced, but only most of the gradients.
    arrays = {"clean_logits": problem.logits[some][None].astype(np.float32)}
    models = {"gradients": programs.verdict}
    if programs.search is not programs.verdict:
        models["search_gradients"] = programs.search
    for name, model in ({} if has_variables else models).items():
        parts = []
        for rows in batches(some, programs.sizes):
            try:
                parts.append(programs.gradient(model, problem.images[rows], problem.labels[rows], problem.keys[rows]))
            except (NotImplementedError, TypeError, ValueError):
                # What JAX raises for a function without a differentiation rule.
                break
        else:
            arrays[name] = np.concatenate(parts)
    return arrays


class Stored(NamedTuple):
    """What a store holds of a run."""

    rounds: dict[tuple[int, int], RoundResults]
    """``(stage, round) -> results``."""
    misclassified: np.ndarray
    """bool [n]: clean images that the first run found misclassified."""
    seconds: float


def load(store: ResultStore, problem: Problem, num_rounds: Sequence[int]) -> Stored | None:
    """The results in a store, None if there are none.

    Raises:
      UserError: they are not results on these images.
    """
    parts = store.parts()
    if not parts:
        return None
    try:
        misclassified = np.array(parts[0]["misclassified"])
        _require(misclassified.shape == problem.labels.shape and misclassified.dtype == bool)
        rounds: dict[tuple[int, int], list[RoundResults]] = {}
        seconds = 0.0
        for part in parts[1:]:
            stage, number, seconds = int(part["stage"]), int(part["round"]), float(part["seconds"])
            _require(0 <= stage < len(num_rounds) and 0 <= number < num_rounds[stage])
            results = RoundResults(*(np.asarray(part[field]) for field in RoundResults._fields))
            _check_results(results, problem.images)
            rounds.setdefault((stage, number), []).append(results)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{store.folder} is damaged: delete the folder to start afresh ({error})") from error
    return Stored({place: joined(results) for place, results in rounds.items()}, misclassified, seconds)


def check_stored(stored: Stored, problem: Problem, programs: Programs, keys_of: Any, store: ResultStore) -> None:
    """Verifies stored predictions and successes again.

    Args:
      stored: from ``load``.
      problem: of this run.
      programs: of this run.
      keys_of: ``(stage, round) -> keys`` of all images.
      store: named in messages.

    Raises:
      UserError: one of them does not hold.
    """
    fooled = _wrong_by(problem.logits, problem.labels)
    if not np.all(np.where(stored.misclassified, fooled >= -MARGIN, fooled <= MARGIN)):
        raise UserError(f"{store.folder} belongs to another run (predictions differ): delete it or name another folder")
    rows, images, keys = [], [], []
    for place, results in stored.rounds.items():
        rows.append(results.rows[results.success & results.kept])
        images.append(results.images[results.success[results.kept]])
        keys.append(keys_of(*place)[rows[-1]])
    if not rows:
        return
    rows, images, keys = np.concatenate(rows), np.concatenate(images), np.concatenate(keys)
    for part in batches(np.arange(len(rows)), programs.sizes):
        here = rows[part]
        logits, allowed, _ = programs.verify(problem.images[here], images[part], keys[part])
        holds = allowed & (_wrong_by(logits, problem.labels[here]) >= -MARGIN)
        if not np.all(holds):
            raise UserError(
                f"{store.folder} holds successes that are none on this model, e.g. on the image of index "
                f"{problem.index[here[~holds][0]]}: delete the folder to start afresh"
            )


class Recorder:
    """Adds results to a store, at most every ``SAVE_EVERY`` seconds unless told to."""

    def __init__(self, store: ResultStore, seconds: float) -> None:
        self._store, self._before, self._pending = store, seconds, []
        self._started = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time so far, that of interrupted runs included."""
        return self._before + time.monotonic() - self._started

    def add(self, results: RoundResults, stage: int, number: int) -> None:
        self._pending.append(results)
        self._place = stage, number
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Stores what has been added since the last save; all of it is of one round."""
        if self._pending and self._store.folder is not None:
            stage, number = self._place
            place = {"stage": np.asarray(stage), "round": np.asarray(number), "seconds": np.asarray(self.seconds)}
            # Whatever interrupts this, nothing is stored twice.
            results, self._pending = joined(self._pending), []
            self._store.append({**results._asdict(), **place})
        self._pending, self._saved = [], time.monotonic()


def _require(condition: Any) -> None:
    if not condition:
        raise ValueError("its parts are not those of a run on these images")


def _check_results(results: RoundResults, images: np.ndarray) -> None:
    """Shapes, dtypes and positions of stored results."""
    rows, count = results.rows, len(results.rows)
    _require(rows.ndim == 1 and rows.dtype == np.int64 and len(np.unique(rows)) == count)
    _require(np.all((rows >= 0) & (rows < len(images))))
    _require(results.steps.shape == (count,) and results.steps.dtype == np.int32)
    for flags in (results.refused, results.nonfinite, results.success, results.kept):
        _require(flags.shape == (count,) and flags.dtype == bool)
    num_kept = int(np.sum(results.kept))
    _require(results.images.shape == (num_kept, *images.shape[1:]) and results.images.dtype == images.dtype)
    _require(results.distance.shape == (num_kept,) and results.distance.dtype == np.float32)


def _wrong_by(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[n]: how far the largest other logit is above that of the label, relative to the largest one."""
    logits = logits.astype(float)
    of_label = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits).max(axis=1)
    scale = np.max(np.abs(logits), axis=1, where=np.isfinite(logits), initial=np.finfo(np.float32).tiny)
    is_nan = np.isnan(logits).any(axis=1)
    return np.where(is_nan, np.where(np.argmax(logits, axis=1) != labels, np.inf, -np.inf), (others - of_label) / scale)


def _stage_digest(stage: Stage, survivors_only: bool, image_shape: tuple[int, ...], num_classes: int) -> str:
    """Tells what a stage does, by the program that it becomes for a small model.

    A stage is a closure, which hides its parameters, but all of them are in the program.  Nothing is compiled for this.
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
    """Names, shapes, dtypes and bytes of all arrays."""
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
