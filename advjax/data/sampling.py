"""Class balancing by undersampling, and concatenation of datasets."""

from collections.abc import Sequence

import numpy as np

from advjax.data.dataset import Dataset, pixels
from advjax.data.order import seeded_permutation
from advjax.data.source import differ_in_size
from advjax.types import UserError


def undersample(labels: np.ndarray, *, seed: int, name: str) -> np.ndarray:
    """Positions of a random subset in which every class has as many examples as the rarest one.

    Args:
      labels: int [n], the classes; classes without an example are ignored.
      seed: seed of the random choice.
      name: name of the dataset; different datasets share no randomness even with equal seeds.

    Returns:
      int32, sorted positions; all of them if the classes are already balanced.

    Raises:
      UserError: there are no labels.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) == 0:
        raise UserError(f"labels of {name} have shape {labels.shape}; undersampling needs one label per example")
    classes, counts = np.unique(labels, return_counts=True)
    shuffled = seeded_permutation(len(labels), "undersample", name, seed)
    kept = [shuffled[labels[shuffled] == wanted][: counts.min()] for wanted in classes]
    return np.sort(np.concatenate(kept)).astype(np.int32)


def concatenate(datasets: Sequence[Dataset]) -> Dataset:
    """Concatenates datasets in order, under the name of the first.

    ``index`` becomes the position in the *result*, so that copies of the same image (clean and adversarial) are
    augmented independently. Images stay uint8 if all of them are; otherwise all become float32 in [0, 1].

    Raises:
      UserError: there are no datasets, or image sizes or class names differ.
    """
    if not datasets:
        raise UserError("nothing to concatenate: pass at least one dataset")
    first = datasets[0]
    for other in datasets[1:]:
        if other.image_shape != first.image_shape:
            raise differ_in_size(first.name, first.image_shape, other.image_shape)
        if other.class_names != first.class_names:
            raise UserError(
                f"cannot concatenate {first.name} and {other.name}: "
                f"their classes are {first.class_names} and {other.class_names}"
            )
    are_bytes = all(dataset.images.dtype == np.uint8 for dataset in datasets)
    images = [dataset.images if are_bytes else pixels(dataset.images) for dataset in datasets]
    labels = np.concatenate([dataset.labels for dataset in datasets])
    groups = [dataset.groups for dataset in datasets]
    known = [group for group in groups if group is not None]
    return first._replace(
        images=np.concatenate(images),
        labels=labels,
        index=np.arange(len(labels), dtype=np.int32),
        groups=np.concatenate(known) if len(known) == len(groups) else None,
    )
