"""Batches of a dataset that lies on the devices."""

import re

import jax
import numpy as np
import pytest

from advjax.data import Dataset
from advjax.data.source import from_dataset
from advjax.runtime.devices import Devices
from advjax.training.feed import feed_shapes, make_feed
from advjax.training.step import gather
from advjax.types import UserError

SHAPE, COUNT = (4, 6, 3), 26


def toy(count, value=0, size=SHAPE):
    labels = np.arange(count, dtype=np.int32) % 3
    return Dataset(
        "toy", np.full((count, *size), value, np.uint8), labels, np.arange(count, dtype=np.int32), tuple("abc")
    )


def test_every_batch_has_its_share_of_extra_images():
    devices = Devices(jax.sharding.Mesh(jax.devices()[:1], ("data",)), "shard_map")
    options = {"batch_size": 8, "seed": 0, "num_workers": 0, "devices": devices, "extra_rows": 6}
    with make_feed(toy(5), **options, extra=toy(7, 255))(0, 6) as batches:
        for data, positions, mask in batches:
            images = np.asarray(gather(data, positions, mask, 3).images)
            assert images.shape == (8, *SHAPE)
            np.testing.assert_array_equal(np.sort(images.mean(axis=(1, 2, 3))), [0, 0, 1, 1, 1, 1, 1, 1])
    with pytest.raises(UserError, match="toy"):
        make_feed(toy(5), **options, extra=toy(7, size=(6, 6, 3)))


def test_images_are_shaped_after_they_have_been_gathered():
    """A TPU would change the layout of [n, h, w, c] as a whole at every step."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (COUNT, *SHAPE)).astype(np.uint8), rng.integers(0, 3, COUNT).astype(np.int32)
    dataset = Dataset("toy", images, labels, np.arange(COUNT, dtype=np.int32), ("a", "b", "c"))
    devices = Devices(jax.sharding.Mesh(jax.devices()[:1], ("data",)), "shard_map")
    with make_feed(dataset, batch_size=8, seed=0, num_workers=0, devices=devices)(0, 1) as batches:
        data, positions, mask = next(iter(batches))
    assert data.images.shape == (COUNT, np.prod(SHAPE)) and data.images.dtype == np.uint8

    @jax.jit
    def batch(data, positions, mask):
        return gather(data, positions, mask, 3)

    found = batch(data, positions, mask)
    np.testing.assert_array_equal(np.round(np.asarray(found.images) * 255), images[positions])
    np.testing.assert_array_equal(found.labels, labels[positions])
    text = batch.lower(data, positions, mask).as_text()
    assert re.search(rf"tensor<{COUNT}x72xui8>", text) and not re.search(rf"tensor<{COUNT}x\d+x\d+x", text)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_shapes_are_those_of_the_batches(is_streamed):
    images, labels = np.zeros((COUNT, *SHAPE), np.uint8), np.arange(COUNT, dtype=np.int32) % 3
    dataset = Dataset("toy", images, labels, np.arange(COUNT, dtype=np.int32), ("a", "b", "c"))
    examples = from_dataset(dataset) if is_streamed else dataset
    devices = Devices(jax.sharding.Mesh(jax.devices()[:2], ("data",)), "shard_map")
    with make_feed(examples, batch_size=8, seed=0, num_workers=1, devices=devices)(0, 1) as batches:
        fed = next(iter(batches))
    expected = jax.tree.map(lambda array: (array.shape, array.dtype), fed)
    shapes = feed_shapes(SHAPE, COUNT, 8, is_streamed=is_streamed)
    assert jax.tree.map(lambda shape: (shape.shape, shape.dtype), shapes) == expected
