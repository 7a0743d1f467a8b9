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


@functools.lru_cache(maxsize=8)
def _epoch_permutation(num_examples: int, *key: str | int) -> np.ndarray:
    return seeded_permutation(num_examples, *key).astype(np.int32)


def batch_positions(
    step: int, *, num_examples: int, batch_size: int, seed: int, num_extra: int = 0, extra_rows: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The examples in the batch of a training step.

    Step s lies in epoch ``s // steps_per_epoch``. Each epoch visits every example exactly once, in an order that is a
    function of (seed, epoch), so a run resumed at any step continues exactly. The last batch of an epoch is padded
    cyclically from the start of the same epoch's order, with mask False.

    ``extra_rows`` of a batch are extra examples, which lie behind the others in the training set. They are spread
    evenly over the batch, whose parts go to different devices, and visited without regard to epochs, each once before
    any is seen again.

    Args:
      step: step number, from 0.
      num_examples: size of the training set, without extra examples.
      batch_size: global batch size, extra examples included; it may exceed ``num_examples``.
      seed: seed of the run.
      num_extra: number of extra examples.
      extra_rows: number of extra examples in every batch.

    Returns:
      ``(positions, mask)``: int32 [batch_size] positions in the training set, and bool [batch_size], False for padding.

    Raises:
      UserError: there are no examples, or the batch size is below 1.
      ValueError: the step is negative.
    """
    own_rows = batch_size - extra_rows
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_examples, own_rows))
    if step < 0:
        raise ValueError(f"step is {step}; it must be at least 0")
    places = step_in_epoch * own_rows + np.arange(own_rows)
    own = _epoch_permutation(num_examples, "epoch order", seed, epoch)[places % num_examples]
    if not extra_rows:
        return own, places < num_examples
    is_extra = np.diff(np.arange(batch_size + 1) * extra_rows // batch_size).astype(bool)
    positions, mask = np.empty(batch_size, np.int32), np.ones(batch_size, bool)
    positions[~is_extra], mask[~is_extra] = own, places < num_examples
    positions[is_extra] = num_examples + _extra_positions(step, num_extra, extra_rows, seed)
    return positions, mask


def _extra_positions(step: int, num_extra: int, extra_rows: int, seed: int) -> np.ndarray:
    """int32 [extra_rows]: positions among the extra examples; a batch may lie in several passes through them."""
    passes, places = np.divmod(step * extra_rows + np.arange(extra_rows), num_extra)
    found = np.empty(extra_rows, np.int32)
    for number in np.unique(passes):
        order = _epoch_permutation(num_extra, "order of extra examples", seed, int(number))
        found[passes == number] = order[places[passes == number]]
    return found


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
