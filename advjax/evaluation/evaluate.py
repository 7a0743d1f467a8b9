"""Runs models and attacks over a data set on all devices; per-image results come back as numpy arrays."""

import contextlib
import hashlib
import time
import zlib
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from advjax import sharding
from advjax.data import Dataset, eval_batches
from advjax.metrics import progress
from advjax.models.blocks import logits_fn
from advjax.sharding import Devices
from advjax.types import Array, AttackFn, Key, Variables


class Adversarial(NamedTuple):
    """What an attack made of a data set, in its order."""

    images: np.ndarray
    """float32 [n, h, w, c]."""
    distances: np.ndarray
    """float32 [n]: sizes of the perturbations in the norm of the attack."""
    steps: np.ndarray
    """int32 [n]."""
    seconds: float
    """Wall time, compilation included."""


def predictor(model: nn.Module, devices: Devices, batch_size: int) -> Callable[[Variables, np.ndarray], np.ndarray]:
    """``(variables, images uint8 or float [n, h, w, c]) -> int32 [n]`` predicted classes.

    Every call evaluates batches of the same size, so that a verdict does not depend on how many images there are.
    """
    replica = devices.parallelize(
        lambda variables, images, *, axis_name: jnp.argmax(logits_fn(model, variables)(images), axis=-1),
        in_sharded=(False, True),
        out_sharded=True,
    )

    def predict(variables: Variables, images: np.ndarray) -> np.ndarray:
        variables, rows = devices.replicate(variables), devices.local_rows(batch_size)
        found = [
            sharding.fetch(replica(variables, pixels(images[positions[rows]])))[mask]
            for positions, mask in eval_batches(len(images), batch_size)
        ]
        return np.concatenate(found).astype(np.int32)

    return predict


def attacker(
    model: nn.Module, attack: AttackFn, name: str, devices: Devices, batch_size: int, *, quiet: bool = False
) -> Callable[[Variables, Dataset, int], Adversarial]:
    """``(variables, dataset, seed) -> Adversarial``: the attack on every image of a data set.

    Each image has a key of its own, folded from the seed, the name of the attack and its index in the data set: neither
    batch size nor order nor number of devices changes what happens to it.
    """
    replica = devices.parallelize(
        lambda variables, images, labels, keys, *, axis_name: _attack(model, attack, variables, images, labels, keys),
        in_sharded=(False, True, True, True),
        out_sharded=True,
    )

    def run(variables: Variables, dataset: Dataset, seed: int) -> Adversarial:
        start = time.perf_counter()
        variables, rows = devices.replicate(variables), devices.local_rows(batch_size)
        rng = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        found = []
        with contextlib.nullcontext() if quiet else progress(name, len(dataset.labels)) as bar:
            for positions, mask in eval_batches(len(dataset.labels), batch_size):
                here = positions[rows]
                keys = _keys(rng, dataset.index[here])
                images = pixels(dataset.images[here])
                result = sharding.fetch(replica(variables, images, dataset.labels[here], keys))
                found.append(jax.tree.map(lambda array, mask=mask: array[mask], result))
                if bar is not None:
                    bar.advance(int(mask.sum()))
        images, distances, steps = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Adversarial(images, distances, steps, time.perf_counter() - start)

    return run


def pixels(images: np.ndarray) -> np.ndarray:
    """8-bit images as float32 in [0, 1]; float images as they are.

    On the host, with IEEE division: compiled code may multiply by 1/255 instead, or never round the quotient at all,
    and a perturbation has to be measured from the very same pixels that it was added to.
    """
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images


def model_hash(variables: Variables) -> str:
    """First 16 hexadecimal digits of the SHA-256 over names, shapes and bytes of all variables."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _attack(model: nn.Module, attack: AttackFn, variables: Variables, images: Array, labels: Array, keys: Key):
    result = attack(logits_fn(model, variables), images, labels, keys)
    return result.images, result.distance, result.steps


@jax.jit
def _keys(rng: Key, index: Array) -> Key:
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)
