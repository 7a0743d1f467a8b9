"""Several training steps per call of the compiled program: fewer dispatches, and metrics that come back together."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from advjax.training.feed import Fed
from advjax.training.objectives import Metrics
from advjax.training.step import DeviceData, Method, TrainState
from advjax.types import Array, Variables

Call: TypeAlias = tuple[Any, Any, Any]
"""Data, positions and masks as ``run_steps`` takes them."""


def run_steps(
    state: TrainState,
    sources: Mapping[str, Variables],
    data: DeviceData | tuple[DeviceData, ...],
    positions: Array | None,
    mask: Array | tuple[Array, ...],
    *,
    axis_name: str | None,
    method: Method,
    num_classes: int,
) -> tuple[TrainState, Metrics]:
    """One replica's part of one or several steps of ``method.step``, which they equal up to rounding.

    Args:
      state: replicated.
      sources: as for ``train_step``.
      data: the whole training set; or this replica's rows of the batch, or of the batch of each step.
      positions: int32 [rows] for one step, [rows, steps] for several; None for batches.
      mask: bool [rows] for one step, [rows, steps] for several; or one [rows] for each batch.
      axis_name: mesh axis of the replicas; None for a single one.
      method: how to train.
      num_classes: number of classes.

    Returns:
      The state after the last step, and the metrics: scalars of one step, [steps] of several.
    """

    def one(state: TrainState, data: DeviceData, positions: Array | None, mask: Array) -> tuple[TrainState, Metrics]:
        options = {"axis_name": axis_name, "method": method, "num_classes": num_classes}
        return method.step(state, sources, data, positions, mask, **options)

    if isinstance(data, tuple):
        assert isinstance(mask, tuple)
        batches = jax.tree.map(lambda *rows: jnp.stack(rows), *zip(data, mask, strict=True))
        return jax.lax.scan(lambda state, batch: one(state, batch[0], None, batch[1]), state, batches)
    assert not isinstance(mask, tuple)
    if mask.ndim == 1:
        return one(state, data, positions, mask)
    assert positions is not None
    return jax.lax.scan(lambda state, rows: one(state, data, *rows), state, (positions.T, mask.T))


def calls(batches: Iterator[Fed], start: int, end: int, most: int, *boundaries: int) -> Iterator[tuple[int, Call]]:
    """Groups the batches of the steps from ``start`` to ``end - 1`` into calls: ``(number of steps, arguments)``.

    A call has ``most`` steps, or one where so many would go beyond ``end`` or the next multiple of a boundary: there
    are only two programs to compile.
    """
    while start < end:
        room = min(end - start, *(boundary - start % boundary for boundary in boundaries))
        count = most if most <= room else 1
        yield count, _together(list(itertools.islice(batches, count)))
        start += count


def _together(batches: list[Fed]) -> Call:
    data, positions, masks = zip(*batches, strict=True)
    if len(batches) == 1:
        return batches[0]
    if positions[0] is None:
        return data, None, masks
    # Rows come first, because these are what is split over the devices.
    return data[0], np.stack(positions, axis=1), np.stack(masks, axis=1)
