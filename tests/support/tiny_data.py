"""A dataset of random images for tests that need only shapes and labels."""

import numpy as np

from advjax.data import Dataset


def tiny_dataset(num_classes=10, per_class=4, image_shape=(8, 8, 1)):
    """Sorted by class."""
    labels = np.repeat(np.arange(num_classes, dtype=np.int32), per_class)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), *image_shape), np.uint8)
    return Dataset("tiny", images, labels, np.arange(len(labels), dtype=np.int32), tuple(map(str, range(num_classes))))
