"""Predictions of a model on a whole data set, over all devices."""

import functools
import zlib
from collections.abc import Callable

import jax
import numpy as np

from advjax.attacks.batching import filled
from advjax.data import eval_batches, pixels
from advjax.evaluation.scored_model import ScoredModel, log_probabilities, predict
from advjax.runtime.devices import Devices, fetch, pad_to_multiple
from advjax.types import Array, Key, PyTree


def predictions(
    model: ScoredModel, images: np.ndarray, index: np.ndarray, *, seed: int, batch_size: int, devices: Devices
) -> np.ndarray:
    """The verdict on each image: int32 [n] predicted classes.

    Every batch has the same size, so that a verdict does not depend on how many images there are.  Prediction keys are
    derived from (seed, image index) and are disjoint from those used by attacks.

    Args:
      model: what to evaluate.
      images: uint8 or float [n, h, w, c].
      index: int [n], positions in the data set.
      seed: of the draws of a stochastic model.
      batch_size: images at a time on all devices together, rounded up to a multiple of their number.
      devices: where to compute.
    """
    found = _by_batches(predict, model, images, index, seed, batch_size, devices)
    return found.astype(np.int32)


def cross_entropies(
    model: ScoredModel,
    images: np.ndarray,
    labels: np.ndarray,
    index: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    devices: Devices,
) -> np.ndarray:
    """``-log p(label)`` of each image, float32 [n]; of a stochastic model, for the mean of its ``num_draws`` draws.

    Args:
      labels: int [n], the true classes.
      model, images, index, seed, batch_size, devices: as in `predictions`.
    """
    scores = _by_batches(log_probabilities, model, images, index, seed, batch_size, devices)
    return -scores[np.arange(len(labels)), labels]


def _by_batches(
    function: Callable[[ScoredModel, PyTree, Array, Key], Array],
    model: ScoredModel,
    images: np.ndarray,
    index: np.ndarray,
    seed: int,
    batch_size: int,
    devices: Devices,
) -> np.ndarray:
    batch_size = pad_to_multiple(filled(batch_size, len(images)), devices.mesh)
    variables, rows = devices.replicate(model.variables), devices.local_rows(batch_size)
    rng = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"prediction"))
    known = model._replace(run="", defense="", variables=None, hash="", defense_identity=None)
    program = _program(function, known, devices)
    found = []
    for positions, mask in eval_batches(len(images), batch_size):
        here = positions[rows]
        found.append(fetch(program(variables, pixels(images[here]), _keys(rng, index[here])))[mask])
    return np.concatenate(found)


@functools.lru_cache(maxsize=64)
def _program(function: Callable[[ScoredModel, PyTree, Array, Key], Array], model: ScoredModel, devices: Devices):
    """The compiled function: one compilation for each model function, whatever its variables."""

    def replica(variables: PyTree, images: Array, keys: Key, *, axis_name: str | None) -> Array:
        with jax.default_matmul_precision("highest"):
            return function(model, variables, images, keys)

    return devices.parallelize(replica, in_sharded=(False, True, True), out_sharded=True)


@jax.jit
def _keys(rng: Key, index: Array) -> Key:
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)
