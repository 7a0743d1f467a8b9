"""The order of examples as a pure function of (seed, epoch): the step is the iterator's entire state."""

import functools
import hashlib
from collections.abc import Iterator

import numpy as np

from advjax.types import UserError


def seeded_permutation(num_examples: int, *key: str | int) -> np.ndarray:
    """Permutation of ``0 .. num_examples - 1`` that is a function of its arguments only.

    The SHA-256 of the key is the key of a Philox counter-based generator, whose raw 64-bit words are sorted. NumPy
    guarantees that raw words never change between versions; it gives no such guarantee for ``Generator.permutation``.

    Args:
      num_examples: length n of the permutation.
      *key: strings and integers; different keys give independent permutations.

    Returns:
      int64 [n].
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    philox_key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    return np.argsort(np.random.Philox(key=philox_key).random_raw(num_examples), kind="stable")


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """``ceil(num_examples / batch_size)``: each epoch visits every example once; its last batch may need padding.

    Raises:
      UserError: there are no examples, or the batch size is below 1.
    """
    if num_examples < 1:
        raise UserError(f"no examples to batch: num_examples is {num_examples}, it must be at least 1")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    return -(-num_examples // batch_size)


@functools.lru_cache(maxsize=4)
def _epoch_permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return seeded_permutation(num_examples, "epoch order", seed, epoch).astype(np.int32)


def batch_positions(step: int, *, num_examples: int, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The examples in the batch of a training step.

    Step s lies in epoch ``s // steps_per_epoch``. Each epoch visits every example exactly once, in an order that is a
    function of (seed, epoch), so a run resumed at any step continues exactly. The last batch of an epoch is padded
    cyclically from the start of the same epoch's order, with mask False.

    Args:
      step: step number, from 0.
      num_examples: size of the training set.
      batch_size: global batch size; it may exceed ``num_examples``.
      seed: seed of the run.

    Returns:
      ``(positions, mask)``: int32 [batch_size] positions in the training set, and bool [batch_size], False for padding.

    Raises:
      UserError: there are no examples, or the batch size is below 1.
      ValueError: the step is negative.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_examples, batch_size))
    if step < 0:
        raise ValueError(f"step is {step}; it must be at least 0")
    places = step_in_epoch * batch_size + np.arange(batch_size)
    return _epoch_permutation(num_examples, seed, epoch)[places % num_examples], places < num_examples


def eval_batches(num_examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All examples once, in order, in batches of one fixed size.

    The last batch is padded cyclically from the first examples, with mask False: real images rather than zeros, so that
    attacking the padding costs no more than attacking other images.

    Args:
      num_examples: size of the evaluation set.
      batch_size: size of every batch.

    Returns:
      Iterator of ``(positions, mask)``: int32 [batch_size] and bool [batch_size].

    Raises:
      UserError: immediately, if there are no examples or the batch size is below 1.
    """
    starts = range(0, steps_per_epoch(num_examples, batch_size) * batch_size, batch_size)
    places = (start + np.arange(batch_size) for start in starts)
    return (((place % num_examples).astype(np.int32), place < num_examples) for place in places)
