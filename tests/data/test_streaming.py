"""Streams: deterministic batches regardless of thread timing, errors, resumption, and shutdown."""

import threading
import time

import chex
import jax
import numpy as np
import pytest

from advjax import data
from advjax.runtime import devices as sharding
from advjax.types import UserError

NUM = 23


@pytest.fixture
def dataset() -> data.Dataset:
    images = np.random.RandomState(0).randint(0, 256, (NUM, 4, 5, 3)).astype(np.uint8)
    index = np.arange(100, 100 + NUM, dtype=np.int32)
    return data.Dataset("toy", images, np.arange(NUM, dtype=np.int32) % 3, index, tuple("abc"))


@pytest.fixture
def source(dataset) -> data.Source:
    """Takes a different time for every image, so that threads finish out of order."""
    quick = data.from_dataset(dataset)

    def read(position: int) -> np.ndarray:
        time.sleep(0.001 * (position * 7 % 5))
        return quick.read(position)

    return quick._replace(read=read)


def collect(source, first_step=0, num_steps=9, num_workers=3, **kwargs) -> list[data.StreamedBatch]:
    settings = {"batch_size": 8, "seed": 5} | kwargs
    with data.stream(
        source, first_step=first_step, num_steps=num_steps, num_workers=num_workers, **settings
    ) as batches:
        return list(batches)


def assert_same(first, second) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        chex.assert_trees_all_equal(one, other)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("read", "feed"))]


def test_batches_are_those_of_the_order(dataset, source):
    """Three epochs of three steps, the last of each partly padding."""
    found = collect(source)
    assert len(found) == 9
    for step, batch in enumerate(found):
        positions, mask = data.batch_positions(step, num_examples=NUM, batch_size=8, seed=5)
        np.testing.assert_array_equal(batch.images, dataset.images[positions])
        np.testing.assert_array_equal(batch.labels, dataset.labels[positions])
        np.testing.assert_array_equal(batch.index, dataset.index[positions])
        np.testing.assert_array_equal(batch.mask, mask)
    assert not found[2].mask.all() and not np.array_equal(found[0].index, found[3].index)


@pytest.mark.parametrize(("num_workers", "num_ahead"), [(1, 1), (2, 5), (8, 20)])
def test_threads_change_nothing(source, num_workers, num_ahead):
    assert_same(collect(source, num_workers=num_workers, num_ahead=num_ahead), collect(source))


def test_resumes_at_any_step(source):
    whole = collect(source)
    for first_step in (1, 2, 3, 7, 9):
        assert_same(collect(source, first_step), whole[first_step:])


def test_processes_read_their_own_rows_only(source):
    whole = collect(source)
    read = []
    watched = source._replace(read=lambda position: read.append(position) or source.read(position))
    halves = [collect(watched, rows=rows) for rows in (slice(0, 4), slice(4, 8))]
    assert len(read) == 9 * 8
    for batch, first, second in zip(whole, *halves, strict=True):
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), first, second)
        assert_same([joined], [batch])


def test_put_comes_in_order_and_ahead_of_use(source):
    steps = []
    placed = threading.Semaphore(0)

    def put(batch: data.StreamedBatch) -> data.StreamedBatch:
        steps.append(batch.index.tolist())
        placed.release()
        return batch._replace(mask="put")

    expected = [batch.index.tolist() for batch in collect(source)]
    with data.stream(
        source, first_step=0, num_steps=9, batch_size=8, seed=5, num_workers=2, num_ahead=3, put=put
    ) as batches:
        assert next(batches).mask == "put"
        # Three more are made while the first is in use, and no fifth.
        assert all(placed.acquire() for _ in range(4))
        time.sleep(0.05)
        assert steps == expected[:4]
        assert [batch.index.tolist() for batch in batches] == expected[1:]
    assert steps == expected


def test_put_on_the_devices(source):
    mesh = sharding.mesh()
    for placed, batch in zip(collect(source, put=lambda b: sharding.shard(b, mesh)), collect(source), strict=True):
        assert len(placed.images.sharding.device_set) == mesh.size
        assert_same([jax.device_get(placed)], [batch])


@pytest.mark.parametrize(
    ("raised", "expected"), [(UserError("8.jpg is broken"), UserError), (OSError("x"), RuntimeError)]
)
def test_an_error_of_a_worker_is_one_error_of_the_caller(source, raised, expected):
    order = np.concatenate([data.batch_positions(s, num_examples=NUM, batch_size=8, seed=5)[0] for s in range(2)])
    broken = int(order[11])

    def read(position: int) -> np.ndarray:
        if position == broken:
            raise raised
        return source.read(position)

    seen = []
    message = (
        "8.jpg is broken" if expected is UserError else f"example {100 + broken} of toy could not be read: OSError: x"
    )
    with (
        pytest.raises(expected, match=message) as error,
        data.stream(
            source._replace(read=read), first_step=0, num_steps=9, batch_size=8, seed=5, num_workers=3
        ) as batches,
    ):
        seen.extend(batches)
    # The whole batch before it still came.
    assert type(error.value) is expected and len(seen) == 1
    assert threads() == []


def test_an_image_of_another_size_is_refused(source):
    other = source._replace(read=lambda position: np.zeros((4, 5 + position % 2, 3), np.uint8))
    with pytest.raises(UserError, match="images of toy differ in size"):
        collect(other)
    with pytest.raises(UserError, match="images of toy differ in size"):
        data.read_all(other, num_workers=2)


def test_threads_end_when_the_context_is_left_early(source):
    with data.stream(source, first_step=0, num_steps=1000, batch_size=8, seed=0, num_workers=4) as batches:
        next(batches)
        assert threads()
    assert threads() == []


def test_read_all_gives_the_data_set_back(dataset, source):
    assert data.fingerprint(data.read_all(source, num_workers=4)) == data.fingerprint(dataset)
    part = np.array([9, 2, 2, 17])
    assert data.fingerprint(data.read_all(source.take(part))) == data.fingerprint(dataset.take(part))


@pytest.mark.parametrize("change", [{"num_workers": 0}, {"num_ahead": 0}, {"batch_size": 0}])
def test_less_than_one_is_refused(source, change):
    with pytest.raises(UserError, match=f"{next(iter(change))} is 0"):
        collect(source, **change)
