"""Streams batches of images that do not fit on the device; threads read and decode while the device computes."""

import collections
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from advjax.data.order import batch_positions
from advjax.data.source import Source, read_checked
from advjax.types import UserError


class StreamedBatch(NamedTuple):
    """This process's rows of one step's batch."""

    images: Any
    """uint8 or float32 [rows, h, w, c], in the dtype of the source."""
    labels: Any
    """int32 [rows]"""
    index: Any
    """int32 [rows]: positions in the original order of the split."""
    mask: Any
    """bool [rows]: False for padding."""


@contextlib.contextmanager
def stream(
    source: Source,
    *,
    first_step: int,
    num_steps: int,
    batch_size: int,
    seed: int,
    rows: slice = slice(None),
    num_workers: int,
    num_ahead: int = 2,
    put: Callable[[StreamedBatch], StreamedBatch] = lambda batch: batch,
) -> Iterator[Iterator[StreamedBatch]]:
    """Streams the batches of steps ``first_step .. num_steps - 1``, each with the examples of ``batch_positions``.

    A batch is a function of (source, step, batch size, seed) only; it depends neither on the number of threads nor on
    the step at which the stream starts. The threads stop when the context exits.

        with stream(source, first_step=start, num_steps=1000, batch_size=128, seed=0, num_workers=8) as batches:
            for batch in batches:
                ...

    Args:
      source: the training set.
      first_step: the first step, from 0.
      num_steps: one past the last step.
      batch_size: global batch size.
      seed: seed of the order.
      rows: the rows of the global batch that this process provides; only these are read.
      num_workers: number of threads that read and decode, at least 1.
      num_ahead: number of batches to prefetch, at least 1; each occupies memory.
      put: called in a thread with every complete batch, in order; for example, transfers it to the devices.

    Yields:
      Iterator over the results of ``put``. It raises what reading raised: UserError for an image that cannot be read
      (the first row's, if there are several); any other error becomes a RuntimeError that names the example.

    Raises:
      UserError: ``num_workers``, ``num_ahead``, or ``batch_size`` is below 1, or there are no examples.
    """
    for name, value in (("num_workers", num_workers), ("num_ahead", num_ahead)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    readers = ThreadPoolExecutor(num_workers, thread_name_prefix="read")
    feeder = ThreadPoolExecutor(1, thread_name_prefix="feed")

    def start(step: int) -> Future[StreamedBatch]:
        everywhere, mask = batch_positions(step, num_examples=len(source.labels), batch_size=batch_size, seed=seed)
        here = everywhere[rows]
        reads = [readers.submit(_read, source, int(position)) for position in here]
        return feeder.submit(finish, reads, here, mask[rows])

    def finish(reads: list[Future[np.ndarray]], here: np.ndarray, mask: np.ndarray) -> StreamedBatch:
        images = np.stack([read.result() for read in reads])
        return put(StreamedBatch(images, source.labels[here], source.index[here], mask))

    def batches() -> Iterator[StreamedBatch]:
        in_flight: collections.deque[Future[StreamedBatch]] = collections.deque()
        for step in range(first_step, num_steps + num_ahead):
            if step < num_steps:
                in_flight.append(start(step))
            if step >= first_step + num_ahead and in_flight:
                yield in_flight.popleft().result()

    try:
        yield batches()
    finally:
        # Readers first, so that a feeder waiting for a read learns that it was canceled.
        readers.shutdown(cancel_futures=True)
        feeder.shutdown(cancel_futures=True)


def _read(source: Source, position: int) -> np.ndarray:
    try:
        return read_checked(source, position)
    except UserError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"example {source.index[position]} of {source.name} could not be read: {type(error).__name__}: {error}"
        ) from error
