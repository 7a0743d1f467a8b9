"""Batches for the replica step: positions in a dataset on the devices, or images streamed from a source."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import numpy as np

from advjax.data import Dataset, Source, StreamedBatch, batch_positions, concatenate, stream
from advjax.runtime.devices import Devices, shard
from advjax.training.step import DeviceData, flattened

Fed: TypeAlias = tuple[DeviceData, np.ndarray | None, Any]
"""Arguments of a replica step: data, positions in them or None, mask."""
Feed: TypeAlias = Callable[[int, int], contextlib.AbstractContextManager[Iterator[Fed]]]
"""``(first step, end) ->`` a context with the batches of these steps."""


def make_feed(
    dataset: Dataset | Source,
    *,
    batch_size: int,
    seed: int,
    num_workers: int,
    devices: Devices,
    extra: Dataset | None = None,
    extra_rows: int = 0,
) -> Feed:
    """A ``Dataset`` is transferred to the devices once; a ``Source`` is streamed.

    Args:
      dataset: the training examples.
      batch_size: global batch size, extra examples included.
      seed: seed of the order.
      num_workers: number of threads that read a ``Source``.
      devices: what to run on.
      extra: more training examples, beside a ``Dataset``.
      extra_rows: number of ``extra`` examples in every batch.

    Raises:
      UserError: the batch size is not divisible by the number of devices, or ``extra`` does not fit the dataset.
    """
    rows = devices.local_rows(batch_size)
    order = {"batch_size": batch_size, "seed": seed}
    if isinstance(dataset, Source):

        def put(batch: StreamedBatch) -> StreamedBatch:
            return StreamedBatch(*shard(tuple(batch), devices.mesh))

        @contextlib.contextmanager
        def streamed(first: int, end: int) -> Iterator[Iterator[Fed]]:
            options: dict[str, Any] = {"rows": rows, "num_workers": num_workers, "put": put, **order}
            with stream(dataset, first_step=first, num_steps=end, **options) as batches:
                yield ((DeviceData(batch.images, batch.labels, batch.index), None, batch.mask) for batch in batches)

        return streamed

    num_examples = len(dataset.labels)
    if extra is not None:
        order |= {"num_extra": len(extra.labels), "extra_rows": extra_rows}
        dataset = concatenate([dataset, extra])
    data = devices.replicate(flattened(dataset.images, dataset.labels, dataset.index))

    @contextlib.contextmanager
    def resident(first: int, end: int) -> Iterator[Iterator[Fed]]:
        numbered = (batch_positions(step, num_examples=num_examples, **order) for step in range(first, end))
        yield ((data, positions[rows], mask[rows]) for positions, mask in numbered)

    return resident


def feed_shapes(
    image_shape: tuple[int, ...], num_examples: int, batch_size: int, *, is_streamed: bool
) -> tuple[DeviceData, jax.ShapeDtypeStruct | None, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of what a feed of 8-bit images yields, to compile a replica step without any data.

    Args:
      image_shape: [h, w, c].
      num_examples: number of training examples.
      batch_size: global batch size.
      is_streamed: whether the feed is that of a ``Source``.
    """
    rows, mask = (batch_size if is_streamed else num_examples,), jax.ShapeDtypeStruct((batch_size,), np.bool_)
    numbers = jax.ShapeDtypeStruct(rows, np.int32)
    examples = jax.ShapeDtypeStruct((*rows, *image_shape), np.uint8), numbers, numbers
    if is_streamed:
        return jax.eval_shape(DeviceData, *examples), None, mask
    return jax.eval_shape(flattened, *examples), jax.ShapeDtypeStruct((batch_size,), np.int32), mask
