"""Which images stand for a data set: the first of a benchmark, a stratified draw of a folder sorted by class."""

import numpy as np

from advjax.data import Dataset
from advjax.evaluation.few_images import described, few_images, ranked
from advjax.experiment.registry import DEFENSES


def dataset(name, labels):
    labels = np.asarray(labels, np.int32)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Dataset(name, images, labels, np.arange(len(labels), dtype=np.int32), ("a", "b"))


SORTED = [0] * 60 + [1] * 40
SHUFFLED = [0, 1, 1, 0, 0] * 20


def test_benchmarks_give_their_first_images():
    found = few_images(dataset("cifar10", SHUFFLED), 10, seed=3)
    assert found.index.tolist() == list(range(10))
    assert described(dataset("mnist", SHUFFLED), 10, 3) == "10 of 100 images, the first"


def test_a_sorted_folder_gives_both_classes_in_their_proportion():
    for name in ("cats_vs_dogs", "patches", "mnist"):
        folder = dataset(name, SORTED)
        found = few_images(folder, 10, seed=3)
        assert np.bincount(found.labels).tolist() == [6, 4] and np.all(np.diff(found.index) > 0)
        assert found.index.tolist() == few_images(folder, 10, seed=3).index.tolist()
        assert found.index.tolist() != few_images(folder, 10, seed=4).index.tolist()
        assert set(few_images(folder, 5, seed=3).index) <= set(found.index)
        assert described(folder, 10, 3) == "10 of 100 images, a stratified draw with seed 3"


def test_all_images_are_all_images():
    folder = dataset("patches", SORTED)
    assert few_images(folder, 100, 0).index.tolist() == few_images(folder, 1000, 0).index.tolist() == list(range(100))


def test_the_pool_of_mixup_inference_is_drawn_as_well():
    recipe = DEFENSES["mixup_inference"](pool_size=20)
    for name, labels, first in (("cifar10", SHUFFLED, True), ("patches", SORTED, False)):
        train = dataset(name, labels)
        pool = recipe.arrays(train)
        images = np.concatenate([np.ravel(part) for part in map(np.asarray, jax_leaves(pool)) if part.ndim >= 4])
        wanted = np.sort(np.concatenate([np.flatnonzero(train.labels == label)[:10] for label in (0, 1)]))
        got = np.sort(np.unique(np.rint(255 * images if images.max() <= 1 else images)))
        assert len(got) == 20 and (got.tolist() == wanted.tolist()) == first
        order = ranked(train.labels, name, seed=0)
        assert set(got) == {*order[train.labels[order] == 0][:10], *order[train.labels[order] == 1][:10]}


def jax_leaves(tree):
    import jax

    return jax.tree.leaves(tree)
