"""Batches of images that do not fit on the device, read and decoded by threads while the device works."""

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
    """The rows of one step."""

    images: Any
    """uint8 or float32 [rows, h, w, c], as the source gives them."""
    labels: Any
    """int32 [rows]"""
    index: Any
    """int32 [rows]: positions in the original order of the split."""
    mask: Any
    """bool [rows]: False for filler."""


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
    """Batches of the steps ``first_step .. num_steps - 1``, each with the examples of ``batch_positions(step)``.

    A batch is a function of (source, step, batch size, seed): not of the number of threads, nor of the step that the
    stream began with.  Threads stop when the context is left.

        with stream(source, first_step=start, num_steps=1000, batch_size=128, seed=0, num_workers=8) as batches:
            for batch in batches:
                ...

    Args:
      source: the training set.
      first_step: the step to begin with, from 0.
      num_steps: the step to end before.
      batch_size: global batch size.
      seed: of the order.
      rows: those rows of the global batch that this process provides; only these are read.
      num_workers: threads that read and decode, at least 1.
      num_ahead: batches that are on their way beside the one in use, at least 1; each takes its memory.
      put: called by a thread with every complete batch, in order: puts it on the devices, say.

    Yields:
      Iterator of what ``put`` returns.  It raises what reading raised: UserError for an image that cannot be read, of
      several that of the first row; other errors come as RuntimeError that names the example.

    Raises:
      UserError: ``num_workers``, ``num_ahead`` or ``batch_size`` is below 1, or there are no examples.
    """
    for name, value in (("num_workers", num_workers), ("num_ahead", num_ahead)):
        if value < 1:
            raise UserError(f"{name} is {value}; a stream needs at least 1")
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
        on_the_way: collections.deque[Future[StreamedBatch]] = collections.deque()
        for step in range(first_step, num_steps + num_ahead):
            if step < num_steps:
                on_the_way.append(start(step))
            if step >= first_step + num_ahead and on_the_way:
                yield on_the_way.popleft().result()

    try:
        yield batches()
    finally:
        # Readers first: a feeder that waits for a read learns that it was canceled.
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
